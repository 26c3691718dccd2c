"""What may be handed to an index, how that may lie in memory, what it costs to hold, and what is refused how."""

import math
import warnings

import numpy as np
import pytest
import torch

from asking import INDEX_DTYPES, INDEXES, KERNELS, ask_index
from indexes import ask_and_check, pair, same_answer
from tailbound import KVIndex, Status
from tailbound.engine.store import GROWTH

EVERY = ("index/torch", *KERNELS)


def read_only(x):
    array = x.contiguous().view(torch.uint8).numpy().copy()
    array.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.from_numpy(array).view(x.dtype).view(x.shape)


LAYOUTS = {
    "transposed": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "reversed": lambda x: x.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    "sliced": lambda x: torch.cat([x, x, x], 2)[:, :, x.shape[2] : 2 * x.shape[2]],
    "inner slice": lambda x: torch.cat([x, x], 3)[..., : x.shape[3]],
    "strided": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "every other": lambda x: x.repeat_interleave(2, 2)[:, :, ::2],
    "read-only": read_only,
    "negated view": lambda x: torch._neg_view(-x),
    "parameter": lambda x: torch.nn.Parameter(x, requires_grad=False),
}


@pytest.mark.parametrize("impl", EVERY)
@pytest.mark.parametrize("dtype", INDEX_DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_how_tensors_lie_in_memory_does_not_matter(impl, dtype, layout):
    gen = torch.Generator().manual_seed(0)
    lay, (key, value) = LAYOUTS[layout], pair(gen, 2, 2, 50, 8, 6, dtype)
    query = torch.randn(2, 4, 3, 8, generator=gen).to(dtype)
    mask, sink = torch.rand(2, 4, 3, 50, generator=gen) < 0.8, torch.randn(2, 4, 3, generator=gen)
    odd_mask = mask if layout in ("read-only", "negated view", "parameter") else lay(mask)
    odd_sink = lay(sink[..., None])[..., 0]
    expected = ask_index(KVIndex(key, value), query, impl, epsilon=0.1, attn_mask=mask, sink=sink)
    odd = KVIndex(lay(key[:, :, :30]), lay(value[:, :, :30]))
    odd.append(lay(key[:, :, 30:]), lay(value[:, :, 30:]))
    assert torch.equal(odd.key, key)
    assert torch.equal(odd.value, value)
    whole = KVIndex(lay(key), lay(value))
    same_answer(ask_index(whole, lay(query), impl, epsilon=0.1, attn_mask=odd_mask, sink=odd_sink), expected)


@pytest.mark.parametrize("impl", EVERY)
def test_expanded_tensors_are_read_as_what_they_stand_for(impl):
    gen = torch.Generator().manual_seed(0)
    shape = (2, 2, 40, 8)
    for sizes in ((1, 2, 40, 8), (2, 1, 40, 8), (2, 2, 1, 8), (2, 2, 40, 1), (1, 1, 1, 1)):
        key, value = (torch.randn(sizes, generator=gen).expand(shape) for _ in range(2))
        query = torch.randn([min(a, b) for a, b in zip(sizes, (2, 4, 3, 8), strict=True)], generator=gen)
        if query.shape[1] == 2:
            query = query.repeat(1, 2, 1, 1)
        query = query.expand(2, 4, 3, 8)
        index, plain = KVIndex(key, value), KVIndex(key.clone(), value.clone())
        assert torch.equal(index.key, key)
        for rows in ((1, 1, 1), (2, 1, 1), (1, 4, 1), (1, 1, 3), (2, 4, 3)):
            for last in (40, 1):
                mask, sink = torch.rand(*rows, last, generator=gen) < 0.7, torch.randn(rows, generator=gen)
                full, sinks = mask.expand(2, 4, 3, 40), sink.expand(2, 4, 3)
                expected = ask_and_check(
                    plain, query.clone(), key, value, impl, epsilon=0.1, attn_mask=full.clone(), sink=sinks.clone()
                )
                for m, s in ((mask, sink), (full, sinks)):
                    same_answer(ask_index(index, query, impl, epsilon=0.1, attn_mask=m, sink=s), expected)
        one = torch.rand(40, generator=gen) < 0.5  # broadcast from fewer dimensions
        same_answer(
            ask_index(index, query, impl, epsilon=0.1, attn_mask=one),
            ask_index(index, query, impl, epsilon=0.1, attn_mask=one.expand(2, 4, 3, 40)),
        )


@pytest.mark.parametrize("impl", INDEXES)
def test_the_index_owns_its_copy(impl):
    gen = torch.Generator().manual_seed(0)
    key, value = pair(gen, 1, 2, 20, 4, 3, torch.float32)
    first, more = (key.clone(), value.clone()), (key + 1, value + 1)
    index = KVIndex(key, value)
    appended = [x.clone() for x in more]
    index.append(*appended)
    for tensor in (key, value, *appended):
        tensor.fill_(torch.nan)
    query = torch.randn(1, 2, 1, 4, generator=gen)
    whole = [torch.cat(parts, 2) for parts in zip(first, more, strict=True)]
    answer = ask_and_check(index, query, *whole, impl, epsilon=0.1)
    kept, output = answer.kept.clone(), answer.output.clone()
    index.crop(1)
    index.append(*(10 * x for x in more))
    assert torch.equal(answer.kept, kept)  # nor does an answer change with the index
    assert torch.equal(answer.output, output)


def test_keys_that_require_grad_are_refused_with_the_remedy():
    key, value = torch.randn(1, 1, 5, 4), torch.randn(1, 1, 5, 4)
    grad = key.clone().requires_grad_()
    index = KVIndex(key, value)
    for call in (lambda: KVIndex(grad, value), lambda: index.append(grad, value), lambda: index.append(key, grad)):
        with pytest.raises(ValueError, match=r"requires grad.*detach them, or use tailbound\.attention"):
            call()
    with torch.no_grad():
        index.append(grad, grad)
    assert not index.key.requires_grad
    assert len(index) == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_query_that_requires_grad_goes_to_torch_and_gets_the_gradient_of_its_kept_keys(dtype):
    gen = torch.Generator().manual_seed(0)
    key, value = pair(gen, 1, 2, 300, 8, 6, dtype)
    query = (3 * torch.randn(1, 4, 2, 8, generator=gen)).to(dtype).requires_grad_()
    index = KVIndex(key, value)
    answer = index.attend(query, epsilon=0.2, return_kept=True)
    assert answer.stats.impl == "torch"
    weights = torch.randn(answer.output.shape, generator=gen).to(dtype)
    (found,) = torch.autograd.grad((answer.output * weights).sum(), query)
    wide = query.detach().double().requires_grad_()
    keys, values = (x.repeat_interleave(2, 1).double() for x in (key, value))
    logits = (wide @ keys.transpose(-1, -2) * 8**-0.5).masked_fill(~answer.kept, -torch.inf)
    (expected,) = torch.autograd.grad((logits.softmax(-1) @ values * weights).sum(), wide)
    step = torch.finfo(dtype).eps
    torch.testing.assert_close(found.double(), expected, rtol=4 * step, atol=8 * step)
    assert answer.kept.float().mean() < 0.9
    with pytest.raises(ValueError, match=r"gradients are not implemented.*impl='torch'"):
        index.attend(query, epsilon=0.2, impl="native")
    with torch.no_grad():
        assert index.attend(query, epsilon=0.2).stats.impl == "native"


@pytest.mark.parametrize("width", [16, 64, 80, 128, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_full_index_holds_at_most_d_plus_8_bytes_a_key_beside_the_keys(width, dtype):
    """Beside 8 Dv + 32 bytes for each KV head and 16 for the index, however many keys there are."""
    batch, heads, value_width = 1, 2, 4
    index = KVIndex(*(torch.zeros(batch, heads, 4096, d, dtype=dtype) for d in (width, value_width)))
    store = index._store
    assert store.capacity == 4096
    own = sum(tensor.nbytes for tensor in store.tensors()[2:])
    fixed = batch * heads * (8 * value_width + 32) + 16
    assert own <= batch * heads * 4096 * (width + 8) + fixed
    assert index.nbytes == own + store.key.nbytes + store.value.nbytes


@pytest.mark.parametrize("window", [None, 100, 300])
def test_appending_moves_the_buffers_rarely_and_leaves_little_slack(window):
    gen = torch.Generator().manual_seed(0)
    key, value = pair(gen, 1, 1, 2000, 16, 4, torch.bfloat16)
    index, moves, address = KVIndex(key[:, :, :0], value[:, :, :0]), 0, None
    for i in range(2000):
        index.append(key[:, :, i : i + 1], value[:, :, i : i + 1])
        if window and len(index) > window:
            index.drop_front(len(index) - window)
        moves += address != index._store.key.data_ptr()
        address = index._store.key.data_ptr()
        assert index._store.capacity <= GROWTH * max(2 * (window or 0), index._store.stop) + 256
    held = key if window is None else key[:, :, -window:]
    assert torch.equal(index.key, held)
    most = math.log(2000 / 256, GROWTH) + 2 if window is None else 2000 / 100 + 2  # a window moves up now and then
    assert moves <= most


ERRORS = {
    "dtype of an index": (lambda i, k, v: KVIndex(k.double(), v.double()), TypeError, "float64.*holds.*float32"),
    "integers": (lambda i, k, v: KVIndex(k.int(), v.int()), TypeError, "int32; allowed"),
    "not a tensor": (lambda i, k, v: KVIndex(k.tolist(), v), TypeError, "key is a list; pass a torch.Tensor"),
    "three dimensions": (lambda i, k, v: KVIndex(k[0], v), ValueError, r"\(2, 5, 4\).*4 dimensions"),
    "lengths": (lambda i, k, v: KVIndex(k, v[:, :, :3]), ValueError, "same heads and length"),
    "no width": (lambda i, k, v: KVIndex(k[..., :0], v), ValueError, "at least 1"),
    "two dtypes": (lambda i, k, v: KVIndex(k, v.half()), TypeError, "float32 and torch.float16"),
    "two devices": (lambda i, k, v: KVIndex(k, v.to("meta")), ValueError, "cpu and meta; move them"),
    "appended dtype": (lambda i, k, v: i.append(k.half(), v.half()), TypeError, "float16.*holds torch.float32"),
    "appended device": (lambda i, k, v: i.append(k.to("meta"), v.to("meta")), ValueError, "on meta.*on cpu"),
    "appended heads": (lambda i, k, v: i.append(k[:, :1], v[:, :1]), ValueError, "1, 1, 5, 4.*1, 2, 'any length', 4"),
    "appended batch": (lambda i, k, v: i.append(k.expand(2, 2, 5, 4), v.expand(2, 2, 5, 3)), ValueError, "2, 2, 5, 4"),
    "appended width": (lambda i, k, v: i.append(k[..., :3], v), ValueError, r"key has shape \(1, 2, 5, 3\)"),
    "appended value width": (lambda i, k, v: i.append(k, v[..., :2]), ValueError, r"value has shape \(1, 2, 5, 2\)"),
    "appended lengths": (lambda i, k, v: i.append(k, v[:, :, :2]), ValueError, "same heads and length"),
    "crop too long": (lambda i, k, v: i.crop(6), ValueError, "length=6 must be a whole number from 0 to 5"),
    "crop negative": (lambda i, k, v: i.crop(-1), ValueError, "length=-1"),
    "crop not whole": (lambda i, k, v: i.crop(2.0), ValueError, "length=2.0"),
    "crop a bool": (lambda i, k, v: i.crop(True), ValueError, "length=True"),
    "drop too many": (lambda i, k, v: i.drop_front(6), ValueError, "count=6 must be a whole number from 0 to 5"),
    "reorder beyond": (lambda i, k, v: i.reorder(torch.tensor([0, 1])), ValueError, r"\[0, 1\].*from 0 to 0"),
    "reorder negative": (lambda i, k, v: i.reorder(torch.tensor([-1])), ValueError, r"\[-1\].*from 0 to 0"),
    "reorder a table": (lambda i, k, v: i.reorder(torch.tensor([[0]])), ValueError, r"shape \(1, 1\).*one-dimensional"),
    "reorder floats": (lambda i, k, v: i.reorder(torch.tensor([0.0])), TypeError, "float32; pass an int32 or int64"),
    "reorder a list": (lambda i, k, v: i.reorder([0]), TypeError, "list; pass an int32 or int64"),
    "query dtype": (lambda i, k, v: i.attend(k.half(), epsilon=0.1), TypeError, "float16.*float32"),
    "query device": (lambda i, k, v: i.attend(k.to("meta"), epsilon=0.1), ValueError, "meta.*move them"),
    "query width": (lambda i, k, v: i.attend(k[..., :3], epsilon=0.1), ValueError, "same head_dim"),
    "query batch": (lambda i, k, v: i.attend(k.repeat(2, 1, 1, 1), epsilon=0.1), ValueError, "batch sizes differ"),
    "query heads": (lambda i, k, v: i.attend(k[:, :1].expand(1, 3, 5, 4), epsilon=0.1), ValueError, "3 query heads.*2"),
    "query dimensions": (lambda i, k, v: i.attend(k[0], epsilon=0.1), ValueError, "4 dimensions"),
    "query a list": (lambda i, k, v: i.attend(k.tolist(), epsilon=0.1), TypeError, "query is a list"),
    "epsilon": (lambda i, k, v: i.attend(k, epsilon=1.0), ValueError, r"epsilon=1.0.*\[0, 1\)"),
    "epsilon NaN": (lambda i, k, v: i.attend(k, epsilon=math.nan), ValueError, r"epsilon=nan.*\[0, 1\)"),
    "epsilon a word": (lambda i, k, v: i.attend(k, epsilon="0.1"), ValueError, "not a number"),
    "mask shape": (lambda i, k, v: i.attend(k, epsilon=0.1, attn_mask=torch.ones(4).bool()), ValueError, "broadcast"),
    "mask dtype": (lambda i, k, v: i.attend(k, epsilon=0.1, attn_mask=torch.ones(5).int()), TypeError, "0/1 mask"),
    "scale": (lambda i, k, v: i.attend(k, epsilon=0.1, scale=math.inf), ValueError, "scale=inf must be a finite"),
    "softcap": (lambda i, k, v: i.attend(k, epsilon=0.1, softcap=-1.0), ValueError, "softcap=-1.0 must be above 0"),
    "sink": (lambda i, k, v: i.attend(k, epsilon=0.1, sink=torch.ones(3)), ValueError, "sink.*broadcast"),
    "sink NaN": (lambda i, k, v: i.attend(k, epsilon=0.1, sink=torch.full((2,), math.nan)), ValueError, "NaN"),
    "impl": (lambda i, k, v: i.attend(k, epsilon=0.1, impl="fast"), ValueError, "impl='fast' is unknown"),
    "bias": (lambda i, k, v: i.attend(k, epsilon=0.1, attn_mask=torch.ones(5), impl="native"), ValueError, "additive"),
}  # fmt: skip


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_is_refused_by_name_and_changes_nothing(name):
    call, kind, words = ERRORS[name]
    key, value = torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 3)
    index = KVIndex(key, value)
    with pytest.raises(kind, match=words):
        call(index, key, value)
    assert torch.equal(index.key, key)
    assert torch.equal(index.value, value)
    ask_and_check(index, key, key, value, KERNELS[-1], epsilon=0.1)


@pytest.mark.parametrize("impl", INDEXES)
@pytest.mark.parametrize("options", [{}, {"is_causal": True, "sink": torch.zeros(2), "softcap": 3.0}])
def test_nothing_is_answered_with_nothing(impl, options):
    """No query, no batch entry, no key; then keys come."""
    gen = torch.Generator().manual_seed(0)
    key, value = pair(gen, 1, 2, 300, 4, 3, torch.float32)
    query, index = torch.randn(1, 2, 2, 4, generator=gen), KVIndex(key, value)
    none = ask_and_check(index, query[:, :, :0], key, value, impl, epsilon=0.1, **options)
    assert none.output.shape == (1, 2, 0, 3)
    assert none.certificate.tv.shape == (1, 2, 0)

    empty = KVIndex(key[:0], value[:0])
    for held in (300, 600):
        assert empty.shape == (0, 2, held, 4, 3)
        assert (empty.key.shape, empty.value.shape) == ((0, 2, held, 4), (0, 2, held, 3))
        answer = ask_index(empty, query[:0], impl, epsilon=0.1, return_kept=True, **options)
        assert answer.output.shape == (0, 2, 2, 3)
        assert answer.kept.shape == (0, 2, 2, held)
        empty.append(key[:0], value[:0])

    index = KVIndex(key[:, :, :0], value[:, :, :0])
    answer = ask_and_check(index, query, key[:, :, :0], value[:, :, :0], impl, epsilon=0.1, **options)
    assert (answer.certificate.status == Status.EMPTY).all()
    index.append(key, value)
    ask_and_check(index, query, key, value, impl, epsilon=0.1, **options)
    index.drop_front(300)
    assert (ask_index(index, query, impl, epsilon=0.1, **options).certificate.status == Status.EMPTY).all()
    index.append(value[..., :1].expand_as(key[:, :, :, :4]), value)
    ask_and_check(index, query, value[..., :1].expand_as(key), value, impl, epsilon=0.1, **options)


def test_numbers_of_numpy_are_numbers():
    key = torch.randn(1, 1, 5, 4)
    answer = KVIndex(key, key).attend(key, epsilon=np.float32(0.1), scale=np.float64(0.5))
    assert (answer.certificate.tv <= float(np.float32(0.1))).all()
