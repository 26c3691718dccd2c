"""The certified searches of the paper, over any bound: score few keys, and prove what the others cannot weigh."""

from tailbound.search.algorithms import gap_search, hybrid_search, mass_search
from tailbound.search.policy import quantile_k, quantile_search
from tailbound.search.replay import Replay
from tailbound.search.result import Cost, SearchResult, SearchStatus

__all__ = [
    "Cost",
    "Replay",
    "SearchResult",
    "SearchStatus",
    "gap_search",
    "hybrid_search",
    "mass_search",
    "quantile_k",
    "quantile_search",
]
