"""The fall-back chain, injected failures, and the ranks that rounding must not change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from measuring import Array, figures, measure, singular_values
from zoo import gaussian, low_rank, stored, tensor, with_singular_values

import weightscope
from weightscope.decompositions import full
from weightscope.decompositions.entries import entry_statistics
from weightscope.decompositions.full import full_spectrum
from weightscope.measurement import FarmsFit, Measurement, Shuffled
from weightscope.metrics.solver import COLUMNS
from weightscope.outcome import Failure
from weightscope.recipe import Farms
from weightscope.spectrum import Spectrum
from weightscope.tensor import DTYPES

LinAlgError = torch.linalg.LinAlgError  # type: ignore[attr-defined]
QUICK: dict[str, Any] = {"device": "cpu", "metrics": ("alpha", "farms", "norms", "rank", "stats")}
Solver = Callable[..., torch.Tensor]
Patch = pytest.MonkeyPatch
SHAPES = [(40, 60), (60, 40), (200, 200)]


def fails(*args: Any, **options: Any) -> torch.Tensor:
    raise LinAlgError("linalg.eigh: the algorithm failed to converge")


def out_of_memory(*args: Any, **options: Any) -> torch.Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines.")


def spoiled(solver: Solver, how: Callable[[torch.Tensor], torch.Tensor]) -> Solver:
    """A solver that converges to something else."""
    return lambda *args, **options: how(solver(*args, **options))


def spectrum_of(measured: Measurement) -> Spectrum:
    assert measured.spectrum is not None, measured.failure
    return measured.spectrum


def solver_of(measured: Measurement) -> str:
    return str(figures(measured, "solver")["solver"])


def matches(measured: Measurement, weight: Array) -> bool:
    np.testing.assert_allclose(
        spectrum_of(measured).singular_values, singular_values(weight), rtol=1e-9
    )
    return True


WRONG: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nan": lambda values: torch.full_like(values, torch.nan),
    "one nan": lambda values: values.index_fill(-1, torch.tensor([3]), torch.nan),
    "inf": lambda values: values.index_fill(-1, torch.tensor([-1]), torch.inf),
    "zeros": torch.zeros_like,
    "one part in a million too large": lambda values: values * (1 + 1e-6),
    "the largest lost": lambda values: values.index_fill(-1, torch.tensor([0, -1]), 0.0),
    "negative": torch.neg,
}


# -------------------------------------------------------------------------------- the chain


@pytest.mark.parametrize("shape", SHAPES)
def test_a_gram_matrix_comes_first(shape: tuple[int, int]) -> None:
    measured = measure(gaussian(*shape, 1))
    assert solver_of(measured) == "gram-eigvalsh-float64-cpu"
    assert matches(measured, gaussian(*shape, 1))


@pytest.mark.parametrize("shape", SHAPES)
def test_a_gram_solver_that_fails_is_followed_by_a_direct_one(
    shape: tuple[int, int], monkeypatch: Patch
) -> None:
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    measured = measure(gaussian(*shape, 1))
    assert solver_of(measured) == "svdvals-float64-cpu"
    assert matches(measured, gaussian(*shape, 1))


@pytest.mark.parametrize("how", WRONG)
def test_a_gram_solver_that_is_wrong_is_followed_by_a_direct_one(
    how: str, monkeypatch: Patch
) -> None:
    monkeypatch.setattr(torch.linalg, "eigvalsh", spoiled(torch.linalg.eigvalsh, WRONG[how]))
    measured = measure(gaussian(50, 70, 2))
    assert solver_of(measured) == "svdvals-float64-cpu"
    assert matches(measured, gaussian(50, 70, 2))


def test_a_wrong_gram_matrix_is_noticed(monkeypatch: Patch) -> None:
    """Consistent with itself, so that only the energy of the entries can tell."""
    monkeypatch.setattr(full, "gram_of", lambda m, scale: 1.0001 * (m.T @ m))
    measured = measure(gaussian(70, 50, 2))
    assert solver_of(measured) == "svdvals-float64-cpu"
    assert matches(measured, gaussian(70, 50, 2))


@pytest.mark.parametrize("how", [None, *WRONG])
@pytest.mark.parametrize("shape", [(50, 70), (12, 300)])
def test_the_last_resort_is_another_library(
    how: str | None, shape: tuple[int, int], monkeypatch: Patch
) -> None:
    for name in ("eigvalsh", "svdvals"):
        solver = getattr(torch.linalg, name)
        monkeypatch.setattr(torch.linalg, name, spoiled(solver, WRONG[how]) if how else fails)
    measured = measure(gaussian(*shape, 3))
    assert solver_of(measured) == "numpy-svd-float64-cpu"
    assert matches(measured, gaussian(*shape, 3))


def test_small_matrices_are_solved_directly(monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.linalg, "eigvalsh", fails)
    measured = measure(gaussian(16, 80, 4))
    assert solver_of(measured) == "small-svdvals-float64-cpu"
    assert matches(measured, gaussian(16, 80, 4))


def break_all(monkeypatch: Patch, short: int) -> None:
    """No solver converges for matrices of that short side; the others are as ever."""

    def broken(solver: Callable[..., Any], error: type[Exception]) -> Callable[..., Any]:
        def solve(matrix: Any, *args: Any, **options: Any) -> Any:
            if min(matrix.shape[-2:]) == short:
                raise error("did not converge")
            return solver(matrix, *args, **options)

        return solve

    for name in ("eigvalsh", "svdvals"):
        solver = getattr(torch.linalg, name)
        monkeypatch.setattr(torch.linalg, name, broken(solver, LinAlgError))
    monkeypatch.setattr(np.linalg, "svd", broken(np.linalg.svd, np.linalg.LinAlgError))


def test_where_nothing_converges_the_row_says_so_and_the_run_goes_on(monkeypatch: Patch) -> None:
    model = {f"layers.{n}.w.weight": torch.from_numpy(gaussian(60, 40 + n, n)) for n in range(5)}
    whole = weightscope.analyze(model, **QUICK).rows
    break_all(monkeypatch, 42)
    rows = weightscope.analyze(model, **QUICK).rows
    for n, (row, before) in enumerate(zip(rows, whole, strict=True)):
        if n != 2:
            assert row == before
            continue
        assert row["status"] == "failed"
        assert row["reason"] == "the solver failed (did not converge)."
        assert row["alpha"] is row["rank"] is row["spectral_norm"] is None
        assert row["weight_std"] == before["weight_std"]  # the entries were read


@pytest.mark.parametrize("error", [RuntimeError("cusolver error: 7"), MemoryError("no room")])
def test_no_error_of_a_solver_ends_a_run(error: Exception, monkeypatch: Patch) -> None:
    def raises(*args: Any, **options: Any) -> torch.Tensor:
        raise error

    monkeypatch.setattr(torch.linalg, "eigvalsh", raises)
    measured = measure(gaussian(40, 40, 1))
    assert measured.spectrum is None and measured.stats is not None
    assert measured.failure is not None
    told = "memory" if isinstance(error, MemoryError) else "cusolver error: 7"
    assert told in str(measured.failure)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nMore lines."),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 1 bytes."),
        MemoryError(),
    ],
)
def test_a_lack_of_memory_is_called_that(error: Exception, monkeypatch: Patch) -> None:
    def raises(*args: Any) -> torch.Tensor:
        raise error

    monkeypatch.setattr(full, "gram_of", raises)
    measured = measure(gaussian(40, 40, 1))
    assert str(measured.failure).startswith("it does not fit into memory; try fewer --threads")


def test_a_refinement_that_fails_leaves_the_spectrum_there_is(monkeypatch: Patch) -> None:
    """A singular value of 1e-9 wants a direct SVD; without one the Gram matrix's answer stays."""
    weight = with_singular_values(np.logspace(0, -9, 40), 40, 50)
    assert solver_of(measure(weight)) == "svdvals-float64-cpu"
    for failure in (fails, out_of_memory, spoiled(torch.linalg.svdvals, torch.zeros_like)):
        monkeypatch.setattr(torch.linalg, "svdvals", failure)
        found = spectrum_of(measure(weight))
        assert found.solver == "gram-eigvalsh-float64-cpu"
        above = found.singular_values > 10 * found.resolution
        expected = np.logspace(0, -9, 40)[above]
        np.testing.assert_allclose(found.singular_values[above], expected, rtol=1e-2)


# ---------------------------------------------------------------------------------- devices


def pretend_device(monkeypatch: Patch, moved: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """What becomes of tensors that are sent to cuda:0."""
    to = torch.Tensor.to
    monkeypatch.setattr(
        torch.Tensor,
        "to",
        lambda self, where, **how: moved(self) if where == "cuda:0" else to(self, where, **how),
    )


def test_a_device_that_fails_is_followed_by_the_cpu(monkeypatch: Patch) -> None:
    """Everything that the entries are needed for, one thing after the other."""
    weight = torch.from_numpy(gaussian(80, 70, 5) + 0.5)
    options = {"farms": Farms(), "shuffled": 2, "quant_error": (4,)}
    here = measure(weight, **options)
    pretend_device(monkeypatch, out_of_memory)
    there = measure(weight, device="cuda:0", **options)
    assert solver_of(there) == "gram-eigvalsh-float64-cpu"
    assert there.stats == here.stats
    assert np.array_equal(spectrum_of(there).singular_values, spectrum_of(here).singular_values)
    assert isinstance(there.farms, FarmsFit) and there.farms == here.farms
    assert isinstance(there.shuffled, Shuffled) and there.shuffled == here.shuffled
    assert isinstance(there.quant, tuple) and there.quant == here.quant


def test_what_runs_out_of_memory_on_the_device_is_done_on_the_cpu(monkeypatch: Patch) -> None:
    """Only the first call, which is the device's."""
    solver, calls = torch.linalg.eigvalsh, []

    def first_fails(*args: Any, **options: Any) -> torch.Tensor:
        calls.append(1)
        return out_of_memory() if len(calls) == 1 else solver(*args, **options)

    monkeypatch.setattr(torch.linalg, "eigvalsh", first_fails)
    pretend_device(monkeypatch, torch.Tensor.cpu)
    measured = measure(gaussian(40, 50, 6), device="cuda:0")
    assert len(calls) == 2
    assert solver_of(measured) == "gram-eigvalsh-float64-cpu"
    assert matches(measured, gaussian(40, 50, 6))
    assert solver_of(measure(gaussian(40, 50, 6), device="cuda:0")).endswith("-cuda")


# --------------------------------------------------------- families beside the spectrum


def broken_after(monkeypatch: Patch, good: int) -> None:
    """The first calls of every solver succeed, the later ones do not."""
    calls: list[str] = []

    def counted(name: str, solver: Solver) -> Solver:
        def solve(*args: Any, **options: Any) -> torch.Tensor:
            calls.append(name)
            return solver(*args, **options) if len(calls) <= good else fails()

        return solve

    for name in ("eigvalsh", "svdvals"):
        monkeypatch.setattr(torch.linalg, name, counted(name, getattr(torch.linalg, name)))

    def no_numpy(*args: Any, **options: Any) -> None:
        raise np.linalg.LinAlgError("did not converge either")

    monkeypatch.setattr(np.linalg, "svd", no_numpy)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("farms", {"farms": Farms()}),
        ("shuffled", {"shuffled": 3}),
        ("quant", {"quant_error": (4,)}),
    ],
)
def test_a_family_that_fails_does_not_lose_the_spectrum(
    family: str, options: dict[str, Any], monkeypatch: Patch
) -> None:
    expected = spectrum_of(measure(gaussian(80, 70, 7)))
    broken_after(monkeypatch, 1)
    measured = measure(gaussian(80, 70, 7), **options)
    assert np.array_equal(spectrum_of(measured).singular_values, expected.singular_values)
    failure = getattr(measured, family)
    assert isinstance(failure, Failure)
    assert failure.reason.startswith("the solver failed (")
    assert "converge" in failure.reason
    found = figures(measured, family, quant_error=(4,))
    assert failure in found.values()


def test_windows_that_fail_leave_the_rest_of_the_row(monkeypatch: Patch) -> None:
    solver = torch.linalg.eigvalsh

    def no_batches(matrix: torch.Tensor, **options: Any) -> torch.Tensor:
        return fails() if matrix.ndim > 2 else solver(matrix, **options)

    monkeypatch.setattr(torch.linalg, "eigvalsh", no_batches)
    [row] = weightscope.analyze({"w.weight": tensor("student_t")}, **QUICK).rows
    assert row["status"] == "ok" and row["alpha"] is not None
    assert row["alpha_farms"] is None
    assert "alpha_farms: the solver failed (" in str(row["reason"])


# ----------------------------------------------------------------------- what is no failure


@given(
    st.sampled_from([(20, 30), (40, 17), (3, 200), (90, 90)]),
    st.floats(-323, 307),
    st.floats(-1e6, 1e6),
    st.integers(0, 99),
)
def test_no_scale_or_offset_is_taken_for_a_loss_of_energy(
    shape: tuple[int, int], power: float, offset: float, seed: int
) -> None:
    """Subnormal entries included, whose statistics have few digits themselves."""
    weight = gaussian(*shape, seed) + offset
    weight = weight / np.abs(weight).max() * 10.0**power
    slices = [torch.from_numpy(weight)]
    stats = entry_statistics(slices, DTYPES["F64"])
    expected = np.linalg.norm(weight / np.abs(weight).max()) if weight.any() else 0.0
    if expected * 10.0**power > 1e308:
        return
    found = full_spectrum(slices, stats)
    assert not found.solver.startswith("numpy")
    if power > -300:
        energy = np.linalg.norm(found.singular_values / np.abs(weight).max())
        assert energy == pytest.approx(expected, rel=1e-9)


def test_values_beyond_float64_are_a_row_with_a_reason() -> None:
    weight = 1e308 * (1 + 0.5 * np.random.default_rng(1).random((60, 60)))
    [row] = weightscope.analyze({"w": torch.from_numpy(weight)}, **QUICK).rows
    assert row["status"] == "failed"
    assert "outside the range of float64" in str(row["reason"])


def test_a_value_whose_square_over_the_largest_underflows_is_no_error() -> None:
    weight = np.eye(20)
    weight[-1, -1] = 1e-160
    found = spectrum_of(measure(weight))
    np.testing.assert_allclose(found.singular_values, np.diag(weight), rtol=1e-12)


# ------------------------------------------------------------------------------------- ranks


@pytest.mark.parametrize("n", [512, 1024])
@pytest.mark.parametrize("outliers", ["none", "columns", "rows", "both"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_matrix_of_rank_four_has_rank_four_in_half_precision(
    dtype: str, outliers: str, n: int
) -> None:
    """Rounding fills all n directions; those are not counted, with outliers of 100 times either."""
    matrix = low_rank(n, 4, 1)
    if outliers in {"columns", "both"}:
        matrix[:, 5::128] *= 100
    if outliers in {"rows", "both"}:
        matrix[7::128] *= 100 if outliers == "rows" else 10
    measured = measure(stored(matrix, dtype))
    assert measured.stats is not None and measured.stats.sv_floor is not None
    s = spectrum_of(measured).singular_values
    assert s[4] < measured.stats.sv_floor < s[3]
    assert s[n // 2] > 0
    assert figures(measured, "rank")["rank"] == 4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("scale", [1.0, 3e-4])
def test_a_full_matrix_keeps_its_rank_in_half_precision(dtype: str, scale: float) -> None:
    """No direction of a well-conditioned one is taken for rounding."""
    weight = stored(gaussian(256, 512, 2, scale), dtype)
    assert figures(measure(weight), "rank")["rank"] == 256


# ------------------------------------------------------------------------------------ column


def test_the_column_is_the_record() -> None:
    assert [column.name for column in COLUMNS] == ["solver"]
    for part in ("meaning", "formula", "range", "reading", "caution", "noise", "source"):
        assert getattr(COLUMNS[0], part), part
    assert figures(Measurement(measure(gaussian(9, 9)).matrix), "solver") == {}
