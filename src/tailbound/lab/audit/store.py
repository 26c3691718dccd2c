"""Where parts of an audit go: a folder, or memory."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from tailbound.lab.rows import Columns, stack


class Store(Protocol):
    """Where parts go: a folder (`rows.Rows`), or memory."""

    def has(self, kind: str, part: str) -> bool:
        """Whether a part is done."""
        ...

    def add(self, kind: str, part: str, columns: Columns) -> None:
        """Keep a part."""
        ...

    def read(self, kind: str) -> dict[str, np.ndarray]:
        """All parts of a kind under one another."""
        ...

    def read_part(self, kind: str, part: str) -> dict[str, np.ndarray]:
        """One part."""
        ...


class Memory:
    """Parts that nobody has to find again."""

    def __init__(self) -> None:
        self._kinds: dict[str, dict[str, Columns]] = {}

    def has(self, kind: str, part: str) -> bool:
        """Whether a part is done."""
        return part in self._kinds.get(kind, {})

    def add(self, kind: str, part: str, columns: Columns) -> None:
        """Keep a part."""
        self._kinds.setdefault(kind, {})[part] = columns

    def read(self, kind: str) -> dict[str, np.ndarray]:
        """All parts of a kind under one another, in the order of their names, as `rows.Rows` has them."""
        parts = self._kinds[kind]
        return stack([parts[name] for name in sorted(parts)])

    def read_part(self, kind: str, part: str) -> dict[str, np.ndarray]:
        """One part."""
        return dict(self._kinds[kind][part])
