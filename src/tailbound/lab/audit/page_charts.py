"""The charts of an audit's page."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

from tailbound.hf import Budget
from tailbound.lab.audit import words
from tailbound.lab.audit.columns import AT, EPSILONS
from tailbound.lab.audit.curves import DECODER
from tailbound.lab.audit.words import Found
from tailbound.report.charts import Axis, Chart, Grid, Line, Points, Shades, heat_map, lines, scatter

SHARES = {"share": "needed", "p95": "95th percentile of positions", "rule": "Gaussian rule"}
"""Figures at every budget, and what they are called."""

_EPSILON = Axis("epsilon", log=True, ticks=EPSILONS)
_SHARE = Axis("share of keys", form=".0%", ends=(0.0, 1.0))


def budgets(found: Found) -> dict[str, Budget]:
    """What is advised, by its name, the first being the one to take."""
    return {advice["kind"]: Budget.parse(advice["budget"]) for advice in found["advised"]}


def maps(found: Found) -> list[Chart]:
    """Heat maps of layer by head."""
    share = [_shares(found, "share", epsilon, f"Keys needed at {epsilon:g}") for epsilon in (AT, 0.001, 0.1)]
    return [
        *share,
        _shares(found, "p95", AT, f"95th percentile of keys needed at {AT:g}"),
        _heat(
            found,
            "The Gaussian rule's share less the measured one",
            lambda line: line[f"rule_{AT:g}"] - line[f"share_{AT:g}"],
            "+.1%",
            Shades("rule less measured", form="+.0%", centred=True),
        ),
        _heat(found, "Spread of logits", lambda line: line["sigma"], ".2f", Shades("nats")),
        _heat(found, "Excess kurtosis of logits", lambda line: line["kurtosis"], "+.2f", Shades("", centred=True)),
        _logarithmic(found, "Effective keys", "effective_keys", ",.1f"),
        _heat(found, "Mass on the first keys", lambda line: line["sink_mass"], ".1%", _part("mass")),
        _heat(found, "Mass on recent keys", lambda line: line["recent_mass"], ".1%", _part("mass")),
        _heat(
            found,
            f"Keys kept by certificate over keys needed at {AT:g}",
            lambda line: line["certified_over_needed"],
            ".3f",
            Shades("kept / needed"),
        ),
        _logarithmic(found, "Interval bound on the tail over the truth", "looseness_interval", ".3g"),
    ]


def keys(found: Found) -> Chart:
    """Keys needed against epsilon, over all heads."""
    model = found["model"]
    curves = [Line(name, EPSILONS, [model[f"{kind}_{e:g}"] for e in EPSILONS]) for kind, name in SHARES.items()]
    alt = (
        f"Share of keys needed against epsilon, the mean over heads: {model['share_0.001']:.0%} at 0.001, "
        f"{model['share_0.01']:.0%} at 0.01, {model['share_0.1']:.0%} at 0.1. The Gaussian rule says "
        f"{model['rule_0.001']:.0%}, {model['rule_0.01']:.0%}, {model['rule_0.1']:.0%}."
    )
    return lines("Keys needed", alt, _EPSILON, _SHARE, curves)


def head() -> Chart:
    """Keys against epsilon of one head, whose figures `of_head` gives."""
    curves = [Line(name, EPSILONS, []) for name in SHARES.values()]
    y_axis = _SHARE._replace(ends=None)
    return lines("", "Share of keys against epsilon of head KEY; figures are below.", _EPSILON, y_axis, curves)


def of_head(line: Found) -> list[list[float]]:
    """For each line of `head`, its values."""
    return [[line[f"{kind}_{epsilon:g}"] for epsilon in EPSILONS] for kind in SHARES]


def rules(found: Found) -> list[Chart]:
    """Share measured against that predicted, by head."""
    return [_rule(found, epsilon) for epsilon in (AT, 0.001, 0.05, 0.2)]


def answers(found: Found) -> list[Chart]:
    """What budgets and policies do to the model's answers, against each thing that one may pay with."""
    name = words.distance(found)
    charts = [
        _answers(found, f"{name}, by epsilon", "tv_mean", name, "epsilon"),
        _answers(found, f"{name}, by keys read", "tv_mean", name, "share"),
        _answers(found, f"{name}, by bytes moved", "tv_mean", name, "bytes_share"),
    ]
    if not found["encoder"]:
        charts.append(_answers(found, "KL, by epsilon", "kl_mean", "KL from dense, nats", "epsilon"))
        charts.append(_answers(found, "Same likeliest token, by epsilon", "agreement", "", "epsilon"))
    return charts


def budget_maps(found: Found) -> list[Chart]:
    """The budget of each head, for each budget that is not the same for all."""
    charts = []
    for kind, budget in budgets(found).items():
        if varies(budget):
            charts.append(_map(f"Budget {kind}", *budget_grid(found, budget)))
    return charts


def varies(budget: Budget) -> bool:
    """Whether heads have budgets of their own."""
    return bool(budget.heads or budget.layers)


def budget_grid(found: Found, budget: Budget) -> tuple[Grid, Shades]:
    """The budget of each head, in even steps over the values that it takes."""
    values = sorted({words.entry(budget, line) for line in found["heads"]})
    marks = (list(range(len(values))), [f"{value:g}" for value in values])
    cells = grid(
        found,
        lambda line: float(values.index(words.entry(budget, line))),
        lambda line: f"epsilon {words.entry(budget, line):g}",
    )
    return cells, Shades("epsilon", marks=marks)


def grid(found: Found, of: Callable[[Found], float | None], say: Callable[[Found], str]) -> Grid:
    """A value for each head: layers from left to right, heads from below."""
    lines_of = {(line["layer"], line["head"]): line for line in found["heads"]}
    layers = sorted({layer for layer, _ in lines_of})
    heads = sorted({head for _, head in lines_of})

    def row(head: int, what: Callable[[Found], Any], other: Any) -> list[Any]:
        return [what(lines_of[layer, head]) if (layer, head) in lines_of else other for layer in layers]

    return Grid(heads, layers, [row(head, of, None) for head in heads], [row(head, say, "") for head in heads])


def _shares(found: Found, kind: str, epsilon: float, label: str) -> Chart:
    return _heat(found, label, lambda line: line[f"{kind}_{epsilon:g}"], ".1%", _part("share of keys"))


def _part(title: str) -> Shades:
    return Shades(title, form=".0%", ends=(0.0, 1.0))


def _heat(found: Found, label: str, of: Callable[[Found], float | None], form: str, shades: Shades) -> Chart:
    def say(line: Found) -> str:
        value = of(line)
        return "not measured" if value is None else format(value, form)

    return _map(label, grid(found, of, say), shades)


def _logarithmic(found: Found, label: str, name: str, form: str) -> Chart:
    """Colours by the logarithm."""
    some = [line[name] for line in found["heads"] if line[name]]
    ends = (math.log10(min(some)), math.log10(max(some))) if some else (0.0, 1.0)
    marks = [10 ** (ends[0] + (ends[1] - ends[0]) * part / 4) for part in range(5)]
    shades = Shades("logarithmic", marks=([math.log10(mark) for mark in marks], [f"{mark:.2g}" for mark in marks]))

    def of(line: Found) -> float | None:
        return math.log10(line[name]) if line[name] else None

    def say(line: Found) -> str:
        return format(line[name], form) if line[name] else "not measured"

    return _map(label, grid(found, of, say), shades)


def _map(label: str, cells: Grid, shades: Shades) -> Chart:
    alt = f"Heat map of {len(cells.columns)} layers by {len(cells.rows)} heads: {label}."
    ranked = sorted(
        (value, f"head {layer}.{head}, {said}")
        for head, values, sayings in zip(cells.rows, cells.values, cells.words, strict=True)
        for layer, value, said in zip(cells.columns, values, sayings, strict=True)
        if value is not None
    )
    if ranked:
        alt += f" Lowest: {ranked[0][1]}. Highest: {ranked[-1][1]}."
    return heat_map(label, alt, "layer", "head", cells, shades)


def _rule(found: Found, epsilon: float) -> Chart:
    heads = found["heads"]
    rule = [line[f"rule_{epsilon:g}"] for line in heads]
    measured = [line[f"share_{epsilon:g}"] for line in heads]
    said = [f"rule {x:.1%}, measured {y:.1%}" for x, y in zip(rule, measured, strict=True)]
    less = sum(y < x for x, y in zip(rule, measured, strict=True))
    alt = (
        f"Share of keys at epsilon {epsilon:g}, measured against the Gaussian rule, one point a head: {less} of "
        f"{len(heads)} heads need fewer keys than the rule says."
    )
    points = Points(
        rule, measured, [words.key(line) for line in heads], said, [line["layer"] for line in heads], "layer"
    )
    x_axis = Axis("share of keys, Gaussian rule", form=".0%")
    return scatter(f"epsilon {epsilon:g}", alt, x_axis, Axis("share of keys, measured", form=".0%"), points)


def _answers(found: Found, label: str, name: str, y_title: str, x_name: str) -> Chart:
    axes = {
        "epsilon": _EPSILON,
        "share": Axis("keys read, share", form=".0%"),
        "bytes_share": Axis("bytes moved over those of dense attention", form=".2f"),
    }
    curves = list(_policies(found, name, x_name))
    ours = [line for line in found["curve"] if line["policy"] == DECODER[0]]
    ends = ", ".join(f"{line[name]:.2g} at epsilon {line['epsilon']:g}" for line in (ours[0], ours[-1]))
    alt = f"{label}, for {len(curves)} policies. Of {DECODER[0]}: {ends}."
    y_axis = Axis("share of positions that agree", form=".1%") if name == "agreement" else Axis(y_title, log=True)
    return lines(label, alt, axes[x_name], y_axis, curves)


def _policies(found: Found, name: str, x_name: str) -> Iterator[Line]:
    for policy in DECODER:
        some = [line for line in found["curve"] if line["policy"] == policy]
        if some:
            errors = [line["tv_standard_error"] for line in some] if name == "tv_mean" else None
            yield Line(policy, [line[x_name] for line in some], [line[name] for line in some], errors)
