"""certify() on real transformers code: a small random Llama, so that every path is quick to reach."""

import copy
import logging

import pytest
import torch
from transformers import BertConfig, BertModel

import tailbound
from llamas import generate, llama, prompt
from tailbound import Certificate, Status
from tailbound.hf import CertificateError, interface


@pytest.fixture(scope="module")
def model():
    return llama()


def test_epsilon_zero_writes_what_dense_attention_writes(model):
    ids = prompt()
    with tailbound.hf.certify(model, epsilon=0.0) as ledger:
        written = generate(model, ids)
    assert torch.equal(written, generate(model, ids))
    assert ledger.statuses()[Status.DENSE] == len(ledger) == 3 * 8 * 11  # the first token comes out of the prefill


def test_prefill_is_exact_and_named(model):
    with tailbound.hf.certify(model) as ledger:
        certified = model(prompt()).logits
    assert torch.equal(certified, model(prompt()).logits)
    assert len(ledger) == 0
    assert dict(ledger.exact) == {(layer, "more than 16 queries (prefill)"): 1 for layer in range(3)}


def test_short_calls_without_a_cache_are_causal(model):
    ids = prompt(length=10)
    with tailbound.hf.certify(model, epsilon=0.0) as ledger:
        certified = model(ids).logits
    torch.testing.assert_close(certified, model(ids).logits, rtol=1e-3, atol=1e-4)
    first = ledger.rows()[:10]  # layer 0, head 0
    assert first["query"].tolist() == list(range(10))
    assert first["visible"].tolist() == first["kept"].tolist() == list(range(1, 11))


def test_several_queries_on_a_cache_see_the_past_and_not_the_future(model):
    ids = prompt(length=40)
    plain = model(ids).logits[:, -6:]
    with tailbound.hf.certify(model, epsilon=0.0) as ledger:
        cache = model(ids[:, :-6]).past_key_values
        certified = model(ids[:, -6:], past_key_values=cache).logits
    torch.testing.assert_close(certified, plain, rtol=1e-3, atol=1e-4)
    assert ledger.rows()["visible"][:6].tolist() == list(range(35, 41))


def test_layers_have_budgets_of_their_own(model, tmp_path):
    path = tmp_path / "budget.json"
    path.write_text('{"default": 0.2, "layers": {"1": 0.0}}')
    with tailbound.hf.certify(model, epsilon=path) as ledger:
        generate(model, prompt())
    ledger.assert_within(path)
    assert [layer.dense_share == 1 for layer in ledger.by_layer()] == [False, True, False]


def test_a_budget_for_a_layer_or_head_that_is_not_there_is_refused(model):
    with (
        pytest.raises(ValueError, match=r"names layers \[3\]"),
        tailbound.hf.certify(model, {"default": 0.1, "layers": {"3": 0}}),
    ):
        pass
    with (
        tailbound.hf.certify(model, {"default": 0.1, "heads": {"2.8": 0.0}}),
        pytest.raises(ValueError, match="query heads 0 to 7"),
    ):
        generate(model, prompt())


def test_a_ledger_can_be_passed_and_filled_on(model):
    ledger = tailbound.hf.Ledger(last=10)
    for _ in range(2):
        with tailbound.hf.certify(model, epsilon=0.1, record=ledger) as yielded:
            generate(model, prompt())
    assert yielded is ledger
    assert (len(ledger), ledger.rows().size) == (2 * 3 * 8 * 11, 10)


def test_recording_off_keeps_no_entries(model):
    with tailbound.hf.certify(model, epsilon=0.1, record=False) as ledger:
        generate(model, prompt())
    assert len(ledger) == ledger.rows().size == 0
    assert ledger.exact


def test_dropout_is_served_exactly_and_named():
    model = llama(attention_dropout=0.5).train()
    with tailbound.hf.certify(model) as ledger:
        model(prompt(length=8))
    assert len(ledger) == 0
    assert (0, "dropout: call model.eval()") in ledger.exact


def test_outside_certify_the_name_is_exact_and_warns_once(monkeypatch, caplog):
    monkeypatch.setattr(interface, "_said", set())
    tailbound.hf.install()
    model = llama()
    plain = generate(model, prompt())
    model.set_attn_implementation("tailbound")
    with caplog.at_level(logging.WARNING, logger="tailbound"):
        assert torch.equal(generate(model, prompt()), plain)
    assert len(caplog.records) == 1
    assert "tailbound.hf.certify" in caplog.text


def test_what_cannot_be_certified_is_refused_in_words(model):
    with (
        pytest.raises(TypeError, match="takes a transformers PreTrainedModel, not a Linear"),
        tailbound.hf.certify(torch.nn.Linear(1, 1)),
    ):
        pass
    with pytest.raises(ValueError, match=r"epsilon=2.*\[0, 1\)"), tailbound.hf.certify(model, epsilon=2):
        pass
    assert model.config._attn_implementation != "tailbound"


def test_assert_within_names_the_worst_row(model):
    with tailbound.hf.certify(model, epsilon=0.2) as ledger:
        generate(model, prompt())
    with pytest.raises(
        CertificateError,
        match=r"exceed epsilon=0.001; .* at layer \d, step \d+, batch 0, head \d, query 0: CERTIFIED.*certify",
    ):
        ledger.assert_within(0.001)


def test_gradients_reach_the_weights_through_certified_attention():
    model = llama()
    with tailbound.hf.certify(model, epsilon=0.1):
        model(prompt(length=12)).logits.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@torch.no_grad()
def test_a_cache_copied_before_certified_decoding_is_not_changed_by_it(model):
    cache = model(prompt()).past_key_values
    copied = copy.deepcopy(cache)
    with tailbound.hf.certify(model, epsilon=0.1):
        model(prompt(length=1), past_key_values=cache)
    assert cache.get_seq_length() == copied.get_seq_length() + 1
    assert torch.equal(cache.layers[0].keys[:, :, :-1], copied.layers[0].keys)


def test_an_encoder_without_layer_numbers_is_answered_exactly_or_certified_never_silently():
    torch.manual_seed(0)
    model = BertModel(
        BertConfig(hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=50)
    ).eval()
    ids = torch.randint(0, 50, (1, 12))
    plain = model(ids).last_hidden_state
    with tailbound.hf.certify(model, epsilon=0.0) as ledger:
        certified = model(ids).last_hidden_state
    torch.testing.assert_close(certified, plain, rtol=1e-4, atol=1e-5)
    assert len(ledger) == 2 * 4 * 12 or sum(ledger.exact.values()) == 2


def test_the_ledger_keeps_every_row_across_chunks(monkeypatch):
    monkeypatch.setattr("tailbound.hf.ledger.CHUNK_ROWS", 7)
    ledger = tailbound.hf.Ledger()
    for step in range(5):
        tv = torch.arange(4, dtype=torch.float64).reshape(1, 2, 2) + 10 * step
        certificate = Certificate(tv, tv * 2, tv.int(), torch.zeros(1, 2, 2, dtype=torch.uint8))
        ledger.record(step, 3, certificate, torch.tensor(50))
    rows = ledger.rows()
    assert len(ledger) == rows.size == 20
    assert rows["tv"].tolist() == [10.0 * step + i for step in range(5) for i in range(4)]
    assert rows[5].tolist() == (1, 3, 0, 0, 1, 11.0, 22.0, 11, 50, 0)
