"""Recording must not make a process grow beside a cache that is replaced at every step (docs/log.md)."""

import subprocess
import sys

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


def test_a_ledger_stays_flat_beside_a_growing_cache():
    shown = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=200, check=True)
    early, late = map(int, shown.stdout.split())
    assert late - early < 50, f"grew from {early} to {late} MB"
