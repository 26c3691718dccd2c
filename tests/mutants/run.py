"""Mutants: plausible bugs, put into a copy of the sources one at a time. A test must notice each: `make mutants`.

    python tests/mutants/run.py                all of them
    python tests/mutants/run.py NAME ...       some
    python tests/mutants/run.py --list         what there is
    python tests/mutants/run.py --json ...     the table as JSON on standard output

`mutants.toml` has the patches and, for each, the tests that are run first. If those pass, the wider ones follow, until
one fails. Tests that drop a constant on purpose do not count as killers: the constants have controls of their own
(docs/soundness.md). Exit code 1: a mutant survived, a patch is stale, the tests fail without a patch, or nothing ran.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tailbound.engine import native
from trees import ROOT, TABLES, StaleError, build, changed, check, copy, empty_tables

FILE = Path(__file__).with_name("mutants.toml")
WIDER = ("tests/bounds", "tests/theory", "tests/search", "tests/native", "tests/engine", "tests/hf")
NOT_KILLERS = (
    "-k",
    "not test_control",
    "--ignore",
    "tests/engine/test_constants.py",
    "--ignore",
    "tests/hf/test_memory.py",
)
LIMIT = 1800.0
"""Seconds that one run of tests may take."""


class Mutant(NamedTuple):
    """A patch: in `file`, which holds `text` exactly once, `instead` takes its place."""

    name: str
    breaks: str
    file: str
    text: str
    instead: str
    tests: tuple[str, ...]

    @property
    def patch(self) -> str:
        """The change in a line."""
        return " ".join(f"- {self.text} + {self.instead}".split())

    @property
    def native(self) -> bool:
        """Whether kernels must be built anew."""
        return self.file.startswith("csrc/")


class Verdict(NamedTuple):
    """What became of a mutant; no killer: it survived."""

    mutant: Mutant
    killer: str | None
    words: str
    seconds: float


class BrokenError(Exception):
    """The run says nothing about mutants."""


def load(file: Path = FILE) -> list[Mutant]:
    """The mutants of a file, in its order."""
    entries = tomllib.loads(file.read_text())
    return [Mutant(name, x["breaks"], x["file"], x["from"], x["to"], tuple(x["tests"])) for name, x in entries.items()]


def choose(mutants: Sequence[Mutant], names: Sequence[str]) -> list[Mutant]:
    """Those named, or all; at least one, each with a patch that still fits."""
    unknown = sorted(set(names) - {m.name for m in mutants})
    if unknown:
        raise BrokenError(f"there is no mutant {', '.join(unknown)}; --list names them")
    chosen = [m for m in mutants if not names or m.name in names]
    if not chosen:
        raise BrokenError("no mutant to run")
    for mutant in chosen:
        check(ROOT / mutant.file, mutant.text, mutant.name)
        if mutant.text == mutant.instead:
            raise BrokenError(f"{mutant.name} changes nothing")
    return chosen


class Place:
    """A copy of the sources, its kernels, and an environment in which `tailbound` is that copy.

    The environment borrows the packages of this one without its hooks, so that an editable installation stays out; the
    processes that tests start find the copy too.
    """

    def __init__(self, folder: Path) -> None:
        self.tree, self._out = folder / "tree", folder / "build"
        copy(self.tree)
        levels = native.levels()
        empty_tables(self.tree, [level for level in levels.built if level not in levels.cpu and level in TABLES])
        place = folder / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
        self._python = place / "bin" / "python"
        ours, theirs = (self._site(python) for python in (Path(sys.executable), self._python))
        (theirs / "borrowed.pth").write_text(f"{self.tree / 'src'}\n{ours}\n")
        self.build()

    @staticmethod
    def _site(python: Path) -> Path:
        command = [python, "-c", 'import sysconfig; print(sysconfig.get_path("purelib"))']
        return Path(subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip())

    def build(self) -> None:
        """Bring the kernels up to date with the copy."""
        module = build(self.tree, self._out)
        (self.tree / "src" / "tailbound" / module.name).write_bytes(module.read_bytes())

    def test(self, tests: Sequence[str]) -> tuple[str, str] | None:
        """The first test that fails and what it says; None if all pass.

        Raises:
            BrokenError: no test was run to an end.
        """
        environment = os.environ | {
            "PYTHONDONTWRITEBYTECODE": "1",  # a source may change twice in a second, which its stamp does not show
            "TAILBOUND_PROFILE": "mutants",
            "COLUMNS": "400",
        }
        options = ("-x", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist")
        command = [str(self._python), "-m", "pytest", *options, *NOT_KILLERS, *tests]
        try:
            run = subprocess.run(
                command, cwd=self.tree, env=environment, capture_output=True, text=True, timeout=LIMIT, check=False
            )
        except subprocess.TimeoutExpired:
            raise BrokenError(f"tests took more than {LIMIT:.0f} s: {' '.join(tests)}") from None
        if run.returncode == 0:
            return None
        if run.returncode < 0:
            return f"(the process died of signal {-run.returncode})", ""
        found = re.search(r"^FAILED (.*?)(?: - (.*))?$", run.stdout, re.MULTILINE)
        if run.returncode != 1 or found is None:
            raise BrokenError(f"pytest ended with {run.returncode}:\n{run.stdout[-2000:]}{run.stderr[-2000:]}")
        return found[1], found[2] or ""


def try_out(place: Place, mutant: Mutant) -> Verdict:
    """Whether a test notices a mutant. A killer among the wider tests must pass without the patch."""
    start = time.monotonic()
    with changed(place.tree / mutant.file, mutant.text, mutant.instead, mutant.name):
        place.build()  # compiles what changed, the last mutant's restored source too
        found, wider = place.test(mutant.tests), False
        if found is None:
            found, wider = place.test(WIDER), True
    if found and wider:
        place.build()
        if place.test([found[0]]) is not None:
            raise BrokenError(f"{found[0]} fails without a patch")
    return Verdict(mutant, *(found or (None, "")), time.monotonic() - start)


def run(mutants: Sequence[Mutant], console: Console) -> list[Verdict]:
    """Try mutants one after the other, after the tests have passed without any."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        place = Place(Path(folder))
        console.print(f"copied and built in {time.monotonic() - start:.0f} s")
        start = time.monotonic()
        failed = place.test(sorted({test for mutant in mutants for test in mutant.tests}))
        if failed:
            raise BrokenError(f"{failed[0]} fails without a patch: {failed[1]}")
        console.print(f"all tests pass without a patch, in {time.monotonic() - start:.0f} s")
        verdicts = []
        for number, mutant in enumerate(mutants, 1):
            verdicts.append(try_out(place, mutant))
            killer = verdicts[-1].killer or "[bold red]survived[/]"
            console.print(
                f"{number}/{len(mutants)} {mutant.name}: {killer} ({verdicts[-1].seconds:.0f} s)", highlight=False
            )
    return verdicts


def table(verdicts: Sequence[Verdict]) -> Table:
    """Mutant, patch, killer, seconds."""
    shown = Table("mutant", "patch", "killed by", "s", title="Mutants", show_lines=True)
    for v in verdicts:
        patch = Text.assemble((f"{v.mutant.file}\n", "dim"), v.mutant.patch)
        killer = Text(v.killer) if v.killer else Text("survived", style="bold red")
        shown.add_row(Text(f"{v.mutant.name}\n{v.mutant.breaks}"), patch, killer, f"{v.seconds:.0f}")
    return shown


def as_json(verdicts: Sequence[Verdict]) -> str:
    """The table, for programs."""
    rows = [
        {
            "name": v.mutant.name,
            "breaks": v.mutant.breaks,
            "file": v.mutant.file,
            "from": v.mutant.text,
            "to": v.mutant.instead,
            "killer": v.killer,
            "says": v.words,
            "seconds": round(v.seconds, 1),
        }
        for v in verdicts
    ]
    return json.dumps({"schema": "tailbound.mutants/1", "mutants": rows}, indent=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run mutants; 0 if each was killed."""
    parser = argparse.ArgumentParser(description="Plausible bugs, each of which a test must notice.")
    parser.add_argument("names", nargs="*", help="mutants to run; all, if none is named")
    parser.add_argument("--list", action="store_true", help="say what there is and run nothing")
    parser.add_argument("--json", action="store_true", help="print the table as JSON")
    asked = parser.parse_args(arguments)
    progress = Console(stderr=True)
    try:
        mutants = choose(load(), asked.names)
        if asked.list:
            print("\n".join(f"{m.name} ({m.file}): {m.breaks}" for m in mutants))
            return 0
        verdicts = run(mutants, progress)
    except (BrokenError, StaleError) as error:
        progress.print(f"mutants: {error}", style="red", markup=False)
        return 1
    print(as_json(verdicts)) if asked.json else Console().print(table(verdicts))
    survivors = [v.mutant.name for v in verdicts if v.killer is None]
    progress.print(f"{len(verdicts)} mutants, {len(survivors)} survived {' '.join(survivors)}", highlight=False)
    return int(bool(survivors) or not verdicts)


if __name__ == "__main__":
    sys.exit(main())
