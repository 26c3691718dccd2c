"""What `tailbound audit` does: rows layer by layer, runs under budgets and policies, a budget, and its proof by a run.

The folder of `--out` has `parts/`, where each layer and each run is written when it is done (of many texts, each text),
and what is made of them: `audit.parquet`, every row; `audit.json`, the figures; `budget.json`, what `certify` takes;
`report.html` and `plots/`.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, NamedTuple

from tailbound.lab import models, rows, seals
from tailbound.lab.audit import heads, report
from tailbound.lab.audit.figures import Figures
from tailbound.lab.audit.many_texts import ManyTexts
from tailbound.lab.audit.one_text import OneText
from tailbound.lab.audit.opening import BUDGET, EVERY_ROW, Options
from tailbound.lab.audit.words import SCHEMA
from tailbound.lab.progress import Progress

__all__ = ["InterruptedAuditError", "Options", "Result", "run"]


class Result(NamedTuple):
    """What was found, and the files that say so.

    Attributes:
        options: settings of the rows. notes: what else is known of them. model: figures over all heads.
    """

    options: dict[str, Any]
    notes: dict[str, Any]
    figures: Figures
    model: dict[str, Any]
    seconds: float
    written: list[Path]

    def as_json(self) -> dict[str, Any]:
        """What `audit.json` holds and `--json` prints."""
        found = self.figures._asdict()
        del found["write_rows"]
        return {
            "schema": SCHEMA,
            "settings": self.options,
            **self.notes,
            **found,
            "model": self.model,
            "target": None if self.figures.target is None else str(self.figures.target),
            "advised": [advice.as_json() for advice in self.figures.advised],
            "seconds": self.seconds,
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
    started = time.perf_counter()
    audit = (OneText if options.texts is None else ManyTexts)(options, progress)
    try:
        with models.quietly():
            audit.work()
    except KeyboardInterrupt:
        raise InterruptedAuditError(_write(audit, options.out, started)) from None
    return _write(audit, options.out, started)


def _write(audit: OneText | ManyTexts, out: Path, started: float) -> Result:
    """Of what there is, every file."""
    figures = audit.figures()
    found = Result(
        options=audit.store.settings,
        notes=audit.store.notes,
        figures=figures,
        model=heads.over_all(figures.heads) if figures.heads else {},
        seconds=time.perf_counter() - started,
        written=[out / report.NAME],
    )
    if figures.write_rows is not None:
        figures.write_rows(out / EVERY_ROW, {"schema": SCHEMA} | found.options)
        found.written.append(out / EVERY_ROW)
    if figures.advised:
        budget = figures.advised[0].candidate.budget.to_json() + "\n"
        rows.whole(out / BUDGET, lambda path: path.write_text(budget, encoding="utf-8"))
        found.written.append(out / BUDGET)
    pieces = report.pieces(out, found.as_json())
    found.written.extend(piece.file for piece in pieces)
    document = json.dumps(seals.sealed(found.as_json()), indent=1) + "\n"
    rows.whole(out / report.NAME, lambda path: path.write_text(document, encoding="utf-8"))
    report.write(out, pieces)
    return found
