"""Float64 arithmetic with a direction. `_up` never returns less than the real result, `_down` never more.

One operation in round-to-nearest is off by at most one half unit in the last place, so its neighbour in the right
direction is a bound, also when the result is subnormal. Sums are exact up to `gamma(n)`, whatever their order, and are
inflated by it. docs/soundness.md derives each constant and names the test that fails without it.

All functions take and return float64 tensors and keep no autograd history worth having: call them under `no_grad`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

UNIT: float = 2.0**-53
"""Unit roundoff of float64: one rounded operation is `exact * (1 + t)`, `|t| <= UNIT`."""

TINY: float = 2.0**-1022
"""Smallest normal float64. Terms that stand for unread keys never fall below it, flushing or not."""

EXP_RELATIVE: float = 2.0**-50
"""Relative error granted to `torch.exp` in float64: 8 units roundoff. Libraries state 1 to 2; a test measures it."""

INPUT_FLUSH: float = 2.0**-126
"""Absolute error per component when denormal inputs are read as zero (`torch.set_flush_denormal`)."""


def gamma(n: int | float) -> float:
    """Relative error of `n` chained float64 roundings: `n u / (1 - n u)`, rounded up (Higham 2002, Lemma 3.1)."""
    nu = n * UNIT
    if nu >= 0.5:
        raise ValueError(f"gamma({n}): no bound for that many roundings in float64")
    return math.nextafter(nu / (1.0 - nu) * (1.0 + 4.0 * UNIT), math.inf)


def up(x: Tensor) -> Tensor:
    """The next float64 above."""
    return torch.nextafter(x, x.new_full((), math.inf))


def down(x: Tensor) -> Tensor:
    """The next float64 below."""
    return torch.nextafter(x, x.new_full((), -math.inf))


def add_up(a: Tensor, b: Tensor | float) -> Tensor:
    """At least `a + b`."""
    return up(a + b)


def add_down(a: Tensor, b: Tensor | float) -> Tensor:
    """At most `a + b`."""
    return down(a + b)


def mul_up(a: Tensor, b: Tensor | float) -> Tensor:
    """At least `a * b`."""
    return up(a * b)


def mul_down(a: Tensor, b: Tensor | float) -> Tensor:
    """At most `a * b`."""
    return down(a * b)


def div_up(a: Tensor, b: Tensor) -> Tensor:
    """At least `a / b`."""
    return up(a / b)


def div_down(a: Tensor, b: Tensor) -> Tensor:
    """At most `a / b`."""
    return down(a / b)


def exp_up(x: Tensor) -> Tensor:
    """At least `exp(x)` and at least `TINY`: mass that was not read never underflows to nothing."""
    return mul_up(torch.exp(x), 1.0 + 2.0 * EXP_RELATIVE).clamp_min(TINY)


def exp_down(x: Tensor) -> Tensor:
    """At most `exp(x)`, at least 0."""
    return not_negative(mul_down(torch.exp(x), 1.0 - 2.0 * EXP_RELATIVE))


def not_negative(x: Tensor) -> Tensor:
    """`max(x, 0)`, never -0.0: a flushed denormal below 0 becomes that, and a quotient by it would be -infinite."""
    return x.clamp_min(0.0) + 0.0


def sum_up(x: Tensor, dim: int) -> Tensor:
    """At least the sum of terms that are 0 or at least `TINY`; exactly 0 if all are."""
    total = x.sum(dim)
    return torch.where(total > 0, mul_up(total, 1.0 + gamma(x.shape[dim] + 2)), 0.0)


def share_up(part_up: Tensor, rest_down: Tensor) -> Tensor:
    """At least `part / (part + rest)` and `TINY`, at most 1, from a part rounded up, a rest down; 0 if the part is 0.

    This is how masses become a total variation: `part` is what was left out, `rest` what was kept.
    """
    ratio = div_down(rest_down, part_up)
    share = div_up(torch.ones_like(ratio), add_down(ratio, 1.0))
    return torch.where(part_up > 0, share.clamp(TINY, 1.0).nan_to_num(nan=1.0), 0.0)


def norm_up(x: Tensor) -> Tensor:
    """At least the Euclidean norm over the last dimension; scaled, so that it neither overflows nor underflows to 0."""
    if x.shape[-1] == 0:
        return x.new_zeros(x.shape[:-1])
    largest = x.abs().amax(-1, keepdim=True)
    scale = torch.where(largest > 0, largest, torch.ones_like(largest))
    # n squares (3 roundings each, the division included), n sums, one root, one product, and squares that underflow:
    # they are below 2**-1022 against a largest square of 1.
    root = torch.sqrt((x / scale).square().sum(-1))
    return mul_up(root * scale.squeeze(-1), 1.0 + gamma(2 * x.shape[-1] + 8))


def unit_roundoff(dtype: torch.dtype) -> float:
    """Relative error of one rounding from float64 to `dtype`, a detour over float32 included."""
    own = torch.finfo(dtype).eps / 2.0
    return own if dtype in (torch.float64, torch.float32) else own * (1.0 + 2.0**-20) + 2.0**-24


def smallest_step(dtype: torch.dtype) -> float:
    """Absolute error of one rounding to `dtype` near zero: subnormals, or zero where they are flushed."""
    # float16 subnormals are kept by every conversion instruction; those of float32 and bfloat16 may be flushed.
    return 2.0**-24 if dtype is torch.float16 else float(torch.finfo(dtype).tiny)
