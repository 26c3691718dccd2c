"""Memory for the buffers of a store: in one piece, so that the system can back it by huge pages.

A scan streams and a gather jumps; with pages of 4 KiB both wait for the page table, most of all in a virtual machine
(docs/log.md). A buffer of one layer alone is often smaller than a huge page.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from itertools import accumulate

import torch
from torch import Tensor

HUGE = 1 << 21
"""Bytes of a huge page. Less memory than that is left to torch."""

LINE = 64
"""Buffers begin at lines of the caches."""

Form = tuple[tuple[int, ...], torch.dtype]
"""A buffer's shape and dtype."""


def buffers(forms: list[Form], device: torch.device) -> list[Tensor]:
    """Buffers of these forms, their content arbitrary; each counts its own writes, as tensors apart do."""
    sizes = [-(-math.prod(shape) * dtype.itemsize // LINE) * LINE for shape, dtype in forms]
    if device.type != "cpu" or sum(sizes) < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return [torch.empty(shape, dtype=dtype, device=device) for shape, dtype in forms]
    piece, start = _piece(sum(sizes))
    places = accumulate(sizes[:-1], initial=start)
    return [
        _place(torch.empty(shape, dtype=dtype, device="meta"), piece, place)
        for (shape, dtype), place in zip(forms, places, strict=True)
    ]


def _place(like: Tensor, piece: Tensor, place: int) -> Tensor:
    """A tensor over `piece` from a byte on. No view of it, which would share its count of writes."""
    empty = torch.empty(0, dtype=like.dtype)
    return empty.set_(piece.untyped_storage(), place // like.dtype.itemsize, like.shape, like.stride())


def _piece(size: int) -> tuple[Tensor, int]:
    """Private memory, and where in it `size` bytes begin at a huge page. Nothing is resident before it is written."""
    memory = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    piece = torch.frombuffer(memory, dtype=torch.uint8)  # holds on to the map
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return piece, -piece.data_ptr() % HUGE
