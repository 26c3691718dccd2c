"""The native floor: C++ kernels over the buffers of a store. `impl="native"`.

Tensors cross as addresses, after the checks here: a look into an ndarray argument costs 2.4 microseconds, an address
0.06, and a decode step has hundreds of them.
"""

from __future__ import annotations

import importlib
import math
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from tailbound.engine import cut
from tailbound.engine.check import Call
from tailbound.engine.finish import Answer
from tailbound.engine.store import DTYPES, Store
from tailbound.result import PACKED_BYTES, Attention, Certificate, Stats

MAX_WIDTH = 4096
"""Products of codes and query words are combined in 32 bits: 4063 * 127 * D stays inside up to here."""

INSTALL = "pip install --force-reinstall --no-deps tailbound"
"""What brings the native module back: a wheel, or a build where there is a C++ compiler."""

DENSE_BELOW = 256
"""So many keys are read at once, without a scan first: there is less to save than a scan costs."""


def _load() -> tuple[ModuleType | None, str]:
    try:
        return importlib.import_module("tailbound._native"), ""
    except ImportError as error:  # a pure-Python installation, or a platform without wheels: torch serves everything
        return None, str(error)


_native, _MISSING = _load()


class Levels(NamedTuple):
    """Instruction set levels, lowest first; `missing` says why the native module could not be loaded, if so."""

    cpu: list[str]
    built: list[str]
    missing: str


def levels() -> Levels:
    """What the processor has and what this build has kernels for."""
    if _native is None:
        return Levels([], [], _MISSING)
    return Levels(_native.cpu_levels(), _native.built_levels(), "")


def active_level() -> str:
    """The level whose kernels run: the best one, or the one that `TAILBOUND_ISA` names.

    Raises:
        RuntimeError: the named level cannot run here, or there is no native module.
    """
    return _module().active_level()


def why_not_store(device: torch.device, width: int) -> str | None:
    """Why the native kernels cannot keep an index; None if they can."""
    if _native is None:
        return f"the native module is missing ({_MISSING})"
    if device.type != "cpu":
        return f"the tensors are on {device} and its kernels run on the CPU"
    if width > MAX_WIDTH:
        return f"head_dim is {width} and its kernels go up to {MAX_WIDTH}"
    return None


def why_not(call: Call) -> str | None:
    """Why the native kernels cannot serve a call on an index; None if they can."""
    if call.differentiable():
        return "its gradients are not implemented"
    if call.bias is not None:
        return "it has no kernels for additive biases"
    return why_not_store(call.query.device, call.query.shape[3])


def refuse(reason: str) -> ValueError:
    """The error for a call that names `impl="native"`."""
    return ValueError(f"impl='native' cannot serve this call: {reason}; use impl='torch' or impl=None")


def attend(call: Call, return_kept: bool) -> Answer:
    """Refuse: raw tensors have no sketch, and building one costs more than it saves.

    Raises:
        ValueError: always, with the remedy.
    """
    reason = "its gradients are not implemented" if call.differentiable() else "it needs a tailbound.KVIndex"
    raise refuse(reason)


class Handle:
    """What the kernels know of a store: its buffers' addresses. Made anew when they are replaced."""

    def __init__(self, store: Store) -> None:
        """Raises RuntimeError without the native module."""
        shape = (*store.key.shape[:3], store.width, store.value.shape[3], store.page)
        self.buffers = store.tensors()[:7]  # held: the kernels write to their memory
        addresses = [tensor.data_ptr() for tensor in self.buffers]
        self._span = store.span.data_ptr()
        self._blanks: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}
        self._store = _module().store(DTYPES.index(store.key.dtype), shape, addresses)

    def append(self, store: Store, key: Tensor, value: Tensor) -> None:
        """Write keys and values (B, Hkv, m, width), checked, for which there is room."""
        key, value = _rows_contiguous(key), _rows_contiguous(value)
        start, stop, count = store.start, store.stop, key.shape[2]
        _module().append(
            self._store,
            key.data_ptr(),
            key.stride()[:3],
            value.data_ptr(),
            value.stride()[:3],
            start,
            stop,
            count,
            self._span,
            torch.get_num_threads(),
        )
        store.stop = stop + count  # the kernel has brought `span` up to date

    def attend(
        self,
        store: Store,
        query: Tensor,
        epsilon: float | Tensor,
        scale: float,
        is_causal: bool = False,
        visible: Tensor | None = None,
        softcap: float | None = None,
        sink: Tensor | None = None,
        return_kept: bool = False,
    ) -> tuple[Attention, int]:
        """Answer checked queries; also how many rows are not finite: those are only marked.

        Args:
            query: (B, Hq, T, D). epsilon: one, or float64 (Hq,) in one piece. visible: bool, expanded to
                (B, Hq, T, n). sink: float64, expanded to (B, Hq, T).
        """
        query = _rows_contiguous(query)
        batch, heads, queries, _ = query.shape
        rows = (batch, heads, queries)
        output, packed = map(torch.empty_like, self._blank(store, rows))
        kept_set = torch.empty(*rows, store.length, dtype=torch.bool) if return_kept else None
        sink = None if sink is None else sink.resolve_neg().contiguous()
        own = epsilon if isinstance(epsilon, Tensor) else None
        spoiled, *counts = _module().attend(
            self._store,
            query.data_ptr(),
            query.stride()[:3],
            heads,
            queries,
            store.start,
            store.stop,
            epsilon if own is None else 0.0,
            0 if own is None else own.data_ptr(),
            scale,
            softcap or 0.0,
            is_causal,
            0 if visible is None else visible.data_ptr(),
            (0, 0, 0, 0) if visible is None else visible.stride(),
            0 if sink is None else sink.data_ptr(),
            DENSE_BELOW,
            cut.DENSE_SHARE,
            output.data_ptr(),
            packed.data_ptr(),
            0 if kept_set is None else kept_set.data_ptr(),
            torch.get_num_threads(),
        )
        stats = Stats("native", tuple(counts))
        return Attention(output, Certificate.unpack(packed, rows), stats, kept_set), spoiled

    def _blank(self, store: Store, rows: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """What an answer for so many rows looks like: copying a form takes half as long as filling in a new one."""
        blank = self._blanks.get(rows)
        if blank is None:
            output = store.value.new_empty(*rows, store.value.shape[3])
            blank = output, torch.empty(PACKED_BYTES * math.prod(rows), dtype=torch.uint8)
            self._blanks = {rows: blank}
        return blank


def _rows_contiguous(tensor: Tensor) -> Tensor:
    """A tensor whose vectors lie in one piece; heads and positions may have any stride, 0 included."""
    tensor = tensor.detach()
    if tensor.is_neg():  # a view that negates when it is read, as of a conjugate's imaginary part
        tensor = tensor.resolve_neg()
    return tensor if tensor.stride(3) == 1 or tensor.shape[3] == 1 else tensor.contiguous()


def _module() -> ModuleType:
    if _native is None:
        raise RuntimeError(f"the native module is missing ({_MISSING}); {INSTALL}, from a wheel or with a C++ compiler")
    return _native
