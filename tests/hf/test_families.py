"""The family matrix: each family's own code on its own small model, against eager attention and against float64."""

import copy
from collections import Counter
from pathlib import Path

import pytest
import torch

import tailbound
from families import DECODING, ENCODERS, NAMED, PROMPT, inputs, model_of, table, write
from tailbound import Status

pytestmark = pytest.mark.filterwarnings("ignore")
GROWTHS = 270
"""Tokens after which the index of a prompt has grown twice."""


def float64_truth(o):
    """Unread mass (B, Hq, T), |output - exact| and the logits' standard deviation, from what was passed alone."""
    batch, heads, queries, _ = o.query.shape
    group = heads // o.key.shape[1]
    key, value = (x.double().repeat_interleave(group, 1) for x in (o.key, o.value))
    logits = o.query.double() @ key.mT * o.scale
    if o.softcap is not None:
        logits = o.softcap * torch.tanh(logits / o.softcap)
    if o.attn_mask is not None:
        if o.attn_mask.dtype is torch.bool:
            logits = logits.masked_fill(~o.attn_mask, -torch.inf)
        else:
            logits = logits + o.attn_mask.double()
    seen = logits > torch.finfo(torch.float32).min
    logits = logits.masked_fill(~seen, -torch.inf)
    every = logits
    if o.sink is not None:
        every = torch.cat([logits, o.sink.double()[None, :, None, None].expand(batch, heads, queries, 1)], -1)
    weights = every.softmax(-1)[..., : key.shape[2]]
    mass = weights.masked_fill(o.answer.kept, 0.0).sum(-1)
    away = (o.answer.output.double() - weights @ value).norm(dim=-1)
    spread = torch.stack([row[held].std() for row, held in zip(logits.flatten(0, 2), seen.flatten(0, 2), strict=True)])
    return mass, away, spread.mean()


def certified(model, read, count, epsilon, **options):
    """Tokens and logits under certificates, each of them checked on the way; and the spread of logits by layer."""
    spreads = {}

    def check(o):
        mass, away, spread = float64_truth(o)
        tv, error, _, _ = o.answer.certificate
        assert (tv * (1 + 1e-9) + 1e-300 >= mass).all()
        assert (error * (1 + 1e-9) + 1e-300 >= away).all()
        spreads.setdefault(o.layer, []).append(float(spread))

    with tailbound.hf.certify(model, epsilon, observe=check, **options) as ledger:
        tokens, logits = write(model, read, count)
    ledger.assert_within(epsilon)
    return tokens, logits, ledger, {layer: sum(found) / len(found) for layer, found in spreads.items()}


@pytest.mark.parametrize("name", DECODING)
def test_every_certificate_holds_and_most_rows_leave_keys_out(name):
    _, _, ledger, spreads = certified(model_of(name), inputs(name), 12, 0.05)
    assert min(spreads.values()) >= 3, spreads  # flat attention proves nothing
    statuses = ledger.statuses()
    assert statuses[Status.CERTIFIED] >= len(ledger) / 2, statuses
    assert all("prefill" in reason for _, reason in ledger.exact), ledger.exact


@pytest.mark.parametrize("name", DECODING)
def test_small_budgets_write_what_eager_attention_writes(name):
    """Tokens are the same; logits are as near to float64 as those of eager attention, give or take a factor of 4.

    Eager attention takes its softmax in float32, where a padded query's row has no finite logit left of float64: the
    entry without padding is compared.
    """
    model, read = model_of(name), inputs(name)
    growths = GROWTHS if NAMED[name].native else 24
    tokens, logits = write(model, read, growths)
    wide, alone = copy.deepcopy(model).double(), {k: v[1:] for k, v in read.items()}
    wide.config._experts_implementation = "eager"  # the grouped kernel has no float64
    right, exact = write(wide, {k: v.double() if v.is_floating_point() else v for k, v in alone.items()}, 24)
    assert torch.equal(right, tokens[1:, :24])
    allowed = 4 * (logits[1:, :24].double() - exact).abs().max()
    for epsilon, count in ((1e-6, growths), (0.0, 24)):
        with tailbound.hf.certify(model, epsilon) as ledger:
            ours, found = write(model, read, count)
        assert torch.equal(ours, tokens[:, :count])
        # What is left out moves the logits too, by as much as the rest of the model makes of it.
        assert (found[1:, :24].double() - exact).abs().max() <= allowed + 100 * epsilon * exact.abs().max()
        ledger.assert_within(epsilon)
        assert len(ledger) > 0


@pytest.mark.parametrize("name", DECODING)
def test_certificates_hold_in_bfloat16(name):
    model = copy.deepcopy(model_of(name)).bfloat16()
    read = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs(name).items()}
    _, _, ledger, _ = certified(model, read, 4, 0.05)
    assert ledger.statuses()[Status.NONFINITE] == 0
    assert ledger.statuses()[Status.CERTIFIED] >= len(ledger) / 2


@pytest.mark.parametrize("name", ["Mistral", "Gemma 2", "Gemma 3", "gpt-oss"])
def test_a_window_moves_on_as_eager_attention_has_it(name):
    """From before the first key is left behind to well after it."""
    model, read = model_of(name), inputs(name, length=280)
    tokens, _ = write(model, read, 60)
    assert torch.equal(certified(model, read, 60, 1e-6)[0], tokens)


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen3", "Gemma 2", "Phi-3", "GPT-2"])
def test_guesses_that_are_taken_back_change_nothing(name):
    """Assisted generation by prompt lookup: several queries at a time, and a crop after each."""
    model = model_of(name)
    read = {k: v[1:] for k, v in inputs(name).items()}
    tokens, _ = write(model, read, 40)
    with tailbound.hf.certify(model, 1e-6) as ledger:
        guessed, _ = write(model, read, 40, prompt_lookup_num_tokens=4)
    assert torch.equal(guessed, tokens)
    assert max(ledger.rows()["query"]) > 0


def test_latents_are_answered_exactly_and_named():
    model, read = model_of("DeepSeek-V3"), inputs("DeepSeek-V3")
    tokens, _ = write(model, read, 8)
    with tailbound.hf.certify(model, 0.05) as ledger:
        assert torch.equal(write(model, read, 8)[0], tokens)
    assert len(ledger) == 0
    reasons = Counter(reason for _, reason in ledger.exact)
    assert any("made anew" in reason for reason in reasons), reasons


def test_a_model_that_never_calls_us_is_refused_and_left_as_it_was():
    model = NAMED["Falcon"].build()
    before = model.config._attn_implementation
    with pytest.raises(ValueError, match="does not call the attention interface"), tailbound.hf.certify(model):
        pass
    assert model.config._attn_implementation == before


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_are_exact_unless_they_are_studied(name):
    model, read = model_of(name), {k: v[1:] for k, v in inputs(name).items()}
    with torch.no_grad():
        eager = model(**read)[0]
        with tailbound.hf.certify(model, 0.05) as ledger:
            plain = model(**read)[0]
        assert len(ledger) == 0
        assert ledger.exact
        torch.testing.assert_close(plain, eager, rtol=1e-4, atol=1e-3)
        with tailbound.hf.certify(model, 1e-7, study=True) as ledger:
            studied = model(**read)[0]
        torch.testing.assert_close(studied, eager, rtol=1e-4, atol=1e-3)
        assert not ledger.exact
        seen = []

        def check(o):
            mass, away, _ = float64_truth(o)
            assert (o.answer.certificate.tv * (1 + 1e-9) + 1e-300 >= mass).all()
            assert (o.answer.certificate.output_error * (1 + 1e-9) + 1e-300 >= away).all()
            seen.append(o.layer)

        with tailbound.hf.certify(model, 0.05, observe=check, study=True) as ledger:
            model(**read)
    assert sorted(set(seen)) == [0, 1]
    assert ledger.statuses()[Status.CERTIFIED] >= len(ledger) / 2


def test_a_prefill_can_be_studied():
    model, read = model_of("Llama"), {k: v[1:, -200:] for k, v in inputs("Llama").items()}
    with torch.no_grad(), tailbound.hf.certify(model, 0.05, study=True) as ledger:
        model(**read)
    assert len(ledger) == 2 * 4 * 200  # layers, heads, queries
    ledger.assert_within(0.05)


def test_weights_that_are_not_there_are_refused():
    """No attention function but eager's returns weights: transformers must not hand out None for them."""
    model, read = model_of("Llama"), inputs("Llama")
    with tailbound.hf.certify(model, 0.05), pytest.raises(ValueError, match="output_attentions"):
        model(**read, output_attentions=True)


def test_dropout_is_exact_and_says_what_to_do():
    model = copy.deepcopy(model_of("Llama"))
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.1
    model.train()
    read = inputs("Llama")
    with torch.no_grad(), tailbound.hf.certify(model, 0.05) as ledger:
        cache = model(**read).past_key_values
        model(input_ids=read["input_ids"][:, -1:], past_key_values=cache)
    assert len(ledger) == 0
    assert any("dropout: call model.eval()" in reason for _, reason in ledger.exact)


def test_gradient_checkpointing_trains_as_without_us():
    gradients = []
    for ours in (False, True):
        model = copy.deepcopy(model_of("Llama"))
        model.set_attn_implementation("sdpa")
        model.gradient_checkpointing_enable()
        model.train()
        ids = inputs("Llama")["input_ids"][1:, :64]
        if ours:
            with tailbound.hf.certify(model, 0.05) as ledger:
                model(input_ids=ids, labels=ids).loss.backward()
            assert len(ledger) == 0
            assert ledger.exact
        else:
            model(input_ids=ids, labels=ids).loss.backward()
        gradients.append(model.model.layers[0].self_attn.q_proj.weight.grad)
    torch.testing.assert_close(*gradients)


def test_prompts_are_longer_than_windows_and_indexes_grow():
    assert PROMPT > 300
    model, read = model_of("Llama"), inputs("Llama")
    with tailbound.hf.certify(model, 0.05):
        cache = model.generate(
            **read, max_new_tokens=GROWTHS, do_sample=False, return_dict_in_generate=True
        ).past_key_values
    assert len(cache.layers[0].index) > 960


def test_the_page_shows_this_matrix():
    assert table() in (Path(__file__).parents[2] / "docs/models.md").read_text(), "run `python -m tests.families`"
