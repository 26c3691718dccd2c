"""The report: report.md, report.html and the plots, from the figures of every job in a folder."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tailbound.lab.errors import InputError
from tailbound.lab.reproduce import gaussian_page, model_page, summary_page
from tailbound.lab.reproduce.writing import Figures, Section, fill
from tailbound.report import page

NAME = "figures.jsonl"
PICTURES = "plots"


def save(folder: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write the figures of a job."""
    (folder / NAME).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def load(folder: Path) -> Figures:
    """The figures of a job."""
    found: Figures = {}
    for line in (folder / NAME).read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        found.setdefault(row["table"], []).append(row)
    return found


def compose(folder: Path, pictures: str = PICTURES) -> Section:
    """The report on every job that left figures in a folder: Gaussian logits first, then models by name.

    Args:
        pictures: the address of the folder of plots, as the report shows them.
    """
    jobs = {path.parent.name: load(path.parent) for path in sorted(folder.glob(f"*/{NAME}"))}
    drawn = [figures for figures in jobs.values() if figures["run"][0]["part"] == "gaussian"]
    models = {name: figures for name, figures in jobs.items() if figures["run"][0]["part"] != "gaussian"}
    sections = [gaussian_page.section(figures, pictures) for figures in drawn]
    sections += [model_page.section(name, figures, pictures) for name, figures in models.items()]
    opening = [fill("introduction.md", {}), *([summary_page.summary(list(models.values()))] if models else [])]
    markdown = "\n".join([*opening, *(section.markdown for section in sections), fill("limits.md", {})])
    return Section(markdown, [chart for section in sections for chart in section.charts])


def write(folder: Path) -> list[Path]:
    """Write the report beside the figures; what was written.

    Raises:
        InputError: a file cannot be written.
    """
    report = compose(folder)
    plots = folder / PICTURES
    try:
        plots.mkdir(exist_ok=True)
        svg = {}
        for chart in report.charts:
            for suffix in (".png", ".svg"):
                chart.draw(plots / f"{chart.name}{suffix}")
            svg[f"{PICTURES}/{chart.name}.svg"] = (plots / f"{chart.name}.svg").read_text(encoding="utf-8")
        written = [folder / "report.md", folder / "report.html"]
        written[0].write_text(report.markdown, encoding="utf-8")
        written[1].write_text(page.html(report.markdown, svg), encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot write the report to {folder}: {error.strerror or error}") from error
    return written
