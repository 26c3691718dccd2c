"""Certify blocks: what they leave behind (nothing), and how several of them share models and threads."""

import copy
import threading

import pytest
import torch

import tailbound
from llamas import generate, llama, prompt
from tailbound import Status
from tailbound.hf import interface

TIGHT = 1e-6


def everything(model):
    """All that a block could leave changed: attributes, hooks, functions and configurations of every module."""
    modules = [{name: copy.copy(held) for name, held in vars(module).items()} for module in model.modules()]
    return modules, [dict(vars(module.config)) for module in model.modules() if hasattr(module, "config")]


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("failing", [False, True], ids=["as planned", "after an exception"])
def test_a_model_is_exactly_itself_afterwards(implementation, failing):
    model = llama(attn_implementation=implementation)
    before, plain = everything(model), model(prompt()).logits
    written = generate(model, prompt())

    def inside():
        with tailbound.hf.certify(model, epsilon=0.3):
            generate(model, prompt())
            assert model.config._attn_implementation == "tailbound"
            if failing:
                raise RuntimeError("on purpose")

    if failing:
        with pytest.raises(RuntimeError, match="on purpose"):
            inside()
    else:
        inside()
    assert everything(model) == before
    assert torch.equal(model(prompt()).logits, plain)
    assert torch.equal(generate(model, prompt()), written)
    assert all(interface.session_of(module) is None for module in model.modules())


def test_a_model_that_cannot_be_switched_is_restored(monkeypatch):
    model = llama()
    before = everything(model)
    monkeypatch.setattr(type(model), "set_attn_implementation", lambda self, name: None)
    with pytest.raises(ValueError, match="stays on 'sdpa'"), tailbound.hf.certify(model):
        pass
    monkeypatch.undo()
    assert everything(model) == before


def in_threads(*tasks):
    """Run tasks at once; returns their results, or raises what one of them raised."""
    results, errors = [None] * len(tasks), []

    def work(place, task):
        try:
            results[place] = task()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=pair) for pair in enumerate(tasks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def test_two_models_with_two_budgets_in_two_threads_do_not_mix():
    budgets = (0.0, 0.3)

    def task(seed):
        def work():
            model = llama(seed)
            with tailbound.hf.certify(model, epsilon=budgets[seed]) as ledger:
                generate(model, prompt(), count=20)
            return ledger

        return work

    dense, sparse = in_threads(task(0), task(1))
    assert len(dense) == len(sparse) == 3 * 8 * 19
    assert dense.statuses()[Status.DENSE] == len(dense)
    sparse.assert_within(0.3)
    assert sparse.statuses()[Status.CERTIFIED] > 0


def test_one_model_in_two_threads_under_one_block():
    model = llama()
    plain = [generate(model, prompt(seed=seed), count=30) for seed in (1, 2)]
    with tailbound.hf.certify(model, epsilon=TIGHT) as ledger:
        written = in_threads(*(lambda seed=seed: generate(model, prompt(seed=seed), count=30) for seed in (1, 2)))
    assert all(torch.equal(a, b) for a, b in zip(written, plain, strict=True))
    assert len(ledger) == 2 * 3 * 8 * 29


def test_overlapping_blocks_on_one_model_keep_their_budgets_and_the_last_one_out_restores():
    model = llama()
    before = everything(model)
    first_in, second_in, first_out = (threading.Event() for _ in range(3))

    def first():
        with tailbound.hf.certify(model, epsilon=0.0) as ledger:
            first_in.set()
            assert second_in.wait(60)
            generate(model, prompt())
        first_out.set()
        return ledger

    def second():
        assert first_in.wait(60)
        with tailbound.hf.certify(model, epsilon=0.3) as ledger:
            second_in.set()
            generate(model, prompt())
            assert first_out.wait(60)
            generate(model, prompt())
        return ledger

    dense, sparse = in_threads(first, second)
    assert everything(model) == before
    assert dense.statuses()[Status.DENSE] == len(dense) == 3 * 8 * 11
    assert len(sparse) == 2 * 3 * 8 * 11
    assert sparse.statuses()[Status.CERTIFIED] > 0


def test_a_block_serves_threads_that_entered_none():
    model = llama()
    with tailbound.hf.certify(model, epsilon=0.1) as ledger:
        in_threads(lambda: generate(model, prompt()))
    assert len(ledger) == 3 * 8 * 11


def test_contexts_nest_and_the_inner_budget_holds_inside():
    model, ids = llama(), prompt()
    with tailbound.hf.certify(model, epsilon=0.3) as outer:
        with tailbound.hf.certify(model.model, epsilon=0.0) as inner:
            generate(model, ids)
        assert model.config._attn_implementation == "tailbound"
        generate(model, ids)
    assert model.config._attn_implementation == "sdpa"
    assert inner.statuses()[Status.CERTIFIED] == 0
    assert outer.statuses()[Status.CERTIFIED] > 0
    assert len(inner) == len(outer)


def test_a_model_can_be_dropped_after_a_block():
    import gc
    import weakref

    model = llama()
    with tailbound.hf.certify(model, epsilon=0.1):
        model(prompt())
    gone = weakref.ref(model.model.layers[0].self_attn)
    del model
    gc.collect()
    assert gone() is None
