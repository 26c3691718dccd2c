"""A model that completes texts or chats under certificates, turn after turn on one cache."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tailbound.lab import models
from tailbound.lab.errors import InputError, as_input_error
from tailbound.lab.progress import Progress

if TYPE_CHECKING:
    from tailbound.hf import Budget


class Options(NamedTuple):
    """What writes, and how.

    Attributes:
        epsilon: a number in [0, 1), or the path of a budget as JSON.
        temperature: 0 takes the likeliest token; above, tokens are drawn.
        chat: put texts into the tokenizer's chat template, as turns.
    """

    model: str = models.SMALL
    epsilon: str = "0.01"
    max_new_tokens: int = 128
    temperature: float = 0.0
    dtype: str = "float32"
    chat: bool = False
    download: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Turn:
    """One answer.

    Attributes:
        prompt_tokens: tokens before the answer, earlier turns included; `reused` of them were in the cache.
        tokens: of the answer.
        first_token_s: from the call to the first token.
        tokens_per_s: over the tokens after the first; None if there is none.
    """

    text: str
    prompt_tokens: int
    reused: int
    tokens: int
    first_token_s: float
    tokens_per_s: float | None


class Written(NamedTuple):
    """Tokens (1, prompt), tokens (1, answer), and when they came."""

    prompt: Tensor
    answer: Tensor
    clock: Clock


class Writer:
    """A model, its tokenizer, a certified cache, and the tokens that the cache holds."""

    def __init__(self, options: Options, progress: Progress) -> None:
        """Load the model.

        Raises:
            InputError: anything about the options that cannot be had.
        """
        self.options = options
        if options.max_new_tokens < 1:
            raise InputError(f"--max-new-tokens {options.max_new_tokens}: at least 1 is needed")
        if not 0 <= options.temperature < float("inf"):
            raise InputError(f"--temperature {options.temperature}: 0, or a positive number")
        source = models.Source(options.model, options.dtype, options.download)

        from tailbound.hf import CertifiedCache, Ledger

        self.budget = _budget(options.epsilon)
        self.ledger = Ledger()
        with progress.task("reading the tokenizer", None):
            self.tokenizer: Any = source.tokenizer()
        if options.chat and not self.tokenizer.chat_template:
            raise InputError(f"the tokenizer of {options.model} has no chat template; leave out --chat")
        with progress.task("reading the model", None):
            self.model: Any = source.model()
        self.cache = CertifiedCache(self.model.config)
        self._held = torch.empty(1, 0, dtype=torch.int64)
        self._said: list[dict[str, str]] = []

    def answer(self, text: str, stream: bool) -> tuple[Turn, Written]:
        """Go on after a text, or in a chat answer it. `stream` prints the answer as it comes.

        Raises:
            InputError: an empty text, one that does not fit the model, or a budget for layers that are not there.
        """
        from tailbound import hf

        prompt = self._prompt(text)
        reused = self._keep_prefix(prompt)
        with as_input_error(), hf.certify(self.model, self.budget, record=self.ledger):
            written = self.write(prompt, self.cache, stream)
        answer, clock = self.decode(written.answer), written.clock
        self._said.append({"role": "assistant", "content": answer})
        self._held = torch.cat([prompt, written.answer], 1)[:, : self.cache.get_seq_length()]
        turn = Turn(answer, prompt.shape[1], reused, written.answer.shape[1], clock.first_token_s, clock.tokens_per_s)
        return turn, written

    def write(self, prompt: Tensor, cache: Any, stream: bool = False) -> Written:
        """Tokens after a prompt (1, n) by the model's own attention as it is now, from the seed of the options."""
        clock = Clock(self.tokenizer if stream else None)
        sampling = {"do_sample": True, "temperature": self.options.temperature} if self.options.temperature else {}
        eos = self.model.generation_config.eos_token_id
        pad = self.tokenizer.pad_token_id
        torch.manual_seed(self.options.seed)
        with torch.inference_mode():
            tokens = self.model.generate(
                prompt,
                attention_mask=torch.ones_like(prompt),
                past_key_values=cache,
                max_new_tokens=self.options.max_new_tokens,
                eos_token_id=self.tokenizer.eos_token_id if eos is None else eos,
                pad_token_id=self.tokenizer.eos_token_id if pad is None else pad,
                streamer=clock,
                **({"do_sample": False} | sampling),
            )
        return Written(prompt, tokens[:, prompt.shape[1] :], clock)

    def decode(self, tokens: Tensor) -> str:
        """Tokens (1, n) as text."""
        return str(self.tokenizer.decode(tokens[0], skip_special_tokens=True))

    def _prompt(self, text: str) -> Tensor:
        """Tokens (1, n) up to the answer."""
        if not text.strip():
            raise InputError("the prompt is empty; give one with --prompt, --prompt-file or on stdin")
        if self.options.chat:
            self._said.append({"role": "user", "content": text})
            ids = self.tokenizer.apply_chat_template(
                self._said, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
        else:
            ids = self.tokenizer(text, return_tensors="pt").input_ids
        window = getattr(self.model.config, "max_position_embeddings", None)
        if window is not None and ids.shape[1] + self.options.max_new_tokens > window:
            raise InputError(
                f"{ids.shape[1]} tokens and --max-new-tokens {self.options.max_new_tokens} need more positions than "
                f"the {window} that {self.options.model} was made for"
            )
        return ids

    def _keep_prefix(self, prompt: Tensor) -> int:
        """Let the cache hold what it shares with the prompt (all but its last token), and nothing else: how much."""
        from tailbound.hf import CertifiedCache

        length = min(self._held.shape[1], prompt.shape[1] - 1)
        differs = (self._held[0, :length] != prompt[0, :length]).nonzero()
        shared = int(differs[0]) if len(differs) else length
        surplus = self._held.shape[1] - shared
        if surplus and not all(getattr(layer, "is_croppable", False) for layer in self.cache.layers):
            self.cache = CertifiedCache(self.model.config)
            return 0
        if surplus:
            self.cache.crop(-surplus)
        return shared


class Clock:
    """What `generate` takes for a streamer: notes when tokens come, and prints them if it is given a tokenizer."""

    def __init__(self, tokenizer: Any = None) -> None:
        from transformers import TextStreamer

        self._printing = None if tokenizer is None else TextStreamer(tokenizer, True, skip_special_tokens=True)
        self._times: list[float] = []

    def put(self, value: Tensor) -> None:
        """The prompt comes first, before it is read; then a token at a time."""
        if self._printing is not None:
            self._printing.put(value)
        self._times.append(time.perf_counter())

    def end(self) -> None:
        """Print what is left."""
        if self._printing is not None:
            self._printing.end()

    @property
    def first_token_s(self) -> float:
        """Seconds from the call to the first token."""
        return self._times[1] - self._times[0]

    @property
    def tokens_per_s(self) -> float | None:
        """Of the tokens after the first."""
        count = len(self._times) - 2
        return count / (self._times[-1] - self._times[1]) if count > 0 else None


def _budget(epsilon: str) -> Budget:
    from tailbound.hf import Budget

    try:
        number: float | str = float(epsilon)
    except ValueError:
        number = epsilon
    try:
        return Budget.parse(number)
    except FileNotFoundError as error:
        raise InputError(f"--epsilon {epsilon}: neither a number nor a file") from error
    except (OSError, ValueError) as error:
        raise InputError(f"--epsilon {epsilon}: {error}") from error
