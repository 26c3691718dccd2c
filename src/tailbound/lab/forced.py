"""A model that writes, of whatever kind, and what it reads first: likeliest tokens, its own or after given ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tailbound.lab.errors import InputError


@dataclass(frozen=True)
class Forced:
    """A decoder, or an encoder with its decoder.

    Attributes:
        model: what `models.Source.writer` gave.
        prompt: tokens (1, n) that the decoder reads.
        source: what the encoder reads, by name; empty without one.
    """

    model: Any
    prompt: Tensor
    source: dict[str, Tensor]

    @torch.inference_mode()
    def write(self, count: int, forced: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Likeliest tokens (count,) and logits (count, vocabulary), a step each.

        A step is fed with the likeliest token before it, or with that of `forced` (at least count - 1,).

        Raises:
            InputError: the model keeps no cache of keys and values.
        """
        name = "decoder_input_ids" if self.source else "input_ids"
        source = {
            key: given.to(self.model.dtype) if given.is_floating_point() else given
            for key, given in self.source.items()
        }
        read = self.model(**source, **{name: self.prompt[:, :-1]}, use_cache=True)
        cache = getattr(read, "past_key_values", None)
        if cache is None:
            raise InputError(
                f"{type(self.model).__name__} keeps no cache of keys and values: it is an encoder, or has no attention."
                " Decoding is what is checked; of encoders docs/families.md says what to do"
            )
        given: dict[str, Any] = {}
        if self.source:
            from transformers.modeling_outputs import BaseModelOutput

            given = {"encoder_outputs": BaseModelOutput(last_hidden_state=read.encoder_last_hidden_state)}
        token, tokens, logits = self.prompt[:, -1:], [], []
        for step in range(count):
            if step:
                token = tokens[-1] if forced is None else forced[None, step - 1 : step]
            answer = self.model(**given, **{name: token}, past_key_values=cache, use_cache=True)
            logits.append(answer.logits[:, -1])
            tokens.append(logits[-1].argmax(-1, keepdim=True))
        return torch.cat(tokens, 1)[0], torch.cat(logits)


def read(model: Any, prompt: Tensor, seed: int) -> tuple[Forced, str]:
    """A model with its prompt (1, n), read by the encoder too if it has one of tokens; and what the encoder reads.

    Raises:
        InputError: an encoder of something else than tokens or sound.
    """
    if not model.config.is_encoder_decoder:
        return Forced(model, prompt, {}), ""
    if model.main_input_name == "input_ids":
        return Forced(model, prompt, {"input_ids": prompt}), ", read by encoder and decoder"
    bins, frames = (getattr(model.config, name, None) for name in ("num_mel_bins", "max_source_positions"))
    if bins is None or frames is None:
        raise InputError(
            f"the encoder of {type(model).__name__} reads {model.main_input_name}: only those of tokens, and of sound "
            "as Whisper reads it, can be checked"
        )
    sound = torch.randn(1, bins, 2 * frames, generator=torch.Generator().manual_seed(seed))
    return Forced(model, prompt, {model.main_input_name: sound}), ", after random sound"
