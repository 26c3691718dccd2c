"""Put a run of `tailbound reproduce all --out FOLDER` into the documentation: figures, plots and docs/reproduction.md.

Run: python scripts/reproduction.py FOLDER
"""

import shutil
import sys
from pathlib import Path

from tailbound.lab.reproduce import report

DOCS = Path(__file__).resolve().parent.parent / "docs"


def main() -> None:
    """Replace what is there."""
    results, plots = DOCS / "results" / "reproduction", DOCS / "reproduction"
    for folder in (results, plots):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    for figures in sorted(Path(sys.argv[1]).glob(f"*/{report.NAME}")):
        (results / figures.parent.name).mkdir()
        shutil.copy(figures, results / figures.parent.name)
    made = report.compose(results, plots.name)
    (DOCS / "reproduction.md").write_text(made.markdown, encoding="utf-8")
    for chart in made.charts:
        chart.draw(plots / f"{chart.name}.svg")


if __name__ == "__main__":
    main()
