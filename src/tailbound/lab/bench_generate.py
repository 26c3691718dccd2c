"""`tailbound bench generate`: whole decode steps of a real model on a real text, certified and dense, in turns."""

from __future__ import annotations

import gc
from collections.abc import Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tailbound.engine.check import check_epsilon
from tailbound.lab import memory, models, text, timing, truth
from tailbound.lab.errors import InputError, as_input_error
from tailbound.lab.progress import Progress
from tailbound.lab.steps import FOLDED, OURS, PEERS, STOCK, TAILBOUND, UNRECORDED, WARM, Name, Options, Row
from tailbound.result import Status

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from tailbound.hf import Ledger
    from tailbound.lab.decoders import Decoder


def run(options: Options, progress: Progress) -> list[Row]:
    """Every contestant, at each dtype and context.

    Raises:
        InputError: anything about the options that cannot be had.
    """
    from tailbound.lab import decoders

    _check(options)
    title, document = text.read_text(options.text)
    longest = max(options.contexts)
    rows: list[Row] = []
    for dtype in options.dtypes:
        source = models.Source(options.model, dtype, options.download)
        with progress.task("reading the tokenizer", None):
            source.check_positions(longest, f"--contexts {longest}")
            tokenizer = source.tokenizer()
        ids = text.first_tokens(tokenizer, document, longest, title)
        with progress.task(f"reading the model, {dtype}", None):
            model = source.model()
        decoders.check_full_attention(model)
        for context in options.contexts:
            rows += _Round(options, dtype, title, model, ids[:, :context]).run(progress)
        del model
        gc.collect()
    return rows


class _Round:
    """One dtype and one context: ids (1, context)."""

    def __init__(self, options: Options, dtype: str, source: str, model: PreTrainedModel, ids: Tensor) -> None:
        self._options, self._dtype, self._source, self._model = options, dtype, source, model
        self._prompt, self._forced = ids[:, : -options.steps - 1], ids[:, -options.steps - 1 :]
        self._context = ids.shape[1]
        self._decoders: dict[Name, Decoder] = {}
        self._ledgers: dict[Name, Ledger] = {}

    @torch.inference_mode()
    def run(self, progress: Progress) -> list[Row]:
        from tailbound.lab import decoders

        where = f"{self._dtype}, {self._context:,} tokens"
        with ExitStack() as stack:
            self._line_up(stack)
            first = Name(TAILBOUND, self._options.epsilons[0])
            readers = {name: self._decoders[name] for name in (Name(STOCK), Name(FOLDED), first)}
            with progress.task(f"prefill, {where}", len(readers) * (1 + self._options.prefills)) as advance:
                peaks = {name: self._peak(reader, advance) for name, reader in readers.items()}
                prefills = self._prefill(readers, advance)
            self._share(first)
            with progress.task(f"contestants take turns, {where}", self._options.steps + 1) as advance:
                logits: dict[Name, list[Tensor]] = {name: [] for name in self._decoders}
                calls = {
                    name: decoders.forcing(one, self._forced, logits[name]) for name, one in self._decoders.items()
                }
                seconds = timing.take_turns(calls, self._options.steps, advance)
            profiles = self._profiles(progress)
            return self._rows(seconds, logits, prefills, peaks, profiles)

    def _line_up(self, stack: ExitStack) -> None:
        from tailbound.lab import decoders

        self._decoders[Name(STOCK)] = decoders.stock(self._model)
        self._decoders[Name(FOLDED)] = decoders.folded(self._model, self._context)
        wanted = [Name(who, epsilon) for epsilon in self._options.epsilons for who in OURS]
        for name in dict.fromkeys([*wanted, Name(TAILBOUND, 0.0)]):
            assert name.epsilon is not None
            ours = decoders.certified(self._model, name.epsilon, record=name.contestant == TAILBOUND)
            self._decoders[name], self._ledgers[name] = stack.enter_context(ours)

    def _peak(self, reader: Decoder, advance: Any) -> int | None:
        def work() -> None:
            reader.prefill(self._prompt)
            for at in range(WARM):
                reader.step(self._forced[:, at : at + 1])

        reader.prefill(self._prompt[:, :64])  # what the first call of all sets up is nobody's
        reader.cache = None
        found = memory.peak_over(work)
        reader.cache = None
        advance()
        return found

    def _prefill(self, readers: Mapping[Name, Decoder], advance: Any) -> dict[Name, np.ndarray]:
        """Seconds of each prefill, in turns; the caches of the last ones stay."""

        def call(reader: Decoder) -> Any:
            return lambda: (reader.prefill(self._prompt), advance())

        calls = {name: call(reader) for name, reader in readers.items()}
        return timing.take_turns(calls, self._options.prefills, warm=0)

    def _share(self, first: Name) -> None:
        """What one of ours has prefilled, for the others: it does not depend on epsilon or on recording."""
        for name, one in self._decoders.items():
            if name != first and name.contestant in OURS:
                one.take_over(self._decoders[first])

    def _profiles(self, progress: Progress) -> dict[Name, dict[str, float]]:
        if not self._options.profile:
            return {}
        from tailbound.lab import profiling

        found = {}
        with progress.task("taking the steps apart", len(self._decoders)) as advance:
            for name, one in self._decoders.items():
                found[name] = profiling.take_apart(one, self._forced, self._ledgers.get(name))
                advance()
        return found

    def _rows(
        self,
        seconds: Mapping[Name, np.ndarray],
        logits: Mapping[Name, list[Tensor]],
        prefills: Mapping[Name, np.ndarray],
        peaks: Mapping[Name, int | None],
        profiles: Mapping[Name, dict[str, float]],
    ) -> list[Row]:
        stock = self._decoders[Name(STOCK)].cache_bytes
        dense = torch.stack(logits[Name(STOCK)][1:])
        rows = []
        for name, taken in seconds.items():
            cache = self._decoders[name].cache_bytes
            row = Row(
                contestant=name.contestant,
                epsilon=name.epsilon,
                dtype=self._dtype,
                context=self._context,
                prompt=self._prompt.shape[1],
                steps=self._options.steps,
                threads=torch.get_num_threads(),
                model=self._options.model,
                source=self._source,
                median_ms=1e3 * float(np.median(taken)),
                ratio={peer: timing.ratio(seconds[Name(peer)], taken) for peer in PEERS},
                **_prefill_fields(name, prefills, peaks),
                cache_mb=cache / 1e6,
                cache_ratio=cache / stock,
                recording=_recording(name, seconds),
                **_agreement(torch.stack(logits[name][1:]), dense),
                **_certificates(self._ledgers.get(name)),
                profile=profiles.get(name),
            )
            rows.append(row)
        return rows


def _prefill_fields(
    name: Name, prefills: Mapping[Name, np.ndarray], peaks: Mapping[Name, int | None]
) -> dict[str, Any]:
    taken, peak, stock = prefills.get(name), peaks.get(name), peaks[Name(STOCK)]
    return {
        "prefill_s": None if taken is None else float(np.median(taken)),
        "prefill_ratio": None if taken is None else {peer: timing.ratio(prefills[Name(peer)], taken) for peer in PEERS},
        "peak_mb": None if peak is None else peak / 1e6,
        "memory_ratio": None if peak is None or not stock else peak / stock,
    }


def _recording(name: Name, seconds: Mapping[Name, np.ndarray]) -> timing.Ratio | None:
    without = seconds.get(Name(UNRECORDED, name.epsilon))
    return None if name.contestant != TAILBOUND or without is None else timing.ratio(seconds[name], without)


def _agreement(logits: Tensor, dense: Tensor) -> dict[str, float]:
    tv = torch.stack([truth.next_token_tv(a, b) for a, b in zip(logits, dense, strict=True)])
    return {
        "argmax_agreement": float((logits.argmax(-1) == dense.argmax(-1)).double().mean()),
        "next_token_tv_mean": float(tv.mean()),
        "next_token_tv_max": float(tv.max()),
    }


def _certificates(ledger: Ledger | None) -> dict[str, Any]:
    fields: dict[str, Any] = dict.fromkeys(("tv_max", "dense_share", "kept_share", "fallbacks"))
    if ledger is None:
        return fields
    from tailbound.lab import decoders

    fields["fallbacks"] = decoders.fallbacks(ledger)
    if len(ledger):
        layers = ledger.by_layer()
        fields["tv_max"] = max(layer.tv_max for layer in layers)
        fields["dense_share"] = ledger.statuses()[Status.DENSE] / len(ledger)
        fields["kept_share"] = sum(layer.kept_share * layer.certificates for layer in layers) / len(ledger)
    return fields


def _check(options: Options) -> None:
    if not options.contexts or not options.dtypes or not options.epsilons:
        raise InputError("at least one of --contexts, --dtypes and --epsilon each")
    if options.steps < 1:
        raise InputError(f"--steps {options.steps}: at least 1 is needed")
    if options.prefills < 1:
        raise InputError(f"--prefills {options.prefills}: at least 1 is needed")
    # Shorter prompts would not be prefilled: they would be certified.
    least = options.steps + 1 + 64
    if min(options.contexts) < least:
        raise InputError(f"--contexts {min(options.contexts)}: at least {least}, a prompt of 64 tokens and the steps")
    with as_input_error():
        for epsilon in options.epsilons:
            check_epsilon(epsilon)
