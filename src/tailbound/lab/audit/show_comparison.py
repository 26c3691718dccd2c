"""What `tailbound compare` says in the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from tailbound.lab.audit.columns import AT
from tailbound.lab.audit.curves import OURS
from tailbound.lab.audit.words import HEAD
from tailbound.report import tables

MOST = 10
"""Heads shown; `--json` has all."""

SHARES = tuple(f"share_{epsilon}" for epsilon in ("0.001", "0.01", "0.05", "0.1"))
MODEL = ("sparse_heads", "flat_heads", *SHARES)
"""Figures of the model that stand first."""


def compare(found: dict[str, Any]) -> Iterator[RenderableType]:
    """Both verdicts; then tables of what differs."""
    for letter, verdict in zip("AB", found["verdicts"], strict=True):
        yield Text(f"{letter}: {verdict}", style="bold")
    if found["settings"]:
        rows = ([line["name"], _plain(line["a"]), _plain(line["b"])] for line in found["settings"])
        yield tables.figures("Settings that differ", ("", "A", "B"), rows)
    else:
        yield Text("Settings: the same")
    if found["model"]:
        yield _model(found)
    if found["curves"]:
        yield _curves(found)
    if found["heads"]:
        yield _heads(found)
    else:
        yield Text(f"Heads: {found['why_no_heads']}")
    yield _advised(found) if found["advised"] else Text("Neither advises a budget")


def _model(found: dict[str, Any]) -> RenderableType:
    names = {figure.name: (figure.words, figure.form) for figure in HEAD}
    lines = {line["name"]: line for line in found["model"]}
    rows = []
    for name in dict.fromkeys([*MODEL, *names]):
        if name in lines:
            line = lines[name]
            words, form = names.get(name, (_words(name), ".1%" if "0." in name else "d"))
            signed = "+" + form.lstrip("+")
            rows.append(
                [words, *(tables.figure(line[side], form) for side in "ab"), tables.figure(line["change"], signed)]
            )
    return tables.figures("All heads", ("", "A", "B", "B - A"), rows)


def _curves(found: dict[str, Any]) -> RenderableType:
    a, b = found["distances"]
    distance = a if a == b else "distance"
    columns = ("policy", "epsilon", "keys read, A", "B", "bytes, A", "B", f"{distance}, A", "B", "same token, A", "B")
    figures = (("share", ".1%"), ("bytes_share", ".2f"), ("tv_mean", ".3g"), ("agreement", ".1%"))
    rows = []
    for line in found["curves"]:
        if line["policy"] == OURS or line["epsilon"] == AT:
            cells = [tables.figure(value, form) for name, form in figures for value in line[name]]
            rows.append([line["policy"], f"{line['epsilon']:g}", *cells])
    caption = f"Policies at {AT:g}; --json has them at every epsilon"
    if a != b:
        caption += f". The distance of A is {a}, and of B {b}: they do not compare"
    return tables.figures("Answers at the same epsilon", columns, rows, caption)


def _heads(found: dict[str, Any]) -> RenderableType:
    columns = ("layer.head", "keys needed, A", "B", "B - A", "sigma, A", "B", "advised epsilon, A", "B")
    rows = (
        [
            line["head"],
            *(f"{line[side]:.1%}" for side in "ab"),
            f"{line['change']:+.1%}",
            *(f"{value:.2f}" for value in line["sigma"]),
            *(tables.figure(value, "g") for value in line["epsilon"]),
        ]
        for line in found["heads"][:MOST]
    )
    other = sum(None not in line["epsilon"] and len(set(line["epsilon"])) > 1 for line in found["heads"])
    caption = f"{other} of {len(found['heads'])} heads are advised another epsilon"
    return tables.figures(f"Heads that changed most at epsilon {AT:g}", columns, rows, caption)


def _advised(found: dict[str, Any]) -> RenderableType:
    columns = ("audit", "budget", "target", "keys read", "bytes", "on text not seen", "step, times faster")
    rows = (
        [
            line["audit"].upper(),
            line["budget"],
            line["target"],
            f"{line['share']:.1%}",
            f"{line['bytes_share']:.3f}",
            f"{line['value']:.3g} " + ("met" if line["met"] else "missed"),
            tables.figure(line["speed"], ".2f"),
        ]
        for line in found["advised"]
    )
    return tables.figures("Advised budgets", columns, rows, "The first of each audit is the one to take")


def _words(name: str) -> str:
    kind, _, epsilon = name.rpartition("_")
    return f"Keys needed at {epsilon}" if kind == "share" else name.replace("_", " ")


def _plain(value: object) -> str:
    return "" if value is None else f"{value}"
