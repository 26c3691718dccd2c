"""What the searches cost where every logit is known already, in a few tests instead of one a cell: for measuring.

A search opens cells one by one and stops at the first proof. As cells open, unread mass only gives way to what was
scored, which is no more, and the k-th best logit only rises: a test that has passed passes ever after. So the first
cell at which it passes is found by bisection. Where a test comes within rounding of epsilon, the stop may be another
cell than the search's; what is returned was proved there all the same.
"""

from __future__ import annotations

import copy

from jaxtyping import Float
from torch import Tensor

from tailbound.bounds.base import CellBound
from tailbound.search import stopping
from tailbound.search.result import SearchResult
from tailbound.search.state import SearchState
from tailbound.search.stopping import Test


class Replay:
    """The searches over one bound and one query, with all logits at hand. Each method is the search of its name.

    >>> import torch
    >>> from tailbound.bounds import Ball, run_cells
    >>> keys = torch.tensor([[9.0], [9.0], [0.0], [0.1]])
    >>> known = Replay(Ball(keys, run_cells(4, 2)), torch.ones(1), keys[:, 0].double())
    >>> known.mass(epsilon=0.01).cost
    Cost(keys_scored=2, cells_opened=1)
    """

    def __init__(
        self,
        bound: CellBound,
        query: Float[Tensor, " D"],
        logits: Float[Tensor, " n"],
        *,
        scale: float = 1.0,
        score_error: float = 0.0,
    ) -> None:
        """Order the cells for the query.

        Args:
            logits: float64 (n,), of every key, nats.

        Others, and errors, as in `search.gap_search`.
        """
        self._bound, self._error = bound, score_error
        self._start = SearchState(bound, query, scale, logits.__getitem__, score_error)
        self._ranked = logits.argsort(descending=True, stable=True)
        self._logits = logits[self._ranked]
        self._turn = self._start.opening_order()[self._ranked]

    def gap(self, *, epsilon: float, k: int) -> SearchResult:
        """See `search.gap_search`."""
        return self._bisect(epsilon, k, stopping.gap(k))

    def mass(self, *, epsilon: float, k: int | None = None) -> SearchResult:
        """See `search.mass_search`."""
        return self._bisect(epsilon, k, stopping.mass(epsilon, k))

    def hybrid(self, *, epsilon: float, k: int) -> SearchResult:
        """See `search.hybrid_search`."""
        return self._bisect(epsilon, k, stopping.hybrid(epsilon, k))

    def _bisect(self, epsilon: float, k: int | None, tests: list[Test]) -> SearchResult:
        stopping.check(self._bound, epsilon, k, self._error)
        if k == self._start.total:
            return stopping.everything(self._start)
        few, enough = 0, self._bound.cell_count
        found = None
        while enough - few > 1:
            middle = (few + enough) // 2
            proof = stopping.proof(self._after(middle), epsilon, tests)
            if proof is None:
                few = middle
            else:
                enough, found = middle, proof
        return stopping.exact(self._after(enough), epsilon, k) if found is None else found

    def _after(self, cells: int) -> SearchState:
        state, scored = copy.copy(self._start), self._turn < cells
        state.skip_to(cells, self._ranked[scored], self._logits[scored])
        return state
