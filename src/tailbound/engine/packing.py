"""How codes and marks lie in memory: blocks of 16 keys, four components of each key side by side.

A kernel then reads 64 bytes and has the same four components of 16 keys, one 32-bit lane a key: integer products add up
within lanes, and no sum across lanes is needed. A block of 16 keys of width D is D // 4 groups of (16 keys, 4
components), then one group of (16 keys, D % 4 components): 16 D bytes, without padding. Marks are three rows of 16
bfloat16 a block: step, residual, extent.
"""

from __future__ import annotations

import torch
from jaxtyping import BFloat16, Int8
from torch import Tensor

from tailbound.bounds.interval import Coded

BLOCK = 16
"""Keys in a block."""


def pack_codes(codes: Int8[Tensor, "*batch n D"]) -> Int8[Tensor, "*batch nD"]:
    """(..., n, D) codes as they lie in memory; n is a multiple of `BLOCK`."""
    width = codes.shape[-1]
    blocks = codes.unflatten(-2, (codes.shape[-2] // BLOCK, BLOCK))
    whole = width - width % 4
    fours = blocks[..., :whole].unflatten(-1, (whole // 4, 4)).transpose(-3, -2).flatten(-3)
    return torch.cat([fours, blocks[..., whole:].flatten(-2)], -1).flatten(-2)


def unpack_codes(packed: Int8[Tensor, "*batch nD"], width: int) -> Int8[Tensor, "*batch n D"]:
    """The inverse of `pack_codes`."""
    blocks = packed.unflatten(-1, (packed.shape[-1] // (BLOCK * width), BLOCK * width))
    whole = BLOCK * (width - width % 4)
    fours = blocks[..., :whole].unflatten(-1, (width // 4, BLOCK, 4)).transpose(-3, -2).flatten(-2)
    rest = blocks[..., whole:].unflatten(-1, (BLOCK, width % 4))
    return torch.cat([fours, rest], -1).flatten(-3, -2)


def pack(coded: Coded) -> tuple[Int8[Tensor, "*batch nD"], BFloat16[Tensor, "*batch blocks 3 16"]]:
    """Coded keys as they lie in memory; their number is a multiple of `BLOCK`."""
    marks = torch.stack(coded[1:], -2)
    blocks = marks.unflatten(-1, (marks.shape[-1] // BLOCK, BLOCK)).transpose(-3, -2)
    return pack_codes(coded.codes), blocks


def unpack(packed: Tensor, marks: Tensor, width: int) -> Coded:
    """The inverse of `pack`."""
    step, residual, extent = marks.transpose(-3, -2).flatten(-2).unbind(-2)
    return Coded(unpack_codes(packed, width), step, residual, extent)
