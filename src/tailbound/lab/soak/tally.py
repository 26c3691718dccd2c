"""Figures of many judged rows, that can be added up."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from tailbound.result import Status

LENGTHS = (1, 256, 1024, 4096)
"""Rows are counted by the keys they see: from each of these up to the next."""

DECADES = (-17.0, 303.0)
STEPS = 50
"""Looseness is counted by the logarithm of tv / true - 1, in fiftieths of a decade."""


@dataclass
class Tally:
    """What was seen. Rows are certificates.

    Attributes:
        cases, violations: calls made, promises broken.
        statuses, lengths, kinds, makers: rows by status, by visible keys, by kind of case, by who answered.
        escalated: rows that float64 could not decide: by "wide" or by "digits".
        margin: the smallest tv / true - 1 seen, and `at`, the (seed, number) of its case.
    """

    cases: int = 0
    violations: int = 0
    statuses: Counter[str] = field(default_factory=Counter)
    lengths: Counter[int] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    makers: Counter[str] = field(default_factory=Counter)
    escalated: Counter[str] = field(default_factory=Counter)
    margin: float = math.inf
    at: tuple[int, int] | None = None
    _loose: np.ndarray = field(default_factory=lambda: np.zeros(int((DECADES[1] - DECADES[0]) * STEPS), dtype=np.int64))

    @property
    def rows(self) -> int:
        """Certificates judged."""
        return sum(self.statuses.values())

    @property
    def sparse(self) -> float:
        """Share of rows that are neither DENSE nor EMPTY nor NONFINITE."""
        return self.statuses[Status.CERTIFIED.name] / self.rows if self.rows else 0.0

    @property
    def long(self) -> float:
        """Share of rows that see at least 4,096 keys."""
        return self.lengths[LENGTHS[-1]] / self.rows if self.rows else 0.0

    def count(self, status: np.ndarray, visible: np.ndarray, kind: str, who: str) -> None:
        """Rows of one call, by what they are."""
        self.cases += 1
        self.kinds[kind] += status.size
        self.makers[who] += status.size
        for number, rows in zip(*np.unique(status, return_counts=True), strict=True):
            self.statuses[Status(int(number)).name] += int(rows)
        place = np.searchsorted(LENGTHS, visible.ravel(), side="right") - 1
        for number, rows in zip(*np.unique(place, return_counts=True), strict=True):
            self.lengths[LENGTHS[number] if number >= 0 else 0] += int(rows)

    def loosen(self, spare: np.ndarray, case: tuple[int, int]) -> None:
        """What tv has to spare over its truth, as shares of the truth, where that is above 0."""
        if not spare.size:
            return
        least = float(spare.min())
        if least < self.margin:
            self.margin, self.at = least, case
        with np.errstate(divide="ignore"):
            place = (np.log10(np.maximum(spare, 0)) - DECADES[0]) * STEPS
        self._loose += np.bincount(np.clip(place, 0, len(self._loose) - 1).astype(np.int64), minlength=len(self._loose))

    def quantile(self, share: float) -> float | None:
        """Of tv / true, to within a fiftieth of a decade of its distance from 1; None without rows."""
        total = int(self._loose.sum())
        if not total:
            return None
        place = int(np.searchsorted(np.cumsum(self._loose), share * total))
        return 1.0 + 10.0 ** (DECADES[0] + (place + 1) / STEPS)

    def add(self, other: Tally) -> None:
        """Take another's rows too."""
        self.cases += other.cases
        self.violations += other.violations
        for name in ("statuses", "lengths", "kinds", "makers", "escalated"):
            getattr(self, name).update(getattr(other, name))
        if other.margin < self.margin:
            self.margin, self.at = other.margin, other.at
        self._loose += other._loose
