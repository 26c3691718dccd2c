"""The texts of a corpus: which files they are, and their tokens, all read before any work begins."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from tailbound.lab import text
from tailbound.lab.errors import InputError

SUFFIXES = (".md", ".txt")
"""Of the files of a folder that are texts."""

NAMED = 3
"""Texts named in an error that is about more."""

MAGIC = frozenset("*?[")


class Text(NamedTuple):
    """A text by its path below the corpus, with `/`, and its tokens (1, n)."""

    name: str
    ids: Tensor


def read(place: Path, tokens_of: Callable[[str, str], Tensor], advance: Callable[[], None] | None = None) -> list[Text]:
    """Every text of a corpus, in the order of their names.

    Args:
        place: a folder, of which all `.txt` and `.md` files count, however deep; or a pattern of files (`papers/*.tex`,
            `papers/**/*.rst`).
        tokens_of: makes tokens of a document and the name it goes by.

    Raises:
        InputError: there are none, or some cannot be read or are too short; the first of them by name, and how many.
    """
    found, wrong = [], []
    for name, file in _files(place):
        try:
            found.append(Text(name, tokens_of(text.read_text(file)[1], name)))
        except InputError as error:
            wrong.append(str(error))
        if advance is not None:
            advance()
    if wrong:
        more = f"; and {len(wrong) - NAMED} more" if len(wrong) > NAMED else ""
        raise InputError(
            f"--texts {place}: {len(wrong)} of {len(found) + len(wrong)} texts cannot be audited: "
            f"{'; '.join(wrong[:NAMED])}{more}"
        )
    return found


def digest(texts: Sequence[Text]) -> str:
    """Of the names, in order."""
    return hashlib.sha256("\n".join(found.name for found in texts).encode()).hexdigest()[:16]


def _files(place: Path) -> Sequence[tuple[str, Path]]:
    """Names and files, by name: an order that no file system has a say in."""
    root = place
    if place.is_dir():
        files: Iterator[Path] = (file for file in place.rglob("*") if file.suffix in SUFFIXES)
    else:
        fixed = next((at for at, part in enumerate(place.parts) if MAGIC & set(part)), None)
        if fixed is None:
            raise InputError(f"--texts {place}: no such folder; give one, or a pattern of files in quotes")
        root = Path(*place.parts[:fixed])
        files = root.glob(str(Path(*place.parts[fixed:])))
    found = sorted((file.relative_to(root).as_posix(), file) for file in files if file.is_file())
    if not found:
        what = "no .txt or .md file in it" if place.is_dir() else "no file fits it"
        raise InputError(f"--texts {place}: {what}; give a folder of texts, or a pattern of files in quotes")
    return found
