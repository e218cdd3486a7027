"""Points of a drawn spectrum against counts, closed forms and independent quadrature."""

from __future__ import annotations

from math import pi, sqrt

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from mpmath import mp
from scipy.integrate import quad

import weightscope
from weightscope import charting
from weightscope.decompositions.shuffled import permutations, shuffling_generator
from weightscope.drawings.esd import DEEPEST, Curve, Esd, esd_of, ranks
from weightscope.laws import marchenko_pastur
from weightscope.run import Run
from weightscope.spectrum import Spectrum


def _spectrum(values: object, N: int = 0) -> Spectrum:
    s = np.sort(np.asarray(values, dtype=np.float64))[::-1]
    return Spectrum(s, N or len(s), len(s))


def _drawn(spectrum: Spectrum, **row: float | str | None) -> Esd:
    found = esd_of(spectrum, row, None)
    assert found is not None
    return found


def _mass(found: Esd) -> float:
    return float(np.sum(10**found.density * np.diff(10**found.edges)))


def _decreasing(curve: Curve) -> bool:
    return bool(np.all(np.diff(curve.x) >= 0) and np.all(np.diff(curve.y) <= 0))


@pytest.mark.parametrize("scale", [1.0, 1e-60, 1e60])
def test_the_histogram_counts_every_eigenvalue_once(scale: float) -> None:
    s = scale * np.random.default_rng(0).lognormal(0, 1.5, 500)
    found = _drawn(_spectrum(s))
    assert found.hidden == 0
    assert _mass(found) == pytest.approx(1, abs=1e-9)
    shares = np.histogram(2 * np.log10(s), found.edges)[0] / 500
    widths = np.diff(10**found.edges)
    assert 10**found.density * widths == pytest.approx(shares, abs=1e-9)


def test_what_cannot_be_told_from_zero_is_counted_and_not_drawn() -> None:
    s = np.concatenate([np.linspace(1, 2, 96), [0.0, 1e-9, 10 ** (-DEEPEST / 2) * 1.9, 0.01]])
    found = _drawn(_spectrum(s))
    assert (found.n, found.hidden) == (100, 3)
    assert _mass(found) == pytest.approx(0.97, abs=1e-9)
    assert _drawn(_spectrum(s), sv_floor=0.5).hidden == 4
    assert 10 ** found.edges[0] == pytest.approx(1e-4)


def test_a_spectrum_without_extent_is_not_drawn() -> None:
    for s in ([0.0, 0.0], [3.0, 3.0, 3.0], [5.0], [2.0, 0.0]):
        assert esd_of(_spectrum(s), {}, None) is None


def test_the_survival_function_is_a_count() -> None:
    s = np.random.default_rng(1).lognormal(0, 1, 1000)
    found = _drawn(_spectrum(s))
    evals = np.sort(s**2)
    for x, y in zip(found.survival.x, found.survival.y, strict=True):
        count = np.count_nonzero(evals >= 10**x * (1 - 1e-12))
        assert 10**y == pytest.approx(count / 1000, abs=1e-12)
    assert 10 ** found.survival.x[-1] == pytest.approx(evals[-1])
    assert found.survival.y[-1] == pytest.approx(-3)


@given(st.integers(1, 200_000))
def test_ranks_reach_from_the_largest_to_the_smallest(n: int) -> None:
    chosen = ranks(n)
    assert chosen[0] == 1
    assert chosen[-1] == n
    assert np.all(np.diff(chosen) > 0)
    assert len(chosen) <= 100
    assert list(chosen[: min(n, 24)]) == list(range(1, min(n, 24) + 1))


def test_the_power_law_is_its_closed_form() -> None:
    s = np.random.default_rng(2).pareto(2.0, 400) + 1
    row = {"alpha": 2.75, "alpha_xmin": 1.5, "alpha_n_tail": 120, "erg_xmin": 0.7}
    found = _drawn(_spectrum(s), **row)
    assert found.tail is not None
    assert found.xmin == pytest.approx(np.log10(1.5), abs=1e-15)
    assert found.erg_cut == pytest.approx(np.log10(0.7), abs=1e-15)
    assert found.tail.density.x[-1] == pytest.approx(2 * np.log10(s.max()), abs=1e-12)
    for x, y in zip(found.tail.density.x, found.tail.density.y, strict=True):
        expected = 0.3 * 1.75 / 1.5 * (10**x / 1.5) ** -2.75
        assert 10**y == pytest.approx(expected, rel=1e-9)
    for x, y in zip(found.tail.survival.x, found.tail.survival.y, strict=True):
        assert 10**y == pytest.approx(0.3 * (10**x / 1.5) ** -1.75, rel=1e-9)
    whole = quad(lambda v: 0.3 * 1.75 / 1.5 * (v / 1.5) ** -2.75, 1.5, np.inf)[0]
    assert found.tail.mass == pytest.approx(whole, rel=1e-9)


@pytest.mark.parametrize(("alpha", "rate"), [(1.8, 0.02), (3.0, 0.5), (1.2, 1e-5)])
def test_a_law_with_cutoff_is_normalised(alpha: float, rate: float) -> None:
    s = np.sqrt(np.geomspace(0.1, 50, 200))
    row = {"alpha": alpha, "alpha_lambda": rate / 2, "alpha_xmin": 2.0, "alpha_n_tail": 50}
    found = _drawn(_spectrum(s), **row).tail
    assert found is not None
    for x, y, above in zip(found.density.x, found.density.y, found.survival.y, strict=True):
        v = 10**x
        norm = 2.0 ** (1 - alpha) * mp.expint(alpha, rate)
        expected = 0.25 * v**-alpha * mp.exp(-rate / 2 * v) / norm
        assert 10**y == pytest.approx(float(expected), rel=2e-5)
        share = 0.25 * v ** (1 - alpha) * mp.expint(alpha, rate / 2 * v) / norm
        assert 10**above == pytest.approx(float(share), rel=1e-4)


@pytest.mark.parametrize("Q", [1.0, 1.5, 4.0, 79.5])
def test_the_density_of_marchenko_and_pastur_is_the_slope_of_their_distribution(Q: float) -> None:
    lower, upper = marchenko_pastur.edges(Q)
    density = lambda x: float(marchenko_pastur.density(np.array([x]), Q)[0])  # noqa: E731
    # x = u^2 takes the singularity of a square matrix out of the integral
    whole = quad(lambda u: 2 * u * density(u * u), sqrt(lower), sqrt(upper), limit=200)[0]
    assert whole == pytest.approx(1, abs=1e-6)
    x = lower + 0.4 * (upper - lower)
    cdf = marchenko_pastur.cdf(np.array([x - 1e-5, x + 1e-5]), Q)
    assert density(x) == pytest.approx(float(cdf[1] - cdf[0]) / 2e-5, rel=1e-5)
    assert density(upper + 0.1) == 0


def test_the_bulk_is_marchenko_pastur_in_units_of_the_weights() -> None:
    rng = np.random.default_rng(3)
    s = np.linalg.svd(0.3 * rng.standard_normal((400, 100)), compute_uv=False)
    spectrum = Spectrum(s, 400, 100)
    found = _drawn(spectrum, mp_sigma=0.3, mp_spikes=5).bulk
    assert found is not None
    assert found.mass == 0.95
    v = 0.3**2 * 400

    def law(x: float) -> float:
        return 4 * sqrt((2.25 - x) * (x - 0.25)) / (2 * pi * x)

    for x, y in zip(found.density.x, found.density.y, strict=True):
        assert 10**y == pytest.approx(0.95 * law(10**x / v) / v, rel=1e-4)
    whole = quad(law, 0.25, 2.25)[0]
    assert whole == pytest.approx(1, abs=1e-6)
    assert 10 ** found.density.x[[0, -1]] == pytest.approx([0.25 * v, 2.25 * v], rel=1e-3)
    assert _decreasing(found.survival)
    # the five spikes are above every point of the bulk
    for x, y in zip(found.survival.x, found.survival.y, strict=True):
        above = quad(law, 10**x / v, 2.25)[0]
        assert 10**y == pytest.approx(0.05 + 0.95 * above, abs=1e-5)


@pytest.fixture(scope="module")
def shuffled_run() -> Run:
    """A matrix with structure and one without a spectrum to draw, with their shuffled entries."""
    rng = np.random.default_rng(4)
    low = rng.standard_normal((96, 4)) @ rng.standard_normal((4, 64))
    weight = low + 0.2 * rng.standard_normal((96, 64))
    tensors = {
        "layers.0.mlp.up_proj.weight": torch.tensor(weight, dtype=torch.float32),
        "layers.1.mlp.up_proj.weight": torch.zeros(96, 64),
    }
    return weightscope.analyze(tensors, device="cpu", shuffled=2, seed=7)


def test_the_shuffled_spectrum_is_that_of_the_same_permutations(shuffled_run: Run) -> None:
    name = "layers.0.mlp.up_proj.weight"
    found = charting.esd(shuffled_run, name)
    assert found is not None
    assert found.shuffled is not None
    again = np.random.default_rng(4)
    low = again.standard_normal((96, 4)) @ again.standard_normal((4, 64))
    weight = torch.tensor(low + 0.2 * again.standard_normal((96, 64)), dtype=torch.float32)
    replicas = [
        np.linalg.svd(np.float64(w.numpy()), compute_uv=False)
        for w in permutations(weight, 2, shuffling_generator(7, name))
    ]
    mean = np.exp(np.mean(np.log(replicas), axis=0))
    chosen = ranks(64)[::-1]
    assert 10**found.shuffled.survival.y * 64 == pytest.approx(chosen, rel=1e-12)
    assert 10 ** (found.shuffled.survival.x / 2) == pytest.approx(mean[chosen - 1], rel=1e-5)
    x, y = found.shuffled.density.x, found.shuffled.density.y
    width = x[1] - x[0]
    bins = 10 ** (x + width / 2) - 10 ** (x - width / 2)
    assert np.sum(10**y * bins) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("N", [512, 700])
def test_the_density_of_shuffled_entries_is_right_in_every_bin(N: int) -> None:
    evals = marchenko_pastur.finite_quantiles(N, 512)[::-1]
    chosen = ranks(512)
    details = {"ranks": chosen.tolist(), "singular_values": np.sqrt(evals[chosen - 1]).tolist()}
    found = esd_of(_spectrum(np.sqrt(evals), N), {}, details)
    assert found is not None
    assert found.shuffled is not None
    x, y = found.shuffled.density.x, found.shuffled.density.y
    half = (x[1] - x[0]) / 2
    edges = np.append(x - half, x[-1] + half)
    counts = np.histogram(np.log10(evals), edges + np.r_[-1e-9, np.zeros(len(x) - 1), 1e-9])[0]
    drawn = 512 * 10**y * (10 ** edges[1:] - 10 ** edges[:-1])
    assert drawn.sum() == pytest.approx(512, abs=1e-6)
    # between the ranks that are kept an eigenvalue may land in the next bin, and no further
    assert np.abs(np.cumsum(drawn) - np.cumsum(counts)).max() < 2


def test_a_run_draws_what_its_row_says(shuffled_run: Run) -> None:
    found = charting.esds(shuffled_run)
    assert list(found) == ["layers.0.mlp.up_proj.weight"]
    (drawn,) = found.values()
    row = shuffled_run.rows[0]
    assert drawn.xmin == pytest.approx(np.log10(row["alpha_xmin"]), abs=1e-12)
    assert drawn.erg_cut == pytest.approx(np.log10(row["erg_xmin"]), abs=1e-12)
    assert drawn.tail is not None
    assert drawn.tail.mass == pytest.approx(row["alpha_n_tail"] / 64)
    with pytest.raises(KeyError):
        charting.esd(shuffled_run, "nothing")


def test_the_spectrum_follows_the_units_of_its_row() -> None:
    conv = torch.tensor(np.random.default_rng(5).standard_normal((32, 16, 3, 3)))
    tensors = {"layer1.0.conv1.weight": conv.float()}
    run = weightscope.analyze(tensors, device="cpu", compat="weightwatcher")
    found = charting.esd(run, "layer1.0.conv1.weight")
    assert found is not None
    largest = float(run.rows[0]["spectral_norm"] or 0)
    assert found.edges[-1] == pytest.approx(2 * np.log10(largest), abs=1e-12)
    assert largest == pytest.approx(run.spectra()["layer1.0.conv1.weight"].largest / sqrt(2))


def test_every_matrix_of_the_zoo_can_be_drawn(zoo_run: Run) -> None:
    for name, found in charting.esds(zoo_run).items():
        spectrum = zoo_run.spectrum(name)
        assert found.n == len(spectrum.singular_values)
        # where the densities themselves are within the range of float64
        if abs(found.edges[0]) < 100:
            assert _mass(found) == pytest.approx(1 - found.hidden / found.n, abs=1e-9), name
        assert _decreasing(found.survival), name
        for law in (found.tail, found.bulk):
            if law is not None:
                assert np.isfinite(law.density.y).all(), name
                assert _decreasing(law.survival), name
