"""The plots of an audit as PNG files, from what `audit.json` holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tailbound.lab.audit import page_charts, words
from tailbound.lab.audit.columns import AT, EPSILONS
from tailbound.lab.audit.curves import DECODER
from tailbound.lab.audit.words import Found
from tailbound.report import plots
from tailbound.report.charts import Grid, Shades
from tailbound.report.plots import Curve, Panel

NAMES = ("heads", "keys", "theory", "answers", "budget")
"""Of all plots that an audit can have."""


class Picture(NamedTuple):
    """A plot: its name, and what writes it to a path."""

    name: str
    draw: Callable[[Path], None]


def of(found: Found) -> Iterator[Picture]:
    """The plots that the figures are there for."""
    title = _title(found)
    if found["heads"]:
        share = f"share_{AT:g}"
        cells = page_charts.grid(found, lambda line: line[share], lambda line: "")
        shades = Shades("share of keys", form=".0%", ends=(0.0, 1.0))
        yield _map("heads", f"{title}: keys needed at {AT:g}", cells, shades)
        yield Picture("keys", partial(plots.curves, title=title, panels=[_keys(found)]))
        panels = [_rule(found, epsilon) for epsilon in (0.001, AT, 0.1)]
        yield Picture("theory", partial(plots.curves, title=title, panels=panels))
    if found["curve"]:
        panels = [_answers(found, "epsilon", "epsilon"), _answers(found, "bytes_share", "bytes over dense attention's")]
        yield Picture("answers", partial(plots.curves, title=title, panels=panels))
    kind, budget = next(iter(page_charts.budgets(found).items()), ("", None))
    if budget is not None and page_charts.varies(budget):
        cells, shades = page_charts.budget_grid(found, budget)
        yield _map("budget", f"{title}: advised budget, {kind}", cells, shades)


def _map(name: str, title: str, cells: Grid, shades: Shades) -> Picture:
    return Picture(name, partial(plots.heat_map, title=title, axes=("layer", "head"), grid=cells, shades=shades))


def _title(found: Found) -> str:
    """Matplotlib reads what stands between dollar signs as mathematics."""
    return f"{found['settings']['model']}, {found['settings']['context']:,} tokens".replace("$", r"\$")


def _keys(found: Found) -> Panel:
    model = found["model"]
    curves = [
        Curve(name, EPSILONS, [model[f"{kind}_{epsilon:g}"] for epsilon in EPSILONS], style)
        for (kind, name), style in zip(page_charts.SHARES.items(), ("o-", "s--", "^:"), strict=True)
    ]
    return Panel("mean over heads", "epsilon", "share of keys", curves, "x", EPSILONS)


def _rule(found: Found, epsilon: float) -> Panel:
    rule = [line[f"rule_{epsilon:g}"] for line in found["heads"]]
    measured = [line[f"share_{epsilon:g}"] for line in found["heads"]]
    ends = [min(*rule, *measured), max(*rule, *measured)]
    curves = [Curve("a head", rule, measured, "o"), Curve("equal", ends, ends, "--", "gray")]
    return Panel(f"epsilon {epsilon:g}", "share of keys, Gaussian rule", "share of keys, measured", curves)


def _answers(found: Found, name: str, words_of_x: str) -> Panel:
    curves = []
    for policy, style in zip(DECODER, ("o-", "s--", "^:", "v-.", "x-"), strict=True):
        some = [line for line in found["curve"] if line["policy"] == policy]
        if some:
            curves.append(Curve(policy, [line[name] for line in some], [line["tv_mean"] for line in some], style))
    by_epsilon = name == "epsilon"
    title = "as many keys read as ours" if by_epsilon else "against bytes"
    ticks = EPSILONS if by_epsilon else ()
    return Panel(title, words_of_x, words.distance(found), curves, "xy" if by_epsilon else "y", ticks)
