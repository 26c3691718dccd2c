"""The quantile policy: a fixed number of keys for each head, and no proof. Tzachristas et al. 2025, Section 8.2."""

from __future__ import annotations

import math

import torch
from jaxtyping import Int64
from torch import Tensor

from tailbound.search.result import Cost, SearchResult, SearchStatus
from tailbound.search.state import Scorer
from tailbound.theory.inputs import check_count


def quantile_k(k_eps: Int64[Tensor, "*heads samples"], quantile: float = 0.95) -> Int64[Tensor, "*heads"]:
    """The k that was enough for a share of the sampled queries of each head: the smallest such order statistic.

    It says nothing about a query outside the sample, and gives no certificate.

    Args:
        k_eps: keys that each sampled query needed, as `theory.smallest_k` gives them.
        quantile: in (0, 1].

    Raises:
        ValueError: quantile out of range, no samples.

    >>> quantile_k(torch.arange(1, 101)).item()
    95
    """
    if not 0.0 < quantile <= 1.0:
        raise ValueError(f"quantile={quantile!r} must be in (0, 1]")
    if k_eps.ndim == 0 or k_eps.shape[-1] == 0:
        raise ValueError(f"k_eps has shape {tuple(k_eps.shape)}; it must hold at least one sample a head")
    return k_eps.kthvalue(math.ceil(quantile * k_eps.shape[-1]), dim=-1).values


def quantile_search(score: Scorer, n: int, k: int) -> SearchResult:
    """Keep the k heaviest of n keys, whatever they weigh: UNCERTIFIED, tv = 1, every key scored.

    Args:
        score: int64 keys (n,) in, float64 logits (n,) out, nats.
        n: how many keys there are. k: how many of them to keep, in [1, n].

    Raises:
        ValueError: k outside [1, n].

    >>> quantile_search(lambda i: i.double(), 4, 2).status.name
    'UNCERTIFIED'
    """
    check_count(k, n)
    logits = score(torch.arange(n))
    order = logits.argsort(descending=True, stable=True)[:k]
    return SearchResult(order, logits[order], 1.0, SearchStatus.UNCERTIFIED, "none", Cost(n, 0))
