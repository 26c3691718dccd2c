"""One command checks a family: real models of transformers, saved to a folder."""

import json

import pytest
import torch

from asking import halve_tv
from commands import Quiet, check_refused, command
from families import NAMED
from tailbound import Attention, KVIndex
from tailbound.lab import truth, verify
from tailbound.lab.errors import InputError

ASKED = ["--context", "400", "--tokens", "4", "--threads", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    def made(name):
        path = tmp_path_factory.mktemp("models") / name.replace(" ", "")
        NAMED[name].build().save_pretrained(path)
        return str(path)

    return made


def test_a_family_is_checked_from_its_folder(folder):
    shown = command("verify", "--model", folder("Gemma 2"), *ASKED, "--json")
    assert shown.returncode == 0, shown.stderr
    rows = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [(row["dtype"], row["epsilon"]) for row in rows] == [
        (dtype, epsilon) for dtype in ("float32", "bfloat16") for epsilon in (0.0, 1e-6, 0.01, 0.05)
    ]
    for row in rows:
        assert (row["schema"], row["violations"], row["tokens"]) == ("tailbound.verify/1", 0, "random tokens")
        assert row["certificates"] == sum(row["statuses"].values()) == 2 * 4 * 4  # layers, heads, steps
        assert row["margin"] is None if row["epsilon"] == 0 else row["margin"] > 0
        assert row["unexplained"] == 0
        assert row["spread"] >= 3
        assert row["exact"] == [["more than 16 queries (prefill)", [0, 1], 2]]
        if row["epsilon"] <= 1e-6 and row["dtype"] == "float32":
            assert row["agreement"] == 1
    assert rows[3]["looseness"] >= 1


def test_a_table_says_what_was_exact(folder):
    shown = command("verify", "--model", folder("DeepSeek-V3"), *ASKED, "--dtypes", "float32", "--epsilon", "0.05")
    assert shown.returncode == 0, shown.stderr
    words = " ".join(shown.stdout.split())  # whatever the width of the terminal
    assert "every call was answered exactly because: the keys are not what a certified cache holds" in words
    assert "Nothing could be certified" in words


@pytest.mark.parametrize("name", ["BART", "Whisper", "T5"])
def test_an_encoder_and_its_decoder_are_checked_together(folder, name):
    asked = ["--dtypes", "float32", "--epsilon", "0,0.01"]
    shown = command("verify", "--model", folder(name), *ASKED, *asked, "--json")
    assert shown.returncode == 0, shown.stderr
    for row in map(json.loads, shown.stdout.splitlines()):
        # Layers, heads, steps, and each twice: what the decoder wrote and what the encoder read.
        assert (row["violations"], row["certificates"]) == (0, 2 * 4 * 4 * 2)
        assert row["tokens"] == "random tokens" + (
            ", after random sound" if name == "Whisper" else ", read by encoder and decoder"
        )


def test_a_certificate_below_the_truth_is_found(folder, monkeypatch):
    halve_tv(monkeypatch)
    options = verify.Options(folder("Llama"), None, 400, 4, (0.05,), ("float32",))
    [row] = verify.run(options, Quiet())
    assert row.violations > 0
    assert "do not hold" in row.verdict()
    assert "please report it" in verify.verdict([row])


def test_another_token_than_rounding_explains_is_found(folder, monkeypatch):
    attend = KVIndex.attend

    def broken(self, query, **options):
        found = attend(self, query, **options)
        return Attention(-found.output, found.certificate, found.stats, found.kept)

    path = folder("Llama")
    rows = verify.run(verify.Options(path, None, 400, 4, (0.0,), ("float32", "bfloat16")), Quiet())
    assert not any(row.broken for row in rows)
    monkeypatch.setattr(KVIndex, "attend", broken)
    monkeypatch.setattr(
        truth.Truth, "violated_by", lambda *_: torch.zeros((), dtype=torch.bool)
    )  # as if no certificate told of it
    for row in verify.run(verify.Options(path, None, 400, 4, (0.0,), ("float32", "bfloat16")), Quiet()):
        assert row.violations == 0
        assert row.unexplained > 0
        assert row.broken
        assert "rounding does not explain" in row.verdict()


@pytest.mark.slow
def test_what_cannot_be_checked_is_one_line(folder):
    for arguments, words in (
        (["--model", folder("Falcon")], "does not call the attention interface"),
        (["--model", folder("Llama"), "--epsilon", "1.5"], "epsilon"),
        (["--model", folder("Llama"), "--text", __file__], "tokenizer"),
        (["--model", folder("BERT")], "keeps no cache of keys and values"),
        (["--model", folder("ViT")], "no model that writes tokens"),
        (["--model", folder("GPT-2"), "--context", "5000"], "was made for"),
    ):
        shown = command("verify", *ASKED, *arguments)
        check_refused(shown, words)


def test_options_are_checked_before_a_model_is_read():
    with pytest.raises(InputError, match="--context 1"):
        verify.run(verify.Options("nowhere", context=1), Quiet())
