"""What an answer is: the output, its certificate, and what each status means."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import IntEnum
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
import torch
from jaxtyping import Bool, Float, Int32, Int64, UInt8
from torch import Tensor


class Diagnosis(IntEnum):
    """A status that explains itself: a number, what happened, and what the caller can do about it."""

    diagnosis: str
    remedy: str

    def __new__(cls, number: int, diagnosis: str, remedy: str) -> Self:
        """Attach the words to the number."""
        member = int.__new__(cls, number)
        member._value_ = number
        member.diagnosis = diagnosis
        member.remedy = remedy
        return member


class Status(Diagnosis):
    """How one row (one query of one head) was answered. Every member is a diagnosis and names its remedy.

    >>> Status(1).name, Status.DENSE.remedy[:16]
    ('DENSE', 'none is needed: ')
    """

    CERTIFIED = (
        0,
        "Some visible keys got no weight; their softmax mass is at most tv, which is at most epsilon.",
        "none is needed.",
    )
    DENSE = (
        1,
        "Every visible key got its weight: epsilon was 0, or no smaller set of keys could be certified.",
        "none is needed: tv is 0. A larger epsilon leaves more keys out.",
    )
    EMPTY = (
        2,
        "The row sees no key (no keys at all, or the mask hides every one). The output is zeros.",
        "check the mask if this row should see something.",
    )
    NONFINITE = (
        3,
        "The query, a key or value that the row sees, a bias, or a logit is NaN or infinite. The row was computed "
        "densely on its visible keys, and nothing can be certified: tv is 1 and output_error is infinite.",
        "find the NaN or infinity in the inputs of this call; rows that do not see it are not affected.",
    )


class Certificate:
    """What is proved about each row. All four tensors have shape (batch, query heads, queries), in this order.

    They are unpacked from one buffer at first sight: a decode step that looks at no certificate pays for none.

    >>> row = torch.zeros(1, 1, 1)
    >>> tv, output_error, kept, status = Certificate(row.double(), row.double(), row.int(), row.to(torch.uint8))

    Attributes:
        rows: (batch, query heads, queries).
    """

    FIELDS = ("tv", "output_error", "kept", "status")
    """The names of the four, in their order."""

    def __init__(
        self,
        tv: Float[Tensor, "B Hq Tq"],
        output_error: Float[Tensor, "B Hq Tq"],
        kept: Int32[Tensor, "B Hq Tq"],
        status: UInt8[Tensor, "B Hq Tq"],
    ) -> None:
        """See the properties."""
        self.rows: tuple[int, ...] = tuple(tv.shape)
        self._parts: tuple[Tensor, ...] | None = (tv, output_error, kept, status)
        self._packed: Tensor | None = None

    @classmethod
    def unpack(cls, packed: UInt8[Tensor, " bytes"], rows: tuple[int, int, int]) -> Certificate:
        """From the bytes of the four tensors, one after the other; `rows` is their shape."""
        new = cls.__new__(cls)
        new.rows, new._parts, new._packed = rows, None, packed
        return new

    @property
    def tv(self) -> Float[Tensor, "B Hq Tq"]:
        """float64, probability mass in [0, 1].

        Never below the softmax mass, in real arithmetic, of the visible keys that got no weight. That mass is the total
        variation distance between exact attention weights and the weights used (Tzachristas et al. 2025, Lemma 4.1).
        """
        return self._all()[0]

    @property
    def output_error(self) -> Float[Tensor, "B Hq Tq"]:
        """float64, in the unit of the values.

        Never below the Euclidean distance between the row of the output tensor as returned (rounding to its dtype
        included) and exact attention.
        """
        return self._all()[1]

    @property
    def kept(self) -> Int32[Tensor, "B Hq Tq"]:
        """int32, the number of keys that got weight."""
        return self._all()[2]

    @property
    def status(self) -> UInt8[Tensor, "B Hq Tq"]:
        """uint8, a `Status`."""
        return self._all()[3]

    def __iter__(self) -> Iterator[Tensor]:
        """The four tensors."""
        return iter(self._all())

    def __repr__(self) -> str:
        """All four by name."""
        tv, output_error, kept, status = self
        return f"Certificate(tv={tv}, output_error={output_error}, kept={kept}, status={status})"

    def packed(self) -> np.ndarray:
        """uint8: the bytes of the four, one after the other, without a copy if they came like that."""
        if self._packed is not None:
            return self._packed.numpy()
        parts = (part.numpy(force=True).ravel() for part in self)
        return np.concatenate([part.astype(dtype).view(np.uint8) for part, dtype in zip(parts, PACKED, strict=True)])

    def _all(self) -> tuple[Tensor, ...]:
        if self._parts is None:
            assert self._packed is not None
            n = math.prod(self.rows)
            parts = self._packed.split((8 * n, 8 * n, 4 * n, n))
            dtypes = (torch.float64, torch.float64, torch.int32, torch.uint8)
            self._parts = tuple(part.view(dtype).view(self.rows) for part, dtype in zip(parts, dtypes, strict=True))
        return self._parts


PACKED = (np.float64, np.float64, np.int32, np.uint8)
"""What the four tensors of a `Certificate` hold, in their order."""

PACKED_BYTES = 21
"""Of one row."""


def unpacked(packed: np.ndarray) -> list[np.ndarray]:
    """From `Certificate.packed` of calls of n rows each, (calls, 21 n): the four columns, (calls, n)."""
    n = packed.shape[1] // PACKED_BYTES
    ends = (0, 8 * n, 16 * n, 20 * n, 21 * n)
    parts = (packed[:, start:stop] for start, stop in pairwise(ends))
    return [np.ascontiguousarray(part).view(dtype) for part, dtype in zip(parts, PACKED, strict=True)]


ISA = ("torch", "scalar", "avx2", "avx512vnni", "avx512bf16", "neondot")
"""What computes: torch, or a table of native kernels by instruction set level, lowest first."""


class Stats(NamedTuple):
    """What an answer cost. A key counts once for each (batch entry, KV head) that holds it.

    Attributes:
        impl: the implementation that served the call.
        counts: the properties below, in their order: five integers, or int64 (5,) on the CPU from a compiled graph.
    """

    impl: str
    counts: Int64[Tensor, 5] | tuple[int, ...]

    @property
    def isa(self) -> str:
        """The instruction set level of the kernels that ran, or "torch"."""
        return ISA[int(self.counts[0])]

    @property
    def threads(self) -> int:
        """CPU threads that were used or, by torch, allowed."""
        return int(self.counts[1])

    @property
    def keys_visible(self) -> int:
        """Keys that at least one query of their batch entry and group of heads may see."""
        return int(self.counts[2])

    @property
    def keys_read(self) -> int:
        """Keys read in full precision."""
        return int(self.counts[3])

    @property
    def bytes_read(self) -> int:
        """Bytes of keys and values read in full precision, and of sketches."""
        return int(self.counts[4])


class Attention(NamedTuple):
    """An attention output, what is proved about it, and what it cost.

    Attributes:
        output: (batch, query heads, queries, value dim), in the dtype of the query.
        certificate: a `Certificate` for every row.
        stats: a `Stats` for the call.
        kept: bool (batch, query heads, queries, keys), True for keys that got weight; None unless asked for.
    """

    output: Float[Tensor, "B Hq Tq Dv"]
    certificate: Certificate
    stats: Stats
    kept: Bool[Tensor, "B Hq Tq Tk"] | None
