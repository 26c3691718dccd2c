"""The native floor: dispatch at run time, the override, and every level held to the scalar oracle."""

import os
import subprocess
import sys

import pytest
import torch

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


DOT = """
import torch
from tailbound.engine import native
gen = torch.Generator().manual_seed(0)
for n in [*range(0, 70), 1000, 131071]:
    for make in (lambda: torch.randint(-128, 128, (n,), generator=gen, dtype=torch.int8),
                 lambda: torch.full((n,), -128, dtype=torch.int8), lambda: torch.full((n,), 127, dtype=torch.int8)):
        a, b = make(), make()
        assert native.dot_int8(a, b) == int((a.long() * b.long()).sum()), n
print(native.active_level(), "ok")
"""


@pytest.mark.parametrize("level", USABLE)
def test_every_level_is_exact_at_every_length_and_at_the_ends_of_the_codes(level):
    shown = run(DOT, TAILBOUND_ISA=level)
    assert shown.stdout.strip() == f"{level} ok", shown.stderr


@pytest.mark.parametrize("level", ["avx9", "avx512vnni", "neon", "neondot"])
def test_a_level_that_cannot_run_is_refused_not_replaced(level):
    if level in USABLE:
        level = "avx9"
    shown = run("from tailbound.engine import native; native.active_level()", TAILBOUND_ISA=level)
    assert shown.returncode == 1
    assert f"TAILBOUND_ISA={level}" in shown.stderr
    assert "usable here: scalar" in shown.stderr


def test_codes_are_never_converted_or_copied():
    good = torch.zeros(4, dtype=torch.int8)
    for bad in (
        torch.zeros(4),
        torch.zeros(4, dtype=torch.int16),
        torch.zeros(8, dtype=torch.int8)[::2],
        torch.zeros(2, 2, dtype=torch.int8),
    ):
        with pytest.raises(TypeError):
            native.dot_int8(bad, good)


def test_lengths_are_checked():
    with pytest.raises(ValueError, match="4 and 5 elements"):
        native.dot_int8(torch.zeros(4, dtype=torch.int8), torch.zeros(5, dtype=torch.int8))
    too_long = torch.zeros(131072, dtype=torch.int8)
    with pytest.raises(ValueError, match="exact up to 131071"):
        native.dot_int8(too_long, too_long)
