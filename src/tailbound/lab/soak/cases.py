"""One case: tensors, how an index came by them, and who is asked what. A seed and a number give it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tailbound.engine import native
from tailbound.lab.captures import Layer
from tailbound.lab.soak.kinds import APART, BEGINNING, COMMON, KINDS, Drawn

EPSILONS = {0.0: 2, 1e-6: 4, 1e-3: 8, 0.01: 18, 0.05: 22, 0.1: 20, 0.3: 14, 0.6: 8, 0.9: 4}
"""Budgets, and of 100 cases how many ask for them."""

WIDTHS = (1, 2, 3, 8, 16, 16, 17, 32, 32, 32, 64, 64, 64, 80, 128, 130)
INDEX_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
CAPTURED = "captured"
"""The kind of a case whose tensors are a model's."""

WHOLE = ("reference", "torch")
"""Implementations of `tailbound.attention`; an index is asked of "index/torch" or at a level of kernels."""

LONG = 4096
"""Keys from which a row counts as long."""

ROWS_TIMES_KEYS = 1 << 19
"""Of short cases, at most: what an oracle holds at once."""


@dataclass(frozen=True)
class Case:
    """What is asked of whom.

    Attributes:
        seed, number: what drew it.
        kind: of `kinds.KINDS`, or `CAPTURED`.
        who: "reference", "torch", "index/torch" or "index/<level>".
        threads: CPU threads while it answers.
        query: (B, Hq, T, D). key: (B, Hkv, N, D). value: (B, Hkv, N, Dv), in the order in which they are written.
        steps: what happens to an index: ("write", m) takes the next m keys, ("crop", m), ("drop_front", m).
        epsilon: one, or a tensor (Hq,).
        options: the other arguments of `attend`.
    """

    seed: int
    number: int
    kind: str
    who: str
    threads: int
    query: Tensor
    key: Tensor
    value: Tensor
    steps: tuple[tuple[str, int], ...]
    epsilon: float | Tensor
    options: dict[str, Any]

    def held(self) -> Tensor:
        """Which of the N keys, int64 (n,), are held in the end."""
        found, written = torch.empty(0, dtype=torch.int64), 0
        for step, count in self.steps:
            if step == "write":
                found = torch.cat([found, torch.arange(written, written + count)])
                written += count
            else:
                found = found[:count] if step == "crop" else found[count:]
        return found


def draw(seed: int, number: int, captured: Sequence[Layer] = ()) -> Case:
    """The case of this number. `captured` layers, if there are any, serve every third one."""
    rng = np.random.default_rng([seed, number])
    gen = torch.Generator().manual_seed(int(rng.integers(2**62)))
    who = _whom(rng)
    if captured and number % 3 == 0 and who not in WHOLE:
        kind, tensors = CAPTURED, _from_capture(rng, captured)
    else:
        kind, tensors = _synthetic(rng, gen, who)
    dtype = _dtype(rng, who, kind)
    query, key, value = (tensor.to(dtype) for tensor in tensors)
    steps = (("write", key.shape[2]),) if who in WHOLE else _history(rng, key.shape[2], kind)
    heads = query.shape[1]
    odds = np.array(list(EPSILONS.values())) / 100
    budgets = rng.choice(list(EPSILONS), heads, p=odds)
    epsilon: float | Tensor = torch.from_numpy(budgets) if rng.random() < 0.1 else float(budgets[0])
    case = Case(seed, number, kind, who, 1 + int(rng.random() < 0.04), query, key, value, steps, epsilon, {})
    return replace(case, options=_options(rng, gen, case, len(case.held())))


def _whom(rng: np.random.Generator) -> str:
    levels = [level for level in native.levels().built if level in native.levels().cpu]
    lot = rng.random()
    if lot < 0.04:
        return str(rng.choice(WHOLE))
    if lot < 0.08 or not levels:
        return "index/torch"
    return "index/" + (levels[-1] if lot < 0.85 else str(rng.choice(levels)))


def _dtype(rng: np.random.Generator, who: str, kind: str) -> torch.dtype:
    dtypes = (*INDEX_DTYPES, torch.float64) if who in WHOLE else INDEX_DTYPES
    if kind in ("powers", "denormal"):
        dtypes = dtypes[:2]  # float16 reaches neither
    return dtypes[int(rng.integers(len(dtypes)))]


def _synthetic(rng: np.random.Generator, gen: torch.Generator, who: str) -> tuple[str, Drawn]:
    names = list(KINDS)
    odds = np.array([COMMON] + [1.0] * (len(names) - 1))
    kind = str(rng.choice(names, p=odds / odds.sum()))
    batch, kv_heads, group = int(rng.choice([1, 1, 1, 2])), int(rng.integers(1, 4)), int(rng.choice([1, 2, 3, 4, 8]))
    width, value_width = int(rng.choice(WIDTHS)), int(rng.choice(WIDTHS))
    n, queries = _lengths(rng, batch * kv_heads * group, who)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=gen).double()  # a third faster than drawing in float64

    drawn = Drawn(
        normal(batch, kv_heads * group, queries, width),
        normal(batch, kv_heads, n, width),
        normal(batch, kv_heads, n, value_width),
    )
    return kind, KINDS[kind](drawn, gen)


def _lengths(rng: np.random.Generator, heads: int, who: str) -> tuple[int, int]:
    """Keys and queries. Those who weigh every key in float64 get few keys: the oracle needs digits for their rows."""
    if who in (*WHOLE, "index/torch"):
        return int(rng.integers(1, 80)), int(rng.choice([1, 2, 5]))
    lot, slow = rng.random(), who == "index/scalar"  # it would take half of the time
    if lot < 0.045:
        return int(rng.integers(LONG, 2 * LONG)), max(1, (6 if slow else 96) // heads)
    n = int(rng.integers(1, 256) if lot < 0.09 else rng.integers(256, 600) if lot < 0.93 else rng.integers(700, 3000))
    queries = int(rng.choice([1, 1, 16, 33, 64, 96]))
    return n, max(1, min(queries, (ROWS_TIMES_KEYS >> (4 if slow else 0)) // (n * heads)))


def _from_capture(rng: np.random.Generator, layers: Sequence[Layer]) -> Drawn:
    """The last queries of a layer on a run of its keys."""
    query, key, value, _ = layers[int(rng.integers(len(layers)))]
    context, last = key.shape[2], query.shape[2]
    n = int(rng.integers(min(256, context), context + 1))
    first = int(rng.integers(context - n + 1))
    queries = int(rng.integers(1, min(last, 32) + 1))
    part = slice(first, first + n)
    return Drawn(query[:, :, last - queries :].double(), key[:, :, part].double(), value[:, :, part].double())


def _history(rng: np.random.Generator, n: int, kind: str) -> tuple[tuple[str, int], ...]:
    """Ways to write n keys. What is cropped or dropped does not come back: fewer are held in the end."""
    if kind == APART and n > BEGINNING:
        return ("write", BEGINNING), ("write", n - BEGINNING)
    lot = rng.random()
    if lot < 0.4 or n < 8:
        return (("write", n),)
    cuts = np.sort(rng.integers(0, n + 1, int(rng.integers(1, 5))))
    parts = [int(part) for part in np.diff([0, *cuts, n])]
    steps: list[tuple[str, int]] = [("write", part) for part in parts]
    if lot < 0.7:
        steps[1:] = [("write", 1)] * min(parts[1], 40) + [("write", max(parts[1] - 40, 0)), *steps[2:]]
    elif lot < 0.85:
        steps.insert(1, ("crop", int(rng.integers(0, parts[0] + 1))))
    else:
        steps.append(("drop_front", int(rng.integers(0, n // 2))))
    return tuple(steps)


def _options(rng: np.random.Generator, gen: torch.Generator, case: Case, n: int) -> dict[str, Any]:
    batch, heads, queries, _ = case.query.shape
    options: dict[str, Any] = {}
    lot = rng.random()
    if lot < 0.2 and queries <= n and case.who not in WHOLE:  # `attention` counts from the other end
        options["is_causal"] = True
    elif lot < 0.32:
        shape = (batch, heads, queries, n) if lot < 0.26 else (queries, n)
        options["attn_mask"] = torch.rand(shape, generator=gen) < rng.choice([0.02, 0.5, 0.95])
    elif lot < 0.36 and case.who in (*WHOLE, "index/torch"):
        options["attn_mask"] = 3.0 * torch.randn(heads, 1, n, generator=gen)
    if rng.random() < 0.1:
        options["softcap"] = float(rng.choice([2.0, 30.0, 50.0]))
    if rng.random() < (0.5 if case.kind == APART else 0.1):
        options["sink"] = 4.0 * torch.randn(heads, generator=gen)
    if rng.random() < 0.1 and case.kind not in ("powers", "denormal"):
        options["scale"] = float(rng.choice([1.0, 0.0, -0.7, 0.1]))
    return options
