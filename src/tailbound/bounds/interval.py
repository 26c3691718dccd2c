"""The interval sketch: an int8 copy of each key with a stored residual norm. A bound on each key, not on a cell.

For key k in a page with centre c: codes `z` in [-127, 127]^D and a step `h` reconstruct `y = c + h H z`, H the
block-Hadamard rotation. The residual `r >= |k - y|` is taken in the original space, in float64, from the centre and
step as stored, and rounded up. Whatever H, c, h and the rounding on the way were, Cauchy-Schwarz then gives
`|q.k - q.y| <= |q| r`, and `q.y = q.c + h (H q).z`.

The query is coded too: `H q = t w + e`, w integers of two int8 planes (`w = 64 a + b`), e measured. So the logit is
`scale * (q.c + h t <w, z>)` up to `|scale| * (|q| r + |e| h |z|)` and the rounding of the sums.

This is the specification that kernels are held to: integers match it bit for bit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import BFloat16, Bool, Float, Int8, Int32, Int64
from torch import Tensor

from tailbound.bounds import rounding
from tailbound.bounds.base import FLOOR, CellBound, Interval, check_query
from tailbound.bounds.hadamard import inverse_gain, rotate

CODE_MAX = 127
"""Codes lie in [-127, 127], never -128."""

PLANE = 64
"""The query's coarse plane counts in units of 64 fine ones: both planes then have 7 bits, and two products of a plane
with a code shifted to [1, 255] stay inside 16 bits (255 * 63 * 2 = 32130), as `vpmaddubsw` needs."""

WORD_MAX = (PLANE - 1) * PLANE + PLANE // 2 - 1
"""Largest query word: both planes stay inside [-63, 63]."""

STORED_BYTES = 6
"""Bytes a key beside its codes: step, residual and extent, each bfloat16."""


class Coded(NamedTuple):
    """What is stored of keys.

    Attributes:
        codes: int8 (..., n, D), z.
        step: bfloat16 (..., n), h.
        residual: bfloat16 (..., n), at least the distance of the key from its reconstruction.
        extent: bfloat16 (..., n), at least `h |z|`.
    """

    codes: Int8[Tensor, "*batch n D"]
    step: BFloat16[Tensor, "*batch n"]
    residual: BFloat16[Tensor, "*batch n"]
    extent: BFloat16[Tensor, "*batch n"]


def page_size(width: int) -> int:
    """Keys that share a centre: at least 256, and so many that a float32 centre costs at most 2 bytes a key."""
    return max(256, 1 << (2 * width - 1).bit_length())


class Sketch(CellBound):
    """One interval for each key (its own cell): D + 6 bytes a key, and a centre a page.

    Codes take D bytes; step, residual and `h |z|` are bfloat16, rounded up. A page's centre is the float32 mean of the
    keys that were there when the page was begun; keys appended to it later use it as it is.

    >>> sketch = Sketch(torch.tensor([[3.0, 1.0], [-3.0, -1.0]]))
    >>> lower, upper = sketch.interval(torch.tensor([1.0, 1.0]), 1.0)
    >>> bool(((lower <= torch.tensor([4.0, -4.0])) & (torch.tensor([4.0, -4.0]) <= upper)).all())
    True
    """

    def __init__(
        self, keys: Float[Tensor, "n D"], cells: Int64[Tensor, " n"] | None = None, center: Tensor | None = None
    ) -> None:
        """Code keys.

        Args:
            keys: (n, D), any floating-point dtype.
            cells: each key is its own cell; if given, must be 0 to n - 1 in order.
            center: float32 (pages, D): centres to use for the first pages instead of means.

        Raises:
            ValueError: as `CellBound`, and for other cells.
        """
        if cells is not None and not torch.equal(cells, torch.arange(keys.shape[0])):
            raise ValueError("cells must be 0 to n - 1 in order: every key of a sketch is its own cell")
        self._given = center
        super().__init__(keys, torch.arange(keys.shape[0]))

    def append(self, keys: Float[Tensor, "m D"], cells: Int64[Tensor, " m"] | None = None) -> Sketch:
        """A sketch over the old keys and new ones; codes of old keys and centres of begun pages stay as they are."""
        return Sketch(torch.cat([self.keys, keys.to(self.keys)]), center=self.center)

    def interval(self, query: Float[Tensor, " D"], scale: float) -> Interval:
        """See `CellBound.interval`."""
        wide = check_query(query, scale, self.keys.shape[1])
        lower, upper = bound_logits(self.coded, self.center, self.page, wide[None], scale)
        return Interval(lower[0], upper[0])

    def bytes_per_cell(self) -> float:
        """See `CellBound.bytes_per_cell`; a full page's share of its centre included."""
        width = self.keys.shape[1]
        return width + STORED_BYTES + 4 * width / page_size(width)

    def _summarise(self) -> None:
        wide = self.keys.to(torch.float64)
        self.page = torch.arange(wide.shape[0]) // page_size(wide.shape[1])
        self.center = self._centers(wide)
        self.coded = code_keys(wide, self.center[self.page])

    def _centers(self, wide: Tensor) -> Float[Tensor, "pages D"]:
        count = int(self.page[-1]) + 1
        given = wide.new_empty(0, wide.shape[1], dtype=torch.float32) if self._given is None else self._given
        pages = [wide[self.page == page] for page in range(given.shape[0], count)]
        means = [page_center(keys, torch.ones_like(keys[:, 0], dtype=torch.bool)) for keys in pages]
        return torch.cat([given, *(mean[None] for mean in means)])


def page_center(wide: Float[Tensor, "*batch n D"], usable: Bool[Tensor, "*batch n"]) -> Float[Tensor, "*batch D"]:
    """The float32 mean of the usable float64 keys; 0 where it is beyond float32. Any finite centre is sound."""
    mean = wide.where(usable[..., None], 0.0).sum(-2) / usable.sum(-1).clamp_min(1)[..., None]
    return mean.to(torch.float32).nan_to_num(0.0, 0.0, 0.0)


def code_keys(wide: Float[Tensor, "*batch n D"], center: Float[Tensor, "*batch n D"]) -> Coded:
    """Code finite keys.

    Args:
        wide: float64 keys. center: float32, the centre of each key's page.
    """
    width = wide.shape[-1]
    away = wide - center.to(torch.float64)
    rotated = rotate(away) * inverse_gain(width, wide.device)
    step = _bfloat16_up(rotated.abs().amax(-1) / CODE_MAX)
    step = torch.where(step.isfinite(), step, 0.0)  # beyond bfloat16: no code, all in the residual
    usable = (step > 0)[..., None] & rotated.isfinite()
    codes = torch.where(usable, rotated / step[..., None].to(torch.float64), 0.0).round().clamp(-CODE_MAX, CODE_MAX)

    shape = rotate(codes)  # exact: sums of at most D integers of 7 bits, times a power of two
    rebuilt = step.to(torch.float64)[..., None] * shape  # exact: 8 bits times at most 17
    missing = rounding.norm_up(away - rebuilt)
    # `away` and the difference round once a component; denormal keys or centres may have been read as zero.
    size = rounding.norm_up(wide.abs() + center.to(torch.float64).abs() + rebuilt.abs())
    residual = rounding.add_up(rounding.add_up(missing, rounding.mul_up(size, rounding.gamma(4))), 2.0 * _flush(width))
    extent = rounding.mul_up(rounding.norm_up(codes), step.to(torch.float64))
    return Coded(codes.to(torch.int8), step, _bfloat16_up(residual), _bfloat16_up(extent))


class Words(NamedTuple):
    """Coded queries: `|H q - t w| <= error`, H q in real arithmetic.

    Attributes:
        word: int32 (..., D), w in [-WORD_MAX, WORD_MAX].
        unit: float64 (...), t.
        error: float64 (...).
    """

    word: Int32[Tensor, "*batch D"]
    unit: Float[Tensor, "*batch"]
    error: Float[Tensor, "*batch"]


def code_query(query: Float[Tensor, "*batch D"]) -> Words:
    """Code float64 queries."""
    width = query.shape[-1]
    turned = rotate(query)
    unit = turned.abs().amax(-1) / WORD_MAX
    unit = torch.where(unit > 0.0, unit, 1.0)  # also a quotient that underflows: all words are 0, e holds everything
    word = (turned / unit[..., None]).round().clamp(-WORD_MAX, WORD_MAX)
    word = torch.where(word.isfinite(), word, 0.0)
    # H q rounds by at most gamma(D) |H| |q|, and the norm of |H| is at most sqrt(2 D). So do t w and the difference.
    own = rounding.mul_up(rounding.norm_up(query), rounding.gamma(width + 2) * (2.0 * width) ** 0.5 * (1.0 + 2.0**-40))
    parts = rounding.mul_up(rounding.norm_up(turned), rounding.gamma(4))
    missing = rounding.norm_up(turned - unit[..., None] * word)
    return Words(word.to(torch.int32), unit, rounding.add_up(rounding.add_up(missing, own), parts))


def bound_logits(
    coded: Coded,
    center: Float[Tensor, "*batch pages D"],
    page: Int64[Tensor, " n"],
    query: Float[Tensor, "*batch rows D"],
    scale: float,
) -> Interval:
    """Intervals (..., rows, n) of `scale * q.k`, for finite float64 queries. NaN marks of a key give NaN ends.

    Args:
        coded: what `code_keys` gave. center: float32. page: the page of each key.
    """
    norm = rounding.norm_up(query)[..., None]
    word, unit, coding = code_query(query)
    products = word.to(torch.float64) @ coded.codes.to(torch.float64).transpose(-1, -2)  # integers below 2^53: exact

    wide_center = center.to(torch.float64)
    center_norm = rounding.norm_up(wide_center)
    offset = (query @ wide_center.transpose(-1, -2))[..., page]
    offset_error = rounding.mul_up(rounding.mul_up(norm, center_norm[..., None, :]), _gamma_center(query))[..., page]
    step, residual, extent = (x.to(torch.float64)[..., None, :] for x in (coded.step, coded.residual, coded.extent))
    fine = step * unit[..., None] * products
    middle = (offset + fine) * scale

    missed = rounding.mul_up(norm, residual)
    spoken = rounding.mul_up(coding[..., None], extent)
    # Two products, one sum and the scale round once each.
    rounded = rounding.mul_up(rounding.add_up(offset.abs(), fine.abs()), rounding.gamma(6))
    half = rounding.add_up(rounding.add_up(missed, spoken), rounding.add_up(offset_error, rounded))
    reach = _reach(center_norm[..., None, page], residual, extent)
    half = rounding.add_up(rounding.mul_up(half, abs(scale)), _flush_error(norm, reach, scale, query.shape[-1]))
    flagged = residual.isnan()
    # A residual beyond bfloat16, or an overflow: infinitely wide.
    half = torch.where(half.isnan() & ~flagged, torch.inf, half)
    lower, upper = rounding.add_down(middle, -half), rounding.add_up(middle, half)
    lower = torch.where(lower.isnan() & ~flagged, -torch.inf, lower)
    return Interval(lower, torch.where(upper.isnan() & ~flagged, torch.inf, upper))


def planes(word: Int32[Tensor, "*batch D"]) -> tuple[Int8[Tensor, "*batch D"], Int8[Tensor, "*batch D"]]:
    """The two int8 planes of query words: `w = 64 * coarse + fine`, both in [-63, 63].

    >>> [plane.tolist() for plane in planes(torch.tensor([4063, -200, 32], dtype=torch.int32))]
    [[63, -3, 1], [31, -8, -32]]
    """
    coarse = torch.div(word + PLANE // 2, PLANE, rounding_mode="floor")
    return coarse.to(torch.int8), (word - PLANE * coarse).to(torch.int8)


def _gamma_center(query: Tensor) -> float:
    return rounding.gamma(query.shape[-1] + 2)


def _reach(center_norm: Tensor, residual: Tensor, extent: Tensor) -> Tensor:
    """At least the norm of each key: `|c| + |h H z| + r`, and H stretches by at most sqrt(2)."""
    return rounding.add_up(rounding.add_up(rounding.mul_up(extent, 1.5), residual), center_norm)


def _flush(width: int) -> float:
    """At least the norm of what is lost when denormal components are read as zero."""
    return math.sqrt(width) * rounding.INPUT_FLUSH * (1.0 + rounding.gamma(8))


def _flush_error(norm: Tensor, reach: Tensor, scale: float, width: int) -> Tensor:
    """What denormal components of the query or of the centre, read as zero, and underflow can move a logit by."""
    flush = _flush(width)
    both = rounding.add_up(rounding.add_up(norm, reach), flush)
    return rounding.add_up(rounding.mul_up(both, rounding.mul_up(norm.new_tensor(flush), abs(scale))), FLOOR)


def _bfloat16_up(x: Tensor) -> Tensor:
    """The smallest bfloat16 at or above a non-negative float64; infinite beyond its range, 0 only for 0."""
    x = x.nan_to_num(nan=torch.inf, posinf=torch.inf)
    near = x.to(torch.float32).to(torch.bfloat16)
    above = torch.where(near.to(torch.float64) < x, torch.nextafter(near, near.new_full((), torch.inf)), near)
    # Denormals may be flushed: what is not 0 is at least the smallest normal.
    floor = float(torch.finfo(torch.bfloat16).tiny)
    return torch.where(x > 0, above.clamp_min(floor), 0.0).to(torch.bfloat16)
