"""What differs between two audits, from what their `audit.json` holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tailbound.hf import Budget
from tailbound.lab.audit import words
from tailbound.lab.audit.columns import AT
from tailbound.lab.audit.words import Found

SCHEMA = "tailbound.compare/1"

CURVE = ("share", "bytes_share", "tv_mean", "kl_mean", "agreement", "loss")
"""Figures of a policy at a budget that are set side by side."""


def compare(a: Found, b: Found) -> dict[str, Any]:
    """Both audits side by side; `b - a` where both are numbers.

    Returns:
        `settings`: those that differ. `model`: its figures. `curves`: policies at the same epsilon. `heads`: those that
        both have, by the change of the share of keys that they need, the largest first; with none, `why_no_heads`
        says why. `advised`: the budgets of both.
    """
    heads, why = _heads(a, b)
    return {
        "schema": SCHEMA,
        "models": [a["settings"]["model"], b["settings"]["model"]],
        "distances": [words.distance(a), words.distance(b)],
        "verdicts": [words.verdict(a), words.verdict(b)],
        "settings": [line for line in _pairs(_settings(a), _settings(b)) if line["a"] != line["b"]],
        "model": [_changed(line) for line in _pairs(a["model"], b["model"])],
        "curves": list(_curves(a, b)),
        "heads": heads,
        "why_no_heads": why,
        "advised": [*_advised("a", a), *_advised("b", b)],
    }


def _settings(found: Found) -> dict[str, Any]:
    names = ("text", "encoder", "target", "complete", "processor")
    asked = {name: value for name, value in found["settings"].items() if name != "schema"}
    return asked | {name: found[name] for name in names} | found["versions"]


def _pairs(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{"name": name, "a": a.get(name), "b": b.get(name)} for name in dict.fromkeys([*a, *b])]


def _changed(line: dict[str, Any]) -> dict[str, Any]:
    return line | {"change": None if line["a"] is None or line["b"] is None else line["b"] - line["a"]}


def _curves(a: Found, b: Found) -> Iterator[dict[str, Any]]:
    ours, theirs = ({(line["policy"], line["epsilon"]): line for line in found["curve"]} for found in (a, b))
    for policy, epsilon in ours:
        if (policy, epsilon) in theirs:
            left, right = ours[policy, epsilon], theirs[policy, epsilon]
            yield {"policy": policy, "epsilon": epsilon} | {name: [left[name], right[name]] for name in CURVE}


def _heads(a: Found, b: Found) -> tuple[list[dict[str, Any]], str]:
    sizes = [_size(found) for found in (a, b)]
    if sizes[0] != sizes[1]:
        return [], f"A has {_in_words(sizes[0])} and B {_in_words(sizes[1])}, so heads cannot be told to be the same"
    ours, theirs = ({words.key(line): line for line in found["heads"]} for found in (a, b))
    budgets = [_best(found) for found in (a, b)]
    share = f"share_{AT:g}"
    found = [
        _changed({"head": head, "a": line[share], "b": theirs[head][share]})
        | {
            "sigma": [line["sigma"], theirs[head]["sigma"]],
            "epsilon": [None if budget is None else words.entry(budget, line) for budget in budgets],
        }
        for head, line in ours.items()
        if head in theirs
    ]
    why = "" if found else "no head was measured in both"
    return sorted(found, key=lambda line: -abs(line["change"])), why


def _size(found: Found) -> tuple[int, int]:
    return found["layers"], max((line["head"] for line in found["heads"]), default=-1) + 1


def _in_words(size: tuple[int, int]) -> str:
    return f"{size[0]} layers of {size[1]} heads"


def _best(found: Found) -> Budget | None:
    return Budget.parse(found["advised"][0]["budget"]) if found["advised"] else None


def _advised(which: str, found: Found) -> Iterator[dict[str, Any]]:
    for advice in found["advised"]:
        held = advice["held_out"]
        yield {
            "audit": which,
            "budget": words.budget_name(advice),
            "default": advice["budget"]["default"],
            "target": found["target"],
            "share": held["figures"]["share"],
            "bytes_share": held["figures"]["bytes_share"],
            "value": held["value"],
            "met": held["met"],
            "speed": None if held["speed"] is None else held["speed"]["median"],
        }
