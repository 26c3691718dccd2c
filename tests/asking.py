"""One way to ask every implementation: those of `tailbound.attention`, and an index at every level of kernels.

"index/torch" is the specification in torch; "index/scalar" and so on are the kernels of that level. Indexes scan
however few keys they hold, so that small cases reach the sketch; the suffix "+dense" leaves them as users have them.
"""

import contextlib
import os
from unittest import mock

import pytest
import torch

import tailbound
from tailbound.engine import cut, native

LEVELS = [level for level in native.levels().built if level in native.levels().cpu]
KERNELS = tuple(f"index/{level}" for level in LEVELS)
INDEXES = ("index/torch", *KERNELS, "index/scalar+dense", f"index/{LEVELS[-1]}+dense")
INDEX_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@contextlib.contextmanager
def level_of(impl):
    """Force a level, and a scan."""
    level, _, dense = impl.removeprefix("index/").partition("+")
    with contextlib.ExitStack() as stack:
        if level != "torch":
            stack.enter_context(mock.patch.dict(os.environ, TAILBOUND_ISA=level))
        if not dense:
            stack.enter_context(mock.patch.object(native, "DENSE_BELOW", 0))
            stack.enter_context(mock.patch.object(cut, "DENSE_SHARE", 1.0))
        yield


def ask_index(index, query, impl, **options):
    """`index.attend` by the implementation that `impl` names; biases, which kernels refuse, go to torch."""
    mask = options.get("attn_mask")
    biased = isinstance(mask, torch.Tensor) and mask.dtype.is_floating_point
    named = "torch" if impl == "index/torch" else None if biased else "native"
    with level_of(impl):
        return index.attend(query, impl=named, **options)


def attend(query, key, value, *, impl, **options):
    """`tailbound.attention`, or the same question (causal from the top left) to an index."""
    if not impl.startswith("index"):
        return tailbound.attention(query, key, value, impl=impl, **options)
    if isinstance(query, torch.Tensor) and query.dtype is torch.float64:
        pytest.skip("an index holds float32, bfloat16 and float16")
    with level_of(impl):
        index = tailbound.KVIndex(key, value)
    if options.pop("is_causal", False):
        order = torch.ones(query.shape[2], key.shape[2], dtype=torch.bool).tril()
        mask = options.get("attn_mask")
        if mask is None:
            options["attn_mask"] = order
        elif mask.dtype is torch.bool:
            options["attn_mask"] = mask & order
        else:
            options["attn_mask"] = torch.where(order, mask, -torch.inf)
    return ask_index(index, query, impl, **options)


def halve_tv(monkeypatch):
    """Let every index claim half of what it must."""
    honest = tailbound.KVIndex.attend

    def broken(self, query, **options):
        found = honest(self, query, **options)
        tv, *others = found.certificate
        return found._replace(certificate=tailbound.Certificate(tv / 2, *others))

    monkeypatch.setattr(tailbound.KVIndex, "attend", broken)
