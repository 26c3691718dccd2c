"""Certified sparse attention: attention over the few keys that matter, with a proof attached to every answer."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from tailbound.engine.api import attention
from tailbound.engine.index import KVIndex
from tailbound.result import Attention, Certificate, Stats, Status

if TYPE_CHECKING:
    from tailbound import bounds as bounds
    from tailbound import hf as hf
    from tailbound import search as search
    from tailbound import theory as theory

__all__ = ["Attention", "Certificate", "KVIndex", "Stats", "Status", "attention", "bounds", "hf", "search", "theory"]

_LAZY = frozenset({"bounds", "hf", "search", "theory"})


def __getattr__(name: str) -> object:
    """Import the floors that most callers do not need at their first use (PEP 562)."""
    if name in _LAZY:
        return importlib.import_module(f"tailbound.{name}")
    raise AttributeError(f"module 'tailbound' has no attribute {name!r}")
