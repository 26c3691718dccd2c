"""Hearing what attention is given in a model of transformers: queries, keys and values, layer by layer.

As attention gets them: after rotation, heads not repeated. The model computes exactly all the same, by SDPA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from torch import Tensor, nn

from tailbound.lab.errors import InputError

NAME = "tailbound-capture"
"""The `attn_implementation` that takes the tensors. Without the words that transformers looks for in such names."""


class Heard(NamedTuple):
    """One call: query (B, Hq, T, D), key (B, Hkv, n, D), value (B, Hkv, n, Dv), views of the model's tensors."""

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float


_listener: Callable[[Heard], None] | None = None
"""Who hears the forward pass under way. transformers hands an attention function nothing of ours."""


@contextmanager
def listening(model: Any, listener: Callable[[Heard], None]) -> Iterator[None]:
    """Let a function hear every attention call of a model for the length of a `with` block.

    Raises:
        InputError: in the forward pass, attention that q, k, v and a scale do not say all of.
    """
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    global _listener
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    _listener = listener
    try:
        yield
    finally:
        _listener = None
        model.set_attn_implementation(before)


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if _listener is not None:
        scale = key.shape[3] ** -0.5 if scaling is None else float(scaling)
        _listener(Heard(_layer(module, key.shape[2], kwargs), query, key, value, scale))
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def _layer(module: nn.Module, keys: int, extra: dict[str, Any]) -> int:
    """The layer's number; a layer whose attention is more than softmax over all keys is refused."""
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise InputError(f"{type(module).__name__} has no layer_idx, so its layers cannot be told apart")
    window = extra.get("sliding_window")
    if window is not None and window < keys:
        raise InputError(
            f"layer {layer} sees {window} keys at a time, fewer than the {keys} of --context, and only full attention "
            f"can be taken; use --context {window}"
        )
    for name in ("softcap", "s_aux", "position_bias"):
        if extra.get(name) is not None:
            raise InputError(f"layer {layer} uses {name}, which is not taken down here; choose another model")
    return layer
