"""How many keys attention rows need: k_eps, the mass that k = 16 leaves out, the gap test, the spread of the logits."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tailbound import theory
from tailbound.lab.reproduce import printed

K = printed.BERT_K
GAP_EPSILON = 0.01


def k_name(epsilon: float) -> str:
    """The column of k_eps."""
    return f"k_{epsilon:g}"


def measure(logits: Tensor) -> dict[str, np.ndarray]:
    """Columns for rows of logits, float64 (rows, n), n above 16, all of them visible.

    Returns:
        `k_<eps>`, k_eps for each of the paper's budgets; `tv_16`, the total variation of the 16 heaviest; `gap_16`,
        what the gap test certifies for them; `k_gap`, the fewest keys for which the gap test passes at epsilon 0.01;
        `sigma`, the standard deviation of the row.
    """
    n = logits.shape[-1]
    ranked = theory.ranking(logits)
    drops = ranked.logits[:, :-1] - ranked.logits[:, 1:]
    passes = drops >= sufficient_gaps(n, GAP_EPSILON)
    columns = {
        k_name(epsilon): (ranked.tails > epsilon).sum(-1).clamp(min=1).to(torch.int32) for epsilon in printed.EPSILONS
    }
    columns["tv_16"] = ranked.tails[:, K]
    columns["gap_16"] = theory.gap_bound(logits, K)
    first = torch.where(passes.any(-1), passes.to(torch.uint8).argmax(-1) + 1, n)
    columns["k_gap"] = first.to(torch.int32)
    columns["sigma"] = logits.std(-1, correction=0)
    return {name: column.numpy() for name, column in columns.items()}


@lru_cache(maxsize=4)
def sufficient_gaps(n: int, epsilon: float) -> Tensor:
    """The gap that is enough for each k from 1 to n - 1, float64 (n - 1,)."""
    return torch.tensor([theory.sufficient_gap(n, k, epsilon) for k in range(1, n)], dtype=torch.float64)
