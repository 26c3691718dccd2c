"""What every command needs of the terminal: lists of values from options, tables or JSON, warnings."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tailbound.lab.errors import InputError

Value = TypeVar("Value")


def values(option: str, given: list[str] | None, kind: Callable[[str], Value]) -> tuple[Value, ...]:
    """What came for a repeatable option, commas undone; each once."""
    words = [word.strip() for part in given or [] for word in part.split(",")]
    try:
        return tuple(dict.fromkeys(kind(word) for word in words))
    except ValueError as error:
        what = "whole numbers" if kind is int else "numbers"
        raise InputError(f"{option} {','.join(words)}: give {what}, as in {option} 1,2") from error


def give_rows(room: Any, rows: Sequence[Any], output: Path | None, as_json: bool) -> None:
    """Rows of a benchmark: JSON lines or the tables of its `show_` module, and the folder of `--output`."""
    from tailbound.lab import machine

    if as_json:
        for row in rows:
            print(json.dumps(row.as_json()))
    else:
        show(None, *room.bench(rows))
    missing = None if output is None else room.write(output, machine.inspect(), rows)
    warn([missing] if missing else [])


def warn(lines: Sequence[str]) -> None:
    """Say lines on stderr, as the command."""
    for line in lines:
        print(f"tailbound: {line}", file=sys.stderr)


def show(figures: dict[str, Any] | None, *renderables: Any) -> None:
    """Print figures as JSON, or what rich renders."""
    if figures is not None:
        print(json.dumps(figures))
        return
    from rich.console import Console

    # Into a file or a pipe, tables are as wide as they need be.
    console = Console() if sys.stdout.isatty() or "COLUMNS" in os.environ else Console(width=160)
    for renderable in renderables:
        console.print(renderable)
