"""What `tailbound audit` does: rows layer by layer, runs under budgets and policies, a budget, and its proof by a run.

The folder of `--out` has `parts/`, where each layer and each run is written when it is done, and what is made of them:
`audit.parquet`, every row; `audit.json`, the figures; `budget.json`, what `certify` takes; `report.html` and `plots/`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import resource
import time
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tailbound.lab import machine, models, rows, seals, text
from tailbound.lab.audit import advise, columns, curves, heads, report, sensitivity, verifying
from tailbound.lab.audit.advise import Candidate, Target
from tailbound.lab.audit.reading import Decoder, Encoder, Reading
from tailbound.lab.audit.verifying import Verified
from tailbound.lab.audit.words import SCHEMA
from tailbound.lab.errors import InputError
from tailbound.lab.listening import Heard, check_heard
from tailbound.lab.progress import Progress
from tailbound.lab.rows import Rows

ROWS = "rows"
EVERY_ROW, BUDGET = "audit.parquet", "budget.json"
DRAWS = 8
"""Gradients drawn for the damage of errors."""


class Options(NamedTuple):
    """What to audit, and where to.

    Attributes:
        text: a file, or None for Python's language reference.
        context: tokens of each half of the text; None for 2048, or what the model was made for if that is less.
        queries: positions looked at: of a decoder the last ones, of an encoder some spread over its window.
        target: a measure and its limit as `Target.parse` reads it, "none" for no advice, None for the default.
        resume: go on with what is in the folder. fresh: forget it.
    """

    out: Path
    model: str = models.SMALL
    text: Path | None = None
    context: int | None = None
    queries: int = 64
    target: str | None = None
    dtype: str = "float32"
    download: bool = False
    seed: int = 0
    resume: bool = False
    fresh: bool = False


class Pieces(NamedTuple):
    """Tokens (1, n): of what is measured, of what budgets are tried on, and of the half that is held out, if any.

    A budget that is made from the rows of some positions does better on them than on others, so it is tried on others:
    of a decoder on the positions before those that were measured and on those in the middle, of an encoder on two other
    windows.
    """

    measured: Tensor
    tuned: tuple[Tensor, ...]
    held_out: Tensor | None


class Advice(NamedTuple):
    """A budget that meets the target on the text it was chosen on, and what it comes to on the other half."""

    kind: str
    candidate: Candidate
    held_out: Verified

    def as_json(self) -> dict[str, Any]:
        """Figures of both halves. The predicted speed of attention is that of its bytes: it cannot be beaten."""
        found = self.candidate
        return {
            "kind": self.kind,
            "budget": json.loads(found.budget.to_json()),
            "predicted_damage": found.damage,
            "predicted_attention_speed": 1.0 / found.policy.bytes_share,
            "chosen_on": curves.summary(curves.of_run(found.policy, found.errors)),
            "held_out": self.held_out.as_json(),
        }


class Result(NamedTuple):
    """What was found.

    Attributes:
        complete: whether nothing is missing: the run was not interrupted.
        layers_done, layers: how many were measured, and how many there are.
        heads: a line for each head. curve: a line for each policy and budget.
        advised: the budgets that meet the target, the one to take first; empty without a target, or if none does.
        why_not: why nothing is advised.
    """

    options: dict[str, Any]
    notes: dict[str, Any]
    complete: bool
    layers_done: int
    layers: int
    heads: list[dict[str, Any]]
    model: dict[str, Any]
    curve: list[dict[str, Any]]
    target: Target | None
    advised: list[Advice]
    why_not: str
    seconds: float
    peak_bytes: int
    written: list[Path]

    def as_json(self) -> dict[str, Any]:
        """What `audit.json` holds and `--json` prints."""
        found = self._asdict()
        for name in ("options", "notes"):
            del found[name]
        return {
            "schema": SCHEMA,
            "settings": self.options,
            **self.notes,
            **found,
            "target": None if self.target is None else str(self.target),
            "advised": [advice.as_json() for advice in self.advised],
            "written": [str(path) for path in self.written],
        }


class InterruptedAuditError(Exception):
    """The user stopped it; what was done is on disk, and in `result`."""

    def __init__(self, result: Result) -> None:
        super().__init__()
        self.result = result


def run(options: Options, progress: Progress) -> Result:
    """Measure, advise, verify, write.

    Raises:
        InputError: anything about the options that cannot be had. InterruptedAuditError: by Ctrl-C.
    """
    audit = _Audit(options, progress)
    try:
        with models.quietly():
            audit.work()
    except KeyboardInterrupt:
        raise InterruptedAuditError(audit.result()) from None
    return audit.result()


class _Audit:
    def __init__(self, options: Options, progress: Progress) -> None:
        self._options, self._progress, self._started = options, progress, time.perf_counter()
        _check(options)
        source = models.Source(options.model, options.dtype, options.download)
        title, document = text.read_prose(options.text)
        with progress.task("reading the tokenizer", None):
            tokenizer = source.tokenizer()
        kind = source.kind()
        self._context = options.context or min(2048, kind.positions or 2048)
        if kind.positions is not None and self._context > kind.positions:
            raise InputError(f"--context {self._context}: {options.model} was made for {kind.positions} positions")
        self._encoder = kind.encoder
        self._target = Target.choose(options.target, kind.encoder)
        self._pieces = self._read_text(tokenizer, document, title)
        self._store = Rows(options.out / "parts", self._settings(), self._notes(title), options.fresh)
        if options.fresh:  # they would speak of other rows than are there
            for name in (report.NAME, report.PAGE, EVERY_ROW, BUDGET):
                (options.out / name).unlink(missing_ok=True)
        if not (options.resume or options.fresh) and any(self._store.place.glob("*/*.parquet")):
            raise InputError(
                f"{options.out} holds an audit of the same settings: --resume goes on with it, --fresh begins again"
            )
        with progress.task("reading the model", None):
            self._model = source.encoder() if kind.encoder else source.model()
        self._reading = self._read(self._pieces.measured)
        self._advised: list[Advice] = []
        self._why_not = "none was asked for"
        self._complete = False

    def work(self) -> None:
        """All of it; each part is on disk when it is done."""
        self._measure()
        with self._progress.task("budgets and policies", curves.count(self._reading)) as advance:
            curves.run(self._reading, self._store, self._store.read(ROWS), advance)
        if self._target is not None:
            self._advise(self._target)
        self._complete = True

    def result(self) -> Result:
        """Of what there is; writes the files."""
        done = [layer for layer in range(self._reading.layers) if self._store.has(ROWS, _part(layer))]
        measured = self._store.read(ROWS) if done else {}
        curve = self._store.read(curves.KIND) if any(self._store.place.glob(f"{curves.KIND}/*.parquet")) else {}
        out = self._options.out
        written = [out / report.NAME]
        if measured:
            written.append(out / EVERY_ROW)
        if self._advised:
            written.append(out / BUDGET)
        lines = list(heads.table(measured)) if measured else []
        found = Result(
            options=self._store.settings,
            notes=self._store.notes,
            complete=self._complete,
            layers_done=len(done),
            layers=self._reading.layers,
            heads=lines,
            model=heads.over_all(lines) if lines else {},
            curve=list(curves.table(curve)) if curve else [],
            target=self._target,
            advised=self._advised,
            why_not=self._why_not,
            seconds=time.perf_counter() - self._started,
            peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            written=written,
        )
        pieces = report.pieces(out, found.as_json())
        found = found._replace(written=[*written, *(piece.file for piece in pieces)])
        if measured:
            rows.write_table(out / EVERY_ROW, measured, {"tailbound": json.dumps({"schema": SCHEMA} | found.options)})
        if self._advised:
            budget = self._advised[0].candidate.budget.to_json() + "\n"
            rows.whole(out / BUDGET, lambda path: path.write_text(budget, encoding="utf-8"))
        document = json.dumps(seals.sealed(found.as_json()), indent=1) + "\n"
        rows.whole(out / report.NAME, lambda path: path.write_text(document, encoding="utf-8"))
        report.write(out, pieces)
        return found

    def _measure(self) -> None:
        reading, missing = self._reading, self._missing()
        if not missing:
            return
        with self._progress.task("gradients of the answers", DRAWS) as advance:
            gradients = sensitivity.gradients(reading, DRAWS, self._options.seed, advance)
        heard: set[int] = set()
        with self._progress.task("measuring, by layer", reading.layers) as advance:

            def hear(call: Heard) -> None:
                heard.add(call.layer)
                if call.layer in missing:
                    found = columns.measure(call, reading.positions, gradients[call.layer], self._encoder)
                    self._store.add(ROWS, _part(call.layer), found)
                advance()

            reading.listen(hear)
        check_heard(reading.model, heard, reading.layers)

    def _missing(self) -> set[int]:
        return {layer for layer in range(self._reading.layers) if not self._store.has(ROWS, _part(layer))}

    def _advise(self, target: Target) -> None:
        if self._pieces.held_out is None:
            least = 2 * self._context
            self._why_not = f"the text has fewer than {least} tokens, so no half of it can be held out"
            return
        tuned = [self._read(piece) for piece in self._pieces.tuned]
        table = advise.Table.of(self._store.read(ROWS))
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
        return (Encoder if self._encoder else Decoder)(self._model, ids, self._options.queries)

    def _read_text(self, tokenizer: Any, document: str, title: str) -> Pieces:
        n, queries, advice = self._context, self._options.queries, self._target is not None
        if queries > n // 3:
            raise InputError(f"--queries {queries}: at most a third of {n} tokens")
        if self._encoder:
            first, *tuned, last = text.windows(tokenizer, document, 4, n, title).split(1)
            return Pieces(first, tuple(tuned), last)
        try:
            ids = text.first_tokens(tokenizer, document, 2 * n if advice else n, title)
        except InputError:
            if not advice or self._options.target is not None:
                raise
            ids = text.first_tokens(tokenizer, document, n, title)
        tuned = ids[:, : n - queries], ids[:, : n // 2 + queries // 2]
        return Pieces(ids[:, :n], tuned, ids[:, n:] if ids.shape[1] == 2 * n else None)

    def _settings(self) -> dict[str, Any]:
        options = self._options
        return {
            "schema": SCHEMA,
            "model": options.model,
            "dtype": options.dtype,
            "context": self._context,
            "queries": options.queries,
            "seed": options.seed,
            "tokens": hashlib.sha256(self._pieces.measured.numpy().tobytes()).hexdigest()[:16],
        }

    def _notes(self, title: str) -> dict[str, Any]:
        packages = ("tailbound", "torch", "transformers", "numpy")
        versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}
        return {"text": title, "processor": machine.processor(), "versions": versions, "encoder": self._encoder}


def _part(layer: int) -> str:
    return f"layer-{layer:03}"


def _check(options: Options) -> None:
    if options.queries < 1:
        raise InputError(f"--queries {options.queries}: at least 1 is needed")
    if options.context is not None and options.context < 2 * columns.LEAST:
        raise InputError(f"--context {options.context}: at least {2 * columns.LEAST} tokens are needed")
    if options.resume and options.fresh:
        raise InputError("--resume goes on and --fresh begins again: give one of them")
