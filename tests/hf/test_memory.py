"""Recording must not make a process grow beside a cache that is replaced at every step (docs/log.md)."""

import subprocess
import sys

import pytest

CODE = """
import resource, torch, tailbound
from tailbound.hf import Ledger

torch.set_num_threads(1)
ledger = Ledger()
layers = [[torch.randn(1, 3, 4096, 64) for _ in range(2)] for _ in range(20)]
query = torch.randn(1, 9, 1, 64)
peaks = []
for step in range(8):
    for index, layer in enumerate(layers):
        layer[:] = [torch.cat([old, torch.randn(1, 3, 1, 64)], 2) for old in layer]
        certificate = tailbound.attention(query, *layer, epsilon=0.01).certificate
        ledger.record(step, index, certificate, torch.tensor(4096))
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(peaks[1], peaks[-1])
"""


@pytest.mark.slow
def test_a_ledger_stays_flat_beside_a_growing_cache():
    shown = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=200, check=True)
    early, late = map(int, shown.stdout.split())
    assert late - early < 50, f"grew from {early} to {late} MB"


RECORDING = """
import resource, torch
from tailbound import Certificate
from tailbound.hf import Ledger

torch.set_num_threads(1)
random = torch.Generator().manual_seed(0)
ledger = Ledger(last=2**16)
peaks = []
for step in range(5000):
    tv = torch.rand(1, 9, 1, dtype=torch.float64, generator=random)
    certificate = Certificate(tv, tv, torch.ones(1, 9, 1, dtype=torch.int32), torch.zeros(1, 9, 1, dtype=torch.uint8))
    for layer in range(30):
        ledger.record(ledger.next_step(layer), layer, certificate, 8000)
    if step in (1000, 4999):
        ledger.summary()
        peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(*peaks, len(ledger))
"""


@pytest.mark.slow
def test_a_long_recording_stays_in_bounded_memory():
    shown = subprocess.run([sys.executable, "-c", RECORDING], capture_output=True, text=True, timeout=200, check=True)
    early, late, count = map(int, shown.stdout.split())
    assert count == 5000 * 270
    # 150,000 calls: 61 MB of rows, of which 2.9 MB are held.
    assert late - early < 8, f"grew from {early} to {late} MB"
