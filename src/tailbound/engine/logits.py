"""Exact logits with their error, and what each row may see. The one place where raw inputs become numbers to reason on.

The stored tensors are the truth. Everything is widened to float64 first: products of float32, bfloat16 and float16
values are then exact, and no setting of torch (TF32, reduced-precision matmul, autocast) touches float64.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from tailbound.bounds import rounding
from tailbound.engine.check import Call


class Rows(NamedTuple):
    """A block of queries, grouped by the KV head that serves them: G query heads, T queries.

    Attributes:
        query: float64 (B, Hkv, G, T, D), NaN and infinities replaced by 0.
        norm: float64 (B, Hkv, G, T), at least the norm of each query.
        finite: bool (B, Hkv, G, T).
        batch, start: the batch entries, and the first query, that the block stands for.
    """

    query: Tensor
    norm: Tensor
    finite: Tensor
    batch: slice
    start: int


class Keys(NamedTuple):
    """A block of keys or of values.

    Attributes:
        vectors: float64 (B, Hkv, n, width), NaN and infinities replaced by 0.
        norm: float64 (B, Hkv, n), at least the norm of each vector.
        finite: bool (B, Hkv, n).
    """

    vectors: Tensor
    norm: Tensor
    finite: Tensor


def take_rows(call: Call, batch: slice, queries: slice) -> Rows:
    """The queries of some batch entries and positions, widened and grouped."""
    query = call.query[batch, :, queries]
    grouped = query.unflatten(1, (call.key.shape[1], call.group)) if query.shape[1] else query[:, :, None]
    finite = grouped.isfinite().all(-1)
    wide = torch.where(finite[..., None], grouped.to(torch.float64), 0.0)
    with torch.no_grad():
        norm = rounding.norm_up(wide.detach())
    return Rows(wide, norm, finite, batch, queries.start)


def take_keys(tensor: Tensor, batch: slice, span: slice) -> Keys:
    """Some keys (or values) of some batch entries, widened."""
    usable = finite(tensor, batch, span)
    wide = torch.where(usable[..., None], tensor[batch, :, span].to(torch.float64), 0.0)
    with torch.no_grad():
        norm = rounding.norm_up(wide.detach())
    return Keys(wide, norm, usable)


def finite(tensor: Tensor, batch: slice, span: slice) -> Tensor:
    """Which keys (or values) hold no NaN and no infinity: bool (B, Hkv, n)."""
    return tensor[batch, :, span].isfinite().all(-1)


def exact_logits(call: Call, rows: Rows, keys: Keys, span: slice) -> tuple[Tensor, Tensor]:
    """Logits of every query against every key of a block, and a bound on their error.

    Returns:
        `logits` and `error`, both float64 (B, Hkv, G, T, n), with `|logits - truth| <= error`, where the truth is
        `scale * q.k`, capped by `softcap * tanh(. / softcap)` if a softcap is given, plus the bias. `error` carries no
        gradient.
    """
    width = rows.query.shape[-1]
    folded = rows.query.flatten(2, 3)
    dots = (folded @ keys.vectors.transpose(-1, -2)).unflatten(2, rows.query.shape[2:4])
    logits = dots * call.scale
    with torch.no_grad():
        error = dot_error(call.scale, width, rows.norm[..., None], keys.norm[:, :, None, None, :])
    if call.softcap is not None:
        logits, error = _cap(logits, error, call.softcap)
    bias = grouped_slice(call.bias, call, rows, span)
    if bias is not None:
        wide = bias.to(torch.float64)
        logits = logits + torch.where(wide.isfinite(), wide, 0.0)
        error = _bias_error(logits, error)
    return logits, error


def dot_error(scale: float, width: int, query_norm: Tensor, key_norm: Tensor) -> Tensor:
    """Bound on the error of `scale * q.k` in float64, by Cauchy-Schwarz on the absolute values.

    `gamma(width)` for products and sums in any order, 2 roundings for the scale, and `INPUT_FLUSH` a component for
    denormal inputs read as zero: `|q + a|.|k + b| - |q|.|k|` with `|a|, |b| <= sqrt(width) * INPUT_FLUSH`.
    """
    if scale == 0.0:
        return torch.zeros_like(query_norm * key_norm)
    flush = rounding.INPUT_FLUSH * width**0.5 * (1.0 + rounding.gamma(4))
    relative = rounding.mul_up(rounding.mul_up(query_norm, key_norm), rounding.gamma(width + 4))
    flushed = rounding.mul_up(rounding.add_up(rounding.add_up(query_norm, key_norm), flush), flush)
    return rounding.add_up(rounding.mul_up(rounding.add_up(relative, flushed), abs(scale)), 2.0**-900)


def _cap(logits: Tensor, error: Tensor, cap: float) -> tuple[Tensor, Tensor]:
    """`cap * tanh(logits / cap)`: slope at most 1, so that an error before the cap never grows."""
    with torch.no_grad():
        error = rounding.add_up(error.clamp_max(2.0 * cap), cap_error(cap))
    return cap * torch.tanh(logits / cap), error


def cap_error(cap: float) -> float:
    """Error of `cap * tanh(s / cap)` in float64.

    `|y| (1 - tanh(y)^2) < 1/2`, so the rounded division costs under half a unit of the cap; tanh and the product cost
    10 units at the most.
    """
    return 16.0 * rounding.UNIT * cap


@torch.no_grad()
def _bias_error(logits: Tensor, error: Tensor) -> Tensor:
    """The error after a bias was added: one rounding of the sum, and a bias that may have been read as zero."""
    rounded = rounding.mul_up(logits.detach().abs(), 2.0 * rounding.UNIT)
    return rounding.add_up(rounding.add_up(error, rounded), rounding.INPUT_FLUSH)


def visibility(call: Call, rows: Rows, span: slice) -> Tensor | None:
    """Which keys of a block each query may see: bool (B, Hkv, G, T, n), or None for all."""
    seen = grouped_slice(call.visible, call, rows, span)
    bias = grouped_slice(call.bias, call, rows, span)
    if bias is not None:
        seen = bias > torch.finfo(bias.dtype).min
        seen |= bias.isnan()  # not hidden: a NaN bias is an error of the row that sees it
    if call.is_causal:
        device = call.query.device
        first = rows.start + call.offset
        position = torch.arange(first, first + rows.query.shape[3], device=device)
        past = torch.arange(span.start, span.stop, device=device) <= position[:, None]
        seen = past if seen is None else seen & past
    return None if seen is None else seen.expand(*rows.query.shape[:4], span.stop - span.start)


def grouped_slice(mask: Tensor | None, call: Call, rows: Rows, span: slice) -> Tensor | None:
    """The part of a (B, Hq, Tq, Tk) mask that belongs to a block, grouped by KV head."""
    if mask is None:
        return None
    part = mask[rows.batch, :, rows.start : rows.start + rows.query.shape[3], span]
    return part.unflatten(1, (call.key.shape[1], call.group))
