"""The main job: a real model reads a long document and writes on with certified attention, under a judge."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tailbound.engine.check import check_epsilon
from tailbound.lab import models, text, truth
from tailbound.lab.errors import InputError, as_input_error
from tailbound.lab.progress import Progress

if TYPE_CHECKING:
    from tailbound.hf import LayerSummary, Observation

SCHEMA = "tailbound.demo/1"


class Options(NamedTuple):
    """What to run. `text` is a file, or None for the source of Python's standard library."""

    model: str = models.SMALL
    text: Path | None = None
    context: int = 4096
    tokens: int = 32
    epsilon: float = 0.01
    dtype: str = "float32"
    download: bool = False


class LayerRow(NamedTuple):
    """One layer: the ledger's summary beside what the judge found."""

    layer: int
    kept_share: float
    dense_share: float
    tv_max: float
    true_tv_max: float
    output_error_max: float
    true_output_error_max: float


@dataclass
class Result:
    """What the demo saw. Shares and TV are in [0, 1]."""

    model: str
    dtype: str
    source: str
    prompt_end: str
    written: str
    context: int
    tokens: int
    epsilon: float
    certificates: int
    violations: int
    dense_share: float
    kept_mean: float
    tv_max: float
    true_tv_max: float
    next_token_tv_mean: float
    argmax_agreement: float
    seconds: float
    phases: dict[str, float] = field(default_factory=dict)
    layers: list[LayerRow] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The figures, as `tailbound demo --json` prints them."""
        names = (
            "context tokens epsilon certificates violations dense_share kept_mean tv_max true_tv_max "
            "next_token_tv_mean argmax_agreement seconds model dtype"
        )
        return {"schema": SCHEMA} | {name: getattr(self, name) for name in names.split()}


class Judge:
    """Checks every certificate as it is issued, against `lab.truth`."""

    def __init__(self) -> None:
        self.violations = 0
        self.true_tv: dict[int, float] = {}
        self.true_error: dict[int, float] = {}

    def __call__(self, seen: Observation) -> None:
        """Judge one attention call."""
        answer = seen.answer
        assert answer.kept is not None
        inputs = (seen.query, seen.key, seen.value, seen.attn_mask, seen.scale)
        found = truth.judge(*inputs, answer.kept, answer.output, seen.softcap, seen.sink)
        self.violations += int(found.violated_by(answer.certificate).sum())
        self.true_tv[seen.layer] = max(self.true_tv.get(seen.layer, 0.0), float(found.tv.max()))
        self.true_error[seen.layer] = max(self.true_error.get(seen.layer, 0.0), float(found.output_error.max()))


def run(options: Options, progress: Progress) -> Result:
    """Load, prefill exactly, decode under certificates, then force the same tokens through dense attention.

    All but the last token of the prompt are prefilled, so that every written token comes out of certified attention.

    Raises:
        InputError: anything about the options that cannot be had.
    """
    epsilon = _check(options)
    title, document = text.read_text(options.text)
    source = models.Source(options.model, options.dtype, options.download)
    phases: dict[str, float] = {}
    started = time.perf_counter()
    with _timed(phases, "load"):
        with progress.task("reading the tokenizer", None):
            source.check_positions(
                options.context + options.tokens, f"--context {options.context} and --tokens {options.tokens}"
            )
            tokenizer = source.tokenizer()
        prompt = text.first_tokens(tokenizer, document, options.context, title)
        with progress.task("reading the model", None):
            model = source.model()

    from tailbound import hf

    judge = Judge()
    with torch.inference_mode():
        with _timed(phases, "prefill"):
            cache = _prefill(model, prompt[:, :-1], progress)
        with hf.certify(model, epsilon, observe=judge) as ledger, _timed(phases, "certified decode"):
            written, logits = _decode(model, cache, prompt[:, -1:], options.tokens, progress)
        cache.crop(-options.tokens)
        fed = torch.cat([prompt[:, -1:], written[:, :-1]], 1)
        with _timed(phases, "dense decode"):
            dense = _replay(model, cache, fed, progress)

    total = max(1, len(ledger))
    layers = ledger.by_layer()
    return Result(
        model=options.model,
        dtype=options.dtype,
        source=title,
        prompt_end=str(tokenizer.decode(prompt[0, -64:])),
        written=str(tokenizer.decode(written[0], skip_special_tokens=True)),
        context=options.context,
        tokens=options.tokens,
        epsilon=epsilon,
        certificates=len(ledger),
        violations=judge.violations,
        dense_share=sum(layer.dense_share * layer.certificates for layer in layers) / total,
        kept_mean=sum(layer.kept_share * layer.certificates for layer in layers) / total,
        tv_max=max((layer.tv_max for layer in layers), default=0.0),
        true_tv_max=max(judge.true_tv.values(), default=0.0),
        next_token_tv_mean=float(truth.next_token_tv(logits, dense).mean()),
        argmax_agreement=float((logits.argmax(-1) == dense.argmax(-1)).double().mean()),
        seconds=time.perf_counter() - started,
        phases=phases,
        layers=[_layer_row(layer, judge) for layer in layers],
    )


def _check(options: Options) -> float:
    if options.context < 2:
        raise InputError(f"--context {options.context}: at least 2 tokens are needed")
    if options.tokens < 1:
        raise InputError(f"--tokens {options.tokens}: at least 1 is needed")
    with as_input_error():
        return check_epsilon(options.epsilon)


@contextmanager
def _timed(phases: dict[str, float], name: str) -> Iterator[None]:
    started = time.perf_counter()
    yield
    phases[name] = time.perf_counter() - started


def _prefill(model: Any, ids: Tensor, progress: Progress) -> Any:
    """Exact attention over the document; one tick a layer."""
    layers = getattr(model.base_model, "layers", [])
    with progress.task("prefill", len(layers) or None) as advance:
        hooks = [layer.register_forward_hook(lambda *_: advance()) for layer in layers]
        try:
            return model(ids, use_cache=True, logits_to_keep=1).past_key_values
        finally:
            for hook in hooks:
                hook.remove()


def _decode(model: Any, cache: Any, token: Tensor, count: int, progress: Progress) -> tuple[Tensor, Tensor]:
    """Greedy decoding: tokens (1, count), and the logits (count, vocabulary) that they were chosen from."""
    tokens, logits = [], []
    with progress.task("certified decode, judged", count) as advance:
        for _ in range(count):
            logits.append(model(token, past_key_values=cache).logits[:, -1])
            token = logits[-1].argmax(-1, keepdim=True)
            tokens.append(token)
            advance()
    return torch.cat(tokens, 1), torch.cat(logits)


def _replay(model: Any, cache: Any, tokens: Tensor, progress: Progress) -> Tensor:
    """Logits (count, vocabulary) of dense attention over given tokens, one step each as in decoding."""
    logits = []
    with progress.task("dense decode", tokens.shape[1]) as advance:
        for token in tokens.split(1, dim=1):
            logits.append(model(token, past_key_values=cache).logits[:, -1])
            advance()
    return torch.cat(logits)


def _layer_row(layer: LayerSummary, judge: Judge) -> LayerRow:
    return LayerRow(
        layer.layer,
        layer.kept_share,
        layer.dense_share,
        layer.tv_max,
        judge.true_tv[layer.layer],
        layer.output_error_max,
        judge.true_error[layer.layer],
    )
