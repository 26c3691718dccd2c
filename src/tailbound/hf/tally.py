"""What is known of each head after its certificates are gone: exact counts and extremes, and quantile sketches.

Quantiles are KLL sketches (Karnin, Lang and Liberty 2016) of Apache DataSketches: for one head, or merged over heads, a
quantile's rank is off by at most `RANK_ERROR` with 99% confidence, at about 6 kB a sketch however long the stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import reduce

import numpy as np
from datasketches import kll_doubles_sketch  # pyright: ignore[reportAttributeAccessIssue]  (compiled, no stubs)

from tailbound.hf.rows import ROW
from tailbound.result import Status

MEASURES = ("tv", "output_error", "kept", "kept_share")
"""What is followed: probability mass, distance in the unit of the values, keys, and keys over visible keys."""

SKETCH_K = 200
RANK_ERROR: float = kll_doubles_sketch.get_normalized_rank_error(SKETCH_K, False)
"""How far the rank of a quantile may be off, as a share of the certificates: 0.0133."""

EXACT = np.dtype([("total", np.float64), ("min", np.float64), ("max", np.float64)])
HEAD = np.dtype(
    [
        ("layer", np.int32),
        ("head", np.int32),
        ("certificates", np.int64),
        ("seeing", np.int64),
        ("status", np.int64, (len(Status),)),
        *((measure, EXACT) for measure in MEASURES),
        ("worst", ROW),
        ("worst_number", np.int64),
    ]
)
"""One head of one layer. `seeing` counts rows that see a key, the only ones in `kept_share`; `worst` is the first row
with the largest tv and `worst_number` its place, counted from 0, among all certificates."""


class Tally:
    """Certificates summed up by (layer, head). A tv or output_error that is NaN counts as infinite: it claims nothing.

    About 24 kB a head, whatever the number of certificates.
    """

    def __init__(self) -> None:
        self._slots: dict[tuple[int, int], int] = {}
        self._heads = np.zeros(0, HEAD)
        self._sketches: list[tuple[kll_doubles_sketch, ...]] = []

    @property
    def heads(self) -> np.ndarray:
        """One record of dtype `HEAD` for each (layer, head) that was met, in their order: a copy."""
        met = self._heads[: len(self._slots)]
        return met[np.lexsort((met["head"], met["layer"]))]

    def fold(self, rows: np.ndarray, first: int) -> None:
        """Add rows of dtype `ROW`; `first` is the number of the first among all certificates."""
        if not rows.size:
            return
        order = np.lexsort((rows["head"], rows["layer"]))  # stable: inside a head the order of issue stays
        rows = rows[order]
        turns = (np.diff(rows["layer"]) != 0) | (np.diff(rows["head"]) != 0)
        starts = np.concatenate([[0], np.flatnonzero(turns) + 1])
        slots = np.array([self._slot(*place) for place in rows[["layer", "head"]][starts].tolist()])
        ends = [*starts[1:].tolist(), rows.size]
        spans = list(zip(slots.tolist(), starts.tolist(), ends, strict=True))

        seen = rows["visible"] > 0
        self._heads["certificates"][slots] += np.diff([*starts, rows.size])
        self._heads["seeing"][slots] += np.add.reduceat(seen, starts, dtype=np.int64)
        for status in Status:
            found = np.add.reduceat(rows["status"] == status, starts, dtype=np.int64)
            self._heads["status"][slots, status] += found
        tv, error = (np.where(np.isnan(rows[name]), np.inf, rows[name]) for name in ("tv", "output_error"))
        self._note_worst(slots, starts, tv, rows, order + first)
        kept = rows["kept"].astype(np.float64)
        for index, values in enumerate((tv, error, kept)):
            self._add(MEASURES[index], slots, starts, values, values, values)
            for slot, start, end in spans:
                self._sketches[slot][index].update(values[start:end])
        share = kept / np.where(seen, rows["visible"], 1)
        low, high = np.where(seen, share, np.inf), np.where(seen, share, -np.inf)
        self._add("kept_share", slots, starts, np.where(seen, share, 0.0), low, high)
        for slot, start, end in spans:
            self._sketches[slot][3].update(share[start:end][seen[start:end]])

    def quantiles(self, places: Iterable[tuple[int, int]], measure: str, ranks: Sequence[float]) -> list[float]:
        """Values of a measure at ranks in [0, 1], over the rows of several (layer, head); NaN where there are none."""
        index = MEASURES.index(measure)
        merged = reduce(_merge, (self._sketches[self._slots[place]][index] for place in places), _sketch())
        return [float("nan")] * len(ranks) if merged.is_empty() else merged.get_quantiles(list(ranks), True)

    def _slot(self, layer: int, head: int) -> int:
        slot = self._slots.setdefault((layer, head), len(self._slots))
        if slot == len(self._sketches):
            self._sketches.append(tuple(_sketch() for _ in MEASURES))
            if slot == self._heads.size:
                more = np.zeros(max(64, slot), HEAD)
                for measure in MEASURES:
                    more[measure]["min"], more[measure]["max"] = np.inf, -np.inf
                self._heads = np.concatenate([self._heads, more])
            self._heads["layer"][slot], self._heads["head"][slot] = layer, head
        return slot

    def _note_worst(
        self, slots: np.ndarray, starts: np.ndarray, tv: np.ndarray, rows: np.ndarray, numbers: np.ndarray
    ) -> None:
        largest = np.maximum.reduceat(tv, starts)
        candidates = np.flatnonzero(tv == np.repeat(largest, np.diff([*starts, tv.size])))
        places = candidates[np.searchsorted(candidates, starts)]
        grown = largest > self._heads["tv"]["max"][slots]
        self._heads["worst"][slots[grown]] = rows[places[grown]]
        self._heads["worst_number"][slots[grown]] = numbers[places[grown]]

    def _add(
        self, measure: str, slots: np.ndarray, starts: np.ndarray, values: np.ndarray, low: np.ndarray, high: np.ndarray
    ) -> None:
        exact = self._heads[measure]
        exact["total"][slots] += np.add.reduceat(values, starts)
        exact["min"][slots] = np.minimum(exact["min"][slots], np.minimum.reduceat(low, starts))
        exact["max"][slots] = np.maximum(exact["max"][slots], np.maximum.reduceat(high, starts))


def _sketch() -> kll_doubles_sketch:
    return kll_doubles_sketch(SKETCH_K)


def _merge(into: kll_doubles_sketch, sketch: kll_doubles_sketch) -> kll_doubles_sketch:
    into.merge(sketch)
    return into
