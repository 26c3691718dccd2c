"""The merge law: identity, commutative, associative within rounding, equal to one pass, a sink once."""

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tailbound.bounds import rounding
from tailbound.engine import finish, partial

ROWS, WIDTH = 3, 4


@st.composite
def blocks(draw, errors=(0.0, 1e-9, 0.5)):
    """Logits of a few rows over a few blocks of keys, what each may be off by, values, a head and a visible set."""
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    sizes = draw(st.lists(st.integers(0, 6), min_size=1, max_size=6))
    scale = draw(st.sampled_from([1.0, 10.0, 300.0, 3000.0]))
    n = sum(sizes)
    logits = torch.randn(ROWS, n, generator=gen, dtype=torch.float64) * scale
    largest = draw(st.sampled_from(errors))
    error = largest * torch.rand(ROWS, n, generator=gen, dtype=torch.float64)
    visible = torch.rand(ROWS, n, generator=gen) > 0.2
    head = visible & (torch.rand(ROWS, n, generator=gen) > 0.4)
    values = torch.randn(n, WIDTH, generator=gen, dtype=torch.float64)
    return sizes, logits, error, values, head, visible


def states(case):
    sizes, logits, error, values, head, visible = case
    parts = (x.split(sizes, -1) for x in (logits, error, head, visible))
    return [
        partial.from_keys(s, e, v, h, seen)
        for (s, e, h, seen), v in zip(zip(*parts, strict=True), values.split(sizes), strict=True)
    ]


def same(a, b, exactly=False):
    """Equal up to the errors that the states themselves state."""
    assert torch.equal(a.kept, b.kept)
    assert torch.equal(a.shift, b.shift)
    for name in ("mass", "weighted", "tail"):
        rtol = 0.0 if exactly else 1e-11
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=rtol, atol=0.0 if exactly else 1e-300)


@given(case=blocks())
def test_identity(case):
    for state in states(case):
        for merged in (
            partial.merge(state, partial.identity((ROWS,), WIDTH)),
            partial.merge(partial.identity((ROWS,), WIDTH), state),
        ):
            same(state, merged)
            assert torch.equal(state.mass, merged.mass)
            assert torch.equal(state.tail > 0, merged.tail > 0)


@given(case=blocks())
def test_commutative_to_the_bit(case):
    parts = states(case)
    same(partial.merge(parts[0], parts[-1]), partial.merge(parts[-1], parts[0]), exactly=True)


@given(case=blocks(), cut=st.integers(0, 5))
def test_associative(case, cut):
    parts = states(case)
    cut = 1 + cut % len(parts)
    left = partial.merge_all(parts[:cut])
    if parts[cut:]:
        same(partial.merge_all(parts), partial.merge(left, partial.merge_all(parts[cut:])))
    folded = parts[0]
    for part in parts[1:]:
        folded = partial.merge(folded, part)
    same(partial.merge_all(parts), folded)


@given(case=blocks())
def test_equal_to_one_pass(case):
    _, logits, error, values, head, visible = case
    same(partial.merge_all(states(case)), partial.from_keys(logits, error, values, head, visible))


@given(case=blocks())
def test_merged_tail_and_mass_bound_the_truth(case):
    """To 60 digits: the tail is at least, the mass rounded down at most, what they stand for; so tv is sound.

    Of all true logits within the errors, those are taken that make the tail heaviest and the head lightest.
    """
    _, logits, error, _, head, visible = case
    whole = partial.merge_all(states(case))
    sure, tv = finish.mass_down(whole), rounding.share_up(whole.tail, finish.mass_down(whole))
    for row in range(ROWS):
        if not visible[row].any():
            assert tv[row] == 0
            continue
        level = mpmath.mpf(whole.shift[row].item())
        away = list(zip(logits[row].tolist(), error[row].tolist(), head[row], visible[row], strict=True))
        unread = mpmath.fsum(mpmath.exp(mpmath.mpf(s) + e - level) for s, e, h, v in away if v and not h)
        read = mpmath.fsum(mpmath.exp(mpmath.mpf(s) - e - level) for s, e, h, _ in away if h)
        assert whole.tail[row].item() >= unread
        assert sure[row].item() <= read
        assert tv[row].item() >= unread / (read + unread)
        assert (whole.tail[row] > 0) == bool(unread > 0)


@given(case=blocks(errors=[0.0]))  # the larger of two errors may cost more than either part pays
def test_merged_tv_lies_between_the_parts(case):
    parts = states(case)
    a, b = parts[0], parts[-1]
    both = partial.merge(a, b)
    tv_a, tv_b, tv = (rounding.share_up(s.tail, finish.mass_down(s)) for s in (a, b, both))
    some = [(s.mass > 0) | (s.tail > 0) for s in (a, b)]
    ok = some[0] & some[1]
    floors = case[1].shape[-1] * rounding.TINY  # each unread key, and each state that moves, counts at least this much
    assert (tv[ok] <= torch.maximum(tv_a, tv_b)[ok] * (1 + 1e-11) + 2 * floors).all()
    assert (tv[ok] >= torch.minimum(tv_a, tv_b)[ok] * (1 - 1e-11)).all()


@given(case=blocks(), sink=st.sampled_from([-1000.0, -2.0, 0.0, 5.0, 900.0]))
def test_a_sink_counts_once_wherever_it_is_merged(case, sink):
    parts = states(case)
    state = partial.from_sink(torch.full((ROWS,), sink, dtype=torch.float64), WIDTH)
    last = partial.merge(partial.merge_all(parts), state)
    first = partial.merge_all([state, *parts])
    same(last, first)


def test_a_sink_of_minus_infinity_is_no_sink():
    state = partial.from_sink(torch.tensor([-torch.inf], dtype=torch.float64), WIDTH)
    same(state, partial.identity((1,), WIDTH), exactly=True)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8, 13])
def test_the_tree_is_fixed(count):
    gen = torch.Generator().manual_seed(count)
    logits = torch.randn(1, count * 4, generator=gen, dtype=torch.float64)
    sizes = [4] * count
    everything = torch.ones_like(logits, dtype=torch.bool)
    values = torch.randn(count * 4, WIDTH, generator=gen, dtype=torch.float64)
    case = (sizes, logits, torch.zeros_like(logits), values, everything, everything)
    same(partial.merge_all(states(case)), partial.merge_all(states(case)), exactly=True)
