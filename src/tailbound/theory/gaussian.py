"""The Gaussian law: how many keys a head needs if its logits look normal. Tzachristas et al. 2025, Section 6.

Logits `s ~ N(mu, sigma^2)`, n large. Laws for the limit, and a seeded simulator for finite n. Two slips of the printed
text are put right here: 6.1 swaps the mass above t with the tail mass, and 6.5 prints `Phi^-1(1 - eps)` where its
tables use `Phi^-1(eps)`. For sigma near 3 the rule is off by 3% at n = 10,000 (its own Table 2).

Logits, mu and sigma are in nats. ValueError: an epsilon outside (0, 1), a sigma that is not a finite number above 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from tailbound.theory.inputs import check_budget, check_positive
from tailbound.theory.truncation import smallest_k


class Simulation(NamedTuple):
    """`k_eps` of simulated rows: int64 (draws,), their mean, and the standard error of the mean."""

    k: Int64[Tensor, " draws"]
    mean: float
    standard_error: float


def gaussian_tail_mass(t: Float[Tensor, "*batch"], mu: float, sigma: float) -> Float[Tensor, "*batch"]:
    """Softmax mass of the logits below `t`: `Phi((t - mu - sigma^2) / sigma)` (6.2).

    >>> gaussian_tail_mass(torch.tensor(1.0), 0.0, 1.0).item()
    0.5
    """
    check_positive("sigma", sigma)
    return torch.special.ndtr((t - mu - sigma**2) / sigma)


def gaussian_threshold(epsilon: float, mu: float, sigma: float) -> float:
    """The logit below which the softmax mass is epsilon: `mu + sigma^2 + sigma * Phi^-1(eps)` (6.3).

    >>> gaussian_threshold(0.5, 2.0, 1.0)
    3.0
    """
    return mu + sigma**2 + check_positive("sigma", sigma) * _quantile(check_budget(epsilon))


def gaussian_keep_fraction(epsilon: float, sigma: float) -> float:
    """The share of keys that the budget needs: `k_eps / n -> Phi_c(sigma + Phi^-1(eps))` (6.4).

    >>> round(gaussian_keep_fraction(0.01, 1.0), 4)
    0.9076
    """
    check_positive("sigma", sigma)
    return _normal_above(sigma + _quantile(check_budget(epsilon)))


def gaussian_k(n: int, epsilon: float, sigma: float) -> int:
    """The rule for finite n: `ceil(n * keep fraction)`, at least 1.

    >>> gaussian_k(10_000, 0.01, 2.0)
    6280
    """
    return max(1, math.ceil(n * gaussian_keep_fraction(epsilon, sigma)))


def implied_sigma(epsilon: float, fraction: float) -> float:
    """The sigma under which the budget needs a given share of keys: `-Phi^-1(fraction) - Phi^-1(eps)`, (6.4) inverted.

    Raises:
        ValueError: also for a fraction outside (0, 1 - epsilon): at sigma = 0 the share is `1 - epsilon`, and it falls
            with sigma.

    >>> round(implied_sigma(0.01, gaussian_keep_fraction(0.01, 1.7)), 6)
    1.7
    """
    epsilon = check_budget(epsilon)
    if not 0.0 < fraction < 1.0 - epsilon:
        raise ValueError(f"fraction={fraction!r} must be in (0, {1.0 - epsilon:g}): no sigma above 0 implies another")
    return -_quantile(fraction) - _quantile(epsilon)


def simulate_k(n: int, epsilon: float, sigma: float, draws: int, seed: int = 0, rows: int = 256) -> Simulation:
    """`k_eps` of rows of n independent normal logits, computed exactly (in float64) from each row.

    Args:
        n: keys in a row. draws: rows. seed: the same seed gives the same rows.
        rows: rows held at once (memory: a few times `8 * rows * n` bytes).

    Raises:
        ValueError: also for n, draws or rows below 1.

    >>> bool(simulate_k(1000, 0.01, 1.0, draws=8, seed=0).k.eq(simulate_k(1000, 0.01, 1.0, draws=8, seed=0).k).all())
    True
    """
    check_positive("sigma", sigma)
    if min(n, draws, rows) < 1:
        raise ValueError(f"n={n!r}, draws={draws!r} and rows={rows!r} must be at least 1")
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for start in range(0, draws, rows):
        logits = torch.empty(min(rows, draws - start), n, dtype=torch.float64)
        for row in logits:  # row by row: the numbers must not depend on how many rows are held
            row.normal_(0.0, sigma, generator=generator)
        parts.append(smallest_k(logits, epsilon))
    k = torch.cat(parts)
    spread = float(k.double().std()) if draws > 1 else math.inf
    return Simulation(k, float(k.double().mean()), spread / math.sqrt(draws))


def _quantile(p: float) -> float:
    """`Phi^-1`."""
    return float(torch.special.ndtri(torch.tensor(p, dtype=torch.float64)))


def _normal_above(x: float) -> float:
    """`Phi_c`: keeps its digits far out."""
    return 0.5 * math.erfc(x / math.sqrt(2.0))
