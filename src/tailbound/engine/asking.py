"""A question to an index: what it must look like, which implementation answers it, and how the answer is given."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from tailbound.engine import native, sketched
from tailbound.engine.check import Call, check_call, check_epsilon, check_epsilons, check_pair
from tailbound.engine.present import counts, every_key, nothing, present
from tailbound.engine.store import DTYPES, Store
from tailbound.result import Attention, Certificate, Stats, Status


class Question(NamedTuple):
    """The arguments of `KVIndex.attend`, as they came."""

    query: Tensor
    epsilon: float | Tensor
    scale: float | None
    attn_mask: Tensor | None
    is_causal: bool
    softcap: float | None
    sink: Tensor | float | None
    impl: str | None

    def plain(self) -> bool:
        """Whether there is nothing more to check but the query and epsilon."""
        return (
            self.attn_mask is None
            and (self.scale is None or (type(self.scale) is float and math.isfinite(self.scale)))
            and self.softcap is None
            and self.sink is None
            and self.impl in (None, "native")
        )


def ask(question: Question, store: Store, handle: native.Handle | None, return_kept: bool) -> Attention:
    """Check, choose, answer.

    Raises:
        ValueError, TypeError: as `KVIndex.attend`.
    """
    if handle is not None and question.plain() and _is_plain_query(question.query, store):
        query, epsilon = question.query, question.epsilon
        epsilon = check_epsilons(epsilon, query.shape[1]) if isinstance(epsilon, Tensor) else check_epsilon(epsilon)
        scale = query.shape[3] ** -0.5 if question.scale is None else question.scale
        found, spoiled = handle.attend(store, query, epsilon, scale, bool(question.is_causal), return_kept=return_kept)
        if not spoiled:
            return found
    return answer(_check(question, store), store, handle, question.impl, return_kept)


def answer(call: Call, store: Store, handle: native.Handle | None, impl: str | None, return_kept: bool) -> Attention:
    """Answer a checked call on the keys of a store."""
    chosen = _choose(call, store, impl)
    if 0 in call.rows or call.key.shape[2] == 0:
        return present(call, nothing(call, return_kept), Stats(chosen, every_key(call)))
    if chosen == "torch":
        found, read = sketched.attend(call, store, return_kept)
        return present(call, found, Stats("torch", counts(call, read, store.sketch_bytes())))
    handle = handle or native.Handle(store)
    result, spoiled = handle.attend(
        store,
        call.query,
        call.epsilon,
        call.scale,
        call.is_causal,
        call.visible,
        call.softcap,
        call.sink,
        return_kept,
    )
    return _mend(result, call, store, return_kept) if spoiled else result


def check_stored(key: Tensor, value: Tensor, store: Store | None = None) -> None:
    """Refuse keys and values that an index cannot hold, or that do not fit those that it holds."""
    check_pair(key, value)
    if key.dtype not in DTYPES:
        raise TypeError(f"key has dtype {key.dtype}; an index holds {', '.join(map(str, DTYPES))}")
    if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
        raise ValueError(
            "key or value requires grad, and an index keeps copies without history: detach them, or use "
            "tailbound.attention, which is differentiable"
        )
    if store is None:
        return
    for name, tensor, held in (("key", key, store.key), ("value", value, store.value)):
        if tensor.dtype is not held.dtype:
            raise TypeError(f"{name} has dtype {tensor.dtype}; the index holds {held.dtype}")
        if tensor.device != held.device:
            raise ValueError(f"{name} is on {tensor.device}; the index is on {held.device}")
        if tensor.shape[:2] != held.shape[:2] or tensor.shape[3] != held.shape[3]:
            allowed = (held.shape[0], held.shape[1], "any length", held.shape[3])
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}; the index holds {allowed}")


def fits(key: Tensor, value: Tensor, store: Store) -> bool:
    """Whether `check_stored` would surely pass: the same conditions, cheap enough for every token."""
    held_key, held_value = store.key, store.value
    return (
        isinstance(key, Tensor)
        and isinstance(value, Tensor)
        and key.dtype is held_key.dtype
        and value.dtype is held_key.dtype
        and key.device == held_key.device
        and value.device == held_key.device
        and not key.requires_grad
        and not value.requires_grad
        and key.ndim == value.ndim == 4
        and key.shape[:2] == held_key.shape[:2]
        and key.shape[:3] == value.shape[:3]
        and key.shape[3] == held_key.shape[3]
        and value.shape[3] == held_value.shape[3]
    )


def _is_plain_query(query: Tensor, store: Store) -> bool:
    if not isinstance(query, Tensor) or query.requires_grad or query.dtype is not store.key.dtype:
        return False
    shape, held = query.shape, store.key.shape
    return (
        len(shape) == 4
        and shape[0] == held[0]
        and shape[3] == held[3]
        and 0 not in shape
        and held[1] > 0
        and shape[1] % held[1] == 0
        and store.stop > store.start
        and query.is_cpu
    )


def _check(question: Question, store: Store) -> Call:
    query = question.query
    return check_call(
        query,
        store.keys(),
        store.values(),
        epsilon=question.epsilon,
        scale=question.scale,
        attn_mask=question.attn_mask,
        is_causal=question.is_causal,
        softcap=question.softcap,
        sink=question.sink,
        offset=store.length - query.shape[2] if isinstance(query, Tensor) and query.ndim == 4 else 0,
    )


def _choose(call: Call, store: Store, impl: str | None) -> str:
    if impl not in (None, "torch", "native"):
        raise ValueError(f"impl={impl!r} is unknown; an index has 'torch' and 'native', or None for the best")
    if impl == "torch":
        return impl
    reason = native.why_not(call) or native.why_not_store(store.key.device, store.width)
    if reason is None:
        return "native"
    if impl == "native":
        raise native.refuse(reason)
    return "torch"


def _mend(result: Attention, call: Call, store: Store, return_kept: bool) -> Attention:
    """Rows that see a NaN or an infinity, as torch serves them; the others stay as they are."""
    found, _ = sketched.attend(call, store, return_kept)
    right = present(call, found, result.stats)
    bad = result.certificate.status == int(Status.NONFINITE)
    return Attention(
        torch.where(bad[..., None], right.output, result.output),
        Certificate(*(torch.where(bad, b, a) for a, b in zip(result.certificate, right.certificate, strict=True))),
        result.stats,
        None if result.kept is None or right.kept is None else torch.where(bad[..., None], right.kept, result.kept),
    )
