"""The cut: which keys get weight. One decision a key, taken once; everything after it works for any head."""

from __future__ import annotations

import torch
from torch import Tensor

from tailbound.bounds import rounding

WEIGHT_ROUNDING: float = 1024.0 * rounding.UNIT
"""Error in nats of a computed weight `exp(s - m)` beside the error of `s`: the rounded difference (at most 745 in
size where the weight does not underflow) and `exp` itself. Underflow is accounted for where masses become answers."""

DENSE_SHARE: float = 0.995
"""A union of heads that holds more of the keys than this is not worth picking out of memory: then dense."""


@torch.no_grad()
def shift_of(logits: Tensor, visible: Tensor | None, sink: Tensor | None) -> Tensor:
    """The largest visible logit or sink of each row, the shift of its weights; -inf for a row with neither.

    Args:
        logits: float64 (..., n). visible: bool (..., n) or None. sink: float64 (...) or None.
    """
    seen = logits if visible is None else torch.where(visible, logits, -torch.inf)
    top = seen.amax(-1) if seen.shape[-1] else seen.new_full(seen.shape[:-1], -torch.inf)
    return top if sink is None else torch.maximum(top, sink)


@torch.no_grad()
def smallest_head(
    logits: Tensor, error: Tensor, visible: Tensor, shift: Tensor, sink: Tensor | None, epsilon: Tensor
) -> Tensor:
    """The fewest keys, heaviest first (ties: smaller index first), that certify `epsilon`; else every visible key.

    A key outside the head costs at most `exp(logit + error - shift)`, the head is worth at least
    `sum exp(logit - shift) * exp(-eta)`, `eta` the largest error in it. The slack makes up for every later rounding of
    both sums, so that the finished certificate meets `epsilon` at the first try.

    Args:
        logits, error: float64 (..., n). visible: bool (..., n). shift: float64 (...). sink: float64 (...) or None.
        epsilon: float64, broadcastable to (...).

    Returns:
        bool (..., n), a subset of `visible`.
    """
    if logits.shape[-1] == 0 or not bool((epsilon > 0.0).any()):
        return visible.clone()
    level = torch.where(shift.isfinite(), shift, 0.0)[..., None]
    ranked, order = torch.where(visible, logits, -torch.inf).sort(dim=-1, descending=True, stable=True)
    ranked_error = error.gather(-1, order)
    hidden = ~visible.gather(-1, order)

    unread = rounding.exp_up(rounding.add_up(rounding.add_up(ranked, -level), ranked_error)).masked_fill(hidden, 0.0)
    tail = unread.flip(-1).cumsum(-1).flip(-1)  # tail[k]: ranks k and later
    weights = torch.exp(ranked - level).masked_fill(hidden, 0.0)
    none = torch.zeros_like(weights[..., :1])
    head = torch.cat([none, weights.cumsum(-1)[..., :-1]], -1)  # head[k]: ranks before k
    eta = torch.cat([none, ranked_error.cummax(-1).values[..., :-1]], -1)
    if sink is not None:
        head = head + torch.exp(sink[..., None] - level)

    slack = rounding.gamma(8 * logits.shape[-1] + 1024)
    epsilon = epsilon[..., None]
    worth = head * torch.exp(-(eta + WEIGHT_ROUNDING)) * (epsilon * (1.0 - slack))
    # A product that is flushed must not look like nothing left out.
    enough = (tail * ((1.0 - epsilon) * (1.0 + slack)) <= worth) & ((worth > 0.0) | (tail == 0.0))
    count = torch.where(enough.any(-1), enough.to(torch.int8).argmax(-1), logits.shape[-1])
    kept = torch.arange(logits.shape[-1], device=logits.device) < count[..., None]
    return torch.zeros_like(visible).scatter(-1, order, kept) & visible


@torch.no_grad()
def certified_head(
    lower: Tensor, upper: Tensor, visible: Tensor, sink: Tensor | None, eta: Tensor, epsilon: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The keys with the largest upper ends whose complement provably weighs at most `epsilon`; else every visible key.

    Decided from intervals alone, before a key is read: `sum over the rest of exp(upper)` is at most
    `epsilon / (1 - epsilon)` times `sum over the head of exp(lower)`, a sink counted with the head. A key with a NaN or
    infinite upper end is in the head.

    Args:
        lower, upper: float64 (..., n), ends of the logits. visible: bool (..., n). sink: float64 (...) or None.
        eta: float64 (...), nats: at least the error with which logits of the head will be known.
        epsilon: float64, broadcastable to (...).

    Returns:
        `head`, bool (..., n); and the shift (...) and the mass (...) of the rest, rounded up, relative to it.
    """
    bounded = visible & (upper < torch.inf)
    level = shift_of(upper, bounded, sink)
    level = torch.where(level.isfinite(), level, 0.0)[..., None]
    beyond = torch.where(bounded, rounding.exp_up(rounding.add_up(upper, -level)), 0.0)
    if upper.shape[-1] == 0 or not bool((epsilon > 0.0).any()):
        return visible.clone(), level.squeeze(-1), torch.zeros_like(eta)
    ranked, order = torch.where(visible, torch.where(bounded, upper, torch.inf), -torch.inf).sort(
        dim=-1, descending=True, stable=True
    )
    sure = torch.where(visible, rounding.exp_down(rounding.add_down(lower, -level)).nan_to_num(nan=0.0), 0.0)
    rest = beyond.gather(-1, order).flip(-1).cumsum(-1).flip(-1)  # rest[k]: ranks k and later
    forced = (ranked == torch.inf).sum(-1, keepdim=True)
    none = torch.zeros_like(rest[..., :1])
    head = torch.cat([none, sure.gather(-1, order).cumsum(-1)[..., :-1]], -1)  # head[k]: ranks before k
    if sink is not None:
        head = head + rounding.exp_down(sink[..., None] - level)

    slack = rounding.gamma(8 * upper.shape[-1] + 1024)
    epsilon = epsilon[..., None]
    worth = head * torch.exp(-(2.0 * eta[..., None] + 4.0 * WEIGHT_ROUNDING)) * (epsilon * (1.0 - slack))
    place = torch.arange(upper.shape[-1], device=upper.device)
    enough = (rest * ((1.0 - epsilon) * (1.0 + slack)) <= worth) & ((worth > 0.0) | (rest == 0.0)) & (place >= forced)
    count = torch.where(enough.any(-1), enough.to(torch.int8).argmax(-1), upper.shape[-1])
    chosen = torch.zeros_like(visible).scatter(-1, order, place < count[..., None]) & visible
    return chosen, level.squeeze(-1), rounding.sum_up(torch.where(chosen, 0.0, beyond), -1)
