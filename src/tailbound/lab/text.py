"""Real text to run models on."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tailbound.lab.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_text(path: Path | None) -> tuple[str, str]:
    """A text and the name it goes by: a file, or the source of Python's standard library on this machine.

    Raises:
        InputError: a file that cannot be read as UTF-8.
    """
    if path is None:
        return "Python's standard library", _standard_library()
    try:
        return str(path), path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"cannot read {path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}") from error


def first_tokens(tokenizer: PreTrainedTokenizerBase, text: str, count: int, name: str) -> torch.Tensor:
    """The first `count` tokens of a text: int64 (1, count).

    Raises:
        InputError: a text that is too short.
    """
    # A token is rarely more than 8 characters: encode no more of a long text than is needed.
    reach = 8 * count
    ids = tokenizer(text[:reach], return_tensors="pt").input_ids
    if ids.shape[1] < count and reach < len(text):
        ids = tokenizer(text, return_tensors="pt").input_ids
    if ids.shape[1] < count:
        raise InputError(f"{name} has {ids.shape[1]} tokens, fewer than the context of {count}; give a longer text")
    return ids[:, :count]


def _standard_library() -> str:
    """Modules with much prose first, then the rest by name: long enough for any context."""
    folder = Path(sysconfig.get_path("stdlib"))
    first = [folder / f"{name}.py" for name in ("argparse", "textwrap", "dataclasses", "heapq")]
    modules = [path for path in first if path.is_file()]
    modules += sorted(path for path in folder.glob("*.py") if path not in modules)
    if not modules:
        raise InputError(f"Python's standard library has no source text in {folder}; give a text with --text FILE")
    return "\n\n".join(path.read_text(encoding="utf-8", errors="replace") for path in modules[:40])
