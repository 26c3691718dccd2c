"""Which modules are being certified right now, with what budget, and where their certificates go.

transformers calls an attention function with the module and nothing that names the generation it belongs to, so the
module is the key. Modules are held weakly: a session never keeps a model alive.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable
from typing import NamedTuple

from torch import Tensor, nn

from tailbound.hf.budget import Budget
from tailbound.hf.ledger import Ledger
from tailbound.result import Attention


class Observation(NamedTuple):
    """One certified call with everything needed to check it from outside.

    `query`, `key`, `value`, `attn_mask` and `scale` are what was passed to attention; `answer.kept` is present.
    """

    step: int
    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    scale: float
    answer: Attention


class Session(NamedTuple):
    """One `certify` context."""

    epsilon: Budget
    ledger: Ledger
    record: bool
    observe: Callable[[Observation], None] | None


_sessions: weakref.WeakKeyDictionary[nn.Module, Session] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def session_of(module: nn.Module) -> Session | None:
    """The session that a module belongs to now."""
    return _sessions.get(module)


def enter(modules: Iterable[nn.Module], session: Session) -> list[tuple[nn.Module, Session | None]]:
    """Put modules under a session; returns what `leave` needs to put the earlier state back."""
    with _lock:
        before = [(module, _sessions.get(module)) for module in modules]
        for module, _ in before:
            _sessions[module] = session
        return before


def leave(before: Iterable[tuple[nn.Module, Session | None]]) -> None:
    """Undo `enter`."""
    with _lock:
        for module, earlier in before:
            if earlier is None:
                _sessions.pop(module, None)
            else:
                _sessions[module] = earlier
