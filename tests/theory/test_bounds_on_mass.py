"""Several gaps, block gap and block mass: never below the truth, tight where they say so, against mpmath."""

import itertools

import mpmath
import pytest
import torch
from hypothesis import given, target
from hypothesis import strategies as st

from rows import masses, rows
from tailbound import theory

SLACK = 1 - mpmath.mpf(10) ** -10


def truth(logits, k):
    order = sorted(range(len(logits)), key=lambda i: (-logits[i].item(), i))
    head = torch.zeros(len(logits), dtype=torch.bool)
    head[order[:k]] = True
    inside, tail = masses(logits, head)
    return tail / (inside + tail)


@given(case=rows(min_n=3), data=st.data())
def test_several_gaps_both_forms_are_never_below_the_truth(case, data):
    logits, _ = case
    n = len(logits)
    k = data.draw(st.integers(1, n - 2))
    m = data.draw(st.integers(1, n - k - 1))
    sharper, printed = (float(theory.several_gaps_bound(logits, k, m, printed=p)) for p in (False, True))
    tail = truth(logits, k)
    target(float(tail) - sharper, label="truth - bound")
    assert sharper >= tail * SLACK
    assert printed >= sharper * (1 - 1e-12)  # both round to nearest
    ranked = sorted(map(mpmath.mpf, logits.tolist()), reverse=True)
    r = (m * mpmath.exp(ranked[k] - ranked[k - 1]) + (n - k - m) * mpmath.exp(ranked[k + m] - ranked[k - 1])) / k
    assert mpmath.almosteq(printed, r, rel_eps=1e-10, abs_eps=1e-300)


@given(case=rows(min_n=1), data=st.data())
def test_best_gap_bound_is_the_minimum_over_m_and_the_single_gap(case, data):
    logits, _ = case
    n = len(logits)
    k = data.draw(st.integers(1, n))
    best = theory.best_gap_bound(logits, k)
    candidates = [float(theory.gap_bound(logits, k))]
    candidates += [float(theory.several_gaps_bound(logits, k, m)) for m in range(1, n - k)]
    assert float(best.bound) == pytest.approx(min(candidates), rel=1e-12, abs=1e-300)
    assert candidates[int(best.m)] == pytest.approx(min(candidates), rel=1e-12, abs=1e-300)
    assert float(best.bound) >= truth(logits, k) * SLACK


def test_several_gaps_are_tight_for_three_levels_and_the_printed_form_is_worse_than_one_gap():
    logits = torch.tensor([3.0] * 2 + [1.0] * 3 + [-2.0] * 4, dtype=torch.float64)
    assert float(theory.several_gaps_bound(logits, 2, 3)) == pytest.approx(float(truth(logits, 2)), rel=1e-13)
    flat = torch.zeros(9, dtype=torch.float64)
    assert theory.several_gaps_bound(flat, 2, 3, printed=True) > theory.gap_bound(flat, 2)


@st.composite
def blocked(draw):
    case = draw(rows(min_n=1))
    n = len(case[0])
    count = draw(st.integers(1, n))
    blocks = draw(st.lists(st.integers(0, count - 1), min_size=n, max_size=n))
    return case[0], torch.tensor(blocks), count


def exact_blocks(logits, blocks, count):
    top = mpmath.mpf(logits.max().item())
    terms = [mpmath.exp(mpmath.mpf(s) - top) for s in logits.tolist()]
    return [mpmath.fsum(t for t, b in zip(terms, blocks.tolist(), strict=True) if b == j) for j in range(count)]


@given(case=blocked())
def test_block_masses_match_their_definition(case):
    logits, blocks, count = case
    found = (theory.block_log_masses(logits, blocks, count) - logits.max()).exp()
    for mass, exact in zip(found.tolist(), exact_blocks(*case), strict=True):
        assert mpmath.almosteq(mass, exact, rel_eps=1e-9, abs_eps=1e-300)


@given(case=blocked(), data=st.data())
def test_block_gap_is_never_below_the_truth_for_the_heaviest_blocks(case, data):
    z = exact_blocks(*case)
    alpha = data.draw(st.integers(1, len(z)))
    log_masses = theory.block_log_masses(*case)
    ranked = sorted(z, reverse=True)
    tail = mpmath.fsum(ranked[alpha:]) / mpmath.fsum(ranked)
    bound = float(theory.block_gap_bound(log_masses, alpha))
    target(float(tail) - bound, label="truth - bound")
    assert bound >= tail * SLACK
    assert alpha < len(z) or bound == 0


def test_block_gap_is_tight_and_false_for_other_sets():
    z = torch.tensor([4.0, 4.0, 1.0, 1.0, 1.0], dtype=torch.float64).log()
    assert float(theory.block_gap_bound(z, 2)) == pytest.approx(3 / 11, rel=1e-14)
    assert float(theory.block_gap_bound(z, 2)) < 8 / 11  # keeping two light blocks would leave that out


@given(case=blocked(), data=st.data())
def test_block_mass_is_never_below_the_truth_for_any_set(case, data):
    z = exact_blocks(*case)
    logs = [mpmath.log(m) if m else mpmath.mpf("-inf") for m in z]
    wide = data.draw(st.lists(st.floats(0, 5), min_size=len(z), max_size=len(z)))
    lower = torch.tensor([float(x) - w for x, w in zip(logs, wide, strict=True)], dtype=torch.float64)
    upper = torch.tensor([float(x) + w for x, w in zip(logs, reversed(wide), strict=True)], dtype=torch.float64)
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(z), max_size=len(z))))
    tail = mpmath.fsum(m for m, keep in zip(z, kept.tolist(), strict=True) if not keep) / mpmath.fsum(z)
    bound = float(theory.block_mass_bound(lower, upper, kept))
    target(float(tail) - bound, label="truth - bound")
    assert bound >= tail * SLACK


@given(case=blocked(), data=st.data())
def test_block_mass_is_equal_to_the_truth_when_the_bounds_meet(case, data):
    z = exact_blocks(*case)
    log_masses = theory.block_log_masses(*case)
    kept = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(z), max_size=len(z))))
    tail = mpmath.fsum(m for m, keep in zip(z, kept.tolist(), strict=True) if not keep) / mpmath.fsum(z)
    found = float(theory.block_mass_bound(log_masses, log_masses, kept))
    assert mpmath.almosteq(found, tail, rel_eps=1e-8, abs_eps=1e-300)


def test_keeping_the_largest_lower_bounds_does_not_minimise_block_mass():
    lower = torch.tensor([0.0, -0.1, -9.0], dtype=torch.float64)
    upper = torch.tensor([0.0, -0.1, 5.0], dtype=torch.float64)
    best = min(
        itertools.combinations(range(3), 2),
        key=lambda pair: float(theory.block_mass_bound(lower, upper, torch.tensor([i in pair for i in range(3)]))),
    )
    assert best != (0, 1)


def test_edges_of_the_block_bounds():
    z = torch.zeros(3, dtype=torch.float64)
    everything = torch.ones(3, dtype=torch.bool)
    assert theory.block_mass_bound(z, z + 9, everything) == 0
    assert theory.block_mass_bound(z, z + 9, ~everything) == 1
    assert theory.block_mass_bound(z, z + torch.inf, torch.tensor([True, False, False])) == 1
    empty = torch.tensor([0.0, -torch.inf, -torch.inf], dtype=torch.float64)
    assert theory.block_mass_bound(empty, empty, torch.tensor([True, False, False])) == 0
    assert theory.block_gap_bound(empty, 1) == 0


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda s: theory.several_gaps_bound(s, 2, 2), r"m=2 must be an integer in \[1, 1\]"),
        (lambda s: theory.several_gaps_bound(s, 3, 1), "k=3 leaves 1 of 4 entries"),
        (lambda s: theory.several_gaps_bound(s, 0, 1), "k=0"),
        (lambda s: theory.best_gap_bound(s, 5), "k=5"),
        (lambda s: theory.block_gap_bound(s, 0), r"alpha=0 must be an integer in \[1, 4\]"),
        (lambda s: theory.block_gap_bound(s * float("nan"), 1), "log_masses holds NaN"),
        (lambda s: theory.block_log_masses(s, torch.tensor([0, 1, 2, 7]), 3), "allowed: 0 to 2"),
        (lambda s: theory.block_mass_bound(s + 1, s, s > -1), "log_lower must be at most log_upper"),
    ],
)
def test_bad_input_names_the_argument_and_the_value(call, words):
    with pytest.raises(ValueError, match=words):
        call(torch.zeros(4, dtype=torch.float64))
