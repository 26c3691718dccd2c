"""`tailbound bench decode`: one decode step of attention, certified and dense, with the error in the same row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tailbound.engine.api import attention
from tailbound.lab import timing, truth
from tailbound.lab.errors import InputError
from tailbound.lab.models import DTYPES
from tailbound.lab.progress import Progress

SCHEMA = "tailbound.bench.decode/1"
BASELINE = "sdpa folded"
"""SDPA with the heads of a group folded into query rows: the strongest dense contestant that torch has."""

_DENSE = (BASELINE, "sdpa enable_gqa")


class Options(NamedTuple):
    """Gaussian logits of standard deviation `sigma`; one query in each of `heads` heads over `n` keys."""

    n: int = 8192
    epsilons: tuple[float, ...] = (0.01, 0.05)
    sigma: float = 3.5
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    dtype: str = "bfloat16"
    rounds: int = 7


@dataclass(frozen=True)
class Row:
    """One contestant. `ratio` is its time over that of the baseline: below 1 is faster."""

    contestant: str
    epsilon: float
    dtype: str
    n: int
    sigma: float
    threads: int
    median_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    kept_share: float
    tv_max: float
    true_tv_max: float
    violations: int

    def as_json(self) -> dict[str, Any]:
        """The row as `--json` prints it."""
        return {"schema": SCHEMA} | asdict(self)


def decode(options: Options, progress: Progress) -> list[Row]:
    """Time the contestants in turns, then judge the certified ones.

    Raises:
        InputError: sizes that do not fit.
    """
    query, key, value = _tensors(options)
    group = options.heads // options.kv_heads
    contestants: dict[str, Callable[[], object]] = {
        BASELINE: lambda: sdpa(query.reshape(1, options.kv_heads, group, -1), key, value),
        "sdpa enable_gqa": lambda: sdpa(query, key, value, enable_gqa=True),
    }
    for epsilon in options.epsilons:
        contestants[_name(epsilon)] = lambda epsilon=epsilon: attention(query, key, value, epsilon=epsilon)
    with progress.task("contestants take turns", options.rounds + 1) as advance:
        seconds = timing.take_turns(contestants, options.rounds, advance)

    rows = []
    for name, epsilon in [*((name, 0.0) for name in _DENSE), *((_name(e), e) for e in options.epsilons)]:
        ratio = timing.ratio(seconds[name], seconds[BASELINE])
        dense = name in _DENSE
        kept, tv, true_tv, violations = (1.0, 0.0, 0.0, 0) if dense else _errors(query, key, value, epsilon)
        rows.append(
            Row(
                contestant=name,
                epsilon=epsilon,
                dtype=options.dtype,
                n=options.n,
                sigma=options.sigma,
                threads=torch.get_num_threads(),
                median_ms=1e3 * float(sorted(seconds[name])[len(seconds[name]) // 2]),
                ratio=ratio.median,
                ratio_low=ratio.low,
                ratio_high=ratio.high,
                kept_share=kept,
                tv_max=tv,
                true_tv_max=true_tv,
                violations=violations,
            )
        )
    return rows


def _name(epsilon: float) -> str:
    return f"tailbound torch, epsilon {epsilon:g}"


def _errors(query: Tensor, key: Tensor, value: Tensor, epsilon: float) -> tuple[float, float, float, int]:
    answer = attention(query, key, value, epsilon=epsilon, return_kept=True)
    assert answer.kept is not None
    found = truth.judge(query, key, value, None, query.shape[3] ** -0.5, answer.kept, answer.output)
    tv, error = answer.certificate.tv, answer.certificate.output_error
    wrong = ~((found.tv <= tv) & (found.output_error <= error))
    return float(answer.kept.double().mean()), float(tv.max()), float(found.tv.max()), int(wrong.sum())


def _tensors(options: Options) -> Sequence[Tensor]:
    if options.dtype not in DTYPES:
        raise InputError(f"--dtype {options.dtype}: allowed are {', '.join(DTYPES)}")
    if min(options.n, options.heads, options.kv_heads, options.head_dim, options.rounds) < 1:
        raise InputError("every size and the number of rounds must be at least 1")
    if options.heads % options.kv_heads:
        raise InputError(f"--heads {options.heads} is not a multiple of --kv-heads {options.kv_heads}")
    cache = (1, options.kv_heads, options.n, options.head_dim)
    query = torch.randn(1, options.heads, 1, options.head_dim) * options.sigma
    return [tensor.to(DTYPES[options.dtype]) for tensor in (query, torch.randn(cache), torch.randn(cache))]
