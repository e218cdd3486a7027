"""The second minimum of the KS distance against its definition, candidate by candidate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from zoo import pareto_evals

from weightscope.laws.power_law import PowerLaw, fit_power_law, fitted_evals, second_minimum
from weightscope.matrix import Matrix
from weightscope.measurement import EntryStatistics, Measurement
from weightscope.metrics import alpha as alpha_family
from weightscope.metrics import rank as rank_family
from weightscope.metrics import second as family
from weightscope.outcome import Failure, Value
from weightscope.recipe import EvalFloor, FitMethod
from weightscope.settings import Settings
from weightscope.spectrum import Spectrum
from weightscope.tensor import TensorRef

Array = npt.NDArray[np.float64]
WITHIN = 0.005


def curve(values: Array) -> list[tuple[float, float, float]]:
    """(xmin, alpha, distance) of every distinct value but the largest, ascending."""
    found = []
    for xmin in np.unique(values)[:-1]:
        tail = np.sort(values[values >= xmin])
        n = len(tail)
        total = float(np.sum(np.log(tail / xmin)))
        if total > 1e-12 * n:
            model = 1 - (tail / xmin) ** (-n / total)
            ks = float(np.max(np.abs(model - np.arange(n) / n)))
            found.append((float(xmin), 1 + n / total, ks))
    return found


def naive_second(values: Array) -> tuple[float, float, float] | None:
    """The best candidate that the best of all is reached from only over a ridge."""
    found = curve(values)
    ks = [point[2] for point in found]
    best = ks.index(min(ks))
    others = []
    for k, distance in enumerate(ks):
        ridge = max(ks[min(k, best) : max(k, best) + 1])
        if distance <= ks[best] + WITHIN and ridge >= distance + WITHIN:
            others.append((distance, k))
    return found[min(others)[1]] if others else None


def agree(second: PowerLaw | None, expected: tuple[float, float, float] | None) -> None:
    if expected is None:
        assert second is None
        return
    assert second is not None
    assert (second.xmin, second.alpha, second.ks) == pytest.approx(expected, rel=1e-9)
    assert second.stderr == pytest.approx((second.alpha - 1) / second.n_tail**0.5)


@given(st.integers(0, 10**6), st.sampled_from(["lognormal", "pareto", "gamma", "bulk", "coarse"]))
def test_it_is_what_the_definition_says(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 300))
    values = {
        "lognormal": lambda: rng.lognormal(0, rng.uniform(0.1, 4), n),
        "pareto": lambda: rng.pareto(rng.uniform(0.3, 6), n) + 1,
        "gamma": lambda: rng.gamma(rng.uniform(0.2, 4), 1, n),
        "bulk": lambda: np.linalg.svd(rng.standard_normal((n // 4 + 20, 60)))[1] ** 2,
        "coarse": lambda: np.ceil(4 * rng.gamma(2, 1, n)) / 4,
    }[kind]()
    agree(second_minimum(values), naive_second(values))


@pytest.mark.parametrize("n", [1500, 4096])
def test_long_samples_are_searched_by_the_same_definition(n: int) -> None:
    rng = np.random.default_rng(n)
    samples = (rng.lognormal(0, 1.5, n), rng.random(n) ** (-1 / 2), rng.gamma(2, 1, n))
    found = [naive_second(values) for values in samples]
    assert any(found)
    for values, expected in zip(samples, found, strict=True):
        agree(second_minimum(values), expected)


def test_two_tails_that_fit_equally_well_are_both_reported() -> None:
    """The lower half of a power law is moved until the whole and the half fit equally well."""
    whole = pareto_evals(3, 100)

    def spectrum(shift: float) -> Array:
        return np.r_[shift * whole[:50], whole[50:]]

    def tail(shift: float) -> int:
        fit = fit_power_law(spectrum(shift))
        assert isinstance(fit, PowerLaw)
        return fit.n_tail

    low, high = 0.1, 1.0
    assert (tail(low), tail(high)) == (50, 100)
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle) == 50 else (low, middle)
    below, above = second_minimum(spectrum(low)), second_minimum(spectrum(high))
    assert below is not None and above is not None
    assert below.n_tail > 50 and above.n_tail == 50
    assert above.alpha == pytest.approx(curve(spectrum(high))[50][1], rel=1e-12)
    assert below.alpha == pytest.approx(curve(spectrum(low))[100 - below.n_tail][1], rel=1e-12)
    assert below.ks == pytest.approx(above.ks, abs=1e-9)


def test_a_power_law_without_scatter_has_one_minimum() -> None:
    assert second_minimum(pareto_evals(3, 500)) is None


@given(st.integers(-250, 250), st.integers(0, 50))
def test_the_unit_moves_xmin_alone(power: int, seed: int) -> None:
    values = np.random.default_rng(seed).lognormal(0, 1, 60)
    here, there = second_minimum(values), second_minimum(values * 2.0**power)
    assert (here is None) == (there is None)
    if here is not None and there is not None:
        assert there.xmin == here.xmin * 2.0**power
        assert there.alpha == pytest.approx(here.alpha, rel=1e-9)


@pytest.mark.parametrize(("method", "n"), [("mid", 200), ("ks", 19)])
def test_where_nothing_is_searched_there_is_no_second(method: FitMethod, n: int) -> None:
    for seed in range(20):
        assert second_minimum(np.random.default_rng(seed).lognormal(0, 1, n), method) is None


SEED = next(s for s in range(50) if naive_second(np.random.default_rng(s).lognormal(0, 1.2, 200)))


def test_the_floor_is_the_fits() -> None:
    values = np.random.default_rng(3).lognormal(0, 1.2, 200)
    agree(second_minimum(values, floor=0.5), naive_second(values[values > 0.5]))


def measured(singular_values: Array, sv_floor: float = 0.0) -> Measurement:
    n = len(singular_values)
    matrix = Matrix("w", TensorRef("w", (n, n), "F32"), "whole", "other", "w")
    stats = EntryStatistics(0.0, 1.0, 1.0, 0.0, 0, sv_floor)
    return Measurement(matrix, stats, Spectrum(np.sort(singular_values)[::-1].copy(), n, n))


def cells(measurement: Measurement, **settings: str) -> list[Value | Failure]:
    chosen = Settings(**settings)  # type: ignore[arg-type]
    known: dict[str, Value | Failure] = {}
    for module in (rank_family, alpha_family, family):
        known |= module.evaluate(measurement, chosen, known)
    return [known.get(column.name) for column in family.COLUMNS]


def test_the_columns_of_the_real_model(minilm: Path) -> None:
    """Every matrix, by the definition; about half of them have a second minimum."""
    present = 0
    for tensor in load_file(minilm / "model.safetensors").values():
        if tensor.ndim == 2 and 8 <= len(tensor) < 2000:
            s = np.linalg.svd(tensor.astype(np.float64), compute_uv=False)
            expected = naive_second(s**2)
            alpha, xmin = cells(measured(s))
            present += expected is not None
            if expected is None:
                assert (alpha, xmin) == (None, None)
            else:
                assert (xmin, alpha) == pytest.approx(expected[:2], rel=1e-6)
    assert 10 <= present <= 30


def test_the_real_pooler_could_as_well_be_8_as_12(minilm: Path) -> None:
    """The untrained layer: its exponent hangs on xmin alone."""
    tensor = load_file(minilm / "model.safetensors")["pooler.dense.weight"]
    s = np.linalg.svd(tensor.astype(np.float64), compute_uv=False)
    fit = fit_power_law(s**2)
    assert isinstance(fit, PowerLaw)
    alpha, _ = cells(measured(s))
    assert isinstance(alpha, float)
    assert abs(alpha - fit.alpha) > 3


def test_storage_noise_is_left_out_as_in_the_fit() -> None:
    s = np.sqrt(np.random.default_rng(SEED).lognormal(0, 1.2, 200))
    noise = np.linspace(1e-5, 2e-5, 200)
    alone, both = cells(measured(s)), cells(measured(np.r_[s, noise], sv_floor=1e-4))
    assert alone == both != [None, None]


def test_undefined_exponents_and_other_searches_have_none() -> None:
    assert cells(measured(np.ones(50))) == [None, None]
    s = np.sqrt(np.random.default_rng(SEED).lognormal(0, 1.2, 200))
    assert cells(measured(s), xmin="mid") == [None, None]
    assert cells(measured(s)) != [None, None]


def test_the_fitted_eigenvalues_are_those_above_the_floor() -> None:
    spectrum = Spectrum(np.array([4.0, 2.0, 1.0, 1e-3, 0.0]), 8, 5)
    relative = np.array([1e-3, 1.0, 2.0, 4.0]) ** 2 / 16
    np.testing.assert_allclose(fitted_evals(spectrum, EvalFloor(), 5), relative)
    np.testing.assert_allclose(fitted_evals(spectrum, EvalFloor(), 3), relative[1:])
    np.testing.assert_allclose(fitted_evals(spectrum, EvalFloor("abs", 1.0), 3), relative[2:])
    np.testing.assert_allclose(fitted_evals(spectrum, EvalFloor("rel", 0.25), 5), relative[3:])
