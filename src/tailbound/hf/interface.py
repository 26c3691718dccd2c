"""The attention function and the mask function that transformers calls, both under the name "tailbound".

Both are needed: for a name without a mask function transformers builds no mask and says nothing.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tailbound.engine.api import attention
from tailbound.hf.layer import index_of, why_no_index
from tailbound.hf.session import Observation, Session, session_of
from tailbound.result import Attention

NAME = "tailbound"
"""The `attn_implementation` that `install` registers."""

MAX_QUERIES = 16
"""Calls with more queries than this are prefill, and served exactly."""

_log = logging.getLogger("tailbound")
_said: set[str] = set()


class Call(NamedTuple):
    """One attention call of a model: query (B, Hq, T, D), key (B, Hkv, n, D), value (B, Hkv, n, Dv)."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    scale: float
    is_causal: bool
    softcap: float | None
    sink: Tensor | None

    def anywhere(self, epsilon: float | Tensor, return_kept: bool = False) -> Attention:
        """Answer it from the tensors alone, in float64 and differentiably. Causal queries are the first positions."""
        return attention(
            self.query,
            self.key,
            self.value,
            epsilon=epsilon,
            scale=self.scale,
            attn_mask=self.mask,
            is_causal=self.is_causal,
            softcap=self.softcap,
            sink=self.sink,
            return_kept=return_kept,
        )


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
    if kwargs.get("output_attentions"):
        raise ValueError(
            f'output_attentions=True asks for attention weights, and attn_implementation="{NAME}" computes none: leave '
            'it out, or run the model with attn_implementation="eager" outside tailbound.hf.certify'
        )
    session = session_of(module)
    causal = is_causal(module, query, attention_mask, kwargs)
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    call = Call(query, key, value, attention_mask, scale, causal, softcap, s_aux)
    if session is None:
        _say_once(OUTSIDE)
    else:
        reason = _why_exact(session, module, query, dropout, kwargs)
        answer = _certified(session, module, _biased(call, kwargs)) if reason is None else reason
        if not isinstance(answer, str):
            return answer.transpose(1, 2).contiguous(), None  # for one query a view: nothing is copied
        session.ledger.record_exact(getattr(module, "layer_idx", None), answer)
    if softcap is None and s_aux is None:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
    if kwargs.get("position_bias") is not None or dropout:
        raise ValueError(f"{type(module).__name__}: soft-capping or sinks together with a position bias or dropout")
    return call.anywhere(0.0).output.transpose(1, 2).contiguous(), None


def _certified(session: Session, module: nn.Module, call: Call) -> Tensor | str:
    """The output (B, Hq, T, Dv), its certificate written down; or why there is none."""
    layer, heads = session.layer(module), call.query.shape[1]
    answer = _answer(call, session.budget(layer, heads), session.observe is not None, session.study)
    if isinstance(answer, str):
        return answer
    step = session.ledger.next_step(layer)
    if session.record:
        session.ledger.record(step, layer, answer.certificate, _visible_count(call))
    if session.observe is not None:
        mask = call.mask if call.mask is not None or not call.is_causal else _causal_mask(call)
        seen = (call.query, call.key, call.value, mask, call.scale, answer, call.softcap, call.sink)
        session.observe(Observation(step, layer, *seen))
    return answer.output


def _answer(call: Call, epsilon: float | Tensor, return_kept: bool, study: bool) -> Attention | str:
    """Certified attention from the index of the keys, or where no index can hold them from the tensors."""
    query, key = call.query, call.key
    index = index_of(key, call.value)
    few = query.shape[2] <= MAX_QUERIES
    if index is not None and few and not (call.is_causal and query.shape[2] != key.shape[2]):
        return index.attend(
            query,
            epsilon=epsilon,
            scale=None if call.scale == query.shape[3] ** -0.5 else call.scale,
            attn_mask=call.mask,
            is_causal=call.is_causal,
            softcap=call.softcap,
            sink=call.sink,
            return_kept=return_kept,
        )
    if call.is_causal and query.shape[2] != key.shape[2]:
        return "causal queries without a mask that are not all positions"
    if not query.dtype == key.dtype == call.value.dtype:
        return "query, key and value have different dtypes"
    followed = torch.is_grad_enabled() and (key.requires_grad or call.value.requires_grad)
    if study:
        return call.anywhere(epsilon, return_kept)
    if not followed and key.dtype is not torch.float64:
        return why_no_index(key, call.value)
    _say_once(FOLLOWED if followed else DOUBLE)
    return call.anywhere(epsilon, return_kept)


def _why_exact(
    session: Session, module: nn.Module, query: Tensor, dropout: float, kwargs: dict[str, Any]
) -> str | None:
    """Why a call under `certify` is answered exactly, whatever its keys are; None if it need not be."""
    if query.shape[2] > MAX_QUERIES and not session.study:
        return f"more than {MAX_QUERIES} queries (prefill)"
    if dropout:
        return "dropout: call model.eval()"
    if kwargs.get("cache") is not None:
        return "the layer reads a paged cache"
    if getattr(module, "layer_idx", None) is None and not session.study:
        return "the module has no layer_idx"
    return None


def _biased(call: Call, kwargs: dict[str, Any]) -> Call:
    """A position bias, which T5 and its kin pass beside the mask, as part of the mask."""
    bias, mask = kwargs.get("position_bias"), call.mask
    if bias is None or not bias.any():  # layers without one, and cross attention, pass zeros
        return call
    bias = bias[..., : call.key.shape[2]]
    if mask is None and call.is_causal:
        mask = _causal_mask(call)
    if mask is not None:
        bias = bias.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else bias + mask
    return call._replace(mask=bias, is_causal=False)


def is_causal(module: nn.Module, query: Tensor, mask: Tensor | None, kwargs: dict[str, Any]) -> bool:
    """Whether a call is causal: transformers leaves the mask out where a causal one over equal lengths would do."""
    if mask is not None or query.shape[2] == 1:
        return False
    asked = kwargs.get("is_causal")
    return bool(getattr(module, "is_causal", True)) if asked is None else bool(asked)


def _causal_mask(call: Call) -> Tensor:
    """What `is_causal` hides, as a mask (T, n), top-left aligned."""
    return torch.ones(call.query.shape[2], call.key.shape[2], dtype=torch.bool, device=call.query.device).tril()


def _visible_count(call: Call) -> Tensor | int:
    """How many keys each row may see: one number, or counts that broadcast to (B, Hq, T)."""
    if call.is_causal:
        return torch.arange(1, call.query.shape[2] + 1).clamp_max(call.key.shape[2])
    if call.mask is None:
        return call.key.shape[2]
    seen = call.mask if call.mask.dtype is torch.bool else call.mask > torch.finfo(call.mask.dtype).min
    return seen.sum(-1)


OUTSIDE = (
    'attn_implementation="tailbound" outside tailbound.hf.certify: attention is exact and no certificate is '
    "issued. Wrap the calls in `with tailbound.hf.certify(model, epsilon=...)`."
)
FOLLOWED = (
    "gradients are on, so attention is certified by tailbound.attention, which keeps them but reads every key in "
    "float64: slow. Wrap the calls in torch.no_grad() to be served from the cache's index."
)
DOUBLE = (
    "the model is in float64, which an index cannot hold: attention is certified by tailbound.attention, which reads "
    "every key: slow. Load the model in float32, bfloat16 or float16."
)


def _say_once(words: str) -> None:
    """What someone who waits should know, once a process."""
    if words not in _said:
        _said.add(words)
        _log.warning("%s", words)
