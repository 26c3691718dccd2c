"""What is known of the values as a whole: one ball for each KV head."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from tailbound.bounds import rounding
from tailbound.engine.finish import ValueBall
from tailbound.engine.logits import Keys


@torch.no_grad()
def value_ball(blocks: Callable[[], Iterable[Keys]]) -> ValueBall:
    """The ball around the finite values of all blocks (B, Hkv, n, Dv); radius and norm are rounded up.

    `blocks` gives an iterator over the blocks; it is asked twice, for the centre and then for the distances. Values
    may have been read with denormals flushed: both bounds are widened by that.
    """
    zero = torch.zeros((), dtype=torch.float64)
    total, count = zero, zero
    for block in blocks():
        total, count = total + block.vectors.sum(-2), count + block.finite.sum(-1)
    center = total / count.clamp_min(1).to(torch.float64)[..., None]
    radius, norm = zero, zero
    for block in blocks():
        radius = torch.maximum(radius, _largest(_distance_up(block, center), block.finite))
        norm = torch.maximum(norm, _largest(block.norm, block.finite))
    flush = rounding.INPUT_FLUSH * center.shape[-1] ** 0.5 * (1.0 + rounding.gamma(4))
    return ValueBall(center, rounding.add_up(radius, flush), rounding.add_up(norm, flush))


def _distance_up(block: Keys, center: Tensor) -> Tensor:
    return rounding.mul_up(rounding.norm_up(block.vectors - center[..., None, :]), 1.0 + rounding.gamma(2))


def _largest(distance: Tensor, finite: Tensor) -> Tensor:
    return torch.where(finite, distance, 0.0).amax(-1)
