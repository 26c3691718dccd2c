"""Generation as people use it, on transformers' own code: each mode beside the stock model and the stock cache."""

import copy

import pytest
import torch
from transformers import DynamicCache, TextStreamer

import tailbound
from llamas import LONG, generate, llama, prompt
from tailbound import Status
from tailbound.hf import CertifiedCache, CertifiedLayer, interface
from tailbound.lab import truth

TIGHT = 1e-6
PREFILL = "more than 16 queries (prefill)"


@pytest.fixture(scope="module")
def model():
    return llama()


def only_prefill_was_exact(ledger):
    return {reason for _, reason in ledger.exact} <= {PREFILL}


class Judge:
    """Recomputes every certificate in float64 from what was observed."""

    def __init__(self):
        self.calls, self.wrong, self.statuses, self.spread = 0, 0, set(), 0.0

    def __call__(self, seen):
        found = truth.judge(
            *(seen.query, seen.key, seen.value, seen.attn_mask, seen.scale),
            *(seen.answer.kept, seen.answer.output, seen.softcap, seen.sink),
        )
        claimed = seen.answer.certificate
        right = (found.tv <= claimed.tv) & (found.output_error <= claimed.output_error)
        self.calls, self.wrong = self.calls + 1, self.wrong + int((~right).sum())
        self.statuses |= set(claimed.status.flatten().tolist())
        key = seen.key.repeat_interleave(seen.query.shape[1] // seen.key.shape[1], 1)
        self.spread = max(self.spread, float((seen.query.double() @ key.double().mT * seen.scale).std(-1).min()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"do_sample": True, "temperature": 0.8, "top_k": 20},
        {"num_beams": 4},
        {"num_beams": 3, "num_return_sequences": 2, "do_sample": True},
        {"prompt_lookup_num_tokens": 4},
        {"num_return_sequences": 3, "do_sample": True},
        {"prefill_chunk_size": 128},
    ],
    ids=["greedy", "sampling", "beams", "sampled beams", "prompt lookup", "several answers", "prefill in chunks"],
)
def test_a_tight_budget_writes_what_dense_attention_writes(model, options):
    torch.manual_seed(3)
    plain = generate(model, prompt(), count=20, **options)
    torch.manual_seed(3)
    judge = Judge()
    with tailbound.hf.certify(model, epsilon=TIGHT, observe=judge) as ledger:
        certified = generate(model, prompt(), count=20, **options)
    assert torch.equal(certified, plain)
    ledger.assert_within(TIGHT)
    assert only_prefill_was_exact(ledger)
    assert judge.wrong == 0
    assert judge.calls > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("epsilon", [0.01, 0.2])
def test_every_certificate_holds_against_float64(dtype, epsilon):
    judge = Judge()
    model = llama().to(dtype)
    with tailbound.hf.certify(model, epsilon=epsilon, observe=judge) as ledger:
        generate(model, prompt(batch=2))
    assert judge.wrong == 0
    assert judge.spread >= 3.0
    assert ledger.statuses()[Status.CERTIFIED] > 0.9 * len(ledger) > 0
    assert max(ledger.rows()["tv"]) > 0.1 * epsilon
    assert only_prefill_was_exact(ledger)


@torch.no_grad()
@pytest.mark.parametrize("queries", [1, 2, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_equal_dense_ones(queries, dtype):
    model, ids = llama().to(dtype), prompt()
    plain = model(ids).logits[:, -queries:]
    with tailbound.hf.certify(model, epsilon=TIGHT) as ledger:
        cache = model(ids[:, :-queries]).past_key_values
        certified = model(ids[:, -queries:], past_key_values=cache).logits
    accuracy = {torch.float32: 1e-3, torch.bfloat16: 0.1}[dtype]
    torch.testing.assert_close(certified, plain, rtol=accuracy, atol=accuracy * float(plain.std()))
    assert ledger.rows()["visible"][:queries].tolist() == list(range(LONG - queries + 1, LONG + 1))
    assert only_prefill_was_exact(ledger)


def test_a_left_padded_batch_equals_its_singles(model):
    lengths = (300, 431, LONG, LONG)
    singles = [prompt(length, seed=length + place) for place, length in enumerate(lengths)]
    padded = torch.stack([torch.nn.functional.pad(ids[0], (LONG - ids.shape[1], 0)) for ids in singles])
    mask = torch.stack([torch.nn.functional.pad(torch.ones_like(i[0]), (LONG - i.shape[1], 0)) for i in singles])
    judge = Judge()
    with tailbound.hf.certify(model, epsilon=TIGHT, observe=judge) as ledger:
        together = generate(model, padded, attention_mask=mask)
        apart = [generate(model, ids) for ids in singles]
    for row, alone in zip(together, apart, strict=True):
        assert row[LONG:].tolist() == alone[0, -12:].tolist()
    rows = ledger.rows()[:32]  # the first call: 4 batch entries of 8 heads
    assert rows["batch"].tolist() == sorted([0, 1, 2, 3] * 8)
    assert rows["visible"][rows["head"] == 0].tolist() == [length + 1 for length in lengths]
    assert judge.wrong == 0
    assert only_prefill_was_exact(ledger)


def test_assisted_generation_verifies_several_tokens_at_once_and_crops(model):
    plain = generate(model, prompt(), count=24)
    assistant = copy.deepcopy(model)
    assistant.model.layers[2].mlp.down_proj.weight.data *= 1.5  # right often, wrong sometimes
    with tailbound.hf.certify(model, epsilon=TIGHT) as ledger:
        certified = generate(model, prompt(), count=24, assistant_model=assistant)
    assert torch.equal(certified, plain)
    assert ledger.rows()["query"].max() > 0
    assert only_prefill_was_exact(ledger)


def test_streaming(model):
    class Words:
        def decode(self, ids, **options):
            return " ".join(map(str, ids))

    class Heard(TextStreamer):
        def __init__(self):
            super().__init__(Words(), skip_prompt=True)
            self.text = ""

        def on_finalized_text(self, text, stream_end=False):
            self.text += text

    heard = Heard()
    with tailbound.hf.certify(model, epsilon=TIGHT):
        written = generate(model, prompt(), streamer=heard)
    assert heard.text.split() == [str(token) for token in written[0, LONG:].tolist()]


@pytest.mark.parametrize("made", ["stock", "certified", "inside"])
def test_question_after_question_on_one_document(model, made):
    document, questions = prompt(), [prompt(9, seed=5), prompt(30, seed=6)]
    plain = [generate(model, torch.cat([document, q], 1))[0, -12:] for q in questions]
    with torch.no_grad():
        cache = CertifiedCache(config=model.config) if made == "certified" else DynamicCache(config=model.config)
        if made != "inside":
            model(document, past_key_values=cache)
    with tailbound.hf.certify(model, epsilon=TIGHT) as ledger:
        if made == "inside":
            with torch.no_grad():
                cache = model(document).past_key_values
        for question, answer in zip(questions, plain, strict=True):
            reused = copy.deepcopy(cache)
            written = generate(model, torch.cat([document, question], 1), past_key_values=reused)
            assert torch.equal(written[0, -12:], answer)
            assert type(reused.layers[0]) is CertifiedLayer
    assert cache.get_seq_length() == LONG
    assert only_prefill_was_exact(ledger)


def test_a_cache_goes_on_after_the_block(model):
    ids = prompt()
    plain = generate(model, ids, count=20)
    cache = DynamicCache(config=model.config)
    with tailbound.hf.certify(model, epsilon=TIGHT):
        half = generate(model, ids, count=10, past_key_values=cache)
    assert torch.equal(generate(model, half, count=10, past_key_values=cache), plain)


def test_generating_twice_gives_the_same(model):
    with tailbound.hf.certify(model, epsilon=0.05):
        assert torch.equal(generate(model, prompt()), generate(model, prompt()))


def test_inference_mode(model):
    plain = generate(model, prompt())
    with torch.inference_mode(), tailbound.hf.certify(model, epsilon=TIGHT) as ledger:
        cache = CertifiedCache(config=model.config)
        assert torch.equal(generate(model, prompt(), past_key_values=cache), plain)
        again = copy.deepcopy(cache)
        model(prompt(1), past_key_values=again)
    assert only_prefill_was_exact(ledger)
    with torch.no_grad():
        model(prompt(1), past_key_values=cache)


@pytest.mark.parametrize("implementation", ["static", "offloaded"])
def test_other_caches_are_answered_exactly_and_named(model, implementation):
    if implementation == "offloaded" and not torch.accelerator.is_available():
        pytest.skip("offloading needs an accelerator")
    plain = generate(model, prompt(40), cache_implementation=implementation)
    with tailbound.hf.certify(model, epsilon=0.1) as ledger:
        assert torch.equal(generate(model, prompt(40), cache_implementation=implementation), plain)
    assert len(ledger) == 0
    assert any("not what a certified cache holds" in reason for _, reason in ledger.exact)


def test_without_a_cache_short_calls_are_answered_exactly_and_named(model):
    with torch.no_grad(), tailbound.hf.certify(model, epsilon=0.1) as ledger:
        certified = model(prompt(10), use_cache=False).logits
    with torch.no_grad():
        assert torch.equal(certified, model(prompt(10), use_cache=False).logits)
    assert {layer for layer, reason in ledger.exact if "no cache" in reason} == {0, 1, 2}


def test_gradients_on_decodes_with_certificates_and_gradients(model):
    model, ids = llama(), prompt(60)
    logits = {}
    for name in ("plain", "certified"):
        model.zero_grad()
        if name == "plain":
            cache = model(ids).past_key_values
            logits[name] = model(ids[:, :1], past_key_values=cache).logits
        else:
            with tailbound.hf.certify(model, epsilon=0.0) as ledger:
                cache = model(ids).past_key_values
                logits[name] = model(ids[:, :1], past_key_values=cache).logits
        logits[name].square().sum().backward()
        logits[name + " gradient"] = model.model.layers[0].self_attn.k_proj.weight.grad.clone()
    torch.testing.assert_close(logits["certified"], logits["plain"], rtol=1e-3, atol=1e-4)
    expected = logits["plain gradient"]
    torch.testing.assert_close(
        logits["certified gradient"], expected, rtol=1e-2, atol=1e-3 * float(expected.abs().max())
    )
    assert len(ledger) == 3 * 8
    assert only_prefill_was_exact(ledger)
    with torch.no_grad(), tailbound.hf.certify(model, epsilon=0.1) as ledger:
        model(ids[:, :1], past_key_values=cache)
    assert cache.layers[0].index is not None
    assert only_prefill_was_exact(ledger)


def test_float64_is_certified_from_the_tensors():
    model = llama().double()
    judge = Judge()
    with tailbound.hf.certify(model, epsilon=0.1, observe=judge) as ledger:
        generate(model, prompt(60), count=4)
    assert judge.calls == 9
    assert judge.wrong == 0
    assert only_prefill_was_exact(ledger)


@torch.no_grad()
def test_a_float_mask_is_taken_literally(model):
    ids = prompt()
    bias = torch.zeros(1, 1, 1, LONG)
    bias[..., :100] = torch.finfo(torch.float32).min
    bias[..., 200:300] = -2.0
    cache = model(ids[:, :-1]).past_key_values
    plain = model(ids[:, -1:], past_key_values=copy.deepcopy(cache), attention_mask=bias).logits
    judge = Judge()
    with tailbound.hf.certify(model, epsilon=TIGHT, observe=judge) as ledger:
        certified = model(ids[:, -1:], past_key_values=cache, attention_mask=bias).logits
    torch.testing.assert_close(certified, plain, rtol=1e-3, atol=1e-4)
    assert set(ledger.rows()["visible"]) == {LONG - 100}
    assert judge.wrong == 0
    assert not ledger.exact


@pytest.fixture(params=["scaled", "sliced", "in place"])
def tampering(request, monkeypatch):
    """From now on, a model that changes keys between its cache and its attention."""

    def start():
        update = CertifiedLayer.update

        def tampered(layer, key_states, value_states, *args, **kwargs):
            key, value = update(layer, key_states, value_states, *args, **kwargs)
            if request.param == "scaled":
                return key * 0.5, value
            if request.param == "sliced":
                return key[:, :, 5:], value[:, :, 5:]
            key[:, :, : LONG // 2].mul_(3.0)
            return key, value

        monkeypatch.setattr(CertifiedLayer, "update", tampered)

    return start


@torch.no_grad()
def test_a_model_that_changes_keys_after_the_cache_is_answered_exactly_and_named(tampering):
    model, ids = llama(), prompt()
    with tailbound.hf.certify(model, epsilon=0.01) as ledger:
        cache = model(ids).past_key_values
        same = copy.deepcopy(cache)
        tampering()
        certified = model(ids[:, :1], past_key_values=cache).logits
    plain = model(ids[:, :1], past_key_values=same).logits
    assert torch.equal(certified, plain)
    assert len(ledger) == 0
    reasons = {reason for _, reason in ledger.exact} - {PREFILL}
    assert len(reasons) == 1
    assert {layer for layer, reason in ledger.exact if reason in reasons} == {0, 1, 2}


@torch.no_grad()
def test_without_the_check_of_what_arrived_certificates_would_be_wrong(tampering, monkeypatch):
    """A control: the index is asked whatever arrives, and the judge, who looks at what arrived, must see it."""
    model, ids, judge = llama(), prompt(), Judge()
    with tailbound.hf.certify(model, epsilon=0.01, observe=judge):
        cache = model(ids).past_key_values
        layers = iter(cache.layers)
        monkeypatch.setattr(interface, "index_of", lambda key, value: next(layers)._index)
        tampering()
        try:
            model(ids[:, :1], past_key_values=cache)
        except RuntimeError as error:  # a kept set that does not even have the length of the keys that arrived
            assert "size" in str(error)  # noqa: PT017
            judge.wrong += 1
    assert judge.wrong > 0
