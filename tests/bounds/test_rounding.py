"""Directed arithmetic against 60 digits: the direction always holds, and by no more than stated."""

import mpmath
import pytest
import torch
from hypothesis import example, given, target
from hypothesis import strategies as st

import oracles
from tailbound.bounds import rounding

moderate = st.floats(-1e150, 1e150)


def t(*values):
    return torch.tensor(values, dtype=torch.float64)


@given(a=moderate, b=moderate)
def test_sums_products_and_quotients_have_a_direction(a, b):
    x, y = oracles.exact(a), oracles.exact(b)
    assert rounding.add_down(t(a), t(b)).item() <= x + y <= rounding.add_up(t(a), t(b)).item()
    assert rounding.mul_down(t(a), t(b)).item() <= x * y <= rounding.mul_up(t(a), t(b)).item()
    if b != 0:
        assert rounding.div_down(t(a), t(b)).item() <= x / y <= rounding.div_up(t(a), t(b)).item()


@given(x=st.floats(-745, 700))
def test_exp_has_a_direction_and_a_floor(x):
    truth = mpmath.exp(oracles.exact(x))
    down, up = rounding.exp_down(t(x)).item(), rounding.exp_up(t(x)).item()
    assert down <= truth <= up
    assert up >= rounding.TINY
    if x > -700:
        target(float(abs(mpmath.mpf(torch.exp(t(x)).item()) - truth) / truth), label="error of exp")
        assert up <= truth * (1 + mpmath.mpf(2) ** -48)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [1, 7, 4096])
def test_the_error_granted_to_exp_is_twice_what_is_seen(size, threads):
    """Short and long tensors take different code paths in torch; all stay within half of `EXP_RELATIVE`."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        x = -torch.rand(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64) * 700
        found = torch.exp(x)
    finally:
        torch.set_num_threads(before)
    for argument, value in list(zip(x.tolist(), found.tolist(), strict=True))[:500]:
        truth = mpmath.exp(mpmath.mpf(argument))
        assert abs(value - truth) <= truth * rounding.EXP_RELATIVE / 2


@given(x=st.lists(st.floats(1e-300, 1e100), min_size=0, max_size=50))
def test_sums_of_masses_go_up(x):
    total = rounding.sum_up(t(*x), 0).item()
    assert total >= mpmath.fsum(mpmath.mpf(v) for v in x)
    assert (total == 0) == (not x)


@given(part=st.floats(0, 1e300), power=st.integers(-60, 60), ratio=st.floats(0.5, 1))
@example(part=0.0, power=0, ratio=1.0)
def test_a_share_goes_up_and_stays_a_share(part, power, ratio):
    rest = part * ratio * 2.0**power
    share = rounding.share_up(t(part), t(rest)).item()
    assert share <= 1.0
    assert (share == 0.0) == (part == 0.0)
    if part > 0.0:
        x, y = oracles.exact(part), oracles.exact(rest)
        assert share >= x / (x + y)


@given(x=st.lists(st.floats(-1e307, 1e307), min_size=1, max_size=20))
def test_norms_go_up_and_never_underflow(x):
    norm = rounding.norm_up(t(*x)).item()
    truth = mpmath.sqrt(mpmath.fsum(mpmath.mpf(v) ** 2 for v in x))
    assert norm >= truth
    assert norm <= truth * (1 + mpmath.mpf(2) ** -40) + mpmath.mpf(2) ** -1073


def test_norms_of_extreme_vectors():
    assert rounding.norm_up(t(1e-320, 0.0)).item() > 0
    assert rounding.norm_up(t(3e200, 4e200)).item() == pytest.approx(5e200)
    assert rounding.norm_up(torch.zeros(2, 0, dtype=torch.float64)).tolist() == [0.0, 0.0]


@given(n=st.integers(0, 2**40))
def test_gamma_is_rounded_up(n):
    u = mpmath.mpf(2) ** -53
    assert rounding.gamma(n) >= n * u / (1 - n * u)


def test_gamma_refuses_where_it_says_nothing():
    with pytest.raises(ValueError, match="no bound"):
        rounding.gamma(2**53)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@given(x=st.floats(-6e4, 6e4))
def test_one_rounding_to_a_dtype_stays_within_its_unit(dtype, x):
    rounded = mpmath.mpf(t(x).to(dtype).double().item())
    bound = abs(rounded) * mpmath.mpf(rounding.unit_roundoff(dtype)) + rounding.smallest_step(dtype)
    target(float(abs(rounded - x) / bound) if bound else 0.0)
    assert abs(rounded - mpmath.mpf(x)) <= bound
