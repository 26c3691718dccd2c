"""The truth, to 60 digits, from the definitions. Imports nothing from tailbound.

Inputs are tensors whose stored values are taken as exact. One row at a time: slow, short, and hard to get wrong. `fast`
is for thousands of keys: numpy's widest float, with a bound on its own rounding.
"""

from typing import NamedTuple

import mpmath
import numpy as np
import torch

mpmath.mp.dps = 60


def exact(x):
    """A stored number as an mpf. float() of any torch float is exact."""
    return mpmath.mpf(float(x))


def logit(query, key, scale, softcap=None, bias=None):
    dot = mpmath.fsum(exact(a) * exact(b) for a, b in zip(query, key, strict=True)) * mpmath.mpf(scale)
    if softcap is not None:
        dot = mpmath.mpf(softcap) * mpmath.tanh(dot / mpmath.mpf(softcap))
    return dot if bias is None else dot + exact(bias)


def row(query, keys, values, visible, kept, scale, softcap=None, bias=None, sink=None):
    """(tail mass of visible keys not kept, exact attention output) of one row. Shapes: (D,), (n, D), (n, Dv), (n,)."""
    indices = [i for i in range(len(keys)) if visible[i]]
    logits = {i: logit(query, keys[i], scale, softcap, None if bias is None else bias[i]) for i in indices}
    top = max([*logits.values(), *([] if sink is None else [exact(sink)])])
    weights = {i: mpmath.exp(s - top) for i, s in logits.items()}
    total = mpmath.fsum(weights.values())
    if sink is not None:
        total += mpmath.exp(exact(sink) - top)
    tail = mpmath.fsum(w for i, w in weights.items() if not kept[i]) / total
    output = [mpmath.fsum(w * exact(values[i][c]) for i, w in weights.items()) / total for c in range(values.shape[1])]
    return tail, output


def distance(output, truth):
    return mpmath.sqrt(mpmath.fsum((exact(a) - b) ** 2 for a, b in zip(output, truth, strict=True)))


def attention(
    query, key, value, kept, *, scale=None, visible=None, bias=None, is_causal=False, softcap=None, sink=None
):
    """Every row of a call: yields ((b, h, t), tail mass, exact output); rows that see nothing are left out."""
    batch, heads, queries, width = query.shape
    group = heads // key.shape[1]
    shape = (batch, heads, queries, key.shape[2])
    seen = torch.ones(shape, dtype=torch.bool) if visible is None else visible.expand(shape)
    if bias is not None:
        bias = bias.expand(shape)
        seen = seen & (bias > torch.finfo(bias.dtype).min)
    if is_causal:
        seen = seen & torch.ones(shape[2:], dtype=torch.bool).tril()
    for b in range(batch):
        for h in range(heads):
            for t in range(queries):
                if not seen[b, h, t].any():
                    continue
                tail, output = row(
                    query[b, h, t],
                    key[b, h // group],
                    value[b, h // group],
                    seen[b, h, t],
                    kept[b, h, t],
                    width**-0.5 if scale is None else scale,
                    softcap,
                    None if bias is None else bias[b, h, t],
                    None if sink is None else sink[h],
                )
                yield (b, h, t), tail, output


class Fast(NamedTuple):
    """What `fast` knows of every row, as numpy arrays of its widest float.

    Attributes:
        tail: (B, Hq, Tq), softmax mass of the visible keys not kept. output: (B, Hq, Tq, Dv).
        tail_error, output_error: (B, Hq, Tq), what they may be off by.
        finite: bool (B, Hq, Tq), whether query and all visible keys and values are. Else the rest means nothing.
        empty: bool (B, Hq, Tq), no visible key.
    """

    tail: np.ndarray
    output: np.ndarray
    tail_error: np.ndarray
    output_error: np.ndarray
    finite: np.ndarray
    empty: np.ndarray


def _wide(x):
    return x.detach().to(torch.float64).numpy().astype(np.longdouble)


def fast(query, key, value, kept, *, scale=None, visible=None, is_causal=False, softcap=None, sink=None):
    """`attention`, all rows at once, except that `is_causal` makes the queries the last Tq positions."""
    batch, heads, queries, width = query.shape
    group, n = heads // key.shape[1], key.shape[2]
    shape = (batch, heads, queries, n)
    seen = np.ones(shape, dtype=bool) if visible is None else visible.expand(shape).numpy().copy()
    if is_causal:
        seen &= np.tril(np.ones((queries, n), dtype=bool), n - queries)
    q, k, v = (_wide(x) for x in (query, key, value))
    k, v = (np.repeat(x, group, axis=1) for x in (k, v))
    usable = np.isfinite(k).all(-1) & np.isfinite(v).all(-1)
    finite = np.isfinite(q).all(-1) & ~(seen & ~usable[:, :, None]).any(-1)
    q, k, v = (np.where(np.isfinite(x), x, 0) for x in (q, k, v))

    scale = np.longdouble(width**-0.5 if scale is None else scale)
    logits = np.einsum("bhtd,bhnd->bhtn", q, k) * scale
    unit, size = np.finfo(np.longdouble).eps, abs(scale) * np.einsum("bhtd,bhnd->bhtn", abs(q), abs(k))
    error = np.max((width + 8) * unit * size, axis=-1, initial=0.0)
    if softcap is not None:
        logits = np.longdouble(softcap) * np.tanh(logits / np.longdouble(softcap))
        error = error + 16 * unit * softcap
    logits = np.where(seen, logits, -np.inf)
    none = np.full((*shape[:3], 1), -np.inf, dtype=np.longdouble)
    extra = (
        none
        if sink is None
        else np.broadcast_to(_wide(sink[:, None] if sink.ndim == 1 else sink), shape[:3])[..., None]
    )
    top = np.max(np.concatenate([logits, extra], -1), axis=-1, keepdims=True)
    top = np.where(np.isfinite(top), top, 0)
    weights, more = np.exp(logits - top), np.exp(extra - top)[..., 0]
    total = weights.sum(-1) + more
    total = np.where(total > 0, total, 1)
    tail = np.where(kept.numpy(), 0, weights).sum(-1) / total
    output = np.einsum("bhtn,bhnd->bhtd", weights, v) / total[..., None]
    # A weight moves by at most its logit's error, twice in a ratio; the difference from the top and exp round; sums.
    relative = np.expm1(2 * error) + (4 * n + 4096) * unit
    largest = np.where(seen, np.sqrt(np.square(v).sum(-1))[:, :, None], 0).max(-1, initial=0.0)
    return Fast(tail, output, tail * relative, 2 * largest * relative, finite, ~seen.any(-1))


def fast_distance(output, truth):
    """Euclidean distance of a tensor (..., Dv) from an array."""
    return np.sqrt(np.square(_wide(output) - truth).sum(-1))
