"""What the statements ask of their arguments; every refusal names the argument and the value."""

from __future__ import annotations

import math
import numbers

import torch
from torch import Tensor


def check_logits(logits: Tensor, name: str = "logits") -> Tensor:
    """A floating-point tensor with at least one entry along its last dimension, and no NaN or +inf."""
    if not isinstance(logits, Tensor) or logits.dtype not in (torch.float32, torch.float64):
        raise TypeError(
            f"{name} must be a float32 or float64 tensor, not {getattr(logits, 'dtype', type(logits).__name__)}"
        )
    if logits.ndim == 0 or logits.shape[-1] == 0:
        raise ValueError(f"{name} has shape {tuple(logits.shape)}; its last dimension must hold at least one entry")
    if bool((logits.isnan() | logits.isposinf()).any()):
        raise ValueError(f"{name} holds NaN or +inf")
    return logits


def check_count(k: int, n: int, name: str = "k") -> int:
    """A number of keys in [1, n]."""
    if isinstance(k, bool) or not isinstance(k, numbers.Integral) or not 1 <= k <= n:
        raise ValueError(f"{name}={k!r} must be an integer in [1, {n}]")
    return int(k)


def check_budget(epsilon: float) -> float:
    """A budget strictly between 0 and 1."""
    if isinstance(epsilon, bool) or not isinstance(epsilon, numbers.Real) or not 0.0 < float(epsilon) < 1.0:
        raise ValueError(f"epsilon={epsilon!r} must be a number in (0, 1)")
    return float(epsilon)


def check_positive(name: str, number: float) -> float:
    """A finite number above 0."""
    real = isinstance(number, numbers.Real) and not isinstance(number, bool)
    if not real or not 0.0 < float(number) < math.inf:
        raise ValueError(f"{name}={number!r} must be a finite number above 0")
    return float(number)


def check_values(values: Tensor, logits: Tensor) -> Tensor:
    """Values (..., n, d) that go with logits (..., n)."""
    if not isinstance(values, Tensor) or values.dtype != logits.dtype:
        raise TypeError(
            f"values must be a {logits.dtype} tensor, not {getattr(values, 'dtype', type(values).__name__)}"
        )
    if values.shape[:-1] != logits.shape:
        raise ValueError(f"values has shape {tuple(values.shape)}; logits {tuple(logits.shape)} need (..., n, d)")
    if not bool(values.isfinite().all()):
        raise ValueError("values holds NaN or infinity")
    return values


def check_head(head: Tensor, logits: Tensor, allow_empty: bool = False) -> Tensor:
    """A boolean set over the last dimension with at least one member in every row that is not masked out."""
    if not isinstance(head, Tensor) or head.dtype is not torch.bool:
        raise TypeError(f"head must be a boolean tensor, not {getattr(head, 'dtype', type(head).__name__)}")
    try:
        head = head.expand(logits.shape)
    except RuntimeError:
        raise ValueError(
            f"head has shape {tuple(head.shape)}, which cannot be broadcast to the logits' {tuple(logits.shape)}"
        ) from None
    if not allow_empty and not bool((head & ~logits.isneginf()).any(-1).all()):
        raise ValueError("head is empty in some row: it must hold at least one entry with a finite logit")
    return head
