"""A budget for each head that meets a target at the fewest bytes, and the best single one that meets it too.

For a number lambda every head takes the budget that makes `keys read + lambda * damage` smallest, each on its own:
that is the best choice at the total damage it comes to. How much total damage the target allows is found by runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from tailbound.hf import Budget
from tailbound.lab import needs
from tailbound.lab.audit.columns import GRID, cost_name
from tailbound.lab.audit.policies import Certified
from tailbound.lab.audit.reading import Errors, Reading
from tailbound.lab.errors import InputError

CLOSE = 1.1
"""The search ends when what fails is at most so many times what meets the target."""

MOST = 14
"""Runs that a search may take."""

DRAWN = 0.8
"""On SmolLM2 at 2,048 tokens, 0, 0.3, 0.6, 0.8, 0.9, 1 give 0.516, 0.507, 0.504, 0.500, 0.502, 0.503 of the bytes."""

NORMAL_95 = 1.645
"""One-sided 95% of a normal distribution, in standard deviations."""


class Target(NamedTuple):
    """What the model's answers must keep to: a measure of `EXAMPLES` and its limit."""

    measure: str
    limit: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read `measure=limit`.

        Raises:
            InputError: no such measure, or not a limit of it.
        """
        found = re.fullmatch(r"([a-z-]+)=([0-9.eE+-]+)", text.strip())
        known = ", ".join(f"{name}={example}" for name, example in EXAMPLES.items())
        try:
            if found is None or found[1] not in EXAMPLES:
                raise ValueError
            limit = float(found[2])
        except ValueError:
            raise InputError(f"--target {text}: give one of {known}, or none") from None
        if not (0 < limit < 1 or (found[1] == "agreement" and limit == 1) or (found[1] == "kl" and limit > 0)):
            raise InputError(f"--target {text}: the limit must lie between 0 and 1")
        return cls(found[1], limit)

    @classmethod
    def choose(cls, asked: str | None, encoder: bool) -> Target | None:
        """What was asked for, or the default; None for "none".

        Raises:
            InputError: as `parse`, and for a measure that this kind of model does not have.
        """
        if asked == "none":
            return None
        own = ENCODERS if encoder else DECODERS
        found = cls.parse(asked or f"{own[0]}={EXAMPLES[own[0]]}")
        if found.measure not in own:
            what = "an encoder" if encoder else "a decoder"
            raise InputError(f"--target {found}: of {what} it is {', '.join(own)}")
        return found

    def __str__(self) -> str:
        """As it is parsed."""
        return f"{self.measure}={self.limit:g}"

    def value(self, errors: Errors) -> float:
        """The measure over the positions looked at."""
        return float(self._rows(errors).mean())

    def reached(self, errors: Errors, sure: bool = False) -> bool:
        """Whether it is met; if `sure`, by the upper end of the mean's one-sided 95% interval, but for agreement."""
        rows = self._rows(errors)
        if self.measure == "agreement":
            return float(rows.mean()) >= self.limit
        margin = NORMAL_95 * float(rows.std()) / math.sqrt(len(rows)) if sure and len(rows) > 1 else 0.0
        return float(rows.mean()) + margin <= self.limit

    def _rows(self, errors: Errors) -> Any:
        return {"agreement": errors.agrees, "kl": errors.kl}.get(self.measure, errors.tv)


EXAMPLES = {"next-token-tv": "0.01", "agreement": "0.99", "kl": "0.001", "hidden-distance": "0.05"}
"""The measures, each with a limit."""

DECODERS, ENCODERS = ("next-token-tv", "agreement", "kl"), ("hidden-distance",)
"""Whose measures they are; the first is the default."""


class Candidate(NamedTuple):
    """A budget and what it does on the text that it was chosen on.

    Attributes:
        damage: predicted, of one position: KL in nats, or half a squared relative distance; None of a single budget.
    """

    budget: Budget
    damage: float | None
    errors: Errors
    policy: Certified


class Table(NamedTuple):
    """Figures of each head and budget of `GRID`, (layers, heads, budgets): mean keys read, and damage to a position."""

    layers: list[int]
    keys: np.ndarray
    damage: np.ndarray

    @classmethod
    def of(cls, columns: Mapping[str, np.ndarray]) -> Table:
        """Means over the rows of each head.

        Few positions say little of one head's damage, and a choice by it would take the heads that were lucky there:
        so it is drawn towards the mean of its layer, by `DRAWN` of the way on a logarithmic scale. It is made to rise
        with the budget, where it was estimated to fall.
        """
        layers, heads = np.unique(columns["layer"]), int(columns["head"].max()) + 1
        keys = np.empty((len(layers), heads, len(GRID)))
        damage = np.empty_like(keys)
        for at, layer in enumerate(layers):
            for head in range(heads):
                here = (columns["layer"] == layer) & (columns["head"] == head)
                for number, epsilon in enumerate(GRID):
                    name = "visible" if epsilon == 0 else needs.k_name(epsilon)
                    keys[at, head, number] = columns[name][here].mean()
                    damage[at, head, number] = columns[cost_name(epsilon)][here].mean() if epsilon else 0.0
        some = damage[..., 1:] + np.finfo(float).tiny
        damage[..., 1:] = some ** (1 - DRAWN) * some.mean(1, keepdims=True) ** DRAWN
        return cls(layers.tolist(), keys, np.maximum.accumulate(damage, -1))

    def within(self, damage: float) -> tuple[Budget, float]:
        """The budget that reads the fewest keys at no more than a total damage, and the damage it comes to."""
        few, many = 1e-12, 1e30
        while many / few > 1.001:
            middle = math.sqrt(few * many)
            if self._total(self._choice(middle)) > damage:
                few = middle
            else:
                many = middle
        choice = self._choice(many)
        return self._budget(choice), self._total(choice)

    def _choice(self, price: float) -> np.ndarray:
        return (self.keys + price * self.damage).argmin(-1)

    def _total(self, choice: np.ndarray) -> float:
        return float(np.take_along_axis(self.damage, choice[..., None], -1).sum())

    def _budget(self, choice: np.ndarray) -> Budget:
        """With the commonest entry as the default."""
        entries = np.asarray(GRID)[choice]
        values, counts = np.unique(entries, return_counts=True)
        default = float(values[counts.argmax()])
        heads = {
            (layer, head): float(entries[at, head])
            for at, layer in enumerate(self.layers)
            for head in range(entries.shape[1])
            if entries[at, head] != default
        }
        return Budget(default, {}, heads)


def by_head(readings: Sequence[Reading], table: Table, target: Target, tick: Callable[[], None]) -> Candidate | None:
    """The budget by head that meets the target with the fewest keys; None if not even the smallest meets it."""

    def of(damage: float) -> tuple[Budget, float]:
        return table.within(damage)

    start = target.limit**2 if target.measure in ("next-token-tv", "hidden-distance") else target.limit
    return _largest(readings, target, of, start if target.measure != "agreement" else 1e-3, tick)


def uniform(readings: Sequence[Reading], target: Target, tick: Callable[[], None]) -> Candidate | None:
    """The largest single budget that meets the target."""

    def of(epsilon: float) -> tuple[Budget, None]:
        return Budget(float(f"{min(epsilon, 0.5):.3g}")), None

    return _largest(readings, target, of, 0.01, tick)


def _largest(
    readings: Sequence[Reading],
    target: Target,
    of: Callable[[float], tuple[Budget, float | None]],
    start: float,
    tick: Callable[[], None],
) -> Candidate | None:
    """The largest of a rising family of budgets that meets the target, to a factor `CLOSE`."""
    best: Candidate | None = None
    low, high, at = 0.0, math.inf, start
    for _ in range(MOST):
        budget, damage = of(at)
        policy = Certified(budget)
        runs = [reading.errors(policy) for reading in readings]
        errors = Errors(*(torch.cat(parts) for parts in zip(*runs, strict=True)))
        tick()
        if target.reached(errors, sure=True):
            low, best = at, Candidate(budget, damage, errors, policy)
        else:
            high = at
        if low and high / low <= CLOSE:
            break
        at = math.sqrt(low * high) if low and high < math.inf else at * 3 if low else at / 3
        if at > 1e6 * start or at < 1e-9 * start:
            break
    return best
