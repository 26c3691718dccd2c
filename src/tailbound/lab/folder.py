"""The folder of a benchmark's `--output`: rows.jsonl, table.md and plot.png."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from tailbound.lab.errors import InputError
from tailbound.report import plots


def prepare(folder: Path, option: str = "--output") -> None:
    """Make the folder that an option names, before the long work.

    Raises:
        InputError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}; name a folder by {option}") from error


def write(folder: Path, lines: Iterable[dict[str, Any]], markdown: str, plot: Callable[[Path], None]) -> str | None:
    """Write rows.jsonl, table.md, and plot.png; what is missing and why, if something is.

    Raises:
        InputError: the folder cannot be written to.
    """
    try:
        (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        (folder / "table.md").write_text(markdown, encoding="utf-8")
        if not plots.available():
            return f"no {folder / 'plot.png'}: matplotlib not installed; pip install 'tailbound[report]'"
        plot(folder / "plot.png")
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror or error}") from error
    return None
