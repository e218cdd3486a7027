"""The power-law fit against closed forms, hand examples and a naive twin."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from zoo import gaussian, pareto_evals

from weightscope.laws.power_law import NEAR_TIE, PowerLaw, distances, fit_power_law, search
from weightscope.outcome import Failure
from weightscope.recipe import FitMethod

Array = npt.NDArray[np.float64]
HAND = np.array([1.0, 2.0, 4.0, 8.0])


@dataclass(frozen=True)
class Candidate:
    """One xmin, fitted by the definition."""

    xmin: float
    n: int
    alpha: float
    ks: float


def candidates(values: Array, smallest_tail: int = 2, lost: int = 0) -> list[Candidate]:
    """Every distinct value but the largest as xmin; no vectorisation over xmin, no shortcut."""
    x = np.sort(values)
    found = []
    for i in range(len(x) - 1):
        if (i and x[i] == x[i - 1]) or x[i] == x[-1]:
            continue
        tail = x[i:]
        n = len(tail)
        total = float(np.sum(np.log(tail / x[i])))
        if n < smallest_tail or total <= 1e-12 * n:
            continue
        alpha = 1 + (n - lost) / total
        model = 1 - (tail / x[i]) ** (1 - alpha)
        found.append(Candidate(x[i], n, alpha, float(np.max(np.abs(model - np.arange(n) / n)))))
    return found


def agree(fit: PowerLaw | Failure, found: list[Candidate]) -> None:
    """The fit is the best candidate; where rounding decides between two, either will do."""
    if not found:
        assert isinstance(fit, Failure)
        return
    assert isinstance(fit, PowerLaw)
    ordered = sorted(found, key=lambda c: c.ks)
    assert fit.ks == pytest.approx(ordered[0].ks, abs=1e-12)
    (winner,) = [c for c in found if c.n == fit.n_tail]
    assert winner.ks <= ordered[0].ks + 1e-12
    assert fit.xmin == pytest.approx(winner.xmin, rel=1e-12)
    assert fit.alpha == pytest.approx(winner.alpha, rel=1e-9)
    assert fit.stderr == pytest.approx((winner.alpha - 1) / winner.n**0.5, rel=1e-9)
    if len(ordered) == 1:
        assert fit.gap is None
        return
    assert fit.gap is not None
    gap = ordered[1].ks - ordered[0].ks
    if gap < NEAR_TIE - 1e-12:
        assert fit.gap == pytest.approx(gap, abs=1e-12)
    else:
        assert fit.gap >= gap - 1e-12


def fitted(values: Array, method: FitMethod = "ks", floor: float = 0.0) -> PowerLaw:
    fit = fit_power_law(values, method, floor)
    assert isinstance(fit, PowerLaw), fit
    return fit


@pytest.mark.parametrize(
    ("start", "n", "alpha", "gaps", "ks"),
    [
        (0, 4, 1.9617967, (0, 0.2366, 0.2364, 0.1147), 0.236583),
        (1, 3, 2.4426950, (0, 0.2988, 0.1980), 0.298787),
        (2, 2, 3.8853901, (0, 0.3647), 0.364665),
    ],
)
def test_every_candidate_of_the_hand_example(
    start: int, n: int, alpha: float, gaps: tuple[float, ...], ks: float
) -> None:
    """l = 1, 2, 4, 8: alpha = 1 + n / sum ln(l / xmin), D by hand."""
    found = search(HAND, np.array([start]), "ks")
    assert isinstance(found, PowerLaw)
    assert (found.n_tail, found.xmin, found.gap) == (n, HAND[start], None)
    assert found.alpha == pytest.approx(alpha, rel=1e-7)
    assert found.ks == pytest.approx(ks, abs=5e-7)
    np.testing.assert_allclose(distances(np.log(HAND), start, alpha - 1), gaps, atol=6e-5)


def test_the_hand_example() -> None:
    fit = search(HAND, np.arange(3), "ks")
    assert isinstance(fit, PowerLaw)
    assert fit.alpha == pytest.approx(1 + 4 / np.log(64), rel=1e-14)
    assert fit.ks == pytest.approx(0.236583, abs=5e-7)
    assert fit.stderr == pytest.approx(0.480898, abs=5e-7)
    assert (fit.xmin, fit.n_tail) == (1.0, 4)
    assert fit.gap == pytest.approx(0.298787 - 0.236583, abs=1e-6)


@pytest.mark.parametrize(
    ("exponent", "alpha", "xmin", "stderr", "middle"),
    [
        (2, 2.00425, 1.00251, 0.07101, 2.00855),
        (3, 3.00851, 1.00125, 0.14202, 3.01709),
        (4, 4.01276, 1.00083, 0.21303, 4.02564),
    ],
)
def test_the_quantiles_of_a_pareto_law(
    exponent: int, alpha: float, xmin: float, stderr: float, middle: float
) -> None:
    values = pareto_evals(exponent)
    fit = fitted(values)
    assert fit.alpha == pytest.approx(alpha, abs=6e-6)
    assert fit.xmin == pytest.approx(xmin, abs=6e-6)
    assert fit.ks == pytest.approx(0.00336, abs=6e-6)
    assert fit.stderr == pytest.approx(stderr, abs=6e-6)
    assert (fit.n_tail, fit.method) == (200, "ks")
    at_median = fitted(values, "mid")
    assert at_median.alpha == pytest.approx(middle, abs=6e-6)
    assert (at_median.n_tail, at_median.xmin, at_median.gap) == (100, values[100], None)


def test_the_estimate_scatters_as_its_standard_error_says() -> None:
    """300 samples of 400 points at a known xmin: alpha = 2.5 to 2 %, z scores of unit width."""
    scores = []
    for seed in range(300):
        values = np.sort(10 * np.random.default_rng(seed).random(400) ** (-1 / 1.5))
        fit = search(values, np.array([0]), "ks")
        assert isinstance(fit, PowerLaw)
        scores.append((fit.alpha - 2.5) / fit.stderr)
    assert abs(np.mean(scores)) < 3 / 300**0.5
    assert 0.88 < np.std(scores) < 1.12


positive = st.floats(1e-6, 1e6)
samples = st.one_of(
    st.lists(positive, min_size=20, max_size=90),
    st.lists(st.integers(1, 12).map(float), min_size=20, max_size=90),
    st.lists(st.floats(1, 1 + 1e-3), min_size=20, max_size=60),
    st.lists(st.integers(0, 15).map(lambda k: 2.0**k), min_size=20, max_size=60),
).map(np.array)


@given(samples)
def test_the_search_finds_what_a_search_over_everything_finds(values: Array) -> None:
    if values.max() / values.min() - 1 < 1e-6:
        return
    agree(fit_power_law(values), candidates(values))


@given(st.integers(0, 10**6), st.sampled_from(["lognormal", "pareto", "gamma", "bulk"]))
def test_the_search_equals_the_naive_one_on_spectra(seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(20, 400))
    values = {
        "lognormal": lambda: rng.lognormal(0, rng.uniform(0.1, 4), n),
        "pareto": lambda: rng.pareto(rng.uniform(0.3, 6), n) + 1,
        "gamma": lambda: rng.gamma(rng.uniform(0.2, 4), 1, n),
        "bulk": lambda: np.linalg.svd(rng.standard_normal((n // 4 + 20, 60)))[1] ** 2,
    }[kind]()
    agree(fit_power_law(values), candidates(values))


def test_a_near_tie_is_reported_as_one() -> None:
    """The lower half of a power law is moved until two candidates fit equally well."""
    whole = pareto_evals(3, 100)

    def spectrum(shift: float) -> Array:
        return np.r_[shift * whole[:50], whole[50:]]

    def winner(shift: float) -> int:
        return min(candidates(spectrum(shift)), key=lambda c: c.ks).n

    low, high = 0.1, 1.0
    first = winner(low)
    assert winner(high) != first
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if winner(middle) == first else (low, middle)
    fit = fitted(spectrum(low))
    agree(fit, candidates(spectrum(low)))
    assert fit.gap is not None and fit.gap < 1e-12
    step = 1e-6
    gaps = [sorted(c.ks for c in candidates(spectrum(low - step)))[k] for k in (0, 1)]
    for wanted in (1e-9, 2e-8, 9e-8):
        values = spectrum(low - step * wanted / (gaps[1] - gaps[0]))
        fit = fitted(values)
        agree(fit, candidates(values))
        assert fit.gap == pytest.approx(wanted, rel=0.05)
    clear = fitted(whole)
    assert clear.gap is not None and clear.gap > NEAR_TIE


def test_ties_are_one_candidate_that_counts_all_of_its_run() -> None:
    """A candidate may not ignore its own equals."""
    values = np.repeat(pareto_evals(2.5, 30), 3)
    fit = fitted(values)
    assert fit.n_tail % 3 == 0
    agree(fit, candidates(values))
    largest = np.r_[pareto_evals(3, 30), np.full(5, 1e3)]
    agree(fitted(largest), candidates(largest))
    assert all(c.n > 5 for c in candidates(largest))


@given(st.lists(positive, min_size=8, max_size=19).map(np.array))
def test_below_twenty_points_the_unbiased_estimator_and_tails_of_eight(values: Array) -> None:
    if values.max() / values.min() - 1 < 1e-6:
        return
    fit = fit_power_law(values)
    agree(fit, candidates(values, smallest_tail=8, lost=1))
    if isinstance(fit, PowerLaw):
        assert fit.method == "ks-small-sample"
        assert fit.n_tail >= 8


def test_the_small_sample_rule_starts_at_8_and_ends_at_19() -> None:
    values = pareto_evals(2.5, 25)
    assert isinstance(fit_power_law(values[:7]), Failure)
    assert "7" in str(fit_power_law(values[:7]))
    eight = fitted(values[:8])
    assert (eight.n_tail, eight.method) == (8, "ks-small-sample")
    assert eight.alpha == pytest.approx(1 + 7 / np.sum(np.log(values[:8] / values[0])))
    assert fitted(values[:19]).method == "ks-small-sample"
    assert fitted(values[:20]).method == "ks"
    agree(fitted(values[:20]), candidates(values[:20]))


def test_the_floor_excludes_what_is_at_or_below_it() -> None:
    values = np.r_[np.zeros(30), 1e-9 * pareto_evals(2, 50), pareto_evals(3, 100)]
    fit = fitted(values, floor=1e-6)
    agree(fit, candidates(pareto_evals(3, 100)))
    exactly = fitted(np.r_[values, 1e-6], floor=1e-6)
    assert (exactly.alpha, exactly.ks) == (fit.alpha, fit.ks)
    above = fitted(np.r_[values, 1.0000001e-6], floor=1e-6, method="mid")
    assert above.n_tail == 101 - 101 // 2
    assert isinstance(fit_power_law(np.zeros(50)), Failure)


@given(samples)
def test_mid_takes_the_median_and_counts_it(values: Array) -> None:
    if values.max() / values.min() - 1 < 1e-6:
        return
    x = np.sort(values)
    tail = x[len(x) // 2 :]
    total = float(np.sum(np.log(tail / tail[0])))
    fit = fit_power_law(values, "mid")
    if total <= 1e-12 * len(tail):
        assert isinstance(fit, Failure)
        return
    assert isinstance(fit, PowerLaw)
    assert (fit.xmin, fit.n_tail, fit.method) == (tail[0], len(tail), "mid")
    assert fit.alpha == pytest.approx(1 + len(tail) / total, rel=1e-9)
    model = 1 - (tail / tail[0]) ** (1 - fit.alpha)
    expected = np.max(np.abs(model - np.arange(len(tail)) / len(tail)))
    assert fit.ks == pytest.approx(expected, abs=1e-9)


def peak_of(values: Array) -> float:
    """Left edge of the fullest of 100 equal bins of log10, counted one by one."""
    logs = np.log10(np.sort(values))
    width = (logs[-1] - logs[0]) / 100
    bins = np.minimum(((logs - logs[0]) / width).astype(int), 99)
    counts = [int(np.sum(bins == k)) for k in range(100)]
    return float(10 ** (logs[0] + width * counts.index(max(counts))))


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_peak_window_as_coded_and_as_intended(scale: float) -> None:
    """The authors compare a logarithm with eigenvalues: their lower bound hardly ever binds (F2).

    Below a peak of one it never does, so every value up to 1.5 peaks is tried.
    """
    values = scale * np.linalg.svd(gaussian(600, 300, 4), compute_uv=False) ** 2 / 600
    peak = peak_of(values)
    everything = candidates(values)
    intended = [c for c in everything if 0.95 * peak <= c.xmin <= 1.5 * peak]
    coded = [c for c in everything if np.log10(0.95 * peak) <= c.xmin <= 1.5 * peak]
    assert len(coded) > 2 * len(intended) > 20
    agree(fitted(values, "peak-fixed"), intended)
    agree(fitted(values, "peak"), coded)
    assert fitted(values, "peak").method == "peak"
    if scale < 1:
        assert len(coded) == len([c for c in everything if c.xmin <= 1.5 * peak])


def test_the_two_peak_windows_can_disagree() -> None:
    """The best xmin of this spectrum lies below the intended window."""
    values = np.random.default_rng(0).lognormal(2, 1, 60)
    peak = peak_of(values)
    coded, intended = fitted(values, "peak"), fitted(values, "peak-fixed")
    assert coded.xmin < 0.95 * peak <= intended.xmin <= 1.5 * peak
    assert coded.ks < intended.ks - 0.01


def test_an_empty_peak_window_is_a_failure_and_not_a_number() -> None:
    """The fullest bin is the last one, so only the largest value lies in the intended window."""
    values = np.r_[np.geomspace(1e-8, 1, 20), np.full(15, 1e4)]
    assert isinstance(fit_power_law(values, "peak-fixed"), Failure)


@pytest.mark.parametrize("method", ["ks", "mid", "peak", "peak-fixed"])
@pytest.mark.parametrize("n", [8, 30])
def test_a_constant_spectrum_has_no_exponent(method: FitMethod, n: int) -> None:
    assert isinstance(fit_power_law(np.full(n, 3.7), method), Failure)
    noisy = 3.7 * (1 + 1e-13 * np.arange(n))
    assert isinstance(fit_power_law(noisy, method), Failure)


def test_mid_refuses_a_constant_upper_half() -> None:
    values = np.r_[np.linspace(0.1, 1, 10), np.full(20, 2.0)]
    assert isinstance(fit_power_law(values, "mid"), Failure)
    agree(fitted(values), candidates(values))


@given(st.integers(-200, 200), st.sampled_from([2.0, 3.0, 4.0]))
def test_scaling_by_a_power_of_two_moves_xmin_alone(power: int, exponent: float) -> None:
    values = pareto_evals(exponent, 60)
    here, there = fitted(values), fitted(values * 2.0**power)
    assert there.xmin == here.xmin * 2.0**power
    assert there.n_tail == here.n_tail
    assert there.alpha == pytest.approx(here.alpha, rel=1e-9)
    assert there.ks == pytest.approx(here.ks, abs=1e-11)


@given(st.integers(0, 1000))
def test_the_order_of_the_eigenvalues_does_not_matter(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.pareto(1.5, 80) + 0.2
    assert fitted(values) == fitted(rng.permutation(values))


def test_a_pooled_spectrum_of_450000_values_is_searched_completely() -> None:
    """FARMS on LLaMA-7B pools as many; no candidate checked by the definition beats the winner."""
    rng = np.random.default_rng(0)
    values = np.sort(
        np.r_[rng.gamma(2.0, 1.0, 300_000), 4 * (rng.pareto(2.2, 149_995) + 1), np.full(5, 3e4)]
    )
    assert len(values) == 450_000
    fit = fitted(values)
    winner = len(values) - fit.n_tail
    assert values[winner] == fit.xmin
    nearby = winner + np.r_[-1000:0:37, 1:1000:37, -5:0, 1:6]
    spread = np.linspace(0, len(values) - 6, 300).astype(int)
    for start in (winner, *nearby, *spread):
        tail = values[start:]
        n = len(tail)
        alpha = 1 + n / float(np.sum(np.log(tail / tail[0])))
        ks = float(np.max(np.abs(1 - (tail / tail[0]) ** (1 - alpha) - np.arange(n) / n)))
        if start == winner:
            assert fit.alpha == pytest.approx(alpha, rel=1e-9)
            assert fit.ks == pytest.approx(ks, abs=1e-10)
        else:
            assert ks >= fit.ks - 1e-10
