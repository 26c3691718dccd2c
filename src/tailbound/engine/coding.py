"""Writing keys and values into a store, in plain torch: copies, centres, codes, and the ball of the values."""

from __future__ import annotations

import torch
from torch import Tensor

from tailbound.bounds import rounding
from tailbound.bounds.interval import Coded, code_keys, page_center
from tailbound.engine.packing import BLOCK, pack, unpack
from tailbound.engine.store import Store

OWN_CENTER = 4
"""A page begun with fewer than a fourth of its keys takes the centre of the page before, if keys are left
there: a better guess than theirs."""


@torch.no_grad()
def write(store: Store, key: Tensor, value: Tensor) -> None:
    """Append keys and values, for which there is room.

    Keys with NaN or infinity in the key or the value are flagged by NaN marks, and stay out of centres and bounds.

    Args:
        key: (B, Hkv, m, D). value: (B, Hkv, m, Dv).
    """
    first, last = store.stop, store.stop + key.shape[2]
    store.key[:, :, first:last] = key
    store.value[:, :, first:last] = value
    usable = key.isfinite().all(-1) & value.isfinite().all(-1)
    if store.length == 0:
        total = torch.where(usable[..., None], value, 0.0).sum(2, dtype=torch.float64)
        store.value_center[:] = total / usable.sum(2).clamp_min(1)[..., None]
        store.bounds.zero_()
    store.bounds[..., 3] = torch.maximum(store.bounds[..., 3], (~usable).any(-1).to(torch.float64))
    page = store.page
    for number in range(first // page, -(-last // page)):
        begin, end = max(first, number * page), min(last, (number + 1) * page)
        part = (slice(None), slice(None), slice(begin - first, end - first))
        good = usable[part]
        keys, values = (torch.where(good[..., None], x[part].to(torch.float64), 0.0) for x in (key, value))
        if begin == number * page:
            _begin_page(store, number, keys, good)
        _widen_bounds(store, keys, values, good)
        center = store.center[:, :, number, None].expand(-1, -1, end - begin, -1)
        _put(store, begin, _flag(code_keys(keys, center), good))
    store.place(store.start, last)


def _begin_page(store: Store, number: int, wide: Tensor, usable: Tensor) -> None:
    few = wide.shape[2] < store.page // OWN_CENTER
    inherited = few and number * store.page > store.start
    store.center[:, :, number] = store.center[:, :, number - 1] if inherited else page_center(wide, usable)


def _flag(coded: Coded, usable: Tensor) -> Coded:
    return coded._replace(residual=torch.where(usable, coded.residual, torch.nan).to(torch.bfloat16))


def _put(store: Store, begin: int, coded: Coded) -> None:
    """Write codes at a position, into blocks that may be shared with older keys."""
    end = begin + coded.codes.shape[-2]
    first, last = begin // BLOCK, -(-end // BLOCK)
    codes = store.codes[:, :, first * BLOCK * store.width : last * BLOCK * store.width]
    marks = store.marks[:, :, first:last]
    whole = unpack(codes, marks, store.width)
    held = slice(begin - first * BLOCK, end - first * BLOCK)
    for old, new in zip(whole, coded, strict=True):
        old[:, :, held] = new
    codes[:], marks[:] = pack(whole)


def _widen_bounds(store: Store, keys: Tensor, values: Tensor, usable: Tensor) -> None:
    """Bring the ball of the values and the largest key norm up to date. Denormals may have been read as zero."""
    away = rounding.mul_up(rounding.norm_up(values - store.value_center[:, :, None]), 1.0 + rounding.gamma(2))
    for column, distance, width in (
        (0, away, values.shape[3]),
        (1, rounding.norm_up(values), values.shape[3]),
        (2, rounding.norm_up(keys), keys.shape[3]),
    ):
        flush = rounding.INPUT_FLUSH * width**0.5 * (1.0 + rounding.gamma(4))
        largest = rounding.add_up(torch.where(usable, distance, 0.0).amax(2), flush)
        store.bounds[..., column] = torch.maximum(store.bounds[..., column], largest)
