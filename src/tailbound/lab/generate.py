"""`tailbound generate`: completing or chatting under certificates, and dense attention beside it if asked for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tailbound.lab import timing, truth
from tailbound.lab.errors import InputError
from tailbound.lab.progress import Progress
from tailbound.lab.writing import Options, Turn, Writer, Written

SCHEMA = "tailbound.generate/1"

__all__ = ["SCHEMA", "Dense", "Options", "Result", "Turn", "run"]


@dataclass(frozen=True)
class Dense:
    """What dense attention wrote, and how the two compare.

    Attributes:
        tokens_per_s: as of the certified text; None for a single token.
        shared_prefix: tokens until the two texts part.
        ratio: how many times faster a certified step is, over steps of both in turns along the dense text.
        argmax_agreement, next_token_tv_mean: of the two next-token distributions, over the same steps.
    """

    text: str
    tokens: int
    tokens_per_s: float | None
    shared_prefix: int
    ratio: timing.Ratio
    argmax_agreement: float
    next_token_tv_mean: float


@dataclass(frozen=True)
class Result:
    """What was written, and what its certificates say.

    Attributes:
        broken: what `Ledger.assert_within` said; empty if every certificate is within the budget.
        tv_max, kept_share: None if there are no certificates.
        exact: layers, reason and calls of each of them, of the calls answered without a certificate.
    """

    model: str
    dtype: str
    epsilon: str
    threads: int
    seed: int
    turns: list[Turn]
    certificates: int
    broken: str
    tv_max: float | None
    kept_share: float | None
    statuses: dict[str, int]
    exact: list[tuple[str, str, str]]
    dense: Dense | None

    def as_json(self) -> dict[str, Any]:
        """The same, as `tailbound generate --json` prints it."""
        dense = None if self.dense is None else asdict(self.dense) | {"ratio": self.dense.ratio._asdict()}
        text = "\n".join(turn.text for turn in self.turns)
        return {"schema": SCHEMA, "text": text} | asdict(self) | {"dense": dense}


def run(
    options: Options,
    texts: Iterable[str],
    progress: Progress,
    stream: bool = False,
    against_dense: bool = False,
) -> Result:
    """Answer each text: one to complete, or the turns of a chat as they come.

    Args:
        options: the model, its budget and how to write.
        texts: what to go on after; the model is loaded before the first is taken.
        progress: where loading is shown.
        stream: print answers as they come.
        against_dense: compare the last answer with dense attention.

    Raises:
        InputError: anything about the options or the texts that cannot be had.
    """
    if against_dense and options.chat:
        raise InputError("--against-dense compares one completion; leave out --chat")
    writer = Writer(options, progress)
    turns: list[Turn] = []
    dense = None
    for text in texts:
        turn, written = writer.answer(text, stream)
        turns.append(turn)
        if against_dense:
            dense = _against_dense(writer, written)
    if not turns:
        raise InputError("nothing to answer came on stdin")
    return _result(writer, turns, dense)


def _result(writer: Writer, turns: list[Turn], dense: Dense | None) -> Result:
    from tailbound.hf import CertificateError
    from tailbound.hf.summary import exact_lines

    ledger, broken = writer.ledger, ""
    try:
        ledger.assert_within(writer.budget)
    except CertificateError as error:
        broken = str(error)
    layers, count = ledger.by_layer(), len(ledger)
    return Result(
        model=writer.options.model,
        dtype=writer.options.dtype,
        epsilon=writer.options.epsilon,
        threads=torch.get_num_threads(),
        seed=writer.options.seed,
        turns=turns,
        certificates=count,
        broken=broken,
        tv_max=max((layer.tv_max for layer in layers), default=None),
        kept_share=sum(layer.kept_share * layer.certificates for layer in layers) / count if count else None,
        statuses={status.name: number for status, number in ledger.statuses().items() if number},
        exact=exact_lines(ledger.exact),
        dense=dense,
    )


@torch.inference_mode()
def _against_dense(writer: Writer, ours: Written) -> Dense:
    """Write on after the same prompt densely, then let both take the steps of the dense text in turns."""
    from transformers.cache_utils import DynamicCache

    from tailbound.lab import decoders

    stock = decoders.stock(writer.model)
    stock.cache = DynamicCache(config=writer.model.config)
    written = writer.write(ours.prompt, stock.cache)
    forced = torch.cat([ours.prompt[:, -1:], written.answer[:, :-1]], 1)
    steps = forced.shape[1]
    with decoders.certified(writer.model, writer.budget) as (certified, _):
        certified.cache = writer.cache
        for one in (certified, stock):
            one.cache.crop(ours.prompt.shape[1] - 1 - one.cache.get_seq_length())
        found: dict[str, list[Tensor]] = {"ours": [], "dense": []}
        calls = {
            name: decoders.forcing(one, forced, found[name]) for name, one in (("ours", certified), ("dense", stock))
        }
        seconds = timing.take_turns(calls, steps, warm=0)
    logits = {name: torch.stack(steps) for name, steps in found.items()}
    same = logits["ours"].argmax(-1) == logits["dense"].argmax(-1)
    return Dense(
        text=writer.decode(written.answer),
        tokens=written.answer.shape[1],
        tokens_per_s=written.clock.tokens_per_s,
        shared_prefix=_shared(ours.answer[0].tolist(), written.answer[0].tolist()),
        ratio=timing.ratio(seconds["dense"], seconds["ours"]),
        argmax_agreement=float(same.double().mean()),
        next_token_tv_mean=float(truth.next_token_tv(logits["ours"], logits["dense"]).mean()),
    )


def _shared(one: list[int], other: list[int]) -> int:
    """Tokens until two texts part."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, (a, b) in pairs if a != b), min(len(one), len(other)))
