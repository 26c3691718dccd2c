"""`tailbound verify --model`: every certificate of a model's decoding recomputed in float64 from what was passed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tailbound.engine.check import check_epsilon
from tailbound.lab import models, text, truth
from tailbound.lab.errors import InputError
from tailbound.lab.progress import Progress
from tailbound.result import Status

if TYPE_CHECKING:
    from tailbound.hf import Ledger, Observation

SCHEMA = "tailbound.verify/1"
FLAT = 1.0
"""Logits with a smaller standard deviation, in nats, are nearly uniform attention: little can be left out."""


class Options(NamedTuple):
    """What to check. `text` is a file; None for Python's standard library, or random tokens without a tokenizer."""

    model: str = models.SMALL
    text: Path | None = None
    context: int = 600
    tokens: int = 16
    epsilons: tuple[float, ...] = (0.0, 1e-6, 0.01, 0.05)
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    download: bool = False
    seed: int = 0


@dataclass(frozen=True)
class Row:
    """One budget in one dtype.

    Attributes:
        violations: certificates below the truth, or above the budget.
        margin: the smallest distance of a `tv` above its truth; None without certificates.
        looseness, looseness_p99: median and 99th percentile of `tv` over its truth, where that is above 0.
        spread: standard deviation of the visible logits, in nats, averaged over rows.
        agreement: share of steps with the likeliest token of the model's own attention, fed with the same tokens.
        exact: calls answered without a certificate: reason, layers, calls.
    """

    model: str
    dtype: str
    epsilon: float
    tokens: str
    certificates: int
    violations: int
    margin: float | None
    looseness: float | None
    looseness_p99: float | None
    kept_share: float | None
    spread: float | None
    agreement: float
    statuses: dict[str, int]
    exact: list[tuple[str, list[int | None], int]]

    def as_json(self) -> dict[str, Any]:
        """One line of `tailbound verify --json`."""
        return {"schema": SCHEMA, **asdict(self)}

    def verdict(self) -> str:
        """What the row comes to."""
        if self.violations:
            return f"{self.violations} of {self.certificates} certificates do not hold"
        if not self.certificates:
            return "nothing was certified: " + "; ".join(reason for reason, _, _ in self.exact)
        if self.spread is not None and self.spread < FLAT:
            return f"all hold, but logits are flat ({self.spread:.2f} nats): sharpen the model's weights"
        return "all hold"


class Judge:
    """Recomputes each certificate as it is issued, by `lab.truth`."""

    def __init__(self) -> None:
        self.violations = 0
        self._margins: list[Tensor] = []
        self._looseness: list[Tensor] = []
        self._spreads: list[float] = []

    def __call__(self, seen: Observation) -> None:
        """Judge one attention call."""
        answer = seen.answer
        assert answer.kept is not None
        inputs = (seen.query, seen.key, seen.value, seen.attn_mask, seen.scale)
        found = truth.judge(*inputs, answer.kept, answer.output, seen.softcap, seen.sink)
        tv, error, _, status = answer.certificate
        claims = status != int(Status.NONFINITE)
        # A comparison with NaN is False: what is not provably right counts as wrong, unless nothing was claimed.
        right = (found.tv <= tv) & (found.output_error <= error)
        self.violations += int((~right & claims).sum())
        self._margins.append((tv - found.tv)[claims])
        positive = claims & (found.tv > 0)
        self._looseness.append((tv / found.tv)[positive])
        self._spreads.append(_spread(seen))

    def figures(self) -> dict[str, float | None]:
        """Margin, looseness and spread of all calls judged."""
        margins, loose = (torch.cat(parts) if parts else torch.empty(0) for parts in (self._margins, self._looseness))
        return {
            "margin": float(margins.min()) if margins.numel() else None,
            "looseness": float(loose.median()) if loose.numel() else None,
            "looseness_p99": float(loose.quantile(0.99)) if loose.numel() else None,
            "spread": sum(self._spreads) / len(self._spreads) if self._spreads else None,
        }


def run(options: Options, progress: Progress) -> list[Row]:
    """Read, decode under each budget in each dtype, and judge.

    Raises:
        InputError: a model that cannot be had or does not call us, or options that do not fit.
    """
    if options.context < 2 or options.tokens < 1:
        raise InputError(f"--context {options.context}, --tokens {options.tokens}: at least 2 and 1 are needed")
    for epsilon in options.epsilons:
        try:
            check_epsilon(epsilon)
        except ValueError as error:
            raise InputError(str(error)) from error
    rows = []
    with progress.task("checking", len(options.dtypes) * (1 + len(options.epsilons))) as advance:
        for dtype in options.dtypes:
            source = models.Source(options.model, dtype, options.download)
            model = source.model()
            prompt, kind = _prompt(source, model, options)
            own = _own(model, prompt, options.tokens)
            advance()
            for epsilon in options.epsilons:
                rows.append(_check(model, prompt, own, epsilon, options, dtype, kind))
                advance()
    return rows


def _check(model: Any, prompt: Tensor, own: Tensor, epsilon: float, options: Options, dtype: str, kind: str) -> Row:
    from tailbound import hf

    judge = Judge()
    try:
        with torch.inference_mode(), models.quietly(), hf.certify(model, epsilon, observe=judge) as ledger:
            logits = _steps(model, prompt, own)
    except ValueError as error:
        raise InputError(str(error)) from error
    broken = sum(row["tv"] > epsilon and row["status"] != Status.NONFINITE for row in ledger.rows())
    layers, total = ledger.by_layer(), len(ledger)
    return Row(
        model=options.model,
        dtype=dtype,
        epsilon=epsilon,
        tokens=kind,
        certificates=total,
        violations=judge.violations + int(broken),
        kept_share=sum(layer.kept_share * layer.certificates for layer in layers) / total if total else None,
        agreement=float((logits.argmax(-1) == own).double().mean()),
        statuses={status.name: count for status, count in ledger.statuses().items() if count},
        exact=_exact(ledger),
        **judge.figures(),
    )


def _prompt(source: models.Source, model: Any, options: Options) -> tuple[Tensor, str]:
    """Token ids (1, context), and what they are."""
    title, document = text.read_text(options.text)
    try:  # where there is none, some families get an empty one
        return text.first_tokens(source.tokenizer(), document, options.context, title), title
    except InputError:
        if options.text is not None:
            raise
    size, random = model.config.get_text_config().vocab_size, torch.Generator().manual_seed(options.seed)
    return torch.randint(min(3, size - 1), size, (1, options.context), generator=random), "random tokens"


@torch.inference_mode()
def _own(model: Any, prompt: Tensor, count: int) -> Tensor:
    """The likeliest tokens (count,) by the model's own attention, each fed back."""
    cache, token, tokens = model(prompt[:, :-1], use_cache=True).past_key_values, prompt[:, -1:], []
    for _ in range(count):
        token = model(token, past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)
        tokens.append(token)
    return torch.cat(tokens, 1)[0]


def _steps(model: Any, prompt: Tensor, tokens: Tensor) -> Tensor:
    """Logits (count, vocabulary), fed with given tokens."""
    cache = model(prompt[:, :-1], use_cache=True).past_key_values
    fed = torch.cat([prompt[:, -1:], tokens[None, :-1]], 1)
    return torch.cat(
        [model(token, past_key_values=cache, use_cache=True).logits[:, -1] for token in fed.split(1, dim=1)]
    )


def _spread(seen: Observation) -> float:
    """Standard deviation of the logits that rows see, averaged over rows."""
    key = seen.key.double().repeat_interleave(seen.query.shape[1] // seen.key.shape[1], 1)
    logits = seen.query.double() @ key.mT * seen.scale
    if seen.attn_mask is None:
        return float(logits.std(-1).mean())
    mask = seen.attn_mask
    shown = (mask if mask.dtype is torch.bool else mask > torch.finfo(mask.dtype).min).expand(logits.shape)
    return float(torch.stack([row[held].std() for row, held in zip(logits, shown, strict=True)]).mean())


def _exact(ledger: Ledger) -> list[tuple[str, list[int | None], int]]:
    calls: Counter[str] = Counter()
    layers: dict[str, list[int | None]] = {}
    counted: Mapping[tuple[int | None, str], int] = ledger.exact
    for (layer, reason), count in counted.items():
        calls[reason] += count
        layers.setdefault(reason, []).append(layer)
    return [(reason, layers[reason], count) for reason, count in calls.items()]
