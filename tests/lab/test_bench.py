"""Timing takes turns, ratios have intervals, a row carries its error, and what goes into a folder comes out whole."""

import json
import os

import numpy as np
import pytest
import torch

from commands import Quiet, blocked, command
from tailbound.lab import bench, bench_data, contestants, show_bench, timing
from tailbound.lab.captures import Layer
from tailbound.lab.errors import InputError
from tailbound.lab.timing import Ratio

SMALL = bench.Options(n=600, heads=4, kv_heads=2, head_dim=16, rounds=2, layers=2, threads=(1,))
FIELDS = {
    "schema", "contestant", "isa", "threads", "dtype", "n", "layers", "epsilon", "real", "median_ms", "ratio",
    "limit_ratio", "kept_over_oracle", "kept_share", "bytes_read", "tv_max", "true_tv_max", "violations",
}  # fmt: skip
ARGUMENTS = ["--n", "300", "--heads", "2", "--kv-heads", "1", "--rounds", "1", "--layers", "1", "--threads", "1"]


@pytest.fixture(scope="module")
def rows():
    torch.manual_seed(0)
    return bench.decode(SMALL, Quiet())


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


def test_every_contestant_has_a_row_at_every_level(rows):
    levels = contestants.levels()
    sparse = [("oracle gather", "torch"), *(("tailbound", level) for level in levels)]
    dense = [("sdpa folded", "torch"), ("sdpa enable_gqa", "torch"), ("dense kernel", levels[-1])]
    assert [(row.contestant, row.isa) for row in rows] == [*dense, *sparse, *sparse, ("read", "torch")]


def test_rows_carry_error_beside_time(rows):
    certified = [row for row in rows if row.contestant == "tailbound"]
    assert certified
    for row in certified:
        assert 0 < row.true_tv_max <= row.tv_max <= row.epsilon
        assert 0 < row.kept_share < 1
        assert row.kept_over_oracle >= 1
        assert row.violations == 0
        assert row.ratio.keys() == set(bench.PEERS)
    for row in rows:
        if row.contestant == "oracle gather":
            assert 0 < row.true_tv_max <= row.epsilon
            assert row.bytes_read < rows[0].bytes_read


def test_ratios_say_how_many_times_faster(rows):
    """Seconds of the peer over seconds of the row: with 2 rounds the median is a mean of two, so only roughly."""
    assert rows[0].ratio["sdpa folded"] == (1.0, 1.0, 1.0)
    assert rows[-1].limit_ratio == (1.0, 1.0, 1.0)
    seconds = {"a": np.array([1.0, 1.0]), "b": np.array([2.0, 2.0])}
    assert timing.ratio(seconds["b"], seconds["a"]).median == 2.0  # a is twice as fast as b
    data = bench_data.prepare(SMALL, Quiet())
    taken = {contestants.Name("read"): seconds["a"], contestants.Name("sdpa folded"): seconds["b"]}
    read, folded = bench._rows(SMALL, data, 1, taken, {}, {})
    assert read.ratio["sdpa folded"].median == 2.0
    assert folded.limit_ratio.median == 0.5


def test_rows_where_we_lose_are_listed(rows):
    slow = {"sdpa folded": Ratio(0.5, 0.4, 0.6), "dense kernel": Ratio(1.5, 1.4, 1.6)}
    ours = next(row for row in rows if row.contestant == "tailbound")
    lost = bench.Row(**(vars(ours) | {"ratio": slow}))
    [line] = show_bench.losses([lost])
    assert line == f"tailbound {ours.isa} epsilon 0.01, 1 thread: 0.50 times as fast as sdpa folded"
    assert not list(show_bench.losses([bench.Row(**(vars(lost) | {"contestant": "sdpa enable_gqa"}))]))


def test_the_smallest_sets_are_smallest():
    weights = torch.tensor([0.5, 0.3, 0.15, 0.04, 0.01], dtype=torch.float64)
    key = weights.log().float()[torch.tensor([3, 0, 4, 2, 1])].reshape(1, 1, 5, 1)
    layer = Layer(torch.ones(1, 2, 1, 1), key, torch.zeros(1, 1, 5, 1), 1.0)
    for epsilon, size in ((0.009, 5), (0.011, 4), (0.06, 3), (0.3, 2)):
        found = bench_data.smallest(layer, epsilon)
        assert found.sizes.tolist() == [[size]] * 2
        assert [len(union) for union in found.union] == [size]
        assert found.tv.max() <= epsilon
    assert bench_data.smallest(layer, 0.3).union[0].tolist() == [1, 4]


def test_the_smallest_sets_are_causal():
    """The key after a position would take all of its mass."""
    key = torch.tensor([0.0, 0.0, 100.0]).reshape(1, 1, 3, 1)
    layer = Layer(torch.ones(1, 1, 2, 1), key, torch.zeros(1, 1, 3, 1), 1.0)
    assert bench_data.smallest(layer, 0.1).sizes.tolist() == [[2, 1]]


def test_synthetic_layers_leave_the_last_level_cache(tmp_path):
    size = tmp_path / "size"
    for words, expected in (("32768K\n", 32 << 20), ("2M", 2 << 20), ("512", 512), ("odd", 32 << 20)):
        size.write_text(words)
        assert bench_data.cache_bytes(size) == expected
    assert bench_data.cache_bytes(tmp_path / "none") == 32 << 20
    data = bench_data.prepare(bench.Options(n=2048), Quiet())
    one = data.layers[0].key.nbytes + data.layers[0].value.nbytes
    assert data.nbytes - one <= 4 * bench_data.cache_bytes() < data.nbytes or len(data.layers) == 2


def test_a_level_is_forced_only_inside_its_block(monkeypatch):
    monkeypatch.setenv("TAILBOUND_ISA", "avx2")
    with contestants.at_level("scalar"):
        assert os.environ["TAILBOUND_ISA"] == "scalar"
    assert os.environ["TAILBOUND_ISA"] == "avx2"
    monkeypatch.delenv("TAILBOUND_ISA")
    with contestants.at_level("scalar"):
        pass
    assert "TAILBOUND_ISA" not in os.environ


def test_the_command_prints_a_json_line_a_row_and_fills_a_folder(tmp_path):
    folder = tmp_path / "made" / "here"
    shown = command("bench", "decode", *ARGUMENTS, "--epsilon", "0.1", "--json", "--output", str(folder))
    assert shown.returncode == 0, shown.stderr
    printed = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(printed) == 5 + len(contestants.levels())
    for row in printed:
        assert row.keys() >= FIELDS
        assert row["schema"] == "tailbound.bench.decode/2"
        assert row["limit_ratio"].keys() == {"median", "low", "high"}
    machine, *kept = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    assert machine["schema"] == "tailbound.doctor/1"
    assert kept == printed
    assert "times faster than dense kernel" in (folder / "table.md").read_text()
    assert (folder / "plot.png").is_file() or "pip install 'tailbound[report]'" in shown.stderr


def test_without_matplotlib_the_plot_is_missed_once(tmp_path):
    shown = blocked("matplotlib", "bench", "decode", *ARGUMENTS, "--output", str(tmp_path))
    assert shown.returncode == 0, shown.stderr
    assert shown.stderr.count("matplotlib not installed; pip install 'tailbound[report]'") == 1
    assert {file.name for file in tmp_path.iterdir()} == {"rows.jsonl", "table.md"}
    assert "times" in shown.stdout


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"heads": 7, "kv_heads": 2}, "--heads 7 is not a multiple of --kv-heads 2"),
        ({"n": 0}, "at least 1"),
        ({"layers": -1}, "--layers -1: at least 1, or 0"),
        ({"threads": (0,)}, "--threads 0: at least 1"),
        ({"epsilons": (0.0,)}, "--epsilon 0: allowed is what lies between 0 and 1"),
        ({"dtype": "int8"}, "--dtype int8: allowed are float32"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        bench.decode(bench.Options(**changes), Quiet())


def test_bad_threads_and_folders_are_one_line_and_exit_code_2(tmp_path):
    shown = command("bench", "decode", "--threads", "1,two")
    assert (shown.returncode, shown.stderr) == (
        2,
        "tailbound: --threads 1,two: give whole numbers, as in --threads 1,2\n",
    )
    file = tmp_path / "file"
    file.touch()
    shown = command("bench", "decode", "--output", str(file))
    assert shown.returncode == 2
    assert shown.stderr.startswith(f"tailbound: cannot write to {file}: ")
