"""From an engine's answer, grouped by KV head, to what the caller gets."""

from __future__ import annotations

import torch

from tailbound.engine.check import Call
from tailbound.engine.finish import Answer
from tailbound.result import Attention, Certificate, Stats, Status


def present(call: Call, answer: Answer, stats: Stats) -> Attention:
    """Ungroup the heads: (B, Hkv, G, ...) becomes (B, Hq, ...)."""
    rows = call.rows
    certificate = Certificate(
        tv=answer.tv.reshape(rows),
        output_error=answer.output_error.reshape(rows),
        kept=answer.kept_count.reshape(rows).to(torch.int32),
        status=answer.status.reshape(rows),
    )
    kept = None if answer.kept is None else answer.kept.reshape(*rows, call.key.shape[2])
    return Attention(answer.output.reshape(*rows, call.value.shape[3]), certificate, stats, kept)


def counts(call: Call, keys_read: int, sketch_bytes: int = 0) -> tuple[int, ...]:
    """`Stats.counts` of a call that torch served."""
    width = call.key.shape[3] + call.value.shape[3]
    bytes_read = keys_read * width * call.key.element_size() + sketch_bytes
    return 0, torch.get_num_threads(), keys_seen(call), keys_read, bytes_read


def every_key(call: Call) -> tuple[int, ...]:
    """`Stats.counts` where every key was read, seen or not."""
    return counts(call, call.key.shape[0] * call.key.shape[1] * call.key.shape[2])


def keys_seen(call: Call) -> int:
    """Keys that some query of their batch entry and group may see."""
    batch, heads, queries = call.rows
    if 0 in (batch, heads, queries, call.key.shape[2]):
        return 0
    if call.visible is None and call.bias is None and not call.is_causal:
        return call.key.shape[0] * call.key.shape[1] * call.key.shape[2]
    seen = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=call.query.device)
    if call.visible is not None:
        seen = call.visible
    if call.bias is not None:
        seen = call.bias > torch.finfo(call.bias.dtype).min
    if call.is_causal:
        order = torch.ones(queries, call.key.shape[2], dtype=torch.bool, device=call.query.device).tril(call.offset)
        seen = seen & order
    seen = seen.expand(batch, heads, queries, call.key.shape[2])
    return int(seen.unflatten(1, (call.key.shape[1], call.group)).any(3).any(2).sum())


def nothing(call: Call, return_kept: bool) -> Answer:
    """No row, or no key: zeros, no error, EMPTY."""
    query, rows = call.query, call.rows
    zero = torch.zeros(rows, dtype=torch.float64, device=query.device)
    return Answer(
        output=query.new_zeros(*rows, call.value.shape[3]),
        tv=zero,
        output_error=zero.clone(),
        kept_count=torch.zeros(rows, dtype=torch.int64, device=query.device),
        status=torch.full(rows, int(Status.EMPTY), dtype=torch.uint8, device=query.device),
        kept=torch.zeros(*rows, call.key.shape[2], dtype=torch.bool, device=query.device) if return_kept else None,
    )
