"""Budgets of total variation: one number, or one by layer, or one by layer and head."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tailbound.engine.check import check_epsilon

FORM = '{"default": 0.01, "layers": {"0": 0.05}, "heads": {"3.7": 0.0}}'


@dataclass(frozen=True)
class Budget:
    """How much attention mass each head of each layer may leave out. The narrowest entry that fits a head holds.

    As JSON, `{"default": 0.01, "layers": {"0": 0.05}, "heads": {"3.7": 0.0}}`: layer 0 has 0.05, head 7 of layer 3
    has 0 (it is dense), everything else has 0.01. `layers` and `heads` may be left out.

    >>> budget = Budget.parse({"default": 0.01, "layers": {"0": 0.05}, "heads": {"3.7": 0.0}})
    >>> budget.of(0, heads=9), budget.of(1, heads=9), budget.of(3, heads=9)[6:].tolist()
    (0.05, 0.01, [0.01, 0.0, 0.01])
    >>> Budget.parse(budget.to_json()) == budget
    True

    Attributes:
        default: probability mass in [0, 1).
        layers: the same by layer.
        heads: the same by (layer, query head).

    Raises:
        ValueError: naming the entry that is not a number in [0, 1), or not a layer or head (integers from 0).
    """

    default: float
    layers: Mapping[int, float] = field(default_factory=dict)
    heads: Mapping[tuple[int, int], float] = field(default_factory=dict)
    _served: dict[tuple[int, int], float | Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Copies: `of` remembers what it served, so nobody may change the entries under it.
        parts: dict[str, Any] = {
            "default": _mass("default", self.default),
            "layers": {_index("layers", layer): _mass(f"layers {layer}", mass) for layer, mass in self.layers.items()},
            "heads": {
                (_index("heads", layer), _index("heads", head)): _mass(f"heads {layer}.{head}", mass)
                for (layer, head), mass in self.heads.items()
            },
        }
        for name, part in parts.items():
            object.__setattr__(self, name, part)

    @classmethod
    def parse(cls, source: float | str | os.PathLike[str] | Mapping[str, Any] | Budget) -> Budget:
        """Read a budget from a number, a dict in the form of the JSON, JSON text, or the path of a JSON file.

        Raises:
            ValueError: what came and what is allowed, with the entry and, for a file, its path.
            OSError: the file cannot be read.
        """
        if isinstance(source, Budget):
            return source
        if isinstance(source, Mapping):
            return _from_mapping(source)
        if isinstance(source, str) and source.lstrip().startswith("{"):
            return _from_text(source)
        if isinstance(source, str | os.PathLike):
            try:
                return _from_text(Path(source).read_text(encoding="utf-8"))
            except FileNotFoundError as error:
                error.add_note(f"A text is JSON or the path of a JSON file, such as {FORM}; pass a number as a number.")
                raise
            except ValueError as error:
                raise ValueError(f"{os.fspath(source)}: {error}") from None
        try:
            return cls(check_epsilon(source))
        except ValueError as error:
            raise ValueError(f"{error}, or a budget by layer and head: a dict or JSON file such as {FORM}") from None

    def of(self, layer: int, heads: int) -> float | Tensor:
        """The budget of a layer with so many query heads: one number if its heads agree, else float64 (heads,).

        The same object at every call, so that a decode step pays for a look-up only; do not write into it.

        Raises:
            ValueError: the budget names a head that this layer does not have.
        """
        served = self._served.get((layer, heads))
        if served is None:
            served = self._served[layer, heads] = self._work_out(layer, heads)
        return served

    def to_json(self) -> str:
        """The budget as JSON text, which `parse` reads back as an equal budget."""
        parts: dict[str, Any] = {"default": self.default}
        if self.layers:
            parts["layers"] = {str(layer): mass for layer, mass in sorted(self.layers.items())}
        if self.heads:
            parts["heads"] = {f"{layer}.{head}": mass for (layer, head), mass in sorted(self.heads.items())}
        return json.dumps(parts)

    def check_layers(self, layers: Collection[int]) -> None:
        """Refuse to go on if the budget names a layer that is not among `layers`.

        Raises:
            ValueError: naming the layers that are missing.
        """
        named = {*self.layers, *(layer for layer, _ in self.heads)}
        if missing := sorted(named.difference(layers)):
            raise ValueError(f"the budget names layers {missing}, which are not there; there are {_span(layers)}")

    def limits(self, layers: np.ndarray, heads: np.ndarray) -> np.ndarray:
        """The budgets of many (layer, head), two int arrays of one shape, as float64.

        Raises:
            ValueError: the budget names a head beyond the highest that its layer has in `heads`.
        """
        found = np.empty(layers.shape)
        for layer in np.unique(layers).tolist():
            here = layers == layer
            most = int(heads[here].max()) + 1
            found[here] = np.broadcast_to(np.asarray(self.of(layer, most)), most)[heads[here]]
        return found

    def __str__(self) -> str:
        """`epsilon=0.01`, or the JSON in that place where layers or heads are named."""
        return f"epsilon={self.to_json() if self.layers or self.heads else self.default}"

    def _work_out(self, layer: int, heads: int) -> float | Tensor:
        mass = self.layers.get(layer, self.default)
        own = {head: own for (at, head), own in self.heads.items() if at == layer}
        if beyond := sorted(head for head in own if head >= heads):
            names = ", ".join(f'"{layer}.{head}"' for head in beyond)
            raise ValueError(f"the budget names heads {names}, but layer {layer} has query heads 0 to {heads - 1}")
        masses = [own.get(head, mass) for head in range(heads)]
        if len(set(masses)) <= 1:
            return masses[0] if masses else mass
        return torch.tensor(masses, dtype=torch.float64)


def _from_text(text: str) -> Budget:
    return _from_mapping(json.loads(text, object_pairs_hook=_once))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f'"{name}" is given twice in a budget')
        found[name] = value
    return found


def _from_mapping(source: Any) -> Budget:
    if not isinstance(source, Mapping):
        raise ValueError(f"a budget in JSON is an object such as {FORM}, not a {type(source).__name__}")
    if unknown := sorted(map(repr, set(source) - {"default", "layers", "heads"})):
        raise ValueError(f"a budget has no {', '.join(unknown)}; it has default, layers and heads, as in {FORM}")
    if "default" not in source:
        raise ValueError(f"a budget needs a default, for every layer and head that it does not name, as in {FORM}")
    return Budget(
        source["default"],
        {layer: mass for (layer,), mass in _entries(source, "layers", "a layer, such as", "0")},
        {(layer, head): mass for (layer, head), mass in _entries(source, "heads", "layer.head, such as", "3.7")},
    )


def _entries(source: Mapping[str, Any], name: str, what: str, example: str) -> list[tuple[list[int], Any]]:
    entries = source.get(name, {})
    if not isinstance(entries, Mapping):
        raise ValueError(f"{name} of a budget is an object as in {FORM}, not a {type(entries).__name__}")
    number = "(0|[1-9][0-9]*)"
    pattern = r"\.".join([number] * len(example.split(".")))
    found = []
    for key, mass in entries.items():
        match = re.fullmatch(pattern, key) if isinstance(key, str) else None
        if match is None:
            raise ValueError(f'{name} of a budget has the key {key!r}; a key is the text of {what} "{example}"')
        found.append(([int(part) for part in match.groups()], mass))
    return found


def _mass(place: str, mass: Any) -> float:
    try:
        return check_epsilon(mass)
    except ValueError as error:
        raise ValueError(f"budget, {place}: {error}") from None


def _index(name: str, index: Any) -> int:
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise ValueError(f"{name} of a budget names {index!r}; layers and heads are integers from 0")
    return index


def _span(layers: Collection[int]) -> str:
    return f"layers {min(layers)} to {max(layers)}" if layers else "none"
