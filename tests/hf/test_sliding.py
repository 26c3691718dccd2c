"""Sliding-window layers beside transformers' own: the same tensors, lengths and refusals at every call."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache, DynamicSlidingWindowLayer

from tailbound.hf import CertifiedSlidingLayer
from tailbound.hf.cache import certify_layers
from tailbound.hf.layer import index_of

WINDOW = 20


def states(length, batch=2, seed=0, dtype=torch.float32):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, 2, length, 16, generator=made).to(dtype)


def pair(*lengths, window=WINDOW):
    """A stock and a certified layer that were filled alike."""
    layers = DynamicSlidingWindowLayer(sliding_window=window), CertifiedSlidingLayer(sliding_window=window)
    for seed, length in enumerate(lengths):
        for layer in layers:
            layer.update(*states(length, seed=seed))
    return layers


def same(stock, certified):
    assert certified.get_seq_length() == stock.get_seq_length()
    assert certified.cumulative_length == stock.cumulative_length
    assert certified.get_max_length() == stock.get_max_length()
    assert certified.is_sliding
    for queries in (1, 5):
        assert certified.get_mask_sizes(queries) == stock.get_mask_sizes(queries)
    if stock.keys is None:
        assert certified.keys is None
    elif stock.keys.numel() or certified.keys.numel():
        assert torch.equal(certified.keys, stock.keys)
        assert torch.equal(certified.values, stock.values)
    return True


def crop(layer, size):
    """What the call returned, or what it raised."""
    try:
        return layer.crop(size)
    except (RuntimeError, ValueError) as error:
        return type(error), str(error)


CHANGES = st.one_of(
    st.tuples(st.just("update"), st.sampled_from([1, 1, 1, 2, 7, WINDOW - 1, WINDOW, 45])),
    st.tuples(st.just("crop"), st.sampled_from([0, -1, -3, -WINDOW, 2])),
    st.tuples(st.sampled_from(["record", "forget the past", "reorder", "copy", "reset", "repeat"]), st.just(0)),
)


@given(st.lists(CHANGES, max_size=25))
def test_whatever_happens_it_is_what_a_stock_layer_is(changes):
    stock, certified = pair()
    for seed, (change, size) in enumerate(changes):
        if stock.keys is None and change in ("crop", "reorder", "repeat", "copy"):
            continue
        if change == "update":
            batch = 2 if stock.keys is None or stock.keys.ndim < 4 else stock.keys.shape[0]
            new = states(size, batch, seed)
            theirs, ours = stock.update(*new), certified.update(*new)
            assert torch.equal(ours[0], theirs[0])
            assert torch.equal(ours[1], theirs[1])
            index = index_of(*ours)
            assert index is None or len(index) == theirs[0].shape[2]
            if size < WINDOW and not stock.record_past and stock.cumulative_length > size:
                assert index is not None
        elif change == "crop":
            assert crop(stock, size) == crop(certified, size)
        elif change == "copy":
            certified = copy.deepcopy(certified)
        else:
            batch = 0 if stock.keys is None else stock.keys.shape[0]
            for layer in (stock, certified):
                if change in ("record", "forget the past"):
                    layer.record_past = change == "record"
                elif change == "reset":
                    layer.reset()
                elif change == "repeat":
                    layer.batch_repeat_interleave(2 if batch < 4 else 1)
                else:
                    layer.reorder_cache(torch.arange(batch).flip(0))
        assert same(stock, certified)


@pytest.mark.parametrize("prompt", [WINDOW - 2, WINDOW - 1, WINDOW, WINDOW + 1, 700])
def test_decoding_across_the_border_is_served_from_the_index(prompt):
    stock, certified = pair(prompt)
    for step in range(60):
        theirs, (key, value) = (layer.update(*states(1, seed=100 + step)) for layer in (stock, certified))
        assert torch.equal(key, theirs[0])
        assert same(stock, certified)
        assert (index := index_of(key, value)) is not None
        assert len(index) == key.shape[2] == min(WINDOW, prompt + step + 1)


def test_memory_stays_that_of_the_window():
    _, certified = pair(5000, window=512)
    for step in range(2000):
        certified.update(*states(1, seed=step))
    assert certified.index._store.capacity < 2 * 512


@pytest.mark.parametrize("filled", [0, 5, WINDOW, 300])
def test_a_stock_layer_is_taken_over_with_what_it_holds(filled):
    cache, beside = DynamicCache(), DynamicSlidingWindowLayer(sliding_window=WINDOW)
    cache.layers.append(DynamicSlidingWindowLayer(sliding_window=WINDOW))
    for layer in (cache.layers[0], beside):
        layer.activate_past_recording()
        if filled:
            layer.update(*states(filled))
    certify_layers(cache)
    certified = cache.layers[0]
    assert type(certified) is CertifiedSlidingLayer
    assert certified.record_past
    assert same(beside, certified)
    for layer in (beside, certified):
        layer.update(*states(1, seed=1))
    assert same(beside, certified)


def test_a_cache_that_moved_on_does_not_answer_for_what_it_returned():
    _, certified = pair(30)
    returned = certified.update(*states(1, seed=5))
    certified.update(*states(1, seed=6))
    assert index_of(*returned) is None


def test_float64_and_history_are_held_as_the_stock_layer_holds_them():
    stock, certified = pair()
    for layer in (stock, certified):
        layer.update(*states(30, dtype=torch.float64))
    assert certified.index is None
    assert same(stock, certified)
    stock, certified = pair(30)
    key, value = (x.requires_grad_() for x in states(4, seed=3))
    for layer in (stock, certified):
        layer.update(key, value)[0].sum().backward()
    assert torch.equal(key.grad, torch.full_like(key, 2.0))
    with torch.no_grad():
        theirs, ours = (layer.update(*states(1, seed=4)) for layer in (stock, certified))
    assert torch.equal(ours[0], theirs[0])
    assert index_of(*ours) is not None
    assert same(stock, certified)
