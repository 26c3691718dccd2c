"""Block-Hadamard rotation of any width, exact on small integers: no padding, no irrational factor."""

from __future__ import annotations

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor


@lru_cache(maxsize=32)
def rotation(width: int) -> Float[Tensor, "D D"]:
    """A symmetric block-diagonal matrix H of +-2^-p entries: Hadamard blocks of falling powers of two.

    A block of size `2^m` has `p = m // 2` and `H H = 2^(m - 2p) I`: the identity for even m, twice that for odd m.
    `inverse_gain` undoes it. Products of H with integers are exact in float64 while their sums stay below 2^53.

    >>> rotation(3)
    tensor([[ 1.,  1.,  0.],
            [ 1., -1.,  0.],
            [ 0.,  0.,  1.]], dtype=torch.float64)
    """
    return torch.block_diag(*(_block(size) for size in blocks(width)))


@lru_cache(maxsize=32)
def inverse_gain(width: int) -> Float[Tensor, " D"]:
    """`g` with `H diag(g) H = I`: 1 for blocks of size 1, 4, 16, ..., and 1/2 for 2, 8, 32, ..."""
    gains = [torch.full((size,), 0.5 ** (size.bit_length() - 1 & 1), dtype=torch.float64) for size in blocks(width)]
    return torch.cat(gains)


def blocks(width: int) -> list[int]:
    """The powers of two that make up a width, largest first."""
    return [1 << bit for bit in range(width.bit_length() - 1, -1, -1) if width >> bit & 1]


def _block(size: int) -> Tensor:
    block = torch.ones(1, 1, dtype=torch.float64)
    while block.shape[0] < size:
        block = torch.cat([torch.cat([block, block], 1), torch.cat([block, -block], 1)])
    return block * 0.5 ** ((size.bit_length() - 1) // 2)
