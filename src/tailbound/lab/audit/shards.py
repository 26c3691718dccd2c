"""A shard is a text: what is sent to who reads it, wherever that is, and what comes back.

One function reads a shard, in this process or in a worker's, from nothing but its tokens and the model. So rows do not
depend on who read them, as long as the processors and the number of threads are the same.
"""

from __future__ import annotations

import os
import platform
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch

from tailbound.lab import models
from tailbound.lab.audit import curves, measuring
from tailbound.lab.audit.opening import versions
from tailbound.lab.audit.reading import Decoder, Encoder
from tailbound.lab.audit.store import Memory
from tailbound.lab.errors import InputError
from tailbound.lab.progress import Silent


class Work(NamedTuple):
    """What all shards of an audit share: a model by name, and how it is read. `versions` are those of the driver."""

    model: str
    dtype: str
    download: bool
    encoder: bool
    queries: int
    threads: int
    versions: tuple[tuple[str, str], ...]


class Shard(NamedTuple):
    """A text: its place in the corpus, its name, its tokens int64 (1, n), and the seed of what is random in it."""

    number: int
    text: str
    tokens: np.ndarray
    seed: int

    @property
    def part(self) -> str:
        """The name of its parts."""
        return f"text-{self.number:05}"


class Done(NamedTuple):
    """A shard that was read: columns of its rows and of its runs.

    Attributes:
        by: the machine and the process that read it, as `machine:process`.
        peak_bytes: resident memory of that process at its highest point so far.
    """

    shard: Shard
    rows: dict[str, np.ndarray]
    runs: dict[str, np.ndarray]
    by: str
    seconds: float
    peak_bytes: int


class Reader:
    """Reads shards; holds the model from one to the next."""

    def __init__(self, work: Work) -> None:
        """Read the model.

        Raises:
            InputError: it cannot be had here, or here are other versions than the driver has.
        """
        here, there = versions(), dict(work.versions)
        differ = [f"{name} {here[name]} ({there[name]})" for name in here if here[name] != there[name]]
        if differ:
            raise InputError(
                f"{platform.node()} has {', '.join(differ)}; in brackets what the audit was begun with. Rows of both "
                "must not mix: install the same on every machine"
            )
        self._work = work
        source = models.Source(work.model, work.dtype, work.download)
        self._model = source.encoder() if work.encoder else source.model()

    def read(self, shard: Shard) -> Done:
        """Rows and runs of a text."""
        started, store = time.perf_counter(), Memory()
        ids = torch.from_numpy(shard.tokens)
        with _threads(self._work.threads), models.quietly():
            reading = (Encoder if self._work.encoder else Decoder)(self._model, ids, self._work.queries)
            measuring.measure(reading, store, shard.seed, Silent())
        return Done(
            shard,
            store.read(measuring.ROWS),
            store.read(curves.KIND),
            f"{platform.node()}:{os.getpid()}",
            time.perf_counter() - started,
            resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
