"""The memory of a `KVIndex`: keys, values, codes and what is known of the values, appended to in place.

Keys lie at positions `start` to `stop` of buffers that grow geometrically; dropping keys from the front moves `start`,
cropping moves `stop`. Nothing here decides anything: this is where things lie, `coding` says what they are.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from tailbound.bounds.interval import STORED_BYTES, Coded, page_size
from tailbound.engine import memory
from tailbound.engine.finish import ValueBall
from tailbound.engine.packing import BLOCK, unpack
from tailbound.engine.turns import Turns

GROWTH = 1.25
"""A full store grows by a quarter: appending costs a bounded number of copies of each key, and slack stays small."""

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Store:
    """Buffers of one layer's keys and values; B batch entries, Hkv KV heads, room for `capacity` keys.

    Attributes:
        key: (B, Hkv, capacity, D). value: (B, Hkv, capacity, Dv).
        codes: int8 (B, Hkv, capacity * D), packed. marks: bfloat16 (B, Hkv, capacity / 16, 3, 16), packed.
        center: float32 (B, Hkv, pages, D).
        value_center: float64 (B, Hkv, Dv): the mean of the first values.
        bounds: float64 (B, Hkv, 4): at least the distance of every finite value from `value_center`, the norm of every
            finite value, the norm of every finite key; and 1 if a key was ever flagged.
        span: int64 (2,) on the CPU: start, stop. A tensor, so that a compiled graph does not depend on it.
        turns: which threads are at work on these buffers.
    """

    key: Tensor
    value: Tensor
    codes: Tensor
    marks: Tensor
    center: Tensor
    value_center: Tensor
    bounds: Tensor
    span: Tensor
    start: int = 0
    stop: int = 0
    turns: Turns = field(default_factory=Turns, repr=False, compare=False)

    @classmethod
    @torch.inference_mode(False)  # inference tensors cannot be changed outside, and do not count writes to them
    def empty(cls, key: Tensor, value: Tensor, room: int) -> Store:
        """A store without keys for tensors like these, with room for at least so many."""
        batch, heads, _, width = key.shape
        page = page_size(width)
        capacity = max(1, -(-room // page)) * page

        def form(*shape: int, dtype: torch.dtype) -> memory.Form:
            return (batch, heads, *shape), dtype

        of_keys = memory.buffers(
            [
                form(capacity, width, dtype=key.dtype),
                form(capacity, value.shape[3], dtype=value.dtype),
                form(capacity * width, dtype=torch.int8),
                form(capacity // BLOCK, 3, BLOCK, dtype=torch.bfloat16),
                form(capacity // page, width, dtype=torch.float32),
            ],
            key.device,
        )
        of_heads = (torch.zeros(batch, heads, n, dtype=torch.float64, device=key.device) for n in (value.shape[3], 4))
        return cls(*of_keys, *of_heads, span=torch.zeros(2, dtype=torch.int64))

    @torch.inference_mode(False)
    def __deepcopy__(self, memo: dict[int, object]) -> Store:
        clones = {part.name: getattr(self, part.name).clone() for part in fields(self)[:8]}
        return replace(self, **clones, turns=Turns())

    @property
    def width(self) -> int:
        """D."""
        return self.key.shape[3]

    @property
    def page(self) -> int:
        """Keys that share a centre."""
        return page_size(self.width)

    @property
    def capacity(self) -> int:
        """Keys that fit, from position 0."""
        return self.key.shape[2]

    @property
    def length(self) -> int:
        """Keys held."""
        return self.stop - self.start

    def tensors(self) -> list[Tensor]:
        """The buffers, in the order in which kernels take them."""
        return [getattr(self, part.name) for part in fields(self)[:8]]

    def nbytes(self) -> int:
        """Bytes of all buffers, unused room included."""
        return sum(tensor.nbytes for tensor in self.tensors())

    def sketch_bytes(self) -> int:
        """Bytes that a scan of all keys held reads."""
        pairs, pages = self.key.shape[0] * self.key.shape[1], -(-self.stop // self.page) - self.start // self.page
        return pairs * (self.length * (self.width + STORED_BYTES) + 4 * pages * self.width)

    def reserve(self, count: int) -> bool:
        """Make room for `count` more keys; whether the buffers were replaced."""
        if self.stop + count <= self.capacity:
            return False
        dead = self.start // self.page
        needed = self.length + self.start % self.page + count
        room = needed if self.length == 0 else max(needed, int(self.capacity * GROWTH))
        if dead and needed <= self.capacity / GROWTH:
            room = self.capacity  # enough room in front: move up instead of growing
        fresh = Store.empty(self.key, self.value, room)
        begun = -(-self.stop // self.page)
        for name, unit in (("key", 1), ("value", 1), ("codes", self.width), ("marks", 1 / BLOCK)):
            first, last = int(dead * self.page * unit), int(begun * self.page * unit)
            old, new = getattr(self, name), getattr(fresh, name)
            used = old[:, :, first:last]
            new[:, :, : used.shape[2]] = used
        fresh.center[:, :, : begun - dead] = self.center[:, :, dead:begun]
        self.key, self.value, self.codes, self.marks, self.center = fresh.tensors()[:5]
        self.place(self.start - dead * self.page, self.stop - dead * self.page)
        return True

    def place(self, start: int, stop: int) -> None:
        """Say which positions are held."""
        self.start, self.stop = start, stop
        self.span[0], self.span[1] = start, stop

    @torch.inference_mode(False)
    def select(self, batch: Tensor) -> None:
        """Keep the given batch entries, in that order; entries may repeat."""
        batch = batch.to(self.key.device)
        self.key, self.value, self.codes, self.marks, self.center, self.value_center, self.bounds = (
            tensor.index_select(0, batch) for tensor in self.tensors()[:7]
        )

    def keys(self) -> Tensor:
        """The keys held: (B, Hkv, n, D), a view."""
        return self.key[:, :, self.start : self.stop]

    def values(self) -> Tensor:
        """The values held: (B, Hkv, n, Dv), a view."""
        return self.value[:, :, self.start : self.stop]

    def ball(self) -> ValueBall:
        """What is known of the values."""
        return ValueBall(self.value_center, self.bounds[..., 0], self.bounds[..., 1])

    def coded(self, batch: int, head: int) -> tuple[Coded, Tensor]:
        """The codes of one KV head's keys, and the page of each."""
        first, last = self.start // BLOCK, -(-self.stop // BLOCK)
        coded = unpack(
            self.codes[batch, head, first * BLOCK * self.width : last * BLOCK * self.width],
            self.marks[batch, head, first:last],
            self.width,
        )
        held = slice(self.start - first * BLOCK, self.stop - first * BLOCK)
        page = torch.arange(self.start, self.stop, device=self.key.device) // self.page
        return Coded(*(part[held] for part in coded)), page
