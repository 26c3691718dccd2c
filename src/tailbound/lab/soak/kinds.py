"""Where cases come from: random tensors steered, by name, towards what has broken such bounds before.

Each kind takes float64 query (B, Hq, T, D), key (B, Hkv, n, D), value (B, Hkv, n, Dv) of independent standard normals
and a generator, and gives the three back. Casting to a dtype comes after.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tailbound.bounds.hadamard import rotate
from tailbound.bounds.interval import code_keys, page_size


class Drawn(NamedTuple):
    """Query, key, value, float64."""

    query: Tensor
    key: Tensor
    value: Tensor


BEGINNING = 16
"""Keys of a far beginning."""


def _uniform(gen: torch.Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=gen))


def _spread(drawn: Drawn, gen: torch.Generator) -> Drawn:
    """Gaussian logits with a standard deviation as decoders have."""
    return drawn._replace(query=drawn.query * _uniform(gen, 1.5, 6.0))


def _heavy_tails(drawn: Drawn, gen: torch.Generator) -> Drawn:
    """Keys of very different norms."""
    norms = torch.rand(drawn.key.shape[:3], generator=gen, dtype=torch.float64).clamp_min(1e-3) ** -0.5
    return Drawn(2.0 * drawn.query, drawn.key * norms[..., None], drawn.value)


def _equal_keys(drawn: Drawn, gen: torch.Generator) -> Drawn:
    return drawn._replace(key=drawn.key[:, :, :1].expand_as(drawn.key))


def _ties(drawn: Drawn, gen: torch.Generator) -> Drawn:
    return Drawn(3.0 * drawn.query.sign(), drawn.key.sign(), drawn.value)


def _one_hot(drawn: Drawn, gen: torch.Generator) -> Drawn:
    hot = torch.randint(drawn.key.shape[3], drawn.key.shape[:3], generator=gen)
    return Drawn(12.0 * drawn.query, torch.nn.functional.one_hot(hot, drawn.key.shape[3]).double(), drawn.value)


def _outlier_channel(drawn: Drawn, gen: torch.Generator) -> Drawn:
    key = drawn.key.clone()
    key[..., 0] += _uniform(gen, 20.0, 300.0)
    return Drawn(4.0 * drawn.query, key, drawn.value)


def _outlier_key(drawn: Drawn, gen: torch.Generator) -> Drawn:
    key, value, at = drawn.key.clone(), drawn.value.clone(), _uniform(gen, 0.0, 0.999)
    place = int(at * key.shape[2])
    key[:, :, place] *= 100.0
    value[:, :, place] *= 1000.0
    return Drawn(3.0 * drawn.query, key, value)


def _large_logits(drawn: Drawn, gen: torch.Generator) -> Drawn:
    return Drawn(40.0 * drawn.query, 40.0 * drawn.key, drawn.value)


def _far_values(drawn: Drawn, gen: torch.Generator) -> Drawn:
    return Drawn(3.0 * drawn.query, drawn.key, drawn.value + 5000.0)


def _along_a_key(drawn: Drawn, gen: torch.Generator) -> Drawn:
    """Queries that point at one key."""
    group = drawn.query.shape[1] // drawn.key.shape[1]
    place = int(_uniform(gen, 0.0, 0.999) * drawn.key.shape[2])
    one = drawn.key[:, :, place : place + 1].repeat_interleave(group, 1)
    return drawn._replace(query=_uniform(gen, 0.5, 3.0) * one + 0.05 * drawn.query)


def _along_a_residual(drawn: Drawn, gen: torch.Generator) -> Drawn:
    """Queries that point where the sketch of one key is wrong: Cauchy-Schwarz has nothing to spare."""
    wide = drawn.key.float().double()
    center = wide[:, :, : page_size(wide.shape[3])].mean(2, keepdim=True).float().expand_as(wide)
    coded = code_keys(wide, center)
    missing = wide - center.double() - coded.step.double()[..., None] * rotate(coded.codes.double())
    group = drawn.query.shape[1] // wide.shape[1]
    place = int(_uniform(gen, 0.0, 0.999) * wide.shape[2])
    one = missing[:, :, place : place + 1]
    one = one / one.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    size = _uniform(gen, 1.0, 200.0) * math.sqrt(wide.shape[3])
    return drawn._replace(query=size * one.repeat_interleave(group, 1) + 0.5 * drawn.query)


def _drifting(drawn: Drawn, gen: torch.Generator) -> Drawn:
    """Keys that move away page by page: each page has its centre."""
    n, width = drawn.key.shape[2:]
    page = torch.arange(n, dtype=torch.float64) // 256
    away = 8.0 * page[:, None] * torch.linspace(-1, 1, width, dtype=torch.float64)
    return Drawn(3.0 * drawn.query, drawn.key + away, drawn.value)


def _far_beginning(drawn: Drawn, gen: torch.Generator) -> Drawn:
    """The first keys lie far from the others. Written apart, they alone set the centre of a page: upper ends may lie 90
    nats above all logits, where weights in float32 vanish. With more than that the kernels turn to float64.
    """
    key, away = drawn.key.clone(), _uniform(gen, 20.0, 100.0)
    key[:, :, :BEGINNING] += away
    return Drawn(_uniform(gen, 800.0, 1700.0) / away * drawn.query, key, drawn.value)


def _ends_of_the_code(drawn: Drawn, gen: torch.Generator) -> Drawn:
    """Every component the largest of its key: all codes are 127 or -127 where nothing is rotated."""
    size = drawn.key.abs().amax(-1, keepdim=True)
    return Drawn(2.0 * drawn.query, drawn.key.sign() * size, drawn.value)


def _rising(drawn: Drawn, gen: torch.Generator) -> Drawn:
    """Weight lies with the last keys, or with the first."""
    key, query, n = drawn.key.clone(), 0.3 * drawn.query, drawn.key.shape[2]
    slope = _uniform(gen, -30.0, 30.0)
    key[..., 0] = slope * torch.arange(n, dtype=torch.float64) / n + 0.3 * key[..., 0]
    query[..., 0] = math.sqrt(key.shape[3])
    return Drawn(query, key, drawn.value)


def _few_peaks(drawn: Drawn, gen: torch.Generator) -> Drawn:
    """A few keys stand out by as much as makes the rest weigh about what budgets allow."""
    key, query = 0.2 * drawn.key, 0.2 * drawn.query
    peaks = torch.rand(key.shape[:3], generator=gen) < 4.0 / key.shape[2]
    height = math.log(key.shape[2]) + _uniform(gen, 0.0, 7.0)
    key[..., 0] = height * peaks.double()
    query[..., 0] = math.sqrt(key.shape[3])
    return Drawn(query, key, drawn.value)


def _flat(drawn: Drawn, gen: torch.Generator) -> Drawn:
    return drawn._replace(query=1e-3 * drawn.query)


def _powers(drawn: Drawn, gen: torch.Generator) -> Drawn:
    """Size moves from keys to queries or back, and values are tiny or huge. Beyond float16, which it makes infinite."""
    power, values = _uniform(gen, -30.0, 30.0), _uniform(gen, -30.0, 30.0)
    return Drawn(2.0 * drawn.query * 10.0**power, drawn.key * 10.0**-power, drawn.value * 10.0**values)


def _denormal(drawn: Drawn, gen: torch.Generator) -> Drawn:
    """Keys and values among the denormals of float32 and bfloat16."""
    return Drawn(drawn.query * 2.0**125, drawn.key * 2.0**-129, drawn.value * 2.0**-130)


def _not_finite(drawn: Drawn, gen: torch.Generator) -> Drawn:
    """Some NaN and infinities, in queries, keys and values."""
    spoiled = []
    for tensor in drawn:
        bad = torch.rand(tensor.shape, generator=gen) < 0.3 / math.prod(tensor.shape[2:])
        spoiled.append(tensor.masked_fill(bad, math.nan if _uniform(gen, 0, 1) < 0.5 else -math.inf))
    return Drawn(2.0 * spoiled[0], *spoiled[1:])


KINDS: dict[str, Callable[[Drawn, torch.Generator], Drawn]] = {
    kind.__name__.removeprefix("_").replace("_", " "): kind
    for kind in (
        _spread,
        _heavy_tails,
        _equal_keys,
        _ties,
        _one_hot,
        _outlier_channel,
        _outlier_key,
        _large_logits,
        _far_values,
        _along_a_key,
        _along_a_residual,
        _drifting,
        _far_beginning,
        _ends_of_the_code,
        _rising,
        _few_peaks,
        _flat,
        _powers,
        _denormal,
        _not_finite,
    )
}

APART = "far beginning"
"""The kind whose first keys are written apart, and whose rows have a sink half of the time."""

COMMON = 8.0
"""How much likelier the first kind is than each other one: rows as decoders have them."""
