"""What `tailbound reproduce` does: rows that are missing, then figures, then the report."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import resource
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tailbound.lab import machine
from tailbound.lab.errors import InputError
from tailbound.lab.progress import Progress
from tailbound.lab.reproduce import gaussian, report
from tailbound.lab.reproduce.rows import Rows

SCHEMA = "tailbound.reproduce/1"
PARTS = ("gaussian",)


class Options(NamedTuple):
    """What to run, and where rows and report go."""

    parts: tuple[str, ...]
    out: Path
    seed: int = 0
    fresh: bool = False
    sizes: gaussian.Sizes = gaussian.Sizes()


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
    for name in options.parts:
        started = time.perf_counter()
        folder = options.out / name
        report.save(folder, _figures(name, options, progress))
        done.append(Done(name, report.load(folder), time.perf_counter() - started, _peak()))
    return Result(done, report.write(options.out))


def _figures(name: str, options: Options, progress: Progress) -> Iterator[dict[str, Any]]:
    settings = {"schema": SCHEMA, "part": name, "seed": options.seed, "sizes": options.sizes._asdict()}
    notes = {"processor": machine.processor(), "versions": _versions()}
    rows = Rows(options.out / name, settings, notes, options.fresh)
    gaussian.run(rows, options.seed, options.sizes, progress)
    yield {"table": "run", "seed": options.seed} | rows.notes
    yield from gaussian.figures(rows)


def _check(options: Options) -> None:
    unknown = [part for part in options.parts if part not in PARTS]
    if unknown:
        raise InputError(f"no part {', '.join(unknown)}; allowed are {', '.join(PARTS)} and all")
    missing = [
        package
        for package, module in (("pyarrow", "pyarrow"), ("matplotlib", "matplotlib"), ("markdown-it-py", "markdown_it"))
        if importlib.util.find_spec(module) is None
    ]
    if missing:
        raise InputError(
            f"{', '.join(missing)} not installed; a report needs the extra: pip install 'tailbound[report]'"
        )


def _versions() -> dict[str, str]:
    packages = ("tailbound", "torch", "numpy")
    return {"Python": platform.python_version()} | {name: importlib.metadata.version(name) for name in packages}


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
