"""Rows of logits for the theory, and their exact masses. Imports nothing from tailbound."""

import mpmath
import torch
from hypothesis import assume
from hypothesis import strategies as st


@st.composite
def rows(draw, min_n=1, max_n=12):
    """Logits of one row in float64 and a head that is not empty."""
    n = draw(st.integers(min_n, max_n))
    spread = draw(st.sampled_from([0.0, 1e-6, 1.0, 10.0, 300.0]))
    raw = draw(st.lists(st.floats(-1, 1, allow_nan=False), min_size=n, max_size=n))
    shift = draw(st.sampled_from([0.0, 0.0, -1e4, 1e4]))
    logits = torch.tensor(raw, dtype=torch.float64) * spread + shift
    head = torch.tensor(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    assume(bool(head.any()))
    return logits, head


def masses(logits, head):
    """Exact head and tail mass, relative to the largest logit."""
    top = mpmath.mpf(logits.max().item())
    terms = [mpmath.exp(mpmath.mpf(s) - top) for s in logits.tolist()]
    inside = mpmath.fsum(t for t, h in zip(terms, head.tolist(), strict=True) if h)
    return inside, mpmath.fsum(t for t, h in zip(terms, head.tolist(), strict=True) if not h)
