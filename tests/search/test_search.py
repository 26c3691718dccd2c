"""The certified searches: never CERTIFIED above epsilon in truth, nothing scored that was not needed."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, target
from hypothesis import strategies as st

import oracles
from constants import round_to_nearest
from tailbound import search
from tailbound.bounds import Ball, Box, rounding, run_cells
from tailbound.bounds.base import CellBound, Interval
from tailbound.search import SearchStatus

SEARCHES = {"gap": search.gap_search, "mass": search.mass_search, "hybrid": search.hybrid_search}


class Scores:
    """An exact scorer that remembers what it was asked."""

    def __init__(self, keys, query, scale):
        self.logits = (keys.double() @ query.double()) * scale
        self.asked = []

    def __call__(self, indices):
        self.asked.append(indices.tolist())
        return self.logits[indices]


class Levels(CellBound):
    """Cells with the upper ends that a test wants; the query is ignored."""

    def __init__(self, keys, cells, upper):
        super().__init__(keys, cells)
        self.upper = torch.tensor(upper, dtype=torch.float64)

    def _summarise(self):
        pass

    def interval(self, query, scale):
        return Interval(self.upper - math.inf, self.upper)

    def bytes_per_cell(self):
        return 8


def exact_tail(logits, kept):
    terms = [mpmath.exp(mpmath.mpf(s) - mpmath.mpf(float(logits.max()))) for s in logits.tolist()]
    kept = set(kept.tolist())
    return mpmath.fsum(t for i, t in enumerate(terms) if i not in kept) / mpmath.fsum(terms)


@st.composite
def setups(draw):
    gen = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    n, width = draw(st.integers(1, 40)), draw(st.sampled_from([1, 2, 8]))
    keys = torch.randn(n, width, generator=gen, dtype=torch.float64)
    keys *= draw(st.sampled_from([0.0, 1.0, 5.0, 100.0]))
    query = torch.randn(width, generator=gen, dtype=torch.float64)
    if draw(st.booleans()):
        keys[: n // 3] += query * draw(st.sampled_from([3.0, 30.0]))
    if draw(st.booleans()):
        keys = keys.round()  # ties
    bound = draw(st.sampled_from([Ball, Box]))(keys, run_cells(n, draw(st.integers(1, 8))))
    scale = draw(st.sampled_from([1.0, 0.2, -0.5]))
    return bound, query, scale, draw(st.integers(1, n)), draw(st.sampled_from([1e-6, 0.01, 0.1, 0.5, 0.95]))


def check_result(found, scores, bound, epsilon, k):
    tail = exact_tail(scores.logits, found.kept)
    assert found.tv >= tail, f"tv {found.tv} below the truth {tail}"
    if found.status is SearchStatus.CERTIFIED:
        assert found.tv <= epsilon
    else:
        assert found.status is SearchStatus.EXHAUSTED
        assert found.tv > epsilon
        assert found.cost.keys_scored == bound.keys.shape[0]
        assert found.tv <= tail * (1 + mpmath.mpf(10) ** -9) + mpmath.mpf(10) ** -300
    assert k is None or len(found.kept) == k
    assert len(set(found.kept.tolist())) == len(found.kept)
    asked = [i for call in scores.asked for i in call]
    assert len(asked) == len(set(asked)) == found.cost.keys_scored
    assert len(scores.asked) == found.cost.cells_opened
    if found.cost.keys_scored:
        assert set(found.kept.tolist()) <= set(asked)
        assert torch.equal(found.logits, scores.logits[found.kept])
        assert (found.logits.diff() <= 0).all()
    return float(tail / found.tv) if found.tv else 0.0


@pytest.mark.parametrize("name", SEARCHES)
@given(setup=setups())
def test_a_search_with_fixed_k_is_sound(name, setup):
    bound, query, scale, k, epsilon = setup
    scores = Scores(bound.keys, query, scale)
    found = SEARCHES[name](bound, query, scores, epsilon=epsilon, k=k, scale=scale)
    target(check_result(found, scores, bound, epsilon, k), label="truth / tv")


@given(setup=setups())
def test_adaptive_mass_search_always_certifies_and_keeps_no_more_than_needed(setup):
    bound, query, scale, _, epsilon = setup
    scores = Scores(bound.keys, query, scale)
    found = search.mass_search(bound, query, scores, epsilon=epsilon, scale=scale)
    check_result(found, scores, bound, epsilon, None)
    assert found.status is SearchStatus.CERTIFIED
    if found.cost.keys_scored == bound.keys.shape[0] and len(found.kept) > 1:
        fewer = exact_tail(scores.logits, found.kept[:-1])
        assert fewer > epsilon * (1 - 1e-9)


@pytest.mark.parametrize("name", [*SEARCHES, "adaptive"])
@given(setup=setups())
def test_a_replay_is_the_search(name, setup):
    bound, query, scale, k, epsilon = setup
    scores = Scores(bound.keys, query, scale)
    replay = search.Replay(bound, query, scores.logits, scale=scale)
    if name == "adaptive":
        found, again = (
            search.mass_search(bound, query, scores, epsilon=epsilon, scale=scale),
            replay.mass(epsilon=epsilon),
        )
    else:
        found = SEARCHES[name](bound, query, scores, epsilon=epsilon, k=k, scale=scale)
        again = getattr(replay, name)(epsilon=epsilon, k=k)
    assert torch.equal(found.kept, again.kept)
    assert torch.equal(found.logits, again.logits)
    assert found._replace(kept=None, logits=None) == again._replace(kept=None, logits=None)


@pytest.mark.parametrize("name", SEARCHES)
@given(setup=setups())
def test_no_cell_is_opened_after_a_proof_was_there(name, setup):
    """Run again with the last opened cell forbidden: before it, no test may have passed."""
    bound, query, scale, k, epsilon = setup
    scores = Scores(bound.keys, query, scale)
    found = SEARCHES[name](bound, query, scores, epsilon=epsilon, k=k, scale=scale)
    if found.cost.cells_opened < 2:
        return
    from tailbound.search.state import SearchState

    state = SearchState(bound, query, scale, Scores(bound.keys, query, scale), 0.0)
    for _ in range(found.cost.cells_opened - 1):
        state.open_next()
    if state.scored >= k:
        gap, mass = state.gap_tv(k), float(state.mass_tv(k, k)[0])
        assert name == "mass" or gap > epsilon
        assert name == "gap" or mass > epsilon


@given(setup=setups(), error=st.sampled_from([1e-9, 1e-3, 0.1]), seed=st.integers(0, 999))
def test_logits_that_are_off_by_the_stated_error_stay_certified(setup, error, seed):
    bound, query, scale, k, epsilon = setup
    scores = Scores(bound.keys, query, scale)
    noise = (torch.rand(scores.logits.shape, generator=torch.Generator().manual_seed(seed)).double() * 2 - 1) * error
    for name, find in SEARCHES.items():
        found = find(
            bound,
            query,
            lambda i: (scores.logits + noise)[i],
            epsilon=epsilon,
            k=k,
            scale=scale,
            score_error=error * (1 + 1e-6) + 1e-9,
        )
        assert found.tv >= exact_tail(scores.logits, found.kept), name


def test_the_printed_mass_test_is_wrong_and_ours_is_not():
    """One read key with exp(s) = 100, one unread cell of 100 keys with s = U = 0: TV is 0.5, not 0.01."""
    keys = torch.zeros(101, 1, dtype=torch.float64)
    keys[0] = math.log(100.0)
    cells = torch.tensor([0] + [1] * 100)
    scores = Scores(keys, torch.ones(1), 1.0)
    bound = Levels(keys, cells, [math.log(100.0), 0.0])
    printed = math.exp(0.0) / (100.0 + math.exp(0.0))
    assert printed < 0.01
    found = search.mass_search(bound, torch.ones(1), scores, epsilon=0.01, k=1)
    assert found.status is SearchStatus.EXHAUSTED
    assert found.tv == pytest.approx(0.5)
    fine = search.mass_search(bound, torch.ones(1), Scores(keys, torch.ones(1), 1.0), epsilon=0.51, k=1)
    assert (fine.status, fine.cost.keys_scored) == (SearchStatus.CERTIFIED, 1)
    assert fine.tv >= 0.5


def test_only_needed_cells_are_opened_in_the_order_of_their_upper_ends():
    keys = torch.tensor([[0.0], [0.1], [20.0], [20.0], [5.0], [5.1]], dtype=torch.float64)
    scores = Scores(keys, torch.ones(1), 1.0)
    found = search.gap_search(Ball(keys, run_cells(6, 2)), torch.ones(1), scores, epsilon=1e-3, k=2)
    assert scores.asked == [[2, 3]]
    assert (found.test, found.status) == ("gap", SearchStatus.CERTIFIED)


def test_the_scale_counts():
    """Dropping the scale, as Section 7 does, would open the wrong cell first and certify nonsense."""
    keys = torch.tensor([[5.0], [5.0], [-5.0], [-5.0]], dtype=torch.float64)
    scores = Scores(keys, torch.ones(1), -1.0)
    found = search.gap_search(Ball(keys, run_cells(4, 2)), torch.ones(1), scores, epsilon=0.01, k=2, scale=-1.0)
    assert found.kept.tolist() == [2, 3]
    assert scores.asked == [[2, 3]]


def test_a_negative_gap_certifies_tv_without_the_top_k():
    """Two of three nearly equal keys; the unread one is heavier, and epsilon allows leaving it out."""
    keys = torch.tensor([[0.0], [0.0], [0.1]], dtype=torch.float64)
    scores = Scores(keys, torch.ones(1), 1.0)
    found = search.gap_search(
        Levels(keys, torch.tensor([0, 0, 1]), [0.3, 0.2]), torch.ones(1), scores, epsilon=0.5, k=2
    )
    assert found.kept.tolist() == [0, 1]
    assert found.status is SearchStatus.CERTIFIED
    assert found.tv >= exact_tail(scores.logits, found.kept)


def test_the_hybrid_says_which_test_fired():
    spread = torch.tensor([[9.0], [8.0], [2.0], [-9.0], [-9.0], [-9.0], [-9.0], [-9.0]], dtype=torch.float64)
    query = torch.ones(1, dtype=torch.float64)
    by_gap = search.hybrid_search(Ball(spread, run_cells(8, 2)), query, Scores(spread, query, 1.0), epsilon=0.05, k=2)
    assert by_gap.test == "gap"
    by_mass = search.hybrid_search(Ball(spread, run_cells(8, 2)), query, Scores(spread, query, 1.0), epsilon=0.002, k=2)
    assert by_mass.test == "mass"


@pytest.mark.parametrize("name", SEARCHES)
def test_edges(name):
    one = torch.zeros(1, 2, dtype=torch.float64)
    scores = Scores(one, torch.ones(2), 1.0)
    found = SEARCHES[name](Ball(one, run_cells(1, 1)), torch.ones(2), scores, epsilon=0.1, k=1)
    assert (found.status, found.tv, found.cost.keys_scored) == (SearchStatus.CERTIFIED, 0.0, 0)  # k = n
    keys = torch.randn(10, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = Scores(keys, torch.ones(2), 1.0)
    nearly = SEARCHES[name](Ball(keys, run_cells(10, 4)), torch.ones(2), scores, epsilon=1e-12, k=9)
    assert nearly.status is SearchStatus.EXHAUSTED
    equal = torch.zeros(10, 2, dtype=torch.float64)
    tie = SEARCHES[name](
        Ball(equal, run_cells(10, 4)), torch.ones(2), Scores(equal, torch.ones(2), 1.0), epsilon=0.6, k=5
    )
    assert tie.kept.tolist() == [0, 1, 2, 3, 4]
    assert tie.status is SearchStatus.CERTIFIED


def test_every_status_is_a_diagnosis_and_a_remedy():
    for status in SearchStatus:
        assert status.diagnosis.endswith(".")
        assert status.remedy.endswith(".")


@pytest.mark.parametrize("name", SEARCHES)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"epsilon": 0.0}, r"epsilon=0.0 must be a number in \(0, 1\)"),
        ({"epsilon": 1.0}, "epsilon=1.0"),
        ({"epsilon": math.nan}, "epsilon=nan"),
        ({"k": 0}, r"k=0 must be an integer in \[1, 6\]"),
        ({"k": 7}, "k=7"),
        ({"scale": math.inf}, "scale=inf"),
        ({"score_error": -1.0}, "score_error=-1.0"),
        ({"score": lambda i: torch.full(i.shape, math.nan, dtype=torch.float64)}, "finite float64 logits"),
        ({"score": lambda i: torch.zeros(i.shape)}, "torch.float32"),
        ({"query": torch.tensor([math.nan, 0.0])}, "query holds NaN"),
    ],
)
def test_bad_input_names_the_argument_and_the_value(name, change, words):
    keys = torch.randn(6, 2, dtype=torch.float64)
    arguments = {"query": torch.ones(2), "score": Scores(keys, torch.ones(2), 1.0), "epsilon": 0.1, "k": 2} | change
    with pytest.raises(ValueError, match=words):
        SEARCHES[name](Ball(keys, run_cells(6, 2)), arguments.pop("query"), arguments.pop("score"), **arguments)


def test_control_rounding_to_nearest_is_caught(monkeypatch):
    gen = torch.Generator().manual_seed(4)

    def caught():
        count = 0
        for _ in range(60):
            keys = torch.randn(8, 1, generator=gen, dtype=torch.float64)
            scores = Scores(keys, torch.ones(1), 1.0)
            found = search.mass_search(Ball(keys, run_cells(8, 8)), torch.ones(1), scores, epsilon=0.4)
            count += found.tv < exact_tail(scores.logits, found.kept)
        return count

    assert caught() == 0
    round_to_nearest(monkeypatch)
    monkeypatch.setattr(rounding, "EXP_RELATIVE", 0.0)
    assert caught() >= 5


def test_control_a_cell_counted_once_is_caught(monkeypatch):
    """The printed rule: exp(U) once for each unread cell, not once for each of its keys."""
    from tailbound.search import state

    real = state.SearchState.__init__

    def once(self, *arguments):
        real(self, *arguments)
        self._sizes = torch.ones_like(self._sizes)

    keys = torch.zeros(41, 1, dtype=torch.float64)
    keys[0] = 5.0
    scores = Scores(keys, torch.ones(1), 1.0)
    bound = Ball(keys, torch.tensor([0] + [1] * 40))

    def find():
        found = search.mass_search(bound, torch.ones(1), scores, epsilon=0.05, k=1)
        return found.tv >= exact_tail(scores.logits, found.kept)

    assert find()
    monkeypatch.setattr(state.SearchState, "__init__", once)
    assert not find()


def test_the_quantile_policy_is_marked_as_proving_nothing():
    k = search.quantile_k(torch.tensor([[1, 2, 3, 4], [9, 9, 9, 9]]), 0.5)
    assert k.tolist() == [2, 9]
    found = search.quantile_search(lambda i: -i.double(), 6, 2)
    assert (found.status, found.tv, found.kept.tolist()) == (SearchStatus.UNCERTIFIED, 1.0, [0, 1])
    for bad in (0.0, 1.5):
        with pytest.raises(ValueError, match="quantile="):
            search.quantile_k(torch.ones(3), bad)
    with pytest.raises(ValueError, match="at least one sample"):
        search.quantile_k(torch.ones(0))
    with pytest.raises(ValueError, match="k=7"):
        search.quantile_search(lambda i: i.double(), 6, 7)


def test_scores_agree_with_the_oracle():
    keys, query = torch.randn(5, 3, dtype=torch.float64), torch.randn(3, dtype=torch.float64)
    for found, key in zip(Scores(keys, query, 0.3).logits, keys, strict=True):
        assert float(found) == pytest.approx(float(oracles.logit(query, key, 0.3)), rel=1e-12)
