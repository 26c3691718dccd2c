"""The mathematics of truncated attention, on logits and values: one function a statement.

Tzachristas et al. 2025, "A Mathematical Theory of Top-k Sparse Attention via Total Variation Distance". Functions here
compute in the dtype they are given and round to nearest. For numbers that must never fall below the truth use the
certificates of `tailbound.attention`, or `tailbound.bounds` and `tailbound.search`.

Shapes: logits (..., n), float32 or float64, in nats; values (..., n, d), of the same dtype; a head is bool (..., n).
Functions of these raise TypeError for another dtype, and ValueError for shapes that do not fit, NaN or +inf in logits,
NaN or infinity in values, and a head without a finite logit. What else one refuses stands with it.
"""

from tailbound.theory.blocks import block_gap_bound, block_log_masses, block_mass_bound
from tailbound.theory.cut import Split, smallest_cross_diameter
from tailbound.theory.gaps import GapChoice, best_gap_bound, gap_bound, gap_bounds, several_gaps_bound, sufficient_gap
from tailbound.theory.gaussian import (
    Simulation,
    gaussian_k,
    gaussian_keep_fraction,
    gaussian_tail_mass,
    gaussian_threshold,
    implied_sigma,
    simulate_k,
)
from tailbound.theory.output import (
    BOUNDS,
    BestBound,
    Means,
    Variances,
    best_bound,
    diameter_bound,
    means,
    norm_bound,
    output_difference,
    variance_bound,
    variances,
)
from tailbound.theory.truncation import (
    Ranking,
    chi_square,
    kl_divergence,
    ranking,
    smallest_k,
    tail_mass,
    top_k,
    total_variation,
    truncate,
    tv_from_kl,
)

__all__ = [
    "BOUNDS",
    "BestBound",
    "GapChoice",
    "Means",
    "Ranking",
    "Simulation",
    "Split",
    "Variances",
    "best_bound",
    "best_gap_bound",
    "block_gap_bound",
    "block_log_masses",
    "block_mass_bound",
    "chi_square",
    "diameter_bound",
    "gap_bound",
    "gap_bounds",
    "gaussian_k",
    "gaussian_keep_fraction",
    "gaussian_tail_mass",
    "gaussian_threshold",
    "implied_sigma",
    "kl_divergence",
    "means",
    "norm_bound",
    "output_difference",
    "ranking",
    "several_gaps_bound",
    "simulate_k",
    "smallest_cross_diameter",
    "smallest_k",
    "sufficient_gap",
    "tail_mass",
    "top_k",
    "total_variation",
    "truncate",
    "tv_from_kl",
    "variance_bound",
    "variances",
]
