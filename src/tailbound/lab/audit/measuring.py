"""What is measured of one text: rows layer by layer, then runs under budgets and policies; each a part of a store."""

from __future__ import annotations

from tailbound.lab.audit import columns, curves, sensitivity
from tailbound.lab.audit.reading import Reading
from tailbound.lab.audit.store import Store
from tailbound.lab.listening import Heard, check_heard
from tailbound.lab.progress import Progress

ROWS = "rows"
DRAWS = 8
"""Gradients drawn for the damage of errors."""


def measure(reading: Reading, store: Store, seed: int, progress: Progress) -> None:
    """All that is measured of a text; what the store has is not done again.

    Raises:
        InputError: a model whose layers cannot be heard, a store that cannot be written.
    """
    _rows(reading, store, seed, progress)
    with progress.task("budgets and policies", curves.count(reading)) as advance:
        curves.run(reading, store, store.read(ROWS), advance)


def part(layer: int) -> str:
    """The name of a layer's part."""
    return f"layer-{layer:03}"


def _rows(reading: Reading, store: Store, seed: int, progress: Progress) -> None:
    missing = {layer for layer in range(reading.layers) if not store.has(ROWS, part(layer))}
    if not missing:
        return
    with progress.task("gradients of the answers", DRAWS) as advance:
        gradients = sensitivity.gradients(reading, DRAWS, seed, advance)
    heard: set[int] = set()
    with progress.task("measuring, by layer", reading.layers) as advance:

        def hear(call: Heard) -> None:
            heard.add(call.layer)
            if call.layer in missing:
                found = columns.measure(call, reading.positions, gradients[call.layer], reading.encoder)
                store.add(ROWS, part(call.layer), found)
            advance()

        reading.listen(hear)
    check_heard(reading.model, heard, reading.layers)
