"""The pieces of an audit: policies, runs of the last positions, the damage of errors, the choice of a budget."""

import itertools

import numpy as np
import pytest
import torch

from families import NAMED
from tailbound.hf import Budget
from tailbound.lab import models, text, truth
from tailbound.lab.audit import advise, columns, policies, reading, sensitivity, verifying
from tailbound.lab.errors import InputError


@pytest.fixture(scope="module")
def smollm():
    return models.Source("smollm2").model()


@pytest.fixture(scope="module")
def tokens():
    tokenizer = models.Source("smollm2").tokenizer()
    return text.first_tokens(tokenizer, text.read_prose(None)[1], 512, "prose")


@pytest.mark.parametrize("name", ["Llama", "Gemma 2", "gpt-oss", "Mistral"])
def test_policies_answer_and_count_what_they_read(name):
    """Softcaps, sinks and windows too: each policy's output is that of the kept keys, and its error the mass left."""
    model = NAMED[name].build()
    ids = torch.randint(3, model.config.vocab_size, (1, 400), generator=torch.Generator().manual_seed(0))
    read = reading.Decoder(model, ids, 8)
    epsilon, share = 0.05, 0.3
    heaviest: dict[int, torch.Tensor] = {}

    def look(heard):
        exact = reading.exact(heard)
        seen = heard.seen()
        keys = heard.key.shape[2]  # a layer with a window holds no more
        visible = torch.ones(8, keys, dtype=torch.bool) if seen is None else seen.expand(1, 1, 8, keys)[0, 0]
        for policy in (
            policies.Certified(epsilon),
            policies.TopMass(epsilon),
            policies.TopK(share),
            policies.Recent(share),
            policies.Pages(share),
        ):
            output, kept = policy.answer(heard)
            assert not (kept & ~visible).any()
            found = truth.judge(
                heard.query, heard.key, heard.value, seen, heard.scale, kept, output, heard.softcap, heard.sink
            )
            again = truth.judge(
                heard.query, heard.key, heard.value, seen, heard.scale, kept, exact, heard.softcap, heard.sink
            )
            assert again.output_error.max() < 1e-4
            if isinstance(policy, policies.TopMass):
                heaviest[heard.layer] = kept
                assert found.tv.max() <= epsilon
            if isinstance(policy, policies.Certified):
                assert found.tv.max() <= policy.tv_max <= epsilon
            if isinstance(policy, policies.TopK | policies.Recent):
                asked = (share * visible.sum(-1)).round().clamp(min=5)
                assert (kept.sum(-1)[0] <= asked).all()
        return exact

    with torch.no_grad():
        read.answer(look)
    assert sorted(heaviest) == list(range(read.layers))
    assert read.errors(policies.Certified(0.0)).tv.max() < 1e-4
    assert read.errors(reading.exact).tv.max() == 0


def test_a_run_of_the_last_positions_is_a_run_step_by_step(smollm, tokens):
    """Truncating them together gives what decoding under `certify` gives one by one."""
    read = reading.Decoder(smollm, tokens[:, :300], 12)
    together = read.errors(policies.Certified(0.05))
    [(singly, _, fallbacks)] = verifying.steps(read, [Budget(0.05)], lambda: None)
    assert fallbacks == 0
    # Intervals of a page that the text has not filled yet differ, and so do a few kept keys.
    np.testing.assert_allclose(together.tv, singly.tv, atol=0.02)
    assert float(together.tv.mean()) == pytest.approx(float(singly.tv.mean()), rel=0.25)


def test_damage_is_the_kl_that_small_errors_do(smollm, tokens):
    """Second order: random small changes of all heads' outputs do the KL that gradients predict."""
    read = reading.Decoder(smollm, tokens[:, :96], 24)
    gradients = sensitivity.gradients(read, 24, 0, lambda: None)
    generator = torch.Generator().manual_seed(1)
    predicted, measured = [], []
    for _ in range(4):
        moved: dict[int, torch.Tensor] = {}

        def move(heard, moved=moved):
            output = reading.exact(heard)
            moved[heard.layer] = 3e-3 * output.std() * torch.randn(output.shape, generator=generator)
            return output + moved[heard.layer]

        measured.append(float(read.errors(move).kl.sum()))
        predicted.append(
            sum(
                float(0.5 * (gradients[layer] * delta[0]).sum(-1).square().mean(0).sum())
                for layer, delta in moved.items()
            )
        )
    assert np.mean(predicted) == pytest.approx(np.mean(measured), rel=0.35)


def test_a_budget_within_a_damage_is_the_best_there_is():
    """Against every budget of a small table: at the damage that it comes to, none reads fewer keys."""
    generator = np.random.default_rng(0)
    size = len(columns.GRID)
    keys = np.sort(generator.integers(1, 100, (1, 2, size)), -1)[..., ::-1].astype(float)
    damage = np.sort(generator.random((1, 2, size)), -1)
    damage[..., 0] = 0
    table = advise.Table([5], keys, damage)
    for limit in (0.0, 0.1, 0.5, 0.9, 1.5, 3.0):
        budget, comes_to = table.within(limit)
        assert comes_to <= limit
        at = [columns.GRID.index(epsilon) for epsilon in np.broadcast_to(np.asarray(budget.of(5, 2)), 2)]
        read = sum(keys[0, head, number] for head, number in enumerate(at))
        for other in itertools.product(range(size), repeat=2):
            if sum(damage[0, head, number] for head, number in enumerate(other)) <= comes_to:
                assert sum(keys[0, head, number] for head, number in enumerate(other)) >= read


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("next-token-tv", "give one of"),
        ("speed=2", "give one of"),
        ("kl=zero", "give one of"),
        ("next-token-tv=1.5", "between 0 and 1"),
        ("hidden-distance=0.1", "of a decoder it is"),
    ],
)
def test_targets_that_do_not_fit(asked, words):
    with pytest.raises(InputError, match=words):
        advise.Target.choose(asked, encoder=False)


def test_targets():
    assert advise.Target.choose(None, False) == advise.Target("next-token-tv", 0.01)
    assert advise.Target.choose(None, True) == advise.Target("hidden-distance", 0.05)
    assert advise.Target.choose("agreement=1", False) == advise.Target("agreement", 1.0)
    assert advise.Target.choose("none", False) is None
