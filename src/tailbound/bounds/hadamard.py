"""Block-Hadamard rotation of any width, exact on small integers: no padding, no irrational factor."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


def rotate(x: Float[Tensor, "*batch D"]) -> Float[Tensor, "*batch D"]:
    """`H x` for every vector: H symmetric and block-diagonal, its entries +-2^-p, Hadamard blocks of falling size.

    A block of size `2^m` has `p = m // 2` and `H H = 2^(m - 2p) I`: the identity for even m, twice that for odd m.
    `inverse_gain` undoes it. On integers it is exact in float64 while sums stay below 2^53. The order of the additions
    is part of the specification: butterflies of distance 1, 2, 4, ..., so that kernels give the same bits.

    >>> rotate(torch.tensor([1.0, 2.0, 5.0])).tolist() == [3.0, -1.0, 5.0]
    True
    """
    return torch.cat([_turn(part) for part in x.split(blocks(x.shape[-1]), -1)], -1)


@lru_cache(maxsize=32)
def rotation(width: int) -> Float[Tensor, "D D"]:
    """H as a matrix.

    >>> rotation(3)
    tensor([[ 1.,  1.,  0.],
            [ 1., -1.,  0.],
            [ 0.,  0.,  1.]], dtype=torch.float64)
    """
    return rotate(torch.eye(width, dtype=torch.float64))


@lru_cache(maxsize=32)
def inverse_gain(width: int, device: torch.device | str = "cpu") -> Float[Tensor, " D"]:
    """`g` with `H diag(g) H = I`: 1 for blocks of size 1, 4, 16, ..., and 1/2 for 2, 8, 32, ..."""
    gains = [torch.full((size,), 0.5 ** (_levels(size) & 1), dtype=torch.float64) for size in blocks(width)]
    return torch.cat(gains).to(device)


def blocks(width: int) -> list[int]:
    """The powers of two that make up a width, largest first."""
    return [1 << bit for bit in range(width.bit_length() - 1, -1, -1) if width >> bit & 1]


def _turn(part: Tensor) -> Tensor:
    size, distance = part.shape[-1], 1
    while distance < size:
        pairs = part.unflatten(-1, (size // (2 * distance), 2, distance))
        first, second = pairs.unbind(-2)
        part = torch.stack([first + second, first - second], -2).flatten(-3)
        distance *= 2
    return part * 0.5 ** (_levels(size) // 2)


def _levels(size: int) -> int:
    return size.bit_length() - 1
