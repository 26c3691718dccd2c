"""The truth about an answer, from the tensors alone, in three steps: float64, a wider float, 60 digits.

Each of the first two says what it may be off by; a row that a claim passes by less than that goes one step further.
This module imports nothing from the engine (import-linter enforces it).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import mpmath
import numpy as np
import torch
from torch import Tensor

UNIT = 2.0**-53
DIGITS = 60


class Call(NamedTuple):
    """What was asked and answered.

    Attributes:
        query: (B, Hq, T, D). key: (B, Hkv, n, D). value: (B, Hkv, n, Dv).
        visible: bool (B, Hq, T, n).
        bias: None, or added to the logits, (B, Hq, T, n).
        sink: None, or (Hq,): a logit that takes weight and gives no value.
        kept: bool (B, Hq, T, n). output: (B, Hq, T, Dv).
    """

    query: Tensor
    key: Tensor
    value: Tensor
    visible: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    sink: Tensor | None
    kept: Tensor
    output: Tensor


class Truth(NamedTuple):
    """Float64 (B, Hq, T) each; rows that see nothing, or nothing finite, mean nothing.

    Attributes:
        tv: softmax mass of the visible keys that were not kept. away: |output - exact attention|.
        tv_error, away_error: what they may be off by.
    """

    tv: Tensor
    away: Tensor
    tv_error: Tensor
    away_error: Tensor


def finite(call: Call) -> Tensor:
    """Bool (B, Hq, T): whether the query, and every key and value that the row sees, is."""
    group = call.query.shape[1] // call.key.shape[1]
    usable = (call.key.isfinite().all(-1) & call.value.isfinite().all(-1)).repeat_interleave(group, 1)
    return call.query.isfinite().all(-1) & ~(call.visible & ~usable[:, :, None]).any(-1)


@torch.no_grad()
def in_float64(call: Call) -> Truth:
    """All rows at once. Inputs are widened exactly; sums of m terms are granted m roundings, in any order."""
    query, key, value = (tensor.double().nan_to_num(0.0, 0.0, 0.0) for tensor in call[:3])
    batch, heads, queries, width = query.shape
    kv_heads, n = key.shape[1:3]
    grouped = query.reshape(batch, kv_heads, -1, width)
    logits = (grouped @ key.transpose(2, 3)).view(batch, heads, queries, n) * call.scale
    longest = key.norm(dim=-1).amax(-1).repeat_interleave(heads // kv_heads, 1)[..., None]
    error = (width + 4) * UNIT * 1.01 * abs(call.scale) * query.norm(dim=-1) * longest
    if call.softcap is not None:
        logits = call.softcap * (logits / call.softcap).tanh()
        error = error + 16 * UNIT * call.softcap
    if call.bias is not None:
        logits = logits + call.bias.double()
        error = error + 2 * UNIT * logits.masked_fill(~call.visible, 0.0).abs().amax(-1)
    logits.masked_fill_(~call.visible, -torch.inf)
    top = logits.amax(-1)
    if call.sink is not None:
        top = top.maximum(call.sink.double()[:, None])
    top = top.nan_to_num(neginf=0.0)
    weights = logits.sub_(top[..., None]).exp_()
    total = weights.sum(-1)
    if call.sink is not None:
        total = total + (call.sink.double()[:, None] - top).exp()
    total = total.clamp_min(torch.finfo(torch.float64).tiny)
    sums = (weights.view(batch, kv_heads, -1, n) @ value).view(batch, heads, queries, -1)
    exact = sums / total[..., None]
    tail = weights.masked_fill_(call.kept, 0.0).sum(-1) / total

    # A weight moves by its logit's error, twice in a ratio; its distance from the top, at most 745, rounds; so do exp
    # and the sums.
    relative = (2 * error).expm1() + (2 * n + 2048) * UNIT
    largest = value.norm(dim=-1).amax(-1).repeat_interleave(heads // kv_heads, 1)[..., None]
    output = call.output.double()
    away = (output - exact).norm(dim=-1)
    sizes = output.norm(dim=-1) + exact.norm(dim=-1)
    away_error = 2 * largest * relative + (value.shape[3] + 8) * UNIT * sizes + 2.0**-1022
    left_out = (call.visible & ~call.kept).any(-1)  # where none is, the tail is nothing, without any rounding
    return Truth(tail, away, torch.where(left_out, tail * relative + n * 2.0**-1022, 0.0), away_error)


def in_longdouble(call: Call, row: tuple[int, int, int]) -> tuple[float, float, float, float] | None:
    """One row as `Truth` has it, in numpy's widest float; None where that is float64 again."""
    unit = np.finfo(np.longdouble).eps
    if unit > 2.0**-60:
        return None
    query, keys, values, bias, sink, kept = _row(call, row)
    q, k, v = (_wide(tensor) for tensor in (query, keys, values))
    scale = np.longdouble(call.scale)
    logits = (k @ q) * scale
    sizes = abs(scale) * (abs(k) @ abs(q))
    error = (len(q) + 4) * unit * np.max(sizes)
    if call.softcap is not None:
        cap = np.longdouble(call.softcap)
        logits = cap * np.tanh(logits / cap)
        error = error + 16 * unit * cap
    if bias is not None:
        logits = logits + _wide(bias)
        error = error + 2 * unit * np.max(abs(logits))
    top = np.max(logits) if sink is None else max(np.max(logits), np.longdouble(sink))
    weights = np.exp(logits - top)
    total = weights.sum() + (0 if sink is None else np.exp(np.longdouble(sink) - top))
    exact = weights @ v / total
    tail = weights[~kept.numpy()].sum() / total
    # exp of a wide float is granted as many roundings as the distance from the top has: up to 11,400.
    relative = np.expm1(2 * error) + (2 * len(k) + 2 * 11400) * unit
    output = _wide(call.output[row])
    away = np.sqrt(np.square(output - exact).sum())
    largest = np.sqrt(np.square(v).sum(-1)).max()
    spare = 2 * largest * relative + (len(output) + 8) * unit * (abs(output).sum() + abs(exact).sum())
    return _up(tail), _up(away), _up(tail * relative), _up(spare)


def in_digits(call: Call, row: tuple[int, int, int]) -> tuple[Any, Any]:
    """(tv, away) of one row, as mpmath's numbers of `DIGITS` digits, from the definitions."""
    query, keys, values, bias, sink, kept = _row(call, row)
    with mpmath.workdps(DIGITS):
        q, scale = _digits(query), mpmath.mpf(call.scale)
        logits = [mpmath.fdot(_digits(key), q) * scale for key in keys]
        if call.softcap is not None:
            cap = mpmath.mpf(call.softcap)
            logits = [cap * mpmath.tanh(s / cap) for s in logits]
        if bias is not None:
            logits = [s + b for s, b in zip(logits, _digits(bias), strict=True)]
        extra = [] if sink is None else [mpmath.mpf(sink)]
        top = max(logits + extra)
        weights = [mpmath.exp(s - top) for s in logits]
        total = mpmath.fsum(weights + [mpmath.exp(s - top) for s in extra])
        tail = mpmath.fsum(w for w, inside in zip(weights, kept.tolist(), strict=True) if not inside) / total
        columns = [_digits(column) for column in values.T]
        gaps = [
            value - mpmath.fdot(weights, column) / total
            for value, column in zip(_digits(call.output[row]), columns, strict=True)
        ]
        return tail, mpmath.sqrt(mpmath.fsum(gap * gap for gap in gaps))


def _row(call: Call, row: tuple[int, int, int]) -> tuple[Tensor, Tensor, Tensor, Tensor | None, float | None, Tensor]:
    """Query (D,), and of the m keys that it sees: keys, values, biases; the sink; which were kept."""
    b, h, _ = row
    seen = call.visible[row]
    kv = h // (call.query.shape[1] // call.key.shape[1])
    bias = None if call.bias is None else call.bias[row][seen]
    sink = None if call.sink is None else float(call.sink[h])
    return call.query[row], call.key[b, kv][seen], call.value[b, kv][seen], bias, sink, call.kept[row][seen]


def _wide(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy().astype(np.longdouble)


def _digits(tensor: Tensor) -> list[Any]:
    """Stored numbers are exact in float64, and so are these."""
    return [mpmath.mpf(number) for number in tensor.double().tolist()]


def _up(x: np.longdouble) -> float:
    """A float64 at or above it: a truth may be rounded against the claim only here, by one part in 2^53."""
    near = float(x)
    return near if near >= x else float(np.nextafter(near, np.inf))
