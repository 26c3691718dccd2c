"""A budget on text that it has not seen: decode steps of the model under `hf.certify` and as it is, in turns."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tailbound.hf import Budget
from tailbound.lab import decoders, timing
from tailbound.lab.audit import curves
from tailbound.lab.audit.advise import Target
from tailbound.lab.audit.policies import Certified
from tailbound.lab.audit.reading import Decoder, Encoder, Errors, Reading, errors_of


class Verified(NamedTuple):
    """What a budget comes to on held-out text.

    Attributes:
        figures: of `curves.summary`; shares of keys and bytes.
        value: of the target's measure. met: whether it keeps to the target.
        over_limit: how far beyond the limit it is; 0 if it is met.
        speed: how many times faster a whole decode step is than the model's own; None for an encoder.
        fallbacks: calls answered exactly that were no prefill.
    """

    figures: dict[str, Any]
    value: float
    met: bool
    over_limit: float
    speed: timing.Ratio | None
    fallbacks: int | None

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return self._asdict() | {"speed": None if self.speed is None else self.speed._asdict()}


def verify(reading: Reading, budget: Budget, target: Target, tick: Callable[[], None]) -> Verified:
    """Run a budget; an encoder's calls have no cache, so its run is that of the policy."""
    policy = Certified(budget)
    predicted = reading.errors(policy)
    tick()
    if isinstance(reading, Encoder):
        errors, speed, fallbacks = predicted, None, None
    else:
        errors, speed, fallbacks = _steps(reading, budget, tick)
    value = target.value(errors)
    over = target.limit - value if target.measure == "agreement" else value - target.limit
    figures = curves.summary(curves.of_run(policy, errors))
    return Verified(figures, value, target.reached(errors), max(0.0, over), speed, fallbacks)


def _steps(reading: Decoder, budget: Budget, tick: Callable[[], None]) -> tuple[Errors, timing.Ratio, int]:
    logits: dict[str, list[Tensor]] = {"dense": [], "ours": []}
    with ExitStack() as stack, torch.inference_mode():
        dense = decoders.stock(reading.model)
        ours, ledger = stack.enter_context(decoders.certified(reading.model, budget))
        for decoder in (dense, ours):
            decoder.prefill(reading.prompt)
            tick()
        calls = {
            "dense": decoders.forcing(dense, reading.last, logits["dense"]),
            "ours": decoders.forcing(ours, reading.last, logits["ours"]),
        }
        seconds = timing.take_turns(calls, reading.last.shape[1], tick, warm=0)
    fallbacks = sum(count for (_, why), count in ledger.exact.items() if not why.endswith("(prefill)"))
    errors = errors_of(torch.stack(logits["ours"]), torch.stack(logits["dense"]), reading.last)
    return errors, timing.ratio(seconds["dense"], seconds["ours"]), fallbacks
