"""Two audits side by side: what differs is named, and what cannot be compared is said."""

import io
import json

import pytest
from rich.console import Console

from audits import HEADS, LAYERS, audit, save
from commands import command
from tailbound.lab.audit import columns, comparison, curves, show_comparison


def test_of_equal_audits_nothing_differs():
    found = comparison.compare(audit(), audit())
    assert found["settings"] == []
    assert {line["change"] for line in found["model"]} <= {0.0, None}
    assert all(line["change"] == 0 for line in found["heads"])
    assert len(found["heads"]) == LAYERS * HEADS
    assert all(line["epsilon"][0] == line["epsilon"][1] for line in found["heads"])


def test_what_differs_is_found():
    a, b = audit(), audit()
    b["settings"]["dtype"], b["text"] = "bfloat16", "another text"
    b["heads"][7]["share_0.01"] += 0.25
    b["model"]["sparse_heads"] -= 1
    b["curve"][3]["tv_mean"] *= 2
    b["advised"] = b["advised"][1:]
    found = comparison.compare(a, b)
    assert {line["name"]: (line["a"], line["b"]) for line in found["settings"]} == {
        "dtype": ("float32", "bfloat16"),
        "text": ("a text", "another text"),
    }
    assert {line["name"]: line["change"] for line in found["model"] if line["change"]} == {"sparse_heads": -1}
    first = found["heads"][0]
    assert (first["head"], first["change"]) == ("2.1", pytest.approx(0.25))
    assert first["epsilon"] == [0.02, 0.0123]
    assert len(found["curves"]) == len(curves.DECODER) * len(columns.EPSILONS)
    doubled = [line for line in found["curves"] if line["tv_mean"][0] != line["tv_mean"][1]]
    assert [(line["policy"], line["epsilon"]) for line in doubled] == [(curves.OURS, 0.01)]
    assert [(line["audit"], line["budget"]) for line in found["advised"]] == [
        ("a", "a budget by head"),
        ("a", "epsilon 0.0123 everywhere"),
        ("b", "epsilon 0.0123 everywhere"),
    ]


def test_heads_of_models_of_other_sizes_are_not_told_to_be_the_same():
    other = audit() | {"layers": 7}
    found = comparison.compare(audit(), other)
    assert found["heads"] == []
    assert "4 layers of 3 heads and B 7 layers of 3 heads" in found["why_no_heads"]


@pytest.mark.parametrize(
    ("b", "words"),
    [
        (audit(seed=1), "Heads that changed most"),
        (audit(encoder=True, target="hidden-distance=0.05"), "they do not compare"),
        (audit(layers_done=2), "Interrupted after 2 of 4 layers"),
        (audit(layers_done=0), "Heads: "),
    ],
    ids=["another seed", "an encoder", "part of one", "none"],
)
def test_the_terminal_shows_any_two(b, words):
    console = Console(width=160, file=io.StringIO())
    for part in show_comparison.compare(comparison.compare(audit(), b)):
        console.print(part)
    assert words in " ".join(console.file.getvalue().split())


def test_json_is_the_comparison(tmp_path):
    a, b = audit(), audit(seed=1)
    shown = command("compare", save(tmp_path / "a", a), save(tmp_path / "b", b), "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout) == json.loads(json.dumps(comparison.compare(a, b)))
    assert json.loads(shown.stdout)["schema"] == "tailbound.compare/1"


def test_an_audit_of_another_schema_is_one_line(tmp_path):
    shown = command(
        "compare", save(tmp_path / "a", audit()), save(tmp_path / "b", audit() | {"schema": "tailbound.audit/9"})
    )
    assert (shown.returncode, shown.stderr.count("\n")) == (2, 1)
    assert "'tailbound.audit/9'" in shown.stderr
