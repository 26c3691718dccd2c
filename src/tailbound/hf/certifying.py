"""`certify`: a model under certificates for the length of a `with` block, and exactly itself after it."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from tailbound.hf.budget import Budget
from tailbound.hf.interface import install
from tailbound.hf.ledger import Ledger
from tailbound.hf.session import Observation, Session, under
from tailbound.hf.switching import certified_caches, switched_attention


@contextmanager
def certify(
    model: PreTrainedModel,
    epsilon: float | str | os.PathLike[str] | Mapping[str, Any] | Budget = 0.01,
    record: bool | Ledger = True,
    observe: Callable[[Observation], None] | None = None,
    study: bool = False,
) -> Iterator[Ledger]:
    """Serve the model's decoding attention with certificates of at most `epsilon`.

    Inside the block, attention calls with up to 16 queries keep the fewest keys that provably miss at most `epsilon`
    of the attention mass; longer calls (prefill) are exact. A call that cannot be certified is exact too, and the
    ledger names the layer and the reason. A certificate speaks of one attention call on the tensors passed to it.

    Caches that the model is given or makes become certified ones in place (`CertifiedLayer`), and go on working after
    the block. Blocks may nest and overlap; where several hold a model, a thread's calls belong to the last block that
    it entered, those of a thread that entered none to the last block of all.

    Args:
        model: of transformers, with attention that goes through the attention interface; docs/models.md has a list.
        epsilon: budget of total variation for each row: a number in [0, 1), or by layer and head in the forms that
            `Budget.parse` reads, such as `{"default": 0.01, "layers": {"0": 0.05}, "heads": {"3.7": 0.0}}`.
        record: write certificates to the ledger; without, only calls answered exactly are counted. A `Ledger` is
            written to, for one that holds more or fewer certificates or goes on from an earlier block.
        observe: called after each certified call with its inputs, its answer and the kept set.
        study: also certify what no index can serve: calls with many queries (prefill, encoders), and keys outside a
            certified cache. Truncated attention to study, not to be fast: every key is read, in float64. Modules that
            do not say which layer they are get the next numbers, in the order in which they are called.

    Yields:
        the `Ledger`, which stays readable after the block.

    Raises:
        TypeError: not a transformers model. ValueError: not a budget, one that names layers which the model does not
            have, or a model that never calls us.
    """
    if not isinstance(model, PreTrainedModel):
        raise TypeError(f"certify takes a transformers PreTrainedModel, not a {type(model).__name__}")
    budget = Budget.parse(epsilon)
    indices = (getattr(module, "layer_idx", None) for module in model.modules())
    layers = {index for index in indices if isinstance(index, int)}
    budget.check_layers(layers)
    ledger = record if isinstance(record, Ledger) else Ledger()
    named = max(layers, default=-1) + 1
    terms = Session(budget, ledger, record is not False, observe, threading.get_ident(), study, {}, named)
    install()
    with under(model.modules(), terms), switched_attention(model), certified_caches(model):
        yield ledger
