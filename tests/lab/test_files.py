"""Files that were cut off, changed by a bit, or are of another schema: an error in a line, and nothing written over."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import tailbound
from audits import audit
from commands import command
from tailbound.hf import Budget
from tailbound.lab import captures, models, rows, seals
from tailbound.lab.audit import report
from tailbound.lab.errors import InputError

SOURCES = Path(tailbound.__file__).parent


def make_capture(path):
    gen = torch.Generator().manual_seed(0)
    tensors = {
        f"layers.0.{name}": torch.randn(1, 1, n, 4, generator=gen)
        for name, n in (("query", 2), ("key", 9), ("value", 9))
    }
    metadata = {"schema": captures.SCHEMA, "scale": "[0.5]", "model": "none", "text": "none"}
    seal = {seals.SEAL: seals.of_tensors(tensors, metadata)}
    captures._write(captures._safetensors().save_file, tensors, metadata | seal, path)


def read_capture(path):
    layers, metadata = captures.load(path)
    return [tensor.tolist() for tensor in layers[0][:3]], metadata


def make_audit(path):
    path.write_text(json.dumps(seals.sealed(audit())))


def make_rows(path):
    rows.write_table(path, {"key": np.arange(50), "mass": np.linspace(0, 1, 50)}, {"schema": "none"})


def read_rows(path):
    return rows._table(path).to_pydict()


FILES = {
    "capture": ("some.safetensors", make_capture, read_capture),
    "audit": ("audit.json", make_audit, lambda path: report.load(path.parent)),
    "rows": ("part.parquet", make_rows, read_rows),
}


@pytest.mark.parametrize("kind", FILES)
def test_a_file_cut_off_is_one_line(kind, tmp_path):
    name, make, read = FILES[kind]
    path = tmp_path / name
    make(path)
    whole = path.read_bytes()
    for length in sorted({0, 1, 7, len(whole) // 3, len(whole) // 2, len(whole) - 9, len(whole) - 1}):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError) as found:
            read(path)
        assert str(path) in str(found.value)
        assert path.read_bytes() == whole[:length]


@pytest.mark.parametrize("kind", FILES)
def test_a_bit_that_changed_is_noticed_or_changes_nothing(kind, tmp_path):
    """Some bits carry nothing, as those of a name in a header that nothing reads."""
    name, make, read = FILES[kind]
    path = tmp_path / name
    make(path)
    whole, right, noticed = path.read_bytes(), read(path), 0
    random = np.random.default_rng(0)
    for _ in range(400):
        spoiled = bytearray(whole)
        spoiled[int(random.integers(len(whole)))] ^= 1 << int(random.integers(8))
        path.write_bytes(bytes(spoiled))
        try:
            assert read(path) == right
        except InputError:
            noticed += 1
    assert noticed > 200
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_of_another_schema_says_which(tmp_path):
    make_audit(tmp_path / "audit.json")
    found = json.loads((tmp_path / "audit.json").read_text())
    (tmp_path / "audit.json").write_text(json.dumps(seals.sealed(found | {"schema": "tailbound.audit/99"})))
    with pytest.raises(InputError, match=r"tailbound\.audit/99"):
        report.load(tmp_path)
    before = (tmp_path / "audit.json").read_bytes()
    shown = command("audit", "--redraw", "--out", str(tmp_path))
    assert (shown.returncode, shown.stderr.count("\n")) == (2, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["audit.json"]
    assert (tmp_path / "audit.json").read_bytes() == before


def test_a_budget_with_any_bit_changed_is_refused_or_a_budget(tmp_path):
    """It is written by hand and has no checksum: what is read are masses in [0, 1), or nothing."""
    path = tmp_path / "budget.json"
    path.write_text(Budget(0.01, {3: 0.1}, {(1, 2): 0.25}).to_json())
    whole = path.read_bytes()
    for place in range(len(whole)):
        for bit in range(8):
            spoiled = bytearray(whole)
            spoiled[place] ^= 1 << bit
            path.write_bytes(bytes(spoiled))
            try:
                found = Budget.parse(path)
            except ValueError:
                continue
            assert all(0 <= mass < 1 for mass in (found.default, *found.layers.values(), *found.heads.values()))
        path.write_bytes(whole[:place])
        with pytest.raises(ValueError, match="budget"):
            Budget.parse(path)


def test_a_checkpoint_that_is_a_pickle_is_not_loaded(tmp_path):
    transformers = pytest.importorskip("transformers")
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=20, **sizes))
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="safetensors"):
        models.Source(str(tmp_path)).model()


def test_the_sources_load_no_pickle_and_trust_no_code():
    for path in SOURCES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name.split(".")[0] for alias in node.names} | {
                    (getattr(node, "module", "") or "").split(".")[0]
                }
                assert not names & {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in {"torch.load", "torch.jit.load", "eval", "exec", "compile"}, (path, called)
                for word in node.keywords:
                    allowed = isinstance(word.value, ast.Constant) and word.value.value is False
                    assert word.arg not in {"trust_remote_code", "allow_pickle"} or allowed, (path, word.arg)
