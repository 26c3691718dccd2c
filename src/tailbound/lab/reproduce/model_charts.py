"""The plots of a model's part of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tailbound.lab.reproduce import printed, sample
from tailbound.lab.reproduce.writing import Chart, Figures
from tailbound.report import plots

_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple", "tab:brown", "tab:pink", "tab:gray")


def charts(job: str, figures: Figures, encoder: bool) -> list[Chart]:
    """The five plots of a job; for an encoder the paper's figures are in two of them."""
    model = figures["run"][0]["model"]
    return [
        Chart(f"{job}-keys", lambda path: _keys(path, model, figures["model.needs"], encoder)),
        Chart(f"{job}-fixed", lambda path: _fixed(path, model, figures["model.fixed"], encoder)),
        Chart(f"{job}-rule", lambda path: _rule(path, model, figures["model.heads"])),
        Chart(f"{job}-scored", lambda path: _scored(path, model, figures["model.searches"])),
        Chart(f"{job}-tightness", lambda path: _tightness(path, model, figures["model.bounds"])),
    ]


def _lengths(rows: list[dict[str, Any]]) -> list[int]:
    return sorted({row["n"] for row in rows})


def _keys(path: Path, model: str, rows: list[dict[str, Any]], encoder: bool) -> None:
    curves = []
    for n, color in zip(_lengths(rows), _COLORS, strict=False):
        some = [row for row in rows if row["n"] == n]
        shares = [100.0 / row["ratio"] for row in some]
        curves.append(plots.Curve(f"n = {n:,}", [row["epsilon"] for row in some], shares, "-o", color))
        known = [row for row in some if row["paper"] is not None]
        if known:
            paper = [100.0 / row["paper"] for row in known]
            curves.append(plots.Curve(f"n = {n:,}, paper", [row["epsilon"] for row in known], paper, "x--", color))
    title = f"Keys kept against epsilon: {model}" + (f"; crosses: {printed.BERT}, paper" if encoder else "")
    plots.curves(path, title, [plots.Panel("", "epsilon", "mean k_eps / n, in %", curves, "x", printed.EPSILONS)])


def _fixed(path: Path, model: str, rows: list[dict[str, Any]], encoder: bool) -> None:
    n = [row["n"] for row in rows]
    curves = [
        plots.Curve("mean", n, [row["mean"] for row in rows], "-o", "tab:blue"),
        plots.Curve("95th percentile", n, [row["p95"] for row in rows], "-o", "tab:orange"),
    ]
    known = [row for row in rows if row["paper_mean"] is not None]
    if encoder and known:
        at = [row["n"] for row in known]
        curves += [
            plots.Curve("mean, paper", at, [row["paper_mean"] for row in known], "x--", "tab:blue"),
            plots.Curve("95th percentile, paper", at, [row["paper_p95"] for row in known], "x--", "tab:orange"),
        ]
    title = f"Total variation of the 16 heaviest keys: {model}" + (
        f"; crosses: {printed.BERT}, paper" if encoder else ""
    )
    plots.curves(path, title, [plots.Panel("", "n", "total variation", curves, "x", n)])


def _rule(path: Path, model: str, rows: list[dict[str, Any]]) -> None:
    lengths = _lengths(rows)
    panels = []
    for n in (lengths[0], lengths[-1]):
        some = [row for row in rows if row["n"] == n]
        curves = [
            plots.Curve(name, [row["share"] for row in part], [row["rule"] for row in part], "o", color)
            for name, part, color in (
                ("in range", [row for row in some if row["relative_variance"] <= 0.13], "tab:blue"),
                ("out of range", [row for row in some if row["relative_variance"] > 0.13], "tab:orange"),
            )
            if part
        ]
        least = min(min(row["share"], row["rule"]) for row in some)
        curves.append(plots.Curve("equal", [least, 1.0], [least, 1.0], "--", "gray"))
        panels.append(plots.Panel(f"n = {n:,}", "share of keys needed", "share by the rule", curves, "xy"))
    plots.curves(path, f"The Gaussian rule against heads, epsilon 0.01: {model}", panels)


def _scored(path: Path, model: str, rows: list[dict[str, Any]]) -> None:
    n = _lengths(rows)[-1]
    bars = [
        plots.Bar(_label(row), share, share, share, row["bound"] in (sample.SKETCH, sample.ORACLE))
        for row in rows
        for share in [row["mean_share"]]
        if row["n"] == n and row["epsilon"] == sample.EPSILONS[0]
        and sample.FIXED not in row["search"] and not row["search"].startswith("hybrid")
    ]  # fmt: skip
    title, axis = f"Keys scored, epsilon 0.01: {model}", "share of keys scored, mean; the line is all keys"
    plots.bars(path, title, axis, {f"n = {n:,}": bars}, log=False)


def _label(row: dict[str, Any]) -> str:
    return row["search"] if row["search"] in ("oracle", sample.CUT) else f"{row['search']}: {row['bound']}"


def _tightness(path: Path, model: str, rows: list[dict[str, Any]]) -> None:
    n = _lengths(rows)[-1]
    bars = [
        plots.Bar(
            row["bound"],
            row["median"],
            row["median"],
            row["p99"],
            sample.SKETCH in row["bound"] or "index" in row["bound"],
        )
        for row in rows
        if row["n"] == n and row["at"] == "k_eps"
    ]
    plots.bars(
        path,
        f"Bound tightness: {model}",
        "certified / true tail mass; whisker to the 99th percentile",
        {f"n = {n:,}": bars},
    )
