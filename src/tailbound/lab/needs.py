"""How many keys attention rows need: k_eps, the mass that k = 16 leaves out, the gap test, the spread of the logits."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tailbound import theory

K = 16
"""Keys of the paper's fixed head."""

GAP_EPSILON = 0.01


def k_name(epsilon: float) -> str:
    """The column of k_eps."""
    return f"k_{epsilon:g}"


def measure(logits: Tensor, epsilons: Sequence[float]) -> dict[str, np.ndarray]:
    """Columns for rows of logits, float64 (rows, n), n above 16, all of them visible.

    Returns:
        `k_<eps>`, k_eps for each budget; `tv_16`, the total variation of the 16 heaviest; `gap_16`,
        what the gap test certifies for them; `k_gap`, the fewest keys for which the gap test passes at epsilon 0.01;
        `sigma`, the standard deviation of the row.
    """
    ranked, bounds = theory.ranking(logits), theory.gap_bounds(logits)
    columns = {k_name(epsilon): (ranked.tails > epsilon).sum(-1).clamp(min=1).to(torch.int32) for epsilon in epsilons}
    columns["tv_16"] = ranked.tails[:, K]
    columns["gap_16"] = bounds[:, K - 1]
    columns["k_gap"] = first_gap(bounds, GAP_EPSILON)
    columns["sigma"] = logits.std(-1, correction=0)
    return {name: column.numpy() for name, column in columns.items()}


def first_gap(bounds: Tensor, epsilon: float) -> Tensor:
    """The fewest keys that pass the gap test, int32 (...): bounds (..., n - 1) are those of k = 1, 2, ...; else n."""
    passes = bounds <= epsilon
    return torch.where(passes.any(-1), passes.to(torch.uint8).argmax(-1) + 1, bounds.shape[-1] + 1).to(torch.int32)
