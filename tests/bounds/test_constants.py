"""Each constant of rounding and of the sketch, dropped alone: a law of exact arithmetic breaks without it.

Inputs leave no other slack: sums of powers of two, keys that are coded exactly, components along one direction. Where
one constant hides another however the input is chosen, the test says so and measures the margin that is left. The
sketch without a residual is in test_interval.py, the constants of the engine in engine/test_constants.py.
"""

from fractions import Fraction

import mpmath
import pytest
import torch

import oracles
from constants import broken, exact, flushing, no_gamma, norm, same, t
from tailbound.bounds import Sketch, hadamard, interval, rounding

# Directions, sums, exp.

DIRECTED = {
    "add_up": (rounding.add_up, lambda a, b: a + b, "up"),
    "mul_up": (rounding.mul_up, lambda a, b: a * b, "up"),
    "div_up": (rounding.div_up, lambda a, b: a / b, "up"),
    "add_down": (rounding.add_down, lambda a, b: a + b, "down"),
    "mul_down": (rounding.mul_down, lambda a, b: a * b, "down"),
    "div_down": (rounding.div_down, lambda a, b: a / b, "down"),
}


@pytest.mark.parametrize("name", DIRECTED)
def test_control_one_float_up_or_down(name):
    operation, truth, step = DIRECTED[name]
    x, y = torch.rand(2, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.5

    def law():
        real = [truth(a, b) for a, b in zip(exact(x), exact(y), strict=True)]
        pairs = list(zip(exact(operation(x, y)), real, strict=True))
        return all(a >= b for a, b in pairs) if step == "up" else all(a <= b for a, b in pairs)

    assert broken(law, (rounding, step, same))


@pytest.mark.parametrize("steps", [("down",), ("up", "down")])
def test_control_the_share_of_the_tail_rounded_to_nearest(steps):
    """Two steps down hide one step up here; `up` alone is missed in the sums, products and quotients above."""
    part, rest = torch.rand(2, 512, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def law():
        shares = exact(rounding.share_up(part, rest))
        return all(s >= a / (a + b) for s, a, b in zip(shares, exact(part), exact(rest), strict=True))

    assert broken(law, *((rounding, step, same) for step in steps))


def test_control_gamma_of_a_sum_of_masses():
    terms = torch.rand(64, 5000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def law():
        return all(
            Fraction(s) >= sum(exact(row)) for s, row in zip(rounding.sum_up(terms, -1).tolist(), terms, strict=True)
        )

    assert broken(law, (rounding, "gamma", no_gamma))


@pytest.mark.parametrize("units", [-7.0, 7.0])
def test_control_the_error_granted_to_exp(units, monkeypatch):
    """A library that errs by one float is covered by `up` and `down` already: one that errs by 7 units stands in.

    How far torch is from that, test_rounding.py measures.
    """
    points = t(0.0, -0.25, -1.0, -7.5, -300.0)
    near = torch.exp
    monkeypatch.setattr(torch, "exp", lambda x: near(x) * (1.0 + units * rounding.UNIT))

    def law():
        truth = [mpmath.exp(mpmath.mpf(x)) for x in points.tolist()]
        low, high = rounding.exp_down(points).tolist(), rounding.exp_up(points).tolist()
        return all(a <= x <= b for a, x, b in zip(low, truth, high, strict=True))

    assert broken(law, (rounding, "EXP_RELATIVE", 0.0))


# The sketch.


def residual_law(keys, center):
    """The residual is at least the distance of a key from its reconstruction."""
    sketch = Sketch(keys, center=center)
    turn = hadamard.rotation(keys.shape[1])
    for i in range(len(keys)):
        step, codes = Fraction(sketch.coded.step[i].item()), exact(sketch.coded.codes[i])
        moved = [step * sum(a * z for a, z in zip(exact(row), codes, strict=True)) for row in turn]
        key, middle = exact(keys[i]), exact(sketch.center[0])
        away = [k - c - m for k, c, m in zip(key, middle, moved, strict=True)]
        residual = sketch.coded.residual[i].item()
        if residual < norm(away):
            return False
    return True


def test_control_the_roundings_of_a_residual():
    """127 + 2^-46 from a centre of -1905: the difference rounds to 2032, which is 127 steps of 16."""
    keys, center = t(127.0 + 2.0**-46)[None], torch.tensor([[-1905.0]])
    real = rounding.gamma
    drop = (rounding, "gamma", lambda n: 0.0 if n == 4 else real(n))
    assert broken(lambda: residual_law(keys, center), drop)


def test_control_a_denormal_key_read_as_zero():
    keys, center = torch.full((1, 4), 3 * 2.0**-130), torch.zeros(1, 4)

    def coded():
        with flushing():
            return interval.code_keys(keys.double(), center).residual.double().item()

    assert broken(lambda: coded() >= norm(exact(keys)), (interval, "_flush", lambda width: 0.0))


def test_control_an_extent_rounded_to_nearest():
    """A key coded exactly, along the coding error of the query: then `|e| h |z|` is all there is, to a part in 10^9."""
    gen = torch.Generator().manual_seed(9)
    steps = (torch.randint(128, 256, (40,), generator=gen).double() / 128).tolist()
    seconds = (torch.rand(40, generator=gen, dtype=torch.float64) * 0.7).tolist()
    real = interval.code_keys

    def law():
        for step, second in zip(steps, seconds, strict=True):
            keys = step * 127.0 * t(1.0, -1.0)[None]  # H z for z = (0, 127)
            query = t(1.0 + second, 1.0 - second) / 2.0  # H q = (1, second): the first is coded without error
            for sign in (1.0, -1.0):
                lower, upper = Sketch(keys, center=torch.zeros(1, 2)).interval(query, sign)
                if not lower.item() <= oracles.logit(query, keys[0], sign) <= upper.item():
                    return False
        return True

    def nearest(wide, center):
        coded = real(wide, center)
        size = coded.codes.double().norm(dim=-1) * coded.step.double()
        return coded._replace(extent=size.to(torch.bfloat16))

    assert broken(law, (interval, "code_keys", nearest))


def interval_law(keys, query, center, scale=1.0):
    def law():
        lower, upper = Sketch(keys, center=center).interval(query, scale)
        dots = [sum(a * b for a, b in zip(exact(query), exact(key), strict=True)) for key in keys]
        truth = [Fraction(scale) * dot for dot in dots]
        return all(a <= s <= b for a, s, b in zip(exact(lower), truth, exact(upper), strict=True))

    return law


def test_control_the_product_with_the_centre():
    """A key that is its centre, (1, ..., 1), and 4096 components that lose nearly half a unit at every addition.

    Which units depends on how many sums a matrix product keeps: one of the inputs meets it.
    """
    width = 4096
    keys, center = torch.ones(1, width), torch.ones(1, width)
    laws = [
        interval_law(keys, torch.full((width,), 1.0 + 0.49 * 2.0**-p, dtype=torch.float64), center)
        for p in range(42, 50)
    ]
    assert any(broken(law, (interval, "_gamma_center", no_gamma)) for law in laws)


def test_control_the_four_roundings_of_an_interval(monkeypatch):
    """Without a centre, residual or coding error, three products are left, and their roundings."""
    gen = torch.Generator().manual_seed(10)
    count = 127
    coded = interval.Coded(
        codes=torch.arange(1, count + 1).to(torch.int8)[:, None],
        step=(torch.randint(128, 256, (count,), generator=gen).double() / 128).to(torch.bfloat16),
        residual=torch.zeros(count, dtype=torch.bfloat16),
        extent=torch.zeros(count, dtype=torch.bfloat16),
    )
    query = torch.rand(8, 1, generator=gen, dtype=torch.float64) + 1.0
    page, center, scale = torch.zeros(count, dtype=torch.int64), torch.zeros(1, 1), 0.3

    def whole(query):
        return interval.Words(query, torch.ones_like(query[..., 0]), torch.zeros_like(query[..., 0]))

    monkeypatch.setattr(interval, "code_query", whole)
    keys = [s * z for s, z in zip(exact(coded.step), exact(coded.codes), strict=True)]

    def law():
        ends = interval.bound_logits(coded, center, page, query, scale)
        for q, low, high in zip(exact(query), *ends, strict=True):
            truth = [Fraction(scale) * q * key for key in keys]
            if not all(a <= s <= b for a, s, b in zip(exact(low), truth, exact(high), strict=True)):
                return False
        return True

    real = rounding.gamma
    assert broken(law, (rounding, "gamma", lambda n: 0.0 if n == 6 else real(n)))


def test_control_a_denormal_query_read_as_zero_by_the_sketch():
    keys, query = torch.full((1, 2), 2.0**120), torch.full((2,), 3 * 2.0**-130)

    def law():
        with flushing():
            lower, upper = Sketch(keys).interval(query, 1.0)
        return lower.item() <= oracles.logit(query, keys[0], 1.0) <= upper.item()

    assert broken(law, (interval, "_flush_error", lambda norm, reach, scale, width: interval.FLOOR))


def test_control_two_terms_of_the_query_coding_error_that_hide_each_other():
    """The rotation rounds, and so do `t w` and the difference. Each term covers the other at every width in reach.

    Queries that are coded without error but for their roundings. With either term the law holds, without both it does
    not; the rotation alone stays within its own term, and uses some of it.
    """
    gen = torch.Generator().manual_seed(11)
    real, used = rounding.gamma, 0.0

    def error_of(query):
        turn = hadamard.rotation(len(query))
        truth = [sum(Fraction(a) * q for a, q in zip(row, exact(query), strict=True)) for row in turn.tolist()]
        return truth, norm(x - Fraction(y) for x, y in zip(truth, hadamard.rotate(query).tolist(), strict=True))

    for width in (4, 8, 32):
        words = torch.randint(1, interval.WORD_MAX, (20, width), generator=gen).double()
        words[:, 0] = interval.WORD_MAX
        queries = hadamard.rotate(words) * hadamard.inverse_gain(width) * 0.1

        def law(queries=queries):
            for query in queries:
                truth, _ = error_of(query)
                coded = interval.code_query(query)
                spoken = [Fraction(coded.unit.item()) * int(w) for w in coded.word]
                if coded.error.item() < norm(x - y for x, y in zip(truth, spoken, strict=True)):
                    return False
            return True

        only_parts = lambda n, width=width: 0.0 if n == width + 2 else real(n)  # noqa: E731
        only_own = lambda n: 0.0 if n == 4 else real(n)  # noqa: E731
        neither = lambda n, width=width: 0.0 if n in (4, width + 2) else real(n)  # noqa: E731
        assert not broken(law, (rounding, "gamma", only_parts))
        assert not broken(law, (rounding, "gamma", only_own))
        assert broken(law, (rounding, "gamma", neither))
        for query in queries:
            granted = float(query.norm()) * real(width + 2) * (2.0 * width) ** 0.5
            used = max(used, float(error_of(query)[1]) / granted)
    assert 0.02 <= used <= 1.0
