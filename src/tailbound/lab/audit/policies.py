"""Which keys a row reads: by certificate, and as people choose them today. All answer exactly on what they read.

Each is a function of an attention call to its output, and counts what its rows read. A share is of the keys that a
row sees. None but the certified one says anything about what it leaves out.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

import tailbound
from tailbound import theory
from tailbound.hf import Budget
from tailbound.lab.audit.reading import averages, logits_of
from tailbound.lab.listening import Heard

SINKS = 4
"""First keys that `Recent` always reads: attention sinks."""

PAGE = 16
"""Keys of a page, of `Pages`."""


class Policy(ABC):
    """Counts over all rows answered so far.

    Attributes:
        visible, kept: keys that the rows see and that they read.
        moved: bytes that decode steps move, a key that several heads of a group read once; dense: of dense attention.
        tv_max: the largest certificate; NaN without any.
    """

    def __init__(self) -> None:
        self.visible = self.kept = 0
        self.moved = self.dense = 0.0
        self.tv_max = float("nan")

    @property
    def share(self) -> float:
        """Keys read over keys seen, the mean over rows."""
        return self.kept / self.visible

    def __call__(self, heard: Heard) -> Tensor:
        """Answer (B, Hq, T, Dv), and count."""
        output, kept = self.answer(heard)
        batch, heads, queries, keys = kept.shape
        self.kept += int(kept.sum())
        seen = heard.seen()
        visible = batch * queries * keys if seen is None else int(seen.expand(batch, -1, -1, -1)[:, 0].sum())
        self.visible += visible * heads
        union = int(kept.view(batch, heard.key.shape[1], -1, queries, keys).any(2).sum())
        of_key, of_value = (part.shape[3] * part.element_size() for part in (heard.key, heard.value))
        first, then = self.bytes_read(of_key, of_value, heard.key.shape[3])
        self.moved += visible * heard.key.shape[1] * first + union * then
        self.dense += visible * heard.key.shape[1] * (of_key + of_value)
        return output

    @property
    def bytes_share(self) -> float:
        """Bytes moved over those of dense attention."""
        return self.moved / self.dense

    @abstractmethod
    def answer(self, heard: Heard) -> tuple[Tensor, Tensor]:
        """The output, and which keys were read: bool (B, Hq, T, n)."""

    @abstractmethod
    def bytes_read(self, of_key: int, of_value: int, width: int) -> tuple[float, float]:
        """Bytes read of every key that is seen, before any is chosen, and of every key chosen."""


class Certified(Policy):
    """Ours: what `KVIndex.attend` reads at a budget."""

    def __init__(self, epsilon: float | Budget) -> None:
        super().__init__()
        self._budget = Budget.parse(epsilon)

    def answer(self, heard: Heard) -> tuple[Tensor, Tensor]:
        """See `Policy.answer`."""
        index = tailbound.KVIndex(heard.key, heard.value)
        found = index.attend(
            heard.query,
            epsilon=self._budget.of(heard.layer, heard.query.shape[1]),
            scale=heard.scale,
            attn_mask=heard.mask,
            is_causal=heard.causal,
            softcap=heard.softcap,
            sink=heard.sink,
            return_kept=True,
        )
        assert found.kept is not None
        self.tv_max = max(float(found.certificate.tv.max()), -1.0 if self.tv_max != self.tv_max else self.tv_max)
        return found.output, found.kept

    def bytes_read(self, of_key: int, of_value: int, width: int) -> tuple[float, float]:
        """The sketch; then key and value."""
        return width + 8, of_key + of_value


class Chosen(Policy):
    """One that says which keys a row reads, given its logits."""

    def answer(self, heard: Heard) -> tuple[Tensor, Tensor]:
        """See `Policy.answer`."""
        group = heard.query.shape[1] // heard.key.shape[1]
        logits = logits_of(heard, heard.query, heard.key.repeat_interleave(group, 1))
        kept = self.choose(heard, logits) & ~logits.isneginf()
        left = logits.masked_fill(~kept, -torch.inf)
        return averages(heard, left), kept

    def bytes_read(self, of_key: int, of_value: int, width: int) -> tuple[float, float]:
        """Every key, for its score; then the value."""
        return of_key, of_value

    @abstractmethod
    def choose(self, heard: Heard, logits: Tensor) -> Tensor:
        """Keys to read, bool (B, Hq, T, n); hidden ones do not matter."""


class TopMass(Chosen):
    """Top-p: the fewest keys that hold 1 - epsilon of the mass, by exact weights."""

    def __init__(self, epsilon: float) -> None:
        super().__init__()
        self._epsilon = epsilon

    def choose(self, heard: Heard, logits: Tensor) -> Tensor:
        """See `Chosen.choose`."""
        ranked = theory.ranking(logits)
        return _heaviest(logits, ranked.logits, (ranked.tails > self._epsilon).sum(-1))


class ShareOfKeys(Chosen):
    """A policy that reads a share, in (0, 1], of the keys that each row sees."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share


class TopK(ShareOfKeys):
    """The same share of keys in every head, the heaviest by exact weights."""

    def choose(self, heard: Heard, logits: Tensor) -> Tensor:
        """See `Chosen.choose`."""
        return _heaviest(logits, theory.ranking(logits).logits, _count(logits, self._share))


class Recent(ShareOfKeys):
    """The first keys and the last ones before a query, as StreamingLLM keeps them (Xiao et al. 2024)."""

    def choose(self, heard: Heard, logits: Tensor) -> Tensor:
        """See `Chosen.choose`."""
        seen = ~logits.isneginf()
        after = seen.flip(-1).cumsum(-1).flip(-1)  # 1 for the last key that a row sees
        window = (_count(logits, self._share) - SINKS).clamp(min=1)[..., None]
        return (after <= window) | (seen.cumsum(-1) <= SINKS)

    def bytes_read(self, of_key: int, of_value: int, width: int) -> tuple[float, float]:
        """Nothing; then key and value."""
        return 0.0, of_key + of_value


class Pages(ShareOfKeys):
    """Pages of 16 keys by the bound of their box on a logit, as Quest chooses them (Tang et al. 2024)."""

    def choose(self, heard: Heard, logits: Tensor) -> Tensor:
        """See `Chosen.choose`."""
        key, n = heard.key.to(logits.dtype), logits.shape[-1]
        lack = -n % PAGE
        pages = torch.nn.functional.pad(key, (0, 0, 0, lack), mode="replicate").unflatten(2, (-1, PAGE))
        low, high = pages.amin(3), pages.amax(3)
        group = heard.query.shape[1] // heard.key.shape[1]
        query = heard.query.to(logits.dtype) * heard.scale
        low, high = (end.repeat_interleave(group, 1).mT for end in (low, high))
        bound = query.clamp(min=0) @ high + query.clamp(max=0) @ low
        shown = (~logits.isneginf()).int()
        some = torch.nn.functional.pad(shown, (0, lack)).unflatten(-1, (-1, PAGE)).amax(-1)
        bound = bound.masked_fill(some == 0, -torch.inf)
        count = (_count(logits, self._share) + PAGE - 1) // PAGE
        chosen = _heaviest(bound, bound.sort(-1, descending=True).values, count)
        return chosen.repeat_interleave(PAGE, -1)[..., :n]

    def bytes_read(self, of_key: int, of_value: int, width: int) -> tuple[float, float]:
        """Two corners of a box for each page; then key and value."""
        return 2 * of_key / PAGE, of_key + of_value


def _count(logits: Tensor, share: float) -> Tensor:
    """A share of the keys that each row sees, at least one: int64 (B, Hq, T)."""
    return (share * (~logits.isneginf()).sum(-1)).round().long().clamp(min=1)


def _heaviest(logits: Tensor, ranked: Tensor, count: Tensor) -> Tensor:
    least = ranked.gather(-1, (count.clamp(1, ranked.shape[-1]) - 1)[..., None])
    return logits >= least
