"""What a search knows so far: scored keys, and an upper end for every key of the cells it has not opened."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tailbound.bounds import rounding
from tailbound.bounds.base import CellBound
from tailbound.search.result import Cost

Scorer = Callable[[Tensor], Tensor]
"""Keys (int64 (m,)) in, their logits (float64 (m,)) out. Called once for each key that is needed, never for others."""


class SearchState:
    """Cells in the order of falling upper ends, opened one by one; masses are relative to the largest scored logit.

    Masses of unread keys count every one of them: `n_j * exp(U_j)` for a cell of `n_j` keys. The printed algorithm adds
    `exp(U_j)` once, which certifies what is false (docs/theory.md).
    """

    def __init__(self, bound: CellBound, query: Tensor, scale: float, score: Scorer, score_error: float) -> None:
        upper = bound.interval(query, scale).upper
        order = upper.argsort(descending=True, stable=True)
        self._bound = bound
        self._score = score
        self._error = score_error
        self._order = order
        self._upper = upper[order]
        self._sizes = bound.counts[order].to(torch.float64)
        self._opened = 0
        self._keys = torch.empty(0, dtype=torch.int64)
        self._logits = torch.empty(0, dtype=torch.float64)

    @property
    def total(self) -> int:
        """Keys, scored or not."""
        return self._bound.keys.shape[0]

    @property
    def scored(self) -> int:
        """Keys scored so far."""
        return self._keys.shape[0]

    @property
    def cost(self) -> Cost:
        """What was spent so far."""
        return Cost(self.scored, self._opened)

    def open_next(self) -> None:
        """Score every key of the cell with the largest upper end among those not opened."""
        keys = self._bound.members(int(self._order[self._opened]))
        logits = self._score(keys)
        if logits.shape != keys.shape or logits.dtype is not torch.float64 or not bool(logits.isfinite().all()):
            raise ValueError(
                f"score({keys.shape[0]} keys) gave {tuple(logits.shape)} {logits.dtype}; it must give that many "
                "finite float64 logits"
            )
        self._opened += 1
        merged, keys = torch.cat([self._logits, logits]), torch.cat([self._keys, keys])
        by_index = keys.argsort()
        rank = merged[by_index].argsort(descending=True, stable=True)  # ties: smaller index first
        self._keys, self._logits = keys[by_index][rank], merged[by_index][rank]

    def opening_order(self) -> Tensor:
        """When each key's cell is opened, int64 (n,), counted from 0."""
        turn = torch.empty_like(self._order)
        turn[self._order] = torch.arange(self._order.shape[0])
        return turn[self._bound.cells]

    def skip_to(self, opened: int, keys: Tensor, logits: Tensor) -> None:
        """Be where so many openings lead: the keys of the cells opened by then and their logits, heaviest first."""
        self._opened, self._keys, self._logits = opened, keys, logits

    def best(self, k: int) -> tuple[Tensor, Tensor]:
        """The k heaviest scored keys and their logits."""
        return self._keys[:k], self._logits[:k]

    def gap_tv(self, k: int) -> float:
        """The gap test (Thm 4.5): k scored keys at or above `s_k`, all others at or below `t`.

        `TV <= 1 / (1 + k/(n-k) * exp(s_k - t))`. With a negative gap the k keys need not be the heaviest; the bound on
        their TV holds all the same.
        """
        if self.scored < k or k == self.total:
            return 1.0 if self.scored < k else 0.0
        below = torch.cat([rounding.add_up(self._logits[k : k + 1], self._error), self._upper[self._opened :][:1]])
        gap = rounding.add_up(rounding.add_up(below.max(), -self._logits[k - 1]), self._error)
        part = rounding.mul_up(rounding.exp_up(gap), float(self.total - k))
        return float(rounding.share_up(part, part.new_tensor(float(k))))

    def mass_tv(self, least: int, most: int) -> Tensor:
        """The mass test (4.4) for every head size in [least, most]: float64 (most - least + 1,), each an upper bound.

        `TV <= (T + R) / (H + T + R)`: H the scored keys in the head, T the other scored keys, R all unread ones.
        """
        level = self._logits[0]
        above = rounding.add_up(rounding.add_up(self._logits, -level), self._error)
        under = rounding.add_down(rounding.add_down(self._logits, -level), -self._error)
        beyond, sure = rounding.exp_up(above), rounding.exp_down(under)
        ends = rounding.add_up(self._upper[self._opened :], -level)
        unread = rounding.sum_up(rounding.mul_up(rounding.exp_up(ends), self._sizes[self._opened :]), 0)

        gamma = rounding.gamma(2 * self.scored + 8)
        none = beyond.new_zeros(1)
        tails = torch.cat([beyond.flip(0).cumsum(0).flip(0), none])[least : most + 1]
        heads = torch.cat([none, sure.cumsum(0)])[least : most + 1]
        tails = torch.where(tails > 0, rounding.mul_up(tails, 1.0 + gamma), 0.0)
        heads = rounding.not_negative(rounding.mul_down(heads, 1.0 - gamma))
        left_out = torch.where((tails > 0) | (unread > 0), rounding.add_up(tails, unread), 0.0)
        return rounding.share_up(left_out, heads)
