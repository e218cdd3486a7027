"""Rounding to a few bits: the error of the weights, and the change of the spectrum."""

from __future__ import annotations

import json
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from measuring import Array, figures, measure, singular_values
from scipy.integrate import quad
from scipy.stats import norm
from zoo import gaussian, low_rank, spiked, stored

from weightscope.decompositions import quantised
from weightscope.decompositions.quantised import GROUP, quantise
from weightscope.folders.records import measurement_from, measurement_record
from weightscope.measurement import Measurement, QuantError
from weightscope.metrics.quant import COLUMNS
from weightscope.outcome import Failure
from weightscope.settings import QUANT_BITS


def quant(weight: torch.Tensor | Array, *bits: int) -> dict[str, Any]:
    """The columns of the family."""
    return figures(measure(weight, quant_error=bits or QUANT_BITS), "quant", quant_error=bits)


def naive(matrix: Array, bits: int) -> Array:
    """Entry by entry, group by group."""
    out = np.zeros_like(matrix)
    for i, row in enumerate(matrix):
        for start in range(0, len(row), 128):
            group = row[start : start + 128]
            largest = max(abs(w) for w in group)
            for j, w in enumerate(group):
                step = largest / (2 ** (bits - 1) - 1)
                out[i, start + j] = round(w / step) * step if largest else 0.0
    return out


def naive_figures(weight: torch.Tensor, bits: int) -> tuple[float, float]:
    """Error and shift of a matrix or of pooled slices."""
    exact = weight.double().numpy()
    flat = exact.reshape(*exact.shape[:2], -1)
    rounded = np.stack([naive(flat[:, :, j], bits) for j in range(flat.shape[2])], axis=2)
    error = np.linalg.norm(flat - rounded) / np.linalg.norm(flat)
    pairs = zip(singular_values(weight), singular_values(rounded), strict=True)
    return error, float(np.mean([abs(log(a) - log(b)) for a, b in pairs]))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize(
    "shape", [(5, 300), (200, 7), (130, 129), (20, 256), (1, 130), (40, 20, 3), (12, 140, 2, 2)]
)
def test_both_figures_are_those_of_a_loop(shape: tuple[int, ...], dtype: str) -> None:
    """Ragged last groups, single rows and pooled convolutions included."""
    weight = stored(np.random.default_rng(sum(shape)).standard_t(4, shape), dtype)
    found = quant(weight)
    for bits in QUANT_BITS:
        error, shift = naive_figures(weight, bits)
        assert found[f"quant_error_{bits}"] == pytest.approx(error, rel=1e-9)
        assert found[f"quant_shift_{bits}"] == pytest.approx(shift, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("shape", [(300, 70), (70, 600), (130, 130)])
@pytest.mark.parametrize("size", [1, 10_000, 100_000])
def test_blocks_never_cut_a_group(
    shape: tuple[int, int], size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = gaussian(*shape, 1)
    whole = quant(weight)
    monkeypatch.setattr(quantised, "_BLOCK_BYTES", size)
    for name, value in quant(weight).items():
        assert value == pytest.approx(whole[name], rel=1e-9), name


def test_the_memory_layout_does_not_matter() -> None:
    """A transposed or strided view is rounded along its second dimension like a plain matrix."""
    weight = torch.from_numpy(gaussian(150, 260, 2)).bfloat16()
    plain = quant(weight)
    wide = torch.zeros(150, 520, dtype=torch.bfloat16)
    wide[:, ::2] = weight
    for view in (weight.T.contiguous().T, wide[:, ::2]):
        assert not view.is_contiguous()
        assert quant(view) == pytest.approx(plain, rel=1e-12)
    assert quant(weight.T.contiguous())["quant_error_4"] != plain["quant_error_4"]


# ------------------------------------------------------------------------------------ theory


def gaussian_error(bits: int) -> float:
    """Relative error of groups of 128 normal entries, integrated over their largest one."""
    levels = 2 ** (bits - 1) - 1
    largest = np.linspace(1, 7, 601)
    step = largest / levels
    squared = np.zeros_like(largest)
    for k in range(levels + 1):
        low, high = np.maximum(0, (k - 0.5) * step), np.minimum(largest, (k + 0.5) * step)
        squared += moment(high, k * step) - moment(low, k * step)
    squared /= norm.cdf(largest) - 0.5
    density = norm.pdf(largest) * (2 * norm.cdf(largest) - 1) ** 127
    return float((127 / 128 * np.sum(density * squared) / density.sum()) ** 0.5)


def moment(x: Array, centre: Array) -> Array:
    """Antiderivative of (x - centre)^2 times the normal density."""
    return (1 + centre**2) * norm.cdf(x) + (2 * centre - x) * norm.pdf(x)


def test_the_moment_is_an_integral() -> None:
    expected = quad(lambda x: (x - 0.3) ** 2 * norm.pdf(x), 0.1, 1.7)[0]
    assert moment(1.7, 0.3) - moment(0.1, 0.3) == pytest.approx(expected)


@pytest.mark.parametrize("bits", QUANT_BITS)
def test_gaussian_entries_have_the_error_of_theory(bits: int) -> None:
    expected = gaussian_error(bits)
    found = quant(gaussian(512, 1024, 3), bits)
    assert found[f"quant_error_{bits}"] == pytest.approx(expected, rel=5e-3)
    (column,) = [c for c in COLUMNS if c.name == f"quant_error_{bits}"]
    assert float(column.noise) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("bits", QUANT_BITS)
def test_uniform_entries_have_the_error_of_theory(bits: int) -> None:
    """Within a group the error is uniform over a step: sqrt(127 / 130) / 2 / (2^(b-1) - 1)."""
    weight = np.random.default_rng(4).uniform(-1, 1, (512, 1024))
    expected = (127 / 130) ** 0.5 / 2 / (2 ** (bits - 1) - 1)
    assert quant(weight, bits)[f"quant_error_{bits}"] == pytest.approx(expected, rel=5e-3)


@pytest.mark.parametrize("bits", QUANT_BITS)
def test_a_matrix_on_the_grid_is_kept(bits: int) -> None:
    """Integers of the width, every group reaching the largest, times one step."""
    top = 2 ** (bits - 1) - 1
    levels = np.random.default_rng(bits).integers(-top, top + 1, (60, 300)).astype(float)
    levels[:, ::40] = top
    found = quant(levels * 0.37, bits)
    assert found[f"quant_error_{bits}"] < 1e-15
    assert found[f"quant_shift_{bits}"] < 1e-12


def test_outliers_cost_their_group() -> None:
    """One entry 100 times larger makes the rest of its group vanish at 4 bits, and no other."""
    weight = gaussian(64, 512, 5)
    plain = quant(weight, 4)["quant_error_4"]
    weight[:, 200] = 100.0
    found = quant(weight, 4)["quant_error_4"] * np.linalg.norm(weight)
    lost = np.delete(weight[:, 128:256], 72, axis=1)
    rest = np.delete(weight, np.s_[128:256], axis=1)
    expected = (np.sum(lost**2) + (plain * np.linalg.norm(rest)) ** 2) ** 0.5
    assert found == pytest.approx(expected, rel=5e-3)


@given(st.integers(1, 20), st.integers(1, 300), st.sampled_from(QUANT_BITS), st.integers(0, 2**31))
def test_no_entry_moves_by_more_than_half_a_step(
    rows: int, cols: int, bits: int, seed: int
) -> None:
    block = torch.from_numpy(np.random.default_rng(seed).standard_t(2, (rows, cols)))
    block[:, : cols // 3] *= torch.rand(1, dtype=torch.float64) > 0.5  # zeros too
    found = quantise(block, bits)
    for start in range(0, cols, GROUP):
        group, rounded = block[:, start : start + GROUP], found[:, start : start + GROUP]
        largest = group.abs().amax(1, keepdim=True)
        step = largest / (2 ** (bits - 1) - 1)
        assert torch.all((group - rounded).abs() <= step / 2 * (1 + 1e-9))
        assert torch.all(rounded.abs() <= largest * (1 + 1e-12))
        kept = rounded[group.abs() == largest]
        torch.testing.assert_close(kept, group[group.abs() == largest], rtol=1e-12, atol=0)
        levels = rounded / torch.where(step > 0, step, 1.0)
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-9)
    torch.testing.assert_close(quantise(-block, bits), -found, rtol=0, atol=0)
    torch.testing.assert_close(quantise(block * 2.0**-80, bits), found * 2.0**-80, rtol=0, atol=0)


@pytest.mark.parametrize("seed", range(3))
def test_more_bits_lose_less(seed: int) -> None:
    found = quant(spiked(120, 260, 3, seed))
    for kind in ("error", "shift"):
        values = [found[f"quant_{kind}_{bits}"] for bits in (2, 3, 4, 5, 6, 8)]
        assert values == sorted(values, reverse=True)


# ---------------------------------------------------------------------------------- spectrum


def test_the_small_directions_drown_first() -> None:
    """A bulk of noise below large directions: the mean shift is that of the bulk."""
    weight = low_rank(160, 6, 6) + 1e-3 * gaussian(160, 160, 7)
    found = quant(weight, 4)
    assert found["quant_error_4"] < 0.15
    assert found["quant_shift_4"] > log(50)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_the_spectrum_is_compared_above_the_floor(dtype: str) -> None:
    weight = stored(low_rank(128, 4, 8), dtype)
    before, after = (
        singular_values(m)[:4]
        for m in (weight, torch.from_numpy(naive(weight.double().numpy(), 3)))
    )
    expected = np.mean(np.abs(np.log(before) - np.log(after)))
    assert quant(weight, 3)["quant_shift_3"] == pytest.approx(expected, rel=1e-6)


def test_a_direction_that_rounding_removes_counts_as_the_solver_resolves() -> None:
    """Both rows become (2, 0, 0, ...): rank two becomes rank one."""
    weight = np.repeat([[0.9], [0.8]], 40, axis=1)
    weight[:, 0] = 2.0
    s, rounded = singular_values(weight), singular_values(naive(weight, 2))
    assert rounded[1] < 1e-12
    shift = log(s[0] / rounded[0]), log(s[1] / (rounded[0] * (8 * 2.0**-52) ** 0.5))
    assert quant(weight, 2)["quant_shift_2"] == pytest.approx(np.mean(np.abs(shift)), rel=1e-9)


@pytest.mark.parametrize("power", [-900, -600, -40, 5, 500, 900])
def test_a_power_of_two_changes_nothing(power: int) -> None:
    weight = gaussian(40, 150, 9)
    there = quant(weight * 2.0**power)
    assert there == pytest.approx(quant(weight), rel=1e-12)


# ------------------------------------------------------------------------------- bookkeeping


def test_nothing_is_rounded_unless_asked_for_or_for_zeros() -> None:
    assert measure(gaussian(20, 20)).quant is None
    assert measure(np.zeros((20, 20)), quant_error=(4,)).quant is None
    assert figures(measure(gaussian(20, 20)), "quant") == {}


def test_only_the_bits_asked_for_are_filled() -> None:
    assert set(quant(gaussian(20, 20), 8, 3)) == {
        "quant_error_8",
        "quant_error_3",
        "quant_shift_8",
        "quant_shift_3",
    }


def test_the_columns_are_in_order_and_explain_themselves() -> None:
    expected = [
        f"quant_{kind}_{bits}" for kind in ("error", "shift") for bits in (8, 6, 5, 4, 3, 2)
    ]
    assert [column.name for column in COLUMNS] == expected
    for column in COLUMNS:
        for part in ("meaning", "formula", "range", "reading", "caution", "noise", "source"):
            assert getattr(column, part), (column.name, part)


@pytest.mark.parametrize("bits", [(), (4,), (8, 4, 3)])
def test_a_record_gives_the_same_figures_again(bits: tuple[int, ...]) -> None:
    measured = measure(gaussian(30, 40), quant_error=bits)
    record = json.loads(json.dumps(measurement_record(measured), allow_nan=False))
    assert measured.spectrum is not None
    again = measurement_from(record, measured.matrix, measured.spectrum.singular_values)
    assert again.quant == measured.quant
    assert figures(again, "quant") == figures(measured, "quant")


def test_what_cannot_be_had_is_told() -> None:
    matrix = measure(gaussian(9, 9)).matrix
    failed = Measurement(matrix, quant=Failure("why"))
    record = json.loads(json.dumps(measurement_record(failed)))
    again = measurement_from(record, matrix, None)
    assert again.quant == Failure("why")
    assert figures(again, "quant", quant_error=(4, 3)) == {"quant_error_4": Failure("why")}
    drowned = Measurement(matrix, quant=(QuantError(4, 0.1, None),))
    found = figures(drowned, "quant")
    assert found["quant_error_4"] == 0.1
    assert isinstance(found["quant_shift_4"], Failure)
