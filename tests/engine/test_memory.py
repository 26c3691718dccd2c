"""Buffers in one piece: apart from each other, at lines of the cache, and in huge pages where the system has them."""

import copy
import gc
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from tailbound import KVIndex
from tailbound.engine import memory

CPU = torch.device("cpu")
FORMS: list[memory.Form] = [
    ((2, 3, 70_001), torch.bfloat16),
    ((1, 5), torch.int8),
    ((300_000,), torch.float32),
    ((0, 4), torch.float64),
    ((2, 65_537), torch.float64),
]


@pytest.mark.parametrize("forms", [FORMS, FORMS[:2], FORMS[3:4]], ids=["large", "small", "empty"])
def test_buffers_have_their_forms_and_share_no_byte(forms: list[memory.Form]) -> None:
    buffers = memory.buffers(forms, CPU)
    assert [(tuple(buffer.shape), buffer.dtype) for buffer in buffers] == forms
    assert all(buffer.is_contiguous() for buffer in buffers)
    spans = sorted((buffer.data_ptr(), buffer.data_ptr() + buffer.nbytes) for buffer in buffers if buffer.nbytes)
    assert all(start % memory.LINE == 0 for start, _ in spans)
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))
    for number, buffer in enumerate(buffers):
        buffer.fill_(number)
    assert all(bool((buffer == number).all()) for number, buffer in enumerate(buffers))


def test_each_buffer_counts_its_own_writes() -> None:
    first, second = memory.buffers([((1_000_000,), torch.float32)] * 2, CPU)
    before = second._version
    first.fill_(1.0)
    assert second._version == before


def test_the_memory_outlives_its_other_buffers() -> None:
    kept = memory.buffers([((1_000_000,), torch.float32)] * 2, CPU)[1].fill_(3.0)
    gc.collect()
    memory.buffers([((4_000_000,), torch.float32)], CPU)[0].fill_(4.0)
    assert bool((kept == 3.0).all())


def test_a_copy_of_an_index_has_its_own_memory() -> None:
    key = torch.randn(1, 2, 9000, 64)
    index = KVIndex(key, key)
    twin = copy.deepcopy(index)
    index.append(key[:, :, :100], key[:, :, :100])
    query = torch.randn(1, 2, 1, 64)
    assert torch.equal(twin.key, key)
    assert torch.equal(twin.attend(query, epsilon=0.1).output, KVIndex(key, key).attend(query, epsilon=0.1).output)


@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists(), reason="no such pages here")
def test_the_system_backs_them_by_huge_pages() -> None:
    if re.search(r"\[never\]", Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()):
        pytest.skip("huge pages are switched off")
    code = (
        "import torch; from tailbound.engine import memory\n"
        "kept = memory.buffers([((1 << 26,), torch.uint8)], torch.device('cpu'))[0].fill_(1)\n"
        "print(open('/proc/self/smaps_rollup').read())"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    match = re.search(r"AnonHugePages:\s+(\d+) kB", found)
    assert match, found
    assert int(match[1]) > 0  # all 64 MiB of it, unless memory is in splinters
