"""Cells of keys under a ball or a box. Tzachristas et al. 2025, Section 7, with the scale that it drops.

On decoders these bounds are far too loose to pay (docs/theory.md has figures): they are here because the certified
searches are stated for them, and because they are the simplest things that pass the laws of a bound.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tailbound.bounds import rounding
from tailbound.bounds.base import CellBound, Interval, check_query, flush_error


def run_cells(n: int, size: int) -> Int64[Tensor, " n"]:
    """Cells of `size` consecutive keys, int64 (n,); the last one may be smaller.

    Raises:
        ValueError: n or size below 1.

    >>> run_cells(5, 2).tolist()
    [0, 0, 1, 1, 2]
    """
    if n < 1 or size < 1:
        raise ValueError(f"n={n!r} and size={size!r} must be at least 1")
    return torch.arange(n) // size


def kmeans_cells(keys: Float[Tensor, "n D"], count: int, seed: int = 0) -> Int64[Tensor, " n"]:
    """At most `count` cells, int64 (n,), by scikit-learn's k-means on the keys, numbered by their first key.

    Args:
        keys: (n, D), any floating-point dtype. count: in [1, n]. seed: the same seed gives the same cells.

    Raises:
        ValueError: count outside [1, n]. ImportError: scikit-learn is not installed (the `search` extra).
    """
    if not 1 <= count <= keys.shape[0]:
        raise ValueError(f"count={count!r} must be in [1, {keys.shape[0]}]")
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):  # the order in which threads add up would move a key now and then
        labels = KMeans(count, random_state=seed).fit_predict(keys.double().numpy())
    order: dict[int, int] = {}
    return torch.tensor([order.setdefault(int(label), len(order)) for label in labels])


class Ball(CellBound):
    """A centre and a radius for each cell: `|scale * q.k - scale * q.c| <= |scale| |q| r`.

    The centre is the float64 mean; the radius is taken from the stored centre, and rounded up, so that nothing depends
    on how the mean was rounded. `8 D + 8` bytes a cell. Vacuous where the radius is as large as the spread of the keys.

    >>> ball = Ball(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))
    >>> tuple(round(end.item(), 9) for end in ball.interval(torch.tensor([1.0]), -2.0))
    (-6.0, -2.0)
    """

    def _summarise(self) -> None:
        wide = self.keys.to(torch.float64)
        where = self.cells[:, None].expand_as(wide)
        part = wide / self.counts[self.cells, None].double()
        self.center = wide.new_zeros(self.cell_count, wide.shape[1]).scatter_add_(0, where, part)
        away = rounding.mul_up(rounding.norm_up(wide - self.center[self.cells]), 1.0 + rounding.gamma(2))
        flush = rounding.INPUT_FLUSH * wide.shape[1] ** 0.5 * (1.0 + rounding.gamma(4))
        self.radius = wide.new_zeros(self.cell_count).scatter_reduce_(
            0, self.cells, rounding.add_up(away, flush), "amax"
        )

    def interval(self, query: Float[Tensor, " D"], scale: float) -> Interval:
        """See `CellBound.interval`."""
        wide = check_query(query, scale, self.keys.shape[1])
        norm = rounding.norm_up(wide)
        middle = (self.center @ wide) * scale
        size = rounding.mul_up(norm, abs(scale))
        slack = rounding.mul_up(rounding.mul_up(size, rounding.norm_up(self.center)), rounding.gamma(wide.shape[0] + 4))
        half = rounding.add_up(
            rounding.add_up(rounding.mul_up(size, self.radius), slack), flush_error(self, norm, scale)
        )
        return _around(middle, half)

    def bytes_per_cell(self) -> int:
        """See `CellBound.bytes_per_cell`."""
        return 8 * self.keys.shape[1] + 8


class Box(CellBound):
    """The smallest and largest component of each cell's keys: the bound that Quest uses to choose pages.

    `scale * q.k <= sum_j max(scale q_j lo_j, scale q_j hi_j)`, and the minimum likewise. Two components a dimension, in
    the dtype of the keys. Vacuous where many dimensions vary at once.

    >>> box = Box(torch.tensor([[1.0], [3.0]]), torch.tensor([0, 0]))
    >>> tuple(round(end.item(), 9) for end in box.interval(torch.tensor([1.0]), -2.0))
    (-6.0, -2.0)
    """

    def _summarise(self) -> None:
        where = self.cells[:, None].expand_as(self.keys)
        empty = self.keys.new_empty(self.cell_count, self.keys.shape[1])
        self.low = empty.scatter_reduce(0, where, self.keys, "amin", include_self=False)
        self.high = empty.scatter_reduce(0, where, self.keys, "amax", include_self=False)

    def interval(self, query: Float[Tensor, " D"], scale: float) -> Interval:
        """See `CellBound.interval`."""
        wide = check_query(query, scale, self.keys.shape[1])
        low, high = self.low.to(torch.float64) * wide, self.high.to(torch.float64) * wide
        lower, upper = torch.minimum(low, high).sum(-1) * scale, torch.maximum(low, high).sum(-1) * scale
        if scale < 0.0:
            lower, upper = upper, lower
        size = rounding.sum_up(torch.maximum(low.abs(), high.abs()).clamp_min(rounding.TINY), -1)
        slack = rounding.mul_up(rounding.mul_up(size, abs(scale)), rounding.gamma(wide.shape[0] + 4))
        slack = rounding.add_up(slack, flush_error(self, rounding.norm_up(wide), scale))
        return Interval(rounding.add_down(lower, -slack), rounding.add_up(upper, slack))

    def bytes_per_cell(self) -> int:
        """See `CellBound.bytes_per_cell`."""
        return 2 * self.keys.shape[1] * self.keys.element_size()


def _around(middle: Tensor, half: Tensor) -> Interval:
    return Interval(rounding.add_down(middle, -half), rounding.add_up(middle, half))
