"""What a search found, what is proved about it, and what it cost."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float, Int64
from torch import Tensor

from tailbound.result import Diagnosis


class SearchStatus(Diagnosis):
    """How a search ended. Every member is a diagnosis and names its remedy."""

    CERTIFIED = (0, "tv is proved, and at most epsilon.", "none is needed.")
    EXHAUSTED = (
        1,
        "Every key was scored, so tv is the tail mass itself (rounded up), and it is above epsilon: k keys are not "
        "enough for this query.",
        "raise k or epsilon, or let mass_search choose k.",
    )
    UNCERTIFIED = (
        2,
        "The keys were chosen by a policy that proves nothing: tv is 1.",
        "use gap_search, mass_search or hybrid_search where a proof is needed.",
    )


class Cost(NamedTuple):
    """Keys scored (their exact logit was asked for) and cells opened."""

    keys_scored: int
    cells_opened: int


class SearchResult(NamedTuple):
    """The kept keys and their certificate.

    Attributes:
        kept: int64 (k,), heaviest first (ties: smaller index first); ascending if no logit was needed.
        logits: float64 (k,), their logits as scored; empty if no logit was needed.
        tv: never below the softmax mass of the keys that were not kept. Probability mass.
        status: a `SearchStatus`.
        test: which test fired: "gap", "mass", "exact" (every key was scored) or "none".
        cost: a `Cost`.
    """

    kept: Int64[Tensor, " k"]
    logits: Float[Tensor, " scored"]
    tv: float
    status: SearchStatus
    test: str
    cost: Cost
