"""What a ledger says in a table: by layer, or by head, with what was answered exactly underneath."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from io import StringIO
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tailbound.hf.tally import MEASURES, RANK_ERROR, Tally
from tailbound.result import Status

if TYPE_CHECKING:
    from rich.console import Group


class LayerSummary(NamedTuple):
    """What a layer's certificates say together. Shares are in [0, 1]; a row that sees no key counts in none."""

    layer: int
    certificates: int
    kept_share: float
    dense_share: float
    tv_max: float
    output_error_max: float


class Spread(NamedTuple):
    """How a measure is spread over certificates; all NaN where there are none.

    `minimum`, `mean` and `maximum` are exact up to the rounding of a sum; the ranks of `median` and `p95` are off by at
    most `tally.RANK_ERROR` with 99% confidence.
    """

    minimum: float
    median: float
    p95: float
    maximum: float
    mean: float


class HeadSummary(NamedTuple):
    """What the certificates of a head, or of all heads of a layer (`head` is None), say together.

    Attributes:
        layer: the layer.
        head: the query head, or None.
        certificates: rows with a certificate.
        statuses: rows by status.
        tv: probability mass.
        output_error: distance in the unit of the values.
        kept: keys with weight.
        kept_share: keys with weight over visible keys, of the rows that see a key.
    """

    layer: int
    head: int | None
    certificates: int
    statuses: Mapping[Status, int]
    tv: Spread
    output_error: Spread
    kept: Spread
    kept_share: Spread

    @property
    def dense_share(self) -> float:
        """Rows answered densely, over rows that see a key."""
        seeing = self.certificates - self.statuses[Status.EMPTY]
        return self.statuses[Status.DENSE] / seeing if seeing else 0.0


class Summary(NamedTuple):
    """A ledger in short. `print` and `rich.print` show it as a table.

    Attributes:
        parts: one for each layer or each head, in their order.
        exact: calls answered exactly, without a certificate, by (layer, reason).
        held: certificates that `Ledger.rows` still has whole.
    """

    parts: tuple[HeadSummary, ...]
    exact: Mapping[tuple[int | None, str], int]
    held: int

    @property
    def certificates(self) -> int:
        """Certificates issued, held or not."""
        return sum(part.certificates for part in self.parts)

    def __rich__(self) -> Group:
        from rich.console import Group
        from rich.table import Table

        by_head = any(part.head is not None for part in self.parts)
        table = Table(title=f"{self.certificates:,} certificates, {self.held:,} held whole", title_justify="left")
        for name in ("layer", *(["head"] if by_head else []), "rows", "dense", "kept", "kept max", "kept share"):
            table.add_column(name, justify="right")
        for name in ("tv median", "tv p95", "tv max", "error median", "error p95", "error max"):
            table.add_column(name, justify="right")
        for part in self.parts:
            table.add_row(*_cells(part, by_head))
        table.caption = f"kept and kept share: means; medians and p95: rank within {RANK_ERROR:.1%}; the rest is exact"
        table.caption_justify = "left"
        if not self.exact:
            return Group(table)
        exact = Table(title="answered exactly, without a certificate", title_justify="left")
        for name in ("layers", "reason", "calls of a layer"):
            exact.add_column(name)
        for line in exact_lines(self.exact):
            exact.add_row(*line)
        return Group(table, exact)

    def __str__(self) -> str:
        from rich.console import Console

        text = StringIO()
        Console(file=text, width=130).print(self)
        return text.getvalue()


def exact_lines(exact: Mapping[tuple[int | None, str], int]) -> list[tuple[str, str, str]]:
    """Layers, reason and calls of each layer: one line where a reason came up equally often.

    >>> exact_lines({(0, "prefill"): 2, (1, "prefill"): 2, (4, "prefill"): 2, (None, "no number"): 7})
    [('none', 'no number', '7'), ('0-1, 4', 'prefill', '2')]
    """
    found: dict[tuple[str, int], list[int | None]] = {}
    for (layer, reason), calls in exact.items():
        found.setdefault((reason, calls), []).append(layer)
    return [(ranges(layers), reason, f"{calls:,}") for (reason, calls), layers in sorted(found.items())]


def by_layer(heads: np.ndarray) -> list[LayerSummary]:
    """One exact summary a layer from the records (dtype `tally.HEAD`) of its heads."""
    found = []
    for layer in np.unique(heads["layer"]).tolist():
        part = heads[heads["layer"] == layer]
        seeing = int(part["seeing"].sum())
        found.append(
            LayerSummary(
                layer=layer,
                certificates=int(part["certificates"].sum()),
                kept_share=float(part["kept_share"]["total"].sum()) / seeing if seeing else 0.0,
                dense_share=int(part["status"][:, Status.DENSE].sum()) / seeing if seeing else 0.0,
                tv_max=float(part["tv"]["max"].max()),
                output_error_max=float(part["output_error"]["max"].max()),
            )
        )
    return found


def summarise(tally: Tally, by_head: bool) -> tuple[HeadSummary, ...]:
    """One summary for each layer, or for each head."""
    heads = tally.heads
    parts = np.split(heads, np.arange(1, heads.size)) if by_head else _layers(heads)
    return tuple(_summarise(tally, part, by_head) for part in parts if part.size)


def _layers(heads: np.ndarray) -> list[np.ndarray]:
    return np.split(heads, np.flatnonzero(np.diff(heads["layer"])) + 1)


def _summarise(tally: Tally, part: np.ndarray, by_head: bool) -> HeadSummary:
    places = part[["layer", "head"]].tolist()
    counts = part["status"].sum(axis=0).tolist()
    spreads = {}
    for measure in MEASURES:
        rows = int(part["seeing" if measure == "kept_share" else "certificates"].sum())
        exact = part[measure]
        median, p95 = tally.quantiles(places, measure, (0.5, 0.95))
        spreads[measure] = (
            Spread(
                minimum=float(exact["min"].min()),
                median=median,
                p95=p95,
                maximum=float(exact["max"].max()),
                mean=float(exact["total"].sum()) / rows,
            )
            if rows
            else Spread(*[float("nan")] * 5)
        )
    return HeadSummary(
        layer=int(part["layer"][0]),
        head=int(part["head"][0]) if by_head else None,
        certificates=int(part["certificates"].sum()),
        statuses={status: counts[status] for status in Status},
        **spreads,
    )


def _cells(part: HeadSummary, by_head: bool) -> list[str]:
    cells = [str(part.layer), *([str(part.head)] if by_head else []), f"{part.certificates:,}"]
    cells += [f"{part.dense_share:.1%}", f"{part.kept.mean:,.0f}", f"{part.kept.maximum:,.0f}"]
    cells += [f"{part.kept_share.mean:.1%}"]
    for spread in (part.tv, part.output_error):
        cells += [f"{value:.3g}" for value in (spread.median, spread.p95, spread.maximum)]
    return cells


def ranges(layers: Collection[int | None]) -> str:
    """Layer numbers in short: runs as first-last; "none" for modules without a number."""
    numbers = sorted(layer for layer in layers if layer is not None)
    runs = [[n for _, n in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    names = [f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]
    return ", ".join([*names, *(["none"] if len(numbers) < len(layers) else [])])
