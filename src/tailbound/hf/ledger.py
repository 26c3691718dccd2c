"""The ledger: every certificate that a model's attention calls were answered with, by step, layer and head."""

from __future__ import annotations

import threading
from collections import Counter
from typing import NamedTuple

import numpy as np
from torch import Tensor

from tailbound.result import Certificate, Status


class CertificateError(AssertionError):
    """A certificate, or the lack of one, breaks the promise that was asked for."""


class Entry(NamedTuple):
    """One certified attention call. Arrays have shape (batch, query heads, queries).

    Attributes:
        step: calls certified before this one in the same layer.
        layer: the model's index of the layer.
        tv, output_error, kept, status: the `Certificate`, as numpy arrays.
        visible: int64, keys that the row may see.
    """

    step: int
    layer: int
    tv: np.ndarray
    output_error: np.ndarray
    kept: np.ndarray
    status: np.ndarray
    visible: np.ndarray


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

    Safe to fill from several threads. Memory grows with certificates: about 29 bytes a row.
    """

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.exact: Counter[tuple[int | None, str]] = Counter()
        self._steps: Counter[int] = Counter()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """Certificates issued: one for each row of each call."""
        return sum(entry.tv.size for entry in self.entries)

    def next_step(self, layer: int) -> int:
        """Number the next certified call of a layer."""
        with self._lock:
            self._steps[layer] += 1
            return self._steps[layer] - 1

    def record(self, step: int, layer: int, certificate: Certificate, visible: Tensor) -> None:
        """Write one call's certificates down."""
        columns = (column.detach().cpu().numpy() for column in (*certificate, visible.expand(certificate.tv.shape)))
        entry = Entry(step, layer, *columns)
        with self._lock:
            self.entries.append(entry)

    def record_exact(self, layer: int | None, reason: str) -> None:
        """Write down that a call was answered exactly, without a certificate, and why."""
        with self._lock:
            self.exact[layer, reason] += 1

    def statuses(self) -> dict[Status, int]:
        """How many rows got each status."""
        counts = Counter[int]()
        for entry in self.entries:
            counts.update(entry.status.ravel().tolist())
        return {status: counts[int(status)] for status in Status}

    def by_layer(self) -> list[LayerSummary]:
        """One summary a layer, in the order of the layers."""
        layers = sorted({entry.layer for entry in self.entries})
        return [_summarise(layer, [entry for entry in self.entries if entry.layer == layer]) for layer in layers]

    def assert_within(self, epsilon: float) -> None:
        """Check that every row has a certificate of at most `epsilon`.

        Raises:
            CertificateError: naming the worst row and what to do about it.
        """
        over = [(entry, int(entry.tv.argmax())) for entry in self.entries if entry.tv.size and entry.tv.max() > epsilon]
        if not over:
            return
        entry, worst = max(over, key=lambda pair: pair[0].tv.flat[pair[1]])
        batch, head, query = np.unravel_index(worst, entry.tv.shape)
        status = Status(int(entry.status.flat[worst]))
        raise CertificateError(
            f"{len(over)} calls exceed epsilon={epsilon}; the largest tv is {entry.tv.flat[worst]:.3g} at layer "
            f"{entry.layer}, step {entry.step}, batch entry {batch}, head {head}, query {query}: {status.name}. "
            + _advice(status, epsilon)
        )


def _advice(status: Status, epsilon: float) -> str:
    if status is Status.CERTIFIED:
        return f"It was certified under a larger budget; run under certify(model, epsilon={epsilon})."
    return f"{status.diagnosis} Remedy: {status.remedy}"


def _summarise(layer: int, entries: list[Entry]) -> LayerSummary:
    tv, error, kept, status, visible = (
        np.concatenate([getattr(entry, name).ravel() for entry in entries])
        for name in ("tv", "output_error", "kept", "status", "visible")
    )
    seeing = visible > 0
    share = kept[seeing] / visible[seeing]
    dense = status[seeing] == Status.DENSE
    return LayerSummary(
        layer=layer,
        certificates=int(tv.size),
        kept_share=float(share.mean()) if share.size else 0.0,
        dense_share=float(dense.mean()) if dense.size else 0.0,
        tv_max=float(tv.max(initial=0.0)),
        output_error_max=float(error.max(initial=0.0)),
    )
