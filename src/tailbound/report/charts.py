"""Charts for a page, as plotly.js takes them: plain data. Nothing here knows which job it is for.

Colours of text, grid and paper are the page's, which is light or dark; those of lines are readable on both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

PALETTE = ("#3d85d8", "#e07b00", "#1a9e77", "#c85fa0", "#8a8f98")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
DIVERGING = [[0.0, "#2b6cb8"], [0.5, "#d9d9d9"], [1.0, "#c2500a"]]
STEADY = [[0.0, "#3d85d8"], [1.0, "#e07b00"]]


class Chart(NamedTuple):
    """A chart: its name among others in one place, what it shows in words, and plotly's data and layout."""

    label: str
    alt: str
    data: list[dict[str, Any]]
    layout: dict[str, Any]

    def as_json(self) -> dict[str, Any]:
        """What the page's script reads."""
        return {"alt": self.alt, "data": self.data, "layout": self.layout}


class Axis(NamedTuple):
    """What is on an axis, and how: `form` is d3's, as in ".0%"; `ticks` is where it is marked; `ends` what it spans."""

    title: str
    log: bool = False
    form: str = ""
    ticks: Sequence[float] = ()
    ends: tuple[float, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """As plotly's layout has it."""
        found: dict[str, Any] = {"title": {"text": self.title}, "tickformat": self.form}
        if self.log:
            found |= {"type": "log", "dtick": 1, "tickformat": self.form or "~g"}
        if self.ticks:
            found |= {"tickvals": list(self.ticks), "ticktext": [f"{tick:g}" for tick in self.ticks]}
        if self.ends:
            found["range"] = list(self.ends)
        elif not self.log:
            found["rangemode"] = "tozero"
        return found


class Line(NamedTuple):
    """A line with a mark at each point, and errors of y if there are any."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]
    errors: Sequence[float | None] | None = None


def lines(label: str, alt: str, x_axis: Axis, y_axis: Axis, curves: Sequence[Line]) -> Chart:
    """Lines told apart by colour, dash and mark."""
    data = []
    for number, curve in enumerate(curves):
        style = number % len(PALETTE)
        trace: dict[str, Any] = {
            "type": "scatter",
            "mode": "lines+markers",
            "name": curve.label,
            "x": list(curve.x),
            "y": list(curve.y),
            "line": {"color": PALETTE[style], "dash": DASHES[style], "width": 2},
            "marker": {"color": PALETTE[style], "symbol": SYMBOLS[style], "size": 8},
        }
        if curve.errors is not None:
            trace["error_y"] = {"type": "data", "array": list(curve.errors), "thickness": 1, "width": 3}
        data.append(trace)
    return Chart(label, alt, data, _layout(x_axis, y_axis, 440) | {"hovermode": "closest"})


class Points(NamedTuple):
    """Points with a key each, under which the page of one is opened, words, and a number that colours it."""

    x: Sequence[float]
    y: Sequence[float]
    keys: Sequence[str]
    words: Sequence[str]
    shade: Sequence[float]
    shade_title: str


def scatter(label: str, alt: str, x_axis: Axis, y_axis: Axis, points: Points) -> Chart:
    """Points, and the line on which both axes say the same."""
    ends = [min(*points.x, *points.y), max(*points.x, *points.y)]
    cloud: dict[str, Any] = {
        "type": "scatter",
        "mode": "markers",
        "x": list(points.x),
        "y": list(points.y),
        "customdata": list(points.keys),
        "text": list(points.words),
        "hovertemplate": "%{customdata}: %{text}<extra></extra>",
        "showlegend": False,
        "marker": {
            "size": 8,
            "opacity": 0.85,
            "color": list(points.shade),
            "colorscale": STEADY,
            "colorbar": _colour_bar(points.shade_title, ""),
        },
    }
    equal: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines",
        "x": ends,
        "y": ends,
        "hoverinfo": "skip",
        "showlegend": False,
        "line": {"color": PALETTE[4], "dash": "dash", "width": 1.5},
    }
    return Chart(label, alt, [cloud, equal], _layout(x_axis, y_axis, 520) | {"hovermode": "closest"})


class Grid(NamedTuple):
    """A value for each row and column, None where there is none, and the same in words."""

    rows: Sequence[int]
    columns: Sequence[int]
    values: Sequence[Sequence[float | None]]
    words: Sequence[Sequence[str]]


class Shades(NamedTuple):
    """Colours of values: `ends` of the scale, whether zero is `centred`, and where it is marked with which words."""

    title: str
    form: str = ""
    ends: tuple[float, float] | None = None
    centred: bool = False
    marks: tuple[Sequence[float], Sequence[str]] | None = None


def heat_map(label: str, alt: str, x_axis: str, y_axis: str, grid: Grid, shades: Shades) -> Chart:
    """A heat map whose cells open the page of `column.row`."""
    bar = _colour_bar(shades.title, shades.form)
    if shades.marks:
        bar |= {"tickvals": list(shades.marks[0]), "ticktext": list(shades.marks[1])}
    trace: dict[str, Any] = {
        "type": "heatmap",
        "x": list(grid.columns),
        "y": list(grid.rows),
        "z": [list(row) for row in grid.values],
        "text": [list(row) for row in grid.words],
        "hovertemplate": "%{x}.%{y}: %{text}<extra></extra>",
        "hoverongaps": False,
        "xgap": 1,
        "ygap": 1,
        "colorscale": DIVERGING if shades.centred else "Viridis",
        "colorbar": bar,
    }
    if shades.centred:
        trace["zmid"] = 0
    elif shades.ends:
        trace["zmin"], trace["zmax"] = shades.ends
    height = 170 + min(max(18 * len(grid.rows), 120), 640)
    layout = _layout(Axis(x_axis), Axis(y_axis), height)
    for name in ("xaxis", "yaxis"):
        layout[name] |= {"showgrid": False, "zeroline": False, "tickformat": "d"}
    return Chart(label, alt, [trace], layout)


def _layout(x_axis: Axis, y_axis: Axis, height: int) -> dict[str, Any]:
    return {
        "xaxis": x_axis.as_json(),
        "yaxis": y_axis.as_json(),
        "height": height,
        "margin": {"l": 10, "r": 10, "t": 8, "b": 10},
        "legend": {"orientation": "h", "yanchor": "bottom", "y": 1.02, "x": 0},
    }


def _colour_bar(title: str, form: str) -> dict[str, Any]:
    """Above the chart, where it takes no width from it on a phone."""
    return {
        "orientation": "h",
        "thickness": 12,
        "y": 1.0,
        "yanchor": "bottom",
        "tickformat": form,
        "outlinewidth": 0,
        "title": {"text": title, "side": "top"},
    }
