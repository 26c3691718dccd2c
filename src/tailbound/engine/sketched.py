"""`impl="torch"` of an index: the sketch decides which keys are read, the merge law makes the answer of them.

For each KV head: intervals of all logits from the codes; the head by `certified_head`, before a key is read; exact
logits, in float64, of the union of its group's heads; each query gives weight to its own head alone. Where the union
would be nearly everything, or where a certificate misses the budget after all, the rows are dense: tv = 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tailbound.bounds import rounding
from tailbound.bounds.interval import Coded, bound_logits
from tailbound.engine import cut
from tailbound.engine.check import Call
from tailbound.engine.cut import certified_head
from tailbound.engine.finish import Answer, ValueBall, join, seal, spoil
from tailbound.engine.logits import Rows, cap_error, dot_error, exact_logits, take_keys, take_rows, visibility
from tailbound.engine.nonfinite import dense_rows
from tailbound.engine.partial import Partial, from_keys, from_sink, identity, merge
from tailbound.engine.store import Store
from tailbound.result import Status

BLOCK_LOGITS: int = 2**22
"""Intervals held at once: 32 MiB for each end."""


def attend(call: Call, store: Store, return_kept: bool) -> tuple[Answer, int]:
    """Answer a call on the keys of a store; also how many keys were read. There is at least one row and one key.

    Args:
        call: its key and value are those of the store.
    """
    read, by_batch = 0, []
    for b in range(call.query.shape[0]):
        by_head = []
        for h in range(call.key.shape[1]):
            answer, union = _kv_head(_narrow(call, b, h), store, b, h, return_kept)
            by_head.append(answer)
            read += union
        by_batch.append(join(by_head, dim=1))
    return join(by_batch, dim=0), read


def _narrow(call: Call, b: int, h: int) -> Call:
    """The part of a call that one KV head of one batch entry serves."""
    batch, group = slice(b, b + 1), slice(h * call.group, (h + 1) * call.group)

    def rows(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor[batch, group]

    return call._replace(
        query=call.query[batch, group].contiguous(),  # the order of a BLAS's sums may depend on strides
        epsilon=call.epsilon[group],
        key=call.key[batch, h : h + 1],
        value=call.value[batch, h : h + 1],
        visible=rows(call.visible),
        bias=rows(call.bias),
        sink=rows(call.sink),
    )


def _kv_head(call: Call, store: Store, b: int, h: int, return_kept: bool) -> tuple[Answer, int]:
    coded, page = store.coded(b, h)
    whole = store.ball()
    ball = ValueBall(*(part[b : b + 1, h : h + 1] for part in whole))
    largest = store.bounds[b, h, 2]
    step = max(1, BLOCK_LOGITS // (call.group * call.key.shape[2]))
    answers, read = [], torch.zeros(call.key.shape[2], dtype=torch.bool, device=call.key.device)
    for first in range(0, call.query.shape[2], step):
        rows = take_rows(call, slice(0, 1), slice(first, min(first + step, call.query.shape[2])))
        answer, union = _rows(call, rows, coded, store.center[b, h], page, largest, ball, return_kept)
        answers.append(answer)
        read |= union
    return join(answers, dim=3), int(read.sum())


def _rows(
    call: Call,
    rows: Rows,
    coded: Coded,
    center: Tensor,
    page: Tensor,
    largest: Tensor,
    ball: ValueBall,
    return_kept: bool,
) -> tuple[Answer, Tensor]:
    span = slice(0, call.key.shape[2])
    seen = visibility(call, rows, span)
    lower, upper, bad = _ends(call, rows, coded, center, page)
    visible = torch.ones_like(bad) if seen is None else seen
    nonfinite = ~rows.finite | (visible & bad).any(-1)
    sink = _sink(call, rows)
    with torch.no_grad():
        eta = _head_error(call, rows, largest)
        head, shift, tail = certified_head(lower, upper, visible, sink, eta, call.budget)
        if head.any(2).any(2).sum() > cut.DENSE_SHARE * visible.any(2).any(2).sum():
            head, tail = visible, torch.zeros_like(tail)

    def answer(head: Tensor, tail: Tensor) -> Answer:
        state, overflow = _read(call, rows, head)
        rest = identity(tail.shape, call.value.shape[3], tail.device)._replace(shift=shift, tail=tail)
        whole = merge(state, rest._replace(shift=torch.where(tail > 0, shift, -torch.inf)))
        if sink is not None:
            whole = merge(whole, from_sink(sink, call.value.shape[3]))
        kept = head if return_kept else None
        return seal(whole, visible.sum(-1), ball, call.query.dtype, sink is not None, nonfinite | overflow, kept)

    found = answer(head, tail)
    nonfinite = found.status == int(Status.NONFINITE)
    missed = (found.tv > call.budget) & ~nonfinite
    if bool(missed.any()):
        head = torch.where(missed[..., None], visible, head)
        found = answer(head, torch.where(missed, 0.0, tail))
    if bool(nonfinite.any()):
        found = spoil(found, dense_rows(call, rows, visible), visible)
        head = head | (visible & nonfinite[..., None])
    return found, head.flatten(0, 3).any(0)


@torch.no_grad()
def _ends(call: Call, rows: Rows, coded: Coded, center: Tensor, page: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ends of all logits (1, 1, G, T, n), NaN where nothing is known; and what makes a row that sees it not finite."""
    group, queries = rows.query.shape[2:4]
    ends = bound_logits(coded, center, page, rows.query.detach().flatten(0, 3), call.scale)
    lower, upper = (end.unflatten(0, (1, 1, group, queries)) for end in ends)
    if call.softcap is not None:
        error = cap_error(call.softcap)
        cap = torch.tensor(call.softcap, dtype=torch.float64, device=lower.device)
        lower = rounding.add_down(cap * torch.tanh(lower / cap), -error)
        upper = rounding.add_up(cap * torch.tanh(upper / cap), error)
    bad = coded.residual.isnan().expand(upper.shape)
    if call.bias is not None:
        part = call.bias[:, None, :, rows.start : rows.start + queries]
        bad = bad | part.isnan() | part.isposinf()
        wide = part.to(torch.float64)
        lower = rounding.add_down(rounding.add_down(lower, wide), -rounding.INPUT_FLUSH)
        upper = rounding.add_up(rounding.add_up(upper, wide), rounding.INPUT_FLUSH)
    return lower, upper, bad


def _head_error(call: Call, rows: Rows, largest: Tensor) -> Tensor:
    """At least the error of every exact logit, for the slack of the cut: that of the largest key."""
    error = dot_error(call.scale, rows.query.shape[-1], rows.norm, largest)
    return error if call.softcap is None else rounding.add_up(error.clamp_max(2.0 * call.softcap), 1e-12 * call.softcap)


def _read(call: Call, rows: Rows, head: Tensor) -> tuple[Partial, Tensor]:
    """Exact logits and values of the union of heads, one gather for the group; and which rows met an overflow."""
    union = head.flatten(0, 3).any(0).nonzero().squeeze(-1)
    few = call._replace(
        key=call.key[:, :, union],
        value=call.value[:, :, union],
        bias=None if call.bias is None else call.bias[..., union],
    )
    span = slice(0, union.shape[0])
    keys, values = take_keys(few.key, slice(0, 1), span), take_keys(few.value, slice(0, 1), span)
    logits, error = exact_logits(few, rows, keys, span)
    own = head[..., union]
    overflow = (own & ~logits.isfinite()).any(-1)
    return from_keys(logits, error, values.vectors[:, :, None], own, own), overflow


def _sink(call: Call, rows: Rows) -> Tensor | None:
    return None if call.sink is None else call.sink[:, None, :, rows.start : rows.start + rows.query.shape[3]]
