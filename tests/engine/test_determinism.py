"""The same question in another process: the same bits."""

import os
import subprocess
import sys

import pytest

from asking import LEVELS

ASK = """
import hashlib, sys, torch
from tailbound import KVIndex
gen = torch.Generator().manual_seed(0)
key, value = (torch.randn(1, 3, 1500, 32, generator=gen).bfloat16() for _ in range(2))
query = (3 * torch.randn(1, 6, 2, 32, generator=gen)).bfloat16()
torch.set_num_threads(int(sys.argv[1]))
index = KVIndex(key[:, :, :1000], value[:, :, :1000])
index.append(key[:, :, 1000:], value[:, :, 1000:])
answer = index.attend(query, epsilon=0.05, return_kept=True)
digest = hashlib.sha256(answer.output.view(torch.int16).numpy().tobytes())
digest.update(answer.certificate.packed().tobytes() + answer.kept.numpy().tobytes())
print(digest.hexdigest())
"""


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("threads", ["1", "2"])
def test_the_same_call_in_another_process_gives_the_same_bits(level, threads):
    def asked():
        env = os.environ | {"TAILBOUND_ISA": level}
        return subprocess.run([sys.executable, "-c", ASK, threads], env=env, capture_output=True, text=True, check=True)

    assert asked().stdout == asked().stdout != ""
