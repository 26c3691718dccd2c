"""The contestants of `tailbound bench decode`: each a function that answers the last position in every layer."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention as sdpa

from tailbound.engine import native
from tailbound.engine.index import KVIndex
from tailbound.lab import timing
from tailbound.lab.bench_data import Data, Smallest
from tailbound.lab.captures import Layer
from tailbound.result import Attention

FOLDED = "sdpa folded"
"""SDPA with the heads of a group folded into query rows: the strongest dense contestant that torch has."""

GQA = "sdpa enable_gqa"
DENSE = "dense kernel"
ORACLE = "oracle gather"
TAILBOUND = "tailbound"
READ = "read"
"""A sum over as many bytes as K and V have: what reading them costs, and so the dense limit."""

PEERS = (FOLDED, GQA, DENSE)
OURS = (DENSE, TAILBOUND)

VARIABLE = "TAILBOUND_ISA"


class Name(NamedTuple):
    """Who: `isa` is "torch" for what torch computes; epsilon is 0 for what reads everything."""

    contestant: str
    isa: str = "torch"
    epsilon: float = 0.0


def levels() -> list[str]:
    """What can run here, lowest first; "torch" without the native module."""
    found = native.levels()
    return [level for level in found.built if level in found.cpu] or ["torch"]


def judged(epsilons: tuple[float, ...]) -> list[Name]:
    """Our own contestants: the dense kernel at the best level, and each epsilon at each level."""
    usable = levels()
    return [Name(DENSE, usable[-1]), *(Name(TAILBOUND, level, epsilon) for epsilon in epsilons for level in usable)]


@contextmanager
def at_level(level: str) -> Iterator[None]:
    """Force the kernels' instruction set for the length of a `with` block. "torch" forces nothing."""
    if level == "torch":
        yield
        return
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = level
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def attend(index: KVIndex, query: Tensor, scale: float, epsilon: float, return_kept: bool = False) -> Attention:
    """One public call. The usual scale is left out, as a caller would: naming it takes a slower way to the kernels."""
    named = None if scale == query.shape[3] ** -0.5 else scale
    return index.attend(query, epsilon=epsilon, scale=named, return_kept=return_kept)


def line_up(
    data: Data, indexes: list[KVIndex], sets: Mapping[float, list[Smallest]], buffer: Tensor
) -> dict[Name, Callable[[], object]]:
    """Everybody, by name. The number of threads is torch's at the time of the call."""
    layers = [layer._replace(query=layer.query[:, :, -1:].contiguous()) for layer in data.layers]
    ours = {name: _ours(layers, indexes, name.isa, name.epsilon) for name in judged(tuple(sets))}
    found: dict[Name, Callable[[], object]] = {
        Name(FOLDED): lambda: [folded(layer) for layer in layers],
        Name(GQA): lambda: [
            sdpa(layer.query, layer.key, layer.value, scale=layer.scale, enable_gqa=True) for layer in layers
        ],
        **{name: step for name, step in ours.items() if name.contestant == DENSE},
    }
    for epsilon, of_layers in sets.items():
        unions = [one.union for one in of_layers]
        found[Name(ORACLE, epsilon=epsilon)] = lambda unions=unions: [
            _gathered(layer, union) for layer, union in zip(layers, unions, strict=True)
        ]
        found |= {name: step for name, step in ours.items() if name.epsilon == epsilon}
    found[Name(READ)] = _fastest_read(buffer)
    return found


def folded(layer: Layer) -> Tensor:
    """Dense attention of one query a head over all keys: (1, Hkv, group, Dv), batch 1."""
    query, key, value, scale = layer
    return sdpa(query.reshape(1, key.shape[1], -1, query.shape[3]), key, value, scale=scale)


def _gathered(layer: Layer, union: list[Tensor]) -> list[Tensor]:
    """The union of each group is copied out and answered densely, one KV head after another: they differ in length."""
    query, key, value, scale = layer
    queries = query.reshape(key.shape[1], -1, query.shape[3])
    return [
        sdpa(
            queries[None, None, h],
            key[0, h].index_select(0, keys)[None, None],  # faster than key[:, h : h + 1, keys]
            value[0, h].index_select(0, keys)[None, None],
            scale=scale,
        )
        for h, keys in enumerate(union)
    ]


def _ours(layers: list[Layer], indexes: list[KVIndex], level: str, epsilon: float) -> Callable[[], object]:
    def step() -> list[Attention]:
        with at_level(level):
            return [
                attend(index, layer.query, layer.scale, epsilon) for index, layer in zip(indexes, layers, strict=True)
            ]

    return step


def _fastest_read(buffer: Tensor) -> Callable[[], object]:
    """Of a few reductions, the one that takes least here with this number of threads. buffer: float32, contiguous."""
    whole = buffer.view(torch.int64)
    ways: dict[str, Callable[[], Any]] = {
        "dot": lambda: torch.dot(buffer, buffer),
        "sum": whole.sum,
        "max": whole.amax,
    }
    seconds = timing.take_turns(ways, 3)
    return ways[min(ways, key=lambda way: float(seconds[way].min()))]
