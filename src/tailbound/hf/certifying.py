"""`certify`: a model under certificates for the length of a `with` block, and exactly itself after it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from tailbound.hf import session
from tailbound.hf.budget import Budget
from tailbound.hf.interface import NAME, install
from tailbound.hf.ledger import Ledger


@contextmanager
def certify(
    model: PreTrainedModel,
    epsilon: float | str | os.PathLike[str] | Mapping[str, Any] | Budget = 0.01,
    record: bool | Ledger = True,
    observe: Callable[[session.Observation], None] | None = None,
) -> Iterator[Ledger]:
    """Serve the model's decoding attention with certificates of at most `epsilon`.

    Inside the block, attention calls with up to 16 queries keep the fewest keys that provably miss at most `epsilon`
    of the attention mass; longer calls (prefill) are exact. A call that cannot be certified is exact too, and the
    ledger names the layer and the reason. A certificate speaks of one attention call on the tensors passed to it.

    Args:
        model: a transformers decoder whose attention goes through the attention interface (Llama and its kin).
        epsilon: budget of total variation for each row: a number in [0, 1), or by layer and head in the forms that
            `Budget.parse` reads, such as `{"default": 0.01, "layers": {"0": 0.05}, "heads": {"3.7": 0.0}}`.
        record: write certificates to the ledger; without, only calls answered exactly are counted. A `Ledger` is
            written to, for one that holds more or fewer certificates or goes on from an earlier block.
        observe: called after each certified call with its inputs, its answer and the kept set.

    Yields:
        the `Ledger`, which stays readable after the block.

    Raises:
        TypeError: not a transformers model. ValueError: not a budget, one that names layers or heads that
            the model does not have, or a model that never calls us.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"certify takes a transformers PreTrainedModel, not a {type(model).__name__}")
    budget = Budget.parse(epsilon)
    layers = (getattr(module, "layer_idx", None) for module in model.modules())
    budget.check_layers({layer for layer in layers if isinstance(layer, int)})
    ledger = record if isinstance(record, Ledger) else Ledger()
    terms = session.Session(budget, ledger, record is not False, observe)
    install()
    before = _implementations(model)
    modules = session.enter(model.modules(), terms)
    try:
        _switch(model)
        yield ledger
    finally:
        session.leave(modules)
        for config, implementation in before:
            config._attn_implementation = implementation


def _implementations(model: PreTrainedModel) -> list[tuple[Any, str | None]]:
    """Every configuration of the model with its attention implementation, outer ones first.

    Setting an outer one overwrites those inside it, so this is also the order in which to put them back.
    """
    found: dict[int, tuple[Any, str | None]] = {}

    def visit(config: Any) -> None:
        if config is None or id(config) in found:
            return
        found[id(config)] = (config, config._attn_implementation)
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
