"""Identities and bounds on the output, against exact rational and 50-digit arithmetic."""

import itertools
import re

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, target
from hypothesis import strategies as st

from rows import rows
from tailbound import theory


@st.composite
def attended(draw):
    logits, head = draw(rows())
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    values = torch.randn(len(logits), draw(st.integers(1, 4)), generator=gen, dtype=torch.float64)
    return logits, values * draw(st.sampled_from([1.0, 1e-20, 1e20])) + draw(st.sampled_from([0.0, 7.0])), head


def exact(logits, values, head):
    """(tau, |Attn - Attn_k|, Attn - Attn_k, total variance) to 50 digits."""
    top = mpmath.mpf(logits.max().item())
    w = [mpmath.exp(mpmath.mpf(s) - top) for s in logits.tolist()]
    v = [[mpmath.mpf(x) for x in row] for row in values.tolist()]
    inside = [i for i in range(len(w)) if head[i]]
    z, zh = mpmath.fsum(w), mpmath.fsum(w[i] for i in inside)
    full = [mpmath.fsum(w[i] * v[i][c] for i in range(len(w))) / z for c in range(values.shape[1])]
    part = [mpmath.fsum(w[i] * v[i][c] for i in inside) / zh for c in range(values.shape[1])]
    gap = [a - b for a, b in zip(full, part, strict=True)]
    spread = mpmath.fsum(
        w[i] * mpmath.fsum((a - b) ** 2 for a, b in zip(v[i], full, strict=True)) for i in range(len(w))
    )
    tail = mpmath.fsum(w[i] for i in range(len(w)) if not head[i])
    return tail / z, mpmath.sqrt(mpmath.fsum(g * g for g in gap)), gap, spread / z


@given(case=attended())
def test_output_difference_is_the_identity(case):
    """Thm 5.2."""
    size = float(case[1].abs().max())
    _, _, gap, _ = exact(*case)
    found = theory.output_difference(*case)
    for a, b in zip(found.tolist(), gap, strict=True):
        assert abs(a - b) <= 1e-11 * size


BOUNDS = [theory.norm_bound, theory.diameter_bound, theory.variance_bound]


@pytest.mark.parametrize("bound", BOUNDS, ids=lambda f: f.__name__)
@given(case=attended())
def test_bounds_are_never_below_the_true_error(bound, case):
    """Prop 5.1, Prop 5.3, Prop 5.4 with Cor 5.5."""
    _, error, _, _ = exact(*case)
    found = float(bound(*case))
    size = float(case[1].abs().max())
    if found > 0:
        target(float(error / found), label="true error / bound")
    assert found >= error * (1 - mpmath.mpf(10) ** -9) - 1e-13 * size


@given(case=attended())
def test_best_bound_is_the_smallest_and_names_it(case):
    """Thm 5.6."""
    three = [float(bound(*case)) for bound in BOUNDS]
    best = theory.best_bound(*case)
    assert float(best.bound) == min(three) == three[int(best.winner)]
    assert theory.BOUNDS[int(best.winner)] in BOUNDS[int(best.winner)].__name__


@given(case=attended())
def test_variance_decomposes(case):
    """Lemma A.7."""
    *_, total = exact(*case)
    parts = theory.variances(*case)
    size = float(case[1].abs().max()) ** 2
    assert abs(float(parts.total) - total) <= 1e-11 * size
    assert abs(float(parts.within_head + parts.within_tail + parts.between) - total) <= 1e-11 * size


def test_each_bound_wins_somewhere_and_two_are_tight():
    z = torch.zeros(2, dtype=torch.float64)
    head = torch.tensor([True, False])
    opposite = torch.tensor([[-1.0], [1.0]], dtype=torch.float64)
    error = theory.output_difference(z, opposite, head).norm()
    for bound in BOUNDS:
        assert bound(z, opposite, head) == pytest.approx(float(error), rel=1e-14)
    far = opposite + 100
    assert theory.diameter_bound(z, far, head) == pytest.approx(1.0)
    assert theory.norm_bound(z, far, head) > 100
    many = torch.zeros(101, dtype=torch.float64)
    values = torch.zeros(101, 1, dtype=torch.float64)
    values[-1] = 1.0  # one far value in the tail: the variance is small, the diameter is not
    assert theory.BOUNDS[int(theory.best_bound(many, values, torch.arange(101) < 10).winner)] == "variance"


def test_edges_of_the_output_bounds():
    logits, values = torch.zeros(3, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    everything = torch.ones(3, dtype=torch.bool)
    assert (theory.output_difference(logits, values, everything) == 0).all()
    assert all(bound(logits, values, everything) == 0 for bound in BOUNDS)
    assert (theory.means(logits, values, everything).tail == 0).all()
    one = torch.ones(1, dtype=torch.bool)
    assert theory.best_bound(logits[:1], values[:1], one).bound == 0
    far = torch.tensor([0.0, -5000.0], dtype=torch.float64)  # tau near 1
    assert theory.output_difference(far, values[:2], torch.tensor([False, True])).isfinite().all()
    assert theory.diameter_bound(far, values[:2], torch.tensor([False, True])) > 0
    hidden = torch.tensor([0.0, 0.0, -torch.inf], dtype=torch.float64)
    huge = torch.cat([values[:2], torch.full((1, 2), 1e9, dtype=torch.float64)])
    assert theory.norm_bound(hidden, huge, torch.tensor([True, False, False])) < 10


@pytest.mark.parametrize(
    ("values", "words"),
    [(torch.zeros(2, 1), "values has shape"), (torch.full((3, 1), torch.nan), "values holds NaN")],
)
def test_values_that_do_not_fit_are_refused(values, words):
    refused = re.compile(f"{words}|Type-check")
    with pytest.raises((ValueError, TypeError), match=refused):
        theory.norm_bound(torch.zeros(3), values, torch.tensor([True, False, False]))


@given(
    n=st.integers(2, 8),
    width=st.integers(1, 3),
    seed=st.integers(0, 2**31),
    grid=st.booleans(),
)
def test_the_smallest_cross_diameter_is_found_among_all_splits(n, width, seed, grid):
    """Lemma 5.7 and Thm 5.8 by brute force; a grid of small integers makes many ties and equal values."""
    rng = np.random.default_rng(seed)
    points = rng.integers(0, 3, (n, width)).astype(float) if grid else rng.standard_normal((n, width))
    apart = np.sqrt(((points[:, None] - points[None]) ** 2).sum(-1))
    best = min(
        max(apart[i, j] for i in part for j in range(n) if j not in part)
        for size in range(1, n // 2 + 1)
        for part in itertools.combinations(range(n), size)
    )
    split = theory.smallest_cross_diameter(torch.from_numpy(points))
    head = split.head.numpy()
    assert head[0]
    assert not head.all()
    assert apart[np.ix_(head, ~head)].max() == pytest.approx(best, rel=1e-12, abs=1e-300)
    assert float(split.diameter) == pytest.approx(best, rel=1e-12, abs=1e-300)
    i, j = split.edge
    assert head[i] != head[j]


@pytest.mark.parametrize("values", [torch.zeros(1, 2), torch.zeros(0, 2), torch.full((3, 1), torch.inf)])
def test_one_value_has_no_split(values):
    with pytest.raises(ValueError, match=r"a split needs|NaN or infinity"):
        theory.smallest_cross_diameter(values)


@pytest.mark.parametrize("scale", [5e-324, 1e-310, 1e-200, 1.0, 1e200, 1e307])
@pytest.mark.parametrize("shift", [0.0, 1.0, 1e12])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_diameter_is_that_of_the_farthest_pair_at_any_scale(scale, shift, dtype):
    """Against all pairs, to 50 digits: vectors far from zero, and numbers whose squares overflow or vanish."""
    generator = torch.Generator().manual_seed(0)
    for n, width in ((2, 1), (9, 3), (40, 5)):
        drawn = torch.randn(n, width, generator=generator, dtype=torch.float64) + shift
        values = (drawn * (scale / max(1.0, shift))).to(dtype)
        if not values.isfinite().all():
            continue
        head = torch.arange(n) < n // 2
        z = torch.zeros(n, dtype=dtype)
        exactly = [[mpmath.mpf(x) for x in row] for row in values.tolist()]
        farthest = max(
            mpmath.sqrt(mpmath.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
            for a in exactly[: n // 2]
            for b in exactly[n // 2 :]
        )
        true = farthest * (n - n // 2) / n
        found = mpmath.mpf(theory.diameter_bound(z, values, head).item())
        step = mpmath.mpf(torch.finfo(dtype).smallest_normal) * torch.finfo(dtype).eps
        assert abs(found - true) <= true * 8 * torch.finfo(dtype).eps + 2 * step or mpmath.isinf(found)


def test_the_diameter_beside_a_column_that_all_values_share():
    values = torch.ones(20, 2, dtype=torch.float64)
    values[:, 1] = 1e-200 * torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    head = torch.arange(20) < 10
    true = (values[:10, None, 1] - values[None, 10:, 1]).abs().max() / 2
    found = theory.diameter_bound(torch.zeros(20, dtype=torch.float64), values, head)
    assert float(found) == pytest.approx(float(true), rel=1e-12, abs=0)
