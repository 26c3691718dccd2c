"""The cut: which keys get weight. One decision a key, taken once; everything after it works for any head."""

from __future__ import annotations

import torch
from torch import Tensor

from tailbound.bounds import rounding

WEIGHT_ROUNDING: float = 1024.0 * rounding.UNIT
"""Error in nats of a computed weight `exp(s - m)` beside the error of `s`: the rounded difference (at most 745 in
size where the weight does not underflow) and `exp` itself. Underflow is accounted for where masses become answers."""


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
    logits: Tensor, error: Tensor, visible: Tensor, shift: Tensor, sink: Tensor | None, epsilon: float
) -> Tensor:
    """The fewest keys, heaviest first (ties: smaller index first), that certify `epsilon`; else every visible key.

    A key outside the head costs at most `exp(logit + error - shift)`, the head is worth at least
    `sum exp(logit - shift) * exp(-eta)`, `eta` the largest error in it. The slack makes up for every later rounding of
    both sums, so that the finished certificate meets `epsilon` at the first try.

    Args:
        logits, error: float64 (..., n). visible: bool (..., n). shift: float64 (...). sink: float64 (...) or None.

    Returns:
        bool (..., n), a subset of `visible`.
    """
    if epsilon == 0.0 or logits.shape[-1] == 0:
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
    worth = head * torch.exp(-(eta + WEIGHT_ROUNDING)) * (epsilon * (1.0 - slack))
    enough = tail * ((1.0 - epsilon) * (1.0 + slack)) <= worth
    count = torch.where(enough.any(-1), enough.to(torch.int8).argmax(-1), logits.shape[-1])
    kept = torch.arange(logits.shape[-1], device=logits.device) < count[..., None]
    return torch.zeros_like(visible).scatter(-1, order, kept) & visible
