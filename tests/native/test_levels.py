"""The native floor: dispatch at run time, the override, and every level held to the scalar oracle."""

import os
import subprocess
import sys

import pytest

from tailbound.engine import native

USABLE = [level for level in native.levels().built if level in native.levels().cpu]


def run(code, **env):
    return subprocess.run(
        [sys.executable, "-c", code], env=os.environ | env, capture_output=True, text=True, timeout=120, check=False
    )


def test_the_native_module_is_built_here_and_scalar_is_always_there():
    levels = native.levels()
    assert levels.missing == ""
    assert levels.cpu[0] == levels.built[0] == "scalar"


def test_the_best_usable_level_is_active(monkeypatch):
    monkeypatch.delenv("TAILBOUND_ISA", raising=False)
    shown = run("from tailbound.engine import native; print(native.active_level())", TAILBOUND_ISA="")
    assert shown.stdout.strip() == USABLE[-1]


ASK = """
import torch, tailbound
from tailbound.engine import native
gen = torch.Generator().manual_seed(0)
key, value = torch.randn(2, 1, 2, 700, 16, generator=gen)
query = 3 * torch.randn(1, 4, 2, 16, generator=gen)
answer = tailbound.KVIndex(key, value).attend(query, epsilon=0.05, impl="native")
exact = (query.double() @ key.double().repeat_interleave(2, 1).transpose(2, 3) / 4).softmax(-1)
exact = exact @ value.double().repeat_interleave(2, 1)
assert ((answer.output.double() - exact).norm(dim=-1) <= answer.certificate.output_error).all()
print(native.active_level(), answer.stats.isa, int(answer.certificate.kept.max()) < 700)
"""


@pytest.mark.parametrize("level", USABLE)
def test_the_variable_chooses_the_level_of_a_process(level):
    shown = run(ASK, TAILBOUND_ISA=level)
    assert shown.stdout.split() == [level, level, "True"], shown.stderr


@pytest.mark.parametrize("level", ["avx9", "avx512vnni", "neon", "neondot"])
def test_a_level_that_cannot_run_is_refused_not_replaced(level):
    if level in USABLE:
        level = "avx9"
    shown = run("from tailbound.engine import native; native.active_level()", TAILBOUND_ISA=level)
    assert shown.returncode == 1
    assert f"TAILBOUND_ISA={level}" in shown.stderr
    assert "usable here: scalar" in shown.stderr
