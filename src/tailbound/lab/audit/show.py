"""What `tailbound audit` says in the terminal: a verdict, the heads at both ends, policies side by side, the budget."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from tailbound.lab.audit import curves, words
from tailbound.lab.audit.columns import AT
from tailbound.lab.audit.job import Result
from tailbound.report import tables

ENDS = 5
"""Heads, or texts, shown of those that need the fewest keys, and of those that need the most."""


def audit(result: Result) -> Iterator[RenderableType]:
    """The verdict first; then tables."""
    yield Text(words.verdict(result.as_json()), style="bold")
    if result.figures.heads:
        yield _model(result)
        yield _heads(result)
    if result.figures.curve:
        yield _curve(result)
    if result.figures.texts:
        yield _texts(result)
    if result.figures.advised:
        yield _advice(result)
    yield Text("written: " + ", ".join(str(path) for path in result.written))


def _model(result: Result) -> RenderableType:
    model = result.model

    def by_epsilon(name: str) -> str:
        return ", ".join(f"{epsilon:g}: {model[f'{name}_{epsilon:g}']:.1%}" for epsilon in (0.001, 0.01, 0.05, 0.1))

    def loose(*names: str) -> str:
        return ", ".join(f"{name} {tables.figure(model[f'looseness_{name}'], '.3g')}" for name in names)

    shape = f"skewness {model['skewness']:+.2f}, excess kurtosis {model['kurtosis']:+.2f}"
    gap = f"{model['gap_pass']:.1%} of rows pass with 16 keys; the fewest that pass are {model['share_gap']:.1%} of all"
    pairs = [
        ("keys needed, mean share", by_epsilon("share")),
        ("the Gaussian rule says", by_epsilon("rule")),
        ("spread of logits", f"{model['sigma']:.2f} nats, {shape}"),
        ("gap test", gap),
        ("kept by certificate", f"{model['certified_over_needed']:.3f} times the keys needed"),
        ("bound on the tail / truth", loose("interval", "box", "ball", "gap")),
        ("bound on the output / error", loose("variance", "diameter", "norm")),
        ("mass", f"{model['sink_mass']:.1%} on the first keys, {model['recent_mass']:.1%} on recent ones"),
    ]
    asked = result.options
    where = f"{asked['queries']} positions of {asked['context']:,} tokens of {result.notes['text']}"
    return tables.pairs(pairs, f"All heads, {where}")


def _heads(result: Result) -> RenderableType:
    columns = (
        "layer.head",
        "keys needed",
        "95%",
        "rule",
        "sigma",
        "sinks",
        "recent",
        "kept / needed",
        "interval",
        "box",
    )
    rows = (
        (
            f"{line['layer']}.{line['head']}",
            f"{line[f'share_{AT:g}']:.1%}",
            f"{line[f'p95_{AT:g}']:.1%}",
            f"{line[f'rule_{AT:g}']:.1%}",
            f"{line['sigma']:.2f}",
            f"{line['sink_mass']:.1%}",
            f"{line['recent_mass']:.1%}",
            f"{line['certified_over_needed']:.3f}",
            tables.figure(line["looseness_interval"], ".3g"),
            tables.figure(line["looseness_box"], ".3g"),
        )
        for line in _ends(result.figures.heads)
    )
    caption = "Interval, box: median of the certified tail over the true one. audit.json has every head"
    return tables.figures(f"Heads that need the fewest and the most keys at epsilon {AT:g}", columns, rows, caption)


def _texts(result: Result) -> RenderableType:
    columns = ("text", *(figure.words for figure in words.TEXT))
    rows = ((line["text"], *(figure.of(line) for figure in words.TEXT)) for line in _ends(result.figures.texts))
    caption = words.many(result.as_json()) + ". audit.json has every text"
    return tables.figures(f"Texts that need the fewest and the most keys at epsilon {AT:g}", columns, rows, caption)


def _ends(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    ranked = sorted(lines, key=lambda line: line[f"share_{AT:g}"])
    return ranked if len(ranked) <= 2 * ENDS else [*ranked[:ENDS], *ranked[-ENDS:]]


def _curve(result: Result) -> RenderableType:
    encoder = result.notes["encoder"]
    columns = ("policy", "epsilon", "keys read", "bytes", "distance" if encoder else "next-token TV", "+-", "largest")
    columns += () if encoder else ("KL", "same token", "loss")
    rows = []
    for epsilon in dict.fromkeys(line["epsilon"] for line in result.figures.curve):
        for line in result.figures.curve:
            if line["epsilon"] == epsilon:
                rows.append(_line(line, encoder))
    caption = "Policies read as many keys as ours at the same epsilon; bytes are over dense attention's"
    dense = result.figures.curve[0]["dense_loss"]
    if dense is not None:
        caption += f". Loss of exact attention: {dense:.4f} nats"
    return tables.figures("Answers of the model against budgets and policies", columns, rows, caption)


def _line(line: dict[str, Any], encoder: bool) -> tuple[str, ...]:
    ours = line["policy"] == curves.OURS
    found = (
        line["policy"],
        f"{line['epsilon']:g}" if ours else "",
        f"{line['share']:.1%}",
        f"{line['bytes_share']:.2f}",
        f"{line['tv_mean']:.4f}",
        tables.figure(line["tv_standard_error"], ".4f"),
        f"{line['tv_max']:.3f}",
    )
    if encoder:
        return found
    return *found, f"{line['kl_mean']:.5f}", f"{line['agreement']:.1%}", tables.figure(line["loss"], ".4f")


def _advice(result: Result) -> RenderableType:
    columns = (
        "budget",
        "keys read",
        "bytes",
        "on the text chosen on",
        "held out",
        "keys read",
        "bytes",
        "step, times faster",
    )
    rows = []
    assert result.figures.target is not None
    for advice in result.figures.advised:
        chosen, held = advice.candidate, advice.held_out
        rows.append(
            (
                f"epsilon {chosen.budget.default:g}" if advice.kind == "uniform" else "by head",
                f"{chosen.policy.share:.1%}",
                f"{chosen.policy.bytes_share:.3f}",
                f"{result.figures.target.value(chosen.errors):.4f}",
                f"{held.value:.4f} " + ("met" if held.met else "missed"),
                f"{held.figures['share']:.1%}",
                f"{held.figures['bytes_share']:.3f}",
                "" if held.speed is None else held.speed.in_words(in_lines=False),
            )
        )
    return tables.figures(
        f"Budgets for {result.figures.target}",
        columns,
        rows,
        "Held out: the second half of the text, decoded under certify and as it is, in turns. The first is budget.json",
    )
