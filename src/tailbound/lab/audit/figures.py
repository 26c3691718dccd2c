"""What the work of an audit comes to, before it is written: figures of heads, runs and budgets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tailbound.lab.audit import curves
from tailbound.lab.audit.advise import Candidate, Target
from tailbound.lab.audit.verifying import Verified


class Advice(NamedTuple):
    """A budget that meets the target on the text it was chosen on, and what it comes to on the other half."""

    kind: str
    candidate: Candidate
    held_out: Verified

    def as_json(self) -> dict[str, Any]:
        """Figures of both halves. The predicted speed of attention is that of its bytes: it cannot be beaten."""
        found = self.candidate
        return {
            "kind": self.kind,
            "budget": json.loads(found.budget.to_json()),
            "predicted_damage": found.damage,
            "predicted_attention_speed": 1.0 / found.policy.bytes_share,
            "chosen_on": curves.summary(curves.of_run(found.policy, found.errors)),
            "held_out": self.held_out.as_json(),
        }


class Figures(NamedTuple):
    """What was found, on one text or many.

    Attributes:
        complete: whether nothing is missing: the run was not interrupted.
        layers_done, layers: how many were measured, and how many there are.
        texts: of many texts a line for each that is done; empty for one.
        heads: a line for each head. curve: a line for each policy and budget.
        advised: the budgets that meet the target, the one to take first; empty without a target, or if none does.
        why_not: why nothing is advised.
        peak_bytes: resident memory at the highest point, of the process that needed most.
        write_rows: writes every row to a Parquet file, with a label in its metadata; None if there are none.
    """

    complete: bool
    layers_done: int
    layers: int
    texts: list[dict[str, Any]]
    heads: list[dict[str, Any]]
    curve: list[dict[str, Any]]
    target: Target | None
    advised: list[Advice]
    why_not: str
    peak_bytes: int
    write_rows: Callable[[Path, dict[str, Any]], None] | None
