"""The judge: what a certificate should have said, recomputed in float64 from the tensors alone.

This module imports nothing from the engine (import-linter enforces it). Shapes: query (B, Hq, Tq, D), key
(B, Hkv, Tk, D), value (B, Hkv, Tk, Dv), kept bool (B, Hq, Tq, Tk), mask None or bool or additive, broadcastable to it.
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
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, scale: float, kept: Tensor, output: Tensor
) -> Truth:
    """Recompute total variation and output error of an attention answer."""
    groups = query.shape[1] // key.shape[1]
    keys = key.double().repeat_interleave(groups, dim=1)
    values = value.double().repeat_interleave(groups, dim=1)
    logits = torch.einsum("bhqd,bhkd->bhqk", query.double(), keys) * scale
    if mask is not None and mask.dtype is torch.bool:
        logits = logits.masked_fill(~mask, -torch.inf)
    elif mask is not None:
        hidden = mask <= torch.finfo(mask.dtype).min
        logits = (logits + mask.double()).masked_fill(hidden, -torch.inf)
    weights = (logits - logits.amax(-1, keepdim=True)).exp()
    total = weights.sum(-1)
    left_out = weights.masked_fill(kept, 0.0).sum(-1)
    exact = torch.einsum("bhqk,bhkv->bhqv", weights, values) / total[..., None]
    return Truth(left_out / total, (output.double() - exact).norm(dim=-1))


def next_token_tv(a: Tensor, b: Tensor) -> Tensor:
    """Total variation distance of two next-token distributions given by logits (..., vocabulary)."""
    return 0.5 * (a.double().softmax(-1) - b.double().softmax(-1)).abs().sum(-1)
