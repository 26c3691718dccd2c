"""A page to look into: charts that answer to mouse, finger and keyboard, tables that sort, a page for each thing.

One file that needs nothing else: plotly.js is in it, and a policy of the page itself forbids it the network. Everything
that is passed as text is escaped. Nothing here knows which job it is for.
"""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from string import Template
from typing import Any, NamedTuple

from tailbound.report.charts import Chart


class Section(NamedTuple):
    """A part of the page: where links find it, its heading, and its HTML."""

    anchor: str
    title: str
    html: str


class Cell(NamedTuple):
    """A cell of a table: its text, the number that it is sorted by, and the key of the thing that it opens."""

    text: str
    value: float | None = None
    key: str | None = None


class Things(NamedTuple):
    """What has a page of its own, which opens over the report.

    Attributes:
        word: what one is called, as in "Head". prefix: of its address, as in "head" for `#head-3.7`.
        names: of figures. cells: by key, in order, the figures in words.
        chart: drawn for each, with its own y for every line; KEY in its alt text is replaced. curves: these y, by key.
    """

    word: str
    prefix: str
    names: Sequence[str]
    cells: Mapping[str, Sequence[str]]
    chart: Chart
    curves: Mapping[str, Sequence[Sequence[float | None]]]


def available() -> bool:
    """Whether plotly is installed (the `report` extra)."""
    return importlib.util.find_spec("plotly") is not None


def paragraph(text: str, kind: str = "") -> str:
    """Text in the style that a class of the page's sheet names."""
    return f"<p class={_quoted(kind)}>{escape(text)}</p>" if kind else f"<p>{escape(text)}</p>"


def tiles(pairs: Iterable[tuple[str, str]]) -> str:
    """The few figures that matter most, large; the name of each below."""
    inside = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="tiles">{inside}</dl>'


def facts(pairs: Iterable[tuple[str, str]]) -> str:
    """Names and what they are."""
    inside = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in pairs)
    return f'<dl class="facts">{inside}</dl>'


def figure(anchor: str, charts: Sequence[Chart], caption: str, things: Things | None = None) -> str:
    """Charts in one place, of which one is shown and a list chooses.

    Args:
        things: what a click opens; then arrow keys walk over cells or points, and Enter opens one.
    """
    choice = ""
    if len(charts) > 1:
        options = "".join(f"<option>{escape(chart.label)}</option>" for chart in charts)
        choice = (
            f'<div class="switch"><label for="{anchor}-choice">Shown</label>'
            f'<select id="{anchor}-choice">{options}</select></div>'
        )
    alt = _quoted(charts[0].alt)
    if things is None:
        opens, live, canvas = "", "", f'<div class="canvas" role="img" aria-label={alt}></div>'
    else:
        opens, live = " data-opens", '<p class="live" role="status"></p>'
        canvas = (
            f'<div class="canvas" tabindex="0" role="application" aria-roledescription="chart" aria-label={alt}></div>'
        )
        caption += f" Click a {things.word.lower()}, or walk with the arrow keys and press Enter, to open its page."
    return (
        f'<figure class="plot" id="{anchor}-figure"{opens}>{choice}{canvas}{live}'
        f"<figcaption>{escape(caption)}</figcaption>{_data([chart.as_json() for chart in charts])}</figure>"
    )


def table(columns: Sequence[str], rows: Iterable[Sequence[Cell]], label: str, things: Things | None = None) -> str:
    """A table; with things, one that sorts by any column, scrolls in its place, and whose keys open their pages."""
    kind, place = (' class="sortable"', "wide tall") if things else ("", "wide")
    heads = "".join(
        f'<th scope="col"><button type="button">{escape(name)}</button></th>'
        if things
        else f'<th scope="col">{escape(name)}</th>'
        for name in columns
    )
    body = "".join(f"<tr>{''.join(_cell(cell, things) for cell in row)}</tr>" for row in rows)
    return (
        f'<div class="{place}" tabindex="0" role="region" aria-label={_quoted(label)}><table{kind}>'
        f"<thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def folded(summary: str, html: str) -> str:
    """What is shown when it is asked for."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def render(title: str, opening: str, sections: Sequence[Section], things: Things | None) -> str:
    """The whole page.

    Args:
        opening: HTML before the first section.
    """
    from plotly.offline import get_plotlyjs

    contents = "".join(f'<li><a href="#{section.anchor}">{escape(section.title)}</a></li>' for section in sections)
    body = opening + "".join(
        f'<section id="{section.anchor}"><h2>{escape(section.title)}</h2>{section.html}</section>\n'
        for section in sections
    )
    return Template(_file("board.html")).substitute(
        title=escape(title),
        css=_file("board.css"),
        contents=contents,
        body=body,
        dialog="" if things is None else _dialog(things),
        library=get_plotlyjs(),
        script=_file("board.js"),
    )


def _dialog(things: Things) -> str:
    document = {
        "word": things.word,
        "prefix": things.prefix,
        "names": things.names,
        "order": list(things.cells),
        "cells": things.cells,
        "chart": things.chart.as_json(),
        "curves": things.curves,
    }
    return (
        '<dialog aria-labelledby="thing-title"><div class="bar"><h2 id="thing-title"></h2>'
        '<button type="button" data-step="-1" aria-label="Previous">&larr;</button>'
        '<button type="button" data-step="1" aria-label="Next">&rarr;</button>'
        '<button type="button" data-close autofocus>Close</button></div>'
        '<div class="page"><div class="canvas" role="img"></div><dl class="facts"></dl></div></dialog>'
        + _data(document, "items")
    )


def _cell(cell: Cell, things: Things | None) -> str:
    value = "" if cell.value is None else repr(float(cell.value))
    text = escape(cell.text)
    if cell.key is not None and things is not None:
        text = f'<a href="#{things.prefix}-{escape(cell.key)}">{text}</a>'
    return f'<td data-value="{value}">{text}</td>' if things else f"<td>{text}</td>"


def _data(document: Any, name: str = "") -> str:
    """JSON in a script, which no text in it can end; floats to five digits."""
    text = json.dumps(_short(document), separators=(",", ":"), allow_nan=False)
    text = re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", text)
    return f'<script type="application/json"{f" id={_quoted(name)}" if name else ""}>{text}</script>'


def _short(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {name: _short(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_short(part) for part in value]
    return value


def _quoted(text: str) -> str:
    return f'"{escape(text)}"'


def _file(name: str) -> str:
    return (importlib.resources.files("tailbound.report") / name).read_text(encoding="utf-8")
