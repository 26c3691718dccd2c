"""Plots, with matplotlib, which is asked for only when one is drawn. Nothing here knows which job it is for."""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class Bar(NamedTuple):
    """A value with the ends of its interval, and whether it stands out."""

    label: str
    value: float
    low: float
    high: float
    bold: bool = False


def available() -> bool:
    """Whether matplotlib is installed (the `report` extra)."""
    return importlib.util.find_spec("matplotlib") is not None


def bars(path: Path, title: str, axis: str, panels: Mapping[str, Sequence[Bar]]) -> None:
    """Write a PNG: one panel of horizontal bars after another, on a logarithmic axis with a line at 1."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    height = 1 + sum(0.6 + 0.28 * len(panel) for panel in panels.values())
    figure = Figure(figsize=(8, height), layout="constrained")
    figure.suptitle(textwrap.fill(title, 90), fontsize="medium")
    ratios = [len(panel) for panel in panels.values()]
    axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=ratios, sharex=True)[:, 0]
    for place, (name, panel) in zip(axes, panels.items(), strict=True):
        values = [bar.value for bar in panel]
        # The interval of a bootstrap holds its median, up to rounding.
        below = [max(0.0, bar.value - bar.low) for bar in panel]
        above = [max(0.0, bar.high - bar.value) for bar in panel]
        colors = ["tab:blue" if bar.bold else "lightgray" for bar in panel]
        place.barh([bar.label for bar in panel], values, xerr=[below, above], color=colors, ecolor="black")
        place.axvline(1, color="black", linewidth=0.8)
        place.set_xscale("log")
        place.invert_yaxis()
        place.set_title(name, loc="left", fontsize="medium")
    axes[-1].set_xlabel(axis)
    FigureCanvasAgg(figure).print_png(str(path))
