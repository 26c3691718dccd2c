"""The laws of a bound. Every bound inherits all of them; broken bounds must break them."""

import pytest
import torch
from hypothesis import given, target
from hypothesis import strategies as st

from constants import round_to_nearest
from intervals import check_interval, fitting, setups, single_cells
from tailbound.bounds import Ball, Box, Sketch, base, kmeans_cells, rounding, run_cells

BOUNDS = (Ball, Box, Sketch)
CELL_BOUNDS = (Ball, Box)


laws = pytest.mark.parametrize("bound", BOUNDS, ids=lambda b: b.__name__)
cell_laws = pytest.mark.parametrize("bound", CELL_BOUNDS, ids=lambda b: b.__name__)


@laws
@given(setup=setups())
def test_no_logit_leaves_its_interval(bound, setup):
    target(check_interval(bound, setup), label="closest to an end")


@cell_laws
@given(setup=setups(), data=st.data())
def test_append_equals_rebuild_to_the_bit(bound, setup, data):
    keys, query, scale, cells = setup
    cells = fitting(bound, cells)
    whole_cells = [cut for cut in range(1, len(keys)) if len(cells[:cut].unique()) == int(cells[:cut].max()) + 1]
    cut = data.draw(st.sampled_from(whole_cells or [len(keys)]))
    grown = bound(keys[:cut], cells[:cut]).append(keys[cut:], cells[cut:])
    whole = bound(keys, cells)
    for a, b in zip(grown.interval(query, scale), whole.interval(query, scale), strict=True):
        assert torch.equal(a, b)
    assert grown.bytes_per_key == whole.bytes_per_key


@cell_laws
@given(setup=setups(), seed=st.integers(0, 1000))
def test_permuting_keys_permutes_nothing_but_roundings(bound, setup, seed):
    keys, query, scale, cells = setup
    cells = fitting(bound, cells)
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed))
    a, b = bound(keys, cells).interval(query, scale), bound(keys[order], cells[order]).interval(query, scale)
    size = abs(scale) * float(query.double().norm()) * float(keys.double().norm())
    for x, y in zip(a, b, strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12 * size + 1e-200)


@laws
@given(setup=setups(), power=st.integers(-8, 8))
def test_scaling_the_query_scales_the_interval(bound, setup, power):
    keys, query, scale, cells = setup
    cells = fitting(bound, cells)
    if query.dtype is torch.float16:
        return
    state, factor = bound(keys, cells), 2.0**power
    # What flushed denormal inputs may cost depends on the keys as well, and does not scale with the query.
    flush = abs(scale) * len(query) * float(keys.double().norm()) * rounding.INPUT_FLUSH * (1.0 + factor)
    for x, y in zip(state.interval(query * factor, scale), state.interval(query, scale), strict=True):
        torch.testing.assert_close(x, y * factor, rtol=1e-9, atol=flush + 1e-30)


@laws
@given(setup=setups())
def test_a_negative_scale_mirrors_the_interval(bound, setup):
    keys, query, scale, cells = setup
    cells = fitting(bound, cells)
    state = bound(keys, cells)
    there, back = state.interval(query, scale), state.interval(query, -scale)
    assert torch.equal(there.lower, -back.upper)
    assert torch.equal(there.upper, -back.lower)


@laws
def test_the_bound_owns_its_keys(bound):
    keys = torch.randn(6, 4)
    state = bound(keys, fitting(bound, run_cells(6, 2)))
    count = state.cell_count
    before = state.interval(torch.ones(4), 1.0)
    keys.zero_()
    grown = state.append(torch.ones(1, 4), torch.tensor([count]))
    assert torch.equal(before.upper, grown.interval(torch.ones(4), 1.0).upper[:count])


@cell_laws
def test_single_keys_are_bounded_to_a_hair(bound):
    """A cell of one key leaves nothing to bound but rounding."""
    keys, query = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)), torch.ones(8)
    lower, upper = bound(keys, single_cells(keys)).interval(query, 1.0)
    assert (upper - lower < 1e-12).all()


def test_tightness():
    """A ball whose query points at a key on its edge, a box whose key sits in the corner: equality up to rounding."""
    keys = torch.tensor([[1.0, 2.0], [3.0, -2.0]])
    cells = torch.zeros(2, dtype=torch.int64)
    along = keys[1] - keys[0]
    ball = Ball(keys, cells).interval(along, 1.0)
    assert ball.upper.item() == pytest.approx(float(keys[1] @ along), rel=1e-12)
    assert ball.lower.item() == pytest.approx(float(keys[0] @ along), rel=1e-12)
    box = Box(keys, cells).interval(torch.tensor([1.0, -1.0]), -1.0)
    assert (box.lower.item(), box.upper.item()) == pytest.approx((-5.0, 1.0), rel=1e-12)


def test_bytes_per_key():
    keys = torch.randn(64, 16, dtype=torch.bfloat16)
    assert Ball(keys, run_cells(64, 16)).bytes_per_key == (8 * 16 + 8) / 16
    assert Box(keys, run_cells(64, 16)).bytes_per_key == 2 * 16 * 2 / 16


# Controls: what a bound must not do.


def caught(bound, setup_list):
    count = 0
    for setup in setup_list:
        try:
            check_interval(bound, setup)
        except AssertionError:
            count += 1
    return count


def ordinary_setups(count=60, dtype=torch.float32):
    gen = torch.Generator().manual_seed(11)
    setups = []
    for index in range(count):
        keys = torch.randn(6, 1 + index % 5, generator=gen).to(dtype)
        query = torch.randn(keys.shape[1], generator=gen).to(dtype)
        setups.append((keys, query, -0.3 if index % 2 else 0.3, run_cells(6, 1 + index % 3)))
    return setups


@cell_laws
def test_control_rounding_to_nearest_is_caught(bound, monkeypatch):
    assert caught(bound, ordinary_setups()) == 0
    round_to_nearest(monkeypatch)
    monkeypatch.setattr(rounding, "INPUT_FLUSH", 0.0)
    monkeypatch.setattr(base, "FLOOR", 0.0)
    assert caught(bound, ordinary_setups()) >= 5


def test_control_a_radius_that_is_too_small_is_caught():
    class Shrunk(Ball):
        def _summarise(self):
            super()._summarise()
            self.radius *= 0.99

    assert caught(Shrunk, ordinary_setups()) >= 1


@pytest.mark.parametrize("name", ["Ball", "Box"])
def test_control_a_bound_that_forgets_the_sign_of_the_scale_is_caught(name):
    parent = {"Ball": Ball, "Box": Box}[name]

    class Signless(parent):
        def interval(self, query, scale):
            return super().interval(query, abs(scale))

    assert caught(Signless, ordinary_setups()) >= 20


@cell_laws
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda b: b(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)), r"keys has shape \(0, 3\)"),
        (lambda b: b(torch.full((2, 3), torch.nan), torch.tensor([0, 0])), "keys holds NaN or infinity"),
        (lambda b: b(torch.zeros(2, 3), torch.tensor([0, 2])), "1 are unused"),
        (lambda b: b(torch.zeros(2, 3), torch.tensor([-1, 0])), "cells must use every number"),
        (lambda b: b(torch.zeros(2, 3), torch.tensor([0, 0])).interval(torch.zeros(3), torch.inf), "scale=inf"),
        (
            lambda b: b(torch.zeros(2, 3), torch.tensor([0, 0])).interval(torch.full((3,), torch.nan), 1.0),
            "query holds NaN",
        ),
        (lambda b: b(torch.zeros(2, 3), torch.tensor([0, 0])).interval(torch.zeros(4), 1.0), "query has shape"),
    ],
)
def test_bad_input_is_refused_in_words(bound, make, words):
    with pytest.raises(ValueError, match=words):
        make(bound)


@cell_laws
def test_kmeans_cells_are_bounded_too(bound):
    keys, query = torch.randn(30, 4, generator=torch.Generator().manual_seed(2)), torch.tensor([1.0, -2.0, 0.5, 3.0])
    check_interval(bound, (keys, query, -0.7, kmeans_cells(keys, 5)))


def test_cells_by_kmeans_are_seeded_and_numbered_by_their_first_key():
    keys = torch.cat([torch.randn(20, 3) + 50, torch.randn(20, 3) - 50])
    cells = kmeans_cells(keys, 2, seed=3)
    assert cells.tolist() == [0] * 20 + [1] * 20
    assert torch.equal(cells, kmeans_cells(keys, 2, seed=3))
    with pytest.raises(ValueError, match="count=41"):
        kmeans_cells(keys, 41)
    with pytest.raises(ValueError, match="size=0"):
        run_cells(3, 0)
