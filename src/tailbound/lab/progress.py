"""Long work says how far it is, to whoever wants to know."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """Where progress goes: a task with a total (None: unknown) gives a function that advances it by one."""

    def task(self, name: str, total: int | None) -> AbstractContextManager[Callable[[], None]]:
        """Open a task for the length of a `with` block."""
        ...


class Silent:
    """Progress that nobody is told of."""

    @contextmanager
    def task(self, name: str, total: int | None) -> Iterator[Callable[[], None]]:
        """See `Progress.task`."""
        yield lambda: None
