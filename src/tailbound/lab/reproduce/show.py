"""What `tailbound reproduce` says in the terminal: what each job found in a few lines, and where the report is."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from tailbound.lab.reproduce.job import Done, Result
from tailbound.report import tables


def reproduce(result: Result) -> Iterator[RenderableType]:
    """A block for each job, and the files."""
    for job in result.done:
        taken = f"{job.seconds:.0f} s, peak memory {job.peak_bytes / 2**20:,.0f} MiB"
        yield tables.pairs([*_lines(job), ("took", taken)], title=job.name)
    yield Text("written: " + ", ".join(str(path) for path in result.written))


def _lines(job: Done) -> Iterator[tuple[str, RenderableType]]:
    if job.name == "gaussian":
        yield from _gaussian(job)


def _gaussian(job: Done) -> Iterator[tuple[str, RenderableType]]:
    two, six = job.figures["gaussian.table2"], job.figures["gaussian.table6"]
    worst = max(two, key=lambda row: abs(row["in_standard_errors"]))
    yield (
        "Table 2",
        f"{len(two)} rows; largest difference from the paper {worst['difference']:+.3f} keys, "
        f"{worst['in_standard_errors']:+.2f} of its standard errors (our own error {worst['standard_error']:.3f}), "
        f"at sigma {worst['sigma']:g}",
    )
    off = max(six, key=lambda row: abs(row["difference"]))
    yield (
        "Table 6",
        f"{len(six)} rows; largest difference {off['difference']:+.5f} (our error {off['standard_error']:.5f})",
    )
    ends = ", ".join(f"{row['within_0.01']:.2f} (n = {row['n']:,})" for row in job.figures["gaussian.limits"])
    yield "rule within 1% up to sigma", ends
