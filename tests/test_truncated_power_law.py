"""The truncated power law against mpmath, SciPy, independent fits of a real model, naive twins."""

from __future__ import annotations

from collections.abc import Callable
from math import exp, log
from pathlib import Path

import mpmath
import numpy as np
import numpy.typing as npt
import pytest
from conftest import Records
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from scipy.integrate import quad
from scipy.optimize import minimize
from zoo import gaussian, pareto_evals

from weightscope.laws import cutoff
from weightscope.laws.cutoff import EXPONENTIAL, SQUARE, Bent
from weightscope.laws.power_law import NEAR_TIE, fit_power_law
from weightscope.laws.truncated_power_law import (
    SMALLEST_TAIL,
    TruncatedPowerLaw,
    fit_truncated_power_law,
    model_cdf,
    survival,
    tail_means,
)
from weightscope.matrix import Matrix
from weightscope.measurement import EntryStatistics, Measurement
from weightscope.metrics import alpha, tails
from weightscope.outcome import Failure
from weightscope.settings import Settings
from weightscope.spectrum import Spectrum
from weightscope.tensor import TensorRef

Array = npt.NDArray[np.float64]


def draws(exponent: float, rate: float, n: int, seed: int) -> Array:
    """A sample of ``x^-exponent e^(-rate x)`` above 1, by rejection from the exponential law."""
    rng = np.random.default_rng(seed)
    found = np.empty(0)
    while len(found) < n:
        x = 1 + rng.exponential(1 / rate, 8 * n)
        found = np.r_[found, x[rng.random(8 * n) < x**-exponent]]
    return found[:n]


def law_at(tail: Array) -> Bent:
    """The fit of one tail, without a search."""
    mean_u, mean_v = tail_means(np.log(np.sort(tail)))
    return cutoff.fit(EXPONENTIAL, mean_u[:1], mean_v[:1])


def alpha_and_rate(tail: Array) -> tuple[float, float]:
    law = law_at(tail)
    return float(1 + law.s[0] - law.c[0]), float(law.c[0] / tail.min())


def log_normaliser(exponent: float, z: float) -> float:
    """ln of e^z E_exponent(z), the integral of t^-exponent e^(-z (t - 1)) above 1."""
    if z == 0:
        return -log(exponent - 1)
    with mpmath.workdps(60):
        return float(mpmath.log(mpmath.exp(z) * mpmath.expint(exponent, z)))


def negative_log_likelihood(tail: Array, exponent: float, rate: float) -> float:
    """-sum ln(C x^-exponent e^(-rate x)), C = xmin^(exponent - 1) / E_exponent(rate xmin)."""
    xmin = float(tail.min())
    log_c = (exponent - 1) * log(xmin) - log_normaliser(exponent, rate * xmin) + rate * xmin
    return float(exponent * np.log(tail).sum() + rate * tail.sum() - len(tail) * log_c)


def above(start: float, exponent: float, z: float) -> float:
    """Integral of t^-exponent e^(-z (t - 1)) above ``start``, by quadrature in ln t."""
    total = 0.0
    for low in np.arange(log(start), log(start) + 60, 1.0):
        total += quad(lambda w: exp((1 - exponent) * w - z * (exp(w) - 1)), low, low + 1)[0]
        if z * exp(low + 1) > 800:
            break
    return total


# ---------------------------------------------------------------------------------- normaliser


@pytest.mark.parametrize("z", [1e-10, 1e-6, 1e-3, 0.1, 1.0, 7.0, 60.0])
@pytest.mark.parametrize("exponent", [-40.0, -3.36, -1.0, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.25, 30.0])
def test_the_normaliser_is_the_generalised_exponential_integral(exponent: float, z: float) -> None:
    """At integer exponents too, where the upward recurrence divides by zero."""
    found = cutoff.log_norm(EXPONENTIAL, np.array([exponent - 1 + z]), np.array([z]))
    assert found[0] == pytest.approx(log_normaliser(exponent, z), abs=3e-11)


@pytest.mark.parametrize(
    ("mu", "sigma"), [(-30.0, 3.0), (-1.0, 0.3), (0.0, 1.0), (2.0, 0.1), (9, 4)]
)
def test_the_normaliser_of_the_other_bend_is_a_normal_probability(mu: float, sigma: float) -> None:
    """exp(-s u - c u^2/2) with s = -mu/sigma^2, c = 1/sigma^2, over u >= 0."""
    with mpmath.workdps(60):
        upper = mpmath.erfc(-mu / (mpmath.mpf(sigma) * mpmath.sqrt(2))) / 2
        expected = float(
            mpmath.log(upper * sigma * mpmath.sqrt(2 * mpmath.pi))
            + mpmath.mpf(mu) ** 2 / (2 * mpmath.mpf(sigma) ** 2)
        )
    s, c = np.array([-mu / sigma**2]), np.array([sigma**-2])
    assert cutoff.log_norm(SQUARE, s, c)[0] == pytest.approx(expected, rel=1e-11, abs=1e-11)


@pytest.mark.parametrize("exponent", [-12.0, 0.3, 1.0, 2.5, 6.0])
@pytest.mark.parametrize("z", [1e-6, 0.02, 3.0])
def test_the_distribution_function_is_the_integral_of_the_density(
    exponent: float, z: float
) -> None:
    """At points that lie close together, far apart, and beyond all mass."""
    points = np.array([1.0, 1.0001, 1.2, 1.9, 2.0, 15.0, 1e3, 1e9])
    s, c = np.array([exponent - 1 + z]), np.array([z])
    norm = cutoff.log_norm(EXPONENTIAL, s, c)
    model = model_cdf(np.log(points), float(s[0]), z, float(norm[0]))
    whole = above(1.0, exponent, z)
    expected = np.array([1 - above(t, exponent, z) / whole for t in points])
    np.testing.assert_allclose(model, expected, rtol=0, atol=2e-10)
    many = np.full(len(points), 0)
    laws = Bent(s[many], c[many], norm[many], norm[many])
    np.testing.assert_allclose(1 - survival(np.log(points), laws), expected, rtol=0, atol=2e-10)


# ------------------------------------------------------------------------------ at a given xmin


@pytest.fixture(scope="module")
def evals(minilm: Path) -> dict[str, Array]:
    """Ascending eigenvalues of every matrix of the real model, in float64."""
    found = {}
    for name, weight in load_file(minilm / "model.safetensors").items():
        if weight.is_floating_point() and weight.ndim == 2 and min(weight.shape) >= SMALLEST_TAIL:
            W = weight.double().numpy()
            W = W if W.shape[0] >= W.shape[1] else W.T
            found[name] = np.sort(np.linalg.eigvalsh(W.T @ W))
    return found


def test_a_real_model_has_the_parameters_of_an_independent_fit(
    golden: Callable[[str], Records], evals: dict[str, Array]
) -> None:
    """At the same xmin, free and held at or above 1; 39 matrices, 15 of them above 1."""
    interior = 0
    for record in golden("minilm_tpl_check.csv"):
        values = evals[record["longname"] + ".weight"]
        tail = values[values >= float(record["ww_xmin"]) * (1 - 1e-9)]
        assert len(tail) == int(record["n_tail"])
        exponent, rate = alpha_and_rate(tail)
        free, walled = float(record["mle_free_alpha"]), float(record["mle_ge1_alpha"])
        assert exponent == pytest.approx(free, abs=3e-6), record["longname"]
        expected = float(record["mle_free_Lambda"])
        # the reference approaches 0 where the maximum is there
        assert rate == pytest.approx(expected, rel=2e-6, abs=1e-14), record["longname"]
        ours = negative_log_likelihood(tail, exponent, rate)
        assert ours == pytest.approx(float(record["mle_free_nll"]), rel=1e-12, abs=1e-9)
        assert ours <= float(record["mle_ge1_nll"]) + 1e-9
        if walled > 1 + 1e-9:
            interior += 1
            assert exponent == pytest.approx(walled, abs=2e-5)
            assert rate == pytest.approx(float(record["mle_ge1_Lambda"]), rel=2e-5, abs=1e-13)
    assert interior == 15


@pytest.mark.parametrize(
    ("exponent", "rate", "n"), [(1.5, 0.1, 60), (2.5, 0.02, 300), (0.2, 1.0, 25), (-3.0, 8.0, 80)]
)
def test_no_optimiser_finds_a_larger_likelihood(exponent: float, rate: float, n: int) -> None:
    tail = np.sort(3.7 * draws(exponent, rate, n, 5))
    ours = alpha_and_rate(tail)
    start = np.array([ours[0] + 0.3, log(ours[1]) - 0.4])
    found = minimize(
        lambda p: negative_log_likelihood(tail, float(p[0]), exp(float(p[1]))),
        start,
        method="Nelder-Mead",
        options={"xatol": 1e-7, "fatol": 1e-11, "maxiter": 2000},
    )
    assert negative_log_likelihood(tail, *ours) <= found.fun + 1e-9
    assert ours[0] == pytest.approx(found.x[0], abs=2e-5)
    assert ours[1] == pytest.approx(exp(found.x[1]), rel=2e-5)


def test_the_cutoff_is_zero_exactly_where_the_mean_is_no_smaller_than_the_power_laws() -> None:
    """A power law with alpha above 2 has mean (alpha - 1)/(alpha - 2) xmin; beyond, it bends up."""
    kinds = set()
    for seed in range(60):
        tail = np.sort(np.random.default_rng(seed).random(80) ** (-1 / 2.5))
        tail /= tail[0]
        exponent = 1 + 1 / float(np.log(tail).mean())
        no_cutoff = exponent > 2 and float(tail.mean()) >= (exponent - 1) / (exponent - 2)
        found = alpha_and_rate(tail)
        kinds.add(no_cutoff)
        if no_cutoff:
            assert found == (pytest.approx(exponent, rel=1e-13), 0)
        else:
            assert found[1] > 0
            assert found[0] < exponent
    assert kinds == {True, False}


samples = st.one_of(
    st.lists(st.floats(1e-6, 1e6), min_size=8, max_size=40),
    st.lists(st.floats(1, 1 + 1e-3), min_size=8, max_size=40),
    st.lists(st.integers(0, 15).map(lambda k: 2.0**k), min_size=8, max_size=40),
)


@given(samples)
@settings(max_examples=50)
def test_the_gradient_of_the_likelihood_vanishes(values: list[float]) -> None:
    """The fitted law has the sample's means of ln x and of x, by quadrature of the definition."""
    tail = np.sort(np.array(values))
    tail /= tail[0]
    if np.log(tail).mean() < 1e-5:
        return
    law = law_at(tail)
    s, c = float(law.s[0]), float(law.c[0])
    if c == 0 or c < 1e-8:
        return
    u, v = np.log(tail), np.expm1(np.log(tail)) - np.log(tail)
    # in units of its own width, whatever that is
    low, high = (float(end[0]) for end in EXPONENTIAL.reach(law.s, law.c))
    nodes, weights = np.polynomial.legendre.leggauss(400)
    w = low + (high - low) / 2 * (1 + nodes)
    bend = cutoff.exponential_excess(w)
    density = weights * np.exp(-s * w - c * bend - (-s * w - c * bend).max())
    density /= density.sum()
    assert float(density @ w) == pytest.approx(float(u.mean()), rel=1e-8)
    if u.max() > 1e-2:
        assert float(density @ bend) == pytest.approx(float(v.mean()), rel=1e-6)


def test_the_standard_error_is_the_curvature_of_the_likelihood() -> None:
    tail = np.sort(draws(1.8, 0.1, 150, 3))
    exponent, rate = alpha_and_rate(tail)
    law = law_at(tail)
    steps = np.array([1e-3, 1e-3 * rate])

    def at(i: float, j: float) -> float:
        return negative_log_likelihood(tail, exponent + i * steps[0], rate + j * steps[1])

    mixed = (at(1, 1) - at(1, -1) - at(-1, 1) + at(-1, -1)) / 4
    hessian = np.array(
        [[at(1, 0) - 2 * at(0, 0) + at(-1, 0), mixed], [mixed, at(0, 1) - 2 * at(0, 0) + at(0, -1)]]
    ) / np.outer(steps, steps)
    expected = np.linalg.inv(hessian)[0, 0]
    assert float(law.var_alpha[0]) / len(tail) == pytest.approx(expected, rel=1e-3)


def test_the_estimate_scatters_as_its_standard_error_says() -> None:
    """300 samples of 400 points at a known xmin: bias below 3 standard errors, unit width."""
    scores = []
    for seed in range(300):
        tail = draws(1.8, 0.1, 400, seed)
        tail[0] = 1.0
        law = law_at(tail)
        scores.append(float((law.s - law.c - 0.8)[0] / (law.var_alpha[0] / 400) ** 0.5))
    assert abs(np.mean(scores)) < 0.2
    assert 0.88 < np.std(scores) < 1.12


@given(samples)
def test_tail_means_are_those_of_a_loop(values: list[float]) -> None:
    logs = np.sort(np.log(np.array(values)))
    mean_u, mean_v = tail_means(logs)
    for i in range(len(logs)):
        with mpmath.workdps(40):
            u = [mpmath.mpf(float(w)) - mpmath.mpf(float(logs[i])) for w in logs[i:]]
            expected = float(mpmath.fsum(mpmath.expm1(w) - w for w in u) / len(u))
            expected_u = float(mpmath.fsum(u) / len(u))
        assert mean_u[i] == pytest.approx(expected_u, rel=1e-12, abs=1e-300)
        assert mean_v[i] == pytest.approx(expected, rel=1e-11, abs=1e-300)


# -------------------------------------------------------------------------------------- search


def naive_search(values: Array) -> list[tuple[float, int, float, float]]:
    """(distance, tail size, alpha, Lambda xmin) of every candidate, one after the other."""
    x, found = np.sort(values), []
    for i in range(len(x) - SMALLEST_TAIL + 1):
        if (i and x[i] == x[i - 1]) or x[i] == x[-1]:
            continue
        tail = x[i:] / x[i]
        u = np.log(tail)
        means = np.array([u.mean()]), np.array([cutoff.exponential_excess(u).mean()])
        law = cutoff.fit(EXPONENTIAL, *means)
        z = float(law.c[0])
        exponent = float(1 + law.s[0]) - z
        if exponent <= 1:
            continue
        whole = above(1.0, exponent, z)
        model = np.array([1 - above(t, exponent, z) / whole for t in tail])
        ks = float(np.abs(model - np.arange(len(tail)) / len(tail)).max())
        found.append((ks, len(tail), exponent, z))
    return found


@pytest.mark.parametrize("seed", range(12))
def test_the_search_finds_the_candidate_of_the_full_search(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(10, 40))
    values = [
        rng.random(n) ** (-1 / 1.5),
        np.exp(2 * rng.standard_normal(n)),
        np.round(np.exp(rng.standard_normal(n)), 1) + 1,
        np.r_[rng.random(n - 3), draws(2.0, 0.05, 3, seed) * 5],
    ][seed % 4]
    fit, found = fit_truncated_power_law(values), sorted(naive_search(values))
    assert isinstance(fit, TruncatedPowerLaw)
    assert fit.ks == pytest.approx(found[0][0], abs=1e-9)
    (winner,) = [candidate for candidate in found if candidate[1] == fit.n_tail]
    assert winner[0] <= found[0][0] + 1e-9
    assert fit.alpha == pytest.approx(winner[2], rel=1e-7)
    assert fit.Lambda * fit.xmin == pytest.approx(winner[3], rel=1e-6)
    assert fit.method == "tpl"
    if len(found) > 1:
        gap = found[1][0] - found[0][0]
        assert fit.gap is not None
        assert fit.gap >= min(gap, NEAR_TIE) - 1e-9


def full_search(values: Array, lowest: float, highest: float) -> tuple[float, int]:
    """Smallest distance and its tail size over all candidates between two values."""
    x = np.sort(values)
    logs, best = np.log(x), (2.0, 0)
    mean_u, mean_v = tail_means(logs)
    for i in np.flatnonzero(
        (x[: 1 - SMALLEST_TAIL] >= lowest) & (x[: 1 - SMALLEST_TAIL] <= highest)
    ):
        u = logs[i:] - logs[i]
        law = cutoff.fit(EXPONENTIAL, mean_u[i : i + 1], mean_v[i : i + 1])
        if law.s[0] - law.c[0] <= 0:
            continue
        s, c, norm = float(law.s[0]), float(law.c[0]), float(law.log_norm[0])
        model = model_cdf(u, s, c, norm) if c else -np.expm1(-s * u)
        ks = float(np.abs(model - np.arange(len(u)) / len(u)).max())
        best = min(best, (ks, len(u)))
    return best


def test_no_bound_drops_the_winner_among_real_eigenvalues(evals: dict[str, Array]) -> None:
    for name in list(evals)[3::19]:
        values = evals[name]
        expected = full_search(values, 0, np.inf)
        fit = fit_truncated_power_law(values)
        if isinstance(fit, Failure):
            assert expected[0] == 2
        else:
            assert (fit.ks, fit.n_tail) == (pytest.approx(expected[0], abs=1e-11), expected[1])


def test_etpl_searches_around_the_peak_of_the_log_density(evals: dict[str, Array]) -> None:
    values = evals["encoder.layer.2.attention.self.key.weight"]
    counts, edges = np.histogram(np.log10(values), bins=100)
    peak = 10 ** edges[counts.argmax()]
    fit = fit_truncated_power_law(values, "etpl")
    assert isinstance(fit, TruncatedPowerLaw)
    assert fit.method == "etpl"
    assert 0.95 * peak <= fit.xmin <= 1.5 * peak
    assert (fit.ks, fit.n_tail) == (
        pytest.approx(full_search(values, 0.95 * peak, 1.5 * peak)[0], abs=1e-11),
        full_search(values, 0.95 * peak, 1.5 * peak)[1],
    )
    free = fit_truncated_power_law(values)
    assert isinstance(free, TruncatedPowerLaw)
    assert free.ks <= fit.ks


def test_a_planted_exponent_is_found_within_its_error() -> None:
    """300 points above 1, 150 below: alpha within 3 standard errors in 9 of 10 samples."""
    within = 0
    for seed in range(30):
        values = np.r_[np.random.default_rng(seed).random(150), draws(2.2, 0.02, 300, seed)]
        fit = fit_truncated_power_law(values)
        assert isinstance(fit, TruncatedPowerLaw)
        within += abs(fit.alpha - 2.2) < 3 * fit.stderr
    assert within >= 27


def test_a_power_law_without_cutoff_is_fitted_as_one() -> None:
    """Quantiles of a Pareto law whose top ones are drawn out: no cutoff, alpha that of the pl."""
    values = pareto_evals(3.0)
    values[-5:] *= 3
    fit, plain = fit_truncated_power_law(values), fit_power_law(values)
    assert isinstance(fit, TruncatedPowerLaw)
    assert not isinstance(plain, Failure)
    assert fit.Lambda == 0
    if fit.xmin == plain.xmin:
        assert (fit.alpha, fit.ks) == (pytest.approx(plain.alpha), pytest.approx(plain.ks))
    assert fit.stderr == pytest.approx((fit.alpha - 1) / fit.n_tail**0.5)


@pytest.mark.parametrize(("rows", "cols"), [(300, 300), (600, 200)])
def test_pure_noise_has_no_tail(rows: int, cols: int) -> None:
    """Everywhere in a Marchenko-Pastur bulk the cutoff alone does the work."""
    for seed in range(5):
        W = gaussian(rows, cols, seed)
        fit = fit_truncated_power_law(np.linalg.eigvalsh(W.T @ W))
        assert isinstance(fit, Failure)
        assert "alpha would be 1 or less" in fit.reason


@pytest.mark.parametrize("factor", [2.0**-40, 3e-5, 7e8])
def test_the_scale_of_the_values_moves_the_cutoff_alone(factor: float) -> None:
    values = np.r_[np.random.default_rng(0).random(60), draws(1.8, 0.05, 80, 0)]
    one, other = fit_truncated_power_law(values), fit_truncated_power_law(factor * values)
    assert isinstance(one, TruncatedPowerLaw)
    assert isinstance(other, TruncatedPowerLaw)
    assert other.alpha == pytest.approx(one.alpha, rel=1e-9)
    assert other.Lambda * factor == pytest.approx(one.Lambda, rel=1e-8)
    assert (other.n_tail, other.ks) == (one.n_tail, pytest.approx(one.ks, abs=1e-11))
    assert other.stderr == pytest.approx(one.stderr, rel=1e-7)


@pytest.mark.parametrize(
    "values",
    [
        np.full(20, 3.0),
        np.arange(1.0, 8.0),
        np.r_[np.zeros(30), np.arange(1.0, 6.0)],
    ],
)
def test_what_cannot_be_fitted_is_said(values: Array) -> None:
    assert isinstance(fit_truncated_power_law(values), Failure)


@given(samples)
@settings(max_examples=50)
def test_every_sample_has_a_fit_or_a_reason(values: list[float]) -> None:
    for method in ("tpl", "etpl"):
        fit = fit_truncated_power_law(np.array(values), method)
        if isinstance(fit, TruncatedPowerLaw):
            assert fit.alpha > 1
            assert fit.Lambda >= 0
            assert 0 <= fit.ks <= 1
            assert fit.n_tail >= SMALLEST_TAIL
            assert np.isfinite(fit.stderr)


# ------------------------------------------------------------------------------------- columns


def columns(singular_values: Array, fit: str) -> dict[str, object]:
    """Values of the families alpha and tails for a matrix with these singular values."""
    n = len(singular_values)
    spectrum = Spectrum(np.sort(singular_values)[::-1], n, n)
    stats = EntryStatistics(0.0, 1.0, 1.0, 0.0, 0, 0.0)
    matrix = Matrix("w", TensorRef("w", (n, n), "F64"), "whole", "other", "w")
    measured = Measurement(matrix, stats, spectrum)
    chosen = Settings(fit=fit)  # type: ignore[arg-type]
    known: dict[str, object] = {"rank": n}
    known |= alpha.evaluate(measured, chosen, known)  # type: ignore[arg-type]
    return known | dict(tails.evaluate(measured, chosen, known))  # type: ignore[arg-type]


@pytest.mark.parametrize("fit", ["tpl", "etpl"])
def test_the_columns_are_those_of_the_fit_in_units_of_the_weights(
    fit: str, evals: dict[str, Array]
) -> None:
    values = evals["encoder.layer.1.attention.self.key.weight"]
    found, direct = columns(np.sqrt(values), fit), fit_truncated_power_law(values, fit)  # type: ignore[arg-type]
    assert isinstance(direct, TruncatedPowerLaw)
    assert found["alpha_method"] == fit
    assert found["alpha_band"] is None
    assert found["alpha_n_tail"] == direct.n_tail
    expected = {
        "alpha": direct.alpha,
        "alpha_stderr": direct.stderr,
        "alpha_xmin": direct.xmin,
        "alpha_ks": direct.ks,
        "alpha_lambda": direct.Lambda,
        "alpha_hat": direct.alpha * np.log10(values[-1]),
        "log_alpha_norm": np.log10(np.sum(values**direct.alpha)),
    }
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-7), name


def test_the_rate_of_the_cutoff_is_one_over_the_square_of_the_weights(
    evals: dict[str, Array],
) -> None:
    s = np.sqrt(evals["encoder.layer.1.attention.self.key.weight"])
    one, other = columns(s, "tpl"), columns(8 * s, "tpl")
    assert other["alpha"] == one["alpha"]
    assert other["alpha_lambda"] == one["alpha_lambda"] / 64  # type: ignore[operator]
    extreme = columns(s * 2.0**-540, "tpl")
    assert extreme["alpha"] == one["alpha"]
    assert isinstance(extreme["alpha_lambda"], Failure)


def test_without_a_cutoff_in_the_fit_its_rate_is_empty(evals: dict[str, Array]) -> None:
    s = np.sqrt(evals["encoder.layer.1.attention.self.key.weight"])
    found = columns(s, "pl")
    assert "alpha_lambda" not in found
    assert found["alpha_method"] == "ks"
    noise = columns(np.linalg.svd(gaussian(200, 200), compute_uv=False), "tpl")
    assert isinstance(noise["alpha"], Failure)
    assert "tail_best" not in noise
