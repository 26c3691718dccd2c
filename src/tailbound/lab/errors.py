"""What the user can put right. The command line prints it as one line and exits with 2."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """Something that was asked for cannot be had: what came, what is allowed, what to do."""


@contextmanager
def as_input_error(kind: type[Exception] = ValueError) -> Iterator[None]:
    """What is refused inside the block is something that the user can put right.

    Raises:
        InputError: in the same words.
    """
    try:
        yield
    except kind as error:
        raise InputError(str(error)) from error


def need(package: str, why: str, extra: str) -> None:
    """Refuse to go on without a package of an extra.

    Raises:
        InputError: it is not installed: why it is needed, and how to get it.
    """
    if importlib.util.find_spec(package) is None:
        raise InputError(f"{package} not installed; {why}: pip install 'tailbound[{extra}]'")


def first_line(error: BaseException) -> str:
    """What an error of a library says first; its name, if it says nothing."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
