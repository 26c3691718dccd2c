"""The audit: what it measures against independent figures, what it advises, and how long work behaves."""

import json
import math
import resource
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from pyarrow import parquet
from transformers import MambaConfig, MambaForCausalLM

from commands import Quiet, command
from families import NAMED
from llamas import saved
from tailbound.hf import Budget
from tailbound.lab import models, rows, seals
from tailbound.lab.audit import columns, curves, job
from tailbound.lab.errors import InputError
from tailbound.lab.reproduce import job as reproduction
from tailbound.lab.reproduce import models_run

ASKED = ["--context", "400", "--queries", "8", "--threads", "1"]
LAYERS, HEADS = 3, 8


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The folder of a small random decoder with SmolLM2's tokenizer."""
    return ["--model", str(saved(tmp_path_factory.mktemp("model")))]


@pytest.fixture(scope="module")
def audited(small, tmp_path_factory):
    out = tmp_path_factory.mktemp("audit")
    shown = command("audit", *small, "--out", str(out), *ASKED, "--json")
    assert shown.returncode == 0, shown.stderr
    return out, json.loads(shown.stdout)


def _floats(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for part in value for number in _floats(part)]
    return [value] if isinstance(value, float) else []


def test_an_audit_answers_what_it_is_asked(audited):
    out, found = audited
    assert all(math.isfinite(number) for number in _floats(found))
    assert (found["schema"], found["complete"]) == ("tailbound.audit/1", True)
    assert (found["settings"]["context"], found["layers_done"], found["layers"]) == (400, LAYERS, LAYERS)
    assert found["versions"].keys() >= {"tailbound", "torch", "transformers", "python"}
    assert found["processor"]
    assert json.loads((out / "audit.json").read_text()) == seals.sealed(found)
    files = {str(path) for path in (*out.glob("*.*"), *out.glob("plots/*"))}
    assert set(found["written"]) == files
    assert {str(out / "report.html"), str(out / "plots" / "answers.png")} < files
    assert len(found["heads"]) == LAYERS * HEADS
    for line in found["heads"]:
        assert 0 < line["share_0.1"] <= line["share_0.01"] <= line["share_0.001"] <= 1
        assert line["certified_over_needed"] >= 1
        for name in ("interval", "box", "ball", "gap"):
            loose = line[f"looseness_{name}"]
            assert loose is None or loose >= 1 - 1e-9
        for name in ("norm", "diameter", "variance"):
            loose = line[f"looseness_{name}"]
            assert loose is None or loose >= 1 - 1e-9
    lines = {(line["policy"], line["epsilon"]): line for line in found["curve"]}
    assert len(lines) == len(curves.DECODER) * len(columns.EPSILONS)
    for (policy, epsilon), line in lines.items():
        ours = lines[curves.OURS, epsilon]
        if policy == curves.OURS:
            assert line["certificate_max"] <= epsilon
        elif policy != curves.QUEST:  # which reads whole pages
            assert line["share"] == pytest.approx(ours["share"], rel=0.06, abs=0.01)
    advised = found["advised"]
    assert len(advised) == 2
    budget = Budget.parse(out / "budget.json")
    assert Budget.parse(advised[0]["budget"]) == budget
    for advice in advised:
        chosen, held = advice["chosen_on"], advice["held_out"]
        assert chosen["tv_mean"] <= 0.01
        assert held["met"] == (held["value"] <= 0.01)
        assert held["over_limit"] == max(0.0, held["value"] - 0.01)
        assert held["fallbacks"] == 0
        assert held["speed"]["median"] > 0

    table = parquet.read_table(out / "audit.parquet")
    assert table.num_rows == LAYERS * HEADS * 8
    assert json.loads(table.schema.metadata[b"tailbound"])["schema"] == "tailbound.audit/1"
    layer, head = (table[name].to_numpy() for name in ("layer", "head"))
    here = (layer == 1) & (head == 5)
    assert table["k_0.01"].to_numpy()[here].mean() == found["heads"][HEADS + 5]["k_0.01"]


def test_figures_are_those_of_reproduce(small, audited, tmp_path):
    """On the same text, the same positions of every head need as many keys, but for rounding of the model."""
    sizes = models_run.Sizes(positions=8)
    options = reproduction.Options(("decoder",), tmp_path, small[1], contexts=(400,), sizes=sizes)
    reproduction.run(options, Quiet())
    needed = rows.chosen(_opened(next(tmp_path.glob("decoder-*"))).read("needs"), n=400)
    ours = _opened(audited[0] / "parts").read("rows")
    order = np.lexsort((ours["position"], ours["head"], ours["layer"]))
    for name in ("k_0.001", "k_0.01", "k_0.05", "k_gap"):
        difference = np.abs(ours[name][order].astype(float) - needed[name])
        assert difference.max() <= 1
        assert difference.mean() < 0.002
    np.testing.assert_allclose(ours["sigma"][order], needed["sigma"], rtol=1e-3)


def _opened(place):
    return rows.Rows(place, json.loads((place / "settings.json").read_text())["settings"])


@pytest.mark.slow
def test_an_encoder(tmp_path):
    shown = command(
        "audit", "--model", "minilm", "--out", str(tmp_path), "--context", "96", "--queries", "12", "--json"
    )
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["target"] == "hidden-distance=0.05"
    assert len(found["heads"]) == 6 * 12
    assert {line["policy"] for line in found["curve"]} == set(curves.ENCODER)
    assert found["curve"][0]["loss"] is None
    distances = [line["tv_mean"] for line in found["curve"] if line["policy"] == curves.OURS]
    assert distances == sorted(distances)
    assert all(advice["chosen_on"]["tv_mean"] <= 0.05 for advice in found["advised"])
    assert found["advised"][0]["held_out"]["speed"] is None


def _start(small, out, *extra, **options):
    call = [sys.executable, "-m", "tailbound", "audit", *small, "--out", str(out), *ASKED, *extra]
    return subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def _stopped_after(small, out, count):
    """An audit stopped by Ctrl-C when so many layers were on disk."""
    heeded = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a pytest in the background hands on its deafness
    process = _start(small, out, "--json", preexec_fn=heeded)
    until = time.monotonic() + 120
    while len(list(out.glob("parts/rows/*.parquet"))) < count and time.monotonic() < until:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    return json.loads(printed)


@pytest.mark.slow
def test_it_is_stopped_and_goes_on(small, audited, tmp_path):
    found = _stopped_after(small, tmp_path, 2)
    assert not found["complete"]
    assert 2 <= found["layers_done"] <= LAYERS
    assert len(found["heads"]) == HEADS * found["layers_done"]
    assert json.loads((tmp_path / "audit.json").read_text())["complete"] is False
    assert "Interrupted after" in (tmp_path / "report.html").read_text()
    assert (tmp_path / "plots" / "heads.png").exists()
    assert not (tmp_path / "plots" / "budget.png").exists()
    refused = command("audit", *small, "--out", str(tmp_path), *ASKED)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--resume goes on" in refused.stderr
    with pytest.raises(InputError, match="seed"):
        job.run(job.Options(tmp_path, small[1], context=400, queries=8, seed=1, resume=True), Quiet())

    first, second = sorted(tmp_path.glob("parts/rows/*.parquet"))[:2]
    whole = first.read_bytes()
    kept = second.stat().st_mtime_ns
    first.write_bytes(whole[: len(whole) // 2])
    shown = command("audit", *small, "--out", str(tmp_path), *ASKED, "--resume", "--json")
    assert shown.returncode == 0, shown.stderr
    assert second.stat().st_mtime_ns == kept
    assert first.read_bytes() == whole
    found, unbroken = json.loads(shown.stdout), audited[1]
    for name in ("heads", "model", "curve"):
        assert found[name] == unbroken[name]
    assert [advice["budget"] for advice in found["advised"]] == [advice["budget"] for advice in unbroken["advised"]]

    flipped = bytearray(whole)
    for at in range(len(whole) // 4, len(whole) // 2, 16):  # a single byte may be one that carries nothing
        flipped[at] ^= 0xFF
    first.write_bytes(flipped)
    again = command("audit", *small, "--out", str(tmp_path), *ASKED, "--resume", "--target", "none", "--json")
    assert again.returncode == 0, again.stderr
    assert first.read_bytes() == whole
    assert json.loads(again.stdout)["heads"] == found["heads"]


@pytest.mark.slow
def test_a_full_disk_loses_no_layer(small, tmp_path):
    done = _stopped_after(small, tmp_path, 1)["layers_done"]
    before = {path: path.read_bytes() for path in tmp_path.glob("parts/rows/*.parquet")}
    size = max(len(data) for data in before.values()) // 2

    def full():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    process = _start(small, tmp_path, "--resume", preexec_fn=full)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 2
    assert said.count("\n") == 1
    assert "cannot write" in said
    after = {path: path.read_bytes() for path in tmp_path.glob("parts/rows/*.parquet")}
    assert after == before
    assert len(after) == done
    assert not list(tmp_path.rglob("*.part"))


def test_what_cannot_be_audited_is_said(small, tmp_path):
    tokenizer = models.Source("smollm2").tokenizer()
    mamba = tmp_path / "mamba"
    MambaForCausalLM(MambaConfig(vocab_size=tokenizer.vocab_size, hidden_size=32, num_hidden_layers=2)).save_pretrained(
        mamba
    )
    tokenizer.save_pretrained(mamba)
    NAMED["T5"].build().save_pretrained(tmp_path / "t5")
    tokenizer.save_pretrained(tmp_path / "t5")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    short = tmp_path / "short.txt"
    short.write_text("word " * 200)
    asked = job.Options(tmp_path / "out", small[1], context=400, queries=8)
    for changes, words in (
        ({"model": str(mamba)}, "has no attention to audit"),
        ({"model": str(tmp_path / "t5")}, "neither a decoder nor an encoder"),
        ({"model": str(tmp_path / "broken")}, "cannot load the model"),
        ({"text": short}, "fewer than the context of 400"),
        ({"text": short, "context": 160, "target": "kl=0.01"}, "fewer than the context of 320"),
        ({"context": 9000}, "was made for 2048 positions"),
        ({"context": 20}, "at least 36"),
        ({"queries": 150}, "at most a third"),
        ({"target": "speed=2"}, "give one of"),
        ({"resume": True, "fresh": True}, "give one of them"),
        ({"out": short}, "cannot write"),
    ):
        with pytest.raises(InputError, match=words):
            job.run(asked._replace(**changes), Quiet())
    shown = command("audit", "--model", str(mamba), "--out", str(tmp_path / "out"), *ASKED)
    assert (shown.returncode, shown.stderr.count("\n")) == (2, 1)


def test_beginning_again_leaves_nothing_of_before(small, tmp_path):
    (tmp_path / "budget.json").write_text("{}")
    with pytest.raises(InputError, match="a third"):
        job.run(job.Options(tmp_path, small[1], context=400, queries=200, fresh=True), Quiet())
    assert (tmp_path / "budget.json").exists()  # nothing was begun
    result = job.run(job.Options(tmp_path, small[1], context=64, queries=4, target="none", fresh=True), Quiet())
    assert result.figures.complete
    assert not (tmp_path / "budget.json").exists()


def test_a_text_too_short_for_a_held_out_half_is_measured_all_the_same(small, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text("The word is " * 200)
    shown = command("audit", *small, "--out", str(tmp_path / "out"), "--text", str(short), *ASKED, "--json")
    assert shown.returncode == 0, shown.stderr
    found = json.loads(shown.stdout)
    assert found["complete"]
    assert not found["advised"]
    assert "fewer than 800 tokens" in found["why_not"]


def test_fresh_removes_nothing_but_an_audit(small, tmp_path):
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "mine.txt").write_text("mine")
    with pytest.raises(InputError):
        job.run(job.Options(tmp_path, small[1], context=400, queries=8, target="nonsense", fresh=True), Quiet())
    rows.Rows(tmp_path / "parts", {"a": 1}, fresh=True)
    assert (tmp_path / "parts" / "mine.txt").read_text() == "mine"
