"""A model and a text: what the last positions say when attention is exact, and when something else answers it.

Everything before the last positions is read once, exactly. A decoder's last positions then go through the model
together, each seeing what it would see if they came one by one; so a run under a policy costs a small part of a
reading of the text. An encoder reads its window whole every time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tailbound.lab import truth
from tailbound.lab.errors import InputError
from tailbound.lab.listening import Heard, Listener, listening

Answerer = Callable[[Heard], Tensor]


class Errors(NamedTuple):
    """How far a model's answer is from its dense one; float64 (Q,), a row for each of the last positions.

    Attributes:
        tv: total variation of the next token's distribution; of an encoder the distance of the last hidden state from
            the dense one over the latter's length.
        kl: of the dense distribution from the other one, in nats; NaN for an encoder.
        agrees: 1.0 where the likeliest token is the dense one's; NaN for an encoder.
        loss: minus the log probability of the token that follows, in nats; NaN for the last one and for an encoder.
        dense_loss: the same of exact attention.
    """

    tv: Tensor
    kl: Tensor
    agrees: Tensor
    loss: Tensor
    dense_loss: Tensor


class _Reading:
    """What readings of both kinds share."""

    def __init__(self, model: Any) -> None:
        self.model, self.layers = model, model.config.get_text_config().num_hidden_layers
        self._dense: Tensor | None = None

    def answer(self, listener: Listener) -> Tensor:
        """What the model says, attention answered by a function."""
        raise NotImplementedError

    def listen(self, listener: Callable[[Heard], None]) -> None:
        """Answer exactly, and let a function hear it."""

        def answer(heard: Heard) -> Tensor:
            listener(heard)
            return exact(heard)

        with torch.no_grad():
            self.answer(answer)

    def both(self, policy: Answerer) -> tuple[Tensor, Tensor]:
        """What the model says under a policy, and under exact attention."""
        with torch.no_grad():
            if self._dense is None:
                self._dense = self.answer(exact)
            return self.answer(policy), self._dense


class Decoder(_Reading):
    """Tokens (1, n) of which the last `queries` are looked at: `last` (1, queries), after `prompt`."""

    encoder = False

    def __init__(self, model: Any, ids: Tensor, queries: int) -> None:
        super().__init__(model)
        self.prompt, self.last = ids[:, :-queries], ids[:, -queries:]
        self._prefix: Any = None

    def answer(self, listener: Listener) -> Tensor:
        """Logits (Q, vocabulary) of the last positions, attention answered by a function."""
        if self._prefix is None:
            with torch.no_grad():
                read = self.model(self.prompt, use_cache=True, logits_to_keep=1)
            self._prefix = getattr(read, "past_key_values", None)
            if self._prefix is None:
                raise InputError(
                    f"{type(self.model).__name__} keeps no cache of keys and values, so it has no attention to audit"
                )
        with listening(self.model, listener):
            return self.model(self.last, past_key_values=copy.deepcopy(self._prefix), use_cache=True).logits[0]

    @property
    def positions(self) -> list[int]:
        """Positions in the text of the rows of what is heard."""
        first = self.prompt.shape[1]
        return list(range(first, first + self.last.shape[1]))

    def errors(self, policy: Answerer) -> Errors:
        """What a policy does to the next tokens."""
        return errors_of(*self.both(policy), self.last)

    def damage(self, logits: Tensor, generator: torch.Generator) -> Tensor:
        """A random scalar, whose squared derivative along a change is twice the KL it does, on average."""
        chances = logits.double().log_softmax(-1)
        drawn = torch.multinomial(chances.detach().exp(), 1, generator=generator)
        return chances.gather(-1, drawn).sum()


class Encoder(_Reading):
    """A window (1, n) of tokens, read whole; `queries` positions spread over it are looked at."""

    encoder = True

    def __init__(self, model: Any, ids: Tensor, queries: int) -> None:
        super().__init__(model)
        self._ids = ids
        self.positions = torch.linspace(0, ids.shape[1] - 1, min(queries, ids.shape[1])).long().tolist()

    def answer(self, listener: Listener) -> Tensor:
        """Last hidden states (n, width), attention answered by a function."""
        with listening(self.model, listener):
            return self.model(self._ids).last_hidden_state[0]

    def errors(self, policy: Answerer) -> Errors:
        """What a policy does to the last hidden states."""
        states, dense = (part.double() for part in self.both(policy))
        distance = (states - dense).norm(dim=-1) / dense.norm(dim=-1)
        return Errors(distance, *[torch.full_like(distance, torch.nan)] * 4)

    def damage(self, states: Tensor, generator: torch.Generator) -> Tensor:
        """A random scalar, whose squared derivative along a change is its relative squared distance, on average."""
        states = states.double()
        unit = states / states.detach().norm(dim=-1, keepdim=True)
        return (unit * torch.randn(states.shape, dtype=torch.float64, generator=generator)).sum()


Reading = Decoder | Encoder


def exact(heard: Heard) -> Tensor:
    """Exact attention (B, Hq, T, Dv), differentiable, softcap and sink included."""
    group = heard.query.shape[1] // heard.key.shape[1]
    key, value = (part.repeat_interleave(group, 1) for part in (heard.key, heard.value))
    if heard.softcap is None and heard.sink is None:
        return torch.nn.functional.scaled_dot_product_attention(
            heard.query, key, value, heard.mask, is_causal=heard.causal, scale=heard.scale
        )
    return averages(heard, logits_of(heard, heard.query, key))


def averages(heard: Heard, logits: Tensor) -> Tensor:
    """Values under the softmax of logits (B, Hq, T, n), of which a sink takes its part: (B, Hq, T, Dv)."""
    if heard.sink is None:
        weights = logits.softmax(-1)
    else:
        sink = heard.sink.to(logits.dtype)[None, :, None, None].expand(*logits.shape[:3], 1)
        weights = torch.cat([logits, sink], -1).softmax(-1)[..., :-1]
    value = heard.value.repeat_interleave(heard.query.shape[1] // heard.value.shape[1], 1)
    return (weights @ value.to(weights.dtype)).to(heard.query.dtype)


def logits_of(heard: Heard, query: Tensor, key: Tensor) -> Tensor:
    """Logits (B, H, T, n) of queries and as many heads of keys, at least in float32; hidden ones -inf."""
    wide = torch.promote_types(query.dtype, torch.float32)
    logits = query.to(wide) @ key.to(wide).mT * heard.scale
    if heard.softcap is not None:
        logits = heard.softcap * (logits / heard.softcap).tanh()
    seen = heard.seen()
    return logits if seen is None else logits.masked_fill(~seen, -torch.inf)


@contextmanager
def frozen(model: Any) -> Iterator[None]:
    """No gradients for weights, for the length of a block."""
    asked = {parameter: parameter.requires_grad for parameter in model.parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, before in asked.items():
            parameter.requires_grad_(before)


def errors_of(logits: Tensor, dense: Tensor, tokens: Tensor) -> Errors:
    """Errors of logits (Q, vocabulary) against dense ones, after each of tokens (1, Q)."""
    return Errors(
        truth.next_token_tv(logits, dense),
        _kl(dense, logits),
        (logits.argmax(-1) == dense.argmax(-1)).double(),
        _loss(logits, tokens),
        _loss(dense, tokens),
    )


def _loss(logits: Tensor, tokens: Tensor) -> Tensor:
    found = torch.full((logits.shape[0],), torch.nan, dtype=torch.float64)
    found[:-1] = torch.nn.functional.cross_entropy(logits[:-1].double(), tokens[0, 1:], reduction="none")
    return found


def _kl(dense: Tensor, other: Tensor) -> Tensor:
    p, q = dense.double().log_softmax(-1), other.double().log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1).clamp(min=0)
