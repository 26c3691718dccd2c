"""The attention function and the mask function that transformers calls, both under the name "tailbound".

Both are needed: for a name without a mask function transformers builds no mask and says nothing.
"""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tailbound.engine.api import attention
from tailbound.hf.session import Observation, Session, session_of

NAME = "tailbound"
"""The `attn_implementation` that `install` registers."""

MAX_QUERIES = 16
"""Calls with more queries than this are prefill, and served exactly."""

_log = logging.getLogger("tailbound")
_warned = False


def install() -> None:
    """Register `attn_implementation="tailbound"` with transformers. Explicit, idempotent, never done at import."""
    if NAME not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        AttentionInterface.register(NAME, attend)
    if NAME not in ALL_MASK_ATTENTION_FUNCTIONS.valid_keys():
        AttentionMaskInterface.register(NAME, sdpa_mask)


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """One attention call of a model: certified if its module is under `certify` and it can be, exact otherwise.

    query (B, Hq, Tq, D), key (B, Hkv, Tk, D), value (B, Hkv, Tk, Dv) as transformers passes them, heads not repeated.
    Returns the output as (B, Tq, Hq, Dv), and None for the weights.
    """
    session = session_of(module)
    reason = _why_exact(module, query, dropout, kwargs)
    if session is None:
        _warn_once()
    elif reason is not None:
        session.ledger.record_exact(getattr(module, "layer_idx", None), reason)
    else:
        return _certified(session, module, query, key, value, attention_mask, scaling, softcap, s_aux, kwargs), None
    if softcap is None and s_aux is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    if kwargs.get("position_bias") is not None or dropout:
        raise ValueError(f"{type(module).__name__}: soft-capping or sinks together with a position bias or dropout")
    exact = attention(
        query,
        key,
        value,
        epsilon=0.0,
        scale=scaling,
        attn_mask=attention_mask,
        is_causal=_causal(module, query, attention_mask, kwargs),
        softcap=softcap,
        sink=s_aux,
    )
    return exact.output.transpose(1, 2).contiguous(), None


def _certified(
    session: Session,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float | None,
    softcap: float | None,
    sink: Tensor | None,
    kwargs: dict[str, Any],
) -> Tensor:
    layer = int(module.layer_idx)  # pyright: ignore[reportArgumentType]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    causal = _causal(module, query, mask, kwargs)
    answer = attention(
        query,
        key,
        value,
        epsilon=session.epsilon.of(layer, query.shape[1]),  # pyright: ignore[reportArgumentType]  (by head: to come)
        scale=scale,
        attn_mask=mask,
        is_causal=causal,
        softcap=softcap,
        sink=sink,
        return_kept=session.observe is not None,
    )
    step = session.ledger.next_step(layer)
    if session.record:
        session.ledger.record(step, layer, answer.certificate, _visible_count(mask, causal, query, key))
    if session.observe is not None:
        session.observe(Observation(step, layer, query, key, value, mask, scale, answer))
    return answer.output.transpose(1, 2).contiguous()


def _why_exact(module: nn.Module, query: Tensor, dropout: float, kwargs: dict[str, Any]) -> str | None:
    """Why a call under `certify` is answered exactly; None if it is certified."""
    if query.shape[2] > MAX_QUERIES:
        return f"more than {MAX_QUERIES} queries (prefill)"
    if dropout:
        return "dropout: call model.eval()"
    if kwargs.get("position_bias") is not None:
        return "the layer adds a position bias"
    if kwargs.get("cache") is not None:
        return "the layer reads a paged cache"
    if getattr(module, "layer_idx", None) is None:
        return "the module has no layer_idx"
    return None


def _causal(module: nn.Module, query: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> bool:
    """transformers leaves the mask out where a causal one over equal lengths would do."""
    asked = kwargs.get("is_causal")
    causal = bool(getattr(module, "is_causal", True)) if asked is None else bool(asked)
    return mask is None and query.shape[2] > 1 and causal


def _visible_count(mask: Tensor | None, causal: bool, query: Tensor, key: Tensor) -> Tensor:
    if causal:
        return torch.arange(1, query.shape[2] + 1).clamp_max(key.shape[2])
    if mask is None:
        return torch.tensor(key.shape[2])
    seen = mask if mask.dtype is torch.bool else mask > torch.finfo(mask.dtype).min
    return seen.sum(-1)


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        _log.warning(
            'attn_implementation="tailbound" outside tailbound.hf.certify: attention is exact and no certificate is '
            "issued. Wrap the calls in `with tailbound.hf.certify(model, epsilon=...)`."
        )
