"""Bounds on the tail mass from gaps in the sorted logits. Tzachristas et al. 2025, Thm 4.5 and Lemma 4.7.

They need the k heaviest entries as the head; for other heads they are false. Symbols: `s_1 >= ... >= s_n` the sorted
logits, `D_k = s_k - s_{k+1}`.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tailbound.theory.inputs import check_budget, check_count, check_logits
from tailbound.theory.truncation import ranking


class GapChoice(NamedTuple):
    """The smallest gap bound, and the number of second-level entries `m` that gave it (0: the single gap)."""

    bound: Float[Tensor, "*batch"]
    m: Int64[Tensor, "*batch"]


def gap_bound(logits: Float[Tensor, "*batch n"], k: int) -> Float[Tensor, "*batch"]:
    """`TV <= 1 / (1 + k/(n-k) * exp(D_k))` for the k heaviest entries (Thm 4.5).

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
    return torch.sigmoid(_log_ratios(logits, k)[..., 0])


def gap_bounds(logits: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch n_less_1"]:
    """`gap_bound` for every k from 1 to n - 1, from one sort: (..., n - 1).

    >>> gap_bounds(torch.zeros(4, dtype=torch.float64)).tolist()
    [0.75, 0.5, 0.25]
    """
    ranked = ranking(logits).logits
    n = ranked.shape[-1]
    k = torch.arange(1, n, device=logits.device, dtype=logits.dtype)
    drop = torch.where(ranked[..., 1:].isneginf(), -torch.inf, ranked[..., 1:] - ranked[..., :-1])
    return torch.sigmoid(drop + ((n - k) / k).log())


def several_gaps_bound(
    logits: Float[Tensor, "*batch n"], k: int, m: int, *, printed: bool = False
) -> Float[Tensor, "*batch"]:
    """`TV <= R / (1 + R)`, `R = (m exp(s_{k+1} - s_k) + (n-k-m) exp(s_{k+m+1} - s_k)) / k` (Lemma 4.7).

    The m entries after the head weigh at most `exp(s_{k+1})` each, the rest at most `exp(s_{k+m+1})`. The paper prints
    `TV <= R`, which is sound too, but above 1 where R is, and often worse than `gap_bound`.

    Args:
        logits: (..., n), float32 or float64.
        k: head size. m: entries on the second level; `k + m + 1 <= n`.
        printed: give R, the form that the paper prints.

    Raises:
        ValueError: k outside [1, n], m outside [1, n - k - 1]; NaN.

    >>> round(several_gaps_bound(torch.zeros(4, dtype=torch.float64), 1, 1, printed=True).item(), 6)
    3.0
    """
    n = check_logits(logits).shape[-1]
    check_count(k, n)
    if n - k - 1 < 1:
        raise ValueError(f"k={k!r} leaves {n - k} of {n} entries: several gaps need at least 2; use gap_bound")
    log_r = _log_ratios(logits, k)[..., check_count(m, n - k - 1, "m")]
    return torch.exp(log_r) if printed else torch.sigmoid(log_r)


def best_gap_bound(logits: Float[Tensor, "*batch n"], k: int) -> GapChoice:
    """The minimum of `gap_bound` and of `several_gaps_bound` over every m, and the m that gives it (Lemma 4.7).

    >>> best_gap_bound(torch.tensor([9.0, 1.0, 0.0, -9.0, -9.0]), 1).m.item()
    2
    """
    n = check_logits(logits).shape[-1]
    if check_count(k, n) == n:
        zero = torch.zeros_like(logits[..., 0])
        return GapChoice(zero, torch.zeros_like(zero, dtype=torch.int64))
    best, m = _log_ratios(logits, k).min(-1)
    return GapChoice(torch.sigmoid(best), m)


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


def _log_ratios(logits: Tensor, k: int) -> Tensor:
    """`log R` for m = 0 to n - k - 1, m = 0 being the single gap: (..., n - k). -inf where the tail is empty."""
    ranked = logits.sort(dim=-1, descending=True).values
    n = logits.shape[-1]
    drop = ranked[..., k:] - ranked[..., k - 1 : k]
    drop = torch.where(ranked[..., k:].isneginf(), -torch.inf, drop)
    m = torch.arange(n - k, device=logits.device, dtype=logits.dtype)
    second, rest = drop[..., :1] + m.log(), drop + (n - k - m).log()
    return torch.logaddexp(second.expand_as(rest), rest) - math.log(k)
