"""What `tailbound bench generate` times and what it says of each contestant: its options and its rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from tailbound.lab import models, timing

SCHEMA = "tailbound.bench.generate/1"

STOCK = "sdpa"
"""transformers as it comes: SDPA, and a cache that is concatenated anew at every step."""

FOLDED = "sdpa folded, in place"
"""The strong peer: the heads of a group folded into query rows, and a cache that is appended to in place."""

TAILBOUND = "tailbound"
UNRECORDED = "tailbound, not recorded"

PEERS = (STOCK, FOLDED)
OURS = (TAILBOUND, UNRECORDED)

WARM = 2
"""Decode steps inside the measure of peak memory."""


class Options(NamedTuple):
    """What to time. `text` is a file, or None for the source of Python's standard library.

    Attributes:
        contexts: keys that the last step sees; the prompt is as many tokens less the steps.
        steps: timed decode steps; one more comes first and is not counted.
        prefills: timed prefills of each contestant; one more comes first, for the measure of memory.
        profile: also take the steps apart, by kind of work.
    """

    model: str = models.SMALL
    text: Path | None = None
    contexts: tuple[int, ...] = (512, 2048, 8000)
    dtypes: tuple[str, ...] = ("bfloat16", "float32")
    epsilons: tuple[float, ...] = (0.01,)
    steps: int = 32
    prefills: int = 3
    profile: bool = False
    download: bool = False


class Name(NamedTuple):
    """Who. Of a peer epsilon is None; with epsilon 0 ours reads every key."""

    contestant: str
    epsilon: float | None = None


@dataclass(frozen=True)
class Row:
    """One contestant at one dtype and context. Shares, argmax agreement and TV are in [0, 1].

    Attributes:
        ratio: for each peer, how many times faster than it a step of this contestant is: above 1 wins.
        prefill_ratio: the same of the prefill. None for contestants whose prefill is that of another row, as the next
            three fields.
        peak_mb: the most memory resident during a prefill and `WARM` steps, above what was before.
        memory_ratio: `peak_mb` over that of `STOCK`: below 1 takes less.
        cache_mb, cache_ratio: bytes held by the cache after the last step, and those over `STOCK`'s.
        recording: time of a step with recording over that without. None for what does not record.
        argmax_agreement, next_token_tv_mean, next_token_tv_max: against `STOCK`, over the timed steps.
        tv_max, dense_share, kept_share: of the certificates recorded. None where none are.
        fallbacks: calls answered exactly though they were no prefill.
        violations: null: certificates are judged by `tailbound demo` and `tailbound bench decode`, not here.
        profile: milliseconds of a step by kind of work, if asked for.
    """

    contestant: str
    epsilon: float | None
    dtype: str
    context: int
    prompt: int
    steps: int
    threads: int
    model: str
    source: str
    median_ms: float
    ratio: dict[str, timing.Ratio]
    prefill_s: float | None
    prefill_ratio: dict[str, timing.Ratio] | None
    peak_mb: float | None
    memory_ratio: float | None
    cache_mb: float
    cache_ratio: float
    recording: timing.Ratio | None
    argmax_agreement: float
    next_token_tv_mean: float
    next_token_tv_max: float
    tv_max: float | None
    dense_share: float | None
    kept_share: float | None
    fallbacks: int | None
    violations: int | None = None
    profile: dict[str, float] | None = None

    def as_json(self) -> dict[str, Any]:
        """The row as `--json` prints it: each ratio as its median and the ends of its 95% interval."""
        found = {"schema": SCHEMA} | asdict(self)
        for field in ("ratio", "prefill_ratio"):
            if found[field] is not None:
                found[field] = {peer: ratio._asdict() for peer, ratio in getattr(self, field).items()}
        return found | {"recording": None if self.recording is None else self.recording._asdict()}

    @property
    def broken(self) -> bool:
        """Whether a certificate is above its budget: the promise of `certify`."""
        return self.tv_max is not None and self.epsilon is not None and not self.tv_max <= self.epsilon

    def loses_to(self) -> list[str]:
        """The peers whose steps are faster, if the contestant is ours."""
        return [peer for peer, ratio in self.ratio.items() if ratio.median < 1] if self.contestant in OURS else []
