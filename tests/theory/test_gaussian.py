"""The Gaussian laws against mpmath's normal distribution, the paper's tables, and simulation."""

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tailbound import theory
from tailbound.lab.reproduce.printed import TABLE_2, TABLE_6

epsilons = st.floats(1e-6, 0.5)
sigmas = st.floats(0.05, 6.0)


@given(t=st.floats(-20, 20), mu=st.floats(-5, 5), sigma=sigmas)
def test_tail_mass_is_the_integral(t, mu, sigma):
    """Mass below t under the tilted density exp(s) N(mu, sigma^2), which is N(mu + sigma^2, sigma^2)."""
    found = float(theory.gaussian_tail_mass(torch.tensor(t, dtype=torch.float64), mu, sigma))
    exact = mpmath.ncdf((mpmath.mpf(t) - mu - mpmath.mpf(sigma) ** 2) / sigma)
    assert abs(found - exact) <= 1e-12 + 1e-9 * exact


def test_tail_mass_by_quadrature():
    sigma, t = 1.3, 0.8
    weight = lambda s: mpmath.exp(s - s * s / (2 * mpmath.mpf(sigma) ** 2))  # noqa: E731
    below, total = mpmath.quad(weight, [-20, t]), mpmath.quad(weight, [-20, t, 25])
    assert float(theory.gaussian_tail_mass(torch.tensor(t), 0.0, sigma)) == pytest.approx(
        float(below / total), rel=1e-5
    )


@given(epsilon=epsilons, mu=st.floats(-5, 5), sigma=sigmas)
def test_threshold_inverts_the_tail_mass(epsilon, mu, sigma):
    t = torch.tensor(theory.gaussian_threshold(epsilon, mu, sigma), dtype=torch.float64)
    assert float(theory.gaussian_tail_mass(t, mu, sigma)) == pytest.approx(epsilon, rel=1e-6)


@given(epsilon=epsilons, sigma=sigmas)
def test_keep_fraction_is_the_share_above_the_threshold_and_sigma_comes_back(epsilon, sigma):
    fraction = theory.gaussian_keep_fraction(epsilon, sigma)
    above = 1 - mpmath.ncdf(theory.gaussian_threshold(epsilon, 0.0, sigma) / sigma)
    assert abs(fraction - above) <= 1e-10
    if 1e-12 < fraction < 1 - epsilon - 1e-9:
        assert theory.implied_sigma(epsilon, fraction) == pytest.approx(sigma, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("sigma", TABLE_2)
def test_the_rule_gives_the_papers_table_2(sigma):
    assert theory.gaussian_k(10_000, 0.01, sigma) == TABLE_2[sigma].rule


@pytest.mark.parametrize("epsilon", TABLE_6)
def test_the_rule_gives_the_papers_table_6(epsilon):
    assert theory.gaussian_keep_fraction(epsilon, 1.0) == pytest.approx(TABLE_6[epsilon], abs=1e-4)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 2.0, 3.0])
def test_simulation_agrees_with_the_papers(sigma):
    ours = theory.simulate_k(10_000, 0.01, sigma, draws=200, seed=1)
    error = (ours.standard_error**2 + (ours.standard_error**2) * 200 / 1000) ** 0.5
    assert abs(ours.mean - TABLE_2[sigma].simulated) <= 4 * error


def test_simulation_is_seeded_and_does_not_depend_on_memory():
    a, b = (theory.simulate_k(500, 0.01, 1.5, draws=10, seed=3, rows=rows) for rows in (10, 3))
    assert torch.equal(a.k, b.k)
    assert not torch.equal(a.k, theory.simulate_k(500, 0.01, 1.5, draws=10, seed=4).k)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: theory.gaussian_keep_fraction(0.0, 1.0), "epsilon=0.0"),
        (lambda: theory.gaussian_keep_fraction(0.1, 0.0), "sigma=0.0 must be a finite number above 0"),
        (lambda: theory.gaussian_threshold(1.0, 0.0, 1.0), "epsilon=1.0"),
        (lambda: theory.implied_sigma(0.1, 0.95), r"fraction=0.95 must be in \(0, 0.9\)"),
        (lambda: theory.implied_sigma(0.1, 0.0), "fraction=0.0"),
        (lambda: theory.simulate_k(0, 0.1, 1.0, draws=1), "n=0"),
        (lambda: theory.gaussian_tail_mass(torch.tensor(0.0), 0.0, -1.0), "sigma=-1.0"),
    ],
)
def test_bad_input_names_the_argument_and_the_value(call, words):
    with pytest.raises(ValueError, match=words):
        call()
