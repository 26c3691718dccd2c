"""Where the time of a decode step goes: a clock around modules, the attention function, the cache and the ledger."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

if TYPE_CHECKING:
    from tailbound.hf import Ledger
    from tailbound.lab.decoders import Decoder

PARTS = ("linear layers", "head", "norms", "rotary angles", "cache", "attention", "recording", "other")
"""Kinds of work: "head" is the last linear layer, onto the vocabulary."""

STEPS = 8
"""Steps that are taken apart, after the timed ones and once more over the last tokens."""


def take_apart(decoder: Decoder, forced: Tensor, ledger: Ledger | None) -> dict[str, float]:
    """Milliseconds of a step by kind of work, means over `STEPS` steps, with "whole" for all of it.

    Time inside a part is that part's alone: recording is not in attention. "other" is what no part has: the glue of
    torch and transformers, and the clocks themselves. The cache is left as it was.

    Args:
        decoder: it has read forced (1, steps) last.
        forced: the tokens; the last `STEPS` are read again.
        ledger: its certificates are recorded into, or None.
    """
    steps = min(STEPS, forced.shape[1])
    decoder.cache.crop(-steps)
    clock = _Clock()
    with ExitStack() as stack:
        for hook in _hooks(decoder.model, clock):
            stack.callback(hook.remove)
        for layer in decoder.cache.layers:
            stack.enter_context(_wrapped(layer, "update", clock.around("cache")))
        if ledger is not None:
            stack.enter_context(_wrapped(ledger, "record", clock.around("recording")))
        attention = str(decoder.model.config._attn_implementation)
        stack.enter_context(_timed_attention(attention, clock.around("attention")))
        for step in range(steps):
            clock.enter("other")
            decoder.step(forced[:, forced.shape[1] - steps + step :][:, :1])
            clock.leave()
    found = {part: 1e3 * clock.seconds[part] / steps for part in PARTS if part in clock.seconds}
    return found | {"whole": sum(found.values())}


class _Clock:
    """Seconds by part. Parts nest: an inner one stops the outer one's clock."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._open: list[str] = []
        self._since = 0.0

    def enter(self, part: str) -> None:
        self._tick()
        self._open.append(part)

    def leave(self) -> None:
        self._tick()
        self._open.pop()

    def around(self, part: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
            def timed(*args: Any, **kwargs: Any) -> Any:
                self.enter(part)
                try:
                    return call(*args, **kwargs)
                finally:
                    self.leave()

            return timed

        return wrap

    def _tick(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


def _hooks(model: Any, clock: _Clock) -> Iterator[Any]:
    head = model.get_output_embeddings()
    for module in model.modules():
        part = "head" if module is head else _part(module)
        if part is not None:
            yield module.register_forward_pre_hook(lambda *_, part=part: clock.enter(part))
            yield module.register_forward_hook(lambda *_: clock.leave())


def _part(module: nn.Module) -> str | None:
    """What kind of work a module does, by its class: models name them alike."""
    name = type(module).__name__
    if isinstance(module, nn.Linear):
        return "linear layers"
    if name.endswith("Norm"):
        return "norms"
    if "RotaryEmbedding" in name:
        return "rotary angles"
    return None


@contextmanager
def _wrapped(owner: Any, name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Let an object's method go through a wrapper for the length of a block."""
    setattr(owner, name, wrap(getattr(owner, name)))
    try:
        yield
    finally:
        delattr(owner, name)


@contextmanager
def _timed_attention(name: str, wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Let transformers' attention function of a name go through a wrapper for the length of a block."""
    before = ALL_ATTENTION_FUNCTIONS[name]
    ALL_ATTENTION_FUNCTIONS.register(name, wrap(before))
    try:
        yield
    finally:
        ALL_ATTENTION_FUNCTIONS.register(name, before)
