"""An audit on one text: rows, runs under budgets and policies, a budget, and its proof by a run."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from tailbound.lab import rows, text
from tailbound.lab.audit import advise, curves, heads, measuring, opening, verifying
from tailbound.lab.audit.advise import Target
from tailbound.lab.audit.figures import Advice, Figures
from tailbound.lab.audit.measuring import ROWS
from tailbound.lab.audit.opening import Options
from tailbound.lab.audit.reading import Decoder, Encoder, Reading
from tailbound.lab.progress import Progress


class OneText:
    """A text, of which every layer and every run is a part of its own."""

    def __init__(self, options: Options, progress: Progress) -> None:
        self._options, self._progress = options, progress
        self._opened = opening.begin(options, progress)
        title, document = text.read_prose(options.text)
        self._pieces = self._opened.read_text(document, title)
        self.store = self._opened.folder([self._pieces.measured], title)
        source = self._opened.source
        with progress.task("reading the model", None):
            self._model = source.encoder() if self._opened.kind.encoder else source.model()
        self._reading = self._read(self._pieces.measured)
        self._advised: list[Advice] = []
        self._why_not = "none was asked for"
        self._complete = False

    def work(self) -> None:
        """All of it; each part is on disk when it is done."""
        measuring.measure(self._reading, self.store, self._options.seed, self._progress)
        if self._opened.target is not None:
            self._advise(self._opened.target)
        self._complete = True

    def figures(self) -> Figures:
        """Of what there is."""
        parts = [measuring.part(layer) for layer in range(self._reading.layers)]
        done = [part for part in parts if self.store.has(ROWS, part)]
        measured = self.store.read(ROWS, done) if done else {}
        curve = self.store.read(curves.KIND) if any(self.store.place.glob(f"{curves.KIND}/*.parquet")) else {}
        return Figures(
            complete=self._complete,
            layers_done=len(done),
            layers=self._reading.layers,
            texts=[],
            heads=list(heads.table(measured)) if measured else [],
            curve=list(curves.table(curve)) if curve else [],
            target=self._opened.target,
            advised=self._advised,
            why_not=self._why_not,
            peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            write_rows=(lambda file, label: _write(file, measured, label)) if measured else None,
        )

    def _advise(self, target: Target) -> None:
        if self._pieces.held_out is None:
            least = 2 * self._opened.context
            self._why_not = f"the text has fewer than {least} tokens, so no half of it can be held out"
            return
        tuned = [self._read(piece) for piece in self._pieces.tuned]
        table = advise.Table.of(self.store.read(ROWS))
        with self._progress.task(f"looking for {target}", None) as tick:
            found = {
                "by head": advise.by_head(tuned, table, target, tick),
                "uniform": advise.uniform(tuned, target, tick),
            }
        candidates = {kind: candidate for kind, candidate in found.items() if candidate is not None}
        if not candidates:
            self._why_not = f"no budget tried surely meets {target} on this text; --queries looks at more positions"
            return
        reading = self._read(self._pieces.held_out)
        ordered = sorted(candidates.items(), key=lambda item: item[1].policy.bytes_share)
        with self._progress.task("verifying on text not seen", None) as tick:
            held = verifying.verify(reading, [candidate.budget for _, candidate in ordered], target, tick)
        self._advised = [
            Advice(kind, candidate, verified) for (kind, candidate), verified in zip(ordered, held, strict=True)
        ]

    def _read(self, ids: Tensor) -> Reading:
        return (Encoder if self._opened.kind.encoder else Decoder)(self._model, ids, self._options.queries)


def _write(file: Path, measured: dict[str, np.ndarray], label: dict[str, Any]) -> None:
    rows.write_table(file, measured, {"tailbound": json.dumps(label)})
