"""Texts for `tailbound generate`: from an option, a file, or stdin, whole or line by line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from tailbound.lab.errors import InputError
from tailbound.lab.text import read_text


def one(prompt: str | None, file: Path | None, stdin: TextIO) -> list[str]:
    """The one text: the option, else the file, else all of stdin.

    Raises:
        InputError: both are given, the file cannot be read, or there is nothing in it.
    """
    text = _given(prompt, file)
    text = stdin.read() if text is None else text
    if not text.strip():
        raise InputError("the prompt is empty; give one with --prompt, --prompt-file or on stdin")
    return [text]


def turns(prompt: str | None, file: Path | None, stdin: TextIO) -> Iterator[str]:
    """Lines of stdin as they come, without empty ones; the option or the file, if given, before the first line.

    Raises:
        InputError: both are given, or the file cannot be read: at once, not at the first line.
    """
    return _lines(_given(prompt, file), stdin)


def _lines(opening: str | None, stdin: TextIO) -> Iterator[str]:
    while True:
        if stdin.isatty():
            print("> ", end="", file=sys.stderr, flush=True)
        line = stdin.readline()
        if not line:
            return
        if line.strip():
            yield line.strip() if opening is None else f"{opening}\n\n{line.strip()}"
            opening = None


def _given(prompt: str | None, file: Path | None) -> str | None:
    if prompt is not None and file is not None:
        raise InputError("--prompt and --prompt-file are both given; leave one out")
    return read_text(file)[1] if file is not None else prompt
