"""The judge: what a certificate should have said, recomputed in float64 from the tensors alone.

This module imports nothing from the engine (import-linter enforces it). Shapes: query (B, Hq, Tq, D), key
(B, Hkv, Tk, D), value (B, Hkv, Tk, Dv), kept bool (B, Hq, Tq, Tk), mask None or bool or additive, broadcastable to it,
sink a logit for each query head, (Hq,), that takes weight and gives no value.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Truth(NamedTuple):
    """float64 (B, Hq, Tq): the mass of the visible keys that were not kept, and |output - exact attention|."""

    tv: Tensor
    output_error: Tensor


@torch.no_grad()
def judge(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scale: float,
    kept: Tensor,
    output: Tensor,
    softcap: float | None = None,
    sink: Tensor | None = None,
) -> Truth:
    """Recompute total variation and output error of an attention answer, one KV head at a time."""
    batch, heads, queries, _ = query.shape
    group = heads // key.shape[1]
    seen = None if mask is None else mask.expand(kept.shape)
    tv = torch.empty(batch, heads, queries, dtype=torch.float64)
    error = torch.empty_like(tv)
    for b in range(batch):
        for h in range(key.shape[1]):
            part = (b, slice(h * group, (h + 1) * group))
            logits = query[part].double() @ key[b, h].double().T * scale
            if softcap is not None:
                logits = softcap * (logits / softcap).tanh()
            if seen is not None:
                logits = _masked(logits, seen[part])
            top = logits.amax(-1, keepdim=True)
            if sink is not None:
                top = top.maximum(sink[part[1]].double()[:, None, None])
            weights = (logits - top).exp()
            total = weights.sum(-1)
            if sink is not None:
                total = total + (sink[part[1]].double()[:, None] - top[..., 0]).exp()
            tv[part] = weights.masked_fill(kept[part], 0.0).sum(-1) / total
            exact = weights @ value[b, h].double() / total[..., None]
            error[part] = (output[part].double() - exact).norm(dim=-1)
    return Truth(tv, error)


def _masked(logits: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype is torch.bool:
        return logits.masked_fill(~mask, -torch.inf)
    return (logits + mask.double()).masked_fill(mask <= torch.finfo(mask.dtype).min, -torch.inf)


def next_token_tv(a: Tensor, b: Tensor) -> Tensor:
    """Total variation distance of two next-token distributions given by logits (..., vocabulary)."""
    return 0.5 * (a.double().softmax(-1) - b.double().softmax(-1)).abs().sum(-1)
