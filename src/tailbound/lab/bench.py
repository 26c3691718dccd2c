"""`tailbound bench decode`: one decode step over all layers, certified and dense, with the error in the same row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from tailbound.engine import memory
from tailbound.lab import bench_data, timing
from tailbound.lab.bench_data import Data, Options, Smallest
from tailbound.lab.bench_judge import Verdict, build_and_judge
from tailbound.lab.contestants import (
    FOLDED,
    GQA,
    ORACLE,
    OURS,
    PEERS,
    READ,
    Name,
    judged,
    line_up,
)
from tailbound.lab.errors import InputError
from tailbound.lab.progress import Progress

SCHEMA = "tailbound.bench.decode/2"
BASELINE = FOLDED

__all__ = ["BASELINE", "GQA", "OURS", "PEERS", "READ", "SCHEMA", "Options", "Row", "decode"]


@dataclass(frozen=True)
class Row:
    """One contestant at one number of threads.

    Attributes:
        epsilon: 0 for what reads every key.
        ratio: for each peer, how many times faster than it this contestant is: above 1 wins.
        limit_ratio: time to read the bytes of K and V once, over this contestant's: above 1 beats every dense kernel.
        kept_over_oracle: keys given weight, over those of the smallest sets; None where epsilon is 0.
        kept_share: keys given weight, over visible keys. None for what is no attention, as all below.
        bytes_read: of keys, values and sketches, in one step.
        tv_max: the largest certificate; None for what gives none.
        true_tv_max: the largest true one; of the oracle, at the timed position.
        violations: certificates below the truth.
    """

    contestant: str
    isa: str
    threads: int
    dtype: str
    n: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    positions: int
    rounds: int
    source: str
    real: bool
    epsilon: float
    median_ms: float
    ratio: dict[str, timing.Ratio]
    limit_ratio: timing.Ratio
    kept_over_oracle: float | None
    kept_share: float | None
    bytes_read: int
    tv_max: float | None
    true_tv_max: float | None
    violations: int

    def as_json(self) -> dict[str, Any]:
        """The row as `--json` prints it: each ratio as its median and the ends of its 95% interval."""
        ratio = {peer: ratio._asdict() for peer, ratio in self.ratio.items()}
        return {"schema": SCHEMA} | asdict(self) | {"ratio": ratio, "limit_ratio": self.limit_ratio._asdict()}

    def loses_to(self) -> list[str]:
        """The peers that are faster, if the contestant is ours."""
        return [peer for peer, ratio in self.ratio.items() if ratio.median < 1] if self.contestant in OURS else []


def decode(options: Options, progress: Progress) -> list[Row]:
    """Judge the certified contestants, then time all of them in turns, for each number of threads.

    Raises:
        InputError: sizes that do not fit, or a capture that cannot be had.
    """
    usual = torch.get_num_threads()
    counts = tuple(dict.fromkeys(options.threads or (1, usual)))
    if min(counts) < 1:
        raise InputError(f"--threads {min(counts)}: at least 1")
    data = bench_data.prepare(options, progress)
    sets: dict[float, list[Smallest]] = {}
    with progress.task("the smallest sets of keys", len(data.layers) * len(options.epsilons)) as advance:
        for epsilon in options.epsilons:
            sets[epsilon] = []
            for layer in data.layers:
                sets[epsilon].append(bench_data.smallest(layer, epsilon))
                advance()
    names = judged(options.epsilons)
    rows: list[Row] = []
    try:
        with progress.task("judging, by layer", len(data.layers)) as advance:
            indexes, verdicts = build_and_judge(data.layers, names, counts, advance)
        words = (
            -(-data.nbytes // 8) * 2
        )  # of 4 bytes, in pairs; in the memory that an index would take: the limit has no handicap
        (buffer,) = memory.buffers([((words,), torch.float32)], torch.device("cpu"))
        buffer.fill_(1.0)
        for threads in counts:
            torch.set_num_threads(threads)
            with progress.task(f"contestants take turns, {threads} threads", options.rounds + 1) as advance:
                calls = line_up(data, indexes, sets, buffer)
                seconds = timing.take_turns(calls, options.rounds, advance)
            own = {name: verdicts[name, threads] for name in names}
            rows += _rows(options, data, threads, seconds, sets, own)
    finally:
        torch.set_num_threads(usual)
    return rows


def _rows(
    options: Options,
    data: Data,
    threads: int,
    seconds: dict[Name, np.ndarray],
    sets: dict[float, list[Smallest]],
    verdicts: dict[Name, Verdict],
) -> Iterator[Row]:
    layer = data.layers[0]
    n, heads, kv_heads = layer.key.shape[2], layer.query.shape[1], layer.key.shape[1]
    peers = {name.contestant: taken for name, taken in seconds.items() if name.contestant in PEERS}
    limit = next(taken for name, taken in seconds.items() if name.contestant == READ)
    for name, taken in seconds.items():
        yield Row(
            contestant=name.contestant,
            isa=name.isa,
            threads=threads,
            dtype=str(layer.key.dtype).removeprefix("torch."),
            n=n,
            layers=len(data.layers),
            heads=heads,
            kv_heads=kv_heads,
            head_dim=layer.key.shape[3],
            positions=layer.query.shape[2],
            rounds=options.rounds,
            source=data.source,
            real=options.real,
            epsilon=name.epsilon,
            median_ms=1e3 * float(np.median(taken)),
            ratio={peer: timing.ratio(its, taken) for peer, its in peers.items()},
            limit_ratio=timing.ratio(limit, taken),
            **_errors(name, data, sets.get(name.epsilon, []), verdicts.get(name)),
        )


def _errors(name: Name, data: Data, sets: list[Smallest], verdict: Verdict | None) -> dict[str, Any]:
    """The fields of a row that are no times."""
    fields = ("kept_over_oracle", "kept_share", "bytes_read", "tv_max", "true_tv_max", "violations")
    if verdict is not None:
        over = verdict.kept / sum(int(one.sizes.sum()) for one in sets) if sets else None
        share = verdict.kept / verdict.visible
        found = (verdict.bytes_read, verdict.tv_max, verdict.true_tv_max, verdict.violations)
        return dict(zip(fields, (over, share, *found), strict=True))
    if name.contestant == ORACLE:
        return dict(zip(fields, _of_oracle(data, sets), strict=True))
    if name.contestant == READ:
        return dict(zip(fields, (None, None, data.nbytes, None, None, 0), strict=True))
    return dict(zip(fields, (None, 1.0, data.nbytes, None, 0.0, 0), strict=True))


def _of_oracle(data: Data, sets: list[Smallest]) -> tuple[float, float, int, None, float, int]:
    """At the timed position: each query head gives weight to the whole union of its group."""
    layer = data.layers[0]
    heads, n = layer.query.shape[1], layer.key.shape[2]
    group = heads // layer.key.shape[1]
    width = (layer.key.shape[3] + layer.value.shape[3]) * layer.key.element_size()
    union = sum(len(keys) for one in sets for keys in one.union)
    smallest = sum(int(one.sizes[:, -1].sum()) for one in sets)
    missed = max(float(one.tv.max()) for one in sets)
    return union * group / smallest, union * group / (n * heads * len(data.layers)), union * width, None, missed, 0
