"""Certificates as rows: a block that takes them in call by call, and a ring that holds the latest.

Both allocate once. Small arrays kept from every step would each pin a hole in the C heap between the tensors of a
growing cache; see docs/log.md.
"""

from __future__ import annotations

import math
from itertools import groupby

import numpy as np
from torch import Tensor

from tailbound.result import PACKED_BYTES, Certificate, unpacked

PLACE = ("step", "layer", "batch", "head", "query")
"""The columns that say where a certificate was issued."""

ROW = np.dtype(
    [(name, np.int32) for name in PLACE]
    + [
        ("tv", np.float64),
        ("output_error", np.float64),
        ("kept", np.int32),
        ("visible", np.int32),
        ("status", np.uint8),
    ]
)
"""One certificate: where it was issued (`step` counts the certified calls of its layer), and the `Certificate`."""


class Block:
    """Certificates that wait to be folded into what is known of each head: columns, filled call by call.

    Writing a call copies its tensors and nothing else; the rest is worked out for many calls at once by `take`.

    Attributes:
        used: rows that wait.
    """

    def __init__(self, rows: int) -> None:
        self.used = 0
        self._calls: list[tuple[int, ...]] = []
        self._allocate(rows)

    def _allocate(self, rows: int) -> None:
        self._rows = rows
        self._bytes = np.empty(PACKED_BYTES * rows, np.uint8)
        self._visible = np.empty(rows, np.int32)

    def fits(self, rows: int) -> bool:
        """Whether so many more rows can be written before `take`."""
        return self.used + rows <= self._rows

    def write(self, step: int, layer: int, certificate: Certificate, visible: Tensor | int) -> None:
        """Copy one call's certificates (B, H, T). `visible` is a count, or int counts that broadcast to (B, H, T).

        A call larger than an empty block enlarges it.
        """
        shape = certificate.rows
        start = self.used
        stop = start + math.prod(shape)
        if stop > self._rows:
            self._allocate(stop - start)
        self._bytes[PACKED_BYTES * start : PACKED_BYTES * stop] = certificate.packed()
        if isinstance(visible, Tensor):
            self._visible[start:stop].reshape(shape)[...] = visible.numpy(force=True)
        else:
            self._visible[start:stop] = visible
        self._calls.append((step, layer, *shape))
        self.used = stop

    def take(self) -> np.ndarray:
        """The waiting certificates as an array of dtype `ROW`, in the order they came; the block is empty after it."""
        rows = np.empty(self.used, ROW)
        calls = np.array(self._calls, np.int32).reshape(-1, 5)
        sizes = calls[:, 2:].prod(axis=1)
        step, layer, _, heads, queries = np.repeat(calls, sizes, axis=0).T
        within = np.arange(self.used) - np.repeat(sizes.cumsum() - sizes, sizes)
        rows["step"], rows["layer"] = step, layer
        rows["query"] = within % queries
        rows["head"] = within // queries % heads
        rows["batch"] = within // (queries * heads)
        rows["visible"] = self._visible[: self.used]
        start = 0
        for size, run in groupby(sizes.tolist()):  # calls of one size lie in memory as the rows of a matrix
            stop = start + size * len(list(run))
            if size:
                packed = self._bytes[PACKED_BYTES * start : PACKED_BYTES * stop].reshape(-1, PACKED_BYTES * size)
                for name, column in zip(Certificate.FIELDS, unpacked(packed), strict=True):
                    rows[name][start:stop] = column.ravel()
            start = stop
        self.used = 0
        self._calls.clear()
        return rows


class Ring:
    """The latest rows, at most `capacity` of them. Memory is touched as it fills.

    Attributes:
        written: rows ever written. Row number `n`, counted from 0, is held while `n >= written - held`.
    """

    def __init__(self, capacity: int) -> None:
        self.written = 0
        self._capacity = capacity
        self._rows: np.ndarray | None = None

    @property
    def held(self) -> int:
        """Rows that can be read back."""
        return min(self.written, self._capacity)

    def extend(self, rows: np.ndarray) -> None:
        """Write rows of dtype `ROW`; the oldest give way."""
        if self._rows is None:
            self._rows = np.empty(self._capacity, ROW)
        keep = min(rows.size, self._capacity)
        self.written += rows.size
        if keep:
            self._rows[np.arange(self.written - keep, self.written) % self._capacity] = rows[rows.size - keep :]

    def read(self) -> np.ndarray:
        """A copy of the rows held, oldest first."""
        if self._rows is None or not self.held:
            return np.empty(0, ROW)
        return self._rows[np.arange(self.written - self.held, self.written) % self._capacity]
