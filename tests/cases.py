"""Attention calls to test laws on: drawn by hypothesis, steered by name towards what has broken such bounds before."""

from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class Case(NamedTuple):
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    epsilon: float
    options: dict[str, Any]


def _plain(q, k, v, gen):
    return q * 2, k, v


def _equal_keys(q, k, v, gen):
    return q, k[:, :, :1].expand_as(k).clone(), v


def _ties(q, k, v, gen):
    return q, k.sign(), v


def _one_hot(q, k, v, gen):
    hot = torch.nn.functional.one_hot(torch.randint(k.shape[-1], k.shape[:-1], generator=gen), k.shape[-1])
    return 8 * q, hot.to(k.dtype), v


def _coded_exactly(q, k, v, gen):
    """Keys that codes of 8 bits hold without error, in opposite pairs around 0: what is left is the query's coding."""
    pairs = k.shape[2] // 2
    hot = torch.nn.functional.one_hot(torch.randint(k.shape[-1], (*k.shape[:2], pairs), generator=gen), k.shape[-1])
    half = hot.to(k.dtype) * 127 / 64
    return 2 * q, torch.cat([half, -half, torch.zeros_like(k[:, :, 2 * pairs :])], 2), v


def _outlier_channel(q, k, v, gen):
    k = k.clone()
    k[..., 0] += 200.0
    return q, k, v


def _outlier_key(q, k, v, gen):
    k, v = k.clone(), v.clone()
    k[:, :, -1] *= 300.0
    v[:, :, -1] *= 1000.0
    return q, k, v


def _large_logits(q, k, v, gen):
    return 120 * q, 120 * k, v


def _far_values(q, k, v, gen):
    return q, k, v + 5000.0


def _query_along_key(q, k, v, gen):
    group = q.shape[1] // k.shape[1]
    return 3 * k[:, :, :1].repeat_interleave(group, 1).expand_as(q).clone(), k, v


SHAPES = {f.__name__.removeprefix("_"): f for f in (
    _plain, _equal_keys, _ties, _one_hot, _coded_exactly, _outlier_channel, _outlier_key, _large_logits, _far_values,
    _query_along_key,
)}  # fmt: skip


@st.composite
def calls(draw, dtypes=DTYPES, max_keys=24):
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31), label="seed"))
    batch, kv_heads, group = draw(st.sampled_from([(1, 1, 1), (1, 2, 3), (1, 1, 3), (2, 1, 2)]), label="heads")
    queries, keys = draw(st.integers(1, 3)), draw(st.integers(1, max_keys))
    width, value_width = draw(st.sampled_from([(1, 1), (3, 5), (16, 16), (17, 4)]), label="widths")
    dtype = draw(st.sampled_from(dtypes), label="dtype")
    q = torch.randn(batch, kv_heads * group, queries, width, generator=gen, dtype=torch.float64)
    k = torch.randn(batch, kv_heads, keys, width, generator=gen, dtype=torch.float64)
    v = torch.randn(batch, kv_heads, keys, value_width, generator=gen, dtype=torch.float64)
    q, k, v = SHAPES[draw(st.sampled_from(sorted(SHAPES)), label="kind")](q, k, v, gen)
    if dtype is not torch.float16:
        power = draw(st.sampled_from([0, 0, 0, -12, 12, -25]), label="power of ten moved from keys to queries")
        q, k = q * 10.0**power, k * 10.0**-power
        v = v * 10.0 ** draw(st.sampled_from([0, 0, -25, 25]), label="power of ten of the values")
    options: dict[str, Any] = {}
    shape = (batch, kv_heads * group, queries, keys)
    match draw(st.sampled_from(["none", "none", "bool", "bias"]), label="mask"):
        case "bool":
            options["attn_mask"] = torch.rand(shape, generator=gen) > 0.3
        case "bias":
            bias = torch.randn(shape, generator=gen) * 3
            options["attn_mask"] = bias.masked_fill(torch.rand(shape, generator=gen) > 0.7, -torch.inf)
    if draw(st.booleans(), label="causal"):
        options["is_causal"] = True
    if draw(st.integers(0, 3), label="softcap?") == 0:
        options["softcap"] = draw(st.sampled_from([2.0, 30.0]))
    if draw(st.integers(0, 3), label="sink?") == 0:
        options["sink"] = torch.randn(kv_heads * group, generator=gen) * 4
    if draw(st.integers(0, 3), label="scale?") == 0:
        options["scale"] = draw(st.sampled_from([1.0, -0.7, 0.0, 3.1]))
    epsilon = draw(st.sampled_from([0.0, 1e-9, 1e-4, 0.01, 0.1, 0.5, 0.9]), label="epsilon")
    return Case(q.to(dtype), k.to(dtype), v.to(dtype), epsilon, options)
