"""What the certified contestants claim, against float64, outside the timing."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from tailbound.engine.index import KVIndex
from tailbound.lab import contestants, truth
from tailbound.lab.captures import Layer
from tailbound.lab.contestants import Name
from tailbound.result import Attention


@dataclass
class Verdict:
    """Over all layers, heads and judged positions; bytes are of the last position alone.

    `kept` and `visible` count keys of rows (one query of one head).
    """

    kept: int = 0
    visible: int = 0
    bytes_read: int = 0
    tv_max: float = 0.0
    true_tv_max: float = 0.0
    violations: int = 0

    def add(self, layer: Layer, answers: list[Attention]) -> None:
        """Judge the answers of one layer, one for each position of its queries."""
        positions, n = layer.query.shape[2], layer.key.shape[2]
        kept = torch.zeros(1, layer.query.shape[1], positions, n, dtype=torch.bool)
        for at, answer in enumerate(answers):
            assert answer.kept is not None
            kept[:, :, at, : answer.kept.shape[3]] = answer.kept[:, :, 0]
        output, tv, error, counts = (
            torch.cat(parts, 2)
            for parts in zip(
                *((a.output, a.certificate.tv, a.certificate.output_error, a.certificate.kept) for a in answers),
                strict=True,
            )
        )
        lengths = torch.arange(n - positions + 1, n + 1)
        mask = torch.arange(n) < lengths[:, None]
        found = truth.judge(layer.query, layer.key, layer.value, mask, layer.scale, kept, output)
        # A comparison with NaN is False: what is not provably right counts as wrong.
        self.violations += int((~((found.tv <= tv) & (found.output_error <= error))).sum())
        self.kept += int(counts.sum())
        self.visible += int(lengths.sum()) * layer.query.shape[1]
        self.bytes_read += answers[-1].stats.bytes_read
        self.tv_max = max(self.tv_max, float(tv.max()))
        self.true_tv_max = max(self.true_tv_max, float(found.tv.max()))


def build_and_judge(
    layers: list[Layer], names: Iterable[Name], threads: Iterable[int], tick: Callable[[], None]
) -> tuple[list[KVIndex], dict[tuple[Name, int], Verdict]]:
    """An index for each layer, asked as it grows: built up to the first position, then one key at a time.

    Returns:
        the indexes over all keys, and the verdict of each name at each number of threads.
    """
    verdicts = {(name, count): Verdict() for name in names for count in threads}
    indexes = []
    for layer in layers:
        index, answers = _grow(layer, list(verdicts))
        indexes.append(index)
        for asked, verdict in verdicts.items():
            verdict.add(layer, answers[asked])
        tick()
    return indexes, verdicts


def _grow(layer: Layer, asked: list[tuple[Name, int]]) -> tuple[KVIndex, dict[tuple[Name, int], list[Attention]]]:
    n, positions = layer.key.shape[2], layer.query.shape[2]
    first = n - positions + 1
    index = KVIndex(layer.key[:, :, :first], layer.value[:, :, :first])
    answers: dict[tuple[Name, int], list[Attention]] = {key: [] for key in asked}
    for at in range(positions):
        if at:
            place = slice(first + at - 1, first + at)
            index.append(layer.key[:, :, place], layer.value[:, :, place])
        query = layer.query[:, :, at : at + 1].contiguous()
        for name, threads in asked:
            answers[name, threads].append(_ask(index, query, layer.scale, name, threads))
    return index, answers


def _ask(index: KVIndex, query: Tensor, scale: float, name: Name, threads: int) -> Attention:
    torch.set_num_threads(threads)
    with contestants.at_level(name.isa):
        answer = contestants.attend(index, query, scale, name.epsilon, return_kept=True)
    assert answer.stats.isa == name.isa, f"asked for {name.isa}, served by {answer.stats.isa}"
    return answer
