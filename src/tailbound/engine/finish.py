"""From a partial answer that covers every visible key to the output and its certificate."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tailbound.bounds import rounding
from tailbound.engine.partial import Partial
from tailbound.result import Status


class ValueBall(NamedTuple):
    """A ball around the values of a KV head, and around 0: float64, leading shape (B, Hkv).

    Attributes:
        center: (..., Dv). Any point is sound; the mean makes a small radius.
        radius: (...) at least the distance of every finite value from `center`.
        norm: (...) at least the norm of every finite value.
    """

    center: Tensor
    radius: Tensor
    norm: Tensor


class Answer(NamedTuple):
    """The answer for some rows; `kept` is None unless asked for."""

    output: Tensor
    tv: Tensor
    output_error: Tensor
    kept_count: Tensor
    status: Tensor
    kept: Tensor | None


def mass_down(state: Partial) -> Tensor:
    """At most the true head mass (and sink) of a state, relative to its shift."""
    sure = rounding.mul_down(state.mass, rounding.exp_down(-state.eta))
    return rounding.not_negative(rounding.mul_down(sure, 1.0 - 2.0 * rounding.gamma(4) - state.gamma))


def finish(state: Partial, ball: ValueBall, dtype: torch.dtype, has_sink: bool) -> tuple[Tensor, Tensor, Tensor]:
    """The output in its dtype, `tv`, and `output_error`, for rows (B, Hkv, G, T).

    With `out` the output as returned, `c` and `rho` the ball of the values and `e >= |out - mean over the head|`:
    `|out - exact| <= tv * (|out - c| + rho) + (1 + tv) * e`.
    """
    alive = state.mass > 0
    mean = state.weighted / torch.where(alive, state.mass, 1.0)[..., None]
    output = torch.where(alive[..., None], mean, 0.0).to(dtype)
    with torch.no_grad():
        sure = mass_down(state)
        tv = rounding.share_up(state.tail, sure)
        error = output_error(output.detach(), tv, state, sure, ball, has_sink)
    return output, tv, error


def output_error(output: Tensor, tv: Tensor, state: Partial, sure: Tensor, ball: ValueBall, has_sink: bool) -> Tensor:
    """At least the distance of `output`, as it is in memory, from exact attention; docs/soundness.md has the proof."""
    width = output.shape[-1] ** 0.5 * (1.0 + rounding.gamma(4))
    center, radius, norm = ball.center[:, :, None, None], ball.radius[..., None, None], ball.norm[..., None, None]
    # A sink is a value of 0 with weight: it widens the ball of what the head averages, not of what was left out.
    head_radius = torch.maximum(radius, rounding.norm_up(center)) if has_sink else radius

    wide = output.to(torch.float64)
    size = rounding.norm_up(wide)
    # The subtraction rounds each component once; what is read back may be flushed.
    away = rounding.add_up(
        rounding.mul_up(rounding.norm_up(wide - center), 1.0 + rounding.gamma(2)), 2.0 * width * rounding.INPUT_FLUSH
    )

    logits = rounding.mul_up((0.5 * state.eta).clamp_max(1.0), 2.0 * head_radius)  # tanh(x) <= min(x, 1)
    sums = rounding.mul_up(rounding.mul_up(state.gamma, 3.0), norm)
    cast = rounding.add_up(
        rounding.mul_up(size, rounding.unit_roundoff(output.dtype) + 2.0 * rounding.UNIT),
        width * (rounding.smallest_step(output.dtype) + 2.0 * rounding.INPUT_FLUSH),
    )
    lost = _underflow(state, sure, norm, width)
    e = rounding.add_up(rounding.add_up(logits, sums), rounding.add_up(cast, lost))
    truncation = rounding.mul_up(tv, rounding.add_up(away, radius))
    total = rounding.add_up(truncation, rounding.mul_up(rounding.add_up(tv, 1.0), e))
    return total.nan_to_num(nan=torch.inf, posinf=torch.inf)


def _underflow(state: Partial, sure: Tensor, norm: Tensor, width: float) -> Tensor:
    """Weights that underflowed to 0: each kept key, and each merge, loses at most `TINY` of mass."""
    mass = (state.kept + 256).to(torch.float64) * rounding.TINY
    share = rounding.mul_up(rounding.div_up(mass, sure), 2.0)
    lost = rounding.mul_up(share, rounding.add_up(norm, width))
    return torch.where(state.kept > 0, lost, 0.0)


def status_of(count: Tensor, visible_count: Tensor, nonfinite: Tensor) -> Tensor:
    """uint8 `Status` of each row, from its kept and visible keys."""
    status = torch.where(count == visible_count, int(Status.DENSE), int(Status.CERTIFIED))
    status = torch.where(nonfinite, int(Status.NONFINITE), status)
    return torch.where(visible_count == 0, int(Status.EMPTY), status).to(torch.uint8)


def seal(
    state: Partial,
    visible_count: Tensor,
    ball: ValueBall,
    dtype: torch.dtype,
    has_sink: bool,
    nonfinite: Tensor,
    kept: Tensor | None,
) -> Answer:
    """Turn finished states into answers; rows that see no key get zeros and no error."""
    output, tv, error = finish(state, ball, dtype, has_sink)
    status = status_of(state.kept, visible_count, nonfinite)
    empty = visible_count == 0
    output = torch.where(empty[..., None], torch.zeros_like(output), output)
    error = torch.where(empty, 0.0, error)
    return Answer(output, tv, error, state.kept, status, kept)


def spoil(answer: Answer, dense: Tensor, visible: Tensor) -> Answer:
    """Put dense answers, about which nothing is certified, into the rows that are not finite."""
    bad = answer.status == int(Status.NONFINITE)
    return Answer(
        output=torch.where(bad[..., None], dense.to(answer.output.dtype), answer.output),
        tv=torch.where(bad, 1.0, answer.tv),
        output_error=torch.where(bad, torch.inf, answer.output_error),
        kept_count=torch.where(bad, visible.sum(-1), answer.kept_count),
        status=answer.status,
        kept=None if answer.kept is None else torch.where(bad[..., None], visible, answer.kept),
    )


def join(parts: Sequence[Answer], dim: int) -> Answer:
    """Answers for neighbouring rows, side by side along a dimension of (B, Hkv, G, T)."""
    if len(parts) == 1:
        return parts[0]
    kept = [part.kept for part in parts if part.kept is not None]
    columns = zip(*(part[:5] for part in parts), strict=True)
    return Answer(*(torch.cat(column, dim) for column in columns), kept=torch.cat(kept, dim) if kept else None)
