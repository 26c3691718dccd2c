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


def read_prose(path: Path | None) -> tuple[str, str]:
    """A text in English and the name it goes by: a file, or the reference that Python carries for its own help.

    Raises:
        InputError: a file that cannot be read as UTF-8, a Python without its reference.
    """
    if path is not None:
        return read_text(path)
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise InputError("this Python has no pydoc_data.topics to read; give a text with --text FILE") from error
    return "Python's language reference (pydoc)", "\n\n".join(topics[name] for name in sorted(topics))


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


def windows(tokenizer: PreTrainedTokenizerBase, text: str, count: int, length: int, name: str) -> torch.Tensor:
    """Windows spread evenly over a text, each between the tokens that open and close a text: int64 (count, length).

    Raises:
        InputError: a tokenizer without such tokens, a text that is shorter than a window.
    """
    opening, closing = tokenizer.cls_token_id, tokenizer.sep_token_id
    if opening is None or closing is None:
        raise InputError("the tokenizer has no [CLS] and [SEP]; choose a model of BERT's kind")
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False).input_ids[0]
    inside = length - 2
    if len(ids) < inside:
        raise InputError(f"{name} has {len(ids)} tokens, fewer than the {inside} of a window; give a longer text")
    starts = torch.linspace(0, len(ids) - inside, count).long()
    edges = torch.tensor([opening]), torch.tensor([closing])
    return torch.stack([torch.cat([edges[0], ids[start : start + inside], edges[1]]) for start in starts])


def _standard_library() -> str:
    """Modules with much prose first, then the rest by name: long enough for any context."""
    folder = Path(sysconfig.get_path("stdlib"))
    first = [folder / f"{name}.py" for name in ("argparse", "textwrap", "dataclasses", "heapq")]
    modules = [path for path in first if path.is_file()]
    modules += sorted(path for path in folder.glob("*.py") if path not in modules)
    if not modules:
        raise InputError(f"Python's standard library has no source text in {folder}; give a text with --text FILE")
    return "\n\n".join(path.read_text(encoding="utf-8", errors="replace") for path in modules[:40])
