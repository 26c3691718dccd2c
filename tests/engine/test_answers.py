"""Answers that must be right: DESIGN's table of inputs, a test a row, for every implementation that serves calls."""

import math

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention as sdpa

from asking import KERNELS, attend
from cases import DTYPES
from tailbound import Status

IMPLS = ("reference", "torch", "index/torch", *KERNELS)
pytestmark = pytest.mark.parametrize("impl", IMPLS)


def tensors(batch=1, heads=2, kv_heads=1, queries=3, keys=20, width=8, value_width=8, dtype=torch.float32, seed=0):
    gen = torch.Generator().manual_seed(seed)
    shapes = ((batch, heads, queries, width), (batch, kv_heads, keys, width), (batch, kv_heads, keys, value_width))
    return tuple(torch.randn(shape, generator=gen).to(dtype) for shape in shapes)


@pytest.mark.parametrize("epsilon", [-0.1, 1.0, 1.5, math.nan, math.inf, "0.1", None, True, 1j])
def test_epsilon_out_of_range_names_value_and_range(impl, epsilon):
    with pytest.raises(ValueError, match=r"epsilon=.*\[0, 1\)"):
        attend(*tensors(), epsilon=epsilon, impl=impl)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_each_head_may_have_its_own_epsilon(impl, dtype):
    gen = torch.Generator().manual_seed(5)
    budgets = torch.tensor([0.0, 1e-6, 0.05, 0.6], dtype=dtype)
    query, key = 3 * torch.randn(2, 4, 2, 8, generator=gen), torch.randn(2, 4, 300, 8, generator=gen)
    value = torch.randn(2, 4, 300, 4, generator=gen)
    q, k, v = (x.to(dtype) for x in (query, key, value))
    together = attend(q, k, v, epsilon=budgets, return_kept=True, impl=impl)
    for head, budget in enumerate(budgets.tolist()):
        mine = (slice(None), slice(head, head + 1))
        alone = attend(q[mine], k[mine], v[mine], epsilon=budget, return_kept=True, impl=impl)
        assert (together.certificate.tv[mine] <= budget).all()
        if budget:  # at 0 a call for itself needs no scan, and sees the same keys
            assert torch.equal(together.kept[mine], alone.kept)
        assert torch.equal(together.certificate.status[mine], alone.certificate.status)
        torch.testing.assert_close(together.output[mine], alone.output, rtol=1e-2, atol=1e-5)
    assert (together.certificate.status[:, 0] == Status.DENSE).all()
    assert (together.certificate.kept[:, 3] < together.certificate.kept[:, 2]).all()
    grouped = attend(q, k[:, :2], v[:, :2], epsilon=budgets, impl=impl)
    assert (grouped.certificate.tv.amax((0, 2)) <= budgets).all()
    one = attend(q, k, v, epsilon=torch.tensor(0.05), impl=impl)
    assert (one.certificate.tv <= 0.05).all()


@pytest.mark.parametrize(
    ("epsilon", "words"),
    [
        (torch.tensor([0.1, 0.1, 0.1]), r"shape \(3,\).*\(2,\)"),
        (torch.tensor([[0.1, 0.1]]), r"shape \(1, 2\)"),
        (torch.tensor([0, 0]), "int64"),
        (torch.tensor([0.1, 1.0]), r"epsilon=1.0 is out of range"),
        (torch.tensor([0.1, math.nan]), r"epsilon=nan is out of range"),
        (torch.tensor(2.0), r"epsilon=2.0 is out of range"),
    ],
)
def test_epsilons_that_do_not_fit_the_heads_are_refused(impl, epsilon, words):
    with pytest.raises(ValueError, match=words):
        attend(*tensors(), epsilon=epsilon, impl=impl)


def test_epsilon_zero_is_dense_and_equals_sdpa(impl):
    for options in (
        {},
        {"is_causal": True},
        {"attn_mask": torch.rand(3, 20) > 0.3},
        {"attn_mask": torch.randn(3, 20).double()},
    ):
        q, k, v = tensors(heads=4, kv_heads=2, dtype=torch.float64)
        answer = attend(q, k, v, epsilon=0.0, impl=impl, **options)
        torch.testing.assert_close(answer.output, sdpa(q, k, v, enable_gqa=True, **options), rtol=1e-12, atol=1e-12)
        assert (answer.certificate.tv == 0).all()
        assert (answer.certificate.status == Status.DENSE).all()
        assert (answer.certificate.output_error > 0).all()
        assert (answer.certificate.output_error < 1e-10).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_epsilon_zero_is_within_one_rounding_of_float64(impl, dtype):
    q, k, v = tensors(dtype=dtype)
    answer = attend(q, k, v, epsilon=0.0, impl=impl)
    exact = sdpa(q.double(), k.double(), v.double(), enable_gqa=True)
    assert answer.output.dtype is dtype
    assert ((answer.output.double() - exact).norm(dim=-1) <= answer.certificate.output_error + 1e-13).all()


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda q, k, v: (q[0], k, v), ValueError, "query has shape"),
        (lambda q, k, v: (q, k, v[:, :, :5]), ValueError, "same heads and length"),
        (lambda q, k, v: (q, k.repeat(2, 1, 1, 1), v.repeat(2, 1, 1, 1)), ValueError, "batch sizes differ"),
        (lambda q, k, v: (q[..., :5], k, v), ValueError, "same head_dim"),
        (lambda q, k, v: (q, k.repeat(1, 3, 1, 1), v.repeat(1, 3, 1, 1)), ValueError, "cannot share 3 KV heads"),
        (lambda q, k, v: (q[..., :0], k[..., :0], v), ValueError, "at least 1"),
        (lambda q, k, v: (q.half(), k, v), TypeError, "they must be the same"),
        (lambda q, k, v: (q.int(), k.int(), v.int()), TypeError, "allowed: torch.float16"),
        (lambda q, k, v: (q.to("meta"), k, v), ValueError, "move them to one device"),
    ],
)
def test_tensors_that_do_not_fit_are_refused_with_what_came_and_what_is_allowed(impl, change, error, words):
    with pytest.raises(error, match=words):
        attend(*change(*tensors()), epsilon=0.1, impl=impl)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"attn_mask": torch.zeros(7, 7)}, ValueError, "cannot be broadcast"),
        ({"attn_mask": torch.zeros(3, 20, dtype=torch.int64)}, TypeError, r"attn_mask.bool\(\)"),
        ({"scale": math.nan}, ValueError, "scale=nan"),
        ({"scale": math.inf}, ValueError, "scale=inf"),
        ({"softcap": 0.0}, ValueError, "softcap=0.0"),
        ({"softcap": -3}, ValueError, "softcap=-3"),
        ({"sink": torch.tensor([math.nan, 0.0])}, ValueError, "sink holds NaN"),
        ({"sink": torch.zeros(5)}, ValueError, "sink has shape"),
    ],
)
def test_options_that_do_not_fit_are_refused(impl, options, error, words):
    with pytest.raises(error, match=words):
        attend(*tensors(), epsilon=0.1, impl=impl, **options)


def test_no_keys_at_all_is_empty(impl):
    q, k, v = tensors(keys=0)
    answer = attend(q, k, v, epsilon=0.1, return_kept=True, impl=impl)
    assert (answer.certificate.status == Status.EMPTY).all()
    assert (answer.output == 0).all()
    assert (answer.certificate.tv == 0).all()
    assert (answer.certificate.output_error == 0).all()
    assert answer.kept.shape == (1, 2, 3, 0)


@pytest.mark.parametrize("sink", [None, 1.0])
def test_a_row_that_sees_nothing_is_empty_and_its_neighbours_are_not(impl, sink):
    mask = torch.ones(3, 20, dtype=torch.bool)
    mask[1] = False
    answer = attend(*tensors(), epsilon=0.1, attn_mask=mask, sink=sink, impl=impl)
    assert answer.certificate.status[0, 0].tolist() == [Status.CERTIFIED, Status.EMPTY, Status.CERTIFIED]
    assert (answer.output[:, :, 1] == 0).all()
    assert (answer.certificate.tv[:, :, 1] == 0).all()
    assert (answer.certificate.output_error[:, :, 1] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("hidden", [-math.inf, "min"])
def test_a_bias_at_the_finite_minimum_hides_like_a_boolean_mask(impl, dtype, hidden):
    q, k, v = tensors()
    mask = torch.rand(3, 20, generator=torch.Generator().manual_seed(5)) > 0.4
    mask[1] = False  # a row that sees nothing: a weight of nearly nothing would be one among equals
    bias = torch.zeros(3, 20, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min if hidden == "min" else hidden)
    a = attend(q, k, v, epsilon=0.1, attn_mask=mask, return_kept=True, impl=impl)
    b = attend(q, k, v, epsilon=0.1, attn_mask=bias, return_kept=True, impl=impl)
    assert torch.equal(a.kept, b.kept)
    assert torch.equal(a.certificate.status, b.certificate.status)
    torch.testing.assert_close(a.output, b.output)


def test_an_additive_bias_is_taken_literally(impl):
    q, k, v = (t.double() for t in tensors())
    bias = torch.randn(1, 2, 3, 20, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1e6
    answer = attend(q, k, v, epsilon=0.0, attn_mask=bias, impl=impl)
    torch.testing.assert_close(answer.output, sdpa(q, k, v, attn_mask=bias, enable_gqa=True), rtol=1e-9, atol=1e-9)


POISON = [(where, x) for where in ("query", "key", "value") for x in (math.nan, math.inf, -math.inf)]
POISON += [("bias", math.nan), ("bias", math.inf)]  # -inf hides the key


@pytest.mark.parametrize(("where", "poison"), POISON)
def test_rows_that_see_something_not_finite_are_dense_and_uncertified_and_others_untouched(impl, where, poison):
    q, k, v = tensors(heads=2, kv_heads=1, queries=4, keys=12, dtype=torch.float64)
    mask = torch.ones(4, 12, dtype=torch.bool).tril(7)  # query t sees keys up to t + 7
    bias = torch.zeros(4, 12, dtype=torch.float64).masked_fill(~mask, -math.inf)
    clean = attend(q, k, v, epsilon=0.1, attn_mask=bias, return_kept=True, impl=impl)
    q, k, v, bias = q.clone(), k.clone(), v.clone(), bias.clone()
    bad = torch.tensor([False, False, True, True])
    match where:
        case "query":
            q[:, :, 2:, 0] = poison
        case "key":
            k[:, :, 9, 0] = poison  # seen by queries 2 and 3
        case "value":
            v[:, :, 9, 0] = poison
        case "bias":
            bias[2:, 3] = poison
    answer = attend(q, k, v, epsilon=0.1, attn_mask=bias, return_kept=True, impl=impl)
    certificate = answer.certificate
    assert (certificate.status[..., bad] == Status.NONFINITE).all()
    assert (certificate.tv[..., bad] == 1).all()
    assert (certificate.output_error[..., bad] == math.inf).all()
    assert torch.equal(answer.kept[..., bad, :], mask[bad].expand(1, 2, 2, 12))
    for t in (2, 3):
        seen = bias[t] > torch.finfo(torch.float64).min
        seen |= bias[t].isnan()
        expected = sdpa(
            q[:, :, t : t + 1], k[:, :, seen], v[:, :, seen], attn_mask=bias[t : t + 1, seen], enable_gqa=True
        )
        torch.testing.assert_close(answer.output[:, :, t : t + 1], expected, equal_nan=True)
    torch.testing.assert_close(answer.output[..., ~bad, :], clean.output[..., ~bad, :], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(certificate.tv[..., ~bad], clean.certificate.tv[..., ~bad], rtol=1e-9, atol=0)
    assert torch.equal(certificate.status[..., ~bad], clean.certificate.status[..., ~bad])


def test_identical_keys_are_certified_all_the_same(impl):
    q, k, v = tensors(keys=100)
    k = k[:, :, :1].expand_as(k)
    certificate = attend(q, k, v, epsilon=0.25, impl=impl).certificate
    assert (certificate.kept == 76).all()  # 75 leave out 0.25 up to rounding, which cannot be certified
    assert (certificate.status == Status.CERTIFIED).all()


@pytest.mark.parametrize(
    "shape",
    [
        {"width": 1, "value_width": 1},
        {"width": 19},
        {"width": 512},
        {"value_width": 3},
        {"keys": 1},
        {"queries": 0},
        {"batch": 0},
        {"heads": 0},
        {"heads": 6, "kv_heads": 3, "batch": 2},
    ],
)
def test_every_shape_is_supported(impl, shape):
    q, k, v = tensors(**shape)
    answer = attend(q, k, v, epsilon=0.1, return_kept=True, impl=impl)
    rows = q.shape[:3]
    assert answer.output.shape == (*rows, v.shape[3])
    assert answer.kept.shape == (*rows, k.shape[2])
    for column, dtype in zip(answer.certificate, (torch.float64, torch.float64, torch.int32, torch.uint8), strict=True):
        assert column.shape == rows
        assert column.dtype is dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("power", [-25, 25, 38])
def test_extreme_norms_neither_overflow_nor_certify_nonsense(impl, dtype, power):
    q, k, v = tensors(keys=8)
    size = 10.0**power
    answer = attend((q * size).to(dtype), (k / size).to(dtype), v.to(dtype), epsilon=0.1, impl=impl)
    assert answer.output.isfinite().all()
    assert (answer.certificate.tv <= 0.1).all()
    both = attend((q * size).to(dtype), (k * size).to(dtype), v.to(dtype), epsilon=0.1, impl=impl)
    seen = both.certificate.status != Status.NONFINITE
    assert both.output[seen].isfinite().all()
    assert (both.certificate.tv[seen] <= 0.1).all()


def test_non_contiguous_expanded_and_permuted_tensors_are_right(impl):
    q, k, v = tensors(heads=4, kv_heads=2, keys=16)
    expected = attend(q, k, v, epsilon=0.1, impl=impl)
    strided = (torch.stack([t, torch.full_like(t, 7.0)], -1)[..., 0] for t in (q, k, v))
    permuted = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (q, k, v))
    for odd in (strided, permuted):
        answer = attend(*odd, epsilon=0.1, impl=impl)
        torch.testing.assert_close(answer.output, expected.output)
    zero = attend(q, k[:, :, :1].expand(1, 2, 16, 8), v[:, :, :1].expand(1, 2, 16, 8), epsilon=0.5, impl=impl)
    assert (zero.certificate.kept == 9).all()


def test_softcap_and_sink_match_their_definitions(impl):
    q, k, v = (t.double() for t in tensors(keys=30))
    sink = torch.tensor([0.5, -2.0], dtype=torch.float64)
    answer = attend(q, k, v, epsilon=0.0, softcap=1.5, sink=sink, impl=impl)
    logits = 1.5 * torch.tanh(q @ k.transpose(-1, -2) / 8**0.5 / 1.5)
    weights = torch.cat([logits, sink[None, :, None, None].expand(1, 2, 3, 1)], -1).softmax(-1)[..., :-1]
    torch.testing.assert_close(answer.output, weights @ v, rtol=1e-12, atol=1e-12)


def test_a_sink_that_outweighs_everything_needs_no_key(impl):
    answer = attend(*tensors(), epsilon=0.01, sink=50.0, impl=impl)
    assert (answer.certificate.kept == 0).all()
    assert (answer.certificate.status == Status.CERTIFIED).all()
    assert (answer.certificate.tv > 0).all()


def test_gradients_flow_through_the_kept_keys(impl):
    q, k, v = (t.double().requires_grad_() for t in tensors(heads=2, queries=2, keys=9, width=3, value_width=2))
    answer = attend(q, k, v, epsilon=0.2, return_kept=True, impl=impl)
    assert answer.kept.sum() < answer.kept.numel()
    weight = torch.randn(answer.output.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    found = torch.autograd.grad((answer.output * weight).sum(), (q, k, v))
    truncated = sdpa(q, k, v, attn_mask=answer.kept, enable_gqa=True)
    expected = torch.autograd.grad((truncated * weight).sum(), (q, k, v))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)
    assert not answer.certificate.tv.requires_grad
    assert not answer.certificate.output_error.requires_grad
    assert torch.autograd.gradcheck(
        lambda *x: attend(*x, epsilon=0.0, sink=0.3, softcap=4.0, impl=impl).output, (q, k, v)
    )


def test_inputs_are_not_changed(impl):
    q, k, v = tensors()
    copies = [t.clone() for t in (q, k, v)]
    attend(q, k, v, epsilon=0.1, is_causal=True, impl=impl)
    assert all(torch.equal(a, b) for a, b in zip((q, k, v), copies, strict=True))


def test_stats_count_what_was_read(impl):
    q, k, v = tensors(batch=2, heads=4, kv_heads=2, queries=3, keys=20, value_width=4, dtype=torch.bfloat16)
    answer = attend(q, k, v, epsilon=0.1, is_causal=True, return_kept=True, impl=impl)
    stats, sketch = answer.stats, 0
    assert stats.impl == {"index/torch": "torch"}.get(impl, "native" if impl in KERNELS else impl)
    assert stats.isa == (impl.removeprefix("index/") if impl in KERNELS else "torch")
    assert stats.threads == torch.get_num_threads()
    assert stats.keys_visible == 2 * 2 * 3  # the last of three queries sees three keys
    if impl.startswith("index"):
        read = int(answer.kept.unflatten(1, (2, 2)).flatten(2, 3).any(2).sum())
        sketch = stats.bytes_read - read * (8 + 4) * 2
        assert 2 * 2 * 20 * (8 + 6) <= sketch <= 2 * 2 * (32 * (8 + 6) + 8 * 4)
    else:
        read = 2 * 2 * 20
    assert stats.keys_read == read
    assert stats.bytes_read == read * (8 + 4) * 2 + sketch
