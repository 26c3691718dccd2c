"""The figures that the paper prints, in this one place. Tzachristas et al. 2025 (arXiv 2512.07647 v1).

Nothing measured here is ever written into these tables.
"""

from __future__ import annotations

from typing import NamedTuple

EPSILONS = (0.001, 0.005, 0.01, 0.02, 0.05)
"""The budgets of its tables."""


class Gaussian(NamedTuple):
    """A row of Table 2: keys by the rule, and the mean over its simulated rows."""

    rule: int
    simulated: float


TABLE_2_N, TABLE_2_EPSILON, TABLE_2_DRAWS = 10_000, 0.01, 1000
TABLE_2 = {
    sigma: Gaussian(*row)
    for sigma, row in {
        0.1: (9871, 9870.542), 0.2: (9833, 9833.207), 0.3: (9787, 9786.906), 0.4: (9730, 9730.330),
        0.5: (9662, 9661.310), 0.6: (9579, 9579.279), 0.7: (9481, 9481.306), 0.8: (9366, 9365.916),
        0.9: (9232, 9232.125), 1.0: (9077, 9077.160), 1.1: (8900, 8899.953), 1.2: (8700, 8701.500),
        1.3: (8477, 8476.689), 1.4: (8229, 8230.120), 1.5: (7957, 7957.835), 1.6: (7662, 7663.143),
        1.7: (7345, 7345.123), 1.8: (7007, 7009.203), 1.9: (6651, 6651.748), 2.0: (6280, 6279.964),
        2.1: (5896, 5897.901), 2.2: (5503, 5507.407), 2.3: (5106, 5113.053), 2.4: (4707, 4715.916),
        2.5: (4311, 4339.901), 2.6: (3922, 3960.727), 2.7: (3544, 3592.462), 2.8: (3179, 3220.476),
        2.9: (2832, 2915.051), 3.0: (2503, 2585.113),
    }.items()
}  # fmt: skip

TABLE_6_SIGMA, TABLE_6_LENGTHS = 1.0, (4096, 8192, 16384)
TABLE_6 = {0.001: 0.9817, 0.005: 0.9425, 0.01: 0.9076, 0.02: 0.8540, 0.05: 0.7405}
"""k_eps / n by the rule. Its simulated values are said to be the same within 0.0005 at each length."""

BERT = "bert-base-uncased"
BERT_RATIO = {
    128: {0.001: 1.46, 0.005: 1.85, 0.01: 2.15, 0.02: 2.59, 0.05: 3.62},
    256: {0.001: 1.62, 0.005: 2.04, 0.01: 2.37, 0.02: 2.85, 0.05: 3.98},
    512: {0.001: 1.70, 0.005: 2.16, 0.01: 2.48, 0.02: 2.97, 0.05: 4.12},
}
"""n / mean(k_eps), by n and epsilon."""


class FixedK(NamedTuple):
    """Total variation of the 16 heaviest keys: its mean and its 95th percentile."""

    mean: float
    p95: float


BERT_TV = {128: FixedK(0.160, 0.568), 256: FixedK(0.208, 0.700), 512: FixedK(0.263, 0.797)}
BERT_GAP_PASS = 0.0
"""Share of rows that the gap test passes."""


class WikiText(NamedTuple):
    """On WikiText-2 at epsilon 0.01: n / mean(k_eps), and the 95th percentile of k_eps."""

    ratio: float
    p95: int


BERT_WIKITEXT = {128: WikiText(2.18, 118), 256: WikiText(2.37, 235)}


class Head(NamedTuple):
    """A head at n = 128 and epsilon 0.01: its mean k_eps, what the text says of it, and its gap pass rate if given."""

    k: float
    remark: str = ""
    gap_pass: float | None = None


BERT_HEADS = {
    (0, 4): Head(122.8, "flat"),
    (1, 6): Head(7.1),
    (2, 0): Head(1.1, gap_pass=0.76),
    (2, 9): Head(1.8, gap_pass=0.76),
    (3, 5): Head(10.8),
    (5, 9): Head(11.4),
}
"""By layer and head, from 0. The k of the gap test's 76% is not stated."""

CLAIM = (2.0, 4.0)
"""Times fewer scored keys, as the paper sums up its k_eps: no search was run for it."""
