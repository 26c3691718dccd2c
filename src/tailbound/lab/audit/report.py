"""What stands beside the figures of an audit, made of `audit.json` alone: `report.html` and `plots/`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tailbound.lab import folder, rows, seals
from tailbound.lab.audit import page, pictures
from tailbound.lab.audit.words import SCHEMA, Found
from tailbound.lab.errors import InputError
from tailbound.report import board, plots

NAME = "audit.json"
PAGE = "report.html"
PLOTS = "plots"


class Piece(NamedTuple):
    """A file, and what writes it to a path."""

    file: Path
    write: Callable[[Path], object]


def load(place: Path) -> dict[str, Any]:
    """The audit in a folder.

    Raises:
        InputError: there is none, or it cannot be read, or is of another schema.
    """
    file = place / NAME
    if not file.is_file():
        raise InputError(f"{place} holds no {NAME}; give the folder of a `tailbound audit --out`")
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {file}: {error}; make the audit again") from error
    schema = found.get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise InputError(f"{file} has the schema {schema!r}, and this version reads {SCHEMA!r}; make the audit again")
    if not seals.is_whole(found):
        raise InputError(f"{file} is not as it was written: its {seals.SEAL} does not fit; make the audit again")
    return found


def pieces(place: Path, found: Found) -> list[Piece]:
    """The files there are to write, of those that what is installed allows."""
    made = []
    if board.available():
        made.append(Piece(place / PAGE, lambda path: path.write_text(page.html(found), encoding="utf-8")))
    if plots.available():
        made += [Piece(place / PLOTS / f"{picture.name}.png", picture.draw) for picture in pictures.of(found)]
    return made


def missing(place: Path) -> list[str]:
    """What is not written, and how to get it; a line each."""
    needed = ((place / PAGE, "plotly", board.available()), (place / PLOTS, "matplotlib", plots.available()))
    return [
        f"no {path}: {name} not installed; pip install 'tailbound[report]'" for path, name, there in needed if not there
    ]


def redraw(place: Path) -> list[Path]:
    """Make the files again from the audit in a folder; those that were made.

    Raises:
        InputError: there is none, or a file cannot be written.
    """
    made = pieces(place, load(place))
    write(place, made)
    return [piece.file for piece in made]


def write(place: Path, made: list[Piece]) -> None:
    """Write files, each whole or not at all; plots of an earlier audit that this one does not have are removed.

    Raises:
        InputError: one cannot be written.
    """
    if plots.available():
        folder.prepare(place / PLOTS, "--out")
        for name in pictures.NAMES:
            file = place / PLOTS / f"{name}.png"
            if file not in [piece.file for piece in made]:
                file.unlink(missing_ok=True)
    for piece in made:
        rows.whole(piece.file, piece.write)
