"""Bounds on the tail mass from what is known of blocks of entries. Tzachristas et al. 2025, (4.3) and (4.4).

A block's mass is the sum of `exp(logit)` over its entries. Masses are passed as logarithms, in nats; -inf is an empty
block, and a common shift of all of them changes nothing.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from tailbound.theory.inputs import check_count, check_head, check_logits


def block_log_masses(
    logits: Float[Tensor, "*batch n"], blocks: Int64[Tensor, " n"], count: int | None = None
) -> Float[Tensor, "*batch M"]:
    """`log Z_b = log sum exp(s_i)` over the entries of each block.

    Args:
        logits: (..., n). blocks: int64 (n,), the block of each entry, from 0.
        count: number of blocks M; default: the largest in `blocks`, plus 1.

    Raises:
        ValueError: blocks of another length, or a block outside [0, M).

    >>> block_log_masses(torch.zeros(3, dtype=torch.float64), torch.tensor([0, 1, 1])).exp().tolist()
    [1.0, 2.0]
    """
    n = check_logits(logits).shape[-1]
    if blocks.shape != (n,):
        raise ValueError(f"blocks has shape {tuple(blocks.shape)}; it must give the block of each of {n} entries")
    size = int(blocks.max()) + 1 if count is None else count
    if bool((blocks < 0).any()) or int(blocks.max()) >= size:
        raise ValueError(f"blocks holds {int(blocks.min())} to {int(blocks.max())}; allowed: 0 to {size - 1}")
    where = blocks.expand(logits.shape)
    shape = (*logits.shape[:-1], size)
    top = logits.new_full(shape, -torch.inf).scatter_reduce(-1, where, logits, "amax")
    level = torch.where(top.isfinite(), top, 0.0)
    sums = logits.new_zeros(shape).scatter_add(-1, where, torch.exp(logits - level.gather(-1, where)))
    return sums.log() + level


def block_gap_bound(log_masses: Float[Tensor, "*batch M"], alpha: int) -> Float[Tensor, "*batch"]:
    """`TV <= 1 / (1 + alpha/(M-alpha) * exp(D))`, `D = log(Z_(alpha) / Z_(alpha+1))`, keeping the alpha heaviest (4.3).

    False for any other set of blocks. Tight: equality when all kept blocks weigh the same and all others do. 0 at
    alpha = M.

    Raises:
        ValueError: alpha outside [1, M]; NaN.

    >>> block_gap_bound(torch.zeros(4, dtype=torch.float64), 3).item()
    0.25
    """
    count = check_logits(log_masses, "log_masses").shape[-1]
    if check_count(alpha, count, "alpha") == count:
        return torch.zeros_like(log_masses[..., 0])
    top = log_masses.topk(alpha + 1, dim=-1).values
    drop = torch.where(top[..., alpha].isneginf(), -torch.inf, top[..., alpha] - top[..., alpha - 1])
    return torch.sigmoid(math.log((count - alpha) / alpha) + drop)


def block_mass_bound(
    log_lower: Float[Tensor, "*batch M"], log_upper: Float[Tensor, "*batch M"], kept: Bool[Tensor, "*batch M"]
) -> Float[Tensor, "*batch"]:
    """`TV <= S_U(rest) / (S_L(kept) + S_U(rest))` from bounds `L_b <= Z_b <= U_b` on every block's mass (4.4).

    Sound for any set of kept blocks; equality when L = U. 0 if nothing, or nothing with mass, is left out. Keeping the
    blocks with the largest lower bounds does not minimise it.

    Raises:
        ValueError: a lower bound above its upper bound, an empty kept set; NaN. An infinite upper bound is allowed.

    >>> z = torch.zeros(4, dtype=torch.float64)
    >>> block_mass_bound(z, z, torch.tensor([True, True, True, False])).item()
    0.25
    """
    if bool((log_lower > log_upper).any()) or bool((log_lower.isnan() | log_upper.isnan()).any()):
        raise ValueError("log_lower must be at most log_upper in every block, and neither may hold NaN")
    head = check_head(kept, check_logits(log_lower, "log_lower"), allow_empty=True)
    tail = torch.logsumexp(log_upper.masked_fill(head, -torch.inf), -1)
    sure = torch.logsumexp(log_lower.masked_fill(~head, -torch.inf), -1)
    return torch.where(tail.isneginf(), 0.0, torch.sigmoid(tail - sure))
