"""Copies of the sources in which one text is changed, and native modules built from them: for controls and mutants."""

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = (".git", ".venv*", "build", "dist", "site", "shared", "__pycache__", ".*_cache", ".hypothesis")


class StaleError(Exception):
    """A text that a source no longer holds, or holds more than once."""


def check(file: Path, text: str, name: str) -> None:
    """Refuse a text that does not stand in a file exactly once."""
    count = file.read_text().count(text) if file.exists() else 0
    if count != 1:
        raise StaleError(f"{name}: {file.name} holds {text!r} {count} times, not once; bring the text up to date")


@contextlib.contextmanager
def changed(file: Path, text: str, instead: str, name: str) -> Iterator[None]:
    """Within the block, a file that holds `instead` where it held `text`."""
    check(file, text, name)
    before = file.read_text()
    file.write_text(before.replace(text, instead))
    try:
        yield
    finally:
        file.write_text(before)


def copy(tree: Path) -> None:
    """The checkout as it lies here, without what is made from it. Nothing here is ever changed in place."""
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(*LEFT_OUT))


TABLES = {"avx512vnni": "kAvx512VnniKernels", "avx512bf16": "kAvx512Bf16Kernels"}


def empty_tables(tree: Path, levels: list[str]) -> None:
    """Put empty tables in the place of kernels that cannot run here: they take half the time of a build."""
    for level in levels:
        source = f'#include "kernels.h"\nconst tailbound::Kernels tailbound::{TABLES[level]}{{}};\n'
        (tree / "csrc" / f"kernels_{level}.cpp").write_text(source)


def build(tree: Path, out: Path) -> Path:
    """The native module of a tree; `out` keeps what is built, so that a second build compiles only what changed.

    Raises:
        subprocess.CalledProcessError: it does not compile.
    """
    nanobind = subprocess.run(
        [sys.executable, "-m", "nanobind", "--cmake_dir"], capture_output=True, text=True, check=True
    )
    options = [
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-Dnanobind_DIR={nanobind.stdout.strip()}",
        "-DCMAKE_CXX_FLAGS=-w",
    ]
    cmake = shutil.which("cmake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if cmake is None:
        sys.exit("cmake is missing: install it")
    for command in ([cmake, "-S", tree, "-B", out, *options], [cmake, "--build", out, "-j2"]):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return next(out.glob("_native*"))
