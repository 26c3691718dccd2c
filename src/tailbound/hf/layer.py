"""A cache layer: one `tailbound.KVIndex`, appended to in place, and everything that generation does to it.

How an attention function finds the index: transformers hands it the tensors that `update` returned, and no cache. So
`CertifiedLayer.update` marks the tensors that it returns. A model that rotates, slices or repeats them passes on other
tensors, which carry no mark; one that writes into them moves their version counter. Neither is served from the index.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from tailbound.engine.index import KVIndex
from tailbound.engine.store import DTYPES

_KEY, _VALUE = "_tailbound_key", "_tailbound_value"


class _Mark:
    """What a pair of tensors from `update` says: they are what this index holds, unless someone writes into them.

    Tensors hold a mark and a mark holds the index, never the other way round: no cycle keeps a dropped cache alive.
    """

    __slots__ = ("index", "versions")

    def __init__(self, index: KVIndex) -> None:
        self.index: KVIndex | None = index
        self.versions = index.versions


def index_of(key: Tensor, value: Tensor) -> KVIndex | None:
    """The index whose keys and values these tensors are, now and entirely; None if there is none."""
    mark = getattr(key, _KEY, None)
    if mark is None or getattr(value, _VALUE, None) is not mark:
        return None
    return mark.index if (key._version, value._version) == mark.versions else None


def why_no_index(key: Tensor, value: Tensor) -> str:
    """Why `index_of` found nothing, in words for the ledger."""
    by_key, by_value = getattr(key, _KEY, None), getattr(value, _VALUE, None)
    if by_key is None and by_value is None:
        return "the keys are not what a certified cache holds (no cache, another kind of layer, or made anew from it)"
    if by_key is not by_value:
        return f"the model changed the {'keys' if by_key is None else 'values'} after they were cached"
    return "the cache was changed, or written to, after it returned these keys"


class CertifiedLayer(DynamicLayer):
    """A cache layer that holds its keys and values in a `KVIndex`.

    Where an index cannot hold them it is a stock `DynamicLayer`, with plain tensors: keys whose history autograd
    follows, and float64. It changes over by itself at the next `update` that allows it, so gradients are what they
    would be without it. Keys or values that are assigned from outside, or written to in place, are taken over with a
    new sketch at the next `update`; writes through `.data` go unnoticed.
    """

    _index: KVIndex | None = None
    _mark: _Mark | None = None
    _returned: tuple[Tensor, Tensor] | None = None
    _versions: tuple[int, int] | None = None
    _plain: tuple[Tensor | None, Tensor | None] = (None, None)

    @classmethod
    def of(cls, layer: DynamicLayer) -> CertifiedLayer:
        """A certified layer with what a stock layer holds."""
        new, keys, values = cls(), layer.keys, layer.values
        if layer.is_initialized and keys is not None and values is not None:
            new.device, new.is_initialized = layer.device, True
            new._plain = keys, values
            if keys.numel() and holdable(keys, values):
                new._build(keys, values)
        return new

    @property
    def index(self) -> KVIndex | None:
        """The index, built anew if someone wrote into its keys or values; None while the tensors are plain."""
        if self._index is not None and self._versions not in (None, self._index.versions):
            self._build(self._index.key, self._index.value)
        return self._index

    @property
    def nbytes(self) -> int:
        """Bytes held: keys, values, sketches, and room to grow."""
        if self._index is not None:
            return self._index.nbytes
        return sum(tensor.nbytes for tensor in self._plain if tensor is not None)

    @property
    def _held_dtype(self) -> torch.dtype | None:
        held = self._plain[0] if self._index is None else self._index
        return None if held is None else held.dtype

    @property
    def keys(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(B, Hkv, n, D), a view that is valid until the cache changes; None before the first `update`."""
        return self._plain[0] if self._index is None else self._read(self._index)[0]

    @keys.setter
    def keys(self, keys: Tensor | None) -> None:
        self._leave()
        self._plain = keys, self._plain[1]

    @property
    def values(self) -> Tensor | None:  # pyright: ignore[reportIncompatibleVariableOverride]
        """(B, Hkv, n, Dv), a view that is valid until the cache changes; None before the first `update`."""
        return self._plain[1] if self._index is None else self._read(self._index)[1]

    @values.setter
    def values(self, values: Tensor | None) -> None:
        self._leave()
        self._plain = self._plain[0], values

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append in place; returns everything held: keys (B, Hkv, n, D) and values (B, Hkv, n, Dv), views.

        Raises:
            ValueError: shapes or devices that do not fit what is held.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if not holdable(key_states, value_states) or key_states.dtype is not self._held_dtype:
            self._leave()
            return super().update(key_states, value_states, *args, **kwargs)
        index = self.index
        if index is not None:
            index.append(key_states, value_states)
        elif self.get_seq_length():
            held_keys, held_values = super().update(key_states, value_states)
            index = self._build(held_keys, held_values)
        else:
            index = self._build(key_states, value_states)
        return self._marked(index)

    def get_seq_length(self) -> int:
        """Keys held for each batch entry and head."""
        return super().get_seq_length() if self._index is None else len(self._index)

    def reset(self) -> None:
        """Forget everything; the next `update` may come with another batch size or dtype."""
        self._leave()
        super().reset()

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens. transformers' sign rule: a positive number is refused."""
        index = self.index
        if index is None or tokens_to_remove > 0:
            super().crop(tokens_to_remove)
        elif tokens_to_remove < 0:
            index.crop(max(0, len(index) + tokens_to_remove))
            self._settle(index)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Make batch entry i what entry `beam_idx[i]` is now."""
        if self.index is None:
            super().reorder_cache(beam_idx)
        else:
            self._select(self.index, beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every batch entry."""
        if self.index is None:
            super().batch_repeat_interleave(repeats)
        else:
            self._select(self.index, torch.arange(self.index.shape[0]).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these batch entries, in this order; `indices` as torch indexing takes them."""
        if self.index is None:
            super().batch_select_indices(indices)
        else:
            entries = torch.arange(self.index.shape[0], device=getattr(indices, "device", None))
            self._select(self.index, entries[indices])

    def offload(self) -> None:
        """Refused: an index is read at every step.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError(
            "a certified cache cannot be offloaded: its sketches are read at every step. Leave out offloading=True and "
            'cache_implementation="offloaded", or generate outside tailbound.hf.certify'
        )

    prefetch = offload

    def __getstate__(self) -> dict[str, Any]:
        """Copies hold their own index, and what was returned before is not theirs."""
        _ = self.index  # in step with what is copied
        return self.__dict__ | {"_mark": None, "_returned": None, "_versions": None}

    def _held(self, index: KVIndex) -> tuple[Tensor, Tensor]:
        """What a stock layer would hold of the index's keys and values, as views."""
        return index.key, index.value

    def _read(self, index: KVIndex) -> tuple[Tensor, Tensor]:
        """What `keys` and `values` are: marked, since cross attention reads them instead of what `update` returned."""
        return self._marked(index) if self._returned is None else self._returned

    def _marked(self, index: KVIndex) -> tuple[Tensor, Tensor]:
        """Everything in the index, marked as such, and nothing that was returned before."""
        self._settle(index)
        key, value = index.key, index.value
        self._mark = _Mark(index)
        vars(key)[_KEY] = vars(value)[_VALUE] = self._mark
        self._returned = key, value
        return key, value

    def _build(self, key: Tensor, value: Tensor) -> KVIndex:
        """An index of these keys and values instead of what is held."""
        key, value = key.detach(), value.detach()
        self._index = KVIndex(key, value, room=key.shape[2] + max(MIN_ROOM, int(ROOM * key.shape[2])))
        self._plain = (None, None)
        self._settle(self._index)
        return self._index

    def _select(self, index: KVIndex, entries: Tensor) -> None:
        if torch.equal(entries, torch.arange(index.shape[0], device=entries.device)):
            return  # beams often stay where they are
        index.reorder(entries)
        self._settle(index)

    def _settle(self, index: KVIndex) -> None:
        """After a change: tensors returned before are not what the index holds now."""
        if self._mark is not None:
            self._mark.index = self._mark = None
        self._returned = None
        self._versions = index.versions

    def _leave(self) -> None:
        """Become a stock layer, with views of what the index held."""
        if self._index is not None:
            self._settle(self._index)
            self._plain, self._index = self._held(self._index), None


ROOM, MIN_ROOM = 1 / 16, 64
"""Room beyond a prefill, as a share of it and in keys: without, the first token of an answer would move all of it."""


def holdable(key: Tensor, value: Tensor) -> bool:
    """Whether an index can hold these without losing anything: its dtypes, and no history that someone follows."""
    if torch.is_grad_enabled() and (key.requires_grad or value.requires_grad):
        return False
    return key.dtype in DTYPES and key.dtype is value.dtype and key.shape[:3] == value.shape[:3]
