"""Rows of many texts as one table: a file for each text, merged in order by Polars, never all of them in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tailbound.lab import needs, rows
from tailbound.lab.audit import heads
from tailbound.lab.audit.columns import AT
from tailbound.lab.errors import need

if TYPE_CHECKING:
    import polars


HELD = 1_000_000
"""Rows that are held at a time: each has about 70 columns, most of 8 bytes."""


def check() -> None:
    """Refuse to go on without Polars.

    Raises:
        InputError: it is not installed.
    """
    need("polars", "--texts merges with it", "report")


class Merged:
    """Rows of files, in the order of the files; nothing is read before it is asked for."""

    def __init__(self, files: Sequence[Path]) -> None:
        import polars

        # A column that a text lacks (no row of it could be held against the bounds) is NaN there, as in one text.
        table = polars.concat([polars.scan_parquet(file) for file in files], how="diagonal_relaxed")
        self._table = table.with_columns(polars.selectors.float().fill_null(float("nan")))

    def write(self, file: Path, label: dict[str, Any]) -> None:
        """All of them into a Parquet file, whole or not at all.

        Raises:
            InputError: it cannot be written.
        """
        metadata = {"tailbound": json.dumps(label)}
        rows.whole(file, lambda path: self._table.sink_parquet(path, maintain_order=True, metadata=metadata))

    def heads(self, layers: int) -> Iterator[dict[str, Any]]:
        """`heads.table` over all texts, with so many layers in memory at a time as `HELD` allows."""
        import polars

        count = self._table.select(polars.len()).collect().item()
        step = max(1, HELD * layers // count)
        for first in range(0, layers, step):
            some = polars.col("layer").is_between(first, first + step, closed="left")
            yield from heads.table(_columns(self._table.filter(some)))

    def shares(self) -> dict[str, float]:
        """By text, the share of keys that a row needs at `AT`: the mean over rows of all heads."""
        import polars

        share = (polars.col(needs.k_name(AT)) / polars.col("visible")).mean().alias("share")
        found = self._table.group_by("text", maintain_order=True).agg(share).collect()
        return dict(found.iter_rows())


def _columns(table: polars.LazyFrame) -> dict[str, np.ndarray]:
    found = table.collect()
    return {name: found[name].to_numpy() for name in found.columns}
