"""What the user can put right. The command line prints it as one line and exits with 2."""

from __future__ import annotations

import importlib.util


class InputError(Exception):
    """Something that was asked for cannot be had: what came, what is allowed, what to do."""


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
