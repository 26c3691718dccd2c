"""Pieces of a report: prose from templates, charts, numbers in words."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Mapping
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

Figures = dict[str, list[dict[str, Any]]]
"""Rows of figures by the name of their table; "run" has one, which says what was run."""


class Chart(NamedTuple):
    """A picture: its file's name without suffix, and what writes it to a path ending in .png or .svg."""

    name: str
    draw: Callable[[Path], None]


class Section(NamedTuple):
    """A part of the report."""

    markdown: str
    charts: list[Chart]


def fill(template: str, fields: Mapping[str, str]) -> str:
    """The prose of a Markdown file in this folder, with its `${fields}` filled; a field that is missing is an error."""
    text = (importlib.resources.files("tailbound.lab.reproduce") / template).read_text(encoding="utf-8")
    return Template(text).substitute({name: field.rstrip("\n") for name, field in fields.items()})


def number(value: float | None, form: str = ".4g") -> str:
    """A figure, or a dash where there is none."""
    return "-" if value is None else format(value, form)


def versions(run: Mapping[str, Any]) -> str:
    """The machine and the versions that rows were made with, in a line."""
    parts = (f"{name} {version}" for name, version in run["versions"].items())
    return f"{run['processor']}, {', '.join(parts)}, seed {run['seed']}"
