"""Delta_k-Search, MC-Search and the hybrid. Tzachristas et al. 2025, Algorithms 1 and 2, Section 8.2.

All open cells by falling upper end and stop at the first proof. Where we differ from the printed algorithms:

- MC-Search counts every unread key of a cell (`n_j exp(U_j)`), keeps the unread mass in the denominator, and never
  drops the scale;
- a search that runs out of cells returns the exact tail mass and says EXHAUSTED if that is above epsilon;
- the gap test certifies a total variation, and does not claim that the keys are the k heaviest.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from tailbound.bounds.base import CellBound
from tailbound.search import stopping
from tailbound.search.result import SearchResult
from tailbound.search.state import Scorer, SearchState
from tailbound.search.stopping import Test


def gap_search(
    bound: CellBound,
    query: Float[Tensor, " D"],
    score: Scorer,
    *,
    epsilon: float,
    k: int,
    scale: float = 1.0,
    score_error: float = 0.0,
) -> SearchResult:
    """Delta_k-Search: keep the k best keys once a gap below them proves `tv <= epsilon` (Alg. 1, Thm 7.1).

    Args:
        bound: cells of keys. query: (D,), finite.
        score: int64 keys (m,) in, float64 logits (m,) out; asked only for the keys of opened cells.
        epsilon: budget of total variation, in (0, 1).
        k: keys to keep, in [1, n]. At k = n nothing needs to be scored.
        scale: what `score` and the bound multiply `q.k` by; any finite number.
        score_error: what the logits that `score` gives may be off by, nats.

    Raises:
        ValueError: epsilon, k, scale or score_error out of range, a query that does not fit, NaN from `score`.

    >>> import torch
    >>> from tailbound.bounds import Ball, run_cells
    >>> keys = torch.tensor([[9.0], [9.0], [0.0], [0.1]])
    >>> asked = lambda i: keys[i, 0].double()
    >>> found = gap_search(Ball(keys, run_cells(4, 2)), torch.ones(1), asked, epsilon=0.01, k=2)
    >>> found.kept.tolist(), found.status.name, found.cost
    ([0, 1], 'CERTIFIED', Cost(keys_scored=2, cells_opened=1))
    """
    stopping.check(bound, epsilon, k, score_error)
    return _search(SearchState(bound, query, scale, score, score_error), epsilon, k, stopping.gap(k))


def mass_search(
    bound: CellBound,
    query: Float[Tensor, " D"],
    score: Scorer,
    *,
    epsilon: float,
    k: int | None = None,
    scale: float = 1.0,
    score_error: float = 0.0,
) -> SearchResult:
    """MC-Search: keep keys once the mass of all others, read or not, proves `tv <= epsilon` (Alg. 2, Thm 7.2).

    Args:
        k: keys to keep, in [1, n]; None keeps the fewest scored keys that prove epsilon when the first proof appears.

    Other arguments and errors as in `gap_search`. With k = None the result is always CERTIFIED.

    >>> import torch
    >>> from tailbound.bounds import Ball, run_cells
    >>> keys = torch.tensor([[9.0], [9.0], [0.0], [0.1]])
    >>> asked = lambda i: keys[i, 0].double()
    >>> mass_search(Ball(keys, run_cells(4, 2)), torch.ones(1), asked, epsilon=0.01).kept.tolist()
    [0, 1]
    """
    stopping.check(bound, epsilon, k, score_error)
    return _search(SearchState(bound, query, scale, score, score_error), epsilon, k, stopping.mass(epsilon, k))


def hybrid_search(
    bound: CellBound,
    query: Float[Tensor, " D"],
    score: Scorer,
    *,
    epsilon: float,
    k: int,
    scale: float = 1.0,
    score_error: float = 0.0,
) -> SearchResult:
    """The hybrid policy: after each cell the gap test, and where it fails the mass test (Section 8.2).

    Arguments and errors as in `gap_search`; `result.test` says which test fired.

    >>> import torch
    >>> from tailbound.bounds import Ball, run_cells
    >>> keys = torch.tensor([[9.0], [9.0], [0.0], [0.1]])
    >>> asked = lambda i: keys[i, 0].double()
    >>> hybrid_search(Ball(keys, run_cells(4, 2)), torch.ones(1), asked, epsilon=0.01, k=2).test
    'gap'
    """
    stopping.check(bound, epsilon, k, score_error)
    return _search(SearchState(bound, query, scale, score, score_error), epsilon, k, stopping.hybrid(epsilon, k))


def _search(state: SearchState, epsilon: float, k: int | None, tests: list[Test]) -> SearchResult:
    if k == state.total:
        return stopping.everything(state)
    while state.scored < state.total:
        state.open_next()
        found = stopping.proof(state, epsilon, tests)
        if found is not None:
            return found
    return stopping.exact(state, epsilon, k)
