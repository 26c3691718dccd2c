"""What the figures of an audit are called, and its verdict, from what `audit.json` holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from tailbound.hf import Budget
from tailbound.lab.audit.columns import AT
from tailbound.report import tables

SCHEMA = "tailbound.audit/1"
"""Of `audit.json`."""

Found = Mapping[str, Any]
"""An audit, as `audit.json` has it."""


class Figure(NamedTuple):
    """A figure of a head: its name in `audit.json`, in a few words, and its format."""

    name: str
    words: str
    form: str

    def of(self, line: Found) -> str:
        """As it is shown; empty where it was not measured."""
        return tables.figure(line.get(self.name), self.form)


HEAD = (
    Figure(f"share_{AT:g}", f"Keys needed at {AT:g}", ".1%"),
    Figure(f"p95_{AT:g}", "95th percentile", ".1%"),
    Figure(f"rule_{AT:g}", "Gaussian rule", ".1%"),
    Figure("sigma", "Spread of logits, nats", ".2f"),
    Figure("skewness", "Skewness", "+.2f"),
    Figure("kurtosis", "Excess kurtosis", "+.2f"),
    Figure("effective_keys", "Effective keys", ",.1f"),
    Figure("heaviest", "Heaviest key", ".1%"),
    Figure("sink_mass", "Mass on first keys", ".1%"),
    Figure("recent_mass", "Mass on recent keys", ".1%"),
    Figure("certified_over_needed", "Kept / needed", ".3f"),
    Figure("looseness_interval", "Interval / truth", ".3g"),
    Figure("looseness_box", "Box / truth", ".3g"),
    Figure("looseness_ball", "Ball / truth", ".3g"),
    Figure("looseness_gap", "Gap bound / truth", ".3g"),
    Figure("gap_pass", "Gap test passed", ".1%"),
    Figure("share_gap", "Keys for the gap test", ".1%"),
    Figure("value_distance", "Value distance", ".2f"),
    Figure("looseness_variance", "Variance bound / error", ".3g"),
    Figure("looseness_diameter", "Diameter bound / error", ".3g"),
    Figure("looseness_norm", "Norm bound / error", ".3g"),
)
"""Of every head, at the budget that most is measured at; those that matter most come first."""


TEXT = (
    Figure(f"share_{AT:g}", f"Keys needed at {AT:g}", ".1%"),
    Figure("share", f"Keys read at {AT:g}", ".1%"),
    Figure("bytes_share", "Bytes over dense attention's", ".3f"),
    Figure("tv_mean", "Error of the answers", ".3g"),
    Figure("tv_max", "Largest", ".3g"),
    Figure("agreement", "Same token", ".1%"),
    Figure("dense_loss", "Loss of exact attention, nats", ".4f"),
)
"""Of every text of many; all but the first and the last of our policy at that budget."""


def key(line: Found) -> str:
    """A head, as budgets name it."""
    return f"{line['layer']}.{line['head']}"


def entry(budget: Budget, line: Found) -> float:
    """What a budget gives a head."""
    head = (line["layer"], line["head"])
    return budget.heads.get(head, budget.layers.get(head[0], budget.default))


def distance(found: Found) -> str:
    """What answers are measured by."""
    return "hidden-state distance" if found["encoder"] else "next-token TV"


def budget_name(advice: Found) -> str:
    """A budget in words."""
    return f"epsilon {advice['budget']['default']:g} everywhere" if advice["kind"] == "uniform" else "a budget by head"


def verdict(found: Found) -> str:
    """What the audit comes to."""
    name = found["settings"]["model"]
    if not found["heads"]:
        first = "text" if "texts" in found["settings"] else "layer"
        return f"{name}: interrupted before a {first} was measured; --resume goes on."
    model = found["model"]
    words = (
        f"{name}: at epsilon {AT:g}, {model['sparse_heads']} of {model['heads']} heads need less than a tenth of the "
        f"keys and {model['flat_heads']} more than half; the mean is {model[f'share_{AT:g}']:.1%}."
    )
    if not found["complete"]:
        runs = f"{len(found['curve'])} runs under budgets and policies"
        layers = f"{found['layers_done']} of {found['layers']} layers and {runs}"
        done = f"{len(found['texts'])} of {found['settings']['texts']} texts" if found.get("texts") else layers
        return f"{words} Interrupted after {done}; --resume goes on."
    if not found["advised"]:
        return f"{words} No budget is advised: {found['why_not']}."
    best = found["advised"][0]
    return f"{words} Advised: {budget_name(best)}, which {_kept(best, found['target'])}."


def many(found: Found) -> str:
    """Who read the texts, and what was read twice."""
    lines = found["texts"]
    workers, lost = len({line["by"] for line in lines}), sum(line["losses"] for line in lines)
    words = f"{len(lines)} texts, read by {workers} process{'es' if workers > 1 else ''}"
    return words if not lost else f"{words}; {lost} lost on the way, and what they were reading was read again"


def _kept(advice: Found, target: str) -> str:
    held = advice["held_out"]
    share, moved = held["figures"]["share"], held["figures"]["bytes_share"]
    reads = f"on text it has not seen reads {share:.1%} of the keys ({moved:.2f} of the bytes)"
    faster = "" if held["speed"] is None else f", decodes {held['speed']['median']:.2f} times as fast"
    met = f"meets {target} ({held['value']:.4g})" if held["met"] else f"misses {target} by {held['over_limit']:.2g}"
    return f"{reads}{faster} and {met}"
