"""The mathematics of truncated attention, on logits and values: one function a statement.

Functions here compute in the dtype they are given and round to nearest. For numbers that must never fall below the
truth use the certificates of `tailbound.attention`.
"""

from tailbound.theory.gaps import gap_bound, sufficient_gap
from tailbound.theory.truncation import (
    chi_square,
    kl_divergence,
    smallest_k,
    tail_mass,
    top_k,
    total_variation,
    truncate,
    tv_from_kl,
)

__all__ = [
    "chi_square",
    "gap_bound",
    "kl_divergence",
    "smallest_k",
    "sufficient_gap",
    "tail_mass",
    "top_k",
    "total_variation",
    "truncate",
    "tv_from_kl",
]
