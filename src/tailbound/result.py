"""What an answer is: the output, its certificate, and what each status means."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple, Self

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


class Certificate(NamedTuple):
    """What is proved about each row. All four tensors have shape (batch, query heads, queries).

    Attributes:
        tv: float64, probability mass in [0, 1]. Never below the softmax mass, in real arithmetic, of the visible keys
            that got no weight. That mass is the total variation distance between exact attention weights and the
            weights used (Tzachristas et al. 2025, Lemma 4.1).
        output_error: float64, in the unit of the values. Never below the Euclidean distance between the row of the
            output tensor as returned (rounding to its dtype included) and exact attention.
        kept: int32, the number of keys that got weight.
        status: uint8, a `Status`.
    """

    tv: Float[Tensor, "B Hq Tq"]
    output_error: Float[Tensor, "B Hq Tq"]
    kept: Int32[Tensor, "B Hq Tq"]
    status: UInt8[Tensor, "B Hq Tq"]


ISA = ("torch", "scalar", "avx2", "avx512vnni", "avx512bf16")
"""What computes: torch, or a table of native kernels by instruction set level, lowest first."""


class Stats(NamedTuple):
    """What an answer cost. A key counts once for each (batch entry, KV head) that holds it.

    Attributes:
        impl: the implementation that served the call.
        counts: int64 (5,) on the CPU: the properties below, in their order. A tensor, so that compiled graphs can
            return it.
    """

    impl: str
    counts: Int64[Tensor, 5]

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
