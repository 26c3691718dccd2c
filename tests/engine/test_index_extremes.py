"""Magnitudes at which float32 kernels could lose a key: overflow, denormals flushed or not, and what is not finite."""

import mpmath
import pytest
import torch

import oracles
from asking import INDEX_DTYPES, INDEXES, KERNELS, ask_index, attend
from constants import flushing
from indexes import ask_and_check, pair
from tailbound import KVIndex, Status

EVERY = ("index/torch", *KERNELS)


def check_exactly(answer, query, key, value, epsilon, **options):
    """The law, to 60 digits: at these magnitudes the fast oracle knows too little."""
    for index, tail, output in oracles.attention(query, key, value, answer.kept, **options):
        tv, error = answer.certificate.tv[index].item(), answer.certificate.output_error[index].item()
        assert mpmath.mpf(tv) >= tail, f"tv {tv} below the truth {tail}"
        assert mpmath.mpf(error) >= oracles.distance(answer.output[index], output)
        assert tv <= epsilon
        assert answer.certificate.status[index] in (Status.CERTIFIED, Status.DENSE)


@pytest.mark.parametrize("impl", INDEXES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sign", [1, -1])
def test_logits_beyond_float32_hide_no_key(impl, dtype, sign):
    """An upper end that overflowed to -inf looked like a hidden key: tv 0 where nearly all mass was left out."""
    gen = torch.Generator().manual_seed(0)
    for power in (15, 17, 18, 19, 20, 21, 22, 25, 37):
        key = (10.0**power * (1 + 1e-2 * torch.randn(1, 1, 12, 1, generator=gen))).expand(1, 1, 12, 16).to(dtype)
        value = torch.randn(1, 1, 12, 2, generator=gen).to(dtype)
        for other in (power, 38 - power):
            query = torch.full((1, 1, 1, 16), sign * 10.0**other, dtype=dtype)
            answer = ask_index(KVIndex(key, value), query, impl, epsilon=0.3, return_kept=True)
            check_exactly(answer, query, key, value, 0.3)


@pytest.mark.parametrize("impl", INDEXES)
@pytest.mark.parametrize("sink", [None, 0.0, -40.0])
@pytest.mark.parametrize("keys", [28, 600])
def test_weights_that_all_vanish_below_their_level_are_read_again(impl, sink, keys):
    """The first keys of a page lie far from the others, so that brackets are wide: the largest upper end lay 105 nats
    above every logit, float32 weights became 0, and next to a sink that counted as nothing lost (hypothesis found it).
    """
    gen = torch.Generator().manual_seed(20)
    for _ in range(8):
        far, near = pair(gen, 2, 2, 16, 16, 16, torch.float32, 50.0), pair(gen, 2, 2, keys - 16, 16, 16, torch.float32)
        index = KVIndex(*far)
        index.append(*near)
        key, value = (torch.cat(parts, 2) for parts in zip(far, near, strict=True))
        query = 2 * torch.randn(2, 6, 1, 16, generator=gen)
        sinks = None if sink is None else torch.full((6,), sink)
        answer = ask_and_check(index, query, key, value, impl, epsilon=0.001, scale=3.0, sink=sinks)
        assert (answer.certificate.output_error < 0.1).all()


@pytest.mark.parametrize("impl", INDEXES)
@pytest.mark.parametrize("attending", [True, False])
@pytest.mark.parametrize("building", [True, False])
@pytest.mark.parametrize("spread", [False, True])
def test_a_query_word_below_the_normal_range_is_paid_for(impl, building, attending, spread):
    """Read as zero, the unit of the query's words took the whole logit with it."""
    for power, query_power in ((115, -120), (112, -118), (112, -117), (110, -116), (110, -115), (108, -114)):
        gen = torch.Generator().manual_seed(0)
        key = torch.randn(1, 1, 20, 16, generator=gen)
        key = 2.0**power * (127 * key.sign() if not spread else 100 * key)
        key[:, :, 10:] = -key[:, :, :10]
        query, value = (
            2.0**query_power * torch.randn(1, 1, 1, 16, generator=gen),
            torch.randn(1, 1, 20, 2, generator=gen),
        )
        with flushing(building):
            index = KVIndex(key, value)
        with flushing(attending):
            answer = ask_index(index, query, impl, epsilon=0.3, return_kept=True)
        check_exactly(answer, query, key, value, 0.3)


@pytest.mark.parametrize("impl", INDEXES)
@pytest.mark.parametrize("dtype", INDEX_DTYPES)
@pytest.mark.parametrize("attending", [True, False])
@pytest.mark.parametrize("building", [True, False])
def test_flushed_denormals_stay_inside_the_certificate(impl, dtype, building, attending):
    tiny = 2.0**-20 if dtype is torch.float16 else 2.0**-130
    large = 2.0**15 if dtype is torch.float16 else 2.0**126
    gen = torch.Generator().manual_seed(0)
    for denormal, other in ((tiny, large), (large, tiny), (1.0, 1.0)):
        query, key = torch.randn(1, 1, 2, 4, generator=gen), torch.randn(1, 1, 14, 4, generator=gen)
        query, key = (query.clamp(-1.5, 1.5) * denormal).to(dtype), (key.clamp(-1.5, 1.5) * other).to(dtype)
        value = (torch.randn(1, 1, 14, 2, generator=gen) * torch.tensor([tiny, 1.0])).to(dtype)
        with flushing(building):
            index = KVIndex(key[:, :, :9], value[:, :, :9])
            index.append(key[:, :, 9:], value[:, :, 9:])
        with flushing(attending):
            answer = ask_index(index, query, impl, epsilon=0.3, return_kept=True)
        check_exactly(answer, query, key, value, 0.3)


@pytest.mark.parametrize("impl", ["reference", "torch", *INDEXES])
def test_flushed_results_on_the_way_stay_inside_the_certificate(impl):
    """Denormals that arise: a head of mass 0 was read as -0.0, and the error became -infinite; a share became 0."""
    gen = torch.Generator().manual_seed(0)
    value = torch.randn(1, 1, 5, 1, generator=gen)
    sure = torch.randn(1, 1, 5, 4, generator=gen).sign() * 400, torch.randn(1, 1, 1, 4, generator=gen) * 2.0**120, {}
    far = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]).reshape(1, 1, 5, 1), torch.full((1, 1, 1, 1), 400.0), {"scale": 1.0}
    capped = far[0] * 4, far[1], {"softcap": 1e8, "sink": torch.tensor([100.0])}
    for key, query, options in (sure, far, capped):
        for epsilon in (1e-3, 0.3):
            with flushing(True):
                answer = attend(query, key, value, impl=impl, epsilon=epsilon, return_kept=True, **options)
            check_exactly(answer, query, key, value, epsilon, **options)


@pytest.mark.parametrize("impl", EVERY)
@pytest.mark.parametrize("precision", ["medium", "high", "highest"])
@pytest.mark.parametrize("dtype", INDEX_DTYPES)
def test_lowered_matmul_precision_and_autocast_do_not_reach_a_certificate(impl, precision, dtype):
    before = torch.get_float32_matmul_precision()
    gen = torch.Generator().manual_seed(0)
    key, value = pair(gen, 1, 1, 60, 16, 8, dtype)
    query = (2 * torch.randn(1, 2, 2, 16, generator=gen)).to(dtype)
    torch.set_float32_matmul_precision(precision)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            index = KVIndex(key, value)
            answer = ask_index(index, query, impl, epsilon=0.1, return_kept=True)
    finally:
        torch.set_float32_matmul_precision(before)
    check_exactly(answer, query, key, value, 0.1)
    assert answer.output.dtype is dtype


@pytest.mark.parametrize("impl", INDEXES)
@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("what", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("where", ["query", "key", "value"])
def test_rows_that_see_something_not_finite_say_so_and_the_others_stay(impl, softcap, what, where):
    """Also a key whose logit is -inf or, under a cap, finite: its weight is as good as any, and proves nothing."""
    gen = torch.Generator().manual_seed(0)
    query, (key, value) = torch.rand(1, 2, 3, 4, generator=gen) + 0.1, pair(gen, 1, 1, 40, 4, 2, torch.float32)
    {"query": query[0, 1, 1], "key": key[0, 0, 38], "value": value[0, 0, 38]}[where][0] = what
    index = KVIndex(key, value)
    answer = ask_and_check(index, query, key, value, impl, epsilon=0.1, is_causal=True, softcap=softcap)
    spoiled = torch.zeros(1, 2, 3, dtype=torch.bool)
    if where == "query":
        spoiled[0, 1, 1] = True
    else:
        spoiled[0, :, 1:] = True
    assert torch.equal(answer.certificate.status == Status.NONFINITE, spoiled)
    assert (answer.certificate.tv[spoiled] == 1).all()
    assert (answer.certificate.output_error[spoiled] == torch.inf).all()
    index.crop(38)
    if where != "query":  # cropped away, it is forgotten
        ask_and_check(index, query, key[:, :, :38], value[:, :, :38], impl, epsilon=0.1, softcap=softcap)


@pytest.mark.parametrize("impl", INDEXES)
@pytest.mark.parametrize("end", [-86.9, -87.05, -87.2, -87.33, -87.34, -88.0, -103.0])
def test_a_weight_at_the_end_of_the_exponential_is_not_lost(impl, end):
    """Where float32 goes from normal to nothing: a vector kernel's exponential ends at -87, the truth does not."""
    key = torch.tensor([0.0] + [end] * 40).reshape(1, 1, 41, 1)
    query, value = torch.ones(1, 1, 1, 1), torch.linspace(-1, 1, 41).reshape(1, 1, 41, 1)
    answer = ask_index(KVIndex(key, value), query, impl, epsilon=0.3, scale=1.0, return_kept=True)
    check_exactly(answer, query, key, value, 0.3, scale=1.0)
