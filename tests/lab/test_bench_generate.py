"""Whole steps: contestants see the same tokens, dense ones agree, memory is measured, and what is asked is checked."""

import json

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from commands import Quiet, check_refused, command
from llamas import llama, prompt
from tailbound.lab import bench_generate, decoders, memory, profiling, show_bench_generate, steps
from tailbound.lab.errors import InputError
from tailbound.lab.steps import FOLDED, STOCK, TAILBOUND, UNRECORDED
from tailbound.lab.timing import Ratio

OPTIONS = steps.Options(contexts=(600,), dtypes=("float32",), steps=3, prefills=2, profile=True)


@pytest.fixture(scope="module")
def rows():
    """Of a small random model: the real one is run by the command below."""
    torch.manual_seed(0)
    ids = prompt(600)
    return bench_generate._Round(OPTIONS, "float32", "random tokens", llama(), ids).run(Quiet())


def test_every_contestant_has_a_row(rows):
    found = [(row.contestant, row.epsilon) for row in rows]
    assert found == [(STOCK, None), (FOLDED, None), (TAILBOUND, 0.01), (UNRECORDED, 0.01), (TAILBOUND, 0.0)]


def test_dense_contestants_agree_and_certified_ones_nearly(rows):
    for row in rows:
        assert row.argmax_agreement == 1.0
        assert row.next_token_tv_mean <= row.next_token_tv_max < (1e-5 if not row.epsilon else 0.05)
    recorded, unrecorded = rows[2], rows[3]
    assert recorded.next_token_tv_mean == unrecorded.next_token_tv_mean


def test_what_was_recorded_stands_in_the_row(rows):
    ours, unrecorded, dense = rows[2:]
    assert 0 < ours.tv_max <= 0.01
    assert not ours.broken
    assert 0 < ours.kept_share <= 1
    assert dense.dense_share == 1.0
    assert (unrecorded.tv_max, unrecorded.recording) == (None, None)
    assert isinstance(ours.recording, Ratio)
    assert [row.fallbacks for row in rows] == [None, None, 0, 0, 0]
    assert all(row.violations is None for row in rows)


def test_prefill_and_memory_are_measured_once_a_kind_of_cache(rows):
    for row in rows[:3]:
        assert row.prefill_s > 0
        assert row.prefill_ratio.keys() == {STOCK, FOLDED}
    assert rows[0].memory_ratio in (1.0, None)
    assert rows[3].prefill_s is None
    assert rows[0].cache_ratio == rows[1].cache_ratio == 1.0 < rows[2].cache_ratio
    assert rows[0].cache_mb == 2 * 3 * 2 * 600 * 8 * 4 / 1e6


def test_parts_of_a_step_are_a_whole_one(rows):
    for row in rows:
        assert row.profile["whole"] == pytest.approx(sum(row.profile.values()) / 2)
        assert set(row.profile) - {"recording"} == {*profiling.PARTS, "whole"} - {"recording"}
        assert ("recording" in row.profile) == (row.contestant == TAILBOUND)


def test_contestants_share_weights_and_nothing_else():
    model = llama(attn_implementation="eager")
    one = decoders.stock(model)
    assert [w.data_ptr() for w in one.model.parameters()] == [w.data_ptr() for w in model.parameters()]
    with decoders.certified(model, 0.01) as (ours, _):
        assert ours.model.config._attn_implementation == "tailbound"
        assert one.model.config._attn_implementation == "sdpa"
        assert model.config._attn_implementation == "eager"


def test_the_cache_in_place_appends_without_moving():
    layer = decoders.InPlaceLayer(room=10)
    key, value = torch.randn(1, 2, 7, 4), torch.randn(1, 2, 7, 4)
    first, _ = layer.update(key, value)
    again, values = layer.update(key[:, :, :1], value[:, :, :1])
    assert again.data_ptr() == first.data_ptr()
    assert torch.equal(again, torch.cat([key, key[:, :, :1]], 2))
    assert torch.equal(values, torch.cat([value, value[:, :, :1]], 2))
    layer.crop(-3)
    assert layer.get_seq_length() == 5
    assert layer.nbytes == 2 * 2 * 10 * 4 * 4


def test_peak_memory_is_what_a_call_took():
    found = memory.peak_over(lambda: torch.ones(25_000_000))
    if found is None:
        pytest.skip("this system does not say")
    assert 95e6 < found < 130e6
    assert memory.peak_over(lambda: None) < 10e6


def test_rows_where_we_lose_are_listed(rows):
    slow = {STOCK: Ratio(2.0, 1.9, 2.1), FOLDED: Ratio(0.5, 0.4, 0.6)}
    lost = steps.Row(**(vars(rows[2]) | {"ratio": slow}))
    [line] = show_bench_generate.losses([lost])
    expected = f"tailbound, epsilon 0.01, float32, 600 tokens, 1 thread: 0.50 times as fast as {FOLDED}"
    assert line == expected


@pytest.mark.slow
def test_the_command_prints_a_json_line_a_row_and_fills_a_folder(tmp_path):
    sizes = ["--contexts", "300", "--dtypes", "float32", "--steps", "2", "--prefills", "1", "--threads", "1"]
    shown = command("bench", "generate", *sizes, "--json", "--output", str(tmp_path / "made"))
    assert shown.returncode == 0, shown.stderr
    printed = [json.loads(line) for line in shown.stdout.splitlines()]
    assert len(printed) == 5
    for row in printed:
        assert row["schema"] == "tailbound.bench.generate/1"
        assert row["ratio"][STOCK].keys() == {"median", "low", "high"}
        assert row["context"] == row["prompt"] + row["steps"] + 1 == 300
        assert row["argmax_agreement"] >= 0.5
    machine, *kept = [json.loads(line) for line in (tmp_path / "made" / "rows.jsonl").read_text().splitlines()]
    assert machine["schema"] == "tailbound.doctor/1"
    assert kept == printed
    assert "next-token TV mean" in (tmp_path / "made" / "table.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--contexts", "99", "--steps", "64"], "--contexts 99: at least 129, a prompt of 64 tokens and the steps"),
        (["--contexts", "many"], "--contexts many: give whole numbers, as in --contexts 1,2"),
        (["--epsilon", "2"], "epsilon=2.0 is out of range"),
        (["--steps", "0"], "--steps 0: at least 1"),
        (["--prefills", "0"], "--prefills 0: at least 1"),
        (["--dtypes", "int8"], "--dtype int8: allowed are float32"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words):
    shown = command("bench", "generate", *arguments)
    check_refused(shown, words)


def test_models_that_do_not_see_everything_are_refused():
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = MistralConfig(vocab_size=50, num_hidden_layers=1, head_dim=8, sliding_window=16, **sizes)
    with pytest.raises(InputError, match="DynamicSlidingWindowLayer"):
        decoders.check_full_attention(MistralForCausalLM(config))
