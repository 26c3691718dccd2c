"""`tailbound.attention`: the one door to the engine for tensors that are at hand."""

from __future__ import annotations

from collections.abc import Callable

from jaxtyping import Float
from torch import Tensor

from tailbound.engine import blocked, native, reference
from tailbound.engine.check import Call, check_call
from tailbound.engine.finish import Answer
from tailbound.engine.present import every_key, nothing, present
from tailbound.result import Attention, Stats

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
    epsilon: float | Tensor,
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
        epsilon: budget of total variation, in [0, 1): one number, or a tensor (Hq,) with one for each query head. At 0
            the answer is dense and `tv` is 0.
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
        answer = nothing(call, return_kept)
    else:
        answer = _IMPLEMENTATIONS[chosen](call, return_kept)
    return present(call, answer, Stats(chosen, every_key(call)))


def _choose(impl: str | None) -> str:
    if impl is None:
        return "torch"
    if impl not in _IMPLEMENTATIONS:
        raise ValueError(f"impl={impl!r} is unknown; allowed: {', '.join(map(repr, _IMPLEMENTATIONS))}, or None")
    return impl
