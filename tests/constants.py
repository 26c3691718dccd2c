"""What tests of roundings share: fractions of what a tensor holds, flushed denormals, a law with a constant dropped."""

import contextlib
from fractions import Fraction

import mpmath
import pytest
import torch

from tailbound.bounds import rounding


def t(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def exact(tensor):
    return [Fraction(x) for x in tensor.flatten().tolist()]


def norm(fractions):
    """To 60 digits."""
    return mpmath.sqrt(mpmath.fsum((mpmath.mpf(x.numerator) / x.denominator) ** 2 for x in fractions))


@contextlib.contextmanager
def flushing(on=True):
    """Denormals read and written as zero; only on the calling thread, which is the only one here (conftest)."""
    assert torch.set_flush_denormal(on)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)


def broken(law, *drops):
    """Whether a law that holds is broken once constants are dropped: (object, name, replacement)."""
    assert law(), "the law does not hold with all constants in place"
    with pytest.MonkeyPatch.context() as patch:
        for target, name, value in drops:
            patch.setattr(target, name, value)
        return not law()


def same(x):
    return x


def no_gamma(n):
    return 0.0


def round_to_nearest(patch):
    """No direction and no sum of roundings: what a bound is without them."""
    patch.setattr(rounding, "up", same)
    patch.setattr(rounding, "down", same)
    patch.setattr(rounding, "gamma", no_gamma)
