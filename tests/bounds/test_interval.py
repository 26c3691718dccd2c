"""The interval sketch: its parts against exact arithmetic, and what must be caught when one is missing."""

from fractions import Fraction

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import oracles
from intervals import check_interval, check_state, setups
from tailbound import search, theory
from tailbound.bounds import Sketch, hadamard, interval, run_cells

WIDTHS = [*range(1, 36), 80, 128, 200]


@pytest.mark.parametrize("width", WIDTHS)
def test_the_rotation_is_undone_exactly(width):
    turn, gain = hadamard.rotation(width), hadamard.inverse_gain(width)
    assert torch.equal(turn @ torch.diag(gain) @ turn, torch.eye(width, dtype=torch.float64))
    assert torch.equal(turn, turn.T)
    assert sum(hadamard.blocks(width)) == width


def norm(vector):
    return mpmath.sqrt(
        mpmath.fsum(mpmath.mpf(x.numerator) / x.denominator * (mpmath.mpf(x.numerator) / x.denominator) for x in vector)
    )


def exact_reconstruction(sketch, i):
    """y = c + h H z in rational arithmetic, from what is stored."""
    turn = hadamard.rotation(sketch.keys.shape[1])
    center = [Fraction(float(c)) for c in sketch.center[int(sketch.page[i])]]
    step, codes = Fraction(float(sketch.coded.step[i])), [int(z) for z in sketch.coded.codes[i]]
    return [
        c + step * sum(Fraction(float(t)) * z for t, z in zip(row, codes, strict=True))
        for c, row in zip(center, turn, strict=True)
    ]


@given(setup=setups())
def test_the_residual_is_never_below_the_distance_and_codes_stay_in_range(setup):
    sketch = Sketch(setup[0])
    assert sketch.coded.codes.dtype is torch.int8
    assert int(sketch.coded.codes.min()) >= -127
    for i in range(len(setup[0])):
        away = [Fraction(float(k)) - y for k, y in zip(sketch.keys[i], exact_reconstruction(sketch, i), strict=True)]
        residual = float(sketch.coded.residual[i])
        assert residual >= norm(away)
        assert mpmath.mpf(float(sketch.coded.extent[i])) >= norm(
            [Fraction(int(z)) * Fraction(float(sketch.coded.step[i])) for z in sketch.coded.codes[i]]
        )
        if sketch.coded.step[i] > 1e-37:  # half a step a code, rotated back, and the roundings of the stored numbers
            size = float(sketch.keys[i].double().norm() + sketch.center[int(sketch.page[i])].double().norm())
            half = float(sketch.coded.step[i]) * 0.5 * (2 * len(away)) ** 0.5
            assert residual <= 1.02 * half + 1e-12 * size


@given(setup=setups())
def test_the_query_coding_error_is_never_below_the_truth(setup):
    query = setup[1].double()
    word, unit, error = interval.code_query(query)
    turn = hadamard.rotation(len(query))
    exact = [sum(Fraction(float(t)) * Fraction(float(q)) for t, q in zip(row, query, strict=True)) for row in turn]
    missing = [x - Fraction(float(unit)) * int(w) for x, w in zip(exact, word, strict=True)]
    assert error.item() >= norm(missing)
    assert int(word.abs().max()) <= interval.WORD_MAX
    coarse, fine = interval.planes(word)
    assert torch.equal(64 * coarse.int() + fine.int(), word)
    assert min(int(coarse.min()), int(fine.min())) >= -63
    largest = float(query.abs().sum())
    assert error.item() <= largest * (2 * len(query)) ** 0.5 * 2.0**-12 + 1e-290


@given(setup=setups(), cut=st.integers(1, 8))
def test_append_leaves_old_keys_as_they_are_and_bounds_new_ones(setup, cut):
    keys, query, scale, _ = setup
    cut = min(cut, len(keys))
    old = Sketch(keys[:cut])
    grown = old.append(keys[cut:]) if cut < len(keys) else old
    for name, before, after in zip(old.coded._fields, old.coded, grown.coded, strict=True):
        assert torch.equal(after[:cut], before), name
    rebuilt = Sketch(keys, center=old.center)
    for a, b in zip(grown.interval(query, scale), rebuilt.interval(query, scale), strict=True):
        assert torch.equal(a, b)
    check_state(grown, query, scale)


def test_a_new_page_has_its_own_centre():
    gen = torch.Generator().manual_seed(0)
    keys = torch.cat([torch.randn(256, 4, generator=gen) + 100, torch.randn(40, 4, generator=gen) - 100])
    sketch = Sketch(keys[:256]).append(keys[256:])
    assert sketch.center.shape == (2, 4)
    assert sketch.coded.residual.double().max() < 0.1
    check_state(sketch, torch.randn(4, generator=gen), -0.4)


@pytest.mark.parametrize("width", [16, 64, 80, 128, 512])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_at_most_8_bytes_a_key_beside_the_codes(width, dtype):
    assert Sketch(torch.randn(4, width).to(dtype)).bytes_per_key <= width + 8


def test_keys_beyond_bfloat16_are_bounded_by_infinity_not_by_nonsense():
    keys = torch.tensor([[3.4e38, 3.4e38], [1.0, 2.0]])
    lower, upper = Sketch(keys).interval(torch.tensor([0.0, 0.0]), 1.0)
    assert (lower <= 0).all()
    assert (upper >= 0).all()
    far = Sketch(torch.tensor([[1e300, -1e300], [1.0, 2.0]], dtype=torch.float64))
    lower, upper = far.interval(torch.ones(2, dtype=torch.float64), 1.0)
    assert lower[1] <= 3 <= upper[1]
    assert not (lower.isnan() | upper.isnan()).any()


def caught(count=40):
    gen, broken = torch.Generator().manual_seed(9), 0
    for _ in range(count):
        keys = torch.randn(4, 2, generator=gen)
        setup = (keys, torch.randn(2, generator=gen) * 3, 0.5, torch.arange(4))
        try:
            check_interval(Sketch, setup)
        except AssertionError:
            broken += 1
    return broken


def aligned_caught(count=40):
    """Queries along the residual, where Cauchy-Schwarz is an equality and nothing is left to spare."""
    gen, broken = torch.Generator().manual_seed(9), 0
    for _ in range(count):
        keys = torch.randn(3, 16, generator=gen)
        sketch = Sketch(keys)
        away = [float(Fraction(float(k)) - y) for k, y in zip(keys[0], exact_reconstruction(sketch, 0), strict=True)]
        query = torch.tensor(away, dtype=torch.float64)
        query = query / query.norm()
        try:
            check_state(sketch, query, 1.0)
        except AssertionError:
            broken += 1
    return broken


def test_control_residuals_rounded_to_nearest_are_caught(monkeypatch):
    """Seen where the residual is all there is: the query is coded exactly, and points along it."""
    monkeypatch.setattr(interval, "code_query", _exactly)
    assert aligned_caught() == 0
    monkeypatch.setattr(interval, "_bfloat16_up", lambda x: x.to(torch.bfloat16))
    assert aligned_caught() >= 5


def _exactly(query):
    """A coding without error, as far as float64 goes: the words are the rotated query itself."""
    turned = hadamard.rotate(query)
    return interval.Words(turned, torch.ones_like(query[..., 0]), torch.zeros_like(query[..., 0]))


def test_control_a_dropped_residual_is_caught(monkeypatch):
    assert caught() == 0
    real = interval.code_keys

    def without(wide, center):
        coded = real(wide, center)
        return coded._replace(residual=coded.residual * 0)

    monkeypatch.setattr(interval, "code_keys", without)
    assert caught() >= 30


def _without_error(real):
    def code(query):
        words = real(query)
        return words._replace(error=torch.zeros_like(words.error))

    return code


def test_control_a_dropped_query_coding_term_is_caught(monkeypatch):
    """Keys that are coded exactly leave the query's own coding as the only error."""
    real = interval.code_query

    def find():
        gen, broken = torch.Generator().manual_seed(2), 0
        for _ in range(20):
            codes = torch.randint(-127, 128, (4, 2), generator=gen).double()
            codes[:, 0] = 127.0
            keys = codes @ hadamard.rotation(2)
            sketch = Sketch(keys, center=torch.zeros(1, 2))
            try:
                check_state(sketch, torch.randn(2, generator=gen), 1.0)
            except AssertionError:
                broken += 1
        return broken

    assert find() == 0
    monkeypatch.setattr(interval, "code_query", _without_error(real))
    assert find() >= 10


@pytest.mark.parametrize("epsilon", [0.1, 0.01])
def test_mass_search_over_a_sketch_scores_hardly_more_keys_than_the_oracle(epsilon):
    gen = torch.Generator().manual_seed(0)
    keys, query = torch.randn(1500, 64, generator=gen), torch.randn(64, generator=gen) * 4
    logits = keys.double() @ query.double() / 8
    found = search.mass_search(Sketch(keys), query, logits.__getitem__, epsilon=epsilon, scale=0.125)
    needed = int(theory.smallest_k(logits, epsilon))
    assert found.status is search.SearchStatus.CERTIFIED
    assert needed <= found.cost.keys_scored <= 1.25 * needed


def test_every_key_is_its_own_cell():
    with pytest.raises(ValueError, match="every key of a sketch is its own cell"):
        Sketch(torch.zeros(4, 2), run_cells(4, 2))


def test_intervals_hold_against_the_oracle_at_many_widths():
    gen = torch.Generator().manual_seed(5)
    for width in WIDTHS:
        keys, query = torch.randn(3, width, generator=gen), torch.randn(width, generator=gen)
        lower, upper = Sketch(keys).interval(query, -1.0)
        for i in range(3):
            assert lower[i].item() <= oracles.logit(query, keys[i], -1.0) <= upper[i].item()
