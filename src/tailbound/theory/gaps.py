"""Bounds on the tail mass from a gap in the sorted logits. Tzachristas et al. 2025, Thm 4.5.

They need the k heaviest entries as the head; for other heads they are false.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from tailbound.theory.inputs import check_budget, check_count, check_logits


def gap_bound(logits: Float[Tensor, "*batch n"], k: int) -> Float[Tensor, "*batch"]:
    """`TV <= 1 / (1 + k/(n-k) * exp(D_k))`, `D_k = s_k - s_{k+1}`, for the k heaviest entries (Thm 4.5).

    Tight: equality when the head logits are all `s_k` and the tail logits all `s_{k+1}`. 0 at k = n. With no gap it
    is `(n-k)/n`: little is said about few keys without a gap between them and the rest.

    Raises:
        ValueError: k outside [1, n]; NaN.

    >>> gap_bound(torch.zeros(4, dtype=torch.float64), 1).item()
    0.75
    """
    n = check_logits(logits).shape[-1]
    if check_count(k, n) == n:
        return torch.zeros_like(logits[..., 0])
    top = logits.topk(k + 1, dim=-1).values
    gap = torch.where(top[..., k].isneginf(), torch.inf, top[..., k - 1] - top[..., k])
    return torch.sigmoid(math.log((n - k) / k) - gap)


def sufficient_gap(n: int, k: int, epsilon: float) -> float:
    """The gap `D_k` from which `gap_bound` is at most epsilon: `log((n-k)/k) + log((1-eps)/eps)`, in nats (Thm 4.5).

    -inf at k = n. May be negative: then every gap is enough.

    Raises:
        ValueError: k outside [1, n], epsilon outside (0, 1).

    >>> round(sufficient_gap(10_000, 32, 1e-4), 2)
    14.95
    """
    epsilon = check_budget(epsilon)
    if check_count(k, n) == n:
        return -math.inf
    return math.log((n - k) / k) + math.log1p(-epsilon) - math.log(epsilon)
