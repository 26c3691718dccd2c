"""What is captured is what attention was given, the file says so, and a benchmark runs on it."""

import json

import pytest
import torch

from commands import Quiet, blocked, check_refused, command
from tailbound.lab import bench, captures, listening
from tailbound.lab.errors import InputError

CONTEXT, QUERIES = 300, 8


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    file = tmp_path_factory.mktemp("capture") / "small.safetensors"
    sizes = ("--context", str(CONTEXT), "--queries", str(QUERIES))
    return file, command("capture", *sizes, "--output", str(file), "--json")


def test_a_real_model_is_captured(made):
    file, shown = made
    assert shown.returncode == 0, shown.stderr
    figures = json.loads(shown.stdout)
    assert figures["schema"] == "tailbound.capture/2"
    assert (figures["layers"], figures["heads"], figures["kv_heads"], figures["head_dim"]) == (30, 9, 3, 64)
    assert figures["bytes"] == file.stat().st_size
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    layers, metadata = captures.load(file)
    assert len(layers) == 30
    for layer in layers:
        assert layer.query.shape == (1, 9, QUERIES, 64)
        assert layer.key.shape == layer.value.shape == (1, 3, CONTEXT, 64)
        assert layer.query.dtype is layer.key.dtype is layer.value.dtype is torch.bfloat16
        assert layer.scale == 64**-0.5
    assert metadata["model"] == "smollm2"
    assert metadata["text"] == "Python's standard library"
    assert metadata.keys() >= {"dtype", "scale", "transformers", "torch"}


def test_the_benchmark_judges_the_last_positions_of_a_capture(made):
    file, _ = made
    rows = bench.decode(
        bench.Options(real=True, capture=file, positions=3, rounds=1, threads=(1,), epsilons=(0.05,)), Quiet()
    )
    assert {(row.n, row.layers, row.positions, row.dtype, row.real) for row in rows} == {
        (CONTEXT, 30, 3, "bfloat16", True)
    }
    for row in rows:
        if row.contestant == "tailbound":
            assert row.violations == 0
            assert row.kept_over_oracle >= 1
            assert 0 < row.true_tv_max <= row.tv_max <= 0.05


def test_more_positions_than_were_captured_are_refused(made):
    file, _ = made
    with pytest.raises(InputError, match="holds 8 query positions; make one with more"):
        bench.decode(bench.Options(real=True, capture=file), Quiet())


def test_what_is_captured_is_what_attention_was_given():
    """Weights recomputed from a capture are those that the model reports of itself."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=50, num_hidden_layers=3, attn_implementation="eager", **sizes)
    model = transformers.LlamaForCausalLM(config).eval()
    ids = torch.randint(50, (1, 20))
    with torch.inference_mode():
        expected = model(ids, output_attentions=True).attentions
    layers = captures._take(model, ids, captures.Options(None, queries=5, dtype="float32"), Quiet())
    assert model.config._attn_implementation == "eager"
    assert len(layers) == 3
    visible = torch.arange(20) <= torch.arange(15, 20)[:, None]
    for layer, weights in zip(layers, expected, strict=True):
        logits = layer.query @ layer.key.repeat_interleave(2, 1).mT * layer.scale
        torch.testing.assert_close(logits.masked_fill(~visible, -torch.inf).softmax(-1), weights[:, :, -5:])


def test_a_sliding_window_is_refused():
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.MistralConfig(vocab_size=50, num_hidden_layers=1, head_dim=8, sliding_window=16, **sizes)
    model = transformers.MistralForCausalLM(config).eval()
    with pytest.raises(InputError, match="sees 16 keys at a time"):
        captures._take(model, torch.randint(50, (1, 20)), captures.Options(None, queries=5), Quiet())
    assert model.config._attn_implementation != listening.NAME


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--queries", "9", "--context", "8"], "--queries 9: at most the 8 positions of --context"),
        (["--queries", "0"], "--queries 0: at least 1"),
        (["--dtype", "int8"], "--dtype int8: allowed are float32"),
        (["--output", "no/such/folder/file"], "no/such/folder is not a folder; create it first"),
        (["--output", "."], "it is a folder; name a file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(tmp_path, arguments, words):
    shown = command("capture", "--output", str(tmp_path / "file"), *arguments)
    check_refused(shown, words)


@pytest.mark.slow
def test_a_text_shorter_than_the_context_is_refused(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Only a few words.")
    shown = command("capture", "--text", str(short), "--output", str(tmp_path / "file"))
    assert shown.returncode == 2
    assert "fewer than the context of 8192" in shown.stderr


def test_a_missing_extra_is_named_with_the_command_that_installs_it(tmp_path):
    shown = blocked("safetensors", "capture", "--output", str(tmp_path / "file"))
    assert shown.returncode == 2
    assert "safetensors not installed; captures need the hf extra: pip install 'tailbound[hf]'" in shown.stderr


def test_files_that_are_no_captures_are_refused(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        captures.load(tmp_path / "none")
    junk = tmp_path / "junk"
    junk.write_bytes(b"nothing of the kind")
    with pytest.raises(InputError, match="cannot read"):
        captures.load(junk)
    other = tmp_path / "other"
    pytest.importorskip("safetensors.torch").save_file({"a": torch.zeros(1)}, other)
    with pytest.raises(InputError, match="is not a capture"):
        captures.load(other)


def test_the_default_capture_lies_in_the_cache_folder_of_the_user(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = captures.default_path(8192, 64, "bfloat16")
    assert path == tmp_path / "tailbound" / "smollm2-8192-64-bfloat16-v2.safetensors"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert captures.default_path(8, 4, "float32").parent == tmp_path / ".cache" / "tailbound"
