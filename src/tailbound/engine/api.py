"""`tailbound.attention`: the one door to the engine for tensors that are at hand."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from tailbound.engine import blocked, native, reference
from tailbound.engine.check import Call, check_call
from tailbound.engine.finish import Answer
from tailbound.result import Attention, Certificate, Stats, Status

_IMPLEMENTATIONS: dict[str, Callable[[Call, bool], Answer]] = {
    "reference": reference.attend,
    "torch": blocked.attend,
    "native": native.attend,
}


def attention(
    query: Float[Tensor, "B Hq Tq D"],
    key: Float[Tensor, "B Hkv Tk D"],
    value: Float[Tensor, "B Hkv Tk Dv"],
    *,
    epsilon: float,
    scale: float | None = None,
    attn_mask: Tensor | None = None,
    is_causal: bool = False,
    softcap: float | None = None,
    sink: Tensor | float | None = None,
    return_kept: bool = False,
    impl: str | None = None,
) -> Attention:
    """Softmax attention over the fewest keys that provably miss at most `epsilon` of the attention mass.

    For every row: `softmax mass of the keys left out <= certificate.tv <= epsilon`, and
    `|output - exact attention| <= certificate.output_error`, both in real arithmetic on the values in memory. The
    shapes are those of `torch.nn.functional.scaled_dot_product_attention`; Hq is a multiple of Hkv, and consecutive
    query heads share a KV head.

    Args:
        query: (B, Hq, Tq, D), float16, bfloat16, float32 or float64.
        key: (B, Hkv, Tk, D), same dtype and device.
        value: (B, Hkv, Tk, Dv), same dtype and device.
        epsilon: budget of total variation, in [0, 1). At 0 the answer is dense and `tv` is 0.
        scale: multiplies `q.k`; any finite number. Default: the float64 nearest to `1 / sqrt(D)`.
        attn_mask: bool (True: visible) or a floating-point bias added to the logits, broadcastable to
            (B, Hq, Tq, Tk). A bias at or below the finite minimum of its dtype hides the key.
        is_causal: query i sees keys 0 to i (top-left aligned); combines with `attn_mask`.
        softcap: logits become `softcap * tanh(logits / softcap)` before the bias is added.
        sink: a logit that takes weight and gives no value: a number, (Hq,), or broadcastable to (B, Hq, Tq).
        return_kept: also return which keys got weight, so that anyone can check the certificate.
        impl: "reference" (float64, the specification), "torch" (blocked, any device with float64) or "native". None
            picks the best that can serve the call; `stats.impl` says which.

    Returns:
        `Attention(output, certificate, stats, kept)`.

    Raises:
        ValueError: shapes, devices or numbers that do not fit, or an `impl` that cannot serve the call.
        TypeError: dtypes that do not fit.

    Source: Tzachristas et al. 2025, Lemma 4.1 (tv is the tail mass), Thm 5.2 (the output error).

    >>> import torch, tailbound
    >>> q, k, v = (torch.zeros(1, 1, 4, 8) for _ in range(3))
    >>> tailbound.attention(q, k, v, epsilon=0.3).certificate.kept.tolist()
    [[[3, 3, 3, 3]]]
    """
    call = check_call(
        query,
        key,
        value,
        epsilon=epsilon,
        scale=scale,
        attn_mask=attn_mask,
        is_causal=is_causal,
        softcap=softcap,
        sink=sink,
    )
    chosen = _choose(impl)
    if 0 in call.rows or call.key.shape[2] == 0:
        answer = _nothing(call, return_kept)
    else:
        answer = _IMPLEMENTATIONS[chosen](call, return_kept)
    return _present(call, chosen, answer)


def _choose(impl: str | None) -> str:
    if impl is None:
        return "torch"
    if impl not in _IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r} is unknown; allowed: {', '.join(map(repr, _IMPLEMENTATIONS))}, or None")
    return impl


def _present(call: Call, impl: str, answer: Answer) -> Attention:
    """Ungroup the heads: (B, Hkv, G, ...) becomes (B, Hq, ...)."""
    rows = call.rows
    certificate = Certificate(
        tv=answer.tv.reshape(rows),
        output_error=answer.output_error.reshape(rows),
        kept=answer.kept_count.reshape(rows).to(torch.int32),
        status=answer.status.reshape(rows),
    )
    kept = None if answer.kept is None else answer.kept.reshape(*rows, call.key.shape[2])
    return Attention(answer.output.reshape(*rows, call.value.shape[3]), certificate, _stats(call, impl), kept)


def _stats(call: Call, impl: str) -> Stats:
    """Both implementations of this version read every key, seen or not."""
    keys = call.key.shape[0] * call.key.shape[1] * call.key.shape[2]
    width = call.key.shape[3] + call.value.shape[3]
    return Stats(
        impl=impl,
        isa="torch",
        threads=torch.get_num_threads(),
        keys_visible=keys if call.visible is None and call.bias is None and not call.is_causal else _seen(call),
        keys_read=keys,
        bytes_read=keys * width * call.key.element_size(),
    )


def _seen(call: Call) -> int:
    """Keys that some query of their batch entry and group may see."""
    batch, heads, queries = call.rows
    if 0 in (batch, heads, queries, call.key.shape[2]):
        return 0
    seen = torch.ones(1, 1, 1, 1, dtype=torch.bool, device=call.query.device)
    if call.visible is not None:
        seen = call.visible
    if call.bias is not None:
        seen = call.bias > torch.finfo(call.bias.dtype).min
    if call.is_causal:
        order = torch.ones(queries, call.key.shape[2], dtype=torch.bool, device=call.query.device).tril()
        seen = seen & order
    seen = seen.expand(batch, heads, queries, call.key.shape[2])
    return int(seen.unflatten(1, (call.key.shape[1], call.group)).any(3).any(2).sum())


def _nothing(call: Call, return_kept: bool) -> Answer:
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
