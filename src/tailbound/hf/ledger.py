"""The ledger: every certificate that a model's attention calls were answered with, by step, layer and head."""

from __future__ import annotations

import threading
from collections import Counter
from typing import NamedTuple

import numpy as np
from torch import Tensor

from tailbound.result import Certificate, Status

ROW = np.dtype(
    [
        ("step", np.int32),
        ("layer", np.int32),
        ("batch", np.int32),
        ("head", np.int32),
        ("query", np.int32),
        ("tv", np.float64),
        ("output_error", np.float64),
        ("kept", np.int32),
        ("visible", np.int32),
        ("status", np.uint8),
    ]
)
"""One certificate: where it was issued (`step` counts the certified calls of its layer), and the `Certificate`."""

CHUNK_ROWS = 2**16
"""Rows allocated at once (3.5 MB). Small arrays kept from every step would each pin a hole in the C heap between the
tensors of a growing cache; see docs/log.md."""


class CertificateError(AssertionError):
    """A certificate, or the lack of one, breaks the promise that was asked for."""


class LayerSummary(NamedTuple):
    """What a layer's certificates say together. Shares are in [0, 1]; a row that sees no key counts in none."""

    layer: int
    certificates: int
    kept_share: float
    dense_share: float
    tv_max: float
    output_error_max: float


class Ledger:
    """Certificates in the order they were issued, and the calls that were answered exactly instead, with the reason.

    Safe to fill from several threads. Memory grows by 53 bytes a certificate.

    Attributes:
        exact: calls answered without a certificate, counted by (layer, reason).
    """

    def __init__(self) -> None:
        self.exact: Counter[tuple[int | None, str]] = Counter()
        self._chunks: list[np.ndarray] = []
        self._count = 0
        self._steps: Counter[int] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Certificates issued: one for each row (batch entry, head, query) of each call."""
        return self._count

    def next_step(self, layer: int) -> int:
        """Number the next certified call of a layer."""
        with self._lock:
            self._steps[layer] += 1
            return self._steps[layer] - 1

    def record(self, step: int, layer: int, certificate: Certificate, visible: Tensor) -> None:
        """Write one call's certificates down; `visible` counts the keys that each row may see."""
        shape = certificate.tv.shape
        rows = np.empty(certificate.tv.numel(), ROW)
        rows["step"], rows["layer"] = step, layer
        for name, index in zip(("batch", "head", "query"), np.indices(shape), strict=True):
            rows[name] = index.ravel()
        for name, column in zip((*Certificate._fields, "visible"), (*certificate, visible.expand(shape)), strict=True):
            rows[name] = column.detach().cpu().numpy().ravel()
        with self._lock:
            self._append(rows)

    def record_exact(self, layer: int | None, reason: str) -> None:
        """Write down that a call was answered exactly, without a certificate, and why."""
        with self._lock:
            self.exact[layer, reason] += 1

    def rows(self) -> np.ndarray:
        """Every certificate as a structured array of dtype `ROW`, in the order they were issued."""
        with self._lock:
            filled = self._count % CHUNK_ROWS or CHUNK_ROWS
            parts = [*self._chunks[:-1], *(chunk[:filled] for chunk in self._chunks[-1:])]
            return np.concatenate(parts) if parts else np.empty(0, ROW)

    def statuses(self) -> dict[Status, int]:
        """How many rows got each status."""
        counts = np.bincount(self.rows()["status"], minlength=len(Status))
        return {status: int(counts[status]) for status in Status}

    def by_layer(self) -> list[LayerSummary]:
        """One summary a layer, in the order of the layers."""
        rows = self.rows()
        return [_summarise(int(layer), rows[rows["layer"] == layer]) for layer in np.unique(rows["layer"])]

    def assert_within(self, epsilon: float) -> None:
        """Check that every row has a certificate of at most `epsilon`.

        Raises:
            CertificateError: naming the worst row and what to do about it.
        """
        rows = self.rows()
        over = rows[rows["tv"] > epsilon]
        if not over.size:
            return
        worst = over[over["tv"].argmax()]
        place = ", ".join(f"{name} {worst[name]}" for name in ("layer", "step", "batch", "head", "query"))
        status = Status(int(worst["status"]))
        raise CertificateError(
            f"{over.size} of {rows.size} certificates exceed epsilon={epsilon}; the largest tv is {worst['tv']:.3g} "
            f"at {place}: {status.name}. {_advice(status, epsilon)}"
        )

    def _append(self, rows: np.ndarray) -> None:
        while rows.size:
            start = self._count % CHUNK_ROWS
            if start == 0:
                self._chunks.append(np.zeros(CHUNK_ROWS, ROW))
            taken = rows[: CHUNK_ROWS - start]
            self._chunks[-1][start : start + taken.size] = taken
            self._count += taken.size
            rows = rows[taken.size :]


def _advice(status: Status, epsilon: float) -> str:
    if status is Status.CERTIFIED:
        return f"It was certified under a larger budget; run under certify(model, epsilon={epsilon})."
    return f"{status.diagnosis} Remedy: {status.remedy}"


def _summarise(layer: int, rows: np.ndarray) -> LayerSummary:
    seeing = rows[rows["visible"] > 0]
    return LayerSummary(
        layer=layer,
        certificates=rows.size,
        kept_share=float((seeing["kept"] / seeing["visible"]).mean()) if seeing.size else 0.0,
        dense_share=float((seeing["status"] == Status.DENSE).mean()) if seeing.size else 0.0,
        tv_max=float(rows["tv"].max(initial=0.0)),
        output_error_max=float(rows["output_error"].max(initial=0.0)),
    )
