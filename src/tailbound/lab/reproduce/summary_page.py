"""The top of the report: the paper's claim against searches that were run, over all models."""

from __future__ import annotations

from typing import Any

from tailbound.lab.reproduce import printed, sample
from tailbound.lab.reproduce.writing import Figures, fill, number
from tailbound.report import tables

EPSILON = sample.EPSILONS[0]


def summary(models: list[Figures]) -> str:
    """The claim, and how many bounds were checked."""
    lines = [line for figures in models for line in _lines(figures)]
    tables_checked = ("model.searches", "model.bounds", "model.outputs")
    checked = [row for figures in models for name in tables_checked for row in figures[name]]
    names = ("oracle", "gap", "mass", "sketch", "bytes")
    fields = {name: _span([line[name] for line in lines]) for name in names}
    fields |= {
        "claim": tables.markdown(_COLUMNS, (_cells(line) for line in lines), names=1),
        "reached": f"{min(line['sketch'] / line['oracle'] for line in lines):.0%}",
        "checked": f"{sum(row['rows'] for row in checked):,}",
        "violations": str(sum(row["violations"] for row in checked)),
    }
    return fill("summary.md", fields)


_COLUMNS = (
    "model",
    "n",
    "paper's claim",
    "oracle",
    "Delta_k-Search, best cells and k",
    "MC-Search adaptive, best cells",
    "MC-Search adaptive, sketch",
    "index",
    "index, in bytes",
)


def _lines(figures: Figures) -> list[dict[str, Any]]:
    rows = [row for row in figures["model.searches"] if row["epsilon"] == EPSILON]
    lines = []
    for n in sorted({row["n"] for row in rows}):
        found = {(row["search"], row["bound"]): row for row in rows if row["n"] == n}
        cells = [bound for search, bound in found if search == "MC-Search, adaptive" and bound != sample.SKETCH]
        index = found[sample.CUT, sample.SKETCH]
        lines.append(
            {
                "model": figures["run"][0]["model"],
                "n": n,
                "oracle": found["oracle", sample.ORACLE]["fewer"],
                "gap": max(found[f"Delta_k-Search, {sample.BEST}", bound]["fewer"] for bound in cells),
                "mass": max(found["MC-Search, adaptive", bound]["fewer"] for bound in cells),
                "sketch": found["MC-Search, adaptive", sample.SKETCH]["fewer"],
                "index": index["fewer"],
                "bytes": index["fewer_bytes"],
            }
        )
    return lines


def _cells(line: dict[str, Any]) -> tuple[str, ...]:
    claim = f"{printed.CLAIM[0]:g} to {printed.CLAIM[1]:g}"
    names = ("oracle", "gap", "mass", "sketch", "index", "bytes")
    return (line["model"], f"{line['n']:,}", claim, *(number(line[name], ".2f") for name in names))


def _span(values: list[float]) -> str:
    """The smallest and the largest, or the one that there is."""
    ends = dict.fromkeys(f"{value:.2f}" for value in (min(values), max(values)))
    return " to ".join(ends)
