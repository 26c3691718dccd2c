"""What an audit is asked for, and what it begins with: the model by name, the tokens that it reads, its folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from tailbound.lab import machine, models, text
from tailbound.lab.audit import columns, report
from tailbound.lab.audit.advise import Target
from tailbound.lab.audit.words import SCHEMA
from tailbound.lab.errors import InputError
from tailbound.lab.progress import Progress
from tailbound.lab.rows import Rows

EVERY_ROW, BUDGET = "audit.parquet", "budget.json"


class Options(NamedTuple):
    """What to audit, and where to.

    Attributes:
        text: a file, or None for Python's language reference.
        texts: a folder or a pattern of files, each of which is a text; in the place of `text`.
        context: tokens of each half of the text; None for 2048, or what the model was made for if that is less.
        queries: positions looked at: of a decoder the last ones, of an encoder some spread over its window.
        target: a measure and its limit as `Target.parse` reads it, "none" for no advice, None for the default.
        resume: go on with what is in the folder. fresh: forget it.
        ray: where a Ray cluster is that reads the texts, or "local" for one on this machine; None for this process.
        threads: CPU threads for each text; 0 for torch's choice, and on a cluster for one.
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
    texts: Path | None = None
    ray: str | None = None
    threads: int = 0


class Pieces(NamedTuple):
    """Tokens (1, n): of what is measured, of what budgets are tried on, and of the half that is held out, if any.

    A budget that is made from the rows of some positions does better on them than on others, so it is tried on others:
    of a decoder on the positions before those that were measured and on those in the middle, of an encoder on two other
    windows.
    """

    measured: Tensor
    tuned: tuple[Tensor, ...]
    held_out: Tensor | None


class Opened(NamedTuple):
    """A model of which tokenizer and configuration were read, and no weights yet.

    Attributes:
        context: tokens of each half of a text. target: None for no advice.
    """

    options: Options
    source: models.Source
    tokenizer: Any
    kind: models.Kind
    context: int
    target: Target | None

    def read_text(self, document: str, title: str) -> Pieces:
        """The tokens of a text.

        Raises:
            InputError: it is too short.
        """
        n, queries, advice = self.context, self.options.queries, self.target is not None
        if self.kind.encoder:
            first, *tuned, last = text.windows(self.tokenizer, document, 4, n, title).split(1)
            return Pieces(first, tuple(tuned), last)
        try:
            ids = text.first_tokens(self.tokenizer, document, 2 * n if advice else n, title)
        except InputError:
            if not advice or self.options.target is not None:
                raise
            ids = text.first_tokens(self.tokenizer, document, n, title)
        tuned = ids[:, : n - queries], ids[:, : n // 2 + queries // 2]
        return Pieces(ids[:, :n], tuned, ids[:, n:] if ids.shape[1] == 2 * n else None)

    def folder(self, tokens: Sequence[Tensor], title: str, extra: dict[str, Any] | None = None) -> Rows:
        """Open the folder of parts, or begin it; forget what is there if that is asked for.

        Args:
            tokens: everything that is measured. extra: further settings that rows must not mix.

        Raises:
            InputError: it holds an audit of other settings, or of these and nobody said what to do with it.
        """
        options = self.options
        read = hashlib.sha256(b"".join(ids.numpy().tobytes() for ids in tokens)).hexdigest()[:16]
        settings = {
            "schema": SCHEMA,
            "model": options.model,
            "dtype": options.dtype,
            "context": self.context,
            "queries": options.queries,
            "seed": options.seed,
            "tokens": read,
        } | (extra or {})
        known = {"text": title, "processor": machine.processor(), "versions": versions(), "encoder": self.kind.encoder}
        store = Rows(options.out / "parts", settings, known, options.fresh)
        if options.fresh:  # they would speak of other rows than are there
            for name in (report.NAME, report.PAGE, EVERY_ROW, BUDGET):
                (options.out / name).unlink(missing_ok=True)
        if not (options.resume or options.fresh) and any(store.place.glob("*/*.parquet")):
            raise InputError(
                f"{options.out} holds an audit of the same settings: --resume goes on with it, --fresh begins again"
            )
        return store


def begin(options: Options, progress: Progress) -> Opened:
    """Read what can be read without the weights.

    Raises:
        InputError: options that do not go together, or not with this model.
    """
    _check(options)
    source = models.Source(options.model, options.dtype, options.download)
    with progress.task("reading the tokenizer", None):
        tokenizer = source.tokenizer()
    kind = source.kind()
    context = options.context or min(2048, kind.positions or 2048)
    source.check_positions(context, f"--context {context}")
    target = Target.choose("none" if options.texts and options.target is None else options.target, kind.encoder)
    if options.texts and target is not None:
        raise InputError(f"--target {target}: a budget is chosen on one text; give it with --text, or --target none")
    if options.queries > context // 3:
        raise InputError(f"--queries {options.queries}: at most a third of {context} tokens")
    return Opened(options, source, tokenizer, kind, context, target)


def versions() -> dict[str, str]:
    """Of Python and of the packages that figures depend on."""
    packages = ("tailbound", "torch", "transformers", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _check(options: Options) -> None:
    if options.queries < 1:
        raise InputError(f"--queries {options.queries}: at least 1 is needed")
    if options.context is not None and options.context < 2 * columns.LEAST:
        raise InputError(f"--context {options.context}: at least {2 * columns.LEAST} tokens are needed")
    if options.texts is not None and options.text is not None:
        raise InputError("--text is one text and --texts are many: give one of them")
    if options.ray is not None and options.texts is None:
        raise InputError("--ray spreads the texts of --texts over a cluster; one text is not split")
    if options.resume and options.fresh:
        raise InputError("--resume goes on and --fresh begins again: give one of them")
