"""Signal over noise: Spectrum's score for parity, and the one above the Tracy-Widom cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from measuring import Array, figures, measure, singular_values
from zoo import gaussian, low_rank, orthogonal, spiked, stored, with_singular_values

from weightscope.matrix import Matrix
from weightscope.measurement import EntryStatistics, Measurement
from weightscope.metrics.snr import COLUMNS
from weightscope.outcome import Failure
from weightscope.run import Run
from weightscope.spectrum import Spectrum
from weightscope.tensor import TensorRef

TW95 = 0.979316


def snr(weight: torch.Tensor | Array) -> dict[str, Any]:
    """The columns of the family, and what they need."""
    return figures(measure(weight), "snr")


def of_values(s: Array, N: int) -> dict[str, Any]:
    """The columns of given singular values, descending."""
    matrix = Matrix("w", TensorRef("w", (N, len(s)), "F64"), "whole", "other", "w")
    stats = EntryStatistics(0.0, 1.0, 1.0, 0.0, 0, 0.0)
    return figures(Measurement(matrix, stats, Spectrum(s, N, len(s))), "snr")


def program(s: Array, N: int) -> float:
    """Spectrum's score, one singular value at a time."""
    ordered = sorted(s)

    def quantile(share: float) -> float:
        place = share * (len(s) - 1)
        low = int(place)
        high = min(low + 1, len(s) - 1)
        return float(ordered[low] + (place - low) * (ordered[high] - ordered[low]))

    edge = (quantile(0.75) - quantile(0.25)) / 1.349 * (1 + (len(s) / N) ** 0.5)
    signal = sum(value for value in s if value > edge)
    below = [value for value in s if value <= edge]
    return float(signal / (sum(below) if below else 1.0) / max(s))


def test_it_is_spectrums_score_on_a_real_model(
    minilm_run: Run, golden: Callable[[str], list[dict[str, str]]]
) -> None:
    """Every matrix, against the formula in float64 and the program itself in float32."""
    records = [record for record in golden("minilm_spectrum.csv") if record["f64_snr"]]
    assert len(records) == 40
    for record in records:
        spectrum = minilm_run.spectrum(f"{record['module']}.weight")
        found = of_values(spectrum.singular_values, spectrum.N)["snr"]
        assert found == pytest.approx(float(record["f64_snr"]), rel=1e-9), record["module"]
        assert found == pytest.approx(float(record["spectrum_snr"]), rel=2e-6), record["module"]


@given(st.lists(st.floats(1e-3, 1e3), min_size=2, max_size=50).map(np.array), st.integers(0, 300))
def test_it_is_the_program_on_any_spectrum(s: Array, more: int) -> None:
    s = np.sort(s)[::-1]
    N = len(s) + more
    quarter, three_quarters = np.quantile(s, [0.25, 0.75])
    edge = (three_quarters - quarter) / 1.349 * (1 + (len(s) / N) ** 0.5)
    if np.min(np.abs(s - edge)) < 1e-9 * s[0]:
        return  # on the edge, so that rounding decides
    assert of_values(s, N)["snr"] == pytest.approx(program(s, N), rel=1e-9)


def test_noise_counts_as_signal_as_the_column_says() -> None:
    for (rows, cols), expected in {(800, 800): 0.8, (1000, 500): 4.0}.items():
        s = singular_values(gaussian(rows, cols, 1))
        assert of_values(s, rows)["snr"] * s[0] == pytest.approx(expected, rel=0.03)
    s = singular_values(gaussian(1200, 300, 2))
    # nothing is below the edge: the lower sum is one, in whatever unit
    for factor in (1.0, 50.0):
        assert of_values(factor * s, 1200)["snr"] == pytest.approx(sum(s) / s[0], rel=1e-12)


def test_nothing_above_the_edge_scores_zero() -> None:
    assert of_values(np.repeat([1.0, 0.1], 20), 40)["snr"] == 0


def test_equal_and_single_values_are_all_signal() -> None:
    assert of_values(np.ones(30), 30)["snr"] == pytest.approx(30, rel=1e-12)
    assert snr(orthogonal(32, 1))["snr"] == pytest.approx(32, rel=1e-9)
    assert snr(gaussian(1, 50, 3))["snr"] == pytest.approx(1, rel=1e-12)


def test_rounding_below_what_the_solver_resolves_is_no_noise() -> None:
    """A sum of zeros divides nothing; one of rounding errors would give any number."""
    weight = low_rank(60, 10, 4)
    s = singular_values(weight)[:10]
    assert snr(weight)["snr"] == pytest.approx(sum(s) / s[0], rel=1e-6)


@pytest.mark.parametrize("factor", [1e-12, 3.0, 1e9, 2.0**-700, 2.0**700])
def test_ten_times_the_weights_have_a_tenth_of_the_score(factor: float) -> None:
    weight = spiked(80, 100, 3, 5)
    here, there = snr(weight), snr(weight * factor)
    assert there["snr"] * factor == pytest.approx(here["snr"], rel=1e-9)
    assert there["snr_mp"] == pytest.approx(here["snr_mp"], rel=1e-9)


def test_a_score_outside_float64_is_a_failure() -> None:
    s = np.linspace(2e-310, 1e-311, 20)
    assert isinstance(of_values(s, 20)["snr"], Failure)


# ---------------------------------------------------------------------------------- snr_mp


def cut_of(s: Array, N: int, sigma: float) -> float:
    """Singular value that 19 of 20 noise matrices of that level stay below."""
    M = len(s)
    root = (M / N) ** 0.5
    allowance = TW95 * root * M ** (-2 / 3) * (1 + root) ** (4 / 3)
    return float(sigma * (N * ((1 + root) ** 2 + allowance)) ** 0.5)


@pytest.mark.parametrize("shape", [(200, 300), (300, 200), (256, 256)])
@pytest.mark.parametrize("spikes", [1, 5])
def test_planted_directions_are_the_signal(shape: tuple[int, int], spikes: int) -> None:
    weight = 0.3 * spiked(*shape, spikes, 6)
    s = singular_values(weight)
    found = snr(weight)
    # the planted level is within a per cent of the one matched, and no value lies between
    for sigma in (0.99 * 0.3, 1.04 * 0.3):
        assert sum(s > cut_of(s, max(shape), sigma)) == spikes
    assert found["mp_spikes"] == spikes
    assert found["snr_mp"] == pytest.approx(sum(s[:spikes]) / sum(s[spikes:]), rel=1e-9)


def test_the_cut_is_that_of_the_spikes() -> None:
    """Values placed on either side of it, closer than one per cent."""
    bulk = singular_values(gaussian(300, 200, 7))
    sigma = of_values(bulk, 300)["mp_sigma"]
    cut = cut_of(bulk, 300, sigma)
    for factor, signal in ((0.995, 0.0), (1.005, 1.005 * cut)):
        s = np.concatenate([[factor * cut], bulk[1:]])
        found = of_values(s, 300)
        assert found["mp_sigma"] == pytest.approx(sigma, rel=1e-12)
        assert found["mp_spikes"] == (signal > 0)
        assert found["snr_mp"] == pytest.approx(signal / sum(s[1:]), rel=1e-5)


def test_noise_has_no_signal_in_nineteen_cases_of_twenty() -> None:
    found = [snr(gaussian(120, 160, seed))["snr_mp"] for seed in range(200)]
    assert 2 <= sum(value > 0 for value in found) <= 20
    assert max(found) < 0.05


@pytest.mark.parametrize("shape", [(8, 8), (1, 40), (40, 1), (30, 2)])
def test_small_matrices_have_both(shape: tuple[int, int]) -> None:
    weight = gaussian(*shape, 8)
    found, s = snr(weight), singular_values(weight)
    assert found["snr"] == pytest.approx(program(s, max(shape)), rel=1e-9)
    above = s > cut_of(s, max(shape), found["mp_sigma"])
    assert found["snr_mp"] == pytest.approx(sum(s[above]) / sum(s[~above]), rel=1e-9)


def test_without_a_bulk_the_reason_is_given() -> None:
    found = snr(stored(low_rank(64, 5, 9), "float32"))
    assert isinstance(found["snr"], float)
    assert isinstance(found["snr_mp"], Failure)
    assert found["snr_mp"] == found["mp_sigma"]


def test_pooled_slices_have_none_and_single_positions_do() -> None:
    kernel = np.random.default_rng(10).standard_normal((20, 16, 3, 3))
    pooled = snr(kernel)
    for name in ("snr", "snr_mp"):
        assert isinstance(pooled[name], Failure) and "convolution" in pooled[name].reason
    single = snr(kernel[:, :, :1, :1].copy())
    plain = snr(kernel[:, :, 0, 0].copy())
    assert (
        single["snr"]
        == plain["snr"]
        == pytest.approx(program(singular_values(kernel[:, :, 0, 0]), 20), rel=1e-9)
    )
    assert single["snr_mp"] == plain["snr_mp"]


def test_zeros_have_none() -> None:
    assert not {"snr", "snr_mp"} & snr(np.zeros((10, 12))).keys()


def test_a_spectrum_without_noise_below_it_keeps_its_scale_free_value() -> None:
    weight = with_singular_values(np.linspace(1.2, 1.0, 40), 40, 60)
    assert snr(weight)["snr"] == pytest.approx(44 / 1.2, rel=1e-9)


def test_the_columns_explain_themselves() -> None:
    assert [column.name for column in COLUMNS] == ["snr", "snr_mp"]
    for column in COLUMNS:
        for part in ("meaning", "formula", "range", "reading", "caution", "noise", "source"):
            assert getattr(column, part), (column.name, part)
