"""The ledger: what a model's attention calls were answered with, by step, layer and head, in bounded memory."""

from __future__ import annotations

import math
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tailbound.hf.budget import Budget
from tailbound.hf.rows import Block, Ring
from tailbound.hf.summary import LayerSummary, Summary, by_layer, summarise
from tailbound.hf.tally import MEASURES, Tally
from tailbound.result import Certificate, Status

CHUNK_ROWS = 2**13
"""Rows folded at once: 30 decode steps of SmolLM2-135M (30 layers of 9 heads)."""

LAST = 2**19
"""Rows held whole unless asked otherwise: 24 MB, or 1,941 decode steps of SmolLM2-135M."""


class CertificateError(AssertionError):
    """A certificate, or the lack of one, breaks the promise that was asked for."""


class Ledger:
    """Certificates as they were issued, and the calls that were answered exactly instead, with the reason.

    The latest certificates are held whole (`rows`). Of all that were ever issued it knows by layer and head: how many,
    their statuses, sums and extremes of tv, output_error, kept and the share of visible keys kept, the largest tv and
    where it was issued, and quantiles within `tally.RANK_ERROR`. So `statuses`, `by_layer` and the verdict of
    `assert_within` are about every certificate.

    Safe to fill from several threads. Memory: 45 bytes a row held, 24 kB a head, and 0.2 MB.

    Args:
        last: how many certificates to hold whole. One decode step issues layers times heads times batch entries.

    Attributes:
        exact: calls answered without a certificate, counted by (layer, reason).

    Raises:
        ValueError: `last` is negative.
    """

    def __init__(self, last: int = LAST) -> None:
        if last < 0:
            raise ValueError(f"last={last} certificates cannot be held; pass 0 or more")
        self.exact: Counter[tuple[int | None, str]] = Counter()
        self._steps: Counter[int] = Counter()
        self._waiting = Block(CHUNK_ROWS)
        self._ring = Ring(last)
        self._tally = Tally()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Certificates issued: one for each row (batch entry, head, query) of each call."""
        with self._lock:
            return self._ring.written + self._waiting.used

    def next_step(self, layer: int) -> int:
        """Number the next certified call of a layer."""
        with self._lock:
            step = self._steps[layer]
            self._steps[layer] = step + 1
            return step

    def record(self, step: int, layer: int, certificate: Certificate, visible: Tensor | int) -> None:
        """Write one call's certificates (B, H, T) down.

        `visible` counts the keys that each row may see: a number, or integers that broadcast to (B, H, T).
        """
        with self._lock:
            if not self._waiting.fits(math.prod(certificate.rows)):
                self._fold()
            self._waiting.write(step, layer, certificate, visible)

    def record_exact(self, layer: int | None, reason: str) -> None:
        """Write down that a call was answered exactly, without a certificate, and why."""
        with self._lock:
            self.exact[layer, reason] += 1

    def rows(self) -> np.ndarray:
        """The certificates held whole as a structured array of dtype `ROW`, in the order they were issued."""
        with self._lock:
            self._fold()
            return self._ring.read()

    def statuses(self) -> dict[Status, int]:
        """How many rows got each status, of all that were issued."""
        counts = self._heads()["status"].sum(axis=0).tolist()
        return {status: counts[status] for status in Status}

    def by_layer(self) -> list[LayerSummary]:
        """One summary a layer, in the order of the layers, of all certificates issued."""
        return by_layer(self._heads())

    def quantiles(
        self, measure: str, ranks: Sequence[float], layer: int | None = None, head: int | None = None
    ) -> list[float]:
        """Values of a measure at ranks in [0, 1], over all certificates of a layer, of a head, or of both or neither.

        The rank of each is off by at most `tally.RANK_ERROR` with 99% confidence; exact while certificates are few.

        Args:
            measure: "tv", "output_error", "kept", or "kept_share" (of visible keys, over rows that see a key).
            ranks: 0.5 is the median.
            layer: None for all.
            head: None for all.

        Returns:
            one value a rank; NaN if there are no certificates.

        Raises:
            ValueError: an unknown measure, or a rank outside [0, 1].
        """
        if measure not in MEASURES:
            raise ValueError(f"measure={measure!r}; allowed: {', '.join(MEASURES)}")
        if not all(0.0 <= rank <= 1.0 for rank in ranks):
            raise ValueError(f"ranks={list(ranks)}: a rank is a number in [0, 1]")
        with self._lock:
            self._fold()
            met = self._tally.heads[["layer", "head"]].tolist()
            places = [(at, of) for at, of in met if layer in (None, at) and head in (None, of)]
            return self._tally.quantiles(places, measure, ranks)

    def summary(self, by_head: bool = False) -> Summary:
        """All certificates in short, a line for each layer or each head; `print` shows a table."""
        with self._lock:
            self._fold()
            return Summary(summarise(self._tally, by_head), dict(self.exact), self._ring.held)

    def assert_within(self, epsilon: float | str | os.PathLike[str] | Mapping[str, Any] | Budget) -> None:
        """Check that every certificate ever issued, held or not, is at most `epsilon`: all that `certify` accepts.

        Raises:
            CertificateError: how many are over it ("at least", if some of them are no longer held), the worst of them
                and what to do about it.
            ValueError: not a budget, or one that names a head that a layer does not have.
        """
        budget = Budget.parse(epsilon)
        with self._lock:
            self._fold()
            heads, issued = self._tally.heads, self._ring.written
            limits, tv = budget.limits(heads["layer"], heads["head"]), heads["tv"]["max"]
            over = tv > limits
            if not over.any():
                return
            rows = self._ring.read()
        gone = issued - rows.size
        held = int((~(rows["tv"] <= limits[np.searchsorted(_keys(heads), _keys(rows))])).sum())
        count = held + int((heads["worst_number"][over] < gone).sum())
        # The farthest over its budget; among equals the earliest.
        at = np.lexsort((heads["worst_number"], -np.where(over, tv - limits, -np.inf)))[0]
        worst = heads["worst"][at]
        place = ", ".join(f"{name} {worst[name]}" for name in ("layer", "step", "batch", "head", "query"))
        status = Status(int(worst["status"]))
        raise CertificateError(
            f"{'at least ' if gone else ''}{count} of {issued} certificates exceed {budget}; the farthest over is tv "
            f"{worst['tv']:.6g} against {limits[at]:.6g} at {place}: {status.name}. {_advice(status, budget)}"
        )

    def to_parquet(self, path: str | os.PathLike[str], overwrite: bool = False) -> tuple[Path, Path]:
        """Write the certificates held whole to `path` and, beside it, `<stem>.heads.parquet` about all ever issued.

        The first has a line a certificate, in the columns of `ROW`, the status by name. The second has a line for each
        layer and head: certificates, rows by status, and min, median, p95, max and mean of each measure. Both carry in
        their schema's metadata `schema` (`tailbound.ledger/1`) and `tailbound`, JSON with `issued`, `held`, `exact` (a
        list of layer, reason and calls) and `rank_error`. Needs pyarrow, from the `report` extra.

        Returns:
            the two paths.

        Raises:
            FileExistsError: one of the files is there and `overwrite` is not set.
            ImportError: pyarrow is not installed.
        """
        from tailbound.hf import parquet

        with self._lock:
            self._fold()
            rows, heads = self._ring.read(), summarise(self._tally, by_head=True)
            metadata = {
                "issued": self._ring.written,
                "held": rows.size,
                "exact": [(layer, reason, calls) for (layer, reason), calls in self.exact.items()],
            }
        return parquet.write(Path(path), rows, heads, metadata, overwrite)

    def _heads(self) -> np.ndarray:
        with self._lock:
            self._fold()
            return self._tally.heads

    def _fold(self) -> None:
        rows = self._waiting.take()
        self._tally.fold(rows, self._ring.written)
        self._ring.extend(rows)


def _keys(places: np.ndarray) -> np.ndarray:
    """One number a (layer, head), in their order."""
    return (places["layer"].astype(np.int64) << 32) + places["head"]


def _advice(status: Status, budget: Budget) -> str:
    if status is Status.CERTIFIED:
        return f"It was certified under a larger budget; run under certify(model, {budget})."
    return f"{status.diagnosis} Remedy: {status.remedy}"
