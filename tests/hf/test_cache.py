"""The cache beside transformers' own: whatever generation does to it, it holds what the stock one holds."""

import copy

import pytest
import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.cache_utils import DynamicIndexedLayer, DynamicSlidingWindowLayer

from llamas import llama, prompt
from tailbound.hf import CertifiedCache, CertifiedLayer
from tailbound.hf.cache import certify_layers
from tailbound.hf.layer import index_of, why_no_index

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def states(length, batch=3, seed=0, dtype=torch.float32):
    made = torch.Generator().manual_seed(seed)
    return torch.randn(2, batch, 2, length, 16, generator=made).to(dtype)


def pair(*lengths, dtype=torch.float32):
    """A stock and a certified cache that were filled alike."""
    caches = DynamicCache(), CertifiedCache()
    for seed, length in enumerate(lengths):
        for cache in caches:
            cache.update(*states(length, seed=seed, dtype=dtype), layer_idx=0)
    return caches


def same(stock, certified):
    assert certified.get_seq_length() == stock.get_seq_length()
    assert certified.get_mask_sizes(3, 0) == stock.get_mask_sizes(3, 0)
    for ours, theirs in zip(certified, stock, strict=True):
        assert torch.equal(ours[0], theirs[0])
        assert torch.equal(ours[1], theirs[1])
    return True


def served(cache, seed=99):
    """The index answers for the next token, with what attention over the stored keys gives."""
    layer = cache.layers[0]
    key, value = layer.update(*states(1, layer.keys.shape[0], seed=seed, dtype=layer.keys.dtype))
    index = index_of(key, value)
    assert index is layer.index is not None
    query = states(1, key.shape[0], seed=seed + 1, dtype=key.dtype)[0]
    answer = index.attend(query, epsilon=1e-6, impl="native")
    exact = torch.softmax(query.double() @ key.double().mT / 4, -1) @ value.double()
    return bool(((answer.output.double() - exact).norm(dim=-1) <= answer.certificate.output_error).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_it_holds_what_was_put_in(dtype):
    stock, certified = pair(300, 1, 1, 7, dtype=dtype)
    assert same(stock, certified)
    assert served(certified)


@pytest.mark.parametrize("change", [-1, -4, 0, -309, -400])
def test_crop_removes_as_many_as_it_says(change):
    stock, certified = pair(300, 1, 8)
    for cache in (stock, certified):
        cache.crop(change)
    assert same(stock, certified)
    assert served(certified)


def test_crop_refuses_a_positive_number_as_transformers_does():
    for cache in pair(20):
        with pytest.raises(ValueError, match="positive value"):
            cache.crop(10)


@pytest.mark.parametrize(
    "change",
    [
        lambda cache: cache.reorder_cache(torch.tensor([2, 0, 0])),
        lambda cache: cache.reorder_cache(torch.tensor([0, 1, 2])),
        lambda cache: cache.reorder_cache(torch.tensor([0, 1])),
        lambda cache: cache.batch_select_indices(torch.tensor([2, 0])),
        lambda cache: cache.batch_select_indices(torch.tensor([-1])),
        lambda cache: cache.batch_select_indices(torch.tensor([True, False, True])),
        lambda cache: cache.batch_repeat_interleave(2),
    ],
    ids=["reorder", "reorder to the same", "reorder fewer", "select", "select the last", "select by mask", "repeat"],
)
def test_batch_changes_follow_the_stock_cache(change):
    stock, certified = pair(300, 1)
    for cache in (stock, certified):
        change(cache)
    assert same(stock, certified)
    assert served(certified)


def test_reset_forgets_and_another_batch_may_follow():
    stock, certified = pair(30)
    for cache in (stock, certified):
        cache.reset()
        assert cache.get_seq_length() == 0
        cache.update(*states(5, batch=2, dtype=torch.bfloat16), layer_idx=0)
    assert same(stock, certified)


def test_copies_are_independent():
    stock, certified = pair(300, 1)
    copied = copy.deepcopy(certified)
    certified.update(*states(4, seed=7), layer_idx=0)
    assert same(stock, copied)
    copied.crop(-100)
    stock.update(*states(4, seed=7), layer_idx=0)
    assert same(stock, certified)
    assert served(certified)
    assert served(copied)


def test_offloading_is_refused_in_words():
    layer = pair(3)[1].layers[0]
    for refused in (layer.offload, layer.prefetch):
        with pytest.raises(NotImplementedError, match=r"cannot be offloaded.*cache_implementation"):
            refused()


def test_a_stock_cache_is_taken_over_in_place_with_what_it_holds():
    cache, same_filling = pair(300)[0], pair(300)[0]
    layers = cache.layers
    certify_layers(cache)
    assert type(cache) is DynamicCache
    assert cache.layers is layers
    assert type(layers[0]) is CertifiedLayer
    assert same(same_filling, cache)
    assert served(cache)
    cache.update(*states(3), layer_idx=1)
    assert type(layers[1]) is CertifiedLayer


def test_of_an_encoder_decoder_cache_both_parts_are_taken_over():
    """Cross attention reads `keys` and `values` of a layer, so those are marked as what `update` returns is."""
    cache = EncoderDecoderCache(pair(3)[0], pair(3)[0])
    certify_layers(cache)
    for part in (cache.self_attention_cache, cache.cross_attention_cache):
        layer = part.layers[0]
        assert type(layer) is CertifiedLayer
        assert index_of(layer.keys, layer.values) is layer.index
        layer.keys.mul_(2)
        assert index_of(layer.keys, layer.values) is None


def test_layers_of_other_kinds_stay_stock():
    cache = DynamicCache()
    cache.layers += [DynamicIndexedLayer(), DynamicSlidingWindowLayer(sliding_window=1)]
    certify_layers(cache)
    assert [type(layer) for layer in cache.layers] == [DynamicIndexedLayer, DynamicSlidingWindowLayer]


@pytest.mark.parametrize("where", [0, 1], ids=["keys", "values"])
@pytest.mark.parametrize(
    "tamper",
    [lambda x: x[:, :, 1:], lambda x: x * 2, lambda x: x.roll(1, 2), lambda x: x[:], lambda x: x.mul_(2)],
    ids=["slice", "scale", "roll", "another view", "in place"],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_tensors_that_a_model_changed_are_not_served(mode, tamper, where):
    with mode():
        layer = pair(300)[1].layers[0]
        returned = list(layer.update(*states(1)))
        assert index_of(*returned) is not None
        returned[where] = tamper(returned[where])
        assert index_of(*returned) is None
        assert ("changed" in why_no_index(*returned)) or ("written to" in why_no_index(*returned))


def test_keys_and_values_that_change_places_are_not_served():
    key, value = pair(300)[1].layers[0].update(*states(1))
    assert index_of(value, key) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.update(*states(1)),
        lambda layer: layer.crop(-1),
        lambda layer: layer.reorder_cache(torch.tensor([1, 0, 2])),
        lambda layer: layer.reset(),
        lambda layer: (layer.crop(-1), layer.update(*states(1))),
    ],
    ids=["update", "crop", "reorder", "reset", "crop and update to the same length"],
)
def test_tensors_from_before_a_change_are_not_served(change):
    layer = pair(300)[1].layers[0]
    returned = layer.update(*states(1))
    change(layer)
    assert index_of(*returned) is None
    assert "changed" in why_no_index(*returned)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("then", [lambda c: c, copy.deepcopy, lambda c: c.reorder_cache(torch.tensor([1, 0, 2])) or c])
def test_what_was_written_into_the_cache_gets_a_new_sketch(mode, then):
    with mode():
        _, certified = pair(300)
        certified.layers[0].keys[:, :, 17] *= 40.0
        assert served(then(certified))


def test_assigned_tensors_are_taken_over():
    stock, certified = pair(300)
    for cache in (stock, certified):
        cache.layers[0].keys = cache.layers[0].keys[:, :, 5:] * 3
        cache.layers[0].values = cache.layers[0].values[:, :, 5:]
    assert same(stock, certified)
    assert served(certified)


def test_float64_is_held_as_the_stock_cache_holds_it():
    stock, certified = pair(300, 1, dtype=torch.float64)
    assert same(stock, certified)
    assert certified.layers[0].index is None
    for cache in (stock, certified):
        cache.crop(-3)
        cache.batch_repeat_interleave(2)
    assert same(stock, certified)


def test_keys_keep_their_history_and_get_an_index_once_nobody_follows_it():
    stock, certified = pair(300)
    layer = certified.layers[0]
    key, value = (x.requires_grad_() for x in states(4, seed=3))
    for cache in (stock, certified):
        held = cache.update(key, value, layer_idx=0)[0]
        held.sum().backward()
    assert key.grad is not None
    assert torch.equal(key.grad, torch.full_like(key, 2.0))
    assert layer.index is None
    with torch.no_grad():
        assert same(stock, certified)
        assert served(certified)


def test_an_inference_mode_cache_goes_on_outside():
    with torch.inference_mode():
        _, certified = pair(300)
        certified.reorder_cache(torch.tensor([1, 0, 2]))
    assert served(certified)


def test_bytes_beside_a_stock_cache():
    stock, certified = pair(4000, dtype=torch.bfloat16)
    plain = sum(t.nbytes for layer in stock for t in layer[:2])
    width = 16
    sketch = (width + 8) / (2 * 2 * width)  # docs/engine.md
    assert certified.nbytes <= plain * (1 + sketch) * (1 + 1 / 16 + 512 / 4000)
    before = certified.layers[0].index._store.capacity
    certified.update(*states(200, dtype=torch.bfloat16), layer_idx=0)
    assert certified.layers[0].index._store.capacity == before


def test_a_dropped_cache_frees_its_memory_at_once():
    """Marks make no cycle: nothing waits for the garbage collector."""
    import gc
    import weakref

    gc.disable()
    try:
        layer = CertifiedLayer()
        returned = layer.update(*states(300))
        index = weakref.ref(layer.index)
        del layer, returned
        assert index() is None
    finally:
        gc.enable()


@torch.no_grad()
def test_a_cache_made_by_hand_serves_without_certify():
    model, ids = llama(), prompt(40)
    cache = CertifiedCache(config=model.config)
    plain = model(ids).logits
    model(ids[:, :-1], past_key_values=cache)
    torch.testing.assert_close(model(ids[:, -1:], past_key_values=cache).logits[0, -1], plain[0, -1])
    assert [type(layer) for layer in cache.layers] == [CertifiedLayer] * 3
    assert len(cache) == 3
    assert "CertifiedLayer" in repr(cache)
