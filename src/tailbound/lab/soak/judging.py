"""Ask one case and hold the answer to its promises, row by row."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

import tailbound
from tailbound.lab import contestants
from tailbound.lab.soak import oracle
from tailbound.lab.soak.cases import WHOLE, Case
from tailbound.lab.soak.tally import Tally
from tailbound.result import Attention, Status

ENOUGH = 20
"""Rows of one case that are found below the truth before the others are taken for the same fault: digits are slow."""

CLAIMED = (int(Status.CERTIFIED), int(Status.DENSE))


class Violation(NamedTuple):
    """A broken promise: which row (batch, head, query) of which case, and how."""

    seed: int
    number: int
    row: tuple[int, int, int]
    words: str


def judge(case: Case, tally: Tally) -> list[Violation]:
    """Ask, count, recompute. What is wrong comes back."""
    answer, held = ask(case)
    call = _call(case, answer, held)
    tv, error, kept, status = answer.certificate
    empty, finite = ~call.visible.any(-1), oracle.finite(call)
    unfinite = status == int(Status.NONFINITE)
    sound = finite & ~empty
    tally.count(status.numpy(), call.visible.sum(-1).numpy(), case.kind, case.who)

    budget = case.epsilon[:, None] if isinstance(case.epsilon, Tensor) else case.epsilon
    claimed = (status == CLAIMED[0]) | (status == CLAIMED[1])
    dense = status == int(Status.DENSE)
    broken = {
        "EMPTY must mean that no key is visible": (status == int(Status.EMPTY)) != empty,
        "NONFINITE must mean that the row sees a NaN or an infinity": ~empty & (unfinite == finite),
        "tv is above epsilon": claimed & ~(tv <= budget),
        "kept is not the number of keys that got weight": kept != call.kept.sum(-1),
        "a key got weight that the row does not see": (call.kept & ~call.visible).any(-1),
        "DENSE must mean that every visible key got weight": sound & claimed & (dense != (tv == 0)),
        "a row that sees nothing is not zero": empty & (call.output != 0).any(-1),
    }
    found = [
        Violation(case.seed, case.number, _place(row), words)
        for words, wrong in broken.items()
        for row in wrong.nonzero()
    ]
    found += _below(call, tv, error, sound & claimed, tally, case)
    tally.violations += len(found)
    return found


def ask(case: Case) -> tuple[Attention, Tensor]:
    """The answer, and which keys (n,) it is about."""
    held = case.held()
    asked: dict[str, Any] = {"epsilon": case.epsilon, "return_kept": True, **case.options}
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads)
    try:
        with contestants.at_level(case.who.removeprefix("index/") if case.who not in WHOLE else "torch"):
            if case.who in WHOLE:
                return tailbound.attention(case.query, case.key, case.value, impl=case.who, **asked), held
            return _index(case).attend(
                case.query, impl="torch" if case.who == "index/torch" else "native", **asked
            ), held
    finally:
        torch.set_num_threads(before)


def _index(case: Case) -> tailbound.KVIndex:
    index, written = tailbound.KVIndex(case.key[:, :, :0], case.value[:, :, :0]), 0
    for step, count in case.steps:
        if step == "write":
            part = slice(written, written + count)
            if written:
                index.append(case.key[:, :, part], case.value[:, :, part])
            else:
                index = tailbound.KVIndex(case.key[:, :, part], case.value[:, :, part])
            written += count
        elif step == "crop":
            index.crop(count)
        else:
            index.drop_front(count)
    return index


def _call(case: Case, answer: Attention, held: Tensor) -> oracle.Call:
    assert answer.kept is not None
    options, shape = case.options, answer.kept.shape
    mask = options.get("attn_mask")
    visible, bias = torch.ones(shape, dtype=torch.bool), None
    if mask is not None and mask.dtype is torch.bool:
        visible = mask.expand(shape)
    elif mask is not None:
        bias = mask.expand(shape)
    if options.get("is_causal"):
        visible = visible & torch.ones(shape[2:], dtype=torch.bool).tril(shape[3] - shape[2])
    return oracle.Call(
        case.query,
        case.key[:, :, held],
        case.value[:, :, held],
        visible,
        bias,
        options.get("scale", case.query.shape[3] ** -0.5),
        options.get("softcap"),
        options.get("sink"),
        answer.kept,
        answer.output,
    )


def _below(call: oracle.Call, tv: Tensor, error: Tensor, rows: Tensor, tally: Tally, case: Case) -> Iterator[Violation]:
    """Rows whose tv or output_error is below the truth, decided as precisely as it takes."""
    truth = oracle.in_float64(call)
    in_doubt = rows & ~((tv >= truth.tv + truth.tv_error) & (error >= truth.away + truth.away_error))
    known = rows & ~in_doubt & (truth.tv > 0)
    tally.loosen(((tv[known] - truth.tv[known]) / truth.tv[known]).numpy(), (case.seed, case.number))
    wrong = 0
    for place in in_doubt.nonzero():
        if wrong == ENOUGH:
            return
        row = _place(place)
        claims = float(tv[row]), float(error[row])
        words, spare = _decide(call, row, claims, tally)
        if spare is not None:
            tally.loosen(np.array([spare]), (case.seed, case.number))
        if words:
            wrong += 1
            yield Violation(case.seed, case.number, row, words)


def _decide(
    call: oracle.Call, row: tuple[int, int, int], claims: tuple[float, float], tally: Tally
) -> tuple[str, float | None]:
    """What is wrong, if anything, and the share that tv has to spare."""
    tally.escalated["wide"] += 1
    found = oracle.in_longdouble(call, row)
    if found is not None:
        tail, away, tail_error, away_error = found
        if claims[0] >= tail + 2 * tail_error and claims[1] >= away + 2 * away_error:
            return "", (claims[0] - tail) / tail if tail > 0 else None
    tally.escalated["digits"] += 1
    true_tv, true_away = oracle.in_digits(call, row)
    words = []
    if not claims[0] >= true_tv:
        words.append(f"tv {claims[0]!r} is below the truth {float(true_tv)!r}")
    if not claims[1] >= true_away:
        words.append(f"output_error {claims[1]!r} is below the truth {float(true_away)!r}")
    spare = None if true_tv == 0 or math.isinf(claims[0]) else float((claims[0] - true_tv) / true_tv)
    return "; ".join(words), spare


def _place(row: Tensor) -> tuple[int, int, int]:
    b, h, t = row.tolist()
    return b, h, t
