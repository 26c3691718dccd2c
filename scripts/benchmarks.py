"""Tables and the figure of the documentation, from the runs in docs/results: ratios and errors, no times.

The tables that a run prints are in lab/show_bench.py and show_bench_generate.py. They show times too, and rows of the
code as it is; a committed run is older than the code, so its rows stay the JSON that they are here.

In a page, what stands between `<!-- benchmarks: KIND RUN ... -->` and `<!-- end -->` is made here.

Run: python scripts/benchmarks.py            puts the tables into the pages and draws docs/figures/speed-and-error.svg
     python scripts/benchmarks.py --print    prints the tables
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tailbound.lab import contestants, steps
from tailbound.lab.contestants import DENSE, FOLDED, GQA, READ
from tailbound.lab.steps import STOCK
from tailbound.lab.timing import Ratio
from tailbound.report import plots
from tailbound.report.tables import figure, markdown

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "docs" / "results"
PAGES = (ROOT / "docs" / "benchmarks.md", ROOT / "README.md")
FIGURE = ROOT / "docs" / "figures" / "speed-and-error.svg"
BLOCK = re.compile(r"(<!-- benchmarks: (?P<call>[^>]+?) -->\n)(?P<body>.*?)(<!-- end -->)", re.DOTALL)

OURS = {*contestants.OURS, *steps.OURS}
Row = dict[str, Any]


def rows(run: str) -> list[Row]:
    """The rows of a run; its first line is the machine."""
    lines = (RESULTS / f"{run}.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines[1:]]


def words(ratio: Row | None, digits: int = 2) -> str:
    """A median and its 95% interval; of one measurement, itself."""
    if ratio is None:
        return ""
    found = Ratio(**ratio)
    return f"{found.median:.{digits}f}" if found.low == found.high else found.in_words(False, digits)


def name(row: Row) -> str:
    """The contestant, with its instructions or its budget."""
    if "isa" in row:
        return f"{row['contestant']} {row['isa']}" if row["contestant"] in OURS else row["contestant"]
    return row["contestant"] if row["epsilon"] is None else f"{row['contestant']}, epsilon {row['epsilon']:g}"


def decode(run: str) -> str:
    """One decode step of attention: every contestant, speed beside error."""
    columns = (
        "contestant",
        "epsilon",
        "certified TV",
        "true TV",
        "violations",
        *(f"times faster than {peer}" for peer in contestants.PEERS),
        "than reading K and V once",
        "keys kept / oracle",
        "keys kept",
        "MB read",
    )
    cells = (
        (
            name(row),
            f"{row['epsilon']:g}" if row["epsilon"] else "",
            figure(row["tv_max"], ".5f"),
            figure(row["true_tv_max"], ".5f"),
            "" if row["tv_max"] is None else str(row["violations"]),
            *("" if peer == row["contestant"] else words(row["ratio"][peer]) for peer in contestants.PEERS),
            "" if row["contestant"] == READ else words(row["limit_ratio"]),
            figure(row["kept_over_oracle"], ".3f"),
            figure(row["kept_share"], ".1%"),
            f"{row['bytes_read'] / 1e6:.1f}",
        )
        for row in rows(run)
    )
    return markdown(columns, cells, names=1) + "\n" + _lost(run)


def short(run: str) -> str:
    """The same for a reader in a hurry: ours but for the scalar oracle, medians only."""
    columns = (
        "kernels",
        "epsilon",
        "certified TV",
        "true TV",
        "SDPA, group folded",
        "SDPA `enable_gqa`",
        "our dense kernel",
        "reading K and V once",
        "keys kept / oracle",
    )
    some = [row for row in rows(run) if _shown(row)]
    cells = (
        (
            {"avx2": "AVX2", "avx512vnni": "AVX-512 VNNI", "avx512bf16": "AVX-512 BF16"}[row["isa"]],
            f"{row['epsilon']:g}",
            figure(row["tv_max"], ".5f"),
            figure(row["true_tv_max"], ".5f"),
            *(f"{row['ratio'][peer]['median']:.2f}" for peer in (FOLDED, GQA, DENSE)),
            f"{row['limit_ratio']['median']:.2f}",
            figure(row["kept_over_oracle"], ".3f"),
        )
        for row in some
    )
    return markdown(columns, cells, names=1)


def generate(run: str, dtype: str, context: str) -> str:
    """Whole decode steps of a model at one dtype and context."""
    columns = (
        "contestant",
        "certified TV",
        *(f"times faster than {peer}" for peer in steps.PEERS),
        "next-token TV, mean",
        "largest",
        "argmax agreement",
        "recording",
        "prefill, times faster than sdpa",
        "peak / sdpa",
        "cache / sdpa",
        "dense rows",
        "keys kept",
        "fallbacks",
    )
    cells = (
        (
            name(row),
            figure(row["tv_max"], ".5f"),
            *("" if peer == row["contestant"] else words(row["ratio"][peer]) for peer in steps.PEERS),
            f"{row['next_token_tv_mean']:.5f}",
            f"{row['next_token_tv_max']:.5f}",
            f"{row['argmax_agreement']:.1%}",
            words(row["recording"], 3),
            "" if row["contestant"] == STOCK or row["prefill_ratio"] is None else words(row["prefill_ratio"][STOCK]),
            figure(row["memory_ratio"], ".2f"),
            f"{row['cache_ratio']:.2f}",
            figure(row["dense_share"], ".1%"),
            figure(row["kept_share"], ".1%"),
            "" if row["fallbacks"] is None else str(row["fallbacks"]),
        )
        for row in _at(run, dtype, context)
    )
    return markdown(columns, cells, names=1) + "\n" + _lost(run, dtype, context)


def parts(run: str, dtype: str, context: str) -> str:
    """Where a step's time goes, as shares of a whole step of `sdpa`."""
    some = _at(run, dtype, context)
    whole = some[0]["profile"]["whole"]
    kinds = max((list(row["profile"]) for row in some), key=len)
    lines = ([kind, *(_share(row["profile"].get(kind), whole) for row in some)] for kind in kinds)
    return markdown(["part of the step", *map(name, some)], lines, names=1)


def _share(part: float | None, whole: float) -> str:
    return figure(None if part is None else part / whole, ".1%")


def _at(run: str, dtype: str, context: str) -> list[Row]:
    return [row for row in rows(run) if (row["dtype"], row["context"]) == (dtype, int(context))]


def _lost(run: str, *where: str) -> str:
    """Where ours are slower than a peer, one line each."""
    some = _at(run, *where) if where else rows(run)
    lines = "".join(f"- {line}\n" for line in _losses(some))
    return f"**Where we lose.**\n\n{lines}" if lines else "**Where we lose:** to none of the peers.\n"


def _losses(some: list[Row]) -> Iterator[str]:
    for row in some:
        peers = [f"{ratio['median']:.2f} of {peer}" for peer, ratio in row["ratio"].items() if ratio["median"] < 1]
        if row["contestant"] in OURS and peers:
            budget = f", epsilon {row['epsilon']:g}" if "isa" in row and row["epsilon"] else ""
            yield f"{name(row)}{budget}: the speed is {', '.join(peers)}"


KINDS = {"decode": decode, "short": short, "generate": generate, "parts": parts}


def filled(text: str) -> str:
    """A page with its tables made anew."""

    def made(found: re.Match[str]) -> str:
        kind, *arguments = found["call"].split()
        return f"{found[1]}\n{KINDS[kind](*arguments)}\n{found[4]}"

    return BLOCK.sub(made, text)


def draw(run: str = "decode-smollm2-8192") -> None:
    """Times faster than SDPA on the left, certified and true total variation of the same row on the right."""
    from matplotlib.figure import Figure

    some = [row for row in rows(run) if row["contestant"] in (FOLDED, DENSE, READ) or _shown(row)]
    labels = [f"{name(row)}, epsilon {row['epsilon']:g}" if row["epsilon"] else name(row) for row in some]
    labels[-1] = "reading K and V once"
    speed = [row["ratio"][FOLDED] for row in some]
    canvas = Figure(figsize=(9, 0.36 * len(some) + 1.5), layout="constrained")
    left, right = canvas.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    below = [max(0.0, one["median"] - one["low"]) for one in speed]
    ends = [below, [max(0.0, one["high"] - one["median"]) for one in speed]]
    colors = ["#3f6fb5" if row["contestant"] == contestants.TAILBOUND else "#b8bec8" for row in some]
    left.barh(labels, [one["median"] for one in speed], xerr=ends, color=colors, ecolor="#222222")
    left.axvline(1, color="#222222", linewidth=0.8)
    left.set_title("times faster than SDPA, group folded", loc="left", fontsize="medium")
    left.invert_yaxis()
    for field, style in (
        ("true_tv_max", {"color": "#222222", "marker": "|", "s": 90, "label": "true"}),
        ("tv_max", {"facecolor": "none", "edgecolor": "#c0392b", "s": 36, "label": "certified"}),
    ):
        found = [(row[field], place) for place, row in enumerate(some) if row[field] is not None]
        right.scatter(*zip(*found, strict=True), **style)
    right.set_title("largest total variation", loc="left", fontsize="medium")
    right.set_xlim(-0.003, 0.06)
    right.legend(fontsize="small", loc="upper right")
    for place in (left, right):
        place.grid(axis="x", alpha=0.3)
        place.spines[["top", "right"]].set_visible(False)
        place.set_axisbelow(True)
    FIGURE.parent.mkdir(exist_ok=True)
    plots.save(canvas, FIGURE)


def _shown(row: Row) -> bool:
    """Ours at a budget, but for the scalar oracle."""
    return row["contestant"] == contestants.TAILBOUND and row["isa"] != "scalar"


def main() -> None:
    """Print the tables, or put them where they belong."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        if "--print" in sys.argv:
            print("\n".join(found["body"] for found in BLOCK.finditer(filled(text))))
        else:
            page.write_text(filled(text), encoding="utf-8")
    if "--print" not in sys.argv:
        draw()


if __name__ == "__main__":
    main()
