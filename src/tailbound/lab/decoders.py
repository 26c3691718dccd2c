"""Contestants of `tailbound bench generate`: one model's weights under several kinds of attention, each with its cache.

A contestant is a twin of the model: its own modules, configuration and hooks over the same weights. So each stays as
it is while they take turns, and nothing is switched between two steps.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.cache_utils import DynamicCache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tailbound import hf
from tailbound.lab import contestants
from tailbound.lab.captures import Layer
from tailbound.lab.errors import InputError

FOLDED = "tailbound-folded"
"""The `attn_implementation` of the strong peer. Without the words that transformers looks for in such names."""


class InPlaceLayer(DynamicLayer):
    """A cache layer with room for so many keys from the start: appending copies the new keys and nothing else."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self._buffers: tuple[Tensor, Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held, room included."""
        return sum(buffer.nbytes for buffer in self._buffers or ())

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append; returns everything held, keys (B, Hkv, n, D) and values (B, Hkv, n, Dv), as views."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            key, value = (new.new_empty(*new.shape[:2], self._room, new.shape[3]) for new in (key_states, value_states))
            self._buffers = key, value
        assert self._buffers is not None
        start = self.get_seq_length()
        stop = start + key_states.shape[2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, start:stop] = new
        self.keys, self.values = (buffer[:, :, :stop] for buffer in self._buffers)
        return self.keys, self.values


class Decoder:
    """A twin of a model with its own cache. What it is asked for, it is asked for in inference mode."""

    def __init__(self, model: PreTrainedModel, attention: str | None = None, room: int | None = None) -> None:
        """`attention`: an `attn_implementation`, or None for the model's; `room`: keys of a cache appended in place."""
        self.model = _twin(model)
        if attention is not None:
            self.model.set_attn_implementation(attention)
        self._room = room
        self.cache: Any = None

    def prefill(self, ids: Tensor) -> None:
        """Read tokens (1, n) into a new cache, as `generate` does."""
        self.cache = None
        cache = DynamicCache(config=self.model.config)
        if self._room is not None:
            cache.layers[:] = [InPlaceLayer(self._room) for _ in cache.layers]
        self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        self.cache = cache

    def step(self, token: Tensor) -> Tensor:
        """Logits (vocabulary,) after one more token (1, 1)."""
        return self.model(token, past_key_values=self.cache, use_cache=True).logits[0, -1]

    def take_over(self, other: Decoder) -> None:
        """Go on from a copy of what another one of its kind has read."""
        self.cache = copy.deepcopy(other.cache)

    @property
    def cache_bytes(self) -> int:
        """Bytes that the cache holds: keys, values, sketches and room to grow."""
        return sum(_held(layer) for layer in self.cache.layers)


def stock(model: PreTrainedModel) -> Decoder:
    """What transformers does by itself: SDPA, and a cache that is concatenated anew at every step."""
    return Decoder(model, "sdpa")


def folded(model: PreTrainedModel, room: int) -> Decoder:
    """The strong peer: the heads of a group as query rows of one SDPA call, on a cache appended to in place."""
    AttentionInterface.register(FOLDED, _folded)
    AttentionMaskInterface.register(FOLDED, sdpa_mask)
    return Decoder(model, FOLDED, room)


@contextmanager
def certified(
    model: PreTrainedModel, epsilon: float | hf.Budget, record: bool = True
) -> Iterator[tuple[Decoder, hf.Ledger]]:
    """Ours: a twin under `certify` for the length of a block."""
    decoder = Decoder(model, "sdpa")
    with hf.certify(decoder.model, epsilon, record=record) as ledger:
        yield decoder, ledger


def forcing(decoder: Decoder, forced: Tensor, logits: list[Tensor]) -> Callable[[], None]:
    """A call that feeds the next token of forced (1, steps) and keeps the logits (vocabulary,)."""
    return lambda: logits.append(decoder.step(forced[:, len(logits) : len(logits) + 1]))


def fallbacks(ledger: hf.Ledger) -> int:
    """Calls answered exactly though they were no prefill."""
    return sum(calls for (_, why), calls in ledger.exact.items() if not why.endswith("(prefill)"))


def check_full_attention(model: PreTrainedModel) -> None:
    """Refuse models whose layers do not all see the whole context.

    Raises:
        InputError: naming the kind of layer that was found.
    """
    other = {type(layer).__name__ for layer in DynamicCache(config=model.config).layers} - {DynamicLayer.__name__}
    if other:
        raise InputError(f"the model caches {', '.join(sorted(other))}: whole steps are compared on full attention")


def _folded(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, Tensor | None]:
    if query.shape[:1] + query.shape[2:3] != (1, 1) or attention_mask is not None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    scaling = kwargs.get("scaling")
    scale = query.shape[3] ** -0.5 if scaling is None else scaling
    answer = contestants.folded(Layer(query, key, value, scale))
    return answer.reshape(1, 1, query.shape[1], value.shape[3]), None


def _held(layer: Any) -> int:
    own = getattr(layer, "nbytes", None)
    return layer.keys.nbytes + layer.values.nbytes if own is None else own


def _twin(model: PreTrainedModel) -> PreTrainedModel:
    """The same weights in other modules."""
    weights = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in weights})
