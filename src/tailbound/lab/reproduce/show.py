"""What `tailbound reproduce` says in the terminal: what each job found in a few lines, and where the report is."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import RenderableType
from rich.text import Text

from tailbound.lab.reproduce import printed, sample
from tailbound.lab.reproduce.job import Done, Result
from tailbound.report import tables

EPSILON = sample.EPSILONS[0]


def reproduce(result: Result) -> Iterator[RenderableType]:
    """A block for each job, and the files."""
    for job in result.done:
        taken = f"{job.seconds:.0f} s, peak memory {job.peak_bytes / 2**20:,.0f} MiB"
        yield tables.pairs([*_lines(job), ("took", taken)], title=job.name)
    yield Text("written: " + ", ".join(str(path) for path in result.written))


def _lines(job: Done) -> Iterator[tuple[str, RenderableType]]:
    yield from _gaussian(job) if job.name == "gaussian" else _model(job)


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


def _model(job: Done) -> Iterator[tuple[str, RenderableType]]:
    run = job.figures["run"][0]
    yield "model", f"{run['model']} on {run['text']}"
    at = [row for row in job.figures["model.needs"] if row["epsilon"] == EPSILON]
    yield "n / mean k_eps", ", ".join(f"{_beside(row['ratio'], row['paper'])} (n = {row['n']:,})" for row in at)
    fixed = job.figures["model.fixed"]
    yield "TV of 16 keys", ", ".join(f"{_beside(row['mean'], row['paper_mean'])} (n = {row['n']:,})" for row in fixed)
    scored = [row for row in job.figures["model.searches"] if row["epsilon"] == EPSILON and row["n"] == at[-1]["n"]]
    for search, bound in (("MC-Search, adaptive", sample.CELLS[-1]), ("MC-Search, adaptive", sample.SKETCH)):
        row = next(row for row in scored if (row["search"], row["bound"]) == (search, bound))
        yield f"{search}, {bound}", f"{row['mean_share']:.1%} of the keys scored (n = {row['n']:,})"
    below = Text(str(job.violations), style="bold red" if job.violations else "green")
    yield "bounds below the truth", below


def _beside(ours: float, paper: float | None) -> str:
    return f"{ours:.3f}" + ("" if paper is None else f" against {paper:g} of {printed.BERT}")
