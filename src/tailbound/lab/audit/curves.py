"""What budgets and policies do to the model's answers: runs, each a part on disk with a row for each position."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from tailbound.lab import needs
from tailbound.lab.audit.columns import EPSILONS, GRID
from tailbound.lab.audit.policies import Certified, Pages, Policy, Recent, TopK, TopMass
from tailbound.lab.audit.reading import Errors, Reading
from tailbound.lab.audit.store import Store

KIND = "curves"
OURS = "tailbound"

TRUNCATED = "top-p on exact weights"
FIXED = "fixed top-k by exact weights"
WINDOW = "sinks and recent keys"
QUEST = "Quest pages of 16"

DECODER = (OURS, TRUNCATED, FIXED, WINDOW, QUEST)
ENCODER = (OURS, TRUNCATED, FIXED)

CLOSE = 0.02
"""Top-p keeps as many keys as ours to this share of them, where that can be had."""


def count(reading: Reading) -> int:
    """Runs that there are to make."""
    return len(EPSILONS) * len(ENCODER if reading.encoder else DECODER)


def run(reading: Reading, rows: Store, needed: Mapping[str, np.ndarray], advance: Callable[[], None]) -> None:
    """Every budget of ours, then each policy with as many keys as ours read; what is there is not run again.

    Args:
        needed: the columns of `columns.measure`, of all layers.
    """
    for epsilon in EPSILONS:
        part = _part(OURS, epsilon)
        if not rows.has(KIND, part):
            policy = Certified(epsilon)
            rows.add(KIND, part, _columns(OURS, epsilon, policy, reading.errors(policy)))
        advance()
        share = float(rows.read_part(KIND, part)["share"][0])
        for name in (ENCODER if reading.encoder else DECODER)[1:]:
            part = _part(name, epsilon)
            if not rows.has(KIND, part):
                policy, errors = _equal(reading, name, share, needed)
                rows.add(KIND, part, _columns(name, epsilon, policy, errors))
            advance()


def table(columns: dict[str, np.ndarray]) -> Iterator[dict[str, Any]]:
    """A line for each policy and budget: means over positions, the standard error of the distance, the share read."""
    for name in DECODER:
        for epsilon in EPSILONS:
            here = (columns["policy"] == name) & (columns["epsilon"] == epsilon)
            if here.any():
                yield {"policy": name, "epsilon": epsilon} | summary(
                    {key: column[here] for key, column in columns.items()}
                )


def summary(some: dict[str, np.ndarray]) -> dict[str, Any]:
    """Figures of one run, or of one on each of several texts; None where there is nothing to average.

    The standard error is that of the mean over positions. Positions of a text are alike, so with several texts it is
    that of the mean over texts.
    """
    tv, runs = some["tv"], some["row"] == 0
    means = _by_text(some) if "text" in some else tv
    return {
        "positions": len(tv),
        "share": float(some["share"][runs].mean()),
        "bytes_share": float(some["bytes_share"][runs].mean()),
        "tv_mean": float(tv.mean()),
        "tv_standard_error": float(means.std(ddof=1) / math.sqrt(len(means))) if len(means) > 1 else None,
        "tv_max": float(tv.max()),
        "kl_mean": _mean(some["kl"]),
        "agreement": _mean(some["agrees"]),
        "loss": _mean(some["loss"]),
        "dense_loss": _mean(some["dense_loss"]),
        "certificate_max": _most(some["certificate_max"]),
    }


def of_run(policy: Policy, errors: Errors) -> dict[str, np.ndarray]:
    """The columns that `summary` takes."""
    size = len(errors.tv)
    found = {"row": np.arange(size, dtype=np.int32)}
    found |= {name: column.numpy() for name, column in errors._asdict().items()}
    figures = {"share": policy.share, "bytes_share": policy.bytes_share, "certificate_max": policy.tv_max}
    return found | {name: np.full(size, value) for name, value in figures.items()}


def _by_text(some: dict[str, np.ndarray]) -> np.ndarray:
    """The mean distance of each text; of a single one, of each position."""
    names = dict.fromkeys(some["text"].tolist())
    if len(names) == 1:
        return some["tv"]
    return np.array([some["tv"][some["text"] == name].mean() for name in names])


def _equal(reading: Reading, name: str, share: float, needed: Mapping[str, np.ndarray]) -> tuple[Policy, Errors]:
    """A policy that reads a share of the keys. For top-p the mass is moved until it does."""
    if name != TRUNCATED:
        policy = {FIXED: TopK, WINDOW: Recent, QUEST: Pages}[name](share)
        return policy, reading.errors(policy)
    shares = [float((needed[needs.k_name(mass)] / needed["visible"]).mean()) for mass in GRID[1:]]
    mass = math.exp(np.interp(-math.log(share), -np.log(shares), np.log(GRID[1:])))
    policy = TopMass(mass)
    errors = reading.errors(policy)
    for _ in range(5):
        if abs(policy.share / share - 1) <= CLOSE:
            break
        mass = min(mass * (policy.share / share) ** 2, 0.9)
        policy = TopMass(mass)
        errors = reading.errors(policy)
    return policy, errors


def _columns(name: str, epsilon: float, policy: Policy, errors: Errors) -> dict[str, np.ndarray]:
    size = len(errors.tv)
    return {"policy": np.full(size, name), "epsilon": np.full(size, epsilon)} | of_run(policy, errors)


def _part(name: str, epsilon: float) -> str:
    return f"{epsilon:g}-" + "".join(c if c.isalnum() else "-" for c in name)


def _mean(column: np.ndarray) -> float | None:
    some = column[~np.isnan(column)]
    return float(some.mean()) if len(some) else None


def _most(column: np.ndarray) -> float | None:
    some = column[~np.isnan(column)]
    return float(some.max()) if len(some) else None
