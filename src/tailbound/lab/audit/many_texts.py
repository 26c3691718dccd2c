"""An audit over a corpus: every text is a shard, read in this process or on a cluster, and a part when it is done."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tailbound.lab.audit import cluster, corpus, curves, merged, opening
from tailbound.lab.audit.columns import AT
from tailbound.lab.audit.figures import Figures
from tailbound.lab.audit.measuring import ROWS
from tailbound.lab.audit.merged import Merged
from tailbound.lab.audit.opening import Options
from tailbound.lab.audit.shards import Done, Reader, Shard, Work
from tailbound.lab.progress import Progress
from tailbound.lab.rows import chosen

BY, SECONDS, PEAK, LOSSES = (f"tailbound.{name}" for name in ("by", "seconds", "peak_bytes", "losses"))
"""In the metadata of a text's rows: who read it, how long that took, and what it took; workers lost before."""


class ManyTexts:
    """Texts of a corpus. All tokens are read first, so that what cannot be audited is said before any work."""

    def __init__(self, options: Options, progress: Progress) -> None:
        assert options.texts is not None
        merged.check()
        if options.ray is not None:
            cluster.check()
        self._options, self._progress = options, progress
        self._opened = opening.begin(options, progress)
        with progress.task("reading the texts", None) as advance:
            texts = corpus.read(options.texts, self._tokens, advance)
        self._threads = options.threads or (1 if options.ray else torch.get_num_threads())
        self._shards = [
            Shard(number, found.name, found.ids.numpy(), options.seed + number) for number, found in enumerate(texts)
        ]
        extra = {"texts": len(texts), "names": corpus.digest(texts), "threads": self._threads}
        title = f"{len(texts)} texts of {options.texts}"
        self.store = self._opened.folder([found.ids for found in texts], title, extra)
        self._done: set[int] = set()
        self._complete = False

    def _tokens(self, document: str, name: str) -> torch.Tensor:
        return self._opened.read_text(document, name).measured

    def work(self) -> None:
        """Every text that is not there yet."""
        with self._progress.task("texts", len(self._shards)) as advance:
            for shard in self._shards:
                if self.store.has(curves.KIND, shard.part) and self.store.has(ROWS, shard.part):
                    self._done.add(shard.number)
                    advance()
            missing = [shard for shard in self._shards if shard.number not in self._done]
            with contextlib.closing(self._read(missing)) as found:
                for done, losses in found:
                    self._keep(done, losses)
                    self._done.add(done.shard.number)
                    advance()
        self._complete = True

    def figures(self) -> Figures:
        """Of the texts that are done."""
        done = [shard for shard in self._shards if shard.number in self._done]
        parts = [shard.part for shard in done]
        every = Merged([self.store.file(ROWS, part) for part in parts]) if done else None
        runs = self.store.read(curves.KIND, parts) if done else {}
        notes = [self.store.notes_of(ROWS, part) for part in parts]
        layers = self._opened.kind.layers
        peaks = [int(note[PEAK]) for note in notes]
        return Figures(
            complete=self._complete,
            layers_done=layers if done else 0,
            layers=layers,
            texts=list(_lines(done, notes, every.shares(), runs)) if every else [],
            heads=list(every.heads(layers)) if every else [],
            curve=list(curves.table(runs)) if runs else [],
            target=None,
            advised=[],
            why_not="none was asked for",
            peak_bytes=max(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, *peaks, 0),
            write_rows=every.write if every else None,
        )

    def _read(self, shards: Sequence[Shard]) -> Generator[tuple[Done, int], None, None]:
        """Shards as they are done, and how many workers were lost on each."""
        if not shards:
            return
        options, here = self._options, self._options.ray is None
        work = Work(
            # A worker may stand in another folder.
            model=options.model if here or not Path(options.model).exists() else str(Path(options.model).resolve()),
            dtype=options.dtype,
            download=options.download,
            encoder=self._opened.kind.encoder,
            queries=options.queries,
            threads=self._threads,
            versions=tuple(opening.versions().items()),
        )
        if options.ray is None:
            reader = Reader(work)
            for shard in shards:
                yield reader.read(shard), 0
            return
        with cluster.connected(options.ray, self._threads) as ray:
            for done in ray.read(work, shards):
                yield done, ray.losses.get(done.shard.number, 0)

    def _keep(self, done: Done, losses: int) -> None:
        """Runs first: a text whose rows are there is done."""
        name = done.shard.text
        notes = {BY: done.by, SECONDS: f"{done.seconds:.3f}", PEAK: str(done.peak_bytes), LOSSES: str(losses)}
        for kind, columns in ((curves.KIND, done.runs), (ROWS, done.rows)):
            size = len(next(iter(columns.values())))
            self.store.add(kind, done.shard.part, {"text": np.full(size, name)} | columns, notes)


def _lines(
    shards: Sequence[Shard], notes: Sequence[dict[str, str]], shares: dict[str, float], runs: dict[str, np.ndarray]
) -> Iterator[dict[str, Any]]:
    """A line for each text: keys needed and the answers' error at `AT`, who read it, and how long that took."""
    ours = chosen(runs, policy=curves.OURS, epsilon=AT)
    for shard, note in zip(shards, notes, strict=True):
        found = curves.summary(chosen(ours, text=shard.text))
        yield {
            "text": shard.text,
            f"share_{AT:g}": shares[shard.text],
            **{name: found[name] for name in ("share", "bytes_share", "tv_mean", "tv_max", "agreement", "dense_loss")},
            "by": note[BY],
            "seconds": float(note[SECONDS]),
            "losses": int(note[LOSSES]),
        }
