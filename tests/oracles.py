"""The truth, to 60 digits, from the definitions. Imports nothing from tailbound.

Inputs are tensors whose stored values are taken as exact. One row at a time: slow, short, and hard to get wrong.
"""

import mpmath
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
