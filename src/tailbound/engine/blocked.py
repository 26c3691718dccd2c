"""`impl="torch"`: the same answers block by block, on any device with float64, differentiable through the kept keys.

Queries are taken a few at a time, so that their logits against all keys fit in `BLOCK_LOGITS`; keys and values are
widened in blocks of `BLOCK_WIDENED`, each block becomes a `Partial`, and the merge law puts them together.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tailbound.engine.check import Call
from tailbound.engine.cut import shift_of, smallest_head
from tailbound.engine.finish import Answer, ValueBall, join, seal, spoil
from tailbound.engine.logits import Rows, exact_logits, finite, grouped_slice, take_keys, take_rows, visibility
from tailbound.engine.nonfinite import dense_rows
from tailbound.engine.partial import Partial, from_keys, from_sink, merge, merge_all
from tailbound.engine.values import value_ball

BLOCK_LOGITS: int = 2**22
"""Logits held at once: 32 MiB of float64, and a few times that while they are sorted."""

BLOCK_WIDENED: int = 2**17
"""Components of keys or values widened at once: 1 MiB of float64, which stays in a core's second-level cache."""


def attend(call: Call, return_kept: bool) -> Answer:
    """Answer a call whose tensors have at least one row and one key."""
    by_batch = []
    for batch in _batches(call):
        ball = value_ball(lambda batch=batch: (take_keys(call.value, batch, span) for span in _spans(call)))
        parts = [_rows(call, take_rows(call, batch, part), ball, return_kept) for part in _queries(call, batch)]
        by_batch.append(join(parts, dim=3))
    return join(by_batch, dim=0)


def _rows(call: Call, rows: Rows, ball: ValueBall, return_kept: bool) -> Answer:
    looks = (_look(call, rows, span) for span in _spans(call))
    logits, error, visible, usable = (torch.cat(parts, -1) for parts in zip(*looks, strict=True))
    nonfinite = ~rows.finite | (visible & ~usable).any(-1)
    sink = _sink(call, rows)
    shift = shift_of(logits, visible, sink)
    head = smallest_head(logits, error, visible, shift, sink, call.budget)

    def state(span: slice) -> Partial:
        within = (..., span)
        values = take_keys(call.value, rows.batch, span).vectors[:, :, None]
        return from_keys(logits[within], error[within], values, head[within], visible[within], shift)

    whole = merge_all([state(span) for span in _spans(call)])
    if sink is not None:
        whole = merge(whole, from_sink(sink, whole.weighted.shape[-1]))
    kept = head if return_kept else None
    answer = seal(whole, visible.sum(-1), ball, call.query.dtype, sink is not None, nonfinite, kept)
    return spoil(answer, dense_rows(call, rows, visible), visible) if bool(nonfinite.any()) else answer


def _look(call: Call, rows: Rows, span: slice) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logits, their error, visibility, and whether all that a key brings to a row is finite, for one block of keys."""
    keys = take_keys(call.key, rows.batch, span)
    logits, error = exact_logits(call, rows, keys, span)
    seen = visibility(call, rows, span)
    usable = (keys.finite & finite(call.value, rows.batch, span))[:, :, None, None] & logits.isfinite()
    bias = grouped_slice(call.bias, call, rows, span)
    if bias is not None:
        usable = usable & ~(bias.isnan() | bias.isposinf())
    return logits, error, torch.ones_like(usable) if seen is None else seen, usable


def _spans(call: Call) -> list[slice]:
    """Blocks of keys."""
    batch, kv_heads, keys, width = call.key.shape
    step = max(1, BLOCK_WIDENED // (batch * kv_heads * max(width, call.value.shape[3])))
    return [slice(i, min(i + step, keys)) for i in range(0, keys, step)]


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
