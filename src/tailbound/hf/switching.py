"""What `certify` changes on a model, and changes back: its attention implementation, and two hooks for its caches.

Blocks on one model may overlap in any order, from several threads: the first one in notes what was there, the last one
out puts it back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from tailbound.hf.cache import certify_layers
from tailbound.hf.interface import NAME


@dataclass
class _Switched:
    """A configuration under our name: what it was before, and how many blocks hold it."""

    config: Any
    before: str | None
    blocks: int = 0


_switched: dict[int, _Switched] = {}
_lock = threading.Lock()


@contextmanager
def switched_attention(model: PreTrainedModel) -> Iterator[None]:
    """Make a model call `NAME` for its attention.

    Raises:
        ValueError: a part of the model does not call the attention interface.
    """
    with _lock:
        configs = _configs(model)
        for config in configs:
            _switched.setdefault(id(config), _Switched(config, config._attn_implementation)).blocks += 1
    try:
        _switch(model)
        yield
    finally:
        with _lock:
            for config in configs:  # outer ones first: setting one overwrites those inside it
                held = _switched[id(config)]
                held.blocks -= 1
                config._attn_implementation = NAME if held.blocks else held.before
                if not held.blocks:
                    del _switched[id(config)]


@contextmanager
def certified_caches(model: PreTrainedModel) -> Iterator[None]:
    """Make the caches that a model is given, or returns, certified ones: in place, so whoever holds one keeps it."""
    parts = [module for module in model.modules() if isinstance(module, PreTrainedModel)]
    hooks = [part.register_forward_pre_hook(_before_forward, with_kwargs=True) for part in parts]
    hooks += [part.register_forward_hook(_after_forward) for part in parts]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _before_forward(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for given in (*args, *kwargs.values()):
        if isinstance(given, Cache):
            certify_layers(given)


def _after_forward(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """Certify a cache that the model made, at once: copies that reuse a prompt then share its sketch."""
    for returned in output.values() if isinstance(output, dict) else output if isinstance(output, tuple) else ():
        if isinstance(returned, Cache):
            certify_layers(returned)


def _configs(model: PreTrainedModel) -> list[Any]:
    """Every configuration of a model, outer ones first."""
    found: dict[int, Any] = {}

    def visit(config: Any) -> None:
        if config is None or id(config) in found:
            return
        found[id(config)] = config
        for name in config.sub_configs:
            visit(getattr(config, name, None))

    visit(model.config)
    for module in model.modules():
        if isinstance(module, PreTrainedModel):
            visit(module.config)
    return list(found.values())


def _switch(model: PreTrainedModel) -> None:
    model.set_attn_implementation(NAME)
    stuck = [m for m in model.modules() if isinstance(m, PreTrainedModel) and m.config._attn_implementation != NAME]
    if stuck:
        raise ValueError(
            f"{type(stuck[0]).__name__} stays on {stuck[0].config._attn_implementation!r}: it does not call the "
            "attention interface of transformers, so its attention cannot be certified"
        )
