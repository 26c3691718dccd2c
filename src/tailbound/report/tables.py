"""Tables in the terminal. Nothing here computes a figure, or knows which job it is for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.table import Table


def figures(title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], caption: str = "") -> Table:
    """Figures under column heads, right-aligned."""
    table = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def turned(title: str, names: Sequence[str], columns: Sequence[Sequence[str]]) -> Table:
    """Figures of many kinds about few things: one line a kind, named on the left, and one column a thing."""
    table = Table(title=title, title_justify="left")
    table.add_column(names[0])
    for column in columns:
        table.add_column(column[0], justify="right")
    for number, name in enumerate(names[1:], 1):
        table.add_row(name, *(column[number] for column in columns))
    return table


def pairs(rows: Iterable[tuple[str, RenderableType]], title: str | None = None) -> Table:
    """Names and what they are, without lines."""
    table = Table(title=title, title_justify="left", box=None, show_header=False, padding=(0, 2, 0, 0))
    for row in rows:
        table.add_row(*row)
    return table


def markdown(columns: Sequence[str], rows: Iterable[Sequence[str]], names: int = 0) -> str:
    """The same figures as a Markdown table, right-aligned but for the first columns, which hold `names`."""
    lines = [columns, ["---"] * names + ["---:"] * (len(columns) - names), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def figure(value: float | None, form: str) -> str:
    """A figure in a format, or a blank for None."""
    return "" if value is None else format(value, form)
