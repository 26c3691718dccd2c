"""Timing by ratios: contestants take turns in one process, and only their paired ratios are results."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np

Who = TypeVar("Who")


class Ratio(NamedTuple):
    """The median of paired ratios, and its bootstrap 95% interval."""

    median: float
    low: float
    high: float

    def in_words(self, in_lines: bool, digits: int = 2) -> str:
        """The median, and the interval under it or after it."""
        median, low, high = (f"{value:.{digits}f}" for value in self)
        return f"{median}\n{low} to {high}" if in_lines else f"{median} ({low} to {high})"


def threads(count: int) -> str:
    """A number of threads in words."""
    return "1 thread" if count == 1 else f"{count} threads"


def take_turns(
    contestants: Mapping[Who, Callable[[], object]],
    rounds: int,
    tick: Callable[[], None] = lambda: None,
    warm: int = 1,
) -> dict[Who, np.ndarray]:
    """Seconds of each contestant in each round, float64 (rounds,); `warm` rounds come first and are not counted.

    Python's collector looks at what contestants leave behind, not at all that the process held before.
    """
    seconds: dict[Who, list[float]] = {name: [] for name in contestants}
    gc.collect()
    gc.freeze()
    try:
        for turn in range(warm + rounds):
            for name, call in contestants.items():
                started = time.perf_counter()
                call()
                if turn >= warm:
                    seconds[name].append(time.perf_counter() - started)
            tick()
    finally:
        gc.unfreeze()
    return {name: np.array(values) for name, values in seconds.items()}


def ratio(numerator: np.ndarray, denominator: np.ndarray, seed: int = 0) -> Ratio:
    """How many times longer the first took, round by round. With fewer than 2 rounds the interval is the point."""
    from scipy.stats import bootstrap

    paired = numerator / denominator
    median = float(np.median(paired))
    if len(paired) < 2 or np.ptp(paired) == 0:
        return Ratio(median, median, median)
    found = bootstrap((paired,), np.median, rng=np.random.default_rng(seed), method="percentile")
    return Ratio(median, float(found.confidence_interval.low), float(found.confidence_interval.high))
