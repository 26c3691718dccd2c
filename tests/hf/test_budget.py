"""Budgets: one number for each head, whichever way they were written down."""

import json
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tailbound.hf import Budget

DESIGN = {"default": 0.01, "layers": {"0": 0.05}, "heads": {"3.7": 0.0}}

masses = st.floats(0, 1, exclude_max=True)
budgets = st.builds(
    Budget,
    masses,
    st.dictionaries(st.integers(0, 4), masses, max_size=3),
    st.dictionaries(st.tuples(st.integers(0, 4), st.integers(0, 8)), masses, max_size=4),
)


@given(budgets)
def test_json_reads_back_as_an_equal_budget(budget):
    assert Budget.parse(budget.to_json()) == budget
    assert Budget.parse(json.loads(budget.to_json())) == budget


@given(budgets)
def test_each_head_gets_its_narrowest_entry(budget):
    for layer in range(5):
        expected = [budget.heads.get((layer, head), budget.layers.get(layer, budget.default)) for head in range(9)]
        served = budget.of(layer, 9)
        assert np.broadcast_to(np.asarray(served), 9).tolist() == expected
        assert isinstance(served, float) == (len(set(expected)) == 1)
        assert budget.of(layer, 9) is served
        places = np.full(9, layer), np.arange(9)
        assert budget.limits(*places).tolist() == expected


def test_a_tensor_is_float64_with_one_entry_a_head():
    served = Budget.parse(DESIGN).of(3, 9)
    assert served.dtype is torch.float64
    assert served.shape == (9,)


def test_every_form_is_read(tmp_path):
    path = tmp_path / "budget.json"
    path.write_text(json.dumps(DESIGN))
    read = Budget.parse(DESIGN)
    assert (
        read == Budget.parse(path) == Budget.parse(str(path)) == Budget.parse(json.dumps(DESIGN)) == Budget.parse(read)
    )
    assert Budget.parse(0) == Budget.parse({"default": 0.0}) == Budget(0.0)
    assert str(Budget(0.02)) == "epsilon=0.02"
    assert str(read) == 'epsilon={"default": 0.01, "layers": {"0": 0.05}, "heads": {"3.7": 0.0}}'


def test_entries_are_copied():
    layers = {0: 0.05}
    budget = Budget(0.01, layers)
    layers[0] = 0.5
    assert budget.of(0, 2) == 0.05


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (2, r"epsilon=2 is out of range; .*\[0, 1\), or a budget by layer and head"),
        (float("nan"), "epsilon=nan is out of range"),
        (True, "epsilon=True is not a number"),
        (None, "epsilon=None is not a number"),
        ([0.1], "is not a number"),
        ({}, "needs a default"),
        ({"layers": {"0": 0.1}}, "needs a default"),
        ({"default": 0.1, "layer": {}}, "a budget has no 'layer'; it has default, layers and heads"),
        ({"default": "0.1"}, "budget, default: epsilon='0.1' is not a number"),
        ({"default": 1.0}, "budget, default: epsilon=1.0 is out of range"),
        ({"default": 0.1, "layers": {"3": 1.5}}, "budget, layers 3: epsilon=1.5 is out of range"),
        ({"default": 0.1, "layers": {"3": float("nan")}}, "budget, layers 3: epsilon=nan is out of range"),
        ({"default": 0.1, "heads": {"3.7": False}}, "budget, heads 3.7: epsilon=False is not a number"),
        ({"default": 0.1, "layers": [0.1]}, "layers of a budget is an object .* not a list"),
        ({"default": 0.1, "heads": None}, "heads of a budget is an object .* not a NoneType"),
        ({"default": 0.1, "layers": {0: 0.1}}, 'the key 0; a key is the text of a layer, such as "0"'),
        ({"default": 0.1, "layers": {"00": 0.1}}, "the key '00'"),
        ({"default": 0.1, "layers": {"-1": 0.1}}, "the key '-1'"),
        ({"default": 0.1, "heads": {"3": 0.1}}, r"the key '3'; a key is the text of layer.head, such as \"3.7\""),
        ({"default": 0.1, "heads": {"3.7.1": 0.1}}, r"the key '3\.7\.1'"),
        ('{"default": 0.1, "default": 0.2}', '"default" is given twice'),
        ('{"default": 0.1, "heads": {"0.1": 0.1, "0.1": 0.2}}', r'"0\.1" is given twice'),
        ('{"default": NaN}', "epsilon=nan is out of range"),
        ('{"default": 0.1', "Expecting ',' delimiter"),
    ],
)
def test_what_is_wrong_is_named(source, words):
    with pytest.raises(ValueError, match=words):
        Budget.parse(source)


def test_a_file_is_named_with_its_mistake(tmp_path):
    path = tmp_path / "budget.json"
    path.write_text("[0.1]")
    with pytest.raises(
        ValueError, match=re.escape(str(path)) + ": a budget in JSON is an object such as .* not a list"
    ):
        Budget.parse(path)
    with pytest.raises(FileNotFoundError) as caught:
        Budget.parse("0.01")
    assert "pass a number as a number" in caught.value.__notes__[0]


def test_a_head_that_is_not_there_is_named_when_its_layer_is_met():
    budget = Budget.parse(DESIGN)
    assert budget.of(2, 4) == 0.01
    with pytest.raises(ValueError, match=r'names heads "3.7", but layer 3 has query heads 0 to 3'):
        budget.of(3, 4)


def test_a_layer_that_is_not_there_is_named():
    Budget.parse(DESIGN).check_layers(range(4))
    with pytest.raises(ValueError, match=r"names layers \[3\], which are not there; there are layers 0 to 2"):
        Budget.parse(DESIGN).check_layers(range(3))


@pytest.mark.parametrize(("layers", "heads"), [({-1: 0.1}, {}), ({True: 0.1}, {}), ({}, {(0, 1.0): 0.1})])
def test_layers_and_heads_are_integers_from_zero(layers, heads):
    with pytest.raises(ValueError, match="layers and heads are integers from 0"):
        Budget(0.1, layers, heads)
