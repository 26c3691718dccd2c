"""The interval sketch: an int8 copy of each key with a stored residual norm. A bound on each key, not on a cell.

For key k in a page with centre c: codes `z` in [-127, 127]^D and a step `h` reconstruct `y = c + h H z`, H the
block-Hadamard rotation. The residual `r >= |k - y|` is taken in the original space, in float64, from the centre and
step as stored, and rounded up. Whatever H, c, h and the rounding on the way were, Cauchy-Schwarz then gives
`|q.k - q.y| <= |q| r`, and `q.y = q.c + h (H q).z`.

The query is coded too: `H q = t w + e`, w integers of two int8 planes (`w = 128 a + b`), e measured. So the logit is
`scale * (q.c + h t <w, z>)` up to `|scale| * (|q| r + |e| h |z|)` and the rounding of the sums.

This is the specification that kernels are held to: integers match it bit for bit.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int8, Int32, Int64
from torch import Tensor

from tailbound.bounds import rounding
from tailbound.bounds.base import CellBound, Interval, check_query, flush_error
from tailbound.bounds.hadamard import inverse_gain, rotation

CODE_MAX = 127
"""Codes lie in [-127, 127], never -128: products of two stay inside 16129."""

PLANE = 128
"""The query's coarse plane counts in units of 128 fine ones."""

WORD_MAX = CODE_MAX * PLANE + 63
"""Largest query word: both planes stay inside [-127, 127]."""


def page_size(width: int) -> int:
    """Keys that share a centre: at least 256, and so many that a float32 centre costs at most 2 bytes a key."""
    return max(256, 1 << (2 * width - 1).bit_length())


class Sketch(CellBound):
    """One interval for each key (its own cell): D + 6 bytes a key, and a centre a page.

    Codes take D bytes; step, residual and `|z|` are bfloat16, the latter two rounded up. A page's centre is the
    float32 mean of the keys that were there when the page was begun; keys appended to it later use it as it is.

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
        norm = rounding.norm_up(wide)
        word, unit, coding = code_query(wide)
        products = self.codes.to(torch.float64) @ word.to(torch.float64)  # integers below 2^53: exact

        center = self.center.to(torch.float64)
        offset = (center @ wide)[self.page]
        offset_error = rounding.mul_up(
            rounding.mul_up(norm, rounding.norm_up(center)), rounding.gamma(wide.shape[0] + 2)
        )
        step = self.step.to(torch.float64)
        fine = step * unit * products
        middle = (offset + fine) * scale

        residual = rounding.mul_up(norm, self.residual.to(torch.float64))
        coded = rounding.mul_up(rounding.mul_up(coding, step), self.code_norm.to(torch.float64))
        # Two products, one sum and the scale round once each.
        rounded = rounding.mul_up(rounding.add_up(offset.abs(), fine.abs()), rounding.gamma(6))
        half = rounding.add_up(rounding.add_up(residual, coded), rounding.add_up(offset_error[self.page], rounded))
        half = rounding.add_up(rounding.mul_up(half, abs(scale)), flush_error(self, norm, scale))
        half = half.nan_to_num(nan=torch.inf, posinf=torch.inf)  # a residual beyond bfloat16, or an overflow
        lower, upper = rounding.add_down(middle, -half), rounding.add_up(middle, half)
        return Interval(lower.nan_to_num(nan=-torch.inf), upper.nan_to_num(nan=torch.inf, posinf=torch.inf))

    def bytes_per_cell(self) -> float:
        """See `CellBound.bytes_per_cell`; a full page's share of its centre included."""
        return self.keys.shape[1] + 6 + 4 * self.keys.shape[1] / page_size(self.keys.shape[1])

    def _summarise(self) -> None:
        width = self.keys.shape[1]
        wide = self.keys.to(torch.float64)
        self.page = torch.arange(wide.shape[0]) // page_size(width)
        self.center = self._centers(wide)
        self.codes, self.step, self.residual, self.code_norm = code_keys(wide, self.center[self.page])

    def _centers(self, wide: Tensor) -> Float[Tensor, "pages D"]:
        count = int(self.page[-1]) + 1
        given = wide.new_empty(0, wide.shape[1], dtype=torch.float32) if self._given is None else self._given
        means = [wide[self.page == page].mean(0).to(torch.float32) for page in range(given.shape[0], count)]
        # A mean beyond float32 would be infinite; any finite centre is sound.
        return torch.cat([given, *(mean.nan_to_num(0.0, 0.0, 0.0)[None] for mean in means)])


def code_keys(
    wide: Float[Tensor, "n D"], center: Float[Tensor, "n D"]
) -> tuple[Int8[Tensor, "n D"], Tensor, Tensor, Tensor]:
    """Codes (n, D), and bfloat16 (n,): the step h, the residual r rounded up, and `|z|` rounded up.

    Args:
        wide: float64 keys. center: float32, the centre of each key's page.
    """
    width = wide.shape[1]
    turn, gain = rotation(width), inverse_gain(width)
    away = wide - center.to(torch.float64)
    rotated = (away @ turn) * gain
    step = _bfloat16_up(rotated.abs().amax(-1) / CODE_MAX)
    step = torch.where(step.isfinite(), step, 0.0)  # beyond bfloat16: no code, all in the residual
    usable = (step > 0)[:, None] & rotated.isfinite()
    codes = torch.where(usable, rotated / step[:, None].to(torch.float64), 0.0).round().clamp(-CODE_MAX, CODE_MAX)

    shape = codes @ turn  # exact: sums of at most D integers of 7 bits, times a power of two
    rebuilt = step.to(torch.float64)[:, None] * shape  # exact: 8 bits times at most 17
    missing = rounding.norm_up(away - rebuilt)
    # `away` and the difference round once a component; denormal keys or centres may have been read as zero.
    size = rounding.norm_up(wide.abs() + center.to(torch.float64).abs() + rebuilt.abs())
    flush = width**0.5 * rounding.INPUT_FLUSH * (1.0 + rounding.gamma(4))
    residual = rounding.add_up(rounding.add_up(missing, rounding.mul_up(size, rounding.gamma(4))), 2.0 * flush)
    return codes.to(torch.int8), step, _bfloat16_up(residual), _bfloat16_up(rounding.norm_up(codes))


def code_query(query: Float[Tensor, " D"]) -> tuple[Int32[Tensor, " D"], float, Tensor]:
    """Words w in [-WORD_MAX, WORD_MAX], the unit t, and a bound on `|H q - t w|`, H q in real arithmetic.

    Args:
        query: float64 (D,).
    """
    width = query.shape[0]
    turned = rotation(width) @ query
    largest = float(turned.abs().max())
    unit = largest / WORD_MAX if largest > 0.0 else 1.0
    unit = unit if unit > 0.0 else 1.0  # a quotient that underflows: all words are 0, and e holds everything
    word = (turned / unit).round().clamp(-WORD_MAX, WORD_MAX)
    word = torch.where(word.isfinite(), word, 0.0)
    # H q rounds by at most gamma(D) |H| |q|, and the norm of |H| is at most sqrt(2 D). So do t w and the difference.
    own = rounding.mul_up(rounding.norm_up(query), rounding.gamma(width + 2) * (2.0 * width) ** 0.5 * (1.0 + 2.0**-40))
    parts = rounding.mul_up(rounding.norm_up(turned), rounding.gamma(4))
    missing = rounding.norm_up(turned - unit * word)
    return word.to(torch.int32), unit, rounding.add_up(rounding.add_up(missing, own), parts)


def planes(word: Int32[Tensor, "*batch D"]) -> tuple[Int8[Tensor, "*batch D"], Int8[Tensor, "*batch D"]]:
    """The two int8 planes of query words: `w = 128 * coarse + fine`, both in [-127, 127].

    >>> [plane.tolist() for plane in planes(torch.tensor([16319, -200, 64], dtype=torch.int32))]
    [[127, -2, 1], [63, 56, -64]]
    """
    coarse = torch.div(word + PLANE // 2, PLANE, rounding_mode="floor")
    return coarse.to(torch.int8), (word - PLANE * coarse).to(torch.int8)


def _bfloat16_up(x: Tensor) -> Tensor:
    """The smallest bfloat16 at or above a non-negative float64; infinite beyond its range, 0 only for 0."""
    x = x.nan_to_num(nan=torch.inf, posinf=torch.inf)
    near = x.to(torch.float32).to(torch.bfloat16)
    above = torch.where(near.to(torch.float64) < x, torch.nextafter(near, near.new_full((), torch.inf)), near)
    # Denormals may be flushed: what is not 0 is at least the smallest normal.
    floor = float(torch.finfo(torch.bfloat16).tiny)
    return torch.where(x > 0, above.clamp_min(floor), 0.0).to(torch.bfloat16)
