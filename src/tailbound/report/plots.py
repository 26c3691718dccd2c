"""Plots, with matplotlib, which is asked for only when one is drawn. Nothing here knows which job it is for.

The suffix of a path, `.png` or `.svg`, says what is written. The same figures give the same bytes.
"""

from __future__ import annotations

import importlib.util
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from tailbound.report.charts import Grid, Shades

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Curve(NamedTuple):
    """Points or a line: `style` is matplotlib's, as in "o", "-" or "--"; `color` one of its names, or None."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = "-"
    color: str | None = None


class Panel(NamedTuple):
    """Curves over one pair of axes. `log` names the logarithmic ones: "", "x", "y" or "xy"; `ticks` are those of x."""

    title: str
    x_axis: str
    y_axis: str
    curves: Sequence[Curve]
    log: str = ""
    ticks: Sequence[float] = ()


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


def curves(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Write panels of curves, side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(max(5.5, 4.6 * len(panels)), 4.2), layout="constrained")
    figure.suptitle(textwrap.fill(title, 30 + 40 * len(panels)), fontsize="medium")
    for place, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(place, panel)
    save(figure, path)


def _panel(place: Axes, panel: Panel) -> None:
    for curve in panel.curves:
        place.plot(curve.x, curve.y, curve.style, color=curve.color, label=curve.label, markersize=4, linewidth=1.5)
    if "x" in panel.log:
        place.set_xscale("log")
    if panel.ticks:
        place.set_xticks(panel.ticks, [f"{tick:g}" for tick in panel.ticks])
        place.minorticks_off()
    if "y" in panel.log:
        place.set_yscale("log")
    place.set_title(panel.title, loc="left", fontsize="medium")
    place.set_xlabel(panel.x_axis)
    place.set_ylabel(panel.y_axis)
    place.grid(alpha=0.3)
    if any(curve.label for curve in panel.curves):
        place.legend(fontsize="small")


def bars(path: Path, title: str, axis: str, panels: Mapping[str, Sequence[Bar]], log: bool = True) -> None:
    """Write one panel of horizontal bars after another, on an axis with a line at 1: logarithmic, or from 0."""
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
        if log:
            place.set_xscale("log")
        place.invert_yaxis()
        place.set_title(name, loc="left", fontsize="medium")
    axes[-1].set_xlabel(axis)
    save(figure, path)


def heat_map(path: Path, title: str, axes: tuple[str, str], grid: Grid, shades: Shades) -> None:
    """Write a heat map; `axes` says what columns and rows are."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    columns, rows = len(grid.columns), len(grid.rows)
    figure = Figure(
        figsize=(min(max(5.0, 0.3 * columns + 2), 14), min(max(2.6, 0.2 * rows + 1.4), 10)), layout="constrained"
    )
    figure.suptitle(textwrap.fill(title, 70), fontsize="medium")
    place = figure.subplots()
    values = [[float("nan") if value is None else value for value in row] for row in grid.values]
    ends = shades.ends or (None, None)
    mesh = place.pcolormesh(
        grid.columns, grid.rows, values, vmin=ends[0], vmax=ends[1], edgecolors="white", linewidth=0.4
    )
    place.set_xlabel(axes[0])
    place.set_ylabel(axes[1])
    for axis in (place.xaxis, place.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    bar = figure.colorbar(mesh, ax=place, label=shades.title)
    if shades.marks:
        bar.set_ticks(list(shades.marks[0]), labels=list(shades.marks[1]))
    elif shades.form.endswith("%"):
        bar.formatter = PercentFormatter(1.0)
    save(figure, path)


def save(figure: Figure, path: Path) -> None:
    """Write a figure. Text in an SVG stays text; nothing in a file depends on the time or on chance."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    if path.suffix == ".svg":
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": path.stem}):
            FigureCanvasSVG(figure).print_svg(str(path), metadata={"Date": None})
    else:
        FigureCanvasAgg(figure).print_png(str(path))
