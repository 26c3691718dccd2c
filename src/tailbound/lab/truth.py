"""The judge: what a certificate should have said, recomputed in float64 from the tensors alone.

This module imports nothing from the engine (import-linter enforces it). It judges whole calls of models, one KV head at
a time, and does not bound its own rounding; `soak/oracle.py` takes small calls, does, and goes on to 60 digits.

Shapes: query (B, Hq, Tq, D), key (B, Hkv, Tk, D), value (B, Hkv, Tk, Dv), kept bool (B, Hq, Tq, Tk), mask None or bool
or additive, broadcastable to it, sink a logit for each query head, (Hq,), that takes weight and gives no value.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from tailbound.result import Certificate, Status


class Truth(NamedTuple):
    """float64 (B, Hq, Tq): the mass of the visible keys that were not kept, and |output - exact attention|."""

    tv: Tensor
    output_error: Tensor

    def violated_by(self, claimed: Certificate) -> Tensor:
        """Which certificates (B, Hq, Tq) are below this. What is not a number cannot be claimed, but as NONFINITE."""
        right = (self.tv <= claimed.tv) & (self.output_error <= claimed.output_error)
        return ~right & (claimed.status != int(Status.NONFINITE))


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
    tv = torch.empty(batch, heads, queries, dtype=torch.float64)
    error = torch.empty_like(tv)
    for part, (b, h), logits in _logits(query, key, mask, scale, softcap):
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


@torch.no_grad()
def spread(query: Tensor, key: Tensor, mask: Tensor | None, scale: float, softcap: float | None = None) -> Tensor:
    """Standard deviation (B, Hq, Tq) of the logits that a row sees, in nats; NaN where it sees fewer than two."""
    found = torch.empty(query.shape[:3], dtype=torch.float64)
    for part, _, logits in _logits(query, key, mask, scale, softcap):
        shown = logits.isfinite()
        count = shown.sum(-1)
        away = logits - (logits.masked_fill(~shown, 0.0).sum(-1) / count)[..., None]
        found[part] = (away.masked_fill(~shown, 0.0).square().sum(-1) / (count - 1)).sqrt()
    return found


def _logits(
    query: Tensor, key: Tensor, mask: Tensor | None, scale: float, softcap: float | None
) -> Iterator[tuple[tuple[int, slice], tuple[int, int], Tensor]]:
    """One KV head after another: the rows that read it, itself, and their logits (group, Tq, Tk), hidden ones -inf."""
    batch, heads, queries, _ = query.shape
    group = heads // key.shape[1]
    seen = None if mask is None else mask.expand(batch, heads, queries, key.shape[2])
    for b in range(batch):
        for h in range(key.shape[1]):
            part = (b, slice(h * group, (h + 1) * group))
            logits = query[part].double() @ key[b, h].double().T * scale
            if softcap is not None:
                logits = softcap * (logits / softcap).tanh()
            yield part, (b, h), logits if seen is None else _masked(logits, seen[part])


def _masked(logits: Tensor, mask: Tensor) -> Tensor:
    if mask.dtype is torch.bool:
        return logits.masked_fill(~mask, -torch.inf)
    return (logits + mask.double()).masked_fill(mask <= torch.finfo(mask.dtype).min, -torch.inf)


def next_token_tv(a: Tensor, b: Tensor) -> Tensor:
    """Total variation distance of two next-token distributions given by logits (..., vocabulary)."""
    return 0.5 * (a.double().softmax(-1) - b.double().softmax(-1)).abs().sum(-1)
