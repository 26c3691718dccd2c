"""`tailbound verify --model`: every certificate of a model's decoding recomputed in float64 from what was passed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from tailbound.engine.check import check_epsilon
from tailbound.lab import forced, models, text, truth
from tailbound.lab.errors import InputError, as_input_error
from tailbound.lab.progress import Progress
from tailbound.result import Status

if TYPE_CHECKING:
    from tailbound.hf import Ledger, Observation
    from tailbound.lab.forced import Forced

SCHEMA = "tailbound.verify/1"
WIDER = {"float32": torch.float64, "bfloat16": torch.float32, "float16": torch.float32}
"""What a model is run in to tell how much its own attention rounds."""
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
        margin: the smallest distance of a `tv` above its truth, over those that are not 0; None without such.
        looseness, looseness_p99: median and 99th percentile of `tv` over its truth, where that is above 0.
        spread: standard deviation of the visible logits, in nats, averaged over rows.
        agreement: share of steps with the likeliest token of the model's own attention, fed with the same tokens.
        unexplained: at epsilon 0, steps with another token than rounding explains.
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
    unexplained: int
    statuses: dict[str, int]
    exact: list[tuple[str, list[int | None], int]]

    def as_json(self) -> dict[str, Any]:
        """One line of `tailbound verify --json`."""
        return {"schema": SCHEMA, **asdict(self)}

    @property
    def broken(self) -> bool:
        """Whether a promise was broken."""
        return bool(self.violations or self.unexplained)

    def verdict(self) -> str:
        """What the row comes to."""
        if self.violations:
            return f"{self.violations} of {self.certificates} certificates do not hold"
        if self.unexplained:
            return f"{self.unexplained} tokens differ from the model's own, and rounding does not explain it"
        if not self.certificates:
            reasons = [reason for reason, _, _ in self.exact]
            other = [reason for reason in reasons if "(prefill)" not in reason]
            return "every call was answered exactly because: " + "; ".join(other or reasons)
        if self.spread is not None and self.spread < FLAT:
            return f"all hold, but logits are flat ({self.spread:.2f} nats): sharpen the model's weights"
        return "all hold"


class Judge:
    """Recomputes each certificate as it is issued, by `lab.truth`, and holds it against the budget."""

    def __init__(self, epsilon: float) -> None:
        self._epsilon = epsilon
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
        tv, claims = answer.certificate.tv, answer.certificate.status != int(Status.NONFINITE)
        wrong = found.violated_by(answer.certificate) | (~(tv <= self._epsilon) & claims)
        self.violations += int(wrong.sum())
        self._margins.append((tv - found.tv)[claims & (tv > 0)])
        self._looseness.append((tv / found.tv)[claims & (found.tv > 0)])
        spread = truth.spread(seen.query, seen.key, seen.attn_mask, seen.scale, seen.softcap)
        self._spreads.append(float(spread.nanmean()))

    def figures(self) -> dict[str, float | None]:
        """Margin, looseness and spread of all calls judged."""
        margins, loose = (torch.cat(parts) if parts else torch.empty(0) for parts in (self._margins, self._looseness))
        loose = loose.sort().values
        spreads = [spread for spread in self._spreads if not math.isnan(spread)]
        return {
            "margin": float(margins.min()) if margins.numel() else None,
            "looseness": float(loose[len(loose) // 2]) if len(loose) else None,
            "looseness_p99": float(loose[len(loose) * 99 // 100]) if len(loose) else None,
            "spread": sum(spreads) / len(spreads) if spreads else None,
        }


def run(options: Options, progress: Progress) -> list[Row]:
    """Read, decode under each budget in each dtype, and judge.

    Raises:
        InputError: a model that cannot be had or does not call us, or options that do not fit.
    """
    if options.context < 2 or options.tokens < 1:
        raise InputError(f"--context {options.context}, --steps {options.tokens}: at least 2 and 1 are needed")
    with as_input_error():
        for epsilon in options.epsilons:
            check_epsilon(epsilon)
    document = text.read_text(options.text)
    with progress.task("checking", len(options.dtypes) * (2 + len(options.epsilons))) as advance:
        return [row for dtype in options.dtypes for row in _in_dtype(dtype, options, document, advance)]


def verdict(rows: Sequence[Row]) -> str:
    """What all rows come to, in a sentence."""
    certificates, violations = sum(row.certificates for row in rows), sum(row.violations for row in rows)
    if violations:
        return f"{violations:,} of {certificates:,} certificates do not hold: a fault of tailbound's; please report it."
    if any(row.unexplained for row in rows):
        return (
            "At epsilon 0 the model writes other tokens than with its own attention, and rounding does not explain it."
        )
    if not certificates:
        return f"Nothing could be certified: {rows[0].verdict()}."
    flat = any(row.spread is not None and row.spread < FLAT for row in rows)
    return f"All {certificates:,} certificates hold" + (
        ", but attention is nearly flat: that proves little. Sharpen the model's weights." if flat else "."
    )


def _in_dtype(dtype: str, options: Options, document: tuple[str, str], advance: Callable[[], None]) -> Iterator[Row]:
    source = models.Source(options.model, dtype, options.download)
    asked = f"--context {options.context} and --steps {options.tokens}"
    source.check_positions(options.context + options.tokens, asked)
    model = source.writer()
    prompt, kind = _prompt(source, model, options, document)
    given, encoded = forced.read(model, prompt, options.seed)
    advance()
    own = given.write(options.tokens)
    advance()
    found = []
    for epsilon in options.epsilons:
        found.append(_check(given, own[0], epsilon, options, dtype, kind + encoded))
        advance()
    for row, tokens in found:  # last: it takes the model to another dtype
        differs = not row.epsilon and row.agreement < 1
        yield replace(row, unexplained=_unexplained(given, own, tokens, WIDER[dtype])) if differs else row


def _check(given: Forced, own: Tensor, epsilon: float, options: Options, dtype: str, kind: str) -> tuple[Row, Tensor]:
    """One budget; and the likeliest tokens (count,)."""
    from tailbound import hf

    judge = Judge(epsilon)
    with as_input_error(), models.quietly(), hf.certify(given.model, epsilon, observe=judge) as ledger:
        tokens, _ = given.write(options.tokens, own)
    layers, total = ledger.by_layer(), len(ledger)
    row = Row(
        model=options.model,
        dtype=dtype,
        epsilon=epsilon,
        tokens=kind,
        certificates=total,
        violations=judge.violations,
        kept_share=sum(layer.kept_share * layer.certificates for layer in layers) / total if total else None,
        agreement=float((tokens == own).double().mean()),
        unexplained=0,
        statuses={status.name: count for status, count in ledger.statuses().items() if count},
        exact=_exact(ledger),
        **judge.figures(),
    )
    return row, tokens


def _unexplained(given: Forced, own: tuple[Tensor, Tensor], tokens: Tensor, wider: torch.dtype) -> int:
    """Steps whose token is another one than rounding explains.

    Let w be the logits in a wider dtype, and r the largest distance of the model's own logits from them. If ours are no
    farther from w, a step can prefer token b to its own a only where w[a] - w[b] <= 2 r.
    """
    model = given.model
    if wider is torch.float64 and hasattr(model.config, "_experts_implementation"):
        model.config._experts_implementation = "eager"  # the grouped kernel has no float64
    model.to(wider)
    _, wide = given.write(len(tokens), own[0])
    rounding = (own[1].double() - wide.double()).abs().max()
    ahead = wide.gather(1, own[0][:, None]) - wide.gather(1, tokens[:, None])
    return int((~(ahead.double() <= 2 * rounding))[:, 0].logical_and(tokens != own[0]).sum())


def _prompt(source: models.Source, model: Any, options: Options, document: tuple[str, str]) -> tuple[Tensor, str]:
    """Token ids (1, context), and what they are."""
    title, words = document
    size = model.config.get_text_config().vocab_size
    try:
        tokenizer = source.tokenizer()
        if len(tokenizer.get_vocab().keys() - set(tokenizer.all_special_tokens)) < 2:
            raise InputError(f"{options.model} has an empty tokenizer: it is checked on random tokens, without --text")
    except InputError:
        if options.text is not None:
            raise
        return _random(model, size, options), "random tokens"
    ids = text.first_tokens(tokenizer, words, options.context, title)
    if int(ids.max()) >= size:
        raise InputError(f"the tokenizer gives token {int(ids.max())}, but {options.model} knows {size}")
    return ids, title


def _random(model: Any, size: int, options: Options) -> Tensor:
    """Random ids (1, context), none of them special to the model."""
    settings = [config.to_dict() for config in (model.config.get_text_config(), model.generation_config) if config]
    named = [given for config in settings for name, given in config.items() if name.endswith("_token_id")]
    special = {token for given in named for token in (given if isinstance(given, list) else [given])}
    ordinary = torch.tensor([token for token in range(size) if token not in special])
    random = torch.Generator().manual_seed(options.seed)
    return ordinary[torch.randint(len(ordinary), (1, options.context), generator=random)]


def _exact(ledger: Ledger) -> list[tuple[str, list[int | None], int]]:
    calls: Counter[str] = Counter()
    layers: dict[str, list[int | None]] = {}
    counted: Mapping[tuple[int | None, str], int] = ledger.exact
    for (layer, reason), count in counted.items():
        calls[reason] += count
        layers.setdefault(reason, []).append(layer)
    return [(reason, layers[reason], count) for reason, count in calls.items()]
