"""Long work says how far it is, to whoever wants to know."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol


class Progress(Protocol):
    """Where progress goes: a task with a total (None: unknown) gives a function that advances it by one."""

    def task(self, name: str, total: int | None) -> AbstractContextManager[Callable[[], None]]:
        """Open a task for the length of a `with` block."""
        ...
