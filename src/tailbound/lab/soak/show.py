"""What a soak found, for the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import RenderableType

from tailbound.lab.soak.job import Result
from tailbound.lab.soak.tally import LENGTHS
from tailbound.report import tables

SHOWN = 10
"""Broken promises that are listed."""


def soak(result: Result) -> Iterator[RenderableType]:
    """Figures, rows by length and by who answered, what broke, the verdict."""
    tally = result.tally

    def number(value: float | None) -> str:
        return tables.figure(value, ".4g")

    escalated = f"{tally.escalated['wide']:,} beyond float64, {tally.escalated['digits']:,} of them to 60 digits"
    figures = [
        (
            "certificates",
            f"{tally.rows:,} of {tally.cases:,} calls, {tally.rows / max(result.seconds, 1e-9):,.0f} a second",
        ),
        ("violations", f"{tally.violations:,}"),
        ("looseness, tv / true tv", f"median {number(tally.quantile(0.5))}, 99% {number(tally.quantile(0.99))}"),
        ("recomputed", escalated),
    ]
    if tally.at is not None:
        figures.insert(2, ("tightest margin", f"{tally.margin:.2e} of the truth, in case {tally.at[0]}:{tally.at[1]}"))
    yield tables.pairs(figures, f"Certificates recomputed by an oracle, seed {result.seed}")
    yield _shares("status", tally.statuses.most_common(), tally.rows)
    yield _shares("visible keys", _lengths(tally.lengths), tally.rows)
    yield _shares("answered by", tally.makers.most_common(), tally.rows)
    yield _shares("kind of case", tally.kinds.most_common(), tally.rows)
    for violation in result.violations[:SHOWN]:
        yield f"case {violation.seed}:{violation.number}, row {violation.row}: {violation.words}"
    if len(result.violations) > SHOWN:
        yield f"... and {len(result.violations) - SHOWN:,} more"
    for path in result.replays[1:]:
        yield f"also: tailbound verify --replay {path}"
    yield ("Interrupted. " if result.interrupted else "") + result.verdict()


def _lengths(counted: Counter[int]) -> list[tuple[str, int]]:
    """Rows by the words for what they see."""
    words = {0: "none"} | dict(
        zip(LENGTHS, ("1 to 255", "256 to 1,023", "1,024 to 4,095", "4,096 and more"), strict=True)
    )
    return [(words[length], counted[length]) for length in sorted(counted)]


def _shares(name: str, counted: Sequence[tuple[str, int]], total: int) -> RenderableType:
    rows = ((what, f"{count:,}", f"{count / total:.1%}") for what, count in counted)
    return tables.figures("", (name, "rows", "share"), rows)
