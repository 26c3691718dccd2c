"""Progress bars on stderr, so that stdout carries results alone."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Bars:
    """One bar a task, kept on the screen when it is done; silent where stderr is not a terminal."""

    def __init__(self) -> None:
        # The stream is held, not looked up: loading a model redirects sys.stderr.
        self._console = Console(file=sys.stderr)

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Callable[[], None]]:
        """Show a task while the block runs. The function given advances it by one."""
        columns = (
            SpinnerColumn(finished_text="✓"),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn() if total else TextColumn(""),
            TimeElapsedColumn(),
            TimeRemainingColumn() if total else TextColumn(""),
        )
        with Progress(
            *columns,
            console=self._console,
            disable=not self._console.is_terminal,
            redirect_stdout=False,
            redirect_stderr=False,
        ) as progress:
            task = progress.add_task(name, total=total)
            yield lambda: progress.advance(task)
            progress.update(task, total=total or 1, completed=total or 1)
