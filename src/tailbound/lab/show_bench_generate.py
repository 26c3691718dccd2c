"""The benchmark of whole decode steps in words: tables, where we lose, and the folder of `--output`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from tailbound.lab import folder, losing, timing
from tailbound.lab.machine import Machine
from tailbound.lab.steps import OURS, PEERS, STOCK, Row
from tailbound.report import plots, tables

_COLUMNS = (
    "contestant",
    "epsilon",
    "ms a step",
    *(f"times faster than {peer}" for peer in PEERS),
    "recording",
    "prefill s",
    f"prefill times faster than {STOCK}",
    "peak MB",
    f"peak / {STOCK}",
    "cache MB",
    f"cache / {STOCK}",
    "argmax agreement",
    "next-token TV mean",
    "next-token TV max",
    "certified TV",
    "dense rows",
    "keys kept",
    "fallbacks",
)
_CAPTION = (
    "Times faster: medians of ratios paired by step, with 95% intervals; above 1 is faster. Recording: time of a step "
    f"with it over that without. Peak: resident memory above the loaded model. Agreement and TV: against {STOCK}."
)


def bench(rows: Sequence[Row]) -> Iterator[RenderableType]:
    """A table for each dtype and context, and where we lose."""
    for title, some in _parts(rows):
        yield tables.turned(title, _COLUMNS, [_cells(row, True) for row in some])
        if some[0].profile:
            yield tables.figures(f"Milliseconds of a step: {title}", *_profile(some))
    yield Text(_CAPTION, style="italic")
    yield from losing.lines(losses(rows))


def losses(rows: Sequence[Row]) -> Iterator[str]:
    """A line for each row of ours whose steps are slower than a peer's."""
    for row in rows:
        if peers := row.loses_to():
            where = f"{row.dtype}, {row.context:,} tokens, {timing.threads(row.threads)}"
            yield f"{_name(row)}, {where}: {losing.slower(row.ratio, peers)}"


def write(to: Path, machine: Machine, rows: Sequence[Row]) -> str | None:
    """Fill the folder of `--output`, the machine on the first line of rows.jsonl; what is missing and why, if any.

    Raises:
        InputError: the folder cannot be written to.
    """
    lines = [machine.as_json(), *(row.as_json() for row in rows)]
    return folder.write(to, lines, _markdown(machine, rows), lambda path: _plot(path, rows))


def _parts(rows: Sequence[Row]) -> Iterator[tuple[str, list[Row]]]:
    """Rows of one dtype and context, with their title."""
    for (dtype, context), some in groupby(rows, lambda row: (row.dtype, row.context)):
        part = list(some)
        row = part[0]
        what = f"{row.steps} decode steps of {row.model} up to {context:,} tokens of {row.source}"
        yield f"{what}, {dtype}, {timing.threads(row.threads)}", part


def _markdown(machine: Machine, rows: Sequence[Row]) -> str:
    parts = [f"{machine.in_short}\n"]
    for title, some in _parts(rows):
        parts += [f"## {title}\n", tables.markdown(_COLUMNS, (_cells(row, False) for row in some))]
        if some[0].profile:
            parts += ["Milliseconds of a step:\n", tables.markdown(*_profile(some))]
    return "\n".join([*parts, f"{_CAPTION}\n", losing.markdown(losses(rows))])


def _plot(path: Path, rows: Sequence[Row]) -> None:
    panels = {
        f"{some[0].dtype}, {some[0].context:,} tokens": [
            plots.Bar(_name(row), *row.ratio[STOCK], bold=row.contestant in OURS) for row in some
        ]
        for _, some in _parts(rows)
    }
    title = f"Whole decode steps of {rows[0].model}: {rows[0].source}; {timing.threads(rows[0].threads)}"
    plots.bars(path, title, f"times faster than {STOCK}", panels)


def _name(row: Row) -> str:
    return row.contestant if row.epsilon is None else f"{row.contestant}, epsilon {row.epsilon:g}"


def _profile(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Columns and lines: a kind of work a line."""
    kinds = max((list(row.profile or ()) for row in rows), key=len)  # those that record have a kind more
    lines = [[kind, *(tables.figure((row.profile or {}).get(kind), ".2f") for row in rows)] for kind in kinds]
    return ["part of the step", *(_name(row) for row in rows)], lines


def _cells(row: Row, in_lines: bool) -> tuple[str, ...]:
    prefill = row.prefill_ratio
    return (
        row.contestant,
        tables.figure(row.epsilon, "g"),
        f"{row.median_ms:.2f}",
        *("" if peer == row.contestant else row.ratio[peer].in_words(in_lines) for peer in PEERS),
        "" if row.recording is None else row.recording.in_words(in_lines, 3),
        tables.figure(row.prefill_s, ".2f"),
        "" if prefill is None or row.contestant == STOCK else prefill[STOCK].in_words(in_lines),
        tables.figure(row.peak_mb, ".0f"),
        tables.figure(row.memory_ratio, ".2f"),
        f"{row.cache_mb:.0f}",
        f"{row.cache_ratio:.2f}",
        f"{row.argmax_agreement:.1%}",
        f"{row.next_token_tv_mean:.5f}",
        f"{row.next_token_tv_max:.5f}",
        tables.figure(row.tv_max, ".5f"),
        tables.figure(row.dense_share, ".1%"),
        tables.figure(row.kept_share, ".1%"),
        "" if row.fallbacks is None else str(row.fallbacks),
    )
