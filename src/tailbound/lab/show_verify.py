"""What `tailbound verify` found, as a table and a list of what was exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from rich.console import RenderableType

from tailbound.hf.summary import ranges
from tailbound.lab import verify as job
from tailbound.lab.verify import Row
from tailbound.report import tables

COLUMNS = (
    "dtype",
    "epsilon",
    "certificates",
    "violations",
    "smallest margin",
    "TV / true TV",
    "99%",
    "keys kept",
    "logits",
    "same token",
    "statuses",
)


def verify(rows: Sequence[Row]) -> Iterator[RenderableType]:
    """The table by dtype and budget; below it what each row comes to, what was answered exactly, and the verdict."""
    yield tables.figures(
        f"Certificates of {rows[0].model} on {rows[0].tokens}",
        COLUMNS,
        (_cells(row) for row in rows),
        "Every certificate was recomputed in float64 from the tensors that were passed, apart from the engine. Logits: "
        "standard deviation in nats. Same token: steps whose likeliest token is that of the model's own attention",
    )
    yield tables.pairs([(f"{row.dtype}, epsilon {row.epsilon:g}", row.verdict()) for row in rows])
    layers: dict[str, list[int | None]] = {}
    calls: Counter[str] = Counter()
    for row in rows:
        for reason, places, count in row.exact:
            calls[reason] += count
            held = layers.setdefault(reason, [])
            held += [layer for layer in places if layer not in held]
    if calls:
        yield tables.pairs(
            [(f"exact: {reason}", f"layers {ranges(layers[reason])}; {calls[reason]:,} calls") for reason in calls],
            "Answered exactly, in all rows together",
        )
    yield job.verdict(rows)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.dtype,
        f"{row.epsilon:g}",
        f"{row.certificates:,}",
        str(row.violations),
        tables.figure(row.margin, ".1e"),
        tables.figure(row.looseness, ".3f"),
        tables.figure(row.looseness_p99, ".3f"),
        tables.figure(row.kept_share, ".1%"),
        tables.figure(row.spread, ".2f"),
        f"{row.agreement:.0%}",
        ", ".join(f"{name} {count:,}" for name, count in row.statuses.items()),
    )
