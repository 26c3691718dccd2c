"""`impl="reference"`: the specification. Every logit at once, in float64, in the order of the definitions.

For each query: the exact logits; the fewest heaviest keys whose complement provably weighs at most epsilon; softmax
over them. Memory grows with queries * keys.
"""

from __future__ import annotations

import torch

from tailbound.bounds import rounding
from tailbound.engine.check import Call
from tailbound.engine.cut import WEIGHT_ROUNDING, shift_of, smallest_head
from tailbound.engine.finish import Answer, seal, spoil
from tailbound.engine.logits import exact_logits, grouped_slice, take_keys, take_rows, visibility
from tailbound.engine.nonfinite import dense_rows
from tailbound.engine.partial import Partial
from tailbound.engine.values import value_ball


def attend(call: Call, return_kept: bool) -> Answer:
    """Answer a call whose tensors have at least one row and one key."""
    everything = slice(0, call.key.shape[2])
    rows = take_rows(call, slice(None), slice(0, call.query.shape[2]))
    keys = take_keys(call.key, slice(None), everything)
    values = take_keys(call.value, slice(None), everything)
    logits, error = exact_logits(call, rows, keys, everything)

    seen = visibility(call, rows, everything)
    visible = torch.ones_like(logits, dtype=torch.bool) if seen is None else seen
    usable = (keys.finite & values.finite)[:, :, None, None] & logits.isfinite()
    bias = grouped_slice(call.bias, call, rows, everything)
    if bias is not None:
        usable = usable & ~(bias.isnan() | bias.isposinf())
    nonfinite = ~rows.finite | (visible & ~usable).any(-1)

    sink = None if call.sink is None else call.sink.unflatten(1, (call.key.shape[1], call.group))
    shift = shift_of(logits, visible, sink)
    head = smallest_head(logits, error, visible, shift, sink, call.budget)

    level = torch.where(shift.isfinite(), shift, 0.0)[..., None]
    weights = torch.where(head, torch.exp(logits - level), 0.0)
    mass = weights.sum(-1) if sink is None else weights.sum(-1) + torch.exp(sink - level.squeeze(-1))
    with torch.no_grad():
        left_out = torch.where(
            visible & ~head, rounding.exp_up(rounding.add_up(rounding.add_up(logits, -level), error)), 0.0
        )
        eta = torch.where(head, error, 0.0).amax(-1) + 2.0 * WEIGHT_ROUNDING
        spread = torch.full_like(eta, rounding.gamma(logits.shape[-1] + 8))
        tail = rounding.sum_up(left_out, -1)
    state = Partial(shift, mass, weights @ values.vectors[:, :, None], tail, head.sum(-1), eta, spread)
    ball = value_ball(lambda: [values])
    answer = seal(
        state, visible.sum(-1), ball, call.query.dtype, sink is not None, nonfinite, head if return_kept else None
    )
    return spoil(answer, dense_rows(call, rows, visible), visible) if bool(nonfinite.any()) else answer
