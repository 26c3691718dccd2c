"""The real model completes and chats under certificates, and what is asked of it is checked."""

import copy
import io
import json
import sys

import pytest
from transformers.cache_utils import DynamicCache

from commands import Quiet, command
from tailbound import cli
from tailbound.hf import Budget
from tailbound.lab import generate, prompts
from tailbound.lab.errors import InputError
from tailbound.lab.writing import Writer

SHORT = ["--max-new-tokens", "8", "--threads", "1", "--json"]


@pytest.mark.slow
def test_it_completes_and_compares_with_dense(tmp_path):
    budget = tmp_path / "budget.json"
    budget.write_text('{"default": 0.01, "heads": {"3.7": 0.0}}')
    file = tmp_path / "prompt.txt"
    file.write_text("One, two, three, four, five, six, seven, eight, nine, ten. " * 30)
    asked = ["--prompt-file", str(file), "--epsilon", str(budget), "--against-dense"]
    shown = command("generate", *SHORT, *asked)
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["schema"] == "tailbound.generate/1"
    [turn] = found["turns"]
    assert turn["text"] == found["text"] != ""
    assert (turn["tokens"], turn["reused"]) == (8, 0)
    assert turn["tokens_per_s"] > 0
    assert found["certificates"] == 30 * 9 * 7  # the first token comes out of the prefill
    assert 0 < found["tv_max"] <= 0.01
    assert sum(found["statuses"].values()) == found["certificates"]
    assert found["statuses"]["DENSE"] >= 7  # head 7 of layer 3
    assert found["exact"] == [["0-29", "more than 16 queries (prefill)", "1"]]
    dense = found["dense"]
    assert dense["tokens"] == 8
    assert dense["argmax_agreement"] >= 0.75
    assert 0 <= dense["next_token_tv_mean"] < 0.05
    assert dense["shared_prefix"] <= 8
    assert dense["ratio"].keys() == {"median", "low", "high"}


@pytest.mark.slow
def test_it_chats_on_one_cache():
    """The second turn reads what is new: the first turn is in the cache."""
    asked = "What is the capital of France?\n\nAnd of Spain?\n"
    shown = command("generate", *SHORT, "--chat", "--prompt", "Answer in one word.", typed=asked)
    assert shown.returncode == 0, shown.stderr
    first, second = json.loads(shown.stdout)["turns"]
    assert "Paris" in first["text"]
    assert first["reused"] == 0
    assert first["prompt_tokens"] <= second["reused"] < second["prompt_tokens"]


@pytest.mark.slow
def test_it_prints_as_it_writes_and_then_a_table():
    shown = command("generate", "--max-new-tokens", "4", "--threads", "1", typed="The capital of France is")
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.startswith(" Paris")
    for words in ("largest TV", "tokens/s", "keys kept, mean", "status"):
        assert words in shown.stdout


@pytest.fixture(scope="module")
def writer():
    return Writer(generate.Options(max_new_tokens=12, temperature=1.0), Quiet())


@pytest.mark.slow
def test_a_seed_fixes_what_is_drawn(writer):
    ids = writer.tokenizer("Once upon a time", return_tensors="pt").input_ids
    texts = []
    for seed in (3, 3, 4):
        writer.options = writer.options._replace(seed=seed)
        texts.append(writer.decode(writer.write(ids, DynamicCache()).answer))
    assert texts[0] == texts[1] != texts[2]


def test_a_text_beyond_the_window_is_refused(writer, monkeypatch):
    monkeypatch.setattr(writer, "options", writer.options._replace(max_new_tokens=9000))
    with pytest.raises(InputError, match="need more positions than the 8192"):
        writer.answer("Hi", stream=False)


def test_a_budget_for_layers_that_are_not_there_is_refused(writer, monkeypatch):
    monkeypatch.setattr(writer, "budget", Budget.parse('{"default": 0.01, "layers": {"99": 0.5}}'))
    with pytest.raises(InputError, match=r"layers \[99\], which are not there"):
        writer.answer("Hi", stream=False)


def test_a_model_without_a_chat_template_cannot_chat(writer, tmp_path):
    tokenizer = copy.deepcopy(writer.tokenizer)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    writer.model.config.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="has no chat template; leave out --chat"):
        Writer(generate.Options(model=str(tmp_path), chat=True), Quiet())


@pytest.mark.slow
def test_a_chat_without_a_question_is_refused():
    with pytest.raises(InputError, match="nothing to answer came on stdin"):
        generate.run(generate.Options(chat=True), [], Quiet())


def test_texts_come_from_an_option_a_file_or_stdin(tmp_path):
    file = tmp_path / "text"
    file.write_text("of a file")
    stdin = io.StringIO("first\n\n second \nthird")
    assert prompts.one("given", None, stdin) == ["given"]
    assert prompts.one(None, file, stdin) == ["of a file"]
    assert list(prompts.turns(None, file, stdin)) == ["of a file\n\nfirst", "second", "third"]
    assert prompts.one(None, None, io.StringIO("piped")) == ["piped"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--prompt", " "], "the prompt is empty"),
        (["--prompt", "a", "--prompt-file", "b"], "--prompt and --prompt-file are both given"),
        (["--prompt-file", "/nowhere/text"], "cannot read /nowhere/text"),
        (["--prompt", "a", "--epsilon", "2"], "--epsilon 2: epsilon=2.0 is out of range"),
        (["--prompt", "a", "--epsilon", "none.json"], "--epsilon none.json: neither a number nor a file"),
        (["--prompt", "a", "--model", "nobody/nothing-of-this-name"], "cannot load the model"),
        (["--prompt", "a", "--max-new-tokens", "0"], "--max-new-tokens 0: at least 1"),
        (["--prompt", "a", "--temperature", "-1"], "--temperature -1.0: 0, or a positive number"),
        (["--chat", "--against-dense"], "--against-dense compares one completion; leave out --chat"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tailbound", "generate", *arguments])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words in shown.err
    assert shown.err.count("\n") == 1
