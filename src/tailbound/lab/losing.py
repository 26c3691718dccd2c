"""Where we lose, in words: the end of every benchmark's tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from rich.text import Text

from tailbound.lab import timing


def slower(ratio: Mapping[str, timing.Ratio], peers: Iterable[str]) -> str:
    """How much slower than each of some peers."""
    return ", ".join(f"{ratio[peer].median:.2f} times as fast as {peer}" for peer in peers)


def lines(lost: Iterable[str]) -> Iterator[Text]:
    """For the terminal."""
    each = list(lost)
    yield Text("Where we lose:" if each else "We lose to none of the peers here.", style="bold")
    for line in each:
        yield Text(f"  {line}")


def markdown(lost: Iterable[str]) -> str:
    """As a section."""
    return "## Where we lose\n\n" + ("".join(f"- {line}\n" for line in lost) or "To none of the peers.\n")
