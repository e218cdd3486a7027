"""What must hold for every matrix of the zoo, whatever its figures are."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite, log10
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import (
    FINITE,
    FITTED,
    ZOO,
    Array,
    gaussian,
    low_rank,
    orthogonal,
    pareto_evals,
    stored,
    tensor,
    truth,
    with_singular_values,
)

import weightscope
from weightscope.columns import Column
from weightscope.decompositions.farms import Windows, window_spectra, windows_for
from weightscope.evaluate import Row, all_columns, columns_of, evaluate
from weightscope.laws.power_law import PowerLaw, fit_power_law
from weightscope.matrix import Matrix
from weightscope.measure import Measure
from weightscope.measurement import EntryStatistics, Measurement
from weightscope.metrics import erg, welore
from weightscope.outcome import Failure
from weightscope.plugins import load
from weightscope.recipe import EvalFloor, Farms, farms_preset
from weightscope.run import Run
from weightscope.settings import FAMILIES, Settings
from weightscope.spectrum import Spectrum
from weightscope.tensor import TensorRef

STATUSES = {
    "ok", "empty", "nonfinite", "zero", "constant", "too_few", "rank_one", "unsupported", "failed",
    "skipped", "fused",
}  # fmt: skip
ON_REQUEST = {"shuffled", "bootstrap", "quant", "adapter"}
WITHOUT_REASON = ON_REQUEST | {"solver", "reading", "second", "encoding"}
"""Families that are empty where they were not asked for, and such without numbers."""
WARNINGS = {
    "tail_small",
    "tail_short",
    "farms_tail_small",
    "outside_interval",
    "padded_rows",
    "rank_deficient",
    "below_floor",
    "near_tie",
    "slow_solver",
}
EVERY = EvalFloor("abs", 0.0)
COLUMNS = {column.name: column for column in all_columns()}
NUMBERS = [c for c in columns_of(FAMILIES) if c.kind != "text"]

# an entry's spacing is a step function of its size, so what is made of it moves by up to a factor
STEPPED = {"sv_floor", "condition_number_resolvable"}


def analyze(tensors: dict[str, torch.Tensor], **options: Any) -> Run:
    return weightscope.analyze(tensors, **{"device": "cpu", **options})


def row_of(matrix: torch.Tensor, name: str = "w.weight", **options: Any) -> Row:
    return analyze({name: matrix}, **options).rows[0]


def row_in(run: Run, name: str) -> Row:
    (row,) = [row for row in run.rows if row["name"] == name]
    return row


def number(row: Row, name: str) -> float:
    value = row[name]
    assert isinstance(value, int | float), (name, value, row["reason"])
    return float(value)


def codes(row: Row) -> set[str]:
    return set(str(row["warnings"] or "").split(";")) - {""}


# --------------------------------------------------------------------------------- the zoo


@pytest.mark.parametrize("name", ZOO)
def test_every_member_has_the_facts_that_theory_gives(name: str, zoo_run: Run) -> None:
    member, row = ZOO[name], row_in(zoo_run, f"{name}.weight")
    assert row["status"] == member.status
    assert set(member.warnings) <= codes(row)
    for column, fact in member.facts.items():
        if isinstance(fact, float):
            assert number(row, column) == pytest.approx(fact, rel=1e-6, abs=1e-9), column
        else:
            assert row[column] == fact, column


@pytest.mark.parametrize("name", ZOO)
def test_every_cell_is_of_its_type_and_finite_or_empty(name: str, zoo_run: Run) -> None:
    row = row_in(zoo_run, f"{name}.weight")
    assert list(row) == list(COLUMNS)
    for column, value in row.items():
        if value is None:
            continue
        kind = {"text": str, "integer": int, "number": (int, float)}[COLUMNS[column].kind]
        assert isinstance(value, kind), column
        assert not isinstance(value, bool)
        if isinstance(value, float):
            assert isfinite(value), column
    assert row["status"] in STATUSES
    assert codes(row) <= WARNINGS


@pytest.mark.parametrize("name", ZOO)
def test_a_row_that_is_not_ok_says_why_in_a_sentence(name: str, zoo_run: Run) -> None:
    row = row_in(zoo_run, f"{name}.weight")
    if row["status"] != "ok":
        reason = str(row["reason"])
        assert reason[0].isupper() or reason[0].isdigit()
        assert reason.endswith(".")
        assert row["alpha"] is None


@pytest.mark.parametrize("name", FITTED)
def test_an_empty_figure_of_an_analysed_row_is_explained(name: str, zoo_run: Run) -> None:
    row = row_in(zoo_run, f"{name}.weight")
    for family in set(FAMILIES) - WITHOUT_REASON:
        columns = [c.name for c in columns_of([family]) if c.kind != "text"]
        empty = [c for c in columns if row[c] is None]
        if len(empty) == len(columns):
            assert columns[0] in str(row["reason"]), family
    if row["condition_number"] is None:
        assert "condition_number" in str(row["reason"])


@pytest.mark.parametrize("name", ZOO)
def test_no_row_depends_on_the_others(name: str, zoo_run: Run) -> None:
    """Nor is any disturbed by the broken ones: alone, each gives the same bytes."""
    among_others, alone = row_in(zoo_run, f"{name}.weight"), row_of(tensor(name), f"{name}.weight")
    for column in among_others:
        if not column.startswith("welore"):
            assert among_others[column] == alone[column], column


@pytest.mark.parametrize("name", FINITE)
def test_the_spectrum_is_that_of_lapack(name: str, zoo_run: Run) -> None:
    spectrum, expected = zoo_run.spectrum(f"{name}.weight"), truth(name)
    assert spectrum.singular_values.dtype == np.float64
    assert np.all(np.diff(spectrum.singular_values) <= 0)
    above = expected > spectrum.resolution
    found = spectrum.singular_values
    np.testing.assert_allclose(found[above][:-1], expected[above][:-1], rtol=1e-7)
    assert np.all(found[~above] <= 2 * spectrum.resolution)
    if expected[-1] > spectrum.resolution:
        assert spectrum.smallest == pytest.approx(
            expected[-1], rel=max(spectrum.relative_error, 1e-12)
        )


@pytest.mark.parametrize("name", FITTED)
def test_the_fit_is_that_of_the_exact_spectrum(name: str, zoo_run: Run) -> None:
    """Above the rank only: below it is what rounding left."""
    row, s = row_in(zoo_run, f"{name}.weight"), truth(name)
    rank = int(number(row, "rank"))
    evals = np.square(s / s[0])
    deficient = rank < 0.9 * len(s)
    floor = evals[rank] if deficient else (int(number(row, "N")) * 2.0**-23) ** 2
    fit = fit_power_law(evals, "ks", float(floor))
    assert isinstance(fit, PowerLaw)
    if name != "ties":  # equal up to rounding, so either of a run may be the first
        assert row["alpha_n_tail"] == fit.n_tail
        assert number(row, "alpha") == pytest.approx(fit.alpha, rel=1e-6)
        assert number(row, "alpha_ks") == pytest.approx(fit.ks, rel=1e-6)
    cut = erg.crossing(evals[:rank] if deficient else evals)
    assert row["erg_n_tail"] == cut.n_tail
    n_tail = int(number(row, "alpha_n_tail"))
    assert row["erg_gap"] == cut.n_tail - n_tail
    kept = evals[:rank] if deficient else evals
    xmin = kept[n_tail - 1]
    expected = {
        "erg_delta": (xmin - kept[cut.n_tail - 1]) / kept.mean(),
        "erg_log_ratio": np.log(xmin / kept[cut.n_tail - 1]),
        "erg_tracelog": np.mean(np.log(kept[:n_tail] / kept.mean())),
    }
    for column, value in expected.items():
        assert number(row, column) == pytest.approx(value, rel=1e-6, abs=1e-9), column
    band = "very-heavy" if fit.alpha < 2 else "heavy" if fit.alpha <= 6 else "weak"
    assert row["alpha_band"] == band


def test_the_summary_counts_every_status_once(zoo_run: Run) -> None:
    counted = zoo_run.summary["status"]
    for status in {member.status for member in ZOO.values()}:
        assert counted[status] == sum(m.status == status for m in ZOO.values())
    assert sum(counted.values()) == len(ZOO) == zoo_run.summary["matrices"]


def test_tensors_without_entries_have_a_row_and_no_figures() -> None:
    run = analyze({"a.weight": torch.zeros(0, 5), "b.weight": tensor("gaussian_q1")})
    assert run.rows[0]["status"] == "empty"
    assert all(run.rows[0][column.name] is None for column in NUMBERS)
    assert run.rows[1]["status"] == "ok"


# ------------------------------------------------------------------------------- scaling


def scaled(row: Row, column: Column, factor: float) -> float:
    """What a figure becomes when every weight is multiplied."""
    value = number(row, column.name)
    shift = 2 * log10(factor)
    if column.name in {"alpha_hat", "log_alpha_norm"}:
        return value + number(row, "alpha") * shift
    if column.unit == "log W^2":
        return value + shift
    power = {"1": 0, "W": 1, "W^2": 2, "1/W": -1, "1/W^2": -2}[column.unit]
    return value * factor**power


@given(st.sampled_from(FINITE), st.integers(-40, 40))
@settings(max_examples=60)
def test_a_power_of_two_moves_what_has_a_unit_and_nothing_else(name: str, power: int) -> None:
    """Exactly, in the stored type and everywhere after it."""
    matrix = tensor(name).double()
    if name in {"tiny_float64", "huge_float64"}:
        power //= 2
    factor = 2.0**power
    here, there = row_of(matrix), row_of(matrix * factor)
    for column in COLUMNS.values():
        if column.name == "snr":  # has no unit where nothing lies below its edge
            continue
        before, after = here[column.name], there[column.name]
        if column.kind == "text" or column.unit == "1":
            assert _without_numbers(before) == _without_numbers(after), column.name
        elif before is None:
            assert after is None, column.name
        elif column.unit.startswith("log"):
            assert after == pytest.approx(scaled(here, column, factor), abs=1e-9), column.name
        else:
            assert after == scaled(here, column, factor), column.name


def _without_numbers(value: object) -> object:
    """A reason may name the resolution of the solver, which scales."""
    return value.split("(")[0] if isinstance(value, str) else value


MULTIPLIED = ("gaussian_q1", "gaussian_q2", "gaussian_q4", "student_t", "power_law_2", "spiked")


@given(st.sampled_from(MULTIPLIED), st.floats(1e-6, 1e6))
@settings(max_examples=40)
def test_any_factor_moves_what_has_a_unit_and_nothing_else(name: str, factor: float) -> None:
    matrix = tensor(name).double()
    here, there = row_of(matrix), row_of(matrix * factor)
    for column in NUMBERS:
        if column.name in {*STEPPED, "snr"} or here[column.name] is None:
            continue
        tolerance = 1e-7 if column.name == "condition_number" else 1e-9
        expected = scaled(here, column, factor)
        assert number(there, column.name) == pytest.approx(
            expected, rel=tolerance, abs=1e-9 * max(1, abs(expected))
        ), column.name
    ratio = number(there, "sv_floor") / number(here, "sv_floor") / factor
    assert 0.49 < ratio < 2.01


@pytest.mark.parametrize("scale", [1e-200, 1e-150, 1e-100, 1e100, 1e150, 1e200])
def test_scales_whose_squares_leave_float64(scale: float) -> None:
    matrix = tensor("student_t").double()
    here, there = row_of(matrix), row_of(matrix * scale)
    for column in NUMBERS:
        if column.name in {*STEPPED, "snr"}:
            continue
        if here[column.name] is None:
            assert there[column.name] is None, column.name
            continue
        if column.unit != "W^2":
            expected = scaled(here, column, scale)
        else:
            expected = number(here, column.name) * scale * scale
            if not 0 < expected < float("inf"):
                assert there[column.name] is None, column.name
                continue
        assert number(there, column.name) == pytest.approx(expected, rel=1e-7), column.name
    if there["alpha_xmin"] is None:
        assert "alpha_xmin" in str(there["reason"])


# ------------------------------------------------------- transposition, permutation, rotation

OF_SHAPE = ("mp", "null", "noise", "snr")
SAME_SPECTRUM = [
    column.name
    for family in (
        *("alpha", "erg", "condition", "rank", "norms", "mp", "welore"),
        *("null", "noise", "tails", "second", "snr"),
    )
    for column in columns_of([family])
    if column.kind != "text" and column.name not in STEPPED
]


def same_figures(here: Row, there: Row, names: list[str], rtol: float) -> None:
    for name in names:
        before, after = here[name], there[name]
        if before is None or after is None or COLUMNS[name].kind != "number":
            assert before == after, name
        else:
            tolerance = max(rtol, 1e-7) if name == "condition_number" else rtol
            assert after == pytest.approx(before, rel=tolerance, abs=rtol), name


@pytest.mark.parametrize("name", FINITE)
def test_a_matrix_and_its_transpose_have_the_same_figures(name: str, zoo_run: Run) -> None:
    matrix = tensor(name)
    here = row_of(matrix)
    there = row_of(matrix.T.contiguous())
    assert (here["rows"], here["cols"]) == (there["cols"], there["rows"])
    for key in ("N", "M", "Q", "status", "params", "sv_floor"):
        if key == "sv_floor" and here[key] is not None:
            assert number(there, key) == pytest.approx(number(here, key), rel=1e-12)
        else:
            assert here[key] == there[key]
    if name == "ties":
        return
    stats = [column.name for column in columns_of(["stats"])]
    same_figures(here, there, [*stats, *SAME_SPECTRUM], 1e-9)
    farms = [column.name for column in columns_of(["farms"]) if column.unit == "1"]
    swapped = {"farms_window_rows", "farms_window_cols"}
    same_figures(here, there, [c for c in farms if c not in swapped], 1e-7)


@given(st.sampled_from((*MULTIPLIED, "low_rank", "small_sample", "few")), st.integers(0, 999))
@settings(max_examples=40)
def test_the_order_of_rows_and_columns_does_not_matter(name: str, seed: int) -> None:
    """Except to FARMS, whose windows are contiguous."""
    rng = np.random.default_rng(seed)
    matrix = tensor(name).double()
    rows, cols = (torch.from_numpy(rng.permutation(n)) for n in matrix.shape)
    names = [*SAME_SPECTRUM, "sv_floor", "weight_abs_max", "weight_zero_fraction"]
    options = {"metrics": tuple(f for f in FAMILIES if f != "farms")}
    here, there = row_of(matrix, **options), row_of(matrix[rows][:, cols], **options)
    same_figures(here, there, names, 1e-9)
    assert here["warnings"] == there["warnings"]


@given(st.sampled_from(MULTIPLIED), st.integers(0, 999))
@settings(max_examples=25)
def test_rotations_keep_all_figures_of_the_spectrum(name: str, seed: int) -> None:
    matrix = tensor(name).double().numpy()
    left, right = (orthogonal(n, seed + k) for k, n in enumerate(matrix.shape))
    options = {"metrics": tuple(f for f in FAMILIES if f not in {"farms", "stats"})}
    here = row_of(torch.from_numpy(matrix), **options)
    there = row_of(torch.from_numpy(left @ matrix @ right), **options)
    same_figures(here, there, SAME_SPECTRUM, 1e-8)


@given(st.sampled_from(MULTIPLIED), st.integers(0, 999))
@settings(max_examples=20)
def test_signs_of_rows_and_columns_do_not_matter(name: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = tensor(name).double()
    rows, cols = (torch.from_numpy(rng.choice([-1.0, 1.0], n)) for n in matrix.shape)
    here, there = row_of(matrix), row_of(rows[:, None] * matrix * cols)
    farms = [column.name for column in columns_of(["farms"])]
    same_figures(here, there, [*SAME_SPECTRUM, *farms, "sv_floor"], 1e-9)


@pytest.mark.parametrize("name", MULTIPLIED)
def test_padding_with_zeros_changes_only_what_counts_directions(name: str) -> None:
    """Zero columns on the long side: the same eigenvalues, another shape."""
    matrix = tensor(name).double()
    long = 1 if matrix.shape[1] >= matrix.shape[0] else 0
    zeros = torch.zeros(matrix.shape[0], 24) if long else torch.zeros(24, matrix.shape[1])
    here, there = row_of(matrix), row_of(torch.cat([matrix, zeros.double()], dim=long))
    of_shape = {c.name for family in OF_SHAPE for c in columns_of([family])}
    names = [n for n in SAME_SPECTRUM if n not in of_shape]
    same_figures(here, there, names, 1e-9)


# ------------------------------------------------------- convolutions and stacks of experts


def kernel(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def pooled(weight: torch.Tensor) -> Array:
    """Singular values of every kernel position, one by one."""
    flat = weight.double().numpy().reshape(*weight.shape[:2], -1)
    values = [np.linalg.svd(flat[:, :, j], compute_uv=False) for j in range(flat.shape[2])]
    return np.sort(np.concatenate(values))[::-1]


CONVOLUTIONS: dict[str, Callable[[int], torch.nn.Module]] = {
    "1d": lambda k: torch.nn.Conv1d(12, 20, k),
    "2d": lambda k: torch.nn.Conv2d(12, 20, k),
    "2d-oblong": lambda k: torch.nn.Conv2d(12, 20, (k, 2)),
    "3d": lambda k: torch.nn.Conv3d(12, 20, k),
    "1d-transposed": lambda k: torch.nn.ConvTranspose1d(12, 20, k),
    "2d-transposed": lambda k: torch.nn.ConvTranspose2d(20, 12, k),
    "3d-transposed": lambda k: torch.nn.ConvTranspose3d(12, 20, k),
    "grouped": lambda k: torch.nn.Conv2d(24, 20, k, groups=2),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_convolutions_pool_their_kernel_positions(kind: str, k: int) -> None:
    torch.manual_seed(0)
    module = CONVOLUTIONS[kind](k)
    run = weightscope.analyze(torch.nn.Sequential(module), device="cpu")
    (row,) = run.rows
    weight = module.weight.detach()
    positions = weight[0, 0].numel()
    assert (row["role"], row["slices"]) == ("conv", positions)
    assert (row["N"], row["M"], row["Q"]) == (20, 12, 20 / 12)
    assert row["params"] == weight.numel()
    expected = pooled(weight)
    np.testing.assert_allclose(
        run.spectrum("0.weight").singular_values, expected, rtol=1e-9, atol=1e-12
    )
    assert number(row, "frobenius_norm") == pytest.approx(float(weight.double().norm()))
    fit = fit_power_law(np.square(expected))
    assert isinstance(fit, PowerLaw)
    assert number(row, "alpha") == pytest.approx(fit.alpha, rel=1e-9)
    assert row["erg_n_tail"] == erg.crossing(np.square(expected)).n_tail
    assert row["status"] == "ok"


def test_a_flattened_convolution_is_one_matrix() -> None:
    weight = kernel(16, 10, 3, 3)
    run = analyze({"conv.weight": weight}, conv="flatten")
    row = run.rows[0]
    assert [row[key] for key in ("rows", "cols", "slices", "N", "M")] == [16, 90, 1, 90, 16]
    expected = np.linalg.svd(weight.numpy().reshape(16, 90), compute_uv=False)
    np.testing.assert_allclose(run.spectrum("conv.weight").singular_values, expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(24, 1, 3, 3), (24, 1, 5), (24, 1, 2, 2, 2)])
def test_depthwise_convolutions_are_flattened(shape: tuple[int, ...]) -> None:
    """A slice of one has a single column and says nothing."""
    weight = kernel(*shape)
    run = analyze({"conv.weight": weight})
    expected = np.linalg.svd(weight.numpy().reshape(24, -1), compute_uv=False)
    assert run.rows[0]["slices"] == 1
    np.testing.assert_allclose(run.spectrum("conv.weight").singular_values, expected, rtol=1e-12)


@pytest.mark.parametrize("method", ["ks", "mid", "peak", "peak-fixed"])
@pytest.mark.parametrize("preset", ["auto", "paper-llm", "paper-cnn"])
def test_every_fit_and_preset_takes_a_convolution(method: str, preset: str) -> None:
    row = row_of(kernel(64, 96, 2, 2), "conv.weight", xmin=method, farms=preset)
    assert row["alpha_method"] == method
    assert number(row, "alpha") > 1
    assert number(row, "alpha_farms") > 1
    assert row["farms_windows"] == {"auto": 15 * 4, "paper-llm": 4 * 15, "paper-cnn": 4}[preset]


def test_the_convolution_preset_is_the_authors_averaging() -> None:
    """Square row blocks of each oriented slice, pooled over the kernel, fitted, averaged."""
    weight = kernel(40, 130, 3, 1)
    row = row_of(weight, "conv.weight", farms="paper-cnn")
    alphas = []
    for block in range(3):
        part = weight.numpy()[:, 40 * block : 40 * (block + 1), :, 0]
        evals = np.sort(
            np.concatenate([np.linalg.svd(part[:, :, j].T, compute_uv=False) for j in range(3)])
        )
        tail = evals[len(evals) // 2 :] ** 2
        alphas.append(1 + len(tail) / float(np.sum(np.log(tail / tail[0]))))
    assert number(row, "alpha_farms") == pytest.approx(np.mean(alphas), rel=1e-9)
    assert number(row, "alpha_farms_sd") == pytest.approx(np.std(alphas, ddof=1), rel=1e-9)
    assert row["farms_method"] == "mid-block-mean"
    assert (row["farms_windows"], row["farms_window_rows"], row["farms_window_cols"]) == (9, 40, 40)
    assert number(row, "farms_coverage") == pytest.approx(120 / 130)


@pytest.mark.parametrize("shape", [(3, 24, 40), (3, 40, 24)])
def test_a_stack_of_experts_has_a_row_for_each(shape: tuple[int, int, int]) -> None:
    stack = kernel(*shape)
    stack[1, 0, 0] = torch.nan
    name = "model.layers.3.mlp.experts.gate_up_proj"
    run = analyze({name: stack})
    assert [row["name"] for row in run.rows] == [f"{name}[{e}]" for e in range(3)]
    for e, row in enumerate(run.rows):
        assert (row["expert"], row["block"], row["role"]) == (e, 3, "expert_gate_up")
        if e == 1:
            assert row["status"] == "nonfinite"
            continue
        alone = row_of(stack[e].clone(), "model.layers.3.mlp.experts.gate_up_proj.weight")
        identity = {"name", "module", "expert"}
        for column in COLUMNS:
            if column not in identity and not column.startswith("welore"):
                assert row[column] == alone[column], column


# -------------------------------------------------------------------------- FARMS windows


def test_the_geometry_of_the_paper() -> None:
    """An 11008 x 4096 matrix, window 2000, 15 a side: steps 643 and 149, 225 windows."""
    windows = windows_for(11008, 4096, Farms("paper", 2000, 1.0, 15, "peak", EVERY))
    assert windows is not None
    assert (windows.rows, windows.cols, windows.count) == (2000, 2000, 225)
    assert windows.row_starts == tuple(643 * k for k in range(15))
    assert windows.col_starts == tuple(149 * k for k in range(15))
    assert (windows.row_starts[-1], windows.col_starts[-1]) == (9002, 2086)
    assert windows.count * min(windows.rows, windows.cols) == 450_000


def test_the_covering_geometry_touches_both_ends() -> None:
    windows = windows_for(11008, 4096, Farms("cover", 2000, 1.0, 15))
    assert windows is not None
    assert (windows.row_starts[0], windows.row_starts[-1]) == (0, 9008)
    assert (windows.col_starts[0], windows.col_starts[-1]) == (0, 2096)
    assert windows.coverage(11008, 4096) == 1


@pytest.mark.parametrize("geometry", ["paper", "cover"])
def test_a_window_that_is_too_wide_keeps_its_ratio(geometry: str) -> None:
    """300 x 300, window 200, Q = 2: 150 x 300."""
    recipe = Farms(geometry, 200, 2.0, 15, "peak", EVERY)  # type: ignore[arg-type]
    windows = windows_for(300, 300, recipe)
    assert windows is not None
    assert (windows.rows, windows.cols) == (150, 300)
    assert windows.col_starts == (0,)


@given(
    st.integers(32, 3000),
    st.integers(32, 3000),
    st.sampled_from([0, 40, 100, 500]),
    st.sampled_from([0.5, 0.75, 1.0, 1.5, 2.0]),
    st.integers(1, 15),
)
def test_covering_windows_fit_and_are_spread_evenly(
    rows: int, cols: int, wanted: int, q: float, most: int
) -> None:
    windows = windows_for(rows, cols, Farms("cover", wanted, q, most))
    if windows is None:
        assert min(rows, cols, int(rows * q), int(cols / q), max(wanted, 32)) < 64
        return
    assert windows.rows >= 32 and windows.cols == int(windows.rows * q)
    covered = np.zeros((rows, cols), bool)
    for length, size, starts in (
        (rows, windows.rows, windows.row_starts),
        (cols, windows.cols, windows.col_starts),
    ):
        assert starts[0] == 0
        assert len(starts) <= most
        assert all(0 <= start <= length - size for start in starts)
        if most > 1:
            assert starts[-1] == length - size
            steps = np.diff(starts)
            assert len(steps) == 0 or steps.max() - steps.min() <= 1
        if len(starts) < most:  # half a window of overlap where the number allows it
            assert len(starts) == 1 or np.max(np.diff(starts)) <= size / 2 + 1
    for r in windows.row_starts:
        for c in windows.col_starts:
            covered[r : r + windows.rows, c : c + windows.cols] = True
    assert windows.coverage(rows, cols) == pytest.approx(covered.mean(), rel=1e-12)


@pytest.mark.parametrize(
    ("rows", "cols", "window"), [(100, 100, 50), (40, 900, 32), (4096, 4096, 1024), (64, 64, 32)]
)
def test_the_automatic_window_is_half_the_short_side(rows: int, cols: int, window: int) -> None:
    windows = windows_for(rows, cols, farms_preset("auto", EvalFloor()))
    assert windows is not None
    assert (windows.rows, windows.cols) == (window, window)
    assert len(windows.row_starts) <= 6 and len(windows.col_starts) <= 6


def test_too_small_a_matrix_has_no_windows() -> None:
    assert windows_for(31, 500, Farms()) is None
    row = row_of(stored(gaussian(31, 500), "float32"))
    assert row["alpha_farms"] is None
    assert "alpha_farms" in str(row["reason"])
    assert row["status"] == "ok"


@pytest.mark.parametrize("shape", [(60, 90), (90, 60), (70, 70)])
@pytest.mark.parametrize("q", [0.5, 1.0, 1.5])
def test_window_spectra_are_those_of_the_submatrices(shape: tuple[int, int], q: float) -> None:
    matrix = gaussian(*shape, 3)
    windows = windows_for(*shape, Farms("cover", 33, q, 4))
    if windows is None:
        windows = Windows(20, int(20 * q), (0, 11, 30), (5, 20))
    found = window_spectra([stored(matrix, "float64")], windows)
    k = 0
    for r in windows.row_starts:
        for c in windows.col_starts:
            part = matrix[r : r + windows.rows, c : c + windows.cols]
            expected = np.sort(np.linalg.svd(part, compute_uv=False) ** 2)
            np.testing.assert_allclose(found[0, k], expected, rtol=1e-9, atol=1e-11)
            k += 1
    assert found.shape == (1, k, min(windows.rows, windows.cols))


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_windows_of_a_rank_deficient_matrix_are_fitted_on_their_directions(dtype: str) -> None:
    """Rank 12 of 160: neither rounding in the solver nor in storage enters the pooled spectrum."""
    matrix = stored(low_rank(160, 12, 4), dtype)
    row, values = row_of(matrix), matrix.double().numpy()
    starts = (0, 40, 80)
    parts = [np.linalg.svd(values[r : r + 80, c : c + 80])[1] for r in starts for c in starts]
    fit = fit_power_law(np.concatenate([np.sort(s)[::-1][:12] ** 2 for s in parts]))
    assert isinstance(fit, PowerLaw)
    assert row["rank"] == 12
    assert row["alpha_farms_n_tail"] == fit.n_tail
    assert number(row, "alpha_farms") == pytest.approx(fit.alpha, rel=1e-9)


def test_the_farms_figures_of_a_row(zoo_run: Run) -> None:
    """The default, step by step: windows, pooled spectrum, one fit, the spread of single fits."""
    row, matrix = row_in(zoo_run, "student_t.weight"), tensor("student_t").double().numpy()
    starts = {128: (0, 32, 64), 192: (0, 32, 64, 96, 128)}
    parts = [
        np.linalg.svd(matrix[r : r + 64, c : c + 64], compute_uv=False) ** 2
        for r in starts[128]
        for c in starts[192]
    ]
    fit = fit_power_law(np.concatenate(parts))
    assert isinstance(fit, PowerLaw)
    assert number(row, "alpha_farms") == pytest.approx(fit.alpha, rel=1e-9)
    assert number(row, "alpha_farms_ks") == pytest.approx(fit.ks, rel=1e-9)
    assert number(row, "alpha_farms_xmin") == pytest.approx(fit.xmin, rel=1e-9)
    assert row["alpha_farms_n_tail"] == fit.n_tail
    single = [f.alpha for f in map(fit_power_law, parts) if isinstance(f, PowerLaw)]
    assert number(row, "alpha_farms_sd") == pytest.approx(np.std(single, ddof=1), rel=1e-9)
    facts = ("farms_windows", "farms_window_rows", "farms_window_cols", "farms_q", "farms_coverage")
    assert [row[key] for key in facts] == [15, 64, 64, 1.0, 1.0]
    assert row["farms_method"] == "ks"


def test_the_exponent_of_square_windows_does_not_move_with_the_aspect_ratio() -> None:
    """What FARMS is for: under the mid fit noise of any shape gives that of a square matrix."""
    recipe = Farms("paper", 100, 1.0, 9, "mid", EVERY)
    for shape in ((300, 300), (150, 900)):
        windows = windows_for(*shape, recipe)
        assert windows is not None
        evals = window_spectra([stored(gaussian(*shape, 5), "float32")], windows).ravel()
        fit, whole = (
            fit_power_law(evals, "mid"),
            row_of(stored(gaussian(*shape, 5), "float32"), xmin="mid"),
        )
        assert isinstance(fit, PowerLaw)
        assert fit.alpha == pytest.approx(2.12, abs=0.03)
        expected = {300: 2.12, 900: 3.98}[shape[1]]
        assert number(whole, "alpha") == pytest.approx(expected, abs=0.1)


# ------------------------------------- defects of the peers, each shown not to be ours


def test_ww1_the_erg_product_does_not_underflow() -> None:
    """A tail whose product is e^1028: the peer's walk stops where a product leaves float64."""
    evals = np.r_[np.full(1500, 8.0), np.full(1500, 1 / 16.0)]
    scaled_evals = evals * 3000 / evals.sum()
    sums = np.cumsum(np.log(scaled_evals))
    assert sums.max() > 1000
    expected = int(np.flatnonzero(sums < 0)[0]) + 1
    assert erg.crossing(evals).n_tail == expected > 1500
    matrix = with_singular_values(np.sqrt(np.r_[np.full(700, 8.0), np.full(700, 0.06)]), 1400, 1400)
    row = row_of(torch.from_numpy(matrix), metrics=("erg",))
    sums = np.cumsum(np.log(np.r_[np.full(700, 8.0), np.full(700, 0.06)] * 2 / 8.06))
    assert row["erg_n_tail"] == int(np.flatnonzero(sums < 0)[0]) + 1


def test_ww2_the_erg_count_and_cut_belong_together_up_to_the_last_eigenvalue() -> None:
    """The peer never tests the smallest one: here it is the one that makes the sum negative."""
    evals = np.array([3.0, 2.9, 2.8, 2.7, 1e-3])
    cut = erg.crossing(evals)
    assert (cut.n_tail, cut.xmin) == (5, 1e-3)
    constant = erg.crossing(np.full(9, 0.25))
    assert (constant.n_tail, constant.xmin) == (9, 0.25)


@given(st.integers(0, 10**6))
def test_ww3_small_samples_use_the_objective_they_report(seed: int) -> None:
    """alpha, xmin and ks of a sample below 20 belong to one and the same candidate."""
    values = np.sort(np.random.default_rng(seed).pareto(1.5, 14) + 0.1)
    fit = fit_power_law(values)
    assert isinstance(fit, PowerLaw)
    tail = values[values >= fit.xmin]
    assert len(tail) == fit.n_tail >= 8
    alpha = 1 + (len(tail) - 1) / float(np.sum(np.log(tail / tail[0])))
    assert fit.alpha == pytest.approx(alpha, rel=1e-9)
    model = 1 - (tail / tail[0]) ** (1 - alpha)
    assert fit.ks == pytest.approx(np.max(np.abs(model - np.arange(len(tail)) / len(tail))))


@pytest.mark.parametrize("name", ["identity", "orthogonal"])
def test_ww4_equal_singular_values_have_no_exponent(name: str, zoo_run: Run) -> None:
    row = row_in(zoo_run, f"{name}.weight")
    assert row["status"] == "constant"
    for column in ("alpha", "alpha_hat", "log_alpha_norm", "alpha_ks", "alpha_n_tail"):
        assert row[column] is None


def test_ww5_a_failed_fit_is_empty_and_poisons_nothing(zoo_run: Run) -> None:
    dependent = [c.name for c in columns_of(["alpha"])] + [
        "erg_gap", "erg_delta", "erg_log_ratio", "erg_tracelog",
    ]  # fmt: skip
    for name in ("zero", "identity", "row", "one_nan", "rank_one"):
        row = row_in(zoo_run, f"{name}.weight")
        assert all(row[column] is None for column in dependent)
    with_failure = analyze({"a.weight": torch.eye(20), "b.weight": tensor("student_t")})
    assert with_failure.summary["alpha_mean"] == row_in(with_failure, "b.weight")["alpha"]
    assert sum(with_failure.summary["bands"].values()) == 1


@pytest.mark.parametrize("factor", [0.002, 1e-6, 1e4])
def test_ww6_the_exponent_does_not_depend_on_the_scale(factor: float) -> None:
    matrix = tensor("student_t").double()
    here, there = row_of(matrix), row_of(matrix * factor)
    assert number(there, "alpha") == pytest.approx(number(here, "alpha"), rel=1e-9)
    absolute = row_of(matrix * factor, eval_floor="abs:1e-5")
    if factor < 1e-3:
        assert absolute["alpha"] is None or absolute["alpha_n_tail"] != here["alpha_n_tail"]


def test_ww7_the_smallest_singular_value_of_a_kernel_is_the_smallest_of_all() -> None:
    weight = kernel(20, 24, 2, 2)
    weight[:, :, 1, 0] *= 1e-3
    run = analyze({"conv.weight": weight})
    smallest = [np.linalg.svd(weight.numpy()[:, :, i, j])[1][-1] for i in (0, 1) for j in (0, 1)]
    spectrum = run.spectrum("conv.weight")
    assert spectrum.smallest == pytest.approx(min(smallest), rel=1e-6)
    assert number(run.rows[0], "condition_number") == pytest.approx(
        spectrum.largest / min(smallest), rel=1e-6
    )


@pytest.mark.parametrize("shape", [(16, 32, 2, 2), (32, 16, 2, 2), (16, 32, 4, 4), (32, 16, 2)])
def test_ww8_even_kernels_keep_the_longer_side_longer(shape: tuple[int, ...]) -> None:
    row = row_of(kernel(*shape), "conv.weight")
    assert (row["N"], row["M"], row["Q"]) == (32, 16, 2.0)


def test_ww9_every_setting_has_an_effect() -> None:
    """The peer's glorot_fix is read under a name that nobody writes."""
    matrices = {"a.weight": tensor("student_t"), "conv.weight": kernel(40, 40, 3, 3)}
    reference = analyze(matrices).rows
    for changed in (
        {"xmin": "mid"}, {"farms": "paper-llm"}, {"conv": "flatten"}, {"welore_target": 0.2},
        {"eval_floor": "rel:0.1"}, {"metrics": ("erg",)}, {"include": ("a*",)},
        {"exclude": ("a*",)},
    ):  # fmt: skip
        assert analyze(matrices, **changed).rows != reference, changed


def test_ww10_large_bfloat16_values_do_not_become_infinite(zoo_run: Run) -> None:
    """7e4 is more than the largest half; the entropy carries no constant either."""
    row = row_in(zoo_run, "bfloat16.weight")
    s = truth("bfloat16")
    p = s**2 / np.sum(s**2)
    assert number(row, "spectral_norm") == pytest.approx(s[0], rel=1e-12) and s[0] > 65504
    assert number(row, "entropy") == pytest.approx(-np.sum(p * np.log(p)) / np.log(64), rel=1e-9)
    for name in FINITE:
        entropy = row_in(zoo_run, f"{name}.weight")["entropy"]
        assert entropy is None or 0 <= float(entropy) <= 1


def test_ww12_the_tracy_widom_allowance_is_not_square_rooted() -> None:
    """Spikes between the right cut and the peer's much higher one are counted."""
    M, N, Q = 200, 400, 2.0
    edge = (1 + Q**-0.5) ** 2
    peer = edge + (Q**-0.5 * edge ** (2 / 3) * M ** (-2 / 3)) ** 0.5
    noise = np.linalg.svd(gaussian(N, M, 3), compute_uv=False) ** 2 / N
    x = np.sort(np.r_[noise[1:], edge + 0.12])[::-1]
    assert edge + 0.05 < x[0] < peer
    matrix = Matrix("w", TensorRef("w", (N, M), "F64"), "whole", "other", "w")
    stats = EntryStatistics(0.0, 1.0, 4.0, 0.0, 0, 0.0)
    measured = Measurement(matrix, stats, Spectrum(np.sqrt(N * x), N, M))
    assert evaluate(measured, Settings(metrics=("mp",))).row["mp_spikes"] == 1


def test_ww15_no_limit_on_the_candidates_is_ignored() -> None:
    """Every eigenvalue but the largest is a candidate, up to the last but one."""
    values = np.r_[np.linspace(1, 1.5, 60), 10.0, 1000.0]
    fit = fit_power_law(values)
    assert isinstance(fit, PowerLaw)
    best = min(
        (
            float(np.max(np.abs(1 - (t / t[0]) ** -s - np.arange(len(t)) / len(t)))),
            len(t),
        )
        for t in (values[i:] for i in range(len(values) - 1))
        for s in [len(t) / float(np.sum(np.log(t / t[0])))]
    )
    assert (fit.n_tail, fit.ks) == (best[1], pytest.approx(best[0], rel=1e-9))


def test_ww16_no_tensor_is_lost_and_all_stay_in_order() -> None:
    """3-D experts, names without .weight, ten and more blocks."""
    small = stored(gaussian(10, 12), "float32")
    tensors = {f"layers.{i}.mlp.up_proj": small + i for i in (10, 2, 0, 1, 11)}
    tensors["layers.0.experts.w1"] = torch.stack([small + 20, small + 30])
    tensors["norm.weight"] = torch.ones(12)
    tensors["steps"] = torch.arange(4).reshape(2, 2)
    run = analyze(tensors)
    assert [row["name"] for row in run.rows] == [
        "layers.0.experts.w1[0]", "layers.0.experts.w1[1]", "layers.0.mlp.up_proj",
        "layers.1.mlp.up_proj", "layers.2.mlp.up_proj", "layers.10.mlp.up_proj",
        "layers.11.mlp.up_proj",
    ]  # fmt: skip
    assert all(row["status"] == "ok" for row in run.rows)
    assert (run.summary["vectors"], run.summary["integer_tensors"]) == (1, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_ww17_rounding_does_not_restore_a_lost_rank(dtype: str) -> None:
    """The peer's tolerance is that of float64: it calls a float32 matrix of rank 100 full."""
    matrix = stored(low_rank(256, 100, 2), dtype)
    s = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    assert np.sum(s > s[0] * 256 * 2.0**-52) == 256
    assert row_of(matrix)["rank"] == 100


def test_f1_windows_are_cut_from_convolutions_too() -> None:
    for preset in ("auto", "paper-llm", "paper-cnn"):
        row = row_of(kernel(48, 64, 3, 3), "conv.weight", farms=preset)
        assert number(row, "alpha_farms") > 1
        assert int(number(row, "farms_windows")) % 9 == 0


def test_f2_the_intended_peak_window_is_linear_on_both_sides() -> None:
    values = np.r_[pareto_evals(1.5, 400), np.linspace(2.0, 2.05, 120)]
    logs = np.log10(values)
    counts, edges = np.histogram(logs, bins=100)
    peak = 10 ** edges[int(counts.argmax())]
    fit = fit_power_law(values, "peak-fixed")
    assert isinstance(fit, PowerLaw)
    assert 0.95 * peak <= fit.xmin <= 1.5 * peak
    inside = np.unique(values[(values >= 0.95 * peak) & (values <= 1.5 * peak)])
    coded = np.unique(values[(values >= np.log10(0.95 * peak)) & (values <= 1.5 * peak)])
    assert len(coded) > len(inside) > 100


@pytest.mark.parametrize("q", [0.3, 0.5, 1.5, 2.0, 5.0])
@pytest.mark.parametrize("ops", [1, 2, 9])
@pytest.mark.parametrize("geometry", ["paper", "cover"])
def test_f3_no_window_starts_before_the_matrix_and_one_is_enough(
    q: float, ops: int, geometry: str
) -> None:
    for shape in ((300, 300), (80, 700), (700, 80)):
        windows = windows_for(*shape, Farms(geometry, 200, q, ops))  # type: ignore[arg-type]
        if windows is None:
            continue
        assert min(windows.row_starts) == min(windows.col_starts) == 0
        assert windows.row_starts[-1] + windows.rows <= shape[0]
        assert windows.col_starts[-1] + windows.cols <= shape[1]
        assert windows.cols / windows.rows == pytest.approx(q, rel=0.05)
        assert windows.count <= ops**2


@pytest.mark.parametrize("method", ["ks", "mid", "peak", "peak-fixed"])
def test_f4_zero_eigenvalues_do_not_break_a_fit(method: str) -> None:
    values = np.r_[np.zeros(40), pareto_evals(3, 60)]
    with np.errstate(all="raise"):
        fit = fit_power_law(values, method)  # type: ignore[arg-type]
    assert isinstance(fit, PowerLaw)
    assert fit == fit_power_law(pareto_evals(3, 60), method)  # type: ignore[arg-type]
    pruned = gaussian(128, 128, 4)
    pruned[:70] = 0
    for preset in ("auto", "paper-llm", "paper-cnn"):
        row = row_of(stored(pruned, "float32"), xmin=method, farms=preset)
        assert number(row, "alpha") > 1 and number(row, "alpha_farms") > 1


@given(st.integers(64, 5000), st.integers(64, 5000))
def test_f5_the_last_rows_and_columns_are_sampled(rows: int, cols: int) -> None:
    windows = windows_for(rows, cols, farms_preset("auto", EvalFloor()))
    assert windows is not None
    assert windows.row_starts[-1] + windows.rows == rows
    assert windows.col_starts[-1] + windows.cols == cols


def test_w1_what_one_outlier_does_is_in_the_row() -> None:
    """The class hangs on s_max by definition; the error and the parameters tell the price."""
    s = np.linalg.svd(gaussian(256, 256, 1), compute_uv=False)
    outlier = np.r_[8 * s[0], s[1:]]
    calm, loud = Spectrum(s, 256, 256), Spectrum(outlier, 256, 256)
    assert welore.pruned_rank(calm, 0.175) < 70
    assert welore.pruned_rank(loud, 0.175) == 255
    fitted = welore.WeloreFit(0.175, 0.5, 0.5)
    row = welore.evaluate(loud, 256, fitted)
    assert row["welore_class"] == "LRC"
    expected = np.sqrt(np.sum(outlier[1:] ** 2) / np.sum(outlier**2))
    assert row["welore_relative_error"] == pytest.approx(expected, rel=1e-9)
    assert expected > 0.7


def test_w1_a_matrix_that_keeps_half_its_rank_is_not_factorised() -> None:
    """The peer's min_ratio of zero factorises a square matrix at nine tenths of its rank."""
    tensors = {f"blocks.{i}.w.weight": stored(gaussian(64, 64, i), "float32") for i in range(3)}
    run = analyze(tensors, welore_target=0.1)
    assert {row["welore_class"] for row in run.rows} == {"N-LRC"}
    assert run.summary["welore"]["parameter_ratio"] == 1.0
    assert run.summary["welore"]["effective"] == 0.0


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
@pytest.mark.parametrize("shape", [(30, 40), (4, 30, 40), (30, 40, 3, 3)])
def test_k1_no_shape_or_type_is_skipped(dtype: str, shape: tuple[int, ...]) -> None:
    name = "experts.w1" if len(shape) == 3 else "conv.weight"
    rows = analyze({name: stored(kernel(*shape).numpy(), dtype)}).rows
    assert len(rows) == (4 if len(shape) == 3 else 1)
    assert all(number(row, "condition_number") > 1 for row in rows)


def test_k1_rounding_noise_is_no_condition_number_without_a_warning() -> None:
    """Rank 100 of 256 in float32: kappa of about 1e9 would be pure rounding."""
    for dtype in ("float32", "bfloat16", "float16"):
        row = row_of(stored(low_rank(256, 100, 7), dtype))
        assert "below_floor" in codes(row)
        if row["condition_number"] is not None:
            assert number(row, "condition_number") > number(row, "condition_number_resolvable")
    exact = row_of(stored(low_rank(256, 100, 7), "float64"))
    assert exact["condition_number"] is None
    assert "condition_number" in str(exact["reason"])


# ------------------------------------------------------------------- contract of the drawer


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "welore"])
@pytest.mark.parametrize("name", ZOO)
def test_a_family_returns_its_columns_as_numbers_words_or_reasons(family: str, name: str) -> None:
    weight = tensor(name)
    codes_of = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
    ref = TensorRef(name, tuple(weight.shape), codes_of[ZOO[name].dtype])
    matrix = Matrix(name, ref, "whole", "other", name)
    measured = Measure(lambda ref, part: weight, Farms())(matrix)
    known: dict[str, Any] = {}
    for needed in dict.fromkeys(("rank", "alpha", family)):
        known.update(load("metrics", needed).evaluate(measured, Settings(), known))
    for column in load("metrics", family).COLUMNS:
        value = known.get(column.name)
        assert value is None or isinstance(value, int | float | str | Failure), column.name
        if isinstance(value, float):
            assert isfinite(value), column.name
        if isinstance(value, Failure):
            assert value.reason and not value.reason.endswith(".")
