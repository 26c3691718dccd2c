"""The merge law: what is known of one row from some of its keys, and how two such answers become one.

Blocks, threads, pages and machines all combine by `merge`. It is the log-sum-exp merge with the unread mass alongside;
over disjoint sets of keys it is associative and commutative in real arithmetic and has an identity. In floats the
order is fixed (`merge_all`), so results are reproducible.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tailbound.bounds import rounding
from tailbound.engine.cut import WEIGHT_ROUNDING, shift_of


class Partial(NamedTuple):
    """A partial answer for rows of any leading shape. All float64, but `kept`.

    `mass`, `weighted` and `tail` are relative to `exp(shift)`. There are true weights `w_i = exp(s_i - shift)` of the
    kept keys and numbers `|a_i| <= eta` such that `mass` and `weighted` are the sums of `w_i exp(a_i)` and
    `w_i exp(a_i) v_i`, each up to a relative error `gamma` of its terms. `tail` carries no such error: it is an upper
    bound.

    Attributes:
        shift: (...) the largest logit seen, kept or not; -inf if none.
        mass: (...) head mass.
        weighted: (..., Dv) head-weighted sum of values.
        tail: (...) at least the mass of the keys seen that are not kept.
        kept: int64 (...) keys in the head.
        eta: (...) nats.
        gamma: (...) relative.
    """

    shift: Tensor
    mass: Tensor
    weighted: Tensor
    tail: Tensor
    kept: Tensor
    eta: Tensor
    gamma: Tensor


def identity(rows: Sequence[int], width: int, device: torch.device | str = "cpu") -> Partial:
    """What is known from no key at all."""
    zero = torch.zeros(*rows, dtype=torch.float64, device=device)
    count = torch.zeros(*rows, dtype=torch.int64, device=device)
    return Partial(zero - torch.inf, zero, zero.new_zeros(*rows, width), zero, count, zero, zero)


def from_sink(sink: Tensor, width: int) -> Partial:
    """A sink: weight on no key and no value. It is merged once into a row, never once per block of keys.

    Args:
        sink: float64 (...), a logit, or -inf for none.
    """
    none = identity(sink.shape, width, sink.device)
    return none._replace(shift=sink, mass=torch.where(sink.isneginf(), 0.0, torch.ones_like(sink)))


def from_keys(
    logits: Tensor, error: Tensor, values: Tensor, head: Tensor, visible: Tensor, shift: Tensor | None = None
) -> Partial:
    """What one block of keys says about its rows.

    Args:
        logits, error: float64 (..., T, n), as `exact_logits` gives them. values: float64 (..., n, Dv), shared by the T
            rows before it. head, visible: bool (..., T, n), `head` within `visible`.
        shift: float64 (..., T), if the caller knows the largest logit over all blocks; merges are then exact.
    """
    top = shift_of(logits, visible, None) if shift is None else shift
    level = torch.where(top.isfinite(), top, 0.0)[..., None]
    weights = torch.exp(torch.where(head, logits - level, -torch.inf))
    with torch.no_grad():
        beyond = rounding.exp_up(rounding.add_up(rounding.add_up(logits.detach(), -level), error))
        tail = rounding.sum_up(torch.where(visible & ~head, beyond, 0.0), -1)
        kept = head.sum(-1)
        worst = torch.where(head, error, 0.0).amax(-1) if head.shape[-1] else torch.zeros_like(tail)
        eta = torch.where(kept > 0, rounding.add_up(worst, WEIGHT_ROUNDING), 0.0)
        spread = torch.full_like(eta, rounding.gamma(logits.shape[-1] + 2))
    return Partial(top, weights.sum(-1), weights @ values, tail, kept, eta, spread)


def merge(a: Partial, b: Partial) -> Partial:
    """What two answers over disjoint sets of keys say together."""
    with torch.no_grad():
        shift = torch.maximum(a.shift, b.shift)
        level = torch.where(shift.isfinite(), shift, 0.0)
        eta = torch.maximum(_moved_eta(a, level), _moved_eta(b, level))
        spread = rounding.add_up(torch.maximum(a.gamma, b.gamma), rounding.gamma(3))
        tail = rounding.add_up(_moved_tail(a, level), _moved_tail(b, level))
        tail = torch.where((a.tail > 0) | (b.tail > 0), tail, 0.0)
        scale_a, scale_b = torch.exp(a.shift - level), torch.exp(b.shift - level)
    return Partial(
        shift,
        scale_a * a.mass + scale_b * b.mass,
        scale_a[..., None] * a.weighted + scale_b[..., None] * b.weighted,
        tail,
        a.kept + b.kept,
        eta,
        spread,
    )


def merge_all(parts: Sequence[Partial]) -> Partial:
    """Merge neighbours, then neighbours of those, in an order that depends on the number of parts alone."""
    level = list(parts)
    while len(level) > 1:
        pairs = [merge(x, y) for x, y in zip(level[0::2], level[1::2], strict=False)]
        level = pairs + level[2 * len(pairs) :]
    return level[0]


def _moved_eta(part: Partial, level: Tensor) -> Tensor:
    """Moving to another shift multiplies every weight by one rounded factor; not moving is exact."""
    moves = (part.shift != level) & ((part.mass > 0) | (part.kept > 0))
    return torch.where(moves, rounding.add_up(part.eta, WEIGHT_ROUNDING), part.eta)


def _moved_tail(part: Partial, level: Tensor) -> Tensor:
    """The unread mass relative to another shift, rounded up, never below `TINY` while keys are unread."""
    factor = torch.where(part.shift == level, 1.0, rounding.exp_up(rounding.add_up(part.shift, -level)))
    moved = rounding.mul_up(factor, part.tail).clamp_min(rounding.TINY)
    return torch.where(part.tail > 0, moved, 0.0)
