"""What the decode benchmark runs on: layers of a real capture or Gaussian ones, and the smallest sets of keys."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from tailbound.lab import captures
from tailbound.lab.captures import Layer
from tailbound.lab.errors import InputError
from tailbound.lab.models import DTYPES
from tailbound.lab.progress import Progress

CACHE = Path("/sys/devices/system/cpu/cpu0/cache/index3/size")
CACHE_FALLBACK = 32 << 20
"""Bytes taken for the last-level cache where the system does not say."""


class Options(NamedTuple):
    """What to time. Without `real`: Gaussian logits of standard deviation `sigma`; sizes are of one layer.

    Attributes:
        layers: of synthetic data; 0 for enough that K and V exceed four times the last-level cache, and at least 2.
        threads: numbers of CPU threads; empty for 1 and all.
        capture: the file for `real`; None for one of smollm2 with `context` tokens, made once and kept.
        positions: for `real`, how many of the last query positions are judged. The last one is timed.
    """

    n: int = 8192
    epsilons: tuple[float, ...] = (0.01, 0.05)
    sigma: float = 3.5
    heads: int = 32
    kv_heads: int = 8
    head_dim: int = 128
    dtype: str = "bfloat16"
    layers: int = 0
    rounds: int = 15
    threads: tuple[int, ...] = ()
    real: bool = False
    capture: Path | None = None
    context: int = 8192
    positions: int = 64


class Data(NamedTuple):
    """Layers of one shape; each query (1, Hq, T, D) holds the last T positions, the timed one last."""

    layers: list[Layer]
    source: str

    @property
    def nbytes(self) -> int:
        """Bytes of K and V, all layers."""
        return sum(layer.key.nbytes + layer.value.nbytes for layer in self.layers)


class Smallest(NamedTuple):
    """The smallest sets of keys that miss at most epsilon of the mass, of one layer.

    Attributes:
        sizes: int64 (Hq, T), keys in the set of each row.
        union: for each KV head, the keys (int64, ascending) in the sets of its query heads at the last position.
        tv: float64 (Hq,), the mass of the keys outside the union, at the last position.
    """

    sizes: Tensor
    union: list[Tensor]
    tv: Tensor


def prepare(options: Options, progress: Progress) -> Data:
    """The layers that the options ask for.

    Raises:
        InputError: sizes that do not fit, or a capture that cannot be had.
    """
    if options.dtype not in DTYPES:
        raise InputError(f"--dtype {options.dtype}: allowed are {', '.join(DTYPES)}")
    sizes = (options.n, options.heads, options.kv_heads, options.head_dim, options.rounds, options.positions)
    if min(sizes) < 1:
        raise InputError("every size, the number of rounds and that of positions must be at least 1")
    if options.layers < 0:
        raise InputError(f"--layers {options.layers}: at least 1, or 0 for enough to leave the cache")
    for epsilon in options.epsilons:
        if not 0 < epsilon < 1:
            raise InputError(f"--epsilon {epsilon:g}: allowed is what lies between 0 and 1; the dense rows are 0")
    return _real(options, progress) if options.real else _synthetic(options)


def smallest(layer: Layer, epsilon: float) -> Smallest:
    """Sort the weights of every row, in float64 from the tensors alone."""
    heads, positions, n = layer.query.shape[1], layer.query.shape[2], layer.key.shape[2]
    group = heads // layer.key.shape[1]
    visible = torch.arange(n) <= torch.arange(n - positions, n)[:, None]
    counts, unions, missed = [], [], []
    for h in range(layer.key.shape[1]):
        query = layer.query[0, h * group : (h + 1) * group].double()
        logits = (query @ layer.key[0, h].double().T * layer.scale).masked_fill(~visible, -torch.inf)
        weights = logits.softmax(-1)
        ranked, order = weights.sort(-1, descending=True)
        # The mass outside the first k keys, summed from its smallest weight up, must be at most epsilon.
        outside = ranked.flip(-1).cumsum(-1).flip(-1)
        count = (outside > epsilon).sum(-1)
        counts.append(count)
        union = torch.cat([row[:k] for row, k in zip(order[:, -1], count[:, -1].tolist(), strict=True)]).unique()
        unions.append(union)
        rest = torch.ones(n, dtype=torch.bool)
        rest[union] = False
        missed.append(weights[:, -1, rest].sum(-1))
    return Smallest(torch.cat(counts), unions, torch.cat(missed))


def cache_bytes(path: Path = CACHE) -> int:
    """Bytes of the last-level cache, as Linux tells them."""
    try:
        size = path.read_text(encoding="ascii").strip()
        return int(size.rstrip("KMG")) << {"K": 10, "M": 20, "G": 30}.get(size[-1:], 0)
    except (OSError, ValueError):
        return CACHE_FALLBACK


def _synthetic(options: Options) -> Data:
    if options.heads % options.kv_heads:
        raise InputError(f"--heads {options.heads} is not a multiple of --kv-heads {options.kv_heads}")
    dtype = DTYPES[options.dtype]
    cache = (1, options.kv_heads, options.n, options.head_dim)
    count = options.layers or max(2, math.floor(4 * cache_bytes() / (2 * math.prod(cache) * dtype.itemsize)) + 1)

    def layer() -> Layer:
        query = torch.randn(1, options.heads, 1, options.head_dim) * options.sigma
        key, value = torch.randn(cache), torch.randn(cache)
        return Layer(query.to(dtype), key.to(dtype), value.to(dtype), options.head_dim**-0.5)

    return Data([layer() for _ in range(count)], f"Gaussian logits, sigma {options.sigma:g}")


def _real(options: Options, progress: Progress) -> Data:
    path = options.capture
    if path is None:
        # One file serves every number of positions up to the default.
        queries = max(options.positions, min(Options().positions, options.context))
        path = captures.default_path(options.context, queries, options.dtype)
        if not path.is_file():
            _make(captures.Options(path, context=options.context, queries=queries, dtype=options.dtype), progress)
    found = captures.load(path)
    held = found.layers[0].query.shape[2]
    if options.positions > held:
        raise InputError(
            f"--positions {options.positions}: {path} holds {held} query positions; make one with more by "
            f"`tailbound capture --queries {options.positions}`"
        )
    layers = [layer._replace(query=layer.query[:, :, -options.positions :].contiguous()) for layer in found.layers]
    return Data(layers, f"{found.metadata['model']} on {found.metadata['text']}")


def _make(options: captures.Options, progress: Progress) -> None:
    try:
        options.output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"cannot keep a capture in {options.output.parent}: {error.strerror or error}; set XDG_CACHE_HOME, or make "
            "one with `tailbound capture` and name it by --capture"
        ) from error
    captures.capture(options, progress)
