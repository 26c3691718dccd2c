"""Truncation: keep a head, drop the tail, renormalise. Tzachristas et al. 2025, Section 4.

Symbols: `logits` = their s, `P = softmax(s)`, `head` = their kept set, `P_hat` = P restricted to it and renormalised,
`tail mass` = their tau. A logit of -inf is an entry of probability 0. Mass is in [0, 1], divergences are in nats.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from tailbound.theory.inputs import check_budget, check_count, check_head, check_logits


class Ranking(NamedTuple):
    """Entries by falling weight.

    Attributes:
        logits: (..., n), `s_1 >= ... >= s_n`.
        tails: (..., n), `tails[k]` the softmax mass of all but the k heaviest; `tails[0]` is 1.
    """

    logits: Float[Tensor, "*batch n"]
    tails: Float[Tensor, "*batch n"]


def top_k(logits: Float[Tensor, "*batch n"], k: int) -> Bool[Tensor, "*batch n"]:
    """The k heaviest entries; ties go to the smaller index.

    Raises:
        ValueError: k outside [1, n]; NaN.

    >>> top_k(torch.tensor([1.0, 3.0, 3.0]), 1).tolist()
    [False, True, False]
    """
    check_count(k, check_logits(logits).shape[-1])
    order = logits.argsort(dim=-1, descending=True, stable=True)[..., :k]
    return torch.zeros_like(logits, dtype=torch.bool).scatter(-1, order, True)


def truncate(logits: Float[Tensor, "*batch n"], head: Bool[Tensor, "*batch n"]) -> Float[Tensor, "*batch n"]:
    """The truncated distribution P_hat: softmax over the head, 0 elsewhere.

    >>> truncate(torch.zeros(4), torch.tensor([True, True, False, False])).tolist()
    [0.5, 0.5, 0.0, 0.0]
    """
    head = check_head(head, check_logits(logits))
    return torch.softmax(logits.masked_fill(~head, -torch.inf), -1)


def tail_mass(logits: Float[Tensor, "*batch n"], head: Bool[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """The softmax mass outside the head, for any head: tau.

    `TV(P, P_hat) = tau` (Lemma 4.1). Computed as `sigmoid(log T - log Z_head)`, so that neither a tiny tau nor a
    `1 - tau` loses digits. 0 for a head that holds everything.

    >>> tail_mass(torch.zeros(4), torch.tensor([True, True, True, False])).item()
    0.25
    """
    log_tail, log_head = log_masses(logits, head)
    return torch.sigmoid(log_tail - log_head)


def total_variation(p: Float[Tensor, "*batch n"], q: Float[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """Total variation distance of two distributions: half the L1 distance, in [0, 1].

    >>> total_variation(torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.5])).item()
    0.5
    """
    return 0.5 * (p - q).abs().sum(-1)


def kl_divergence(logits: Float[Tensor, "*batch n"], head: Bool[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """`KL(P_hat || P) = log(Z / Z_head) = -log(1 - tau)` in nats (Thm 4.3); the other direction is infinite.

    >>> kl_divergence(torch.zeros(4), torch.tensor([True, True, False, False])).item()  # log 2
    0.6931471824645996
    """
    log_tail, log_head = log_masses(logits, head)
    return torch.nn.functional.softplus(log_tail - log_head)


def tv_from_kl(kl: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """`TV = 1 - exp(-KL)` for a truncation (Thm 4.3), exact also where both are tiny.

    >>> tv_from_kl(torch.tensor(1e-12, dtype=torch.float64)).item()
    9.999999999995e-13
    """
    return -torch.expm1(-kl)


def chi_square(logits: Float[Tensor, "*batch n"], head: Bool[Tensor, "*batch n"]) -> Float[Tensor, "*batch"]:
    """`chi2(P_hat || P) = tau / (1 - tau) = T / Z_head` (Thm 4.3), from the ratio: near tau = 1 it keeps its digits.

    >>> chi_square(torch.zeros(4), torch.tensor([True, False, False, False])).item()
    3.0
    """
    log_tail, log_head = log_masses(logits, head)
    return torch.exp(log_tail - log_head)


def smallest_k(logits: Float[Tensor, "*batch n"], epsilon: float) -> Int64[Tensor, "*batch"]:
    """The smallest k whose k heaviest entries leave out at most `epsilon`: their k_eps, in [1, n].

    Raises:
        ValueError: epsilon outside (0, 1); NaN.

    >>> smallest_k(torch.tensor([0.75, 0.125, 0.125], dtype=torch.float64).log(), 0.15).item()
    2
    """
    check_budget(epsilon)
    return (ranking(logits).tails > epsilon).sum(-1).clamp(min=1)


def ranking(logits: Float[Tensor, "*batch n"]) -> Ranking:
    """Logits by falling weight, and what each number of heaviest entries leaves out.

    >>> ranking(torch.tensor([0.25, 0.75], dtype=torch.float64).log()).tails.tolist()
    [1.0, 0.25]
    """
    ranked = _sorted(check_logits(logits))
    top = ranked[..., :1]
    weights = torch.exp(ranked - torch.where(top.isneginf(), 0.0, top))
    sums = weights.flip(-1).cumsum(-1).flip(-1)
    return Ranking(ranked, torch.where(sums[..., :1] > 0, sums / sums[..., :1], 0.0))


def _sorted(logits: Tensor) -> Tensor:
    """Falling. On the CPU by NumPy, whose vectorised sort takes a sixth of the time of torch's."""
    if logits.device.type == "cpu" and not logits.requires_grad:
        return torch.from_numpy(np.sort(logits.numpy(), axis=-1)).flip(-1)
    return logits.sort(dim=-1, descending=True).values


def log_masses(logits: Tensor, head: Tensor) -> tuple[Tensor, Tensor]:
    """Logarithms of the unnormalised masses of the tail and of the head, in nats; -inf for an empty tail."""
    head = check_head(head, check_logits(logits))
    log_tail = torch.logsumexp(logits.masked_fill(head, -torch.inf), -1)
    log_head = torch.logsumexp(logits.masked_fill(~head, -torch.inf), -1)
    return log_tail, log_head
