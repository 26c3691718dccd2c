"""Peak memory of a call, as the operating system counts it: resident pages, on Linux."""

from __future__ import annotations

import ctypes
import gc
import re
from collections.abc import Callable
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_ALONE, _USUAL = 1 << 20, 32 << 20
"""glibc's names, and bytes from which an allocation is mapped by itself: while measuring, and where glibc's own
adjusting ends in a process that has freed large tensors."""


def peak_over(call: Callable[[], object]) -> int | None:
    """Bytes of resident memory at the highest point of a call, above what was resident when it began.

    Free memory that the allocator holds is given back first: what a call takes would else be served from it unseen. And
    during the call tensors of a MiB or more are mapped each by itself: else holes between them count, which
    depend on what ran before (the same call took 453 and then 635 MB).
    None where the system cannot say.
    """
    gc.collect()
    try:
        allocator = ctypes.CDLL(None)
        adjust = allocator.mallopt
        allocator.malloc_trim(0)
        _CLEAR.write_text("5", encoding="ascii")  # resets the high-water mark
        before = _resident("VmRSS")
    except (OSError, AttributeError):
        call()
        return None
    adjust(_MMAP_THRESHOLD, _ALONE)
    try:
        call()
    finally:
        adjust(_MMAP_THRESHOLD, _USUAL)
        adjust(_TRIM_THRESHOLD, 2 * _USUAL)
    return _resident("VmHWM") - before


def _resident(name: str) -> int:
    found = re.search(rf"^{name}:\s+(\d+) kB", _STATUS.read_text(encoding="ascii"), re.MULTILINE)
    if found is None:
        raise OSError(f"{_STATUS} has no {name}")
    return int(found[1]) * 1024
