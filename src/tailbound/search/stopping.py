"""When a search may stop, and with what: the tests of Algorithms 1 and 2, and what an ending is worth."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from tailbound.bounds.base import CellBound
from tailbound.search.result import Cost, SearchResult, SearchStatus
from tailbound.search.state import SearchState
from tailbound.theory.inputs import check_budget, check_count

Test = tuple[str, Callable[[SearchState], tuple[int, float]]]
"""A name, and what gives a head size and the total variation that is proved for it."""


def gap(k: int) -> list[Test]:
    """The gap test alone."""
    return [("gap", lambda state: (k, state.gap_tv(k)))]


def mass(epsilon: float, k: int | None) -> list[Test]:
    """The mass test alone; k = None looks for the fewest scored keys that prove epsilon."""
    return [("mass", _adaptive(epsilon) if k is None else _fixed_mass(k))]


def hybrid(epsilon: float, k: int) -> list[Test]:
    """The gap test, and where it fails the mass test."""
    return gap(k) + mass(epsilon, k)


def proof(state: SearchState, epsilon: float, tests: list[Test]) -> SearchResult | None:
    """What the first test to pass proves; None if none does, or if no key is left to score."""
    if state.scored == state.total:
        return None
    for name, test in tests:
        count, tv = test(state)
        if tv <= epsilon:
            return _result(state, count, tv, SearchStatus.CERTIFIED, name)
    return None


def exact(state: SearchState, epsilon: float, k: int | None) -> SearchResult:
    """The ending with every key scored: nothing is unread, and the mass test gives the tail mass itself."""
    count, tv = (_adaptive(epsilon) if k is None else _fixed_mass(k))(state)
    status = SearchStatus.CERTIFIED if tv <= epsilon else SearchStatus.EXHAUSTED
    return _result(state, count, tv, status, "exact")


def everything(state: SearchState) -> SearchResult:
    """The ending with every key kept, and none scored."""
    nothing = torch.empty(0, dtype=torch.float64)
    return SearchResult(torch.arange(state.total), nothing, 0.0, SearchStatus.CERTIFIED, "exact", Cost(0, 0))


def check(bound: CellBound, epsilon: float, k: int | None, score_error: float) -> None:
    """What every search asks of its arguments."""
    check_budget(epsilon)
    if k is not None:
        check_count(k, bound.keys.shape[0])
    if not (math.isfinite(score_error) and score_error >= 0.0):
        raise ValueError(f"score_error={score_error!r} must be a finite number of nats, at least 0")


def _fixed_mass(k: int) -> Callable[[SearchState], tuple[int, float]]:
    return lambda state: (k, float(state.mass_tv(k, k)[0]) if state.scored >= k else 1.0)


def _adaptive(epsilon: float) -> Callable[[SearchState], tuple[int, float]]:
    """The fewest scored keys that prove epsilon; all of them, with what they prove, if none do."""

    def test(state: SearchState) -> tuple[int, float]:
        tv = state.mass_tv(1, state.scored)
        enough = (tv <= epsilon).nonzero()
        first = int(enough[0]) if len(enough) else state.scored - 1
        return first + 1, float(tv[first])

    return test


def _result(state: SearchState, k: int, tv: float, status: SearchStatus, test: str) -> SearchResult:
    return SearchResult(*state.best(k), tv, status, test, state.cost)
