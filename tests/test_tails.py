"""The rivals of the power law against SciPy's distributions, limits, and simulated samples."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from math import erfc, exp, log, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from scipy.integrate import quad
from scipy.optimize import minimize

from weightscope.laws.tails import POWER_LAW, Ratio, compare
from weightscope.matrix import Matrix
from weightscope.measurement import EntryStatistics, Measurement
from weightscope.metrics import tails as family
from weightscope.metrics.alpha import evaluate as alpha_of
from weightscope.outcome import Failure
from weightscope.settings import Settings
from weightscope.spectrum import Spectrum
from weightscope.tensor import TensorRef

Array = npt.NDArray[np.float64]
Parameters = dict[str, float]
RIVALS = ("exponential", "lognormal", "stretched_exponential", "truncated_power_law")
SAMPLES: dict[str, Array] = {
    "exponential": 2 + np.random.default_rng(0).exponential(3, 90),
    "lognormal": np.exp(1 + 0.5 * np.random.default_rng(1).standard_normal(90)),
    "weibull": 0.1 + np.random.default_rng(2).weibull(0.7, 90),
    "power law": 5 * np.random.default_rng(3).random(90) ** (-1 / 1.6),
    "steep": 5 * np.random.default_rng(4).random(40) ** (-1 / 11),
    "narrow": 1 + 1e-3 * np.random.default_rng(5).random(60),
}


def truncated(law: Any, x: Array, xmin: float) -> Array:
    """Log-density of a SciPy distribution above xmin."""
    return np.asarray(law.logpdf(x) - law.logsf(xmin))


def cutoff_density(x: Array, exponent: float, rate: float) -> Array:
    """x^-exponent e^(-rate x) above the smallest x, normalised by quadrature."""
    t = x / x.min()
    z = rate * float(x.min())
    edges = np.linspace(0, 60, 241)
    total = sum(
        quad(lambda w: exp(-(exponent - 1) * w - z * (exp(w) - 1)), a, b)[0]
        for a, b in pairwise(edges)
        if z * exp(float(a)) < 700
    )
    return np.asarray(-exponent * np.log(t) - z * (t - 1) - log(total * float(x.min())))


def log_density(rival: str, x: Array, p: Parameters) -> Array:
    """Of x above its smallest value, with parameters in units of x, by SciPy."""
    xmin = float(x.min())
    if rival == "exponential":
        return truncated(stats.expon(scale=1 / p["lambda"]), x, xmin)
    if rival == "lognormal":
        return truncated(stats.lognorm(p["sigma"], scale=exp(p["mu"])), x, xmin)
    if rival == "stretched_exponential":
        return truncated(stats.weibull_min(p["beta"], scale=1 / p["lambda"]), x, xmin)
    return cutoff_density(x, p["alpha"], p["lambda"])


def power_density(x: Array) -> Array:
    slope = 1 / float(np.log(x / x.min()).mean())
    return truncated(stats.pareto(slope, scale=x.min()), x, float(x.min()))


def in_units(ratio: Ratio, xmin: float) -> Parameters:
    """Parameters of a rival as those of x itself."""
    found = dict(ratio.parameters)
    if "mu" in found:
        found["mu"] += log(xmin)
    if "log_lambda" in found:
        found["lambda"] = exp(found.pop("log_lambda")) / xmin
    return found


def ratio_of(sample: Array, rival: str) -> Ratio:
    (found,) = [ratio for ratio in compare(sample).ratios if ratio.rival == rival]
    return found


CASES = [(name, rival) for name in SAMPLES for rival in RIVALS]


@pytest.mark.parametrize(("name", "rival"), CASES[:-1])  # the last is too narrow for quadrature
def test_ratios_are_those_of_the_distributions_of_scipy(name: str, rival: str) -> None:
    x = SAMPLES[name]
    found = ratio_of(x, rival)
    if not found.parameters:
        assert (found.llr, found.normalised, found.p) == (0, 0, 1)
        return
    differences = power_density(x) - log_density(rival, x, in_units(found, float(x.min())))
    llr = float(differences.sum())
    normalised = llr / (sqrt(len(x)) * float(np.std(differences)))
    assert found.llr == pytest.approx(llr, rel=1e-6, abs=1e-7)
    assert found.normalised == pytest.approx(normalised, rel=1e-4, abs=1e-6)
    nested = rival == "truncated_power_law"
    p = stats.chi2(1).sf(-2 * llr) if nested else 2 * stats.norm.sf(abs(normalised))
    assert found.p == pytest.approx(p, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize(("name", "rival"), [case for case in CASES if case[0] != "narrow"])
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # SciPy's, far from the maximum
def test_no_optimiser_finds_a_larger_likelihood(name: str, rival: str) -> None:
    """Nelder-Mead from two starts; ``lambda`` and ``sigma`` by their logarithms."""
    x = SAMPLES[name]
    found = ratio_of(x, rival)
    names = {
        "exponential": ("lambda",),
        "lognormal": ("mu", "sigma"),
        "stretched_exponential": ("beta", "lambda"),
        "truncated_power_law": ("alpha", "lambda"),
    }[rival]
    positive = {"lambda", "sigma", "beta"}

    def cost(values: Array) -> float:
        p = {k: exp(min(v, 50)) if k in positive else v for k, v in zip(names, values, strict=True)}
        total = -float(log_density(rival, x, p).sum())
        return total if np.isfinite(total) else 1e300

    ours = float(power_density(x).sum()) - found.llr
    for shift in (0.3, -0.2):
        start = in_units(found, float(x.min())) if found.parameters else dict.fromkeys(names, 1.0)
        at = [(log(start[k]) if k in positive else start[k]) + shift for k in names]
        tight = {"xatol": 1e-7, "fatol": 1e-10, "maxiter": 500}
        best = minimize(cost, np.array(at), method="Nelder-Mead", options=tight)
        assert ours >= -best.fun - 1e-7
        if found.parameters:
            assert ours == pytest.approx(-best.fun, abs=1e-6)


samples = st.one_of(
    st.lists(st.floats(1e-6, 1e6), min_size=8, max_size=60),
    st.lists(st.floats(1, 1 + 1e-4), min_size=8, max_size=40),
    st.lists(st.integers(0, 15).map(lambda k: 2.0**k), min_size=8, max_size=40),
)


@given(samples)
def test_laws_that_contain_the_power_law_are_never_worse(values: list[float]) -> None:
    x = np.array(values)
    if x.max() / x.min() - 1 < 1e-6:
        return
    found = compare(x)
    for ratio in found.ratios:
        assert np.isfinite([ratio.llr, ratio.normalised, ratio.p]).all()
        assert np.isfinite(list(ratio.parameters.values())).all()
        assert 0 <= ratio.p <= 1
        if ratio.rival != "exponential":
            assert ratio.llr <= 1e-9 * len(x)
    beaten = [r for r in found.ratios if r.llr < 0 and r.p < 0.1]
    assert (found.best == POWER_LAW) == (not beaten)
    if beaten:
        assert found.against in beaten
        assert found.best == found.against.rival


@given(samples)
def test_the_lognormal_and_the_stretched_exponential_have_the_same_limit(
    values: list[float],
) -> None:
    """The power law is their maximum where mean(u^2) >= 2 mean(u)^2, u = ln(x / xmin)."""
    x = np.array(values)
    u = np.log(x / x.min())
    if u.max() < 1e-6:
        return
    excess = float((u * u).mean()) / (2 * float(u.mean()) ** 2) - 1
    for rival in ("lognormal", "stretched_exponential"):
        found = ratio_of(x, rival)
        if excess >= 1e-12:
            assert (found.parameters, found.p) == ({}, 1)
        elif excess < -0.01:
            assert found.parameters
            assert found.llr < 0


def test_the_scale_of_the_sample_changes_nothing() -> None:
    x = SAMPLES["weibull"]
    one, other = compare(x), compare(x * 1e-200)
    for a, b in zip(one.ratios, other.ratios, strict=True):
        assert b.llr == pytest.approx(a.llr, rel=1e-8)
        assert b.parameters == pytest.approx(a.parameters, rel=1e-7)


# ---------------------------------------------------------------------------------- simulations


def from_power_law(exponent: float) -> Callable[[np.random.Generator, int], Array]:
    return lambda rng, n: rng.random(n) ** (-1 / (exponent - 1))


def above_one(draw: Callable[[np.random.Generator, int], Array]) -> Any:
    def tail(rng: np.random.Generator, n: int) -> Array:
        values = draw(rng, 20 * n)
        return values[values > 1][:n]

    return tail


def with_cutoff(rng: np.random.Generator, n: int) -> Array:
    """x^-1.5 e^(-0.02 x) above 1."""
    values = 1 + rng.exponential(50, 60 * n)
    return values[rng.random(60 * n) < values**-1.5][:n]


def named(draw: Callable[[np.random.Generator, int], Array], n: int, count: int) -> Counter[str]:
    tails = (draw(np.random.default_rng(seed), n) for seed in range(count))
    assert_full = [tail for tail in tails if len(tail) == n]
    assert len(assert_full) == count
    return Counter(compare(tail).best for tail in assert_full)


@pytest.mark.parametrize("exponent", [1.5, 2.2, 3.0, 5.0, 12.0])
@pytest.mark.parametrize("n", [50, 300])
def test_a_true_power_law_is_rejected_in_at_most_one_case_of_ten(exponent: float, n: int) -> None:
    """200 samples: 0.9 less three standard errors of the share."""
    found = named(from_power_law(exponent), n, 200)
    assert found[POWER_LAW] >= 200 * 0.9 - 3 * sqrt(200 * 0.09)


@pytest.mark.parametrize(
    ("draw", "law", "share"),
    [
        (above_one(lambda rng, n: rng.exponential(1, n)), "exponential", 0.9),
        (above_one(lambda rng, n: np.exp(1 + 0.5 * rng.standard_normal(n))), "lognormal", 0.75),
        (above_one(lambda rng, n: 2 * rng.weibull(2, n)), "stretched_exponential", 0.75),
        (with_cutoff, "truncated_power_law", 0.75),
    ],
    ids=RIVALS,
)
def test_samples_of_400_from_each_rival_are_recognised(draw: Any, law: str, share: float) -> None:
    """Never taken for a power law, and named in the stated share of 100 samples."""
    found = named(draw, 400, 100)
    assert found[POWER_LAW] == 0
    assert found[law] >= 100 * share


# -------------------------------------------------------------------------------------- columns


def columns(singular_values: Array) -> dict[str, Any]:
    """Values of the family for a matrix with these singular values."""
    n = len(singular_values)
    spectrum = Spectrum(np.sort(singular_values)[::-1], n, n)
    entries = EntryStatistics(0.0, 1.0, 1.0, 0.0, 0, 0.0)
    matrix = Matrix("w", TensorRef("w", (n, n), "F64"), "whole", "other", "w")
    measured = Measurement(matrix, entries, spectrum)
    known: dict[str, Any] = {"rank": n}
    known |= alpha_of(measured, Settings(), known)
    return known | dict(family.evaluate(measured, Settings(), known))


def bulk_and_tail(seed: int = 0) -> Array:
    """Singular values of a bulk and a lognormal tail."""
    rng = np.random.default_rng(seed)
    tail = above_one(lambda g, n: np.exp(1 + 0.5 * g.standard_normal(n)))(rng, 200)
    return np.sqrt(np.r_[rng.random(300), tail])


def test_the_columns_compare_laws_on_the_tail_of_alpha() -> None:
    s = bulk_and_tail()
    found = columns(s)
    tail = np.sort(s**2)[-found["alpha_n_tail"] :]
    expected = compare(tail)
    assert found["tail_best"] == expected.best
    assert found["tail_llr"] == pytest.approx(expected.against.normalised, rel=1e-8)
    assert found["tail_llr_p"] == pytest.approx(expected.against.p, rel=1e-8)
    assert set(found["tail_ratios"]) == set(RIVALS)
    for ratio in expected.ratios:
        record = found["tail_ratios"][ratio.rival]
        assert record["llr"] == pytest.approx(ratio.llr, rel=1e-8)
        assert record["p"] == pytest.approx(ratio.p, rel=1e-8)
        assert record["normalised"] == pytest.approx(ratio.normalised, rel=1e-8)
        assert record["parameters"] == pytest.approx(in_units(ratio, float(tail[0])), rel=1e-7)


def test_rates_are_in_units_of_one_over_the_weights_squared() -> None:
    s = bulk_and_tail()
    one, other = columns(s)["tail_ratios"], columns(3 * s)["tail_ratios"]
    for rival in RIVALS:
        a, b = one[rival]["parameters"], other[rival]["parameters"]
        assert set(a) == set(b)
        for name, value in a.items():
            expected = {"lambda": value / 9, "mu": value + log(9)}.get(name, value)
            assert b[name] == pytest.approx(expected, rel=1e-7), (rival, name)
        assert other[rival]["llr"] == pytest.approx(one[rival]["llr"], rel=1e-8)


@pytest.mark.parametrize("exponent", [0, 500, -500])
def test_the_ratios_can_be_written_as_json_at_any_scale(exponent: int) -> None:
    found = columns(bulk_and_tail() * 2.0**exponent)
    text = json.dumps(found["tail_ratios"], allow_nan=False)
    assert json.loads(text) == found["tail_ratios"]
    assert found["tail_best"] == columns(bulk_and_tail())["tail_best"]


def test_a_tail_of_few_points_is_not_judged() -> None:
    found = columns(np.r_[np.linspace(1, 1.05, 200), [4, 5, 7, 9, 12.0]])
    assert found["alpha_n_tail"] == 5
    assert isinstance(found["tail_llr"], Failure)
    assert "5 eigenvalues" in found["tail_llr"].reason
    assert "tail_best" not in found


def test_vuongs_statistic_of_a_hand_example() -> None:
    """x = 1, 2, 4, 8: power law slope 1/(1.5 ln 2), exponential rate 1/2.75."""
    u, x = np.log([1, 2, 4, 8]), np.array([1.0, 2, 4, 8])
    slope, rate = 1 / (1.5 * log(2)), 1 / 2.75
    differences = log(slope) - (slope + 1) * u - (log(rate) - rate * (x - 1))
    found = ratio_of(x, "exponential")
    assert found.llr == pytest.approx(differences.sum(), rel=1e-12)
    normalised = differences.sum() / sqrt(
        4 * float(((differences - differences.mean()) ** 2).mean())
    )
    assert found.normalised == pytest.approx(normalised, rel=1e-12)
    assert found.p == pytest.approx(erfc(abs(normalised) / sqrt(2)), rel=1e-12)


def test_a_tail_of_any_width_has_an_exponential_rival() -> None:
    """Eigenvalues from 1e-300 to 1e300, where e^u alone would overflow; likelihoods in logs."""
    exponents = np.linspace(-300, 300, 25)
    found = compare(10.0**exponents)
    u = (exponents - exponents[0]) * np.log(10)
    log_excess = np.array([v + np.log(-np.expm1(-v)) if v else -np.inf for v in u])
    log_mean = np.logaddexp.reduce(log_excess) - np.log(len(u))
    exponential = -log_mean * len(u) + u.sum() - len(u)
    power = -len(u) * np.log(u.mean()) - len(u)
    ratio = next(r for r in found.ratios if r.rival == "exponential")
    assert ratio.llr == pytest.approx(power - exponential, rel=1e-12)
    assert ratio.parameters["log_lambda"] == pytest.approx(-log_mean, rel=1e-12)
