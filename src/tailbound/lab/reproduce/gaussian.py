"""The Gaussian part: Table 2, Table 6, the law, and where the rule stops holding for finite n."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch

from tailbound import theory
from tailbound.lab.progress import Progress
from tailbound.lab.reproduce import printed
from tailbound.lab.rows import Columns, Job, Rows, chosen

EPSILON = printed.TABLE_2_EPSILON
LAW = (0.5, 1.0, 2.0, 3.0, 4.0)
RANGE_SIGMAS = tuple(0.25 * i for i in range(2, 19))
RANGE_LENGTHS = (256, 1024, 4096, 16384, 65536)
LEVELS = (0.01, 0.05)
"""Deviations of the rule for which the range is stated."""


class Sizes(NamedTuple):
    """How much is drawn: rows for each sigma of Table 2, for each n of Table 6 and for each sigma of the law.

    For the range `range_keys` keys for each n and sigma, in at most `range_most` rows.
    """

    table_2: int = 2000
    table_6: int = 1000
    law: int = 400
    range_keys: int = 1 << 22
    range_most: int = 2000


def job(seed: int, sizes: Sizes) -> Job:
    """The Gaussian part."""
    settings = {"part": "gaussian", "seed": seed, "sizes": sizes._asdict()}
    return Job("gaussian", settings, {}, lambda rows, progress: _run(rows, seed, sizes, progress))


def _run(rows: Rows, seed: int, sizes: Sizes, progress: Progress) -> None:
    """Draw what is not there yet.

    A sigma of Table 2 has draws of its own; the budgets of Table 6 share the draws of their n.
    """
    jobs: list[tuple[str, str, Callable[[int], dict[str, np.ndarray]]]] = [
        *(("table2", f"sigma-{s:.2f}", lambda own, s=s: _table_2(s, sizes, own)) for s in printed.TABLE_2),
        *(("table6", f"n-{n:06}", lambda own, n=n: _table_6(n, sizes, own)) for n in printed.TABLE_6_LENGTHS),
        *(("law", f"sigma-{s:.2f}", lambda own, s=s: _law(s, sizes, own)) for s in LAW),
        *(
            ("range", f"n-{n:06}-sigma-{s:.2f}", lambda own, n=n, s=s: _range(n, s, sizes, own))
            for n in RANGE_LENGTHS
            for s in RANGE_SIGMAS
        ),
    ]
    with progress.task("Gaussian logits", len(jobs)) as advance:
        for number, (kind, part, work) in enumerate(jobs):
            if not rows.has(kind, part):
                rows.add(kind, part, work(1000 * seed + number))
            advance()


def _table_2(sigma: float, sizes: Sizes, seed: int) -> dict[str, np.ndarray]:
    return _simulated(printed.TABLE_2_N, EPSILON, sigma, sizes.table_2, seed)


def _table_6(n: int, sizes: Sizes, seed: int) -> dict[str, np.ndarray]:
    parts = [_simulated(n, epsilon, printed.TABLE_6_SIGMA, sizes.table_6, seed) for epsilon in printed.TABLE_6]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _range(n: int, sigma: float, sizes: Sizes, seed: int) -> dict[str, np.ndarray]:
    return _simulated(n, EPSILON, sigma, min(sizes.range_most, max(2, sizes.range_keys // n)), seed)


def _simulated(n: int, epsilon: float, sigma: float, draws: int, seed: int) -> dict[str, np.ndarray]:
    k = theory.simulate_k(n, epsilon, sigma, draws, seed, rows=max(1, (1 << 21) // n)).k.numpy().astype(np.int32)
    return {
        "n": np.full(draws, n, np.int32),
        "epsilon": np.full(draws, epsilon),
        "sigma": np.full(draws, sigma),
        "draw": np.arange(draws, dtype=np.int32),
        "k": k,
    }


def _law(sigma: float, sizes: Sizes, seed: int) -> dict[str, np.ndarray]:
    """The mass below the threshold of (6.3), in rows drawn at random: the law says epsilon."""
    n, generator = printed.TABLE_2_N, torch.Generator().manual_seed(seed)
    thresholds = torch.tensor([theory.gaussian_threshold(e, 0.0, sigma) for e in printed.EPSILONS], dtype=torch.float64)
    masses = np.empty((sizes.law, len(thresholds)))
    for draw in range(sizes.law):
        logits = torch.empty(n, dtype=torch.float64).normal_(0.0, sigma, generator=generator)
        weights = (logits - logits.max()).exp()
        below = torch.where(logits < thresholds[:, None], weights, 0.0).sum(-1)
        masses[draw] = (below / weights.sum()).numpy()
    count = sizes.law * len(thresholds)
    return {
        "n": np.full(count, n, np.int32),
        "sigma": np.full(count, sigma),
        "epsilon": np.tile(printed.EPSILONS, sizes.law),
        "threshold": np.tile(thresholds.numpy(), sizes.law),
        "draw": np.repeat(np.arange(sizes.law, dtype=np.int32), len(thresholds)),
        "mass": masses.ravel(),
    }


def figures(rows: Rows) -> Iterator[dict[str, Any]]:
    """The tables' rows, each with the paper's figure beside ours."""
    table_2 = rows.read("table2")
    for sigma, paper in printed.TABLE_2.items():
        yield {"table": "gaussian.table2"} | _against_table_2(sigma, paper, chosen(table_2, sigma=sigma)["k"])
    table_6 = rows.read("table6")
    for n in printed.TABLE_6_LENGTHS:
        for epsilon, paper in printed.TABLE_6.items():
            k = chosen(table_6, n=n, epsilon=epsilon)["k"]
            mean, error = _mean(k / n)
            yield {
                "table": "gaussian.table6",
                "n": n,
                "epsilon": epsilon,
                "paper": paper,
                "rule": theory.gaussian_keep_fraction(epsilon, printed.TABLE_6_SIGMA),
                "draws": len(k),
                "simulated": mean,
                "standard_error": error,
                "difference": mean - paper,
            }
    law = rows.read("law")
    for sigma in LAW:
        for epsilon in printed.EPSILONS:
            some = chosen(law, sigma=sigma, epsilon=epsilon)
            mean, error = _mean(some["mass"])
            threshold = float(some["threshold"][0])
            yield {
                "table": "gaussian.law",
                "n": printed.TABLE_2_N,
                "sigma": sigma,
                "epsilon": epsilon,
                "threshold": threshold,
                "draws": len(some["mass"]),
                "simulated": mean,
                "standard_error": error,
                "difference": mean - epsilon,
            }
    yield from _range_figures(rows.read("range"))


def _against_table_2(sigma: float, paper: printed.Gaussian, k: np.ndarray) -> dict[str, Any]:
    mean, error = _mean(k)
    papers_error = error * math.sqrt(len(k) / printed.TABLE_2_DRAWS)
    rule = theory.gaussian_k(printed.TABLE_2_N, EPSILON, sigma)
    return {
        "sigma": sigma,
        "paper_rule": paper.rule,
        "rule": rule,
        "rule_difference": rule - paper.rule,
        "paper": paper.simulated,
        "simulated": mean,
        "draws": len(k),
        "standard_error": error,
        "paper_standard_error": papers_error,
        "difference": mean - paper.simulated,
        "in_standard_errors": (mean - paper.simulated) / papers_error,
        "rule_deviation": rule / mean - 1.0,
    }


def _range_figures(columns: Columns) -> Iterator[dict[str, Any]]:
    for n in RANGE_LENGTHS:
        line: list[dict[str, Any]] = []
        for sigma in RANGE_SIGMAS:
            mean, error = _mean(chosen(columns, n=n, sigma=sigma)["k"] / n)
            rule = theory.gaussian_keep_fraction(EPSILON, sigma)
            line.append(
                {
                    "table": "gaussian.range",
                    "n": n,
                    "sigma": sigma,
                    "rule": rule,
                    "simulated": mean,
                    "standard_error": error,
                    "rule_deviation": rule / mean - 1.0,
                    "relative_variance": math.expm1(sigma**2) / n,
                }
            )
        yield from line
        yield {"table": "gaussian.limits", "n": n} | _limits(n, line)


def _limits(n: int, line: list[dict[str, Any]]) -> dict[str, Any]:
    """The sigma up to which the rule stays within each level, by linear interpolation on the grid."""
    found: dict[str, Any] = {"self_averaging": math.sqrt(math.log(n)), "freezing": math.sqrt(2.0 * math.log(n))}
    for level in LEVELS:
        before = line[0]
        for row in line:
            if abs(row["rule_deviation"]) > level:
                a, b = abs(before["rule_deviation"]), abs(row["rule_deviation"])
                part = (level - a) / (b - a) if b > a else 0.0
                sigma = before["sigma"] + part * (row["sigma"] - before["sigma"])
                break
            before = row
        else:
            sigma = None
        found[f"within_{level:g}"] = sigma
        found[f"relative_variance_{level:g}"] = None if sigma is None else math.expm1(sigma**2) / n
    return found


def _mean(values: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values)))
