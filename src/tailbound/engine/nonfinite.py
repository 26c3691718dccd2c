"""Rows with a NaN or an infinity in something that they see: dense attention as SDPA defines it, and no certificate."""

from __future__ import annotations

import torch
from torch import Tensor

from tailbound.engine.check import Call
from tailbound.engine.logits import Rows, grouped_slice


def dense_rows(call: Call, rows: Rows, visible: Tensor) -> Tensor:
    """Softmax attention over the visible keys with the raw inputs, NaN and infinities included.

    What a row does not see cannot reach it: hidden values never enter the sum, not even times 0.

    Args:
        visible: bool (B, Hkv, G, T, Tk).

    Returns:
        float64 (B, Hkv, G, T, Dv).
    """
    span = slice(0, call.key.shape[2])
    queries = slice(rows.start, rows.start + rows.query.shape[3])
    query = call.query[rows.batch, :, queries].unflatten(1, (call.key.shape[1], call.group)).to(torch.float64)
    key = call.key[rows.batch, :, None].to(torch.float64)
    value = call.value[rows.batch, :, None].to(torch.float64)
    logits = query @ key.transpose(-1, -2) * call.scale
    if call.softcap is not None:
        logits = call.softcap * torch.tanh(logits / call.softcap)
    bias = grouped_slice(call.bias, call, rows, span)
    if bias is not None:
        logits = logits + bias.to(torch.float64)
    logits = torch.where(visible, logits, -torch.inf)
    if call.sink is not None:
        sink = call.sink[rows.batch, :, queries].unflatten(1, (call.key.shape[1], call.group))
        logits = torch.cat([logits, sink[..., None]], -1)
    weights = torch.softmax(logits, -1)[..., : key.shape[-2]]
    return _weigh(weights, visible, value)


def _weigh(weights: Tensor, visible: Tensor, value: Tensor) -> Tensor:
    """`sum over visible keys of weight * value` with IEEE rules for infinite and NaN values."""
    total = weights @ torch.where(value.isfinite(), value, 0.0)

    def meets(who: Tensor, what: Tensor) -> Tensor:
        return who.to(torch.float64) @ what.to(torch.float64) > 0

    plus, minus = meets(weights > 0, value.isposinf()), meets(weights > 0, value.isneginf())
    invalid = meets(visible, value.isnan()) | meets(visible & (weights == 0), value.isinf()) | (plus & minus)
    total = torch.where(plus, torch.inf, torch.where(minus, -torch.inf, total))
    return torch.where(invalid | weights.isnan().any(-1, keepdim=True), torch.nan, total)
