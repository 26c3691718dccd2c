"""A budget on text that it has not seen: decode steps of the model under `hf.certify` and as it is, in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tailbound.hf import Budget
from tailbound.lab import decoders, timing
from tailbound.lab.audit import curves
from tailbound.lab.audit.advise import Target
from tailbound.lab.audit.policies import Certified
from tailbound.lab.audit.reading import Decoder, Errors, Reading, errors_of


class Run(NamedTuple):
    """Errors of a budget, how many times faster a step is, and fallbacks; the last two None if nothing is decoded."""

    errors: Errors
    speed: timing.Ratio | None
    fallbacks: int | None


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


def verify(reading: Reading, budgets: Sequence[Budget], target: Target, tick: Callable[[], None]) -> list[Verified]:
    """Run budgets; an encoder's calls have no cache, so its run is that of the policy."""
    policies = [Certified(budget) for budget in budgets]
    runs: list[Run] = []
    for policy in policies:
        runs.append(Run(reading.errors(policy), None, None))
        tick()
    if isinstance(reading, Decoder):
        runs = steps(reading, budgets, tick)
    return [_verified(policy, run, target) for policy, run in zip(policies, runs, strict=True)]


def steps(reading: Decoder, budgets: Sequence[Budget], tick: Callable[[], None]) -> list[Run]:
    """Decode the last positions step by step, densely and under `certify` with each budget, in turns."""
    with ExitStack() as stack, torch.inference_mode():
        dense = decoders.stock(reading.model)
        ours = [stack.enter_context(decoders.certified(reading.model, budget)) for budget in budgets]
        for decoder in (dense, ours[0][0]):
            decoder.prefill(reading.prompt)
            tick()
        for decoder, _ in ours[1:]:  # what is cached does not depend on the budget
            decoder.take_over(ours[0][0])
        logits: list[list[Tensor]] = [[] for _ in range(1 + len(ours))]
        taking_turns = [dense, *(decoder for decoder, _ in ours)]
        calls = {
            number: decoders.forcing(decoder, reading.last, logits[number])
            for number, decoder in enumerate(taking_turns)
        }
        seconds = timing.take_turns(calls, reading.last.shape[1], tick, warm=0)
    exact = torch.stack(logits[0])
    return [
        Run(
            errors_of(torch.stack(logits[number]), exact, reading.last),
            timing.ratio(seconds[0], seconds[number]),
            decoders.fallbacks(ledger),
        )
        for number, (_, ledger) in enumerate(ours, 1)
    ]


def _verified(policy: Certified, run: Run, target: Target) -> Verified:
    value = target.value(run.errors)
    over = target.limit - value if target.measure == "agreement" else value - target.limit
    figures = curves.summary(curves.of_run(policy, run.errors))
    return Verified(figures, value, target.reached(run.errors), max(0.0, over), run.speed, run.fallbacks)
