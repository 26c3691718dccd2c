"""Each constant of the engine, dropped alone: a law of exact arithmetic that holds with it is broken without it.

Inputs leave no other slack: equal values, sums that all round one way, one kept key. Rounding and the sketch are in
bounds/test_constants.py, whole engines without constants in test_soundness.py.
"""

from fractions import Fraction
from typing import Any

import mpmath
import pytest
import torch

import oracles
from constants import broken, exact, flushing, norm, t
from tailbound.bounds import rounding
from tailbound.engine import finish, logits, partial, values
from tailbound.engine.check import Call

# Masses.


def block(scores, head):
    """What keys with exact logits say of their row."""
    kept = torch.tensor(head)[None]
    ones = torch.ones(len(scores), 1, dtype=torch.float64)
    return partial.from_keys(t(*scores)[None], torch.zeros(1, len(scores)).double(), ones, kept, torch.ones_like(kept))


def lost_bits():
    """Pairs (logit, shift) whose float64 difference comes out larger than it is, by nearly half a unit of 700."""
    gen = torch.Generator().manual_seed(3)
    pairs = [(-600.0 - float(a) * 90, float(b)) for a, b in torch.rand(40, 2, generator=gen, dtype=torch.float64)]
    return [(s, m) for s, m in pairs if Fraction(s - m) - (Fraction(s) - Fraction(m)) > Fraction(1, 2**46)]


def mass_law(states):
    """Head masses that are computed are never above the true ones, exp(s - m)."""
    for (score, top), state in zip(lost_bits(), states(), strict=True):
        if mpmath.mpf(finish.mass_down(state).item()) > mpmath.exp(mpmath.mpf(score) - mpmath.mpf(top)):
            return False
    return True


def test_control_the_rounding_of_a_weight():
    def states():
        return [block([top, score], [False, True]) for score, top in lost_bits()]

    assert broken(lambda: mass_law(states), (partial, "WEIGHT_ROUNDING", 0.0))


def test_control_the_rounding_of_a_weight_that_moves():
    """A sink's weight is exact until it moves to the shift of a larger logit."""

    def states():
        return [partial.merge(block([top], [False]), partial.from_sink(t(score), 1)) for score, top in lost_bits()]

    assert broken(lambda: mass_law(states), (partial, "WEIGHT_ROUNDING", 0.0))


def test_control_gamma_of_merged_masses():
    """A mass of 1 and many of a little more than half a unit: every sum rounds up."""
    little = 0.501 * 2.0**-52

    def law():
        state = partial.from_sink(t(0.0), 1)
        for _ in range(60):
            more = partial.from_sink(t(0.0), 1)
            state = partial.merge(state, more._replace(mass=more.mass * little))
        return Fraction(finish.mass_down(state).item()) <= 1 + 60 * Fraction(little)

    real = rounding.gamma
    assert broken(law, (rounding, "gamma", lambda n: 0.0 if n == 3 else real(n)))


def test_control_an_unread_tail_moved_far_away():
    def law():
        with flushing():
            state = partial.merge(block([-2000.0], [False]), block([0.0], [True]))
            return rounding.share_up(state.tail, finish.mass_down(state)).item() > 0

    assert broken(law, (rounding, "TINY", 0.0))


def equal_values(count=20000):
    """Many keys with one value: exact attention is that value, and no spread of the values hides a rounding."""
    gen = torch.Generator().manual_seed(4)
    scores = torch.randn(16, count, generator=gen, dtype=torch.float64)
    value = torch.rand(16, generator=gen, dtype=torch.float64) + 0.5
    return scores, value


def test_control_gamma_of_sums_in_the_output_error():
    scores, truth = equal_values()
    real = finish.output_error

    def law():
        for row, value in zip(scores, truth.tolist(), strict=True):
            keys = torch.full((1, 1, len(row), 1), value, dtype=torch.float64)
            seen = torch.ones(1, 1, 1, 1, len(row), dtype=torch.bool)
            exact_row = row[None, None, None, None]
            state = partial.from_keys(exact_row, torch.zeros_like(exact_row), keys[:, :, None], seen, seen)
            ball = finish.ValueBall(t(value)[None, None], t(0.0)[None], t(value)[None])
            output, _, error = finish.finish(state, ball, torch.float64, False)
            if abs(Fraction(output.item()) - Fraction(value)) > Fraction(error.item()):
                return False
        return True

    def without(output, tv, state, *rest):
        return real(output, tv, state._replace(gamma=torch.zeros_like(state.gamma)), *rest)

    assert broken(law, (finish, "output_error", without))


# The cast of the output, one constant at a time.


def cast_law(dtype, scale):
    """One kept key: the output is its value, rounded to the dtype."""
    wide = (torch.rand(32, generator=torch.Generator().manual_seed(5), dtype=torch.float64) + 1.0) * scale

    def law():
        for value in wide.tolist():
            here = torch.full((1, 1, 1, 1), value, dtype=torch.float64)
            seen = torch.ones(1, 1, 1, 1, 1, dtype=torch.bool)
            state = partial.from_keys(here[None] * 0, here[None] * 0, here[:, :, None], seen, seen)
            ball = finish.ValueBall(here[0], here[0, 0] * 0, here[0, 0])
            output, _, error = finish.finish(state, ball, dtype, False)
            if abs(Fraction(output.item()) - Fraction(value)) > Fraction(error.item()):
                return False
        return True

    return law


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_control_the_unit_roundoff_of_the_output(dtype):
    assert broken(cast_law(dtype, 1000.0), (rounding, "unit_roundoff", lambda dtype: 0.0))


@pytest.mark.parametrize(
    ("dtype", "scale"), [(torch.float32, 2.0**-140), (torch.bfloat16, 2.0**-131), (torch.float16, 2.0**-22)]
)
def test_control_the_smallest_step_of_the_output(dtype, scale):
    """`INPUT_FLUSH` stands beside it and is of the same size for float32 and bfloat16: there both are dropped."""
    drops: list[tuple[Any, str, Any]] = [(rounding, "smallest_step", lambda dtype: 0.0)]
    if dtype is not torch.float16:
        law = cast_law(dtype, scale)
        assert not broken(law, *drops)
        drops.append((rounding, "INPUT_FLUSH", 0.0))
    assert broken(cast_law(dtype, scale), *drops)


# Logits.


def call(query, key, bias=None, **options):
    fields = {"epsilon": 0.5, "scale": 1.0, "visible": None, "is_causal": False, "softcap": None, "sink": None}
    return Call(query, key, torch.ones_like(key), bias=bias, **{**fields, **options})


def logit_law(asked):
    """`|logits - truth| <= error`, every input as it lies in memory."""
    whole = slice(0, asked.key.shape[2])

    def computed():
        rows = logits.take_rows(asked, slice(None), slice(0, 1))
        found, error = logits.exact_logits(asked, rows, logits.take_keys(asked.key, slice(None), whole), whole)
        return found.flatten().tolist(), error.flatten().tolist()

    def law():
        with flushing():
            pairs = computed()
        for i, (s, error) in enumerate(zip(*pairs, strict=True)):
            bias = None if asked.bias is None else asked.bias[0, 0, 0, i]
            truth = oracles.logit(asked.query[0, 0, 0], asked.key[0, 0, i], asked.scale, asked.softcap, bias)
            if abs(mpmath.mpf(s) - truth) > mpmath.mpf(error):
                return False
        return True

    return law


def without_flush(real):
    def call(*args):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(rounding, "INPUT_FLUSH", 0.0)
            return real(*args)

    return call


@pytest.mark.parametrize("denormal", ["query", "key"])
def test_control_a_denormal_read_as_zero_in_a_logit(denormal):
    small, large = torch.full((1, 1, 1, 2), 3 * 2.0**-130), torch.full((1, 1, 1, 2), 2.0**120)
    law = logit_law(call(small, large) if denormal == "query" else call(large, small))
    assert broken(law, (logits, "dot_error", without_flush(logits.dot_error)))


def test_control_a_denormal_bias_read_as_zero():
    ones = torch.ones(1, 1, 1, 1)
    law = logit_law(call(ones, ones, torch.full((1, 1, 1, 1), 3 * 2.0**-130), scale=0.0))
    assert broken(law, (logits, "_bias_error", without_flush(logits._bias_error)))


def test_control_the_rounding_of_a_logit():
    gen = torch.Generator().manual_seed(6)
    query, key = torch.randn(1, 1, 1, 64, generator=gen).double(), torch.randn(1, 1, 32, 64, generator=gen).double() / 3
    zero = (logits, "dot_error", lambda scale, width, q, k: torch.zeros_like(q * k))
    assert broken(logit_law(call(query, key, scale=0.1)), zero)


def test_control_the_rounding_of_a_cap():
    """Logits that are exact before the cap; the error granted to the product is dropped on both sides."""
    query, key = torch.ones(1, 1, 1, 1), torch.rand(1, 1, 64, 1, generator=torch.Generator().manual_seed(7)) * 3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logits, "dot_error", lambda scale, width, q, k: torch.zeros_like(q * k))
        assert broken(logit_law(call(query, key, softcap=1.1)), (logits, "cap_error", lambda cap: 0.0))


def test_control_the_rounding_of_a_bias():
    query, key = torch.ones(1, 1, 1, 1), torch.rand(1, 1, 64, 1, generator=torch.Generator().manual_seed(8))
    bias = torch.full((1, 1, 1, 64), 3.0e12, dtype=torch.float64)
    assert broken(logit_law(call(query, key, bias)), (logits, "_bias_error", lambda s, error: error))


def test_control_a_denormal_value_read_as_zero():
    vectors = torch.full((1, 1, 1, 3), 3 * 2.0**-130)

    def law():
        with flushing():
            ball = values.value_ball(lambda: [logits.take_keys(vectors, slice(None), slice(0, 1))])
        return ball.norm.item() >= norm(exact(vectors.double()))

    assert broken(law, (rounding, "INPUT_FLUSH", 0.0))
