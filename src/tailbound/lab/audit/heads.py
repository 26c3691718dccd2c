"""From rows to a line for each head, and to figures of the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy import special

from tailbound.lab import needs
from tailbound.lab.audit.columns import AT, EPSILONS

SPARSE = 0.1
"""A head is sparse if at `AT` it needs less than this share of the keys that it sees."""

FLAT = 0.5
"""And flat if it needs more than this."""

MEANS = (
    "sigma", "skewness", "kurtosis", "effective_keys", "heaviest", "sink_mass", "recent_mass", "value_distance",
)  # fmt: skip
LOOSE = {
    "looseness_gap": ("gap_bound", "true_tail"),
    "looseness_ball": ("ball_bound", "true_tail"),
    "looseness_box": ("box_bound", "true_tail"),
    "looseness_interval": ("interval_bound", "true_tail"),
    "looseness_norm": ("norm_bound", "true_error"),
    "looseness_diameter": ("diameter_bound", "true_error"),
    "looseness_variance": ("variance_bound", "true_error"),
}
"""Medians of a bound over what it bounds."""


def table(rows: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """A line for each (layer, head), means over positions.

    `k_<eps>`, `share_<eps>`: keys needed, and over keys seen; `p95_<eps>`: the 95th percentile of the latter;
    `rule_<eps>`: the share that the Gaussian rule predicts from the spread of each row; `gap_pass`: rows whose 16
    heaviest keys pass the gap test at 0.01; `share_gap`: of keys, of the fewest that pass it; `certified_over_needed`:
    keys that the index keeps at 0.01 over those needed; medians of looseness.
    """
    order = np.lexsort((rows["head"], rows["layer"]))  # stable: a head's rows stay in their order
    layer, head = rows["layer"][order], rows["head"][order]
    for here in np.split(order, np.flatnonzero((np.diff(layer) != 0) | (np.diff(head) != 0)) + 1):
        some = {name: column[here] for name, column in rows.items()}
        line: dict[str, Any] = {
            "layer": int(some["layer"][0]),
            "head": int(some["head"][0]),
            "rows": len(some["visible"]),
        }
        for epsilon in EPSILONS:
            share = some[needs.k_name(epsilon)] / some["visible"]
            line[needs.k_name(epsilon)] = float(some[needs.k_name(epsilon)].mean())
            line[f"share_{epsilon:g}"] = float(share.mean())
            line[f"p95_{epsilon:g}"] = float(np.percentile(share, 95))
            line[f"rule_{epsilon:g}"] = float(special.ndtr(-(some["sigma"] + special.ndtri(epsilon))).mean())
        line |= {name: _mean(some[name]) for name in MEANS if name in some}
        line["gap_pass"] = float((some["gap_16"] <= AT).mean())
        line["share_gap"] = float((some["k_gap"] / some["visible"]).mean())
        line["certified_over_needed"] = float(some["certified_k"].sum() / some[needs.k_name(AT)].sum())
        line |= {name: _median_ratio(some, *pair) for name, pair in LOOSE.items()}
        yield line


def over_all(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The model's figures: means over heads, and how many are sparse or flat."""
    share = np.array([line[f"share_{AT:g}"] for line in lines])
    found: dict[str, Any] = {
        "heads": len(lines),
        "sparse_heads": int((share < SPARSE).sum()),
        "flat_heads": int((share > FLAT).sum()),
        "share_median": float(np.median(share)),
    }
    for name in lines[0]:
        if name not in ("layer", "head", "rows") and not name.startswith("k_"):
            values = [line[name] for line in lines if line[name] is not None]
            combine = np.median if name.startswith("looseness") else np.mean
            found[name] = float(combine(values)) if values else None
    return found


def _mean(column: np.ndarray) -> float | None:
    some = column[~np.isnan(column)]
    return float(some.mean()) if len(some) else None


def _median_ratio(some: dict[str, np.ndarray], above: str, below: str) -> float | None:
    if above not in some:
        return None
    ratio = some[above] / np.where(some[below] > 0, some[below], np.nan)
    ratio = ratio[~np.isnan(ratio)]
    return float(np.median(ratio)) if len(ratio) else None
