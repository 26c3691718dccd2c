"""What is measured of each row: one query of one head in one layer. A table of columns for each layer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

import tailbound
from tailbound import theory
from tailbound.bounds import Ball, Box, CellBound, Sketch, run_cells
from tailbound.lab import needs
from tailbound.lab.audit.policies import SINKS
from tailbound.lab.audit.reading import logits_of
from tailbound.lab.listening import Heard
from tailbound.lab.rows import stack

EPSILONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2)
"""Budgets for which the keys needed are counted."""

GRID = (0.0, 0.0005, *EPSILONS, 0.4)
"""Budgets that a head can be advised."""

AT = needs.GAP_EPSILON
"""The budget of everything that is measured for one alone."""

RECENT = 64
"""Keys before a query that count as recent. Of an encoder: on either side half as many."""

CELL = 16
CLOSELY = 2
"""Positions of a layer at which bounds are held against the truth: they cost more than all the rest."""

LEAST = needs.K + 2
"""Keys that a row must see: the paper's fixed head and something to leave out."""


def measure(heard: Heard, positions: Sequence[int], gradients: Tensor, encoder: bool) -> dict[str, np.ndarray]:
    """Every row of a layer.

    Args:
        heard: of a decoder the calls of the positions alone, of an encoder of all.
        positions: in the text.
        gradients: (draws, Hq, T, Dv), of `sensitivity`, for the queries that were heard.
    """
    rows = list(positions) if encoder else list(range(heard.query.shape[2]))
    call = _rows(heard, rows)
    group = call.query.shape[1] // call.key.shape[1]
    logits = logits_of(call, call.query.double(), call.key.double().repeat_interleave(group, 1))[0]
    whole = _index(call) | _damage(call, logits, gradients[:, :, rows])
    bounds = _bounds(call)
    close = set(np.linspace(0, len(rows) - 1, min(CLOSELY, len(rows))).astype(int).tolist())
    pieces = []
    for number, position in enumerate(positions):
        here = logits[0, number].isneginf().logical_not().nonzero()[:, 0]
        if len(here) < LEAST:
            continue
        seen = logits[:, number, here]
        columns = needs.measure(seen, GRID[1:])
        weights = seen.softmax(-1)
        columns |= _shape(seen, weights)
        columns |= _places(weights, here, position, encoder)
        columns |= {name: column[number] for name, column in whole.items()}
        columns |= _closely(call, number, seen, here, bounds) if number in close else {}
        heads = len(seen)
        placed = {"layer": heard.layer, "position": position, "visible": len(here)}
        pieces.append(
            {"head": np.arange(heads, dtype=np.int32)}
            | {name: np.full(heads, value, np.int32) for name, value in placed.items()}
            | columns
        )
    return stack(pieces)


def cost_name(epsilon: float) -> str:
    """The column of the damage that a budget does."""
    return f"damage_{epsilon:g}"


def _rows(heard: Heard, rows: list[int]) -> Heard:
    """Some queries of the first sequence of a call."""
    mask = heard.seen()
    mask = None if mask is None else mask[:1, :, rows]
    return heard._replace(
        query=heard.query[:1, :, rows], key=heard.key[:1], value=heard.value[:1], mask=mask, causal=False
    )


def _shape(logits: Tensor, weights: Tensor) -> dict[str, np.ndarray]:
    """Tail shape: skewness and excess kurtosis of the logits, and how many keys as heavy as one another would do."""
    away = logits - logits.mean(-1, keepdim=True)
    spread = away.square().mean(-1).sqrt().clamp(min=1e-300)
    scaled = away / spread[:, None]
    entropy = -torch.special.xlogy(weights, weights).sum(-1)
    found = {
        "skewness": scaled.pow(3).mean(-1),
        "kurtosis": scaled.pow(4).mean(-1) - 3.0,
        "effective_keys": entropy.exp(),
        "heaviest": weights.amax(-1),
    }
    return {name: column.numpy() for name, column in found.items()}


def _places(weights: Tensor, here: Tensor, position: int, encoder: bool) -> dict[str, np.ndarray]:
    """Mass on the first keys of the text, and on those near the query."""
    near = (here - position).abs() <= RECENT // 2 if encoder else here > position - RECENT
    return {
        "sink_mass": weights[:, here < SINKS].sum(-1).numpy(),
        "recent_mass": weights[:, near & (here >= SINKS)].sum(-1).numpy(),
    }


def _index(call: Heard) -> dict[str, np.ndarray]:
    """What the product keeps at `AT`, and the largest errors that it admits to: (T, Hq)."""
    answer = tailbound.KVIndex(call.key, call.value).attend(
        call.query, epsilon=AT, scale=call.scale, attn_mask=call.mask, softcap=call.softcap, sink=call.sink
    )
    found = answer.certificate
    named = {"certified_k": found.kept, "certified_tv": found.tv, "certified_error": found.output_error}
    return {name: column[0].T.numpy() for name, column in named.items()}


def _damage(call: Heard, logits: Tensor, gradients: Tensor) -> dict[str, np.ndarray]:
    """What leaving out all but k_eps keys does, for every budget: the mean of 1/2 (g . delta)^2 over gradients g.

    Args:
        logits: float64 (Hq, T, n). gradients: (draws, Hq, T, Dv).

    Returns:
        columns (T, Hq).
    """
    ranked, value = theory.ranking(logits), call.value[0].double()
    top = logits.amax(-1, keepdim=True)
    weights = (logits - top).exp()
    exact = _average(weights, value)
    share: Tensor | float = 1.0  # of the weight, that no sink takes
    if call.sink is not None:
        sink = (call.sink.double()[:, None] - top[..., 0]).exp()
        share = 1.0 - sink / (weights.sum(-1) + sink)
    columns = {}
    for epsilon in GRID:
        count = (ranked.tails > epsilon).sum(-1, keepdim=True).clamp(min=1)
        least = ranked.logits.gather(-1, count - 1)
        delta = _average(weights.masked_fill(logits < least, 0.0), value) - exact
        damage = 0.5 * ((gradients.double() * delta).sum(-1) * share).square().mean(0)
        columns[cost_name(epsilon)] = damage.T.numpy()
    return columns


def _average(weights: Tensor, value: Tensor) -> Tensor:
    """(Hq, T, Dv): weights (Hq, T, n), values (Hkv, n, Dv)."""
    heads, queries, keys = weights.shape
    found = weights.view(len(value), -1, keys) @ value
    return found.view(heads, queries, -1) / weights.sum(-1, keepdim=True)


def _bounds(call: Heard) -> list[dict[str, CellBound]]:
    """For each KV head a ball and a box of every 16 keys, and the sketch."""
    cells = run_cells(call.key.shape[2], CELL)
    return [{"ball": Ball(keys, cells), "box": Box(keys, cells), "interval": Sketch(keys)} for keys in call.key[0]]


def _closely(
    call: Heard, number: int, logits: Tensor, here: Tensor, bounds: list[dict[str, CellBound]]
) -> dict[str, np.ndarray]:
    """Bounds on the tail of the k_eps heaviest keys at `AT` and on the output's error, and the truth: of one query."""
    group = len(logits) // len(bounds)
    lines: list[dict[str, float]] = []
    for head, row in enumerate(logits):
        k = int(theory.smallest_k(row, AT))
        if k == len(row):
            lines.append({})
            continue
        kept = theory.top_k(row, k)
        line = {
            "true_tail": float(theory.tail_mass(row, kept)),
            "gap_bound": float(theory.best_gap_bound(row, k).bound),
        }
        sure = row.masked_fill(~kept, -torch.inf)
        for name, bound in bounds[head // group].items():
            upper = _capped(bound.interval(call.query[0, head, number], call.scale).upper, call.softcap)
            upper = torch.where(kept, row, torch.maximum(upper[bound.cells][here].to(row), sure))
            line[f"{name}_bound"] = float(theory.block_mass_bound(sure, upper, kept))
        lines.append(line | _outputs(row, call.value[0, head // group, here].double(), kept))
    names = dict.fromkeys(name for line in lines for name in line)
    return {name: np.array([line.get(name, np.nan) for line in lines]) for name in names}


def _capped(logits: Tensor, softcap: float | None) -> Tensor:
    return logits if softcap is None else softcap * (logits / softcap).tanh()


def _outputs(row: Tensor, values: Tensor, kept: Tensor) -> dict[str, float]:
    """The three bounds of Thm 5.6, the error they bound, and how far the mean values of head and tail lie apart."""
    found = theory.means(row, values, kept)
    return {
        "value_distance": float((found.tail - found.head).norm()),
        "true_error": float(theory.output_difference(row, values, kept).norm()),
        "norm_bound": float(theory.norm_bound(row, values, kept)),
        "diameter_bound": float(theory.diameter_bound(row, values, kept)),
        "variance_bound": float(theory.variance_bound(row, values, kept)),
    }
