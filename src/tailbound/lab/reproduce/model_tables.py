"""The tables of a model's part of the report."""

from __future__ import annotations

from typing import Any

from tailbound.lab.reproduce import printed, sample
from tailbound.lab.reproduce.writing import number
from tailbound.report import tables

Rows = list[dict[str, Any]]

_PAPER = f"paper, {printed.BERT}"


def needs(rows: Rows, encoder: bool, model: str) -> str:
    """k_eps by n and epsilon."""
    columns = ("n", "epsilon", f"n / mean k_eps: {_PAPER if encoder else 'paper'}", f"ours, {model}", "our error",
               "difference", "mean k_eps", "95th percentile")  # fmt: skip
    cells = (
        (
            f"{row['n']:,}",
            f"{row['epsilon']:g}",
            number(row["paper"], ".2f"),
            f"{row['ratio']:.2f}",
            number(row["standard_error"], ".3f"),
            number(row["difference"], "+.2f"),
            f"{row['mean_k']:.1f}",
            f"{row['p95_k']:.0f}",
        )
        for row in rows
    )
    return tables.markdown(columns, cells)


def fixed(rows: Rows, encoder: bool, model: str) -> str:
    """Total variation at k = 16, and the gap test."""
    paper = _PAPER if encoder else "paper"
    ours = f"ours, {model}"
    columns = ("n", f"mean TV: {paper}", ours, "our error", "difference", f"95th percentile: {paper}", ours,
               "difference", f"gap test passes: {paper}", ours, "gap test, n / mean of its smallest k")  # fmt: skip
    cells = (
        (
            f"{row['n']:,}",
            number(row["paper_mean"], ".3f"),
            f"{row['mean']:.3f}",
            number(row["standard_error"], ".3f"),
            number(row["difference_mean"], "+.3f"),
            number(row["paper_p95"], ".3f"),
            f"{row['p95']:.3f}",
            number(row["difference_p95"], "+.3f"),
            number(row["paper_gap_pass"], ".0%"),
            f"{row['gap_pass']:.2%}",
            f"{row['ratio_gap']:.3f}",
        )
        for row in rows
    )
    return tables.markdown(columns, cells)


def wikitext(rows: Rows, model: str) -> str:
    """The paper's figures on WikiText-2 beside ours on our text."""
    whose, ours = f"{_PAPER}, WikiText-2", f"ours, {model}"
    names = (
        f"n / mean k_eps: {whose}",
        ours,
        "difference",
        f"95th percentile of k_eps: {whose}",
        ours,
        "difference",
    )
    cells = (
        (
            f"{row['n']:,}",
            f"{row['paper_ratio']:.2f}",
            f"{row['ratio']:.2f}",
            f"{row['difference_ratio']:+.2f}",
            str(row["paper_p95_k"]),
            f"{row['p95_k']:.0f}",
            f"{row['difference_p95_k']:+.0f}",
        )
        for row in rows
    )
    return tables.markdown(("n", *names), cells)


def spread(rows: Rows, model: str) -> str:
    """The spread of mean k_eps over heads."""
    names = {
        "min": "sharpest",
        "p5": "5%",
        "p25": "25%",
        "median": "median",
        "p75": "75%",
        "p95": "95%",
        "max": "flattest",
    }
    cells = ((f"{row['n']:,}", str(row["heads"]), *(f"{row[name]:.1f}" for name in names)) for row in rows)
    return tables.markdown((f"{model}: n", "heads", *names.values()), cells)


def heads(rows: Rows, run: dict[str, Any], model: str) -> str:
    """Some heads; with the paper's model the paper's six, beside its figures, else the paper's six apart."""
    ranked = sorted(rows, key=lambda row: row["k"])
    count = len(ranked)
    places = dict.fromkeys([0, 1, 2, count // 4, count // 2, 3 * count // 4, count - 3, count - 2, count - 1])
    chosen = {(ranked[i]["layer"], ranked[i]["head"]): ranked[i] for i in places if 0 <= i < count}
    ours = {(row["layer"], row["head"]): row for row in rows}
    lines = [_head_line(model, where, row, None) for where, row in chosen.items()]
    if run["part"] == "bert":
        for where, paper in printed.BERT_HEADS.items():
            same = ours.get(where) if run["papers_model"] and ours[where]["n"] == 128 else None
            lines.append(_head_line(printed.BERT, where, same, paper))
    columns = ("model", "layer, head", "mean k_eps: paper", "ours", "difference", "gap test: paper", "ours",
               "TV of 16 keys", "sigma")  # fmt: skip
    return tables.markdown(columns, lines, names=2)


def _head_line(
    model: str, where: tuple[int, int], row: dict[str, Any] | None, paper: printed.Head | None
) -> tuple[str, ...]:
    blank = row is None
    return (
        model,
        f"{where[0]}, {where[1]}" + (f" ({paper.remark})" if paper and paper.remark else ""),
        number(paper and paper.k, ".1f"),
        "-" if blank else f"{row['k']:.1f}",
        "-" if blank or paper is None else f"{row['k'] - paper.k:+.1f}",
        number(paper and paper.gap_pass, ".0%"),
        "-" if blank else f"{row['gap_pass']:.1%}",
        "-" if blank else f"{row['tv_16']:.3f}",
        "-" if blank else f"{row['sigma']:.2f}",
    )


def rule(rows: Rows, model: str) -> str:
    """The Gaussian rule against heads."""
    columns = (f"{model}: n", "heads", "median sigma", "rank correlation", "rule / measured: 5%", "median", "95%",
               "within 10%", "heads in range", "of these within 10%")  # fmt: skip
    cells = (
        (
            f"{row['n']:,}",
            str(row["heads"]),
            f"{row['sigma_median']:.2f}",
            number(row["rank_correlation"], ".3f"),
            f"{row['ratio_p5']:.2f}",
            f"{row['ratio_median']:.2f}",
            f"{row['ratio_p95']:.2f}",
            f"{row['near']:.0%}",
            str(row["inside"]),
            number(row["near_inside"], ".0%"),
        )
        for row in rows
    )
    return tables.markdown(columns, cells)


def searches(rows: Rows, n: int, model: str) -> str:
    """Keys scored at the largest length, both budgets side by side."""
    found = {(row["search"], row["bound"], row["epsilon"]): row for row in rows if row["n"] == n}
    small, large = sample.EPSILONS
    heads = [f"epsilon {epsilon:g}: {_SCORED[0]}" for epsilon in (small, large)]
    columns = (f"{model}: search", "bound", heads[0], *_SCORED[1:], heads[1], *_SCORED[1:])
    lines = []
    for search, bound in dict.fromkeys((search, bound) for search, bound, _ in found):
        cells = [cell for epsilon in (small, large) for cell in _scored(found[search, bound, epsilon])]
        lines.append((search, bound, *cells))
    lines.sort(key=lambda line: (line[0] != "oracle", line[0] == sample.CUT))
    return tables.markdown(columns, lines, names=2)


_SCORED = ("keys scored, mean", "median", "times fewer", "certified")


def _scored(row: dict[str, Any]) -> tuple[str, ...]:
    return (
        f"{row['mean_share']:.1%}",
        f"{row['median_share']:.1%}",
        f"{row['fewer']:.2f}",
        f"{row['certified']:.0%}",
    )


def bounds(rows: Rows, model: str) -> str:
    """Looseness on the tail mass, for both heads side by side."""
    found = {(row["n"], row["bound"], row["at"]): row for row in rows}
    columns = (f"{model}: n", "bound", "k_eps: median", "99%", "mean certified", "mean true", "k = 16: median", "99%",
               "mean certified", "mean true", "below the truth")  # fmt: skip
    lines = []
    for n, bound in dict.fromkeys((n, bound) for n, bound, _ in found):
        both = [found.get((n, bound, at)) for at in ("k_eps", sample.FIXED)]
        cells = [cell for row in both for cell in _loose(row)]
        below = sum(row["violations"] for row in both if row)
        lines.append((f"{n:,}", bound, *cells, str(below)))
    return tables.markdown(columns, lines, names=2)


def _loose(row: dict[str, Any] | None) -> tuple[str, ...]:
    if row is None:
        return ("-",) * 4
    return times(row["median"]), times(row["p99"]), f"{row['mean_certified']:.4f}", f"{row['mean_true']:.4f}"


def outputs(rows: Rows, model: str) -> str:
    """Looseness of the output bounds."""
    columns = (f"{model}: n", "bound", "bound / error: median", "99%", "smallest of the three", "mean bound",
               "mean error", "below the truth")  # fmt: skip
    cells = (
        (
            f"{row['n']:,}",
            row["bound"],
            times(row["median"]),
            times(row["p99"]),
            f"{row['wins']:.1%}" if row["bound"] in ("norm", "diameter", "variance") else "-",
            f"{row['mean_certified']:.4f}",
            f"{row['mean_true']:.4f}",
            str(row["violations"]),
        )
        for row in rows
    )
    return tables.markdown(columns, cells, names=2)


def times(ratio: float) -> str:
    """A ratio with the digits that it is worth."""
    return f"{ratio:.3f}" if ratio < 10 else f"{ratio:,.0f}" if ratio < 1e6 else f"{ratio:.1e}"
