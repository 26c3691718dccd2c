"""Recording must not make a process grow beside a cache that is replaced at every step (docs/log.md)."""

import subprocess
import sys

CODE = """
import resource, sys, torch, tailbound
from tailbound.hf import Ledger

torch.set_num_threads(1)
ledger, kept = Ledger(), []
layers = [[torch.randn(1, 3, 4096, 64) for _ in range(2)] for _ in range(20)]
query = torch.randn(1, 9, 1, 64)
peaks = []
for step in range(8):
    for index, layer in enumerate(layers):
        layer[:] = [torch.cat([old, torch.randn(1, 3, 1, 64)], 2) for old in layer]
        certificate = tailbound.attention(query, *layer, epsilon=0.01).certificate
        if sys.argv[1] == "ledger":
            ledger.record(step, index, certificate, torch.tensor(4096))
        else:
            kept.append([column.clone() for column in certificate])
    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
print(peaks[1], peaks[-1])
"""


def growth(how):
    shown = subprocess.run([sys.executable, "-c", CODE, how], capture_output=True, text=True, timeout=200, check=True)
    early, late = map(int, shown.stdout.split())
    return late - early


def test_a_ledger_stays_flat_beside_a_growing_cache():
    assert growth("ledger") < 50  # MB


def test_control_small_arrays_kept_from_every_call_make_it_grow():
    assert growth("arrays") > 200  # MB
