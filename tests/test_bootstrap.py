"""The bootstrap of alpha against a naive twin, closed forms and stated rates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from zoo import gaussian, pareto_evals

import weightscope
from weightscope.laws.bootstrap import alpha_interval, generator, plausibility
from weightscope.laws.power_law import PowerLaw, fit_power_law
from weightscope.matrix import Matrix
from weightscope.measurement import EntryStatistics, Measurement
from weightscope.metrics import alpha as alpha_family
from weightscope.metrics import bootstrap as family
from weightscope.metrics import rank as rank_family
from weightscope.outcome import Failure, Value
from weightscope.recipe import FitMethod
from weightscope.settings import Settings
from weightscope.spectrum import Spectrum
from weightscope.tensor import TensorRef

Array = npt.NDArray[np.float64]


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def fitted(values: Array, method: FitMethod = "ks") -> PowerLaw:
    fit = fit_power_law(values, method)
    assert isinstance(fit, PowerLaw), fit
    return fit


def interval(
    values: Array, method: FitMethod = "ks", replicates: int = 100, seed: int = 0
) -> tuple[float, float]:
    found = alpha_interval(values, method, replicates, rng(seed))
    assert not isinstance(found, Failure), found
    return found


def naive_fit(values: Array) -> tuple[float, float]:
    """Exponent and distance by trying every distinct value but the largest as xmin."""
    best = (np.inf, np.nan)
    for xmin in np.unique(values)[:-1]:
        tail = np.sort(values[values >= xmin])
        n = len(tail)
        alpha = 1 + n / float(np.sum(np.log(tail / xmin)))
        model = 1 - (tail / xmin) ** (1 - alpha)
        ks = float(np.max(np.abs(model - np.arange(n) / n)))
        best = min(best, (ks, alpha))
    return best[1], best[0]


def test_the_interval_is_that_of_a_naive_resampling() -> None:
    """Every replicate searches xmin again among all of its points."""
    values = np.sort(rng(3).lognormal(0, 1, 60))
    draws = rng(7)
    alphas = [naive_fit(values[draws.integers(60, size=60)])[0] for _ in range(80)]
    expected = np.quantile(alphas, (0.025, 0.975), method="linear")
    np.testing.assert_allclose(interval(values, "ks", 80, 7), expected, rtol=1e-9)
    at_full_xmin = fitted(values).stderr * 1.96
    assert expected[1] - expected[0] > 2 * at_full_xmin


def test_the_plausibility_is_that_of_a_naive_simulation() -> None:
    values = np.sort(rng(5).lognormal(0, 1, 60))
    fit = fitted(values)
    below = values[values < fit.xmin]
    draws, larger = rng(11), 0
    for _ in range(60):
        tail = draws.binomial(60, fit.n_tail / 60)
        synthetic = fit.xmin * np.exp(draws.standard_exponential(tail) / (fit.alpha - 1))
        body = below[draws.integers(len(below), size=60 - tail)]
        larger += naive_fit(np.r_[body, synthetic])[1] >= fit.ks
    assert 0 < larger < 60
    assert plausibility(values, fit, "ks", 60, rng(11)) == larger / 60


def test_the_interval_of_a_long_tail_has_the_asymptotic_width() -> None:
    """Without a search, 1.96 standard errors either way: (alpha - 1)/sqrt(n) each."""
    values = pareto_evals(3, 2000)
    low, high = interval(values, "mid", 4000)
    expected = 2 * 1.959964 * 2 / 1000**0.5
    assert high - low == pytest.approx(expected, rel=0.07)
    assert (low + high) / 2 == pytest.approx(fitted(values, "mid").alpha, rel=0.01)


@pytest.mark.parametrize("exponent", [2.0, 3.0, 4.5])
def test_intervals_cover_the_truth_of_independent_samples(exponent: float) -> None:
    """60 samples of 256 points each; 95 % is meant, 85 % to 100 % is what 60 can show."""
    covered = 0
    for seed in range(60):
        values = np.sort(rng(seed).random(256) ** (-1 / (exponent - 1)))
        low, high = interval(values, replicates=60, seed=seed)
        covered += low <= exponent <= high
    assert covered >= 51


def test_a_true_power_law_is_seldom_ruled_out_and_another_law_always() -> None:
    rejected = 0
    for seed in range(40):
        values = np.sort(rng(seed).random(200) ** (-1 / 1.5))
        p = plausibility(values, fitted(values), "ks", 50, rng(seed))
        assert isinstance(p, float)
        rejected += p < 0.1
    assert rejected <= 9  # 10 % of 40 is 4; 9 is exceeded in less than one case of 100
    for seed in range(3):
        uniform = np.sort(rng(seed).uniform(1, 2, 800))
        assert plausibility(uniform, fitted(uniform, "mid"), "mid", 50, rng(seed)) == 0.0


@pytest.mark.parametrize("method", ["ks", "mid", "peak", "peak-fixed"])
def test_every_search_has_an_interval_around_its_exponent(method: FitMethod) -> None:
    values = np.sort(np.r_[rng(1).gamma(2, 1, 300), 4 * (rng(2).pareto(2.2, 100) + 1)])
    low, high = interval(values, method)
    assert 1 < low < fitted(values, method).alpha < high
    p = plausibility(values, fitted(values, method), method, 30, rng())
    assert isinstance(p, float) and 0 <= p <= 1


def test_small_samples_are_refitted_by_their_own_rule() -> None:
    """Below 20 eigenvalues: the (n - 1) estimator; the naive twin has n for 8 of 8 points."""
    values = pareto_evals(2.5, 8)
    draws, alphas = rng(0), []
    for _ in range(50):
        sample = values[draws.integers(8, size=8)]
        if sample.min() < sample.max():
            alphas.append(1 + 7 / np.sum(np.log(sample / sample.min())))
    np.testing.assert_allclose(
        interval(values, replicates=50), np.quantile(alphas, (0.025, 0.975)), rtol=1e-9
    )


def test_resamples_that_are_mostly_constant_give_no_interval() -> None:
    values = np.r_[np.full(7, 1.0), 2.0]
    found = alpha_interval(values, "ks", 50, rng())
    assert isinstance(found, Failure)
    assert "of 50 resampled spectra" in found.reason


@given(st.integers(-300, 300))
def test_the_interval_does_not_know_the_unit(power: int) -> None:
    values = pareto_evals(2.5, 40)
    here, there = interval(values, replicates=20), interval(values * 2.0**power, replicates=20)
    np.testing.assert_allclose(here, there, rtol=1e-9)


def test_a_very_small_slope_stays_in_range() -> None:
    values = np.geomspace(1e-300, 1, 60)
    fit = fitted(values)
    assert fit.alpha < 1.01
    with np.errstate(over="raise"):
        p = plausibility(values, fit, "ks", 30, rng())
    assert isinstance(p, float) and 0 <= p <= 1


def test_draws_depend_on_seed_name_and_purpose_alone() -> None:
    def first(seed: int, name: str, purpose: str) -> int:
        return int(generator(seed, name, purpose).integers(2**62))

    assert first(0, "a.weight", "interval") == first(0, "a.weight", "interval")
    others = {
        (1, "a.weight", "interval"),
        (-1, "a.weight", "interval"),
        (0, "b.weight", "interval"),
    }
    others |= {(0, "a.weight", "plausibility"), (0, "interval", "a.weight"), (0, "\ud800", "x")}
    draws = [first(*other) for other in others] + [first(0, "a.weight", "interval")]
    assert len(set(draws)) == len(draws)


def measured(singular_values: Array, name: str = "w.weight", sv_floor: float = 0.0) -> Measurement:
    n = len(singular_values)
    matrix = Matrix(name, TensorRef(name, (n, n), "F32"), "whole", "other", "w")
    stats = EntryStatistics(0.0, 1.0, 1.0, 0.0, 0, sv_floor)
    return Measurement(matrix, stats, Spectrum(np.sort(singular_values)[::-1].copy(), n, n))


def row(measurement: Measurement, settings: Settings) -> dict[str, Value | Failure]:
    known: dict[str, Value | Failure] = {}
    for module in (rank_family, alpha_family, family):
        known |= module.evaluate(measurement, settings, known)
    return known


def cells(measurement: Measurement, settings: Settings) -> list[Value | Failure]:
    found = row(measurement, settings)
    return [found.get(column.name) for column in family.COLUMNS]


SPECTRUM = np.sort(rng(9).lognormal(0, 0.7, 120))


def test_the_columns_are_the_figures_of_the_fitted_eigenvalues() -> None:
    settings = Settings(bootstrap=20, seed=4)
    low, high, p = cells(measured(1e-30 * SPECTRUM), settings)
    assert isinstance(low, float) and isinstance(high, float)
    evals = np.sort((SPECTRUM / SPECTRUM.max()) ** 2)
    expected = alpha_interval(evals, "ks", 20, generator(4, "w.weight", "interval"))
    assert not isinstance(expected, Failure)
    np.testing.assert_allclose((low, high), expected, rtol=1e-9)
    rng_p = generator(4, "w.weight", "plausibility")
    assert p == plausibility(evals, fitted(evals), "ks", 20, rng_p)
    assert cells(measured(SPECTRUM), Settings()) == [None, None, None]
    assert cells(measured(SPECTRUM, "v.weight"), settings)[:2] != [low, high]


def test_storage_noise_of_a_deficient_matrix_is_not_resampled() -> None:
    """Half of the values are rounding: the interval is that of the other half."""
    noise = np.linspace(1e-5, 2e-5, 120)
    both = measured(np.r_[SPECTRUM, noise], sv_floor=1e-4)
    alone = measured(SPECTRUM)
    np.testing.assert_allclose(
        np.array(cells(both, Settings(bootstrap=30)), dtype=float),
        np.array(cells(alone, Settings(bootstrap=30)), dtype=float),
        rtol=1e-12,
    )


def test_an_undefined_exponent_has_no_interval() -> None:
    assert cells(measured(np.ones(50)), Settings(bootstrap=20)) == [None] * 3
    assert cells(measured(np.arange(1.0, 6.0)), Settings(bootstrap=20)) == [None] * 3


@pytest.mark.parametrize("law", ["tpl", "etpl"])
def test_other_laws_say_that_they_have_none(law: str) -> None:
    known: dict[str, Value | Failure] = {"alpha": 2.5, "alpha_method": law, "rank": 120}
    found = family.evaluate(measured(SPECTRUM), Settings(bootstrap=20), known)
    assert isinstance(found["alpha_p"], Failure) and "alpha_lo" not in found


@pytest.mark.parametrize("tail", [lambda n: n, lambda n: n // 3])
def test_a_sample_without_and_with_a_body(tail: Callable[[int], int]) -> None:
    """Where the whole sample is the tail there is nothing to resample below it."""
    n = 120
    values = np.sort(np.r_[np.linspace(0.01, 0.9, n - tail(n)), pareto_evals(2.5, tail(n))])
    p = plausibility(values, fitted(values), "ks", 30, rng())
    assert isinstance(p, float) and p > 0.1


def test_the_figures_depend_neither_on_threads_nor_on_company() -> None:
    tensors = {f"{k}.weight": torch.from_numpy(gaussian(60, 40, k)).float() for k in range(5)}
    columns = ["alpha", *(column.name for column in family.COLUMNS)]

    def rows(names: list[str], threads: int) -> dict[str, list[Value]]:
        chosen = {name: tensors[name] for name in names}
        run = weightscope.analyze(
            chosen, bootstrap=20, metrics=("alpha", "bootstrap"), device="cpu", threads=threads
        )
        return {str(row["name"]): [row[column] for column in columns] for row in run.rows}

    everything = rows(sorted(tensors), 1)
    assert rows(sorted(tensors), 2) == everything
    assert rows(["3.weight"], 1)["3.weight"] == everything["3.weight"]
    for _, low, high, p in everything.values():
        assert isinstance(low, float) and isinstance(high, float) and isinstance(p, float)
        assert low < high and 0 <= p <= 1
