"""A cache layer with a sliding window: the index of `CertifiedLayer`, whose front moves as the window does."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicSlidingWindowLayer

from tailbound.engine.index import KVIndex
from tailbound.hf.layer import CertifiedLayer, holdable


class CertifiedSlidingLayer(CertifiedLayer, DynamicSlidingWindowLayer):  # pyright: ignore[reportIncompatibleVariableOverride]
    """A `DynamicSlidingWindowLayer` that holds its keys and values in a `KVIndex`; sliding and chunked attention.

    What it returns, holds, and says of its lengths is what a stock layer does at every call. `update` returns the new
    tokens after the last window - 1 (or all, if fewer): the index holds those until the next `update` drops from its
    front what the window has left behind. New tokens that fill the window by themselves, such as a long prompt, are
    returned as plain tensors, and only those that later calls see are sketched.
    """

    _kept: int = 0
    """How many keys, the last ones of the index, a stock layer would hold."""

    @classmethod
    def of(cls, layer: DynamicSlidingWindowLayer) -> CertifiedSlidingLayer:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A certified layer with what a stock layer holds."""
        new, keys, values = cls(sliding_window=layer.sliding_window), layer.keys, layer.values
        new.cumulative_length, new.record_past = layer.cumulative_length, layer.record_past
        new._sliding_window_tensor = layer._sliding_window_tensor
        if layer.is_initialized and keys is not None and values is not None:
            new.device, new.is_initialized = layer.device, True
            new._plain = keys, values
            new._sketch()
        return new

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append; returns the new tokens after those held: keys (B, Hkv, n, D), values (B, Hkv, n, Dv), views.

        Raises:
            ValueError: shapes or devices that do not fit what is held.
        """
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        new = key_states.shape[2]
        fits = holdable(key_states, value_states) and key_states.dtype is self._held_dtype
        if fits and self.index is None:
            self._sketch()
        index = self.index
        if not fits or index is None or new >= self.sliding_window:
            self._leave()
            returned = DynamicSlidingWindowLayer.update(self, key_states, value_states, *args, **kwargs)
            index = self._sketch() if fits else None
            return returned if index is None or len(index) != returned[0].shape[2] else self._marked(index)
        index.drop_front(len(index) - self._kept)
        self._settle(index)
        index.append(key_states, value_states)
        self.cumulative_length += new
        visible = self.sliding_window - 1 + new
        self._kept = len(index) if self.record_past else min(len(index), self.sliding_window - 1)
        returned = self._marked(index)
        return returned if len(index) <= visible else (returned[0][:, :, -visible:], returned[1][:, :, -visible:])

    def get_seq_length(self) -> int:
        """Tokens seen, also those that the window has left behind."""
        return self.cumulative_length

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last `-tokens_to_remove` tokens, and what is kept of the past beyond the window.

        Raises:
            RuntimeError: the window has moved and the past was not recorded (`activate_past_recording`).
            ValueError: a positive number, as in transformers.
        """
        index, full = self.index, self.cumulative_length >= self.sliding_window
        if index is None or tokens_to_remove > 0 or (full and not self.record_past):
            DynamicSlidingWindowLayer.crop(self, tokens_to_remove)  # of a layer with an index: refused
            return
        if not full and tokens_to_remove == 0:
            return
        index.drop_front(len(index) - self._kept)
        index.crop(max(0, len(index) + tokens_to_remove))
        if full:
            index.drop_front(max(0, len(index) - self.sliding_window + 1))
            self.cumulative_length += tokens_to_remove
        else:
            self.cumulative_length = len(index)
        self._kept = len(index)
        self._settle(index)

    def _read(self, index: KVIndex) -> tuple[Tensor, Tensor]:
        return self._held(index)

    def _held(self, index: KVIndex) -> tuple[Tensor, Tensor]:
        first = len(index) - self._kept
        return index.key[:, :, first:], index.value[:, :, first:]

    def _sketch(self) -> KVIndex | None:
        """Move plain keys and values into an index, if there are any and it can hold them."""
        keys, values = self._plain
        if keys is None or values is None or not keys.numel() or not holdable(keys, values):
            return None
        self._kept = keys.shape[2]
        return self._build(keys, values)
