"""From the tail mass to the error of the output. Tzachristas et al. 2025, Section 5 and Lemma A.7.

`logits` (..., n) and `values` (..., n, d) of one query; `head` any boolean set (..., n). `Attn` is the softmax average
of the values, `Attn_k` the average over the head alone. Every error is a Euclidean norm in the unit of the values, and
every bound holds for any head. Entries with a logit of -inf count for nothing. An empty tail gives 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from tailbound.theory.inputs import check_head, check_logits, check_values
from tailbound.theory.truncation import chi_square, log_masses, tail_mass, truncate

BOUNDS = ("norm", "diameter", "variance")
"""The three certificates of Thm 5.6, in the order of `BestBound.winner`."""


class Means(NamedTuple):
    """Averages of the values over the head and over the tail, each under the renormalised softmax weights."""

    head: Float[Tensor, "*batch d"]
    tail: Float[Tensor, "*batch d"]


class Variances(NamedTuple):
    """Lemma A.7: `total = within_head + within_tail + between`, all (...), in squared units of the values.

    `within_head = (1 - tau) Var_head`, `within_tail = tau Var_tail`, `between = tau (1 - tau) |mu_tail - mu_head|^2`.
    """

    total: Float[Tensor, "*batch"]
    within_head: Float[Tensor, "*batch"]
    within_tail: Float[Tensor, "*batch"]
    between: Float[Tensor, "*batch"]


class BestBound(NamedTuple):
    """The smallest of the three bounds, and which one it is: an index into `BOUNDS`."""

    bound: Float[Tensor, "*batch"]
    winner: Int64[Tensor, "*batch"]


def means(
    logits: Float[Tensor, "*batch n"], values: Float[Tensor, "*batch n d"], head: Bool[Tensor, "*batch n"]
) -> Means:
    """The averages `mu_head` and `mu_tail`; the latter is 0 if the tail is empty.

    >>> means(torch.zeros(3), torch.tensor([[0.0], [2.0], [7.0]]), torch.tensor([True, True, False]))
    Means(head=tensor([1.]), tail=tensor([7.]))
    """
    head, tail = _split(logits, values, head)
    return Means(_average(truncate(logits, head), values), _average(_tail_weights(logits, tail), values))


def output_difference(
    logits: Float[Tensor, "*batch n"], values: Float[Tensor, "*batch n d"], head: Bool[Tensor, "*batch n"]
) -> Float[Tensor, "*batch d"]:
    """`Attn - Attn_k = tau * (mu_tail - mu_head)`, exactly (Thm 5.2).

    >>> output_difference(torch.zeros(2), torch.tensor([[0.0], [2.0]]), torch.tensor([True, False])).item()
    1.0
    """
    both = means(logits, values, head)
    tau = tail_mass(logits, head)[..., None]
    return torch.where(tau > 0, tau * (both.tail - both.head), 0.0)


def norm_bound(
    logits: Float[Tensor, "*batch n"], values: Float[Tensor, "*batch n d"], head: Bool[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    """`error <= 2 C tau` with `C` the largest norm of a value (Prop 5.1). Not shift-invariant in the values.

    >>> norm_bound(torch.zeros(2), torch.tensor([[0.0], [2.0]]), torch.tensor([True, False])).item()
    2.0
    """
    head, tail = _split(logits, values, head)
    largest = torch.where(head | tail, values.norm(dim=-1), 0.0).amax(-1)
    return 2.0 * largest * tail_mass(logits, head)


def diameter_bound(
    logits: Float[Tensor, "*batch n"], values: Float[Tensor, "*batch n d"], head: Bool[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    """`error <= tau * diam`, `diam` the largest distance between a head value and a tail value (Prop 5.3).

    Tight: equality for one value on either side.

    >>> diameter_bound(torch.zeros(2), torch.tensor([[0.0], [2.0]]), torch.tensor([True, False])).item()
    1.0
    """
    head, tail = _split(logits, values, head)
    n = logits.shape[-1]
    rows = zip(values.reshape(-1, n, values.shape[-1]), head.reshape(-1, n), tail.reshape(-1, n), strict=True)
    apart = [_farthest(some[inside], some[outside]) for some, inside, outside in rows]
    farthest = torch.stack(apart) if apart else logits.new_zeros(0)
    return farthest.reshape(logits.shape[:-1]) * tail_mass(logits, head)


def _farthest(a: Tensor, b: Tensor) -> Tensor:
    """The largest distance between vectors of two sets, 0 if there is none. A million distances are held at a time.

    The pair is found by products in float64, around the middle and in units in which nothing overflows or vanishes. No
    vector is farther from the middle than 1.5 of these distances, so the products lose few digits.
    """
    if 0 in (a.shape[0], b.shape[0]):
        return a.new_zeros(())
    some, others = a.double(), b.double()
    unit = 2.0 ** max(math.frexp(float(torch.maximum(some.abs().max(), others.abs().max())))[1] - 1, -1074)
    some, others = some / unit, others / unit
    middle = (some.mean(0) + others.mean(0)) / 2
    left, right = some - middle, others - middle
    spread = torch.maximum(left.abs().max(), right.abs().max()).clamp(min=2.0**-1000)  # 0 where all vectors are one
    left, right = left / spread, right / spread
    lengths, found = right.square().sum(-1), []
    step = max(1, (1 << 20) // b.shape[0])
    for first in range(0, a.shape[0], step):
        part = left[first : first + step]
        at = int((part.square().sum(-1, keepdim=True) + lengths - 2.0 * part @ right.T).argmax())
        found.append(some[first + at // b.shape[0]] - others[at % b.shape[0]])
    return ((torch.stack(found) / spread).norm(dim=-1).amax() * spread * unit).to(a.dtype)


def variances(
    logits: Float[Tensor, "*batch n"], values: Float[Tensor, "*batch n d"], head: Bool[Tensor, "*batch n"]
) -> Variances:
    """`Var_P(V) = (1-tau) Var_head + tau Var_tail + tau (1-tau) |mu_tail - mu_head|^2` (Lemma A.7).

    >>> variances(torch.zeros(2), torch.tensor([[0.0], [2.0]]), torch.tensor([True, False])).total.item()
    1.0
    """
    head, tail = _split(logits, values, head)
    log_tail, log_head = log_masses(logits, head)
    tau, kept = torch.sigmoid(log_tail - log_head), torch.sigmoid(log_head - log_tail)
    mean = means(logits, values, head)
    between = torch.where(tau > 0, tau * kept * (mean.tail - mean.head).square().sum(-1), 0.0)
    within_head = kept * _variance(truncate(logits, head), values)
    within_tail = tau * _variance(_tail_weights(logits, tail), values)
    return Variances(_variance(torch.softmax(logits, -1), values), within_head, within_tail, between)


def variance_bound(
    logits: Float[Tensor, "*batch n"], values: Float[Tensor, "*batch n d"], head: Bool[Tensor, "*batch n"]
) -> Float[Tensor, "*batch"]:
    """`error <= sqrt(tau / (1 - tau)) * sqrt(Var_P(V))` (Prop 5.4, Cor 5.5): chi-square times variance.

    Tight: equality if the values are constant on the head and on the tail.

    >>> variance_bound(torch.zeros(2), torch.tensor([[0.0], [2.0]]), torch.tensor([True, False])).item()
    1.0
    """
    _split(logits, values, head)
    spread = _variance(torch.softmax(logits, -1), values)
    odds = chi_square(logits, head)
    return torch.where((odds > 0) & (spread > 0), (odds.sqrt() * spread.sqrt()), 0.0)


def best_bound(
    logits: Float[Tensor, "*batch n"], values: Float[Tensor, "*batch n d"], head: Bool[Tensor, "*batch n"]
) -> BestBound:
    """The smallest of `norm_bound`, `diameter_bound` and `variance_bound`, and which one it is (Thm 5.6).

    >>> best = best_bound(torch.zeros(2), torch.tensor([[0.0], [2.0]]), torch.tensor([True, False]))
    >>> best.bound.item(), BOUNDS[best.winner]
    (1.0, 'diameter')
    """
    three = [bound(logits, values, head) for bound in (norm_bound, diameter_bound, variance_bound)]
    return BestBound(*torch.stack(three).min(0))


def _split(logits: Tensor, values: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """Head and tail over the entries that have any weight."""
    check_values(values, check_logits(logits))
    alive = ~logits.isneginf()
    head = check_head(head, logits)
    return head & alive, ~head & alive


def _tail_weights(logits: Tensor, tail: Tensor) -> Tensor:
    """Renormalised softmax weights of the tail; all 0 if it is empty."""
    return torch.softmax(logits.masked_fill(~tail, -torch.inf), -1).nan_to_num(nan=0.0)


def _average(weights: Tensor, values: Tensor) -> Tensor:
    return (weights[..., None] * values).sum(-2)


def _variance(weights: Tensor, values: Tensor) -> Tensor:
    centered = values - _average(weights, values)[..., None, :]
    return (weights * centered.square().sum(-1)).sum(-1)
