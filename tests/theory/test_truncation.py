"""Truncation and the gap bound against mpmath and brute force, and the laws that tie them together."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, target
from hypothesis import strategies as st

from rows import masses, rows
from tailbound import theory
from tailbound.theory.inputs import check_head, check_logits

mpmath.mp.dps = 60  # as the other oracles: it holds for the whole process


def close(found, truth, rtol=1e-11):
    assert mpmath.almosteq(mpmath.mpf(float(found)), truth, rel_eps=rtol, abs_eps=mpmath.mpf(10) ** -300), (
        found,
        truth,
    )


@given(case=rows())
def test_tail_mass_kl_and_chi_square_match_their_definitions(case):
    logits, head = case
    inside, tail = masses(logits, head)
    # The logits of a row may be 1e4 with a rounding of 1e-12: everything is compared relative to that.
    close(theory.tail_mass(logits, head), tail / (inside + tail), 1e-9)
    close(theory.kl_divergence(logits, head), mpmath.log1p(tail / inside), 1e-9)
    close(theory.chi_square(logits, head), tail / inside, 1e-9)


@given(case=rows())
def test_tv_of_truncation_is_the_tail_mass(case):
    """Lemma 4.1."""
    logits, head = case
    p, p_hat = torch.softmax(logits, -1), theory.truncate(logits, head)
    torch.testing.assert_close(theory.total_variation(p, p_hat), theory.tail_mass(logits, head), rtol=1e-10, atol=1e-14)


@given(case=rows())
def test_tv_is_one_minus_exp_of_minus_kl(case):
    """Thm 4.3, and chi2 = tau / (1 - tau)."""
    logits, head = case
    tau = theory.tail_mass(logits, head)
    torch.testing.assert_close(theory.tv_from_kl(theory.kl_divergence(logits, head)), tau, rtol=1e-10, atol=0)
    chi = theory.chi_square(logits, head)
    torch.testing.assert_close(chi / (1 + chi), tau, rtol=1e-10, atol=0) if chi.isfinite() else None


@given(case=rows(), shift=st.sampled_from([-1e4, -3.0, 1e4]))
def test_shift_invariance(case, shift):
    logits, head = case
    rtol = 1e-13 * (1 + abs(shift) + float(logits.abs().max()))
    for law in (theory.tail_mass, theory.kl_divergence):
        torch.testing.assert_close(law(logits + shift, head), law(logits, head), rtol=rtol, atol=1e-300)


@given(case=rows(min_n=1), epsilon=st.sampled_from([1e-9, 0.01, 0.1, 0.5, 0.99]))
def test_smallest_k_by_brute_force(case, epsilon):
    logits, _ = case
    n, k = len(logits), int(theory.smallest_k(logits, epsilon))
    tails = {j: mpmath.fdiv(*reversed(_split(logits, j))) for j in range(1, n + 1)}
    margin = mpmath.mpf(10) ** -9
    assert tails[k] <= epsilon * (1 + margin)
    assert k == 1 or tails[k - 1] > epsilon * (1 - margin)


def _split(logits, k):
    inside, tail = masses(logits, theory.top_k(logits, k))
    return inside + tail, tail


@given(case=rows(min_n=2), data=st.data())
def test_gap_bound_is_never_below_the_truth(case, data):
    logits, _ = case
    k = data.draw(st.integers(1, len(logits)))
    total, tail = _split(logits, k)
    bound = float(theory.gap_bound(logits, k))
    target(float(tail / total) - bound, label="truth - bound")
    assert bound >= tail / total * (1 - mpmath.mpf(10) ** -11)


@pytest.mark.parametrize(("n", "k"), [(2, 1), (10, 3), (100, 99)])
@pytest.mark.parametrize("gap", [0.0, 0.3, 5.0, 40.0])
def test_gap_bound_is_tight_for_two_levels(n, k, gap):
    logits = torch.full((n,), -gap, dtype=torch.float64)
    logits[:k] = 0.0
    torch.testing.assert_close(
        theory.gap_bound(logits, k), theory.tail_mass(logits, theory.top_k(logits, k)), rtol=1e-13, atol=0
    )


@given(n=st.integers(2, 10**6), data=st.data(), epsilon=st.floats(1e-12, 1 - 1e-6))
def test_sufficient_gap_is_where_the_bound_meets_epsilon(n, data, epsilon):
    k = data.draw(st.integers(1, n - 1))
    gap = mpmath.mpf(theory.sufficient_gap(n, k, epsilon))
    bound = 1 / (1 + mpmath.mpf(k) / (n - k) * mpmath.exp(gap))
    assert mpmath.almosteq(bound, mpmath.mpf(epsilon), rel_eps=1e-9)


@given(st.lists(st.floats(-60, 60), min_size=1, max_size=40))
def test_a_ranking_says_what_the_heaviest_leave_out(values):
    logits = torch.tensor(values, dtype=torch.float64)
    found = theory.ranking(logits)
    assert found.logits.tolist() == sorted(values, reverse=True)
    assert found.tails[0] == 1
    exact = [theory.tail_mass(logits, theory.top_k(logits, k)) for k in range(1, len(values))]
    torch.testing.assert_close(found.tails[1:], torch.stack(exact) if exact else logits[:0], rtol=1e-12, atol=0)
    tracked = theory.ranking(logits.requires_grad_())
    assert torch.equal(tracked.logits, found.logits)


@given(st.lists(st.floats(-60, 60) | st.just(-math.inf), min_size=2, max_size=40).filter(lambda s: max(s) > -math.inf))
def test_gap_bounds_are_the_gap_bound_of_every_k(values):
    logits = torch.tensor(values, dtype=torch.float64)
    expected = torch.stack([theory.gap_bound(logits, k) for k in range(1, len(values))])
    torch.testing.assert_close(theory.gap_bounds(logits), expected, rtol=1e-12, atol=0)


def test_the_papers_example_of_a_sufficient_gap():
    assert round(theory.sufficient_gap(10_000, 32, 1e-4), 2) == 14.95


def test_ties_go_to_the_smaller_index():
    assert theory.top_k(torch.zeros(5), 2).tolist() == [True, True, False, False, False]


def test_edges():
    one = torch.zeros(1, dtype=torch.float64)
    assert theory.tail_mass(one, torch.tensor([True])) == 0
    assert theory.gap_bound(one, 1) == 0
    assert theory.sufficient_gap(1, 1, 0.5) == -math.inf
    assert theory.smallest_k(one, 0.5) == 1
    far = torch.tensor([0.0, -2000.0], dtype=torch.float64)
    head = torch.tensor([False, True])
    assert theory.tail_mass(far, head) == 1
    assert theory.kl_divergence(far, head) == 2000
    assert theory.tail_mass(far, ~head) == 0  # 1e-869: below float64, rounded to nearest
    hidden = torch.tensor([0.0, -math.inf, -math.inf], dtype=torch.float64)
    assert theory.gap_bound(hidden, 1) == 0
    assert theory.gap_bound(hidden, 2) == 0
    assert theory.smallest_k(hidden, 0.01) == 1


def test_batches_and_float32():
    logits = torch.randn(2, 3, 7)
    assert theory.tail_mass(logits, theory.top_k(logits, 2)).shape == (2, 3)
    assert theory.smallest_k(logits, 0.1).shape == (2, 3)
    assert theory.gap_bound(logits, 2).dtype is torch.float32


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: theory.top_k(s, 0), r"k=0 must be an integer in \[1, 4\]"),
        (lambda s: theory.top_k(s, 5), "k=5"),
        (lambda s: theory.gap_bound(s, 9), "k=9"),
        (lambda s: theory.smallest_k(s, 0.0), r"epsilon=0.0 must be a number in \(0, 1\)"),
        (lambda s: theory.smallest_k(s, 1.0), "epsilon=1.0"),
        (lambda s: theory.sufficient_gap(4, 2, math.nan), "epsilon=nan"),
        (lambda s: theory.smallest_k(s * math.nan, 0.1), "logits holds NaN"),
        (lambda s: theory.top_k(s[:0], 1), "at least one entry"),
        (lambda s: theory.tail_mass(s, torch.zeros(4, dtype=torch.bool)), "head is empty"),
        (lambda s: check_head(torch.ones(3, dtype=torch.bool), s), "cannot be broadcast"),
        (lambda s: check_head(torch.ones(4), s), "head must be a boolean tensor"),
        (lambda s: check_logits(s.half()), "logits must be a float32 or float64 tensor"),
    ],
)
def test_bad_input_names_the_argument_and_the_value(call, words):
    with pytest.raises((ValueError, TypeError), match=words):
        call(torch.zeros(4))
