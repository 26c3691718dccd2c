"""Timing by ratios: contestants take turns in one process, and only their paired ratios are results."""

from __future__ import annotations

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


def take_turns(
    contestants: Mapping[Who, Callable[[], object]], rounds: int, tick: Callable[[], None] = lambda: None
) -> dict[Who, np.ndarray]:
    """Seconds of each contestant in each round, float64 (rounds,); one more round comes first and is not counted."""
    seconds: dict[Who, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, call in contestants.items():
            started = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - started)
        tick()
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
