"""Which modules are being certified right now, with what budget, and where their certificates go.

transformers calls an attention function with the module and nothing that names the generation it belongs to, so the
module is the key. Modules are held weakly: a session never keeps a model alive.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from torch import Tensor, nn

from tailbound.hf.budget import Budget
from tailbound.hf.ledger import Ledger
from tailbound.result import Attention


class Observation(NamedTuple):
    """One certified call with everything needed to check it from outside.

    `query` to `scale`, `softcap` and `sink` are what was passed to attention; `answer.kept` is present.

    Attributes:
        step: which certified call of its layer this is, from 0.
        query: (B, Hq, T, D). key: (B, Hkv, n, D). value: (B, Hkv, n, Dv). In the model's dtype.
        attn_mask: None, or bool or added to the logits, broadcastable to (B, Hq, T, n); a causal call has one.
        sink: None, or a logit for each query head, (Hq,).
    """

    step: int
    layer: int
    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None
    scale: float
    answer: Attention
    softcap: float | None = None
    sink: Tensor | None = None


class Session(NamedTuple):
    """One `certify` context; `thread` entered it.

    Attributes:
        study: whether calls that no index can serve are certified as well, from all keys.
        numbers: the layers of modules that do not say theirs, in the order in which they were met.
        named: layers before the first of those.
    """

    epsilon: Budget
    ledger: Ledger
    record: bool
    observe: Callable[[Observation], None] | None
    thread: int
    study: bool
    numbers: dict[int, int]
    named: int

    def layer(self, module: nn.Module) -> int:
        """The number of a module's layer."""
        own = getattr(module, "layer_idx", None)
        return own if isinstance(own, int) else self.numbers.setdefault(id(module), self.named + len(self.numbers))

    def budget(self, layer: int, heads: int) -> float | Tensor:
        """The epsilon of a layer's attention calls: one, or float64 (heads,) where heads differ."""
        return self.epsilon.of(layer, heads)


_sessions: weakref.WeakKeyDictionary[nn.Module, tuple[Session, ...]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()


def session_of(module: nn.Module) -> Session | None:
    """The session that serves a module's calls in this thread: the last one entered here, or else by any thread."""
    entered = _sessions.get(module)
    if entered is None:
        return None
    if len(entered) == 1:
        return entered[0]
    thread = threading.get_ident()
    return next((session for session in reversed(entered) if session.thread == thread), entered[-1])


@contextmanager
def under(modules: Iterable[nn.Module], session: Session) -> Iterator[None]:
    """Put modules under a session for the length of a block; blocks may overlap in any order."""
    held = list(modules)
    with _lock:
        for module in held:
            _sessions[module] = (*_sessions.get(module, ()), session)
    try:
        yield
    finally:
        with _lock:
            for module in held:
                left = tuple(other for other in _sessions[module] if other is not session)
                if left:
                    _sessions[module] = left
                else:
                    del _sessions[module]
