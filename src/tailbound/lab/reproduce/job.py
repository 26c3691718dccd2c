"""What `tailbound reproduce` does: rows that are missing, then figures, then the report."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tailbound.lab import machine
from tailbound.lab.errors import InputError
from tailbound.lab.progress import Progress
from tailbound.lab.reproduce import gaussian, model_figures, models_run, report
from tailbound.lab.rows import Job, Rows

SCHEMA = "tailbound.reproduce/1"
PARTS = ("gaussian", "bert", "decoder")


class Options(NamedTuple):
    """What to run, and where rows and report go."""

    parts: tuple[str, ...]
    out: Path
    model: str | None = None
    text: Path | None = None
    contexts: tuple[int, ...] = (2048,)
    download: bool = False
    seed: int = 0
    fresh: bool = False
    draws: gaussian.Sizes = gaussian.Sizes()
    sizes: models_run.Sizes = models_run.Sizes()


class Done(NamedTuple):
    """One job: the name of its folder, its figures, seconds, and the peak memory of the process in bytes."""

    name: str
    figures: report.Figures
    seconds: float
    peak_bytes: int

    @property
    def violations(self) -> int:
        """Bounds that were below the truth."""
        return sum(row.get("violations", 0) for rows in self.figures.values() for row in rows)


class Result(NamedTuple):
    """What was run, and the files of the report."""

    done: list[Done]
    written: list[Path]

    @property
    def violations(self) -> int:
        """Bounds that were below the truth, over all jobs."""
        return sum(job.violations for job in self.done)

    def as_json(self) -> dict[str, Any]:
        """The figures, as `tailbound reproduce --json` prints them."""
        return {
            "schema": SCHEMA,
            "violations": self.violations,
            "written": [str(path) for path in self.written],
            "jobs": [
                {"name": job.name, "seconds": job.seconds, "peak_bytes": job.peak_bytes, "figures": job.figures}
                for job in self.done
            ],
        }


def run(options: Options, progress: Progress) -> Result:
    """Run the parts one after another; each goes on where an earlier run of it stopped.

    Raises:
        InputError: anything about the options that cannot be had.
    """
    _check(options)
    done = []
    for part in options.parts:
        for make in _jobs(part, options):
            started = time.perf_counter()
            job = make()
            folder = options.out / job.name
            notes = {"processor": machine.processor(), "versions": _versions(part)} | job.notes
            rows = Rows(folder, {"schema": SCHEMA} | job.settings, notes, options.fresh)
            if not rows.complete:
                job.work(rows, progress)
                rows.finish()
            lines = gaussian.figures(rows) if part == "gaussian" else model_figures.figures(rows)
            run = {"table": "run", "part": part, "seed": options.seed} | rows.notes
            report.save(folder, [run, *lines])
            done.append(Done(job.name, report.load(folder), time.perf_counter() - started, _peak()))
    return Result(done, report.write(options.out))


def _jobs(part: str, options: Options) -> list[Callable[[], Job]]:
    """What a part consists of. A model's text and tokens are read when its turn has come."""
    seed, sizes = options.seed, options.sizes
    if part == "gaussian":
        return [lambda: gaussian.job(seed, options.draws)]
    if part == "bert":
        return [lambda: models_run.encoder(options.model, options.text, options.download, seed, sizes)]
    return [
        lambda context=context: models_run.decoder(options.model, options.text, context, options.download, seed, sizes)
        for context in options.contexts
    ]


def _check(options: Options) -> None:
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        raise InputError(f"no part {', '.join(unknown)}; allowed are {', '.join(PARTS)} and all")
    if options.model is not None and len(options.parts) > 1:
        raise InputError(f"--model {options.model}: say whether it is for bert or for decoder")
    missing = [
        package
        for package, module in (("pyarrow", "pyarrow"), ("matplotlib", "matplotlib"), ("markdown-it-py", "markdown_it"))
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise InputError(
            f"{', '.join(missing)} not installed; a report needs the extra: pip install 'tailbound[report]'"
        )


def _versions(part: str) -> dict[str, str]:
    packages = ("tailbound", "torch", "numpy") if part == "gaussian" else ("tailbound", "torch", "transformers")
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
