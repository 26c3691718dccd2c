"""A case in a file, to be asked again anywhere: numpy's npz, without pickle."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tailbound.lab.errors import InputError, first_line
from tailbound.lab.soak.cases import Case

SCHEMA = "tailbound.case/1"
NAME = "case"
DAMAGED = (
    OSError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    RuntimeError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading raises where bytes are missing or wrong."""


def save(case: Case, path: Path) -> None:
    """Write a case, whole or not at all."""
    tensors = {"query": case.query, "key": case.key, "value": case.value}
    if isinstance(case.epsilon, Tensor):
        tensors["epsilon"] = case.epsilon
    tensors |= {name: given for name, given in case.options.items() if isinstance(given, Tensor)}
    about = {
        "schema": SCHEMA,
        "seed": case.seed,
        "number": case.number,
        "kind": case.kind,
        "who": case.who,
        "threads": case.threads,
        "steps": case.steps,
        "epsilon": None if isinstance(case.epsilon, Tensor) else case.epsilon,
        "options": {name: given for name, given in case.options.items() if not isinstance(given, Tensor)},
        "dtypes": {name: str(tensor.dtype).removeprefix("torch.") for name, tensor in tensors.items()},
    }
    arrays = {name: _bytes(tensor) for name, tensor in tensors.items()} | {NAME: np.array(json.dumps(about))}
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with unfinished.open("wb") as file:
            np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
        os.replace(unfinished, path)
    except OSError as error:
        unfinished.unlink(missing_ok=True)
        raise InputError(f"cannot write {path}: {error.strerror or error}") from error


def load(path: Path) -> Case:
    """Read a case.

    Raises:
        InputError: a file that is not there, or is none, or is damaged.
    """
    if not path.is_file():
        raise InputError(f"no such file: {path}; `tailbound verify` writes one for each case that breaks a promise")
    try:
        with np.load(path, allow_pickle=False) as file:
            about = json.loads(str(file[NAME]))
            if about["schema"] != SCHEMA:
                raise InputError(f"{path} says {about['schema']!r}; this version reads {SCHEMA!r}")
            tensors = {name: _tensor(file[name], dtype) for name, dtype in about["dtypes"].items()}
        return _case(about, tensors)
    except InputError:
        raise
    except DAMAGED as error:
        raise InputError(f"cannot read {path} as a case of tailbound verify: {first_line(error)}") from error


def _case(about: dict[str, Any], tensors: dict[str, Tensor]) -> Case:
    query, key, value = (tensors.pop(name) for name in ("query", "key", "value"))
    epsilon = tensors.pop("epsilon", about["epsilon"])
    steps = tuple((str(step), int(count)) for step, count in about["steps"])
    return Case(
        int(about["seed"]),
        int(about["number"]),
        str(about["kind"]),
        str(about["who"]),
        int(about["threads"]),
        query,
        key,
        value,
        steps,
        epsilon,
        about["options"] | tensors,
    )


def _bytes(tensor: Tensor) -> np.ndarray:
    """The same bits in a dtype that numpy has."""
    tensor = tensor.contiguous()
    return (tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor).numpy()


def _tensor(array: np.ndarray, dtype: str) -> Tensor:
    tensor = torch.from_numpy(array)
    wanted = getattr(torch, dtype)
    if not isinstance(wanted, torch.dtype):
        raise ValueError(f"{dtype!r} is no dtype")
    return tensor.view(wanted) if wanted is torch.bfloat16 else tensor.to(wanted)
