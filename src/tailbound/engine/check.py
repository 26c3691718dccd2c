"""Validation: what came, what is allowed, what to do. A `Call` that leaves this module is well formed."""

from __future__ import annotations

import math
import numbers
from typing import NamedTuple

import torch
from torch import Tensor

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Call(NamedTuple):
    """One validated attention call.

    `epsilon` is float64 (Hq,) on the CPU. `visible` and `bias` are None or four-dimensional and expanded to (B, Hq, Tq,
    Tk) without a copy; `sink` is None or float64 and expanded to (B, Hq, Tq). Under `is_causal`, query i sees keys 0 to
    `i + offset`.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    epsilon: Tensor
    scale: float
    visible: Tensor | None
    bias: Tensor | None
    is_causal: bool
    softcap: float | None
    sink: Tensor | None
    offset: int = 0

    @property
    def group(self) -> int:
        """Query heads that share one KV head."""
        return self.query.shape[1] // self.key.shape[1] if self.key.shape[1] else 1

    @property
    def budget(self) -> Tensor:
        """`epsilon` as (Hkv, G, 1), for rows grouped by KV head; on the device of the query."""
        return self.epsilon.to(self.query.device).reshape(self.key.shape[1], self.group, 1)

    @property
    def rows(self) -> tuple[int, int, int]:
        """(batch, query heads, queries): the shape of a certificate."""
        return self.query.shape[0], self.query.shape[1], self.query.shape[2]

    def differentiable(self) -> bool:
        """Whether autograd would follow this call."""
        tensors = (self.query, self.key, self.value, self.bias, self.sink)
        return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def check_call(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    epsilon: float | Tensor,
    scale: float | None,
    attn_mask: Tensor | None,
    is_causal: bool,
    softcap: float | None,
    sink: Tensor | float | None,
    offset: int = 0,
) -> Call:
    """Refuse what cannot be answered, and bring the rest into one form.

    Raises:
        ValueError: shapes, devices or numbers that do not fit.
        TypeError: something that is not a tensor, or dtypes that do not fit.
    """
    _check_tensors(query, key, value)
    rows = query.shape[:3]
    visible, bias = _check_mask(attn_mask, (*rows, key.shape[2]), query.device)
    return Call(
        query=query,
        key=key,
        value=value,
        epsilon=check_epsilons(epsilon, query.shape[1]),
        scale=query.shape[3] ** -0.5 if scale is None else _check_number("scale", scale),
        visible=visible,
        bias=bias,
        is_causal=bool(is_causal),
        softcap=_check_softcap(softcap),
        sink=_check_sink(sink, rows, query),
        offset=offset,
    )


def check_epsilon(epsilon: float) -> float:
    """A budget of total variation in [0, 1)."""
    if type(epsilon) is float and 0.0 <= epsilon < 1.0:  # nearly always, and asked at every step
        return epsilon
    allowed = "epsilon is a budget of total variation, a number in [0, 1)"
    if isinstance(epsilon, bool) or not isinstance(epsilon, numbers.Real):
        raise ValueError(f"epsilon={epsilon!r} is not a number; {allowed}")
    if not 0.0 <= float(epsilon) < 1.0:
        raise ValueError(f"epsilon={epsilon!r} is out of range; {allowed}")
    return float(epsilon)


def check_epsilons(epsilon: float | Tensor, heads: int) -> Tensor:
    """Budgets of so many query heads, float64 (heads,) on the CPU, from one number or one for each head."""
    if not isinstance(epsilon, Tensor) or epsilon.ndim == 0:
        one = epsilon.item() if isinstance(epsilon, Tensor) else epsilon
        return torch.full((heads,), check_epsilon(one), dtype=torch.float64)
    if epsilon.shape != (heads,) or not epsilon.is_floating_point():
        raise ValueError(
            f"epsilon has shape {tuple(epsilon.shape)} and dtype {epsilon.dtype}; give one number in [0, 1), or a "
            f"floating point tensor ({heads},) with one for each query head"
        )
    for one in epsilon.tolist():
        check_epsilon(one)
    return epsilon.detach().to("cpu", torch.float64).contiguous()


def _check_number(name: str, number: float) -> float:
    if isinstance(number, bool) or not isinstance(number, numbers.Real) or not math.isfinite(number):
        raise ValueError(f"{name}={number!r} must be a finite number")
    return float(number)


def _check_softcap(softcap: float | None) -> float | None:
    if softcap is None:
        return None
    cap = _check_number("softcap", softcap)
    if cap <= 0.0:
        raise ValueError(f"softcap={softcap!r} must be above 0; pass None for no cap")
    return cap


def check_pair(key: Tensor, value: Tensor) -> None:
    """Refuse keys and values that do not belong together."""
    _check_each({"key": key, "value": value})
    shapes = f"key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not key.dtype == value.dtype:
        raise TypeError(f"key and value have dtypes {key.dtype} and {value.dtype}; they must be the same")
    if not key.device == value.device:
        raise ValueError(f"key and value are on {key.device} and {value.device}; move them to one device")
    if key.shape[:3] != value.shape[:3]:
        raise ValueError(f"{shapes}: key and value must have the same heads and length (dimensions 0 to 2)")
    if key.shape[3] == 0 or value.shape[3] == 0:
        raise ValueError(f"{shapes}: head_dim and the value width must be at least 1")


def _check_tensors(query: Tensor, key: Tensor, value: Tensor) -> None:
    _check_each({"query": query, "key": key, "value": value})
    if not query.dtype == key.dtype == value.dtype:
        raise TypeError(
            f"query, key and value have dtypes {query.dtype}, {key.dtype} and {value.dtype}; they must be the same: "
            "cast them first, since a certificate speaks of the values as passed"
        )
    if not query.device == key.device == value.device:
        raise ValueError(
            f"query, key and value are on {query.device}, {key.device} and {value.device}; move them to one device"
        )
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if not query.shape[0] == key.shape[0] == value.shape[0]:
        raise ValueError(f"{shapes}: the batch sizes differ; dimension 0 must be the same")
    if key.shape[1:3] != value.shape[1:3]:
        raise ValueError(f"{shapes}: key and value must have the same heads and length (dimensions 1 and 2)")
    if query.shape[3] != key.shape[3]:
        raise ValueError(f"{shapes}: query and key must have the same head_dim (dimension 3)")
    if query.shape[3] == 0 or value.shape[3] == 0:
        raise ValueError(f"{shapes}: head_dim and the value width must be at least 1")
    heads, kv_heads = query.shape[1], key.shape[1]
    if heads and (kv_heads == 0 or heads % kv_heads):
        raise ValueError(
            f"{shapes}: {heads} query heads cannot share {kv_heads} KV heads; "
            "the number of query heads must be a multiple of the number of KV heads"
        )


def _check_each(named: dict[str, Tensor]) -> None:
    for name, tensor in named.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} is a {type(tensor).__name__}; pass a torch.Tensor")
        if tensor.ndim != 4:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}; it must have 4 dimensions: (batch, heads, length, width)"
            )
        if tensor.dtype not in DTYPES:
            raise TypeError(f"{name} has dtype {tensor.dtype}; allowed: {', '.join(map(str, DTYPES))}")


def _check_mask(
    mask: Tensor | None, shape: tuple[int, ...], device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    if mask is None:
        return None, None
    if not isinstance(mask, Tensor):
        raise TypeError(f"attn_mask is a {type(mask).__name__}; pass a boolean or floating-point torch.Tensor")
    if mask.device != device:
        raise ValueError(f"attn_mask is on {mask.device} and query on {device}; move them to one device")
    if mask.dtype is not torch.bool and not mask.dtype.is_floating_point:
        raise TypeError(
            f"attn_mask has dtype {mask.dtype}; allowed: torch.bool (True: visible) or a floating-point bias. "
            "For a 0/1 mask pass attn_mask.bool()"
        )
    expanded = _expand("attn_mask", mask, shape)
    return (expanded, None) if mask.dtype is torch.bool else (None, expanded)


def _check_sink(sink: Tensor | float | None, rows: torch.Size, query: Tensor) -> Tensor | None:
    if sink is None:
        return None
    logits = sink if isinstance(sink, Tensor) else query.new_tensor(_check_number("sink", sink), dtype=torch.float64)
    if not logits.dtype.is_floating_point:
        raise TypeError(f"sink has dtype {logits.dtype}; it is a logit, so pass a floating-point tensor")
    if logits.device != query.device:
        raise ValueError(f"sink is on {logits.device} and query on {query.device}; move them to one device")
    if bool((torch.isnan(logits) | (logits == math.inf)).any()):
        raise ValueError("sink holds NaN or +inf; a sink is a logit: finite, or -inf for none")
    if logits.ndim == 1:
        logits = logits[:, None]  # one logit a head, as models store it
    return _expand("sink", logits.to(torch.float64), tuple(rows))


def _expand(name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    try:
        return tensor.expand(shape)
    except RuntimeError:
        raise ValueError(
            f"{name} has shape {tuple(tensor.shape)}, which cannot be broadcast to {tuple(shape)}"
        ) from None
