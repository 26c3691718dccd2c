"""The protocol of a bound: a state built from keys once, and an interval that holds every logit of a cell."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tailbound.bounds import rounding

FLOOR = 2.0**-900
"""Covers every underflow in float64 between a key and a logit."""


class Interval(NamedTuple):
    """Outward-rounded: `lower <= scale * q.k <= upper` for every key k of the cell, in real arithmetic. Nats."""

    lower: Float[Tensor, " cells"]
    upper: Float[Tensor, " cells"]


class CellBound(ABC):
    """Keys (n, D) in cells, and a summary of each cell that bounds its logits for any query and any scale.

    The bound owns a copy of the keys, so that the caller may change them; `append` needs them to bring the summaries
    of touched cells up to date, and gives the same state as building anew. `bytes_per_key` counts the summaries alone.
    """

    def __init__(self, keys: Float[Tensor, "n D"], cells: Int64[Tensor, " n"]) -> None:
        """Summarise keys.

        Args:
            keys: (n, D), any floating-point dtype; their stored values are the truth.
            cells: int64 (n,), the cell of each key, from 0; no cell between 0 and the largest may be empty.

        Raises:
            ValueError: shapes that do not fit, an empty cell, NaN or infinity.
        """
        if keys.ndim != 2 or keys.shape[0] == 0 or keys.shape[1] == 0:
            raise ValueError(f"keys has shape {tuple(keys.shape)}; it must be (n, D) with n and D at least 1")
        if not bool(keys.isfinite().all()):
            raise ValueError("keys holds NaN or infinity: such keys cannot be bounded; leave them out and read them")
        if cells.shape != keys.shape[:1] or cells.dtype is not torch.int64:
            raise ValueError(f"cells has shape {tuple(cells.shape)}; it must be int64 ({keys.shape[0]},)")
        counts = torch.bincount(cells) if int(cells.min()) >= 0 else torch.zeros(1, dtype=torch.int64)
        if bool((counts == 0).any()):
            raise ValueError(
                f"cells must use every number from 0 to the largest; {int((counts == 0).sum())} are unused"
            )
        self.keys = keys.clone()
        self.cells = cells.clone()
        self.counts = counts
        self._summarise()

    @property
    def cell_count(self) -> int:
        """Number of cells."""
        return self.counts.shape[0]

    @property
    def bytes_per_key(self) -> float:
        """Bytes of summary for each key, beside the keys."""
        return self.bytes_per_cell() * self.cell_count / self.keys.shape[0]

    def members(self, cell: int) -> Int64[Tensor, " m"]:
        """The keys of a cell, ascending."""
        return (self.cells == cell).nonzero().squeeze(-1)

    def append(self, keys: Float[Tensor, "m D"], cells: Int64[Tensor, " m"]) -> CellBound:
        """A bound over the old keys and new ones, which may join old cells or open the next ones.

        The same state as building from all keys at once. Raises as the constructor does.
        """
        return type(self)(torch.cat([self.keys, keys.to(self.keys)]), torch.cat([self.cells, cells]))

    @abstractmethod
    def interval(self, query: Float[Tensor, " D"], scale: float) -> Interval:
        """Bounds on the logits `scale * q.k` of every cell: float64 (cells,) at either end, nats.

        Args:
            query: (D,), finite, any floating-point dtype.
            scale: any finite number, negative too.

        Raises:
            ValueError: a query of another width, NaN or infinity in it, a scale that is not finite.
        """

    @abstractmethod
    def bytes_per_cell(self) -> float:
        """Bytes of one cell's summary."""

    @abstractmethod
    def _summarise(self) -> None:
        """Make the summaries from `keys`, `cells` and `counts`."""


def flush_error(bound: CellBound, query_norm: Tensor, scale: float) -> Tensor:
    """What denormal components of the query or of the keys, read as zero, can move a logit by."""
    largest = float(bound.keys.abs().max()) * math.sqrt(bound.keys.shape[1]) * (1.0 + rounding.gamma(8))
    width = math.sqrt(bound.keys.shape[1]) * rounding.INPUT_FLUSH * (1.0 + rounding.gamma(8))
    return rounding.add_up(rounding.mul_up(rounding.add_up(query_norm, largest + width), width * abs(scale)), FLOOR)


def check_query(query: Tensor, scale: float, width: int) -> Tensor:
    """The query in float64, or a ValueError naming what does not fit."""
    if query.shape != (width,):
        raise ValueError(f"query has shape {tuple(query.shape)}; it must be ({width},), the width of the keys")
    if not bool(query.isfinite().all()):
        raise ValueError("query holds NaN or infinity: no bound holds for it")
    if not math.isfinite(scale):
        raise ValueError(f"scale={scale!r} must be finite")
    return query.to(torch.float64)
