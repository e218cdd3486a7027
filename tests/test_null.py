"""What noise gives, against dense Gaussian matrices, closed forms and metrics.md 3.7 and 8.6."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from math import log, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import airy
from zoo import orthogonal, with_singular_values

from weightscope import analyze
from weightscope.decompositions.farms import window_spectra, windows_for
from weightscope.laws import marchenko_pastur
from weightscope.laws.noise import expected, tabulated
from weightscope.laws.noise.expected import Shape
from weightscope.laws.noise.simulation import small_spectra
from weightscope.laws.noise.tabulated import Exponent, noise_distance
from weightscope.laws.power_law import PowerLaw, fit_power_law
from weightscope.metrics.erg import crossing
from weightscope.recipe import EvalFloor, FitMethod, farms_preset
from weightscope.spectrum import Spectrum

if TYPE_CHECKING:
    from weightscope.run import Run

Array = npt.NDArray[np.float64]
Entries = Callable[[np.random.Generator, tuple[int, ...]], Array]


def normal(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return rng.standard_normal(size)


def uniform(rng: np.random.Generator, size: tuple[int, ...]) -> Array:
    return rng.uniform(-1, 1, size)


def dense_spectra(shape: Shape, draws: int, seed: int, entries: Entries = normal) -> list[Spectrum]:
    """Spectra of dense matrices by LAPACK's SVD: no code shared with what is tested."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(draws):
        slices = entries(rng, (shape.slices, shape.N, shape.M))
        values = np.linalg.svd(slices, compute_uv=False)
        found.append(Spectrum(np.sort(values, axis=None)[::-1], shape.N, shape.M, shape.slices))
    return found


def shares(shape: Shape, draws: int, seed: int, entries: Entries = normal) -> Array:
    """noise_p of dense matrices."""
    found = [noise_distance(s, shape.count) for s in dense_spectra(shape, draws, seed, entries)]
    return np.array([pair[1] for pair in found if pair is not None])


def binomial(share: float, draws: int, sigmas: float = 3.3) -> float:
    """Tolerance of a rate: sampling, and 0.015 for the table's own draws."""
    return sigmas * sqrt(share * (1 - share) / draws) + 0.015


@given(st.floats(1, 1e4), st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_quantiles_invert_the_distribution(Q: float, levels: list[float]) -> None:
    points = marchenko_pastur.quantiles(np.array(levels), Q)
    low, high = marchenko_pastur.edges(Q)
    assert np.all((points >= low * (1 - 1e-12)) & (points <= high * (1 + 1e-12)))
    assert marchenko_pastur.cdf(points, Q) == pytest.approx(np.array(levels), abs=2e-7)


@pytest.mark.parametrize("Q", [1.0, 1.001, 1.5, 4.0, 80.0])
def test_quantiles_have_the_moments_of_the_law(Q: float) -> None:
    x = marchenko_pastur.quantiles((np.arange(20_000) + 0.5) / 20_000, Q)
    assert x.mean() == pytest.approx(1, abs=1e-5)
    assert x.var() == pytest.approx(1 / Q, rel=1e-4)


@pytest.mark.parametrize("upper", [0.5, 0.3, 0.22, 0.1, 0.07, 0.05, 0.001])
def test_tracy_widom_quantile_is_that_of_the_fredholm_determinant(upper: float) -> None:
    s = marchenko_pastur.tracy_widom_quantile(upper)
    nodes, weights = np.polynomial.legendre.leggauss(60)
    x, w = s + 8 * (nodes + 1), np.sqrt(8 * weights)
    kernel = airy((x[:, None] + x) / 2)[0] / 2
    assert 1 - np.linalg.det(np.eye(60) - w[:, None] * kernel * w) == pytest.approx(
        upper, rel=0.004
    )


@pytest.mark.parametrize(
    "shape", [Shape(24, 24), Shape(25, 24), Shape(48, 24), Shape(400, 24), Shape(12, 12, 9)]
)
def test_expected_evals_are_the_steps_of_the_mean_distribution(shape: Shape) -> None:
    # the Marchenko-Pastur law alone is off by a quarter of an eigenvalue
    expected_points = marchenko_pastur.finite_quantiles(shape.N, shape.M, shape.slices) * shape.N
    draws = 3000
    spectra = dense_spectra(Shape(shape.N, shape.M), draws, seed=1)
    pooled = np.sort(np.concatenate([s.evals for s in spectra]))
    below = np.searchsorted(pooled, expected_points) / draws
    middles = (np.arange(shape.count) + 0.5) / shape.slices
    off = np.abs(below - middles)
    inside = (middles > 0.4) & (middles < shape.M - 0.4)
    assert off[inside].max() < 0.06
    assert off.max() < 0.2  # of pooled slices, the outermost lie beyond the edges


@pytest.mark.parametrize(
    ("Q", "share", "cut"),
    [
        (1.0, 0.7315, 0.1809),
        (1.25, 0.7625, 0.2247),
        (1.5, 0.7845, 0.2591),
        (2.0, 0.8150, 0.3113),
        (2.69, 0.8410, 0.3644),
        (4.0, 0.8700, 0.4337),
        (7.8, 0.9075, 0.5422),
    ],
)
def test_erg_null_is_that_of_the_ideal_spectrum(Q: float, share: float, cut: float) -> None:
    evals = expected.expected_evals(Shape(round(2000 * Q), 2000))
    found = crossing(evals)
    assert found.n_tail / 2000 == pytest.approx(share, abs=1e-3)
    assert found.xmin * found.scale == pytest.approx(cut, abs=1.5e-3)


@pytest.mark.parametrize(
    ("Q", "alpha"),
    [(1.0, 2.12), (1.25, 2.30), (1.5, 2.45), (2.0, 2.71), (2.69, 3.00), (4.0, 3.46), (7.8, 4.43)],
)
def test_alpha_null_of_the_mid_fit_is_that_of_the_ideal_spectrum(Q: float, alpha: float) -> None:
    found = tabulated.exponent(Shape(round(2000 * Q), 2000), "mid")
    assert isinstance(found, Exponent)
    assert found.median == pytest.approx(alpha, abs=0.008)
    assert found.low < found.median < found.high < found.low + 0.05


@pytest.mark.parametrize(
    ("Q", "share"), [(1.0, 0.250), (1.25, 0.279), (1.5, 0.303), (2.0, 0.343), (4.0, 0.444)]
)
def test_stable_rank_null_tends_to_the_edge_of_the_bulk(Q: float, share: float) -> None:
    M = 100_000
    assert expected.stable_rank(Shape(round(M * Q), M)) / M == pytest.approx(share, abs=8e-4)


def test_entropy_null_has_its_closed_form_in_the_limit() -> None:
    found = expected.entropy(Shape(16384, 4096))
    assert found == pytest.approx(1 - 1 / (8 * log(4096)), abs=1e-5)


@pytest.mark.parametrize(
    "shape", [Shape(16, 16), Shape(80, 20), Shape(65, 64), Shape(120, 60), Shape(12, 10, 9)]
)
def test_closed_forms_are_the_medians_of_dense_draws(shape: Shape) -> None:
    evals = np.array([s.evals for s in dense_spectra(shape, 1000, seed=2)])
    total = evals.sum(axis=1)
    p = evals / total[:, None]
    entropy = -(p * np.log(p)).sum(axis=1) / log(shape.count)
    assert expected.stable_rank(shape) == pytest.approx(np.median(total / evals[:, 0]), rel=0.02)
    assert expected.entropy(shape) == pytest.approx(np.mean(entropy), abs=0.0012)
    counts = [crossing(e).n_tail for e in evals]
    assert abs(crossing(expected.expected_evals(shape)).n_tail - np.median(counts)) <= 1


@pytest.mark.parametrize("M", [64, 300, 512, 2048, 4096, 8192])
def test_condition_number_null_of_square_noise_is_edelmans(M: int) -> None:
    # kappa/M has the distribution exp(-2/x - 2/x^2); its median is 3.67, its geometric mean 4.65
    y = (sqrt(1 + 2 * log(2)) - 1) / 2
    assert tabulated.condition_number(Shape(M, M)) == pytest.approx(M / y, rel=0.04)


@pytest.mark.parametrize("M", [64, 512, 3000])
def test_condition_number_null_one_row_from_square_is_exact(M: int) -> None:
    # M l_M is exponential there (Edelman 1988), so the median of s_M^2 is 2 ln 2 / M
    median = (sqrt(M + 1) + sqrt(M)) / sqrt(2 * log(2) / M)
    assert tabulated.condition_number(Shape(M + 1, M)) == pytest.approx(median, rel=0.04)


@pytest.mark.parametrize("Q", [2.0, 4.0, 50.0])
def test_condition_number_null_is_the_ratio_of_the_edges_far_from_square(Q: float) -> None:
    M = 4096
    root = sqrt(round(Q * M) / M)
    found = tabulated.condition_number(Shape(round(Q * M), M))
    assert found == pytest.approx((root + 1) / (root - 1), rel=0.01)


@pytest.mark.parametrize(
    "shape", [Shape(30, 27), Shape(40, 20), Shape(9, 7, 9), Shape(64, 3, 49), Shape(12, 12, 4)]
)
def test_condition_number_null_is_the_median_of_dense_draws(shape: Shape) -> None:
    kappa = [s.largest / s.smallest for s in dense_spectra(shape, 1500, seed=3)]
    low, middle, high = np.quantile(kappa, [0.45, 0.5, 0.55])
    tolerance = 0.01 * middle + (high - low) / 2
    assert tabulated.condition_number(shape) == pytest.approx(middle, abs=tolerance)


COVERED: list[tuple[Shape, FitMethod]] = [
    (Shape(50, 41), "ks"),
    (Shape(300, 90), "ks"),
    (Shape(1000, 33), "ks"),
    (Shape(14, 12), "ks"),  # below 20 eigenvalues: another estimator
    (Shape(20, 17, 9), "ks"),
    (Shape(50, 41), "mid"),
    (Shape(100, 20, 9), "mid"),
    (Shape(14, 12), "mid"),
]


@pytest.mark.parametrize(("shape", "method"), COVERED)
def test_alpha_null_covers_dense_noise(shape: Shape, method: FitMethod) -> None:
    found = tabulated.exponent(shape, method)
    assert isinstance(found, Exponent)
    fits = [fit_power_law(s.relative_evals, method) for s in dense_spectra(shape, 500, seed=4)]
    alphas = np.array([fit.alpha for fit in fits if isinstance(fit, PowerLaw)])
    assert np.mean(alphas < found.low) == pytest.approx(0.025, abs=0.03)
    assert np.mean(alphas > found.high) == pytest.approx(0.025, abs=0.03)
    assert np.mean(alphas < found.median) == pytest.approx(0.5, abs=0.1)


RATES = [
    Shape(8, 8),
    Shape(100, 8),
    Shape(21, 20),
    Shape(26, 23),
    Shape(48, 48),
    Shape(71, 68),
    Shape(150, 50),
    Shape(2000, 30),
    Shape(16, 16, 9),
    Shape(50, 12, 9),
    Shape(64, 3, 49),
    Shape(20, 6, 25),
]


@pytest.mark.parametrize("shape", RATES)
def test_dense_noise_reads_as_noise_in_95_cases_of_100(shape: Shape) -> None:
    found = shares(shape, 700, seed=5)
    for level in (0.05, 0.3, 0.8):
        assert np.mean(found < level) == pytest.approx(level, abs=binomial(level, len(found)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape",
    [
        Shape(384, 384),
        Shape(385, 384),
        Shape(1536, 384),
        Shape(512, 500),
        Shape(300, 256),
        Shape(64, 64, 9),
        Shape(128, 96, 25),
        Shape(768, 3, 196),
    ],
)
def test_dense_noise_of_model_shapes_reads_as_noise(shape: Shape) -> None:
    found = shares(shape, 300, seed=6)
    for level in (0.05, 0.3, 0.8):
        assert np.mean(found < level) == pytest.approx(level, abs=binomial(level, len(found)))


@pytest.mark.parametrize(
    ("shape", "least"), [(Shape(48, 48), 0.88), (Shape(120, 40), 0.88), (Shape(32, 16, 9), 0.6)]
)
def test_uniform_entries_read_as_noise_in_most_cases(shape: Shape, least: float) -> None:
    assert np.mean(shares(shape, 300, seed=7, entries=uniform) >= 0.05) > least


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_noise_stored_in_any_precision_reads_as_noise(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(8)
    tensors = {
        f"{i}.weight": (0.02 * torch.randn(96, 96, generator=generator)).to(dtype)
        for i in range(250)
    }
    rows = analyze(tensors, device="cpu", metrics="noise").rows
    assert np.mean([row["noise_p"] < 0.05 for row in rows]) <= 0.05 + binomial(0.05, 250)


def test_of_the_real_model_only_the_layer_that_was_never_trained_is_random(
    minilm_run: Run,
) -> None:
    rows = [row for row in minilm_run.rows if row["noise_p"] is not None]
    assert len(rows) > 30
    assert [row["name"] for row in rows if row["noise_p"] >= 0.05] == ["pooler.dense.weight"]
    # every other is far outside, not just beyond the level
    assert min(row["noise_w1"] for row in rows if row["noise_p"] < 0.05) > 0.08
    assert {row["noise_p"] for row in rows if row["noise_p"] < 0.05} == {tabulated.LEAST_SHARE}


def test_a_trained_layer_has_fewer_directions_than_its_null(minilm_run: Run) -> None:
    for row in minilm_run.rows:
        if row["role"] == "attn_q":
            assert row["stable_rank"] < row["stable_rank_null"]
            assert row["erg_n_tail"] < row["erg_null"]
            assert row["entropy"] < row["entropy_null"]


def test_rank_deficient_noise_is_not_noise() -> None:
    rng = np.random.default_rng(9)
    thin = rng.standard_normal((64, 50)) @ rng.standard_normal((50, 64))
    tensors = {
        "product.weight": torch.from_numpy(thin).float(),
        "few.weight": torch.from_numpy(thin[:, :4] @ rng.standard_normal((4, 64))).float(),
        "padded.weight": torch.nn.functional.pad(torch.from_numpy(thin[:, :50]), (0, 14)),
        "orthogonal.weight": torch.from_numpy(orthogonal(64)).float(),
    }
    rows = {row["name"]: row for row in analyze(tensors, device="cpu").rows}
    assert all(row["noise_p"] == tabulated.LEAST_SHARE for row in rows.values())
    assert rows["few.weight"]["noise_w1"] is None
    assert "noise_w1: only 4 singular values" in str(rows["few.weight"]["reason"])


def test_a_spike_moves_the_distance_by_its_logarithm() -> None:
    shape = Shape(80, 40)
    evals = expected.expected_evals(shape).copy()
    plain = Spectrum(np.sqrt(evals), 80, 40)
    found = noise_distance(plain, 40)
    assert found is not None
    assert found == (pytest.approx(0, abs=1e-12), 1.0)
    evals[0] *= 100
    evals /= evals.mean()
    moved = noise_distance(Spectrum(np.sqrt(evals), 80, 40), 40)
    assert moved is not None
    shift = log(evals[1] / expected.expected_evals(shape)[1])
    assert moved[0] == pytest.approx((abs(log(100) + shift) + 39 * abs(shift)) / 40, rel=1e-12)


@given(st.integers(-300, 300), st.integers(0, 20))
def test_scale_changes_nothing(power: int, seed: int) -> None:
    values = np.linalg.svd(normal(np.random.default_rng(seed), (20, 12)), compute_uv=False)
    spectra = [Spectrum(values * factor, 20, 12) for factor in (1.0, 2.0**power)]
    assert noise_distance(spectra[0], 12) == noise_distance(spectra[1], 12)


def test_all_nulls_are_in_the_row_and_the_same_for_the_transpose() -> None:
    weight = torch.randn(160, 70, generator=torch.Generator().manual_seed(10))
    run = analyze({"a.weight": weight, "b.weight": weight.T.contiguous()}, device="cpu")
    names = ["alpha_null", "alpha_null_lo", "alpha_null_hi", "alpha_farms_null", "erg_null"]
    names += ["entropy_null", "stable_rank_null", "condition_number_null", "noise_w1", "noise_p"]
    first, second = ([row[name] for name in names] for row in run.rows)
    assert all(isinstance(value, float | int) for value in first)
    assert first == pytest.approx(second, rel=1e-9)


def test_fits_without_a_table_say_so() -> None:
    weight = {"a.weight": torch.randn(64, 32, generator=torch.Generator().manual_seed(11))}
    row = analyze(weight, device="cpu", xmin="peak").rows[0]
    assert row["alpha_null"] is None and row["alpha_null_hi"] is None
    assert "alpha_null: noise is tabulated for the ks and mid fits only" in str(row["reason"])


@pytest.mark.parametrize("shape", [(7, 900), (1, 5), (4, 4)])
def test_too_few_eigenvalues_have_no_null(shape: tuple[int, int]) -> None:
    row = analyze({"a.weight": torch.randn(shape)}, device="cpu", metrics="null,noise").rows[0]
    assert all(row[name] is None for name in ("alpha_null", "erg_null", "noise_w1", "noise_p"))


def test_zero_and_nonfinite_matrices_have_no_null() -> None:
    tensors = {"a.weight": torch.zeros(20, 20), "b.weight": torch.full((20, 20), torch.nan)}
    for row in analyze(tensors, device="cpu").rows:
        assert row["alpha_null"] is None and row["noise_p"] is None


@pytest.mark.slow
@pytest.mark.parametrize("side", [(128, 128), (100, 400)])
def test_overlapping_windows_have_the_exponent_of_independent_ones(side: tuple[int, int]) -> None:
    windows = windows_for(*side, farms_preset("auto", EvalFloor()))
    assert windows is not None
    null = tabulated.exponent(Shape(windows.rows, windows.rows, windows.count), "ks")
    assert isinstance(null, Exponent)
    rng = np.random.default_rng(12)
    alphas = []
    for _ in range(400):
        evals = window_spectra([torch.from_numpy(normal(rng, side))], windows).ravel()
        fit = fit_power_law(evals / evals.max())
        assert isinstance(fit, PowerLaw)
        alphas.append(fit.alpha)
    assert np.median(alphas) == pytest.approx(null.median, rel=0.2)


def test_small_spectra_have_the_moments_of_dense_ones() -> None:
    # E tr W^T W = N M; E tr (W^T W)^2 = N M (N + M + 1)
    evals = small_spectra(Shape(7, 5, 2), 20_000, np.random.default_rng(13))
    assert evals.shape == (20_000, 10)
    assert evals.sum(axis=1).mean() == pytest.approx(2 * 35, rel=0.005)
    assert np.square(evals).sum(axis=1).mean() == pytest.approx(2 * 35 * 13, rel=0.02)


def test_the_table_is_what_its_script_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent / "benchmarks"))
    script = import_module("noise_table")
    shape, rng = Shape(48, 16), script.generator(48, 16)
    found = script.simulate(shape, script.single_spectra(shape, script.DRAWS[16], rng), rng)
    table = tabulated._table()
    node = list(table["M"]).index(16), list(table["excess"]).index(32), 0
    assert table["distance"][node] == pytest.approx(found.distance, rel=1e-5)
    assert table["log_condition"][node] == pytest.approx(found.log_condition, abs=1e-5)


@pytest.mark.parametrize("rank", [60, 63])
def test_what_storage_hides_is_left_out_on_both_sides(rank: int) -> None:
    # values below the floor could be anything: they are not looked at
    shape = Shape(64, 64)
    evals = expected.expected_evals(shape).copy()
    evals[rank:] *= 1e-6
    matrix = with_singular_values(np.sqrt(evals), 64, 64)
    values = np.linalg.svd(matrix, compute_uv=False)
    found = noise_distance(Spectrum(values, 64, 64), rank)
    assert found is not None and found[0] < 1e-3 and found[1] > 0.9
