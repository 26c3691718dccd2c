"""Laws between the kernels and their callers, asked one at a time (contracts.cpp), against exact arithmetic.

A certificate hides a constant behind larger ones; the promise that the constant was made for does not. Each law takes
the library and says how many of its stored inputs break it. The truth is worked out with fractions or to 60 digits.
"""

import ctypes
from fractions import Fraction

import mpmath
import numpy as np
import torch

from tailbound.engine import native

LEVELS = {name: number for number, name in enumerate(("scalar", "avx2", "avx512vnni", "avx512bf16"))}
USABLE = [LEVELS[name] for name in native.levels().built if name in native.levels().cpu]
VECTOR = [level for level in USABLE if level > 0]

mpmath.mp.dps = 60
FLOATS, DOUBLES = ctypes.POINTER(ctypes.c_float), ctypes.POINTER(ctypes.c_double)
INT, COUNT, FLOAT, DOUBLE = ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_double
PROMISES = {
    "upper_ends": (None, INT, FLOATS, FLOATS, COUNT, COUNT, DOUBLE, FLOATS, FLOATS),
    "weights_of": (None, INT, FLOATS, COUNT, FLOAT),
    "shrunk": (None, INT, FLOATS, COUNT, FLOAT),
    "settled": (FLOAT, FLOATS, COUNT, FLOATS, COUNT, DOUBLE, DOUBLE, DOUBLES),
    "gathered": (DOUBLE, INT, *[FLOATS] * 3, *[COUNT] * 3, DOUBLE, FLOATS, DOUBLES, DOUBLES),
    "tv_of": (DOUBLE, *[DOUBLE] * 4),
    "roundings_of_pairs": (DOUBLE, COUNT),
}


def load(path):
    """The library of contracts.cpp."""
    library = ctypes.CDLL(str(path))
    for name, (result, *arguments) in PROMISES.items():
        if hasattr(library, name):  # pairs of bfloat16 are not built everywhere
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    return library


def floats(*numbers):
    return np.array(numbers, dtype=np.float32)


def at(array):
    return array.ctypes.data_as(FLOATS if array.dtype == np.float32 else DOUBLES)


def uniform(seed, low, high, *shape):
    return np.random.default_rng(seed).uniform(low, high, shape)


def exact(array):
    return [Fraction(float(x)) for x in array]


def shrunk_weights(library):
    """A weight that moves to a larger level is at least itself times the factor, and never falls to 0."""
    broken = 0
    for level in USABLE:
        for seed in range(20):
            before = np.exp(uniform(seed, -80, 0, 64)).astype(np.float32)
            factor = float(np.float32(np.exp(uniform(seed + 100, -60, 0))))
            after = before.copy()
            library.shrunk(level, at(after), len(after), factor)
            broken += any(a < b * Fraction(factor) for a, b in zip(exact(after), exact(before), strict=True))
    return broken


def weights_of_ends(library, ends, levels):
    """A weight is at least exp(end - level)."""
    broken = 0
    for level in levels:
        before = np.resize(ends.astype(np.float32), -(-len(ends) // 16) * 16)
        after = before.copy()
        library.weights_of(level, at(after), len(after), 0.0)
        pairs = zip(after.tolist(), before.tolist(), strict=True)
        broken += sum(mpmath.mpf(weight) < mpmath.exp(mpmath.mpf(end)) for weight, end in pairs)
    return broken


def weights_at_the_end(library):
    """Where the exponential of a vector kernel ends, the truth goes on for a while."""
    return weights_of_ends(library, np.linspace(-87.33, -86.9, 160), VECTOR)


BARELY_ABOVE = float.fromhex("-0x1.acff2ap-2")
"""Its exponential lies above a float32 number by 4.6 units of float64: of all floats from -64 to -2^-10 the only one
with less than 6.5."""


def weights_barely_above(library):
    """A weight goes up to the next float32 number: an exp that is below one, for a truth that is above, stops there."""
    return weights_of_ends(library, floats(BARELY_ABOVE), [LEVELS["scalar"]])


def cut_from_a_float32_sum(library):
    """What a cut leaves out weighs at most `rest`, though a kernel has added most of it up in float32."""
    broken = 0
    for seed in range(40):
        small = uniform(seed, 0.0, 1.0, 256).astype(np.float32)
        below = float(np.add.accumulate(small)[-1])  # one lane: one addition after the other
        middle, rest = floats(2.0, 3.0), DOUBLE()
        weights = np.concatenate([small, middle])
        library.settled(at(weights), len(weights), at(middle), len(middle), below, below, ctypes.byref(rest))
        broken += Fraction(rest.value) < sum(exact(small))
    return broken


def cut_from_a_float64_sum(library):
    """The same for what is added up in float64, at the end."""
    broken = 0
    for seed in range(40):
        powers = 2.0 ** uniform(seed + 100, -30, 0, 4000)
        weights, rest = (uniform(seed, 0.5, 1.0, 4000) * powers).astype(np.float32), DOUBLE()
        middle = weights.copy()
        library.settled(at(weights), len(weights), at(middle), len(middle), 0.0, 1e9, ctypes.byref(rest))
        broken += Fraction(rest.value) < sum(exact(weights))
    return broken


def masses_that_move(library):
    """tv is at least the share of the tail, though the head's mass moves by a factor whose exponent rounds."""
    broken, tail = 0, 1e-290
    for here, there in (uniform(3, 0.0, 1.0, 60, 2) * [1.0, -90.0] - [0.0, 600.0]).tolist():
        mass = mpmath.exp(mpmath.mpf(there) - mpmath.mpf(here))
        broken += mpmath.mpf(library.tv_of(here, tail, there, 1.0)) < tail / (mass + tail)
    return broken


def ends_of_tiny_logits(library):
    """An upper end is at least its logit where results in float32 are denormal, and flushed to zero.

    `q.c` and `q.(k - c)` are both a little below 2^-126: each is lost.
    """
    broken = 0
    torch.set_flush_denormal(True)
    for level in USABLE:
        for middle, away in uniform(7, 0.9, 0.99, 50, 2):
            query, center, upper = floats(2.0**-63), floats(middle * 2.0**-63), floats(0.0)
            key = center + floats(away * 2.0**-63)
            library.upper_ends(level, at(query), at(key), 1, 1, 1.0, at(center), at(upper))
            broken += exact(upper)[0] < exact(query)[0] * exact(key)[0]
    torch.set_flush_denormal(False)
    return broken


def weights_of_one_key(library):
    """A head of one key weighs exp(logit - shift), but for what a row grants to its logits and weights, in nats."""
    broken, one, key = 0, floats(1.0), floats(2.0**-20)
    for level in USABLE:
        for shift in uniform(5, 0.0, 80.0, 200).astype(np.float32):
            sums, granted, moving = np.zeros(1), DOUBLE(), floats(shift)
            mass = library.gathered(
                level, at(one), at(key), at(one), 1, 1, 1, 1.0, at(moving), at(sums), ctypes.byref(granted)
            )
            away = mpmath.log(mpmath.mpf(mass)) - (mpmath.mpf(float(key[0])) - mpmath.mpf(float(shift)))
            broken += abs(away) > mpmath.mpf(granted.value)
    return broken


def logits_of_pairs(library):
    """A logit from pairs of bfloat16 is off by at most gamma32(roundings) |q| |k|; two roundings a pair, emulated.

    `vdpbf16ps` adds the products of a pair to a lane one after the other (Intel's definition). In one lane the first
    product is 1, and of each later one nearly half a unit is lost.
    """
    if not hasattr(library, "roundings_of_pairs"):
        return 0
    broken = 0
    for width in (64, 512, 4096):
        query = np.zeros(width)
        lane = [d for d in range(width) if d % 32 < 2]
        query[lane] = 255 * 2.0**-20  # a bfloat16 number, whose square is a little below 2^-24
        query[0] = 1.0
        found = np.float32(0.0)
        for d in lane:
            found = np.float32(found + np.float32(query[d] * query[d]))
        norm = sum(x * x for x in exact(query))
        roundings = Fraction(library.roundings_of_pairs(width)) / 2**24
        broken += abs(Fraction(float(found)) - norm) > roundings / (1 - roundings) * norm
    return broken
