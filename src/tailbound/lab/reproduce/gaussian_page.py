"""The Gaussian part of the report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tailbound import theory
from tailbound.lab.reproduce import printed
from tailbound.lab.reproduce.writing import Chart, Figures, Section, fill, number, versions
from tailbound.report import plots, tables

_COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")


def section(figures: Figures, pictures: str) -> Section:
    """Tables 2 and 6, the law, and where the rule ends.

    Args:
        pictures: the address of the folder of plots.
    """
    two, six, grid = (figures[f"gaussian.{name}"] for name in ("table2", "table6", "range"))
    limits, law = figures["gaussian.limits"], figures["gaussian.law"]
    worst = max(two, key=lambda row: abs(row["in_standard_errors"]))
    off = max(two, key=lambda row: abs(row["rule_deviation"]))
    variances = [row["relative_variance_0.01"] for row in limits if row["relative_variance_0.01"] is not None]
    fields = {
        "versions": versions(figures["run"][0]),
        "draws": f"{two[0]['draws']:,}",
        "same": str(sum(row["rule_difference"] == 0 for row in two)),
        "count": str(len(two)),
        "worst": f"{abs(worst['in_standard_errors']):.1f}",
        "worst_sigma": f"{worst['sigma']:g}",
        "off": f"{abs(off['rule_deviation']):.1%}",
        "off_sigma": f"{off['sigma']:g}",
        "draws_6": f"{six[0]['draws']:,}",
        "worst_6": f"{max(abs(row['difference']) for row in six):.5f}",
        "draws_law": f"{law[0]['draws']:,}",
        "sigma_low": f"{grid[0]['sigma']:g}",
        "sigma_high": f"{grid[-1]['sigma']:g}",
        "variance_low": number(min(variances, default=None), ".2f"),
        "variance_high": number(max(variances, default=None), ".2f"),
        "inverse": number(len(variances) / sum(variances) if variances else None, ".0f"),
        "pictures": pictures,
        "table_2": _table_2(two),
        "table_6": _table_6(six),
        "law": _law(law),
        "limits": _limits(limits),
    }
    charts = [
        Chart("gaussian-law", lambda path: _law_chart(path, two)),
        Chart("gaussian-range", lambda path: _range_chart(path, grid)),
    ]
    return Section(fill("gaussian.md", fields), charts)


def _table_2(rows: list[dict[str, Any]]) -> str:
    columns = ("sigma", "rule, paper", "rule, ours", "difference", "simulated, paper", "simulated, ours", "our error",
               "difference", "in standard errors", "rule, off by")  # fmt: skip
    cells = (
        (
            f"{row['sigma']:.1f}",
            f"{row['paper_rule']:,}",
            f"{row['rule']:,}",
            f"{row['rule_difference']:+d}",
            f"{row['paper']:,.3f}",
            f"{row['simulated']:,.3f}",
            f"{row['standard_error']:.3f}",
            f"{row['difference']:+.3f}",
            f"{row['in_standard_errors']:+.2f}",
            f"{row['rule_deviation']:+z.2%}",
        )
        for row in rows
    )
    return tables.markdown(columns, cells)


def _table_6(rows: list[dict[str, Any]]) -> str:
    columns = ("n", "epsilon", "paper", "rule, ours", "simulated, ours", "our error", "difference")
    cells = (
        (
            f"{row['n']:,}",
            f"{row['epsilon']:g}",
            f"{row['paper']:.4f}",
            f"{row['rule']:.5f}",
            f"{row['simulated']:.5f}",
            f"{row['standard_error']:.5f}",
            f"{row['difference']:+.5f}",
        )
        for row in rows
    )
    return tables.markdown(columns, cells)


def _law(rows: list[dict[str, Any]]) -> str:
    columns = ("sigma", "epsilon (the law)", "threshold", "mass below, ours", "our error", "difference", "ours / law")
    cells = (
        (
            f"{row['sigma']:g}",
            f"{row['epsilon']:g}",
            f"{row['threshold']:.3f}",
            f"{row['simulated']:.5f}",
            f"{row['standard_error']:.5f}",
            f"{row['difference']:+.5f}",
            f"{row['simulated'] / row['epsilon']:.3f}",
        )
        for row in rows
    )
    return tables.markdown(columns, cells)


def _limits(rows: list[dict[str, Any]]) -> str:
    columns = (
        "n",
        "off by 1% from sigma",
        "relative variance there",
        "off by 5% from sigma",
        "sqrt(ln n)",
        "sqrt(2 ln n)",
    )
    cells = (
        (
            f"{row['n']:,}",
            number(row["within_0.01"], ".2f"),
            number(row["relative_variance_0.01"], ".2f"),
            number(row["within_0.05"], ".2f"),
            f"{row['self_averaging']:.2f}",
            f"{row['freezing']:.2f}",
        )
        for row in rows
    )
    return tables.markdown(columns, cells)


def _law_chart(path: Path, rows: list[dict[str, Any]]) -> None:
    sigmas = [row["sigma"] for row in rows]
    fine = [0.02 * i for i in range(5, 151)]
    exact = {sigma: theory.gaussian_keep_fraction(printed.TABLE_2_EPSILON, sigma) * printed.TABLE_2_N for sigma in fine}
    left = [
        plots.Curve("rule (6.4)", fine, list(exact.values()), "-", "gray"),
        plots.Curve("simulated, ours", sigmas, [row["simulated"] for row in rows], "o", "tab:blue"),
        plots.Curve("simulated, paper", sigmas, [row["paper"] for row in rows], "x", "tab:orange"),
    ]
    right = [
        plots.Curve("ours", sigmas, [row["simulated"] / row["rule"] for row in rows], "o", "tab:blue"),
        plots.Curve("paper", sigmas, [row["paper"] / row["rule"] for row in rows], "x", "tab:orange"),
    ]
    plots.curves(
        path,
        "The Gaussian law, n = 10,000, epsilon = 0.01",
        [
            plots.Panel("keys needed", "sigma of the logits", "k_eps", left),
            plots.Panel("simulated / rule", "sigma of the logits", "ratio", right),
        ],
    )


def _range_chart(path: Path, rows: list[dict[str, Any]]) -> None:
    lengths = sorted({row["n"] for row in rows})
    curves = [
        plots.Curve(
            f"n = {n:,}",
            [row["sigma"] for row in rows if row["n"] == n],
            [100 * row["rule_deviation"] for row in rows if row["n"] == n],
            "-o",
            color,
        )
        for n, color in zip(lengths, _COLORS, strict=False)
    ]
    title = "The rule against simulation, epsilon = 0.01"
    plots.curves(path, title, [plots.Panel("", "sigma of the logits", "rule / simulated mean - 1, in %", curves)])
