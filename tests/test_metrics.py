"""Every metric against closed forms, hand examples and independent arithmetic."""

from __future__ import annotations

from itertools import pairwise
from math import fsum, log, log10, pi, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import airy
from zoo import (
    Array,
    gaussian,
    low_rank,
    orthogonal,
    pareto_evals,
    power_law,
    stored,
    with_singular_values,
)

import weightscope
from weightscope.decompositions.entries import entry_statistics, scale_for, storage_floor
from weightscope.decompositions.full import EVAL_ERROR, SMALL, full_spectrum, gram_of
from weightscope.evaluate import Row, evaluate
from weightscope.laws import marchenko_pastur
from weightscope.laws.power_law import PowerLaw, fit_power_law
from weightscope.matrix import Matrix
from weightscope.measurement import EntryStatistics, Measurement
from weightscope.metrics import erg, welore
from weightscope.settings import FAMILIES, Settings
from weightscope.spectrum import Spectrum
from weightscope.tensor import DTYPES, TensorRef

WITHOUT_FARMS = tuple(name for name in FAMILIES if name != "farms")
CODES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def row_of(matrix: Array, dtype: str = "float64", **settings: Any) -> Row:
    """The row of one matrix through the whole pipeline."""
    options = {"metrics": WITHOUT_FARMS, "device": "cpu", **settings}
    return weightscope.analyze({"w.weight": stored(matrix, dtype)}, **options).rows[0]


def row_of_evals(evals: Array, N: int, M: int | None = None, sv_floor: float = 0.0) -> Row:
    """The row of a spectrum, descending, without a matrix."""
    n = len(evals) if M is None else M
    return row_of_spectrum(Spectrum(np.sqrt(evals), N, n), sv_floor)


def row_of_spectrum(
    spectrum: Spectrum, sv_floor: float = 0.0, metrics: tuple[str, ...] = WITHOUT_FARMS
) -> Row:
    ref = TensorRef("w", (spectrum.N, spectrum.M), "F64")
    stats = EntryStatistics(0.0, 1.0, 1.0, 0.0, 0, sv_floor)
    measured = Measurement(Matrix("w", ref, "whole", "other", "w"), stats, spectrum)
    return evaluate(measured, Settings(metrics=metrics)).row


def number(row: Row, name: str) -> float:
    value = row[name]
    assert isinstance(value, int | float), (name, value, row["reason"])
    return float(value)


def marchenko_pastur_quantiles(n: int, Q: float) -> Array:
    """(j + 1/2)/n quantiles of the law for unit variance, by quadrature of its density."""
    low, high = (1 - Q**-0.5) ** 2, (1 + Q**-0.5) ** 2
    t = np.linspace(1e-9, pi / 2, 200_001)
    x = low + (high - low) * np.sin(t) ** 2
    density = Q / pi * ((high - low) * np.sin(t) * np.cos(t)) ** 2 / x
    mass = np.r_[0, np.cumsum((density[1:] + density[:-1]) / 2 * np.diff(t))]
    assert mass[-1] == pytest.approx(1, abs=1e-8)
    return np.asarray(np.interp((np.arange(n) + 0.5) / n, mass, x))


# ------------------------------------------------------------------ the hand example 1, 2, 4, 8


def test_the_hand_example() -> None:
    """W = diag(1, sqrt 2, 2, sqrt 8): every figure that needs no power law."""
    row = row_of(np.diag(np.sqrt([1.0, 2.0, 4.0, 8.0])))
    expected = {
        "frobenius_norm": sqrt(15),
        "log_norm": 1.1760913,
        "spectral_norm": sqrt(8),
        "log_spectral_norm": 0.9030900,
        "nuclear_norm": 7.2426407,
        "stable_rank": 1.875,
        "participation_ratio": 225 / 85,
        "effective_rank": 3.724265,
        "effective_rank_vn": 3.117142,
        "entropy": 0.820112,
        "condition_number": 2.828427,
        "erg_n_tail": 4,
        "erg_xmin": 1.0,
        "rank": 4,
    }
    for name, value in expected.items():
        assert number(row, name) == pytest.approx(value, rel=1e-6), name
    assert row["status"] == "too_few"
    assert row["alpha"] is None and row["erg_gap"] is None


def test_the_erg_sums_of_the_hand_example() -> None:
    cut = erg.crossing(np.array([8.0, 4.0, 2.0, 1.0]))
    assert cut.scale == pytest.approx(4 / 15)
    np.testing.assert_allclose(cut.sums, [0.75769, 0.82222, 0.19362, -1.12814], atol=1e-5)
    assert (cut.n_tail, cut.xmin) == (4, 1.0)


@pytest.mark.parametrize(("k", "pruned"), [(0.175, 1), (0.55, 3), (0.2265, 1), (0.2266, 2)])
def test_the_welore_ranks_of_the_hand_example(k: float, pruned: int) -> None:
    spectrum = Spectrum(np.sqrt([8.0, 4.0, 2.0, 1.0]), 4, 4)
    assert welore.pruned_rank(spectrum, k) == pruned
    np.testing.assert_allclose(welore.normalised(spectrum), [1, 0.5469, 0.2265, 0], atol=5e-5)


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=8, max_size=60).map(np.array),
    st.floats(1e-60, 1e60),
)
def test_the_ranks_and_norms_follow_their_formulas(s: Array, scale: float) -> None:
    s = np.sort(s)[::-1]
    row = row_of_evals(np.square(s), len(s) + 3)
    total, energy = fsum(s), fsum(s**2)
    p, q = s**2 / energy, s / total
    expected = {
        "frobenius_norm": sqrt(energy),
        "nuclear_norm": total,
        "spectral_norm": s[0],
        "log_norm": log10(energy),
        "stable_rank": energy / s[0] ** 2,
        "participation_ratio": 1 / fsum(p**2),
        "effective_rank": np.exp(-fsum(q * np.log(q))),
        "effective_rank_vn": np.exp(-fsum(p * np.log(p))),
        "entropy": -fsum(p * np.log(p)) / log(len(s)),
        "condition_number": s[0] / s[-1],
    }
    for name, value in expected.items():
        assert number(row, name) == pytest.approx(value, rel=1e-9, abs=1e-12), name
    ordered = [
        number(row, name)
        for name in ("stable_rank", "participation_ratio", "effective_rank_vn", "effective_rank")
    ]
    assert all(a <= b * (1 + 1e-12) for a, b in pairwise(ordered))


def test_the_log_alpha_norm_is_a_sum_over_all_eigenvalues() -> None:
    """Also where the plain sum leaves float64."""
    evals = pareto_evals(3, 40)[::-1]
    row = row_of_evals(evals, 50)
    alpha = number(row, "alpha")
    assert number(row, "log_alpha_norm") == pytest.approx(log10(fsum(evals**alpha)), rel=1e-12)
    assert number(row, "alpha_hat") == pytest.approx(alpha * log10(evals[0]), rel=1e-12)
    high = row_of_evals(1e150 * evals, 50)
    expected = 150 * alpha + log10(fsum(evals**alpha))
    assert number(high, "log_alpha_norm") == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("shift", "warned"), [(0.987429129, True), (0.98742, False)])
def test_two_fits_that_rounding_could_swap_are_marked(shift: float, warned: bool) -> None:
    """The lower half of a power law, moved until xmin = 0.99 and xmin = 1.42 fit alike."""
    evals = pareto_evals(3, 100) * np.repeat([shift, 1.0], 50)
    row = row_of_evals(evals[::-1], 120)
    assert ("near_tie" in str(row["warnings"]).split(";")) == warned


# ------------------------------------------------------------------------- pure power laws, ERG


@pytest.mark.parametrize(
    ("exponent", "alpha", "n_tail", "cut", "scale"),
    [
        (2, 2.00425, 75, 0.36968, 0.137706),
        (3, 3.00851, 142, 0.60743, 0.510927),
        (4, 4.01276, 164, 0.71652, 0.669971),
    ],
)
def test_a_pure_power_law_has_a_negative_erg_gap(
    exponent: int, alpha: float, n_tail: int, cut: float, scale: float
) -> None:
    row = row_of(power_law(exponent))
    evals = pareto_evals(exponent)
    assert number(row, "alpha") == pytest.approx(alpha, abs=6e-6)
    assert row["alpha_n_tail"] == 200
    assert row["erg_n_tail"] == n_tail
    assert row["erg_gap"] == n_tail - 200
    assert number(row, "erg_xmin") * scale == pytest.approx(cut, rel=2e-5)
    assert number(row, "erg_delta") == pytest.approx(scale * evals[0] - cut, rel=1e-4)
    assert number(row, "erg_log_ratio") == pytest.approx(
        log(evals[0] / evals[200 - n_tail]), rel=1e-9
    )
    expected = fsum(np.log(evals * 200 / fsum(evals))) / 200
    assert number(row, "erg_tracelog") == pytest.approx(expected, rel=1e-9)


NOISE = [
    # Q, alpha, n_tail, ks, mid, peak, erg share, scaled cut, gap share, delta
    (1, 12.7, 75, 0.126, 2.12, 6.20, 0.7315, 0.1809, 0.694, 3.06),
    (1.25, 13.1, 80, 0.126, 2.30, 6.92, 0.7625, 0.2247, 0.723, 2.70),
    (1.5, 13.6, 83, 0.125, 2.45, 7.37, 0.7845, 0.2591, 0.743, 2.46),
    (2, 14.4, 88, 0.125, 2.71, 8.13, 0.8150, 0.3113, 0.771, 2.12),
    (2.6875, 15.7, 91, 0.124, 3.00, 8.20, 0.8410, 0.3644, 0.796, 1.83),
    (4, 17.3, 99, 0.123, 3.46, 7.98, 0.8700, 0.4337, 0.821, 1.50),
    (7.8, 21.3, 107, 0.123, 4.43, 15.8, 0.9075, 0.5422, 0.854, 1.09),
]


@pytest.mark.parametrize("expected", NOISE, ids=lambda row: f"Q={row[0]}")
def test_the_baselines_of_pure_noise(expected: tuple[float, ...]) -> None:
    """Quantiles of the Marchenko-Pastur law, M = 2000."""
    Q, alpha, n_tail, ks, mid, peak, share, cut, gap, delta = expected
    M, N = 2000, int(2000 * Q)
    x = marchenko_pastur_quantiles(M, Q)
    row = row_of_evals(N * x[::-1], N, M)
    scale = M / (N * x.sum())
    assert number(row, "alpha") == pytest.approx(alpha, abs=0.051)
    assert row["alpha_n_tail"] == n_tail
    assert number(row, "alpha_ks") == pytest.approx(ks, abs=6e-4)
    assert number(row, "erg_n_tail") / M == pytest.approx(share, abs=1e-3)
    assert number(row, "erg_xmin") * scale == pytest.approx(cut, abs=1e-4)
    assert number(row, "erg_gap") / M == pytest.approx(gap, abs=1e-3)
    assert number(row, "erg_delta") == pytest.approx(delta, abs=5.1e-3)
    # the median matches the law itself, so the bulk is the law and nothing sticks out
    assert number(row, "mp_sigma") == pytest.approx(1, abs=1e-3)
    assert number(row, "mp_edge") == pytest.approx(N * (1 + Q**-0.5) ** 2, rel=2e-3)
    assert row["mp_spikes"] == 0
    assert number(row, "mp_ks") < 1 / M
    for method, value, error in (("mid", mid, 5.1e-3), ("peak", peak, 0.051)):
        fit = fit_power_law(x, method)  # type: ignore[arg-type]
        assert isinstance(fit, PowerLaw)
        assert fit.alpha == pytest.approx(value, abs=error)


@pytest.mark.parametrize("Q", [1.0, 1.5, 4.0])
def test_the_mid_exponent_of_noise_is_an_integral_over_the_law(Q: float) -> None:
    """1 + (1/2) / integral above the median of ln(x / median), to 1e-3."""
    middle = marchenko_pastur.median(Q)
    low, high = marchenko_pastur.edges(Q)

    def integrand(x: float) -> float:
        return Q / (2 * pi * x) * sqrt(max(0.0, (high - x) * (x - low))) * log(x / middle)

    limit = 1 + 0.5 / quad(integrand, middle, high)[0]
    fit = fit_power_law(marchenko_pastur_quantiles(10_000, Q), "mid")
    assert isinstance(fit, PowerLaw)
    assert fit.alpha == pytest.approx(limit, abs=1e-3)


def product_walk(evals: Array) -> int:
    """WeightWatcher's way: the product of a growing tail, as floating-point numbers multiply."""
    scaled = np.sort(evals * len(evals) / evals.sum())
    with np.errstate(over="ignore", under="ignore"):
        for k in range(1, len(scaled) + 1):
            if np.prod(scaled[-k:]) < 1:
                return k
    return len(scaled)


@pytest.mark.parametrize(("M", "expected"), [(4096, 2995), (8192, 5989)])
def test_the_erg_cut_does_not_underflow(M: int, expected: int) -> None:
    """Ideal square noise: the product underflows at 8192 (there it stops at about 5375)."""
    x = marchenko_pastur_quantiles(M, 1.0)
    cut = erg.crossing(x[::-1])
    assert cut.n_tail == expected
    ordered = np.sort(x)[::-1] * (M / fsum(x))
    assert fsum(np.log(ordered[: expected - 1])) >= 0 > fsum(np.log(ordered[:expected]))


@pytest.mark.parametrize("n", [2048, 4096, 8192, 14336])
@pytest.mark.parametrize("width", [0.6, 1.0, 1.6])
def test_the_erg_cut_beyond_the_range_of_a_product(n: int, width: float) -> None:
    """Lognormal quantiles: the sum of logs has one crossing, found with exactly rounded sums."""
    from scipy.special import ndtri

    evals = np.exp(width * ndtri((np.arange(n, 0, -1) - 0.5) / n))
    logs = np.log(evals * (n / fsum(evals)))
    cut = erg.crossing(evals)
    assert fsum(logs[: cut.n_tail]) < 0 <= fsum(logs[: cut.n_tail - 1])
    assert cut.xmin == evals[cut.n_tail - 1]
    if cut.sums.max() > 750:
        assert product_walk(evals) != cut.n_tail
    if cut.sums.max() < 650:
        assert product_walk(evals) == cut.n_tail


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=60).map(np.array))
def test_the_erg_cut_is_the_first_negative_sum(evals: Array) -> None:
    evals = np.sort(evals)[::-1]
    logs = [log(v * len(evals) / fsum(evals)) for v in evals]
    sums = [fsum(logs[: k + 1]) for k in range(len(logs))]
    if min(map(abs, sums)) < 1e-12:
        return  # a constant spectrum, or a crossing at zero
    first = next((k + 1 for k, total in enumerate(sums) if total < 0), len(sums))
    assert erg.crossing(evals).n_tail == first


def test_the_erg_cut_of_a_rank_deficient_matrix_lies_among_its_directions() -> None:
    """Rank 100 of 256: over all 256 the crossing would land in rounding noise."""
    matrix = stored(low_rank(256, 100, 3), "float32")
    row = row_of(low_rank(256, 100, 3), "float32")
    evals = np.linalg.svd(matrix.double().numpy(), compute_uv=False) ** 2
    top = evals[:100]
    logs = np.log(top * 100 / top.sum())
    expected = int(np.flatnonzero(np.cumsum(logs) < 0)[0]) + 1
    assert row["rank"] == 100
    assert "rank_deficient" in str(row["warnings"]).split(";")
    assert row["erg_n_tail"] == expected < 100
    assert number(row, "erg_xmin") == pytest.approx(top[expected - 1], rel=1e-9)
    assert number(row, "erg_xmin") * 100 / top.sum() > 0.1
    fit = fit_power_law(top)
    assert isinstance(fit, PowerLaw)
    assert number(row, "alpha") == pytest.approx(fit.alpha, rel=1e-9)
    assert row["alpha_n_tail"] == fit.n_tail <= 100


def test_slightly_deficient_matrices_keep_all_eigenvalues() -> None:
    """From nine tenths of full rank on the peer's rule holds: all that were computed."""
    s = np.r_[np.linspace(4, 1, 95), np.full(5, 1e-7)]
    row = row_of_evals(s**2, 100, sv_floor=1e-5)
    cumulated = np.cumsum(np.log(s**2 * 100 / np.sum(s**2)))
    assert row["rank"] == 95
    assert row["warnings"] is None or "rank_deficient" not in str(row["warnings"])
    assert row["erg_n_tail"] == int(np.flatnonzero(cumulated < 0)[0]) + 1


# ---------------------------------------------------------- Marchenko-Pastur and Tracy-Widom


@pytest.mark.parametrize("Q", [1.0, 1.001, 1.25, 2.0, 4.0, 30.0, 79.484375])
def test_the_distribution_function_is_the_integral_of_the_density(Q: float) -> None:
    low, high = (1 - Q**-0.5) ** 2, (1 + Q**-0.5) ** 2

    def density(t: float) -> float:
        x = low + (high - low) * np.sin(t) ** 2
        return float(Q / pi * ((high - low) * np.sin(t) * np.cos(t)) ** 2 / x) if x else 0.0

    for share in (0.001, 0.02, 0.3, 0.5, 0.9, 0.999):
        x = low + share * (high - low)
        expected = quad(density, 0, np.arcsin(sqrt(share)), epsabs=1e-12, limit=200)[0]
        found = float(marchenko_pastur.cdf(np.array([x]), Q)[0])
        assert found == pytest.approx(expected, abs=1e-9)
    outside = marchenko_pastur.cdf(np.array([low / 2 - 1e-9, high + 1.0]), Q)
    np.testing.assert_allclose(outside, [0, 1], atol=1e-12)


@pytest.mark.parametrize(
    ("Q", "median"),
    [(1, 0.65277), (1.25, 0.72515), (1.5, 0.77237), (2, 0.83046), (2.6875, 0.87444),
     (3, 0.88768), (4, 0.91600), (7.8, 0.95709), (8, 0.95817)],
)  # fmt: skip
def test_the_median_of_the_law(Q: float, median: float) -> None:
    assert marchenko_pastur.median(Q) == pytest.approx(median, abs=1e-5)
    half = marchenko_pastur.cdf(np.array([marchenko_pastur.median(Q)]), Q)
    assert float(half[0]) == pytest.approx(0.5, abs=1e-12)


def tracy_widom_1(s: float) -> float:
    """F_1(s) = det(1 - K) on (s, inf), K(x, y) = Ai((x + y)/2)/2 (Ferrari & Spohn 2005)."""
    nodes, weights = np.polynomial.legendre.leggauss(80)
    x, w = s + 12 * (nodes + 1), 12 * weights
    kernel = airy((x[:, None] + x) / 2)[0] / 2
    root = np.sqrt(w)
    return float(np.linalg.det(np.eye(80) - root[:, None] * kernel * root))


@pytest.mark.parametrize(
    "upper", [0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001, 0.00001]
)
def test_the_tracy_widom_quantiles_against_the_fredholm_determinant(upper: float) -> None:
    quantile = marchenko_pastur.tracy_widom_quantile(upper)
    assert 1 - tracy_widom_1(quantile) == pytest.approx(upper, rel=1e-5)


@pytest.mark.parametrize("upper", [0.05, 0.032, 0.0127, 0.0057, 0.0008, 0.00003])
def test_between_the_tabulated_quantiles_interpolation_is_good_to_three_percent(
    upper: float,
) -> None:
    quantile = marchenko_pastur.tracy_widom_quantile(upper)
    assert 1 - tracy_widom_1(quantile) == pytest.approx(upper, rel=0.03)


def test_the_fredholm_determinant_has_the_published_quantiles() -> None:
    """Prähofer & Spohn's table of F_1."""
    assert tracy_widom_1(0.4501) == pytest.approx(0.90, abs=1e-5)
    assert tracy_widom_1(0.9793) == pytest.approx(0.95, abs=1e-5)
    assert tracy_widom_1(2.0234) == pytest.approx(0.99, abs=1e-5)


def spikes(matrix: Array) -> int:
    s = np.linalg.svd(matrix, compute_uv=False)
    return int(number(row_of_evals(s**2, max(matrix.shape), min(matrix.shape)), "mp_spikes"))


def test_noise_shows_a_spike_in_one_case_of_twenty() -> None:
    """100 x 200, 500 seeds: the rate of the 95 % cut within 2.5 to 7.5 %."""
    found = [spikes(gaussian(100, 200, seed)) for seed in range(500)]
    assert 0.025 <= np.mean([count > 0 for count in found]) <= 0.075


def test_a_planted_spike_is_always_found() -> None:
    """theta = 2, above the limit Q^-1/4: x = (1 + theta^2)(1/Q + theta^2)/theta^2."""
    for seed in range(100):
        rng = np.random.default_rng(seed)
        u, v = rng.standard_normal(100), rng.standard_normal(200)
        signal = 2 * sqrt(200) * np.outer(u / np.linalg.norm(u), v / np.linalg.norm(v))
        matrix = gaussian(100, 200, seed) + signal
        assert 1 <= spikes(matrix) <= 2
        top = np.linalg.svd(matrix, compute_uv=False)[0] ** 2 / 200
        assert top == pytest.approx(5 * 4.5 / 4, rel=0.35)


def test_the_cut_for_several_slices_is_that_of_their_maximum() -> None:
    """Nine slices of a 3 x 3 kernel: the whole kernel shows a spike as rarely as one matrix."""
    one, nine = (marchenko_pastur.largest_eval_cut(64, 32, slices) for slices in (1, 9))
    edge, scale = (1 + 0.5**0.5) ** 2, 0.5**0.5 * 32 ** (-2 / 3) * (1 + 0.5**0.5) ** (4 / 3)
    assert tracy_widom_1((one - edge) / scale) == pytest.approx(0.95, abs=1e-5)
    assert tracy_widom_1((nine - edge) / scale) ** 9 == pytest.approx(0.95, abs=1e-3)
    x = np.sort(np.r_[np.tile(marchenko_pastur_quantiles(32, 2.0), 9)[:-1], (one + nine) / 2])
    for slices, expected in ((9, 0), (1, 1)):
        spectrum = Spectrum(np.sqrt(64 * x[::-1]), 64, 32, slices)
        assert row_of_spectrum(spectrum, metrics=("mp",))["mp_spikes"] == expected


@pytest.mark.parametrize("Q", [1.0, 1.5, 6.0])
def test_the_bulk_figures_follow_from_the_median(Q: float) -> None:
    """sigma = 0.7 by construction: the middle one of 301 values is the median of the law."""
    M, N, variance = 301, int(301 * Q), 0.49
    Q = N / M
    x = marchenko_pastur_quantiles(M, Q)
    x = np.r_[x[:150] * 0.9, marchenko_pastur.median(Q), x[151:296], 4.1, 4.3, 4.6, 5.0, 7.0]
    row = row_of_evals(N * variance * np.sort(x)[::-1], N, M)
    edge = (1 + Q**-0.5) ** 2
    cut = edge + 0.979316 * Q**-0.5 * M ** (-2 / 3) * (1 + Q**-0.5) ** (4 / 3)
    assert number(row, "mp_sigma") == pytest.approx(0.7, rel=1e-9)
    assert number(row, "mp_edge") == pytest.approx(N * variance * edge, rel=1e-9)
    assert number(row, "mp_softrank") == pytest.approx(edge / 7, rel=1e-9)
    assert row["mp_spikes"] == np.sum(x > cut)
    grid = marchenko_pastur_quantiles(400_000, Q)
    bulk = np.sort(x[x <= cut])
    model = np.searchsorted(grid, bulk) / len(grid)
    steps = np.arange(len(bulk) + 1) / len(bulk)
    expected = max(np.max(np.abs(model - steps[:-1])), np.max(np.abs(model - steps[1:])))
    assert 0.01 < expected == pytest.approx(number(row, "mp_ks"), abs=1e-5)


def test_spikes_and_soft_rank_of_a_spiked_matrix() -> None:
    strength = np.array([6.0, 5.0, 4.0])
    signal = with_singular_values(strength * sqrt(400), 200, 400, 9)
    row = row_of(0.3 * (gaussian(200, 400, 8) + signal))
    x = (1 + strength**2) * (0.5 + strength**2) / strength**2
    assert row["mp_spikes"] == 3
    assert number(row, "mp_sigma") == pytest.approx(0.3, rel=0.02)
    assert number(row, "mp_edge") == pytest.approx(400 * 0.09 * (1 + 0.5**0.5) ** 2, rel=0.04)
    assert number(row, "mp_softrank") == pytest.approx((1 + 0.5**0.5) ** 2 / x[0], rel=0.06)
    assert number(row, "mp_ks") < 0.05


# ------------------------------------------------------------------------- known matrices


def test_a_gaussian_of_aspect_ratio_four() -> None:
    row = row_of(gaussian(1024, 4096, 0), "float32")
    assert number(row, "entropy") == pytest.approx(0.98198, abs=2e-4)
    assert number(row, "mp_sigma") == pytest.approx(1, abs=0.01)
    assert row["mp_spikes"] in (0, 1)
    assert number(row, "condition_number") == pytest.approx(3.0, abs=0.05)
    assert number(row, "stable_rank") == pytest.approx(1024 / 1.5**2, rel=0.02)
    assert number(row, "participation_ratio") == pytest.approx(1024 / 1.25, rel=0.01)
    assert number(row, "mp_softrank") == pytest.approx(1, abs=0.02)
    assert number(row, "mp_ks") < 0.005
    assert row["rank"] == 1024


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
def test_an_orthogonal_matrix_is_constant(dtype: str) -> None:
    row = row_of(orthogonal(64, 4), dtype)
    tolerance = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2, "float16": 2e-3}[dtype]
    assert row["status"] == "constant"
    assert row["alpha"] is None and row["alpha_band"] is None and row["erg_gap"] is None
    assert number(row, "stable_rank") == pytest.approx(64, rel=tolerance)
    assert number(row, "condition_number") == pytest.approx(1, rel=tolerance)
    assert number(row, "entropy") == pytest.approx(1, rel=tolerance)


def test_rank_100_of_256_in_float32() -> None:
    matrix = low_rank(256, 100, 11)
    row = row_of(matrix, "float32")
    s = np.linalg.svd(stored(matrix, "float32").double().numpy(), compute_uv=False)
    assert s[100] > 0
    assert row["rank"] == 100
    assert row["condition_number"] is None or number(row, "condition_number") > 1e6
    assert "below_floor" in str(row["warnings"]).split(";")


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_convolution_pools_its_kernel_positions(k: int) -> None:
    kernel = np.random.default_rng(k).standard_normal((16, 32, k, k))
    run = weightscope.analyze({"conv.weight": torch.from_numpy(kernel)}, device="cpu")
    row = run.rows[0]
    assert [row[key] for key in ("N", "M", "Q", "slices")] == [32, 16, 2.0, k * k]
    expected = np.concatenate(
        [np.linalg.svd(kernel[:, :, i, j], compute_uv=False) for i in range(k) for j in range(k)]
    )
    found = run.spectrum("conv.weight").singular_values
    assert len(found) == 16 * k * k
    np.testing.assert_allclose(found, np.sort(expected)[::-1], rtol=1e-12)


def test_copies_in_other_types_have_the_same_exponent() -> None:
    matrix = 3e-2 * power_law(2.7, 200, 260)
    alphas = {}
    for dtype in ("float64", "float32", "float16", "bfloat16"):
        row = row_of(matrix, dtype, metrics=FAMILIES)
        alphas[dtype] = number(row, "alpha")
        assert row["weight_nonfinite"] == 0
        assert row["status"] == "ok"
        assert row["dtype"] == CODES[dtype]
    assert alphas["float32"] == pytest.approx(alphas["float64"], rel=1e-5)
    for dtype in ("float16", "bfloat16"):
        assert alphas[dtype] == pytest.approx(alphas["float64"], abs=1e-2)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_stored_values_are_widened_before_any_arithmetic(dtype: str) -> None:
    """Entries near the largest half: squares, sums and norms all leave the stored type."""
    matrix = np.clip(2e4 * gaussian(40, 60, 12), -6e4, 6e4)
    row = row_of(matrix, dtype)
    exact = stored(matrix, dtype).double().numpy()
    s = np.linalg.svd(exact, compute_uv=False)
    assert row["status"] == "ok"
    assert number(row, "frobenius_norm") == pytest.approx(np.linalg.norm(exact), rel=1e-12)
    assert number(row, "spectral_norm") == pytest.approx(s[0], rel=1e-12)
    assert number(row, "condition_number") == pytest.approx(s[0] / s[-1], rel=1e-9)


# ------------------------------------------------------------- condition number and solver


@pytest.mark.parametrize("power", range(1, 13))
@pytest.mark.parametrize("shape", [(120, 120), (60, 300)])
def test_a_known_condition_number_is_printed_right_or_not_at_all(
    power: int, shape: tuple[int, int]
) -> None:
    n = min(shape)
    matrix = with_singular_values(np.logspace(0, -power, n), *shape)
    row = row_of(matrix)
    if row["condition_number"] is None:
        assert power >= 7
        assert "solver resolves" in str(row["reason"])
    else:
        assert power <= 10  # beyond, a direct solver in float64 does not have four digits
        assert number(row, "condition_number") == pytest.approx(10.0**power, rel=1e-4)


@pytest.mark.parametrize("power", range(2, 10))
def test_in_float32_beyond_the_floor_it_is_marked(power: int) -> None:
    """What is printed is the stored matrix's; above the resolvable one it carries a warning."""
    matrix = with_singular_values(np.logspace(0, -power, 100), 100, 140)
    row = row_of(matrix, "float32")
    s = np.linalg.svd(stored(matrix, "float32").double().numpy(), compute_uv=False)
    resolvable = number(row, "condition_number_resolvable")
    assert resolvable == pytest.approx(s[0] / number(row, "sv_floor"), rel=1e-9)
    assert 1e6 < resolvable < 1e8
    if row["condition_number"] is not None:
        assert number(row, "condition_number") == pytest.approx(s[0] / s[-1], rel=1e-4)
    warned = "below_floor" in str(row["warnings"]).split(";")
    assert warned == (row["condition_number"] is None or s[0] / s[-1] > resolvable)
    if power <= 5:
        assert row["condition_number"] is not None


def exact_evals(matrix: Array) -> npt.NDArray[np.longdouble]:
    """Eigenvalues of the Gram matrix to about 1e-18 of the largest, in extended precision.

    In the basis of float64 singular vectors the pencil (V^T G V, V^T V) is nearly diagonal; its
    eigenvalues are those of G, and follow by second-order perturbation.
    """
    tall = (matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T).astype(np.longdouble)
    basis = np.linalg.svd(tall.astype(np.float64), full_matrices=False)[2].T.astype(np.longdouble)
    image = tall @ basis
    gram, metric = image.T @ image, basis.T @ basis
    evals = np.diag(gram) / np.diag(metric)
    residual = gram - evals * metric
    gaps = evals - evals[:, None]
    distinct = np.abs(gaps) > 1e-12 * evals.max()
    second = np.where(distinct, residual**2 / np.where(distinct, gaps, 1), 0)
    return np.sort(evals + second.sum(axis=0))[::-1]


def ill_conditioned() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    square = rng.standard_normal((128, 128))
    downwards, upwards = np.logspace(0, -6, 128), np.logspace(-3, 0, 128)
    two = 0.1 + 1e-5 * rng.standard_normal((100_000, 2))
    four = 0.7 + 2e-7 * rng.standard_normal((100_000, 4))
    many = 1.3 + 4e-7 * rng.standard_normal((20_000, 24))
    return {
        "gaussian": square,
        "gaussian 512 x 128": rng.standard_normal((512, 128)),
        "graded columns": square * downwards,
        "graded rows and columns": square * np.outer(downwards, upwards),
        "graded to 1e-4": with_singular_values(np.logspace(0, -4, 128), 128, 128),
        "graded to 1e-6": with_singular_values(np.logspace(0, -6, 128), 128, 200),
        "student": rng.standard_t(2, (256, 128)),
        "offset": rng.random((200, 100)) + 3,
        "two nearly equal columns": two.astype(np.float32).astype(np.float64),
        "four nearly equal columns": four.astype(np.float32).astype(np.float64),
        "24 nearly equal columns": many.astype(np.float32).astype(np.float64),
    }


extended = pytest.mark.skipif(
    np.finfo(np.longdouble).nmant < 60, reason="no extended precision here to compare with"
)


@extended
@pytest.mark.parametrize("name", ill_conditioned())
def test_the_admitted_error_of_the_smallest_singular_value_is_honest(name: str) -> None:
    """It decides whether a condition number may be printed."""
    matrix = ill_conditioned()[name]
    exact = np.sqrt(exact_evals(matrix)[-1])
    tensor = torch.from_numpy(matrix)
    found = full_spectrum([tensor], entry_statistics([tensor], DTYPES["F64"]))
    assert abs(found.smallest - exact) / exact <= found.relative_error
    assert found.relative_error < 1e-3
    assert found.resolution < found.smallest


@extended
@pytest.mark.parametrize("name", ill_conditioned())
def test_an_eigenvalue_of_a_gram_matrix_near_zero_is_as_good_as_is_said(name: str) -> None:
    matrix = ill_conditioned()[name]
    if min(matrix.shape) <= SMALL:
        return  # no Gram matrix is used
    exact = exact_evals(matrix)
    found = torch.linalg.eigvalsh(gram_of(torch.from_numpy(matrix), 1.0), UPLO="L").numpy()
    small = exact < 0.01 * exact[0]
    errors = np.abs(found[::-1] - exact) / exact[0]
    assert errors[small].max(initial=0) <= EVAL_ERROR
    assert small.any() or name.startswith("gaussian")


# ------------------------------------------------------------------ storage noise floor


def ulps(matrix: torch.Tensor) -> Array:
    """Spacing of the stored type at each entry, subnormals included, by numpy."""
    if matrix.dtype == torch.bfloat16:
        spacing = np.spacing(np.abs(matrix.float().numpy())).astype(np.float64)
        return spacing * 2.0**16
    return np.spacing(np.abs(matrix.numpy())).astype(np.float64)


SCALES = {
    "float64": [1.0, 1e-307, 1e-310, 1e290],
    "float32": [1.0, 1e-38, 1e-41, 1e30],
    "float16": [1.0, 6e-5, 3e-7, 6e3],
    "bfloat16": [1.0, 1e-38, 1e-39, 1e30],
}


@pytest.mark.parametrize(
    ("dtype", "scale"), [(dtype, scale) for dtype, scales in SCALES.items() for scale in scales]
)
@pytest.mark.parametrize("shape", [(30, 50), (50, 30), (1, 20), (40, 40)])
def test_the_floor_is_made_of_the_spacing_of_every_entry(
    dtype: str, scale: float, shape: tuple[int, int]
) -> None:
    matrix = stored(gaussian(*shape, 21, scale), dtype)
    matrix[0, :3] = 0.0
    unit = 2.0 ** round(np.log2(scale))
    matrix[0, 3] = unit
    variance = (ulps(matrix) / unit) ** 2 / 12
    expected = sqrt(variance.sum(0).max()) + sqrt(variance.sum(1).max())
    factor = scale_for(float(matrix.abs().max()))
    found = storage_floor(matrix, DTYPES[CODES[dtype]], factor) / unit
    assert found == pytest.approx(expected, rel=1e-12 if scale > 1e-300 else 0.02)
    assert entry_statistics([matrix], DTYPES[CODES[dtype]]).sv_floor == pytest.approx(
        found * unit, rel=1e-12
    )


@pytest.mark.parametrize(
    ("dtype", "n", "noise", "floor"),
    [
        ("bfloat16", 512, 0.198, 0.292),
        ("bfloat16", 1024, 0.311, 0.497),
        ("float16", 512, 0.025, 0.036),
    ],
)
def test_a_rank_four_matrix_keeps_its_rank_in_half_precision(
    dtype: str, n: int, noise: float, floor: float
) -> None:
    """The first singular value that rounding made lies below the floor, and not far below."""
    matrix = low_rank(n, 4, 2)
    row = row_of(matrix, dtype)
    s = np.linalg.svd(stored(matrix, dtype).double().numpy(), compute_uv=False)
    assert s[4] == pytest.approx(noise, rel=0.1)
    assert number(row, "sv_floor") == pytest.approx(floor, rel=0.1)
    assert s[4] < number(row, "sv_floor") < 2 * s[4] < s[3]
    assert row["rank"] == 4


@pytest.mark.parametrize("factor", [30, 100, 300])
def test_outlier_columns_raise_the_floor_with_the_noise(factor: int) -> None:
    matrix = low_rank(512, 4, 1)
    matrix[:, ::128] *= factor
    row = row_of(matrix, "bfloat16")
    s = np.linalg.svd(stored(matrix, "bfloat16").double().numpy(), compute_uv=False)
    assert s[4] < number(row, "sv_floor") < 8 * s[4]
    assert row["rank"] == 4


def test_the_floor_of_a_convolution_is_that_of_its_worst_slice() -> None:
    kernel = np.random.default_rng(0).standard_normal((24, 20, 2, 1))
    kernel[:, :, 1] *= 64
    run = weightscope.analyze({"conv.weight": stored(kernel, "bfloat16")}, device="cpu")
    worst = row_of(kernel[:, :, 1, 0], "bfloat16")
    assert number(run.rows[0], "sv_floor") == pytest.approx(number(worst, "sv_floor"), rel=1e-12)


# -------------------------------------------------------------------------------- WeLore


spectra = st.lists(
    st.lists(st.integers(0, 9), min_size=2, max_size=12).map(
        lambda values: np.sort(np.array(values, dtype=float))[::-1]
    ),
    min_size=1,
    max_size=6,
)


@given(spectra, st.floats(0.01, 0.99))
def test_the_welore_threshold_comes_as_near_the_target_as_any(
    values: list[Array], target: float
) -> None:
    """Every achievable reduction is tried; ties and exact zeros cannot be cut."""
    models = [Spectrum(s, len(s), len(s)) for s in values]
    fitted = welore.fit(models, target)
    usable = [s for s in values if s[0] > s[-1]]
    if not usable:
        assert fitted is None
        return
    assert fitted is not None
    d = np.concatenate([(s - s[-1]) / (s[0] - s[-1]) for s in usable])
    total = sum(len(s) for s in values if s[0])  # constant ones keep every rank, and count
    achievable = {int(np.sum(d < k)) for k in np.r_[np.unique(d), 2.0]} - {0, len(d)}
    nearest = min(abs(count / total - target) for count in achievable)
    pruned = sum(welore.pruned_rank(model, fitted.k) for model in models)
    assert pruned / total == pytest.approx(fitted.attempted, abs=1e-12)
    assert abs(fitted.attempted - target) == pytest.approx(nearest, abs=1e-12)
    assert 0 < fitted.k <= 1


def test_the_target_is_met_exactly_where_there_are_no_ties() -> None:
    values = [np.linalg.svd(gaussian(40, 60, seed))[1] for seed in range(5)]
    models = [Spectrum(s, 60, 40) for s in values]
    for target in (0.1, 0.3, 0.5, 0.7):
        fitted = welore.fit(models, target)
        assert fitted is not None
        assert fitted.attempted == pytest.approx(target, abs=1e-12)
        assert sum(welore.pruned_rank(m, fitted.k) for m in models) == round(200 * target)


def test_a_target_below_the_share_of_zeros_takes_the_nearest_step() -> None:
    """Every matrix has one exact zero, so of ten values in two matrices two go at the least."""
    models = [Spectrum(np.array([5.0, 4.0, 3.0, 2.0, 1.0]), 5, 5)] * 2
    fitted = welore.fit(models, 0.05)
    assert fitted is not None
    assert fitted.attempted == 0.2
    assert [welore.pruned_rank(m, fitted.k) for m in models] == [1, 1]


def model_of(spectra: list[Array]) -> dict[str, torch.Tensor]:
    return {
        f"blocks.{i}.mlp.weight": torch.from_numpy(with_singular_values(s, 60, 70, i))
        for i, s in enumerate(spectra)
    }


def test_the_class_rank_and_error_of_every_matrix() -> None:
    """Geometric spectra from steep to flat: half of all ranks go, most from the steep ones."""
    values = [np.linspace(1, 0.02, 60) ** power for power in (4.0, 2.0, 1.0, 0.5)]
    run = weightscope.analyze(model_of(values), device="cpu", metrics=("welore",))
    summary = run.summary["welore"]
    d = [(s - s[-1]) / (s[0] - s[-1]) for s in values]
    kept = [int(np.sum(share >= summary["threshold"])) for share in d]
    assert sum(kept) == 120
    assert [row["welore_rank"] for row in run.rows] == kept
    for row, s, rank in zip(run.rows, values, kept, strict=True):
        dropped = fsum(s[rank:] ** 2) / fsum(s**2)
        assert number(row, "welore_relative_error") == pytest.approx(sqrt(dropped), rel=1e-6)
        assert number(row, "welore_rank_ratio") == rank / 60
        assert row["welore_class"] == ("LRC" if rank < 30 else "N-LRC")
    low = [rank for rank in kept if rank < 30]
    assert 0 < len(low) < 4
    assert summary["attempted"] == 0.5
    assert summary["effective"] == pytest.approx(sum(60 - rank for rank in low) / 240)
    whole = 60 * 70
    expected = (sum(rank * 130 for rank in low) + (4 - len(low)) * whole) / (4 * whole)
    assert summary["parameter_ratio"] == pytest.approx(expected)
    assert (summary["matrices"], summary["lrc"]) == (4, len(low))


@pytest.mark.parametrize(
    ("rows", "cols", "rank"),
    [(4096, 4096, 2048), (11008, 4096, 2985), (4096, 1024, 819), (14336, 4096, 3185)],
)
def test_the_break_even_ranks_of_a_factorisation(rows: int, cols: int, rank: int) -> None:
    """Two factors of this rank are no larger than the matrix, of one more they are."""
    assert rank * (rows + cols) <= rows * cols < (rank + 1) * (rows + cols)


def test_a_matrix_of_half_its_numerical_rank_is_the_border_of_the_classes() -> None:
    """The rule compares with the numerical rank, not with the number of singular values."""
    s = np.r_[np.linspace(2, 1, 20), np.full(20, 1e-9)]
    spectrum = Spectrum(s, 40, 40)
    fitted = welore.WeloreFit(0.6, 0.5, 0.5)
    kept = int(np.sum((s - s[-1]) / (s[0] - s[-1]) >= 0.6))
    assert kept == 16
    assert welore.evaluate(spectrum, 40, fitted)["welore_class"] == "LRC"
    assert welore.evaluate(spectrum, 20, fitted)["welore_class"] == "N-LRC"
    assert welore.evaluate(spectrum, 32, fitted)["welore_class"] == "N-LRC"
    assert welore.evaluate(spectrum, 33, fitted)["welore_class"] == "LRC"


def test_equal_singular_values_keep_their_full_rank() -> None:
    """The peer divides zero by zero."""
    spectrum = Spectrum(np.full(12, 0.3), 12, 12)
    assert welore.fit([spectrum], 0.5) is None
    assert welore.pruned_rank(spectrum, 0.5) == 0
    tensors = {
        "blocks.0.a.weight": torch.eye(16),
        "blocks.1.a.weight": stored(gaussian(16, 20), "float32"),
    }
    run = weightscope.analyze(tensors, device="cpu")
    assert [run.rows[0][key] for key in ("welore_rank", "welore_class")] == [16, "N-LRC"]
    # of 32 ranks at most the 15 that are not the largest of their matrix can go
    assert run.summary["welore"]["attempted"] == 15 / 32


# ------------------------------------------------------------------------ entry statistics


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16"])
@pytest.mark.parametrize("shape", [(1, 7), (33, 20), (20, 33)])
def test_the_statistics_of_the_entries(dtype: str, shape: tuple[int, int]) -> None:
    matrix = gaussian(*shape, 31, 0.7) + 100
    matrix[:, ::3] = 0
    tensor = stored(matrix, dtype)
    exact = tensor.double().numpy().ravel().tolist()
    mean = fsum(exact) / len(exact)
    stats = entry_statistics([tensor], DTYPES[CODES[dtype]])
    assert stats.mean == pytest.approx(mean, rel=1e-12)
    assert stats.std == pytest.approx(sqrt(fsum((v - mean) ** 2 for v in exact) / len(exact)))
    assert stats.abs_max == max(map(abs, exact))
    assert stats.zero_fraction == sum(v == 0 for v in exact) / len(exact)
    assert stats.nonfinite == 0


def test_the_statistics_of_a_convolution_are_those_of_the_whole_kernel() -> None:
    kernel = np.random.default_rng(5).standard_normal((6, 5, 3, 2)) + np.arange(3)[:, None]
    kernel[0, 0] = 0
    row = weightscope.analyze({"conv.weight": torch.from_numpy(kernel)}, device="cpu").rows[0]
    assert number(row, "weight_mean") == pytest.approx(kernel.mean(), rel=1e-12)
    assert number(row, "weight_std") == pytest.approx(kernel.std(), rel=1e-12)
    assert number(row, "weight_abs_max") == np.abs(kernel).max()
    assert number(row, "weight_zero_fraction") == 6 / 180


@pytest.mark.parametrize("scale", [1e200, 1e-200])
def test_the_statistics_of_extreme_entries(scale: float) -> None:
    matrix = gaussian(30, 20, 32)
    stats = entry_statistics([torch.from_numpy(matrix * scale)], DTYPES["F64"])
    assert stats.mean is not None and stats.std is not None
    assert stats.mean / scale == pytest.approx(matrix.mean(), rel=1e-9)
    assert stats.std / scale == pytest.approx(matrix.std(), rel=1e-9)


@pytest.mark.parametrize("bad", [[np.nan], [np.inf], [-np.inf, np.nan, np.inf]])
def test_the_number_of_entries_that_are_no_numbers(bad: list[float]) -> None:
    matrix = gaussian(9, 8, 33)
    matrix.ravel()[: len(bad)] = bad
    stats = entry_statistics([torch.from_numpy(matrix)], DTYPES["F64"])
    assert stats.nonfinite == len(bad)
    assert (stats.mean, stats.std, stats.abs_max, stats.sv_floor) == (None,) * 4
