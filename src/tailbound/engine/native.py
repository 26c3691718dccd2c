"""The native floor: which kernels this machine can run. Kernels that serve attention come with the key index."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import NamedTuple

from torch import Tensor

from tailbound.engine.check import Call
from tailbound.engine.finish import Answer


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


def dot_int8(a: Tensor, b: Tensor) -> int:
    """The exact inner product of two int8 code vectors of at most 131,071 elements, at the active level.

    Raises:
        TypeError: not contiguous one-dimensional int8 tensors on the CPU.
        ValueError: different lengths, or too long.
    """
    return _module().dot_int8(a, b)


def attend(call: Call, return_kept: bool) -> Answer:
    """Refuse: no native kernel serves attention on raw tensors in this version.

    Raises:
        ValueError: always, with the remedy.
    """
    reason = "its gradients are not implemented" if call.differentiable() else "it has no attention kernels yet"
    raise ValueError(f"impl='native' cannot serve this call: {reason}; use impl='torch' or impl=None")


def _module() -> ModuleType:
    if _native is None:
        raise RuntimeError(
            f"the native module is missing ({_MISSING}); reinstall tailbound with a C++ compiler at hand"
        )
    return _native
