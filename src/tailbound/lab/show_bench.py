"""The decode benchmark in words: tables, where we lose, and the folder of `--output`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import RenderableType

from tailbound.lab import folder, losing, timing
from tailbound.lab.bench import BASELINE, OURS, PEERS, READ, Row
from tailbound.lab.machine import Machine
from tailbound.report import plots, tables

_COLUMNS = (
    "contestant",
    "epsilon",
    "ms",
    *(f"times faster than {peer}" for peer in PEERS),
    "times faster than the dense limit",
    "keys kept / oracle",
    "keys kept",
    "MB read",
    "certified TV",
    "true TV",
    "violations",
)
_CAPTION = (
    "Times faster: medians of ratios paired by round, with 95% intervals; above 1 is faster. The dense limit is the "
    "time to read K and V once. TV is the largest over layers, heads and judged positions; the true one is in float64."
)


def bench(rows: Sequence[Row]) -> Iterator[RenderableType]:
    """A table for each number of threads, and where we lose."""
    for threads, some in _by_threads(rows).items():
        yield tables.figures(_title(some[0], threads), _COLUMNS, (_cells(row, True) for row in some), _CAPTION)
    yield from losing.lines(losses(rows))


def losses(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each row of ours that is slower than a peer."""
    for row in rows:
        if peers := row.loses_to():
            budget = f" epsilon {row.epsilon:g}" if row.epsilon else ""
            yield f"{name(row)}{budget}, {timing.threads(row.threads)}: {losing.slower(row.ratio, peers)}"


def name(row: Row) -> str:
    """The contestant, and its instruction set if it is ours."""
    return f"{row.contestant} {row.isa}" if row.contestant in OURS else row.contestant


def write(to: Path, machine: Machine, rows: Sequence[Row]) -> str | None:
    """Fill the folder of `--output`, the machine on the first line of rows.jsonl; what is missing and why, if any.

    Raises:
        InputError: the folder cannot be written to.
    """
    lines = [machine.as_json(), *(row.as_json() for row in rows)]
    return folder.write(to, lines, _markdown(machine, rows), lambda path: _plot(path, rows))


def _markdown(machine: Machine, rows: Sequence[Row]) -> str:
    parts = [f"{machine.in_short}\n"]
    for threads, some in _by_threads(rows).items():
        parts += [f"## {_title(some[0], threads)}\n", tables.markdown(_COLUMNS, (_cells(row, False) for row in some))]
    return "\n".join([*parts, f"{_CAPTION}\n", losing.markdown(losses(rows))])


def _plot(path: Path, rows: Sequence[Row]) -> None:
    panels = {
        timing.threads(threads): [
            plots.Bar(
                f"{name(row)}, epsilon {row.epsilon:g}" if row.epsilon else name(row),
                *row.ratio[BASELINE],
                bold=row.contestant in OURS,
            )
            for row in some
        ]
        for threads, some in _by_threads(rows).items()
    }
    plots.bars(path, _title(rows[0], None), f"times faster than {BASELINE}", panels)


def _by_threads(rows: Sequence[Row]) -> dict[int, list[Row]]:
    return {threads: [row for row in rows if row.threads == threads] for threads in sorted({r.threads for r in rows})}


def _title(row: Row, threads: int | None) -> str:
    sizes = f"{row.heads} query heads, {row.kv_heads} KV heads, head_dim {row.head_dim}, {row.dtype}"
    what = f"One decode step, {row.layers} layers, {row.n:,} keys, {sizes}: {row.source}"
    return what if threads is None else f"{what}; {timing.threads(threads)}"


def _cells(row: Row, in_lines: bool) -> tuple[str, ...]:
    no_attention = row.contestant == READ
    return (
        name(row),
        f"{row.epsilon:g}" if row.epsilon else "",
        f"{row.median_ms:.2f}",
        *("" if peer == row.contestant else row.ratio[peer].in_words(in_lines) for peer in PEERS),
        "" if no_attention else row.limit_ratio.in_words(in_lines),
        tables.figure(row.kept_over_oracle, ".3f"),
        tables.figure(row.kept_share, ".1%"),
        f"{row.bytes_read / 1e6:.1f}",
        tables.figure(row.tv_max, ".5f"),
        tables.figure(row.true_tv_max, ".5f"),
        "" if row.tv_max is None else str(row.violations),
    )
