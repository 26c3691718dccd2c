"""`tailbound verify` without a model: a soak of the engine on this machine, for as long as asked."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from tailbound.lab import captures
from tailbound.lab.errors import InputError
from tailbound.lab.progress import Progress
from tailbound.lab.soak import cases, files, judging
from tailbound.lab.soak.judging import Violation
from tailbound.lab.soak.tally import Tally

SCHEMA = "tailbound.soak/1"
BATCH = 32
"""Cases that a process judges before it reports."""

CONTEXT, QUERIES = 2048, 32
"""Tokens, and positions asked about, of a capture that is made for the purpose."""

LISTED = 1000
"""Broken promises that are remembered one by one; all are counted."""

SAVED = 20
"""Cases that broke a promise, of which files are written; more would say the same."""


class Options(NamedTuple):
    """How long, from which seed.

    Attributes:
        capture: a file of `tailbound capture`; a third of the cases are taken from it.
        model: a capture of this model is made for the purpose; `text` and `download` as `tailbound capture` has them.
        out: folder for the cases that break a promise.
        processes: how many judge at once; 0 for one a core that torch would use.
    """

    minutes: float = 1.0
    seed: int = 0
    capture: Path | None = None
    model: str | None = None
    text: Path | None = None
    download: bool = False
    out: Path = Path("violations")
    processes: int = 0


@dataclass(frozen=True)
class Result:
    """What a soak or a replay came to. `replays` are the files and the addresses that ask again."""

    seed: int
    seconds: float
    tally: Tally
    violations: list[Violation]
    replays: list[str]
    interrupted: bool = False

    def as_json(self) -> dict[str, Any]:
        """One object."""
        tally = self.tally
        return {
            "schema": SCHEMA,
            "seed": self.seed,
            "seconds": round(self.seconds, 1),
            "certificates": tally.rows,
            "cases": tally.cases,
            "violations": tally.violations,
            "margin": tally.margin if tally.at else None,
            "margin_at": None if tally.at is None else "{}:{}".format(*tally.at),
            "looseness": tally.quantile(0.5),
            "looseness_p99": tally.quantile(0.99),
            "certified_share": tally.sparse,
            "long_share": tally.long,
            "statuses": dict(tally.statuses),
            "lengths": {str(length): tally.lengths[length] for length in sorted(tally.lengths)},
            "kinds": dict(tally.kinds),
            "answered_by": dict(tally.makers),
            "escalated": dict(tally.escalated),
            "interrupted": self.interrupted,
            "broken": [violation._asdict() for violation in self.violations],
            "replay": self.replays,
        }

    def verdict(self) -> str:
        """What it comes to, in a sentence."""
        if not self.tally.rows:
            return "Nothing was checked."
        if self.tally.violations:
            return (
                f"{self.tally.violations:,} promises broken in {self.tally.rows:,} certificates: a fault of "
                f"tailbound's; please report it. Again: tailbound verify --replay {self.replays[0]}"
            )
        return f"All {self.tally.rows:,} certificates hold."


def run(options: Options, progress: Progress) -> Result:
    """Judge cases 0, 1, 2, ... of the seed until the time is up, or Ctrl-C.

    Raises:
        InputError: options that do not fit, a capture that cannot be read, or a process that died.
    """
    if not 0 < options.minutes <= 1e5:
        raise InputError(f"--minutes {options.minutes:g}: more than 0 is needed")
    if options.seed < 0:
        raise InputError(f"--seed {options.seed}: 0 or more is needed")
    if options.model is not None:
        with TemporaryDirectory() as folder:
            path = Path(folder) / "capture.safetensors"
            made = captures.Options(path, options.model, options.text, CONTEXT, QUERIES, "float32", options.download)
            captures.capture(made, progress)
            return run(options._replace(model=None, capture=path), progress)
    if options.capture is not None:
        captures.load(options.capture)
    tally, broken, interrupted = Tally(), list[Violation](), False
    seconds = round(60 * options.minutes) or 1
    with progress.task("verifying, by second", seconds) as advance:
        shown, started = 0, time.monotonic()
        try:
            batches = _judged(options)
            next(batches)  # processes take a while to begin
            started = time.monotonic()
            for part, violations in batches:
                tally.add(part)
                broken += violations[: LISTED - len(broken)]
                while shown < min(seconds, int(time.monotonic() - started)):
                    advance()
                    shown += 1
        except KeyboardInterrupt:
            interrupted = True
    replays = _save(options, broken)
    return Result(options.seed, time.monotonic() - started, tally, broken, replays, interrupted)


def replay(what: str) -> Result:
    """Judge one case again: a file, or `SEED:NUMBER`.

    Raises:
        InputError: neither.
    """
    started, tally = time.monotonic(), Tally()
    seed, colon, number = what.partition(":")
    if colon and seed.isdecimal() and number.isdecimal():
        case = cases.draw(int(seed), int(number))
    else:
        case = files.load(Path(what))
    try:
        broken = judging.judge(case, tally)
    except (ValueError, TypeError, RuntimeError, IndexError) as error:
        raise InputError(f"{what}: this case cannot be asked here: {error}") from error
    return Result(case.seed, time.monotonic() - started, tally, broken, [what])


def _save(options: Options, broken: list[Violation]) -> list[str]:
    """Files of the cases that broke a promise."""
    layers = _layers(options.capture)
    replays = []
    for number in list(dict.fromkeys(violation.number for violation in broken))[:SAVED]:
        path = options.out / f"case-{options.seed}-{number}.npz"
        try:
            options.out.mkdir(parents=True, exist_ok=True)
            files.save(cases.draw(options.seed, number, layers), path)
            replays.append(str(path))
        except (InputError, OSError):  # the address is as good, but for a case that was captured
            replays.append(f"{options.seed}:{number}")
    return replays


def _judged(options: Options) -> Iterator[tuple[Tally, list[Violation]]]:
    """Nothing when all is ready, and the time begins; then batches as they are done, in any order."""
    processes = options.processes or torch.get_num_threads()
    if processes == 1:
        yield Tally(), []
        deadline = time.monotonic() + 60 * options.minutes
        for batch in count():
            yield _batch(options.seed, batch, options.capture, deadline)
            if time.monotonic() >= deadline:
                return
    # Each process begins anew: a fork would inherit locks of torch's threads.
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        try:
            wait([pool.submit(_batch, options.seed, 0, options.capture, 0.0) for _ in range(processes)])
            yield Tally(), []
            yield from _from_pool(pool, processes, options, time.monotonic() + 60 * options.minutes)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _from_pool(
    pool: ProcessPoolExecutor, processes: int, options: Options, deadline: float
) -> Iterator[tuple[Tally, list[Violation]]]:
    batches, running = count(), dict[Future[tuple[Tally, list[Violation]]], int]()
    while True:
        while len(running) < 2 * processes and time.monotonic() < deadline:
            batch = next(batches)
            running[pool.submit(_batch, options.seed, batch, options.capture, deadline)] = batch
        if not running:
            return
        done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
        try:
            found = [future.result() for future in done]
        except BrokenProcessPool as error:
            first = BATCH * min(running.values())
            raise InputError(
                f"a process died while it judged one of the cases {first} to {BATCH * (max(running.values()) + 1) - 1} "
                f"of seed {options.seed}; find which with `tailbound verify --replay {options.seed}:{first}` and so on"
            ) from error
        for future in done:
            del running[future]
        yield from found
        if not done:
            yield Tally(), []  # time passes


_CAPTURES: dict[Path, list[captures.Layer]] = {}
"""Of this process: a file is read once."""


def _layers(path: Path | None) -> list[captures.Layer]:
    if path is None:
        return []
    if path not in _CAPTURES:
        _CAPTURES[path] = captures.load(path).layers
    return _CAPTURES[path]


def _batch(seed: int, batch: int, capture: Path | None, deadline: float) -> tuple[Tally, list[Violation]]:
    """Cases `BATCH * batch` and on, as many as the time allows."""
    tally, broken, before = Tally(), list[Violation](), torch.get_num_threads()
    torch.set_num_threads(1)  # but while a case answers: teams of two processes on the same cores wait for each other
    try:
        for number in range(BATCH * batch, BATCH * (batch + 1)):
            if time.monotonic() >= deadline:
                break
            broken += judging.judge(cases.draw(seed, number, _layers(capture)), tally)
    finally:
        torch.set_num_threads(before)
    return tally, broken
