"""Checksums of the files we write, so that a bit that changed on the way is noticed and not reported as a figure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

SEAL = "sha256"
"""The name under which a file holds its checksum: of everything else in it."""


def sealed(found: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with its checksum."""
    as_read = json.loads(json.dumps(found))  # names of numbers become texts, which sort otherwise
    return {**as_read, SEAL: _of_json(as_read)}


def is_whole(found: Mapping[str, Any]) -> bool:
    """Whether a JSON object is what was sealed."""
    return found.get(SEAL) == _of_json({name: part for name, part in found.items() if name != SEAL})


def of_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """The checksum of tensors on the CPU and of what is said about them, whatever their order."""
    digest = hashlib.sha256(_of_json(metadata).encode("ascii"))
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def of_table(table: Any) -> str:
    """The checksum of the columns of a pyarrow table: Parquet's own covers pages, and not names and places."""
    digest = hashlib.sha256()
    for name in table.column_names:
        column = table[name].to_numpy(zero_copy_only=False)
        digest.update(f"{name} {table[name].type} {len(column)}".encode())
        texts = column.dtype == object
        digest.update(json.dumps(column.tolist()).encode() if texts else np.ascontiguousarray(column).data)
    return digest.hexdigest()


def _of_json(found: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode("utf-8")).hexdigest()
