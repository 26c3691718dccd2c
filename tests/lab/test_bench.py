"""Timing takes turns, ratios have intervals, and a row carries its error."""

import json

import numpy as np
import pytest

from commands import Quiet, command
from tailbound.lab import bench, timing
from tailbound.lab.errors import InputError


def test_contestants_take_turns_and_the_first_round_is_not_counted():
    order = []
    seconds = timing.take_turns({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=3)
    assert order == ["a", "b"] * 4
    assert {name: len(values) for name, values in seconds.items()} == {"a": 3, "b": 3}


def test_ratios_are_paired_and_have_an_interval():
    base = np.array([1.0, 2.0, 4.0, 8.0])
    assert timing.ratio(3 * base, base) == (3.0, 3.0, 3.0)
    noisy = timing.ratio(base * np.array([1.0, 1.1, 1.2, 1.3]), base)
    assert 1.0 <= noisy.low <= noisy.median == pytest.approx(1.15)
    assert noisy.median <= noisy.high <= 1.3


def test_rows_carry_error_beside_time():
    rows = bench.decode(bench.Options(n=256, heads=4, kv_heads=2, head_dim=16, rounds=2), Quiet())
    assert (rows[0].contestant, rows[0].ratio) == (bench.BASELINE, 1.0)
    for row in rows[2:]:
        assert 0 < row.true_tv_max <= row.tv_max <= row.epsilon
        assert 0 < row.kept_share < 1
        assert row.violations == 0


def test_the_command_prints_a_json_line_a_row():
    shown = command("bench", "decode", "--n", "64", "--heads", "2", "--kv-heads", "1", "--rounds", "1", "--json")
    assert shown.returncode == 0, shown.stderr
    assert [json.loads(line)["schema"] for line in shown.stdout.splitlines()] == ["tailbound.bench.decode/1"] * 4


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="--heads 7 is not a multiple of --kv-heads 2"):
        bench.decode(bench.Options(heads=7, kv_heads=2), Quiet())
