"""Keys, queries and cells to test bounds on, and the one law that every bound must keep."""

import mpmath
import torch
from hypothesis import strategies as st

import oracles
from tailbound.bounds import Sketch, run_cells


def fitting(bound, cells):
    """A sketch takes every key as its own cell."""
    return torch.arange(len(cells)) if issubclass(bound, Sketch) else cells


def cells_by_runs(keys):
    return run_cells(keys.shape[0], 3)


def scattered_cells(keys):
    """Cells whose members lie anywhere: every third key, as a k-means would not leave them in order either."""
    return torch.arange(keys.shape[0]) % 3


def single_cells(keys):
    return run_cells(keys.shape[0], 1)


@st.composite
def setups(draw):
    """(keys, query, scale, cells): any dtype, tiny and huge norms, outliers, ties, negative scales."""
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, width = draw(st.integers(1, 9)), draw(st.sampled_from([1, 2, 7, 16]))
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]))
    keys = torch.randn(n, width, generator=gen, dtype=torch.float64)
    query = torch.randn(width, generator=gen, dtype=torch.float64)
    match draw(st.sampled_from(["plain", "equal", "signs", "coded", "outlier channel", "outlier key", "aligned"])):
        case "equal":
            keys = keys[:1].expand(n, width).clone()
        case "signs":
            keys, query = keys.sign(), query.sign()
        case "coded":  # by 8 bits a component, without error, around a centre of 0
            hot = torch.eye(width, dtype=torch.float64)[torch.randint(width, (n // 2,), generator=gen)] * 127 / 64
            keys = torch.cat([hot, -hot, torch.zeros(n % 2, width, dtype=torch.float64)])
        case "outlier channel":
            keys[:, 0] += 100.0
        case "outlier key":
            keys[0] *= 100.0
        case "aligned":
            query = keys[0].clone()
    if dtype is not torch.float16:
        keys *= 10.0 ** draw(st.sampled_from([0, -25, 25, -12]))
        query *= 10.0 ** draw(st.sampled_from([0, -25, 25, 12]))
    scale = draw(st.sampled_from([1.0, 0.125, -1.0, -0.3, 0.0, 1e-30]))
    keys, query = keys.to(dtype), query.to(dtype)
    return keys, query, scale, draw(st.sampled_from([cells_by_runs, scattered_cells, single_cells]))(keys)


def check_interval(bound, setup):
    """`check_state` for a bound made from a drawn case."""
    keys, query, scale, cells = setup
    return check_state(bound(keys, fitting(bound, cells)), query, scale)


def check_state(state, query, scale):
    """Every exact logit lies in its cell's interval. Returns how close one came to an end, as a share of the width."""
    lower, upper = state.interval(query, scale)
    closest = 0.0
    for i, cell in enumerate(state.cells.tolist()):
        truth = oracles.logit(query, state.keys[i], scale)
        low, high = mpmath.mpf(lower[cell].item()), mpmath.mpf(upper[cell].item())
        assert low <= truth <= high, f"key {i} of cell {cell}: {truth} outside [{low}, {high}]"
        if high > low:
            closest = max(closest, float(abs(2 * truth - low - high) / (high - low)))
    return closest
