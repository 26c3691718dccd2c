"""Hearing what attention is given in a model of transformers, layer by layer, and answering in its place.

Queries, keys and values are as attention gets them: after rotation, heads not repeated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tailbound.lab.errors import InputError

NAME = "tailbound-listening"
"""The `attn_implementation` that hears. Without the words that transformers looks for in such names."""


class Heard(NamedTuple):
    """One call: query (B, Hq, T, D), key (B, Hkv, n, D), value (B, Hkv, n, Dv), views of the model's tensors.

    Attributes:
        mask: bool (B or 1, 1 or Hq, T, n), true where a query sees a key; None where each sees all, or `causal` tells.
        causal: query i sees the first i + 1 keys.
        softcap, sink: as in `tailbound.attention`.
        window: keys that a position sees at a time, where that is said.
    """

    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    scale: float
    mask: Tensor | None
    causal: bool
    softcap: float | None
    sink: Tensor | None
    window: int | None

    def seen(self) -> Tensor | None:
        """The mask, that of causal queries too."""
        if not self.causal:
            return self.mask
        shape = self.query.shape[2], self.key.shape[2]
        return torch.ones(shape, dtype=torch.bool, device=self.key.device).tril()[None, None]

    def check_plain(self) -> None:
        """Refuse attention that is more than the softmax of scaled products over all keys before a query.

        Raises:
            InputError: naming what it is.
        """
        keys = self.key.shape[2]
        if self.window is not None and self.window < keys:
            raise InputError(
                f"layer {self.layer} sees {self.window} keys at a time, fewer than the {keys} of --context, and only "
                f"full attention can be taken; use --context {self.window}"
            )
        for name in ("softcap", "sink"):
            if getattr(self, name) is not None:
                raise InputError(
                    f"layer {self.layer} uses a {name}, which is not taken down here; choose another model"
                )


Listener = Callable[[Heard], Tensor | None]
"""Hears a call, and may answer it: (B, Hq, T, Dv)."""

_listener: Listener | None = None
"""Who hears the forward pass under way. transformers hands an attention function nothing of ours."""


@contextmanager
def listening(model: Any, listener: Listener) -> Iterator[None]:
    """Let a function hear every attention call of a model for the length of a `with` block.

    A call that it does not answer is answered exactly, by SDPA; one with a softcap or a sink it must answer.

    Raises:
        InputError: in the forward pass, attention that is not said by what is heard.
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


def check_heard(model: Any, heard: set[int], layers: int) -> None:
    """Refuse a model whose layers were not all heard.

    Raises:
        InputError: naming how many were.
    """
    if len(heard) != layers:
        raise InputError(
            f"{type(model).__name__} let {len(heard)} of its {layers} layers be heard through the attention interface "
            "of transformers; choose another model"
        )


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    from tailbound.hf.interface import is_causal

    answer = None
    if _listener is not None:
        scale = key.shape[3] ** -0.5 if scaling is None else float(scaling)
        mask = attention_mask
        if mask is not None and mask.dtype is not torch.bool:
            mask = mask > torch.finfo(mask.dtype).min
        causal, window = is_causal(module, query, mask, kwargs), kwargs.get("sliding_window")
        heard = Heard(_layer(module, kwargs), query, key, value, scale, mask, causal, softcap, s_aux, window)
        answer = _listener(heard)
    if answer is not None:
        return answer.transpose(1, 2).contiguous(), None
    if softcap is not None or s_aux is not None:
        raise InputError(f"{type(module).__name__} uses a softcap or a sink, which SDPA does not know")
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


def _layer(module: nn.Module, extra: dict[str, Any]) -> int:
    layer = getattr(module, "layer_idx", None)
    if layer is None:
        raise InputError(f"{type(module).__name__} has no layer_idx, so its layers cannot be told apart")
    if extra.get("position_bias") is not None:
        raise InputError(f"layer {layer} uses position_bias, which is not taken down here; choose another model")
    return layer
