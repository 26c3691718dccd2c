"""`impl="torch"`: the same answers block by block, on any device with float64, differentiable through the kept keys.

Queries are taken a few at a time, so that their logits against all keys fit in `BLOCK_LOGITS`; keys are read in blocks
of `BLOCK_KEYS`, each block becomes a `Partial`, and the merge law puts them together.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tailbound.engine.check import Call
from tailbound.engine.cut import shift_of, smallest_head
from tailbound.engine.finish import Answer, ValueBall, seal, spoil
from tailbound.engine.logits import Keys, Rows, exact_logits, grouped_slice, take_keys, take_rows, visibility
from tailbound.engine.nonfinite import dense_rows
from tailbound.engine.partial import Partial, from_keys, from_sink, merge, merge_all
from tailbound.engine.values import value_ball

BLOCK_LOGITS: int = 2**22
"""Logits held at once: 32 MiB of float64, and a few times that while they are sorted."""

BLOCK_KEYS: int = 4096
"""Keys widened at once for each KV head."""


def attend(call: Call, return_kept: bool) -> Answer:
    """Answer a call whose tensors have at least one row and one key."""
    spans = [slice(i, min(i + BLOCK_KEYS, call.key.shape[2])) for i in range(0, call.key.shape[2], BLOCK_KEYS)]
    by_batch = []
    for batch in _batches(call):
        keys = [take_keys(call.key, batch, span) for span in spans]
        values = [take_keys(call.value, batch, span) for span in spans]
        ball = value_ball(values)
        blocks = list(zip(spans, keys, values, strict=True))
        parts = [_rows(call, take_rows(call, batch, part), blocks, ball, return_kept) for part in _queries(call, batch)]
        by_batch.append(_join(parts, dim=3))
    return _join(by_batch, dim=0)


def _rows(call: Call, rows: Rows, blocks: list[tuple[slice, Keys, Keys]], ball: ValueBall, return_kept: bool) -> Answer:
    logits, error, visible, usable = (
        torch.cat(parts, -1) for parts in zip(*(_look(call, rows, *block) for block in blocks), strict=True)
    )
    nonfinite = ~rows.finite | (visible & ~usable).any(-1)
    sink = _sink(call, rows)
    shift = shift_of(logits, visible, sink)
    head = smallest_head(logits, error, visible, shift, sink, call.epsilon)

    def state(span: slice, values: Keys) -> Partial:
        within = (..., span)
        return from_keys(
            logits[within], error[within], values.vectors[:, :, None], head[within], visible[within], shift
        )

    whole = merge_all([state(span, values) for span, _, values in blocks])
    if sink is not None:
        whole = merge(whole, from_sink(sink, whole.weighted.shape[-1]))
    kept = head if return_kept else None
    answer = seal(whole, visible.sum(-1), ball, call.query.dtype, sink is not None, nonfinite, kept)
    return spoil(answer, dense_rows(call, rows, visible), visible) if bool(nonfinite.any()) else answer


def _look(call: Call, rows: Rows, span: slice, keys: Keys, values: Keys) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, their error, visibility, and whether all that goes into a logit is finite, for one block of keys."""
    logits, error = exact_logits(call, rows, keys, span)
    seen = visibility(call, rows, span)
    usable = (keys.finite & values.finite)[:, :, None, None] & logits.isfinite()
    bias = grouped_slice(call.bias, call, rows, span)
    if bias is not None:
        usable = usable & ~(bias.isnan() | bias.isposinf())
    return logits, error, torch.ones_like(usable) if seen is None else seen, usable


def _sink(call: Call, rows: Rows) -> Tensor | None:
    if call.sink is None:
        return None
    part = call.sink[rows.batch, :, rows.start : rows.start + rows.query.shape[3]]
    return part.unflatten(1, (call.key.shape[1], call.group))


def _batches(call: Call) -> Iterator[slice]:
    """Batch entries that are worked on together: as many as fit with one query each, at least one."""
    each = max(1, call.query.shape[1] * call.key.shape[2])
    step = max(1, BLOCK_LOGITS // each)
    return (slice(i, min(i + step, call.query.shape[0])) for i in range(0, call.query.shape[0], step))


def _queries(call: Call, batch: slice) -> Iterator[slice]:
    each = max(1, (batch.stop - batch.start) * call.query.shape[1] * call.key.shape[2])
    step = max(1, BLOCK_LOGITS // each)
    return (slice(i, min(i + step, call.query.shape[2])) for i in range(0, call.query.shape[2], step))


def _join(parts: list[Answer], dim: int) -> Answer:
    if len(parts) == 1:
        return parts[0]
    kept = [part.kept for part in parts if part.kept is not None]
    columns = zip(*(part[:5] for part in parts), strict=True)
    return Answer(*(torch.cat(column, dim) for column in columns), kept=torch.cat(kept, dim) if kept else None)
