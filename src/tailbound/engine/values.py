"""What is known of the values as a whole: one ball for each KV head, taken in one pass."""

from __future__ import annotations

import torch
from torch import Tensor

from tailbound.bounds import rounding
from tailbound.engine.finish import ValueBall
from tailbound.engine.logits import Keys


@torch.no_grad()
def value_ball(blocks: list[Keys]) -> ValueBall:
    """The ball around the finite values of all blocks (B, Hkv, n, Dv); radius and norm are rounded up.

    Values may have been read with denormals flushed: both bounds are widened by that.
    """
    finite = [block.finite.sum(-1) for block in blocks]
    count = torch.stack(finite).sum(0).clamp_min(1).to(torch.float64)
    center = torch.stack([block.vectors.sum(-2) for block in blocks]).sum(0) / count[..., None]
    flush = rounding.INPUT_FLUSH * center.shape[-1] ** 0.5 * (1.0 + rounding.gamma(4))
    radius = torch.stack([_largest(_distance_up(block, center), block.finite) for block in blocks]).amax(0)
    norm = torch.stack([_largest(block.norm, block.finite) for block in blocks]).amax(0)
    return ValueBall(center, rounding.add_up(radius, flush), rounding.add_up(norm, flush))


def _distance_up(block: Keys, center: Tensor) -> Tensor:
    return rounding.mul_up(rounding.norm_up(block.vectors - center[..., None, :]), 1.0 + rounding.gamma(2))


def _largest(distance: Tensor, finite: Tensor) -> Tensor:
    if distance.shape[-1] == 0:
        return distance.new_zeros(distance.shape[:-1])
    return torch.where(finite, distance, 0.0).amax(-1)
