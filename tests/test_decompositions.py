"""The linear algebra below the waist against exact sums and LAPACK, at every blocking."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from math import fsum

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from weightscope.decompositions import entries, farms, gram
from weightscope.decompositions.entries import abs_max, count_nonfinite, entry_statistics
from weightscope.decompositions.farms import Windows, shared_grams, window_spectra, windows_for
from weightscope.decompositions.full import EVAL_ERROR, full_spectrum
from weightscope.decompositions.gram import TWO_STAGE, add_gram, gram_evals, long_side_blocks
from weightscope.decompositions.openblas import loaded
from weightscope.recipe import Farms
from weightscope.tensor import DTYPES


def whole_numbers(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    """Entries whose products and sums float64 holds exactly."""
    entries = np.random.default_rng(seed).integers(-9, 10, (rows, cols))
    return torch.from_numpy(entries.astype(np.float64))


def gaussian(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, cols)))


# --------------------------------------------------------------------------------- Gram matrices


@pytest.fixture(params=["MKL", "OpenBLAS"])
def library(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both libraries, whatever the processor."""
    openblas = loaded() if request.param == "OpenBLAS" else None
    if request.param == "OpenBLAS" and openblas is None:
        pytest.skip("NumPy has no OpenBLAS here")
    monkeypatch.setattr(gram, "faster_than_mkl", lambda: openblas)
    return str(request.param)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("M", [1, 2, 255, 256, 257, 300, 513, 770])
def test_the_lower_triangle_of_the_gram_matrix_is_exact(M: int) -> None:
    block = whole_numbers(M // 2 + 3, M)
    total = whole_numbers(M, M, 1)
    expected = np.tril(total.numpy() + block.numpy().T @ block.numpy())
    add_gram(total, block, len(block))
    assert np.array_equal(np.tril(total.numpy()), expected)


@pytest.mark.parametrize("shape", [(5000, 3), (3, 5000), (700, 700)])
def test_blocks_cover_the_matrix_and_are_bounded(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gram, "BLOCK_BYTES", 8 * 700 * 90)
    matrix = whole_numbers(*shape)
    blocks = list(long_side_blocks(matrix))
    assert len(blocks) > 1 or shape != (700, 700)
    assert all(8 * block.numel() <= 8 * 700 * 90 for block in blocks)
    tall = matrix if shape[0] >= shape[1] else matrix.T
    assert torch.equal(torch.cat(blocks), tall)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("n", [257, gram._WORTH_PADDING, 1024, TWO_STAGE - 1])
def test_eigenvalues_of_orders_that_are_padded(n: int) -> None:
    """As far as two LAPACKs agree, and near zero to what is admitted there; rank n - 20."""
    matrix = gaussian(n - 20, n).numpy() * np.logspace(0, -3, n)
    lower = np.tril(matrix.T @ matrix)
    found = gram_evals(torch.from_numpy(lower.copy())).numpy()
    expected = np.linalg.eigvalsh(lower)
    assert found.shape == (n,)
    np.testing.assert_allclose(found, expected, rtol=5e-14, atol=EVAL_ERROR * expected[-1])


@pytest.mark.usefixtures("library")
def test_a_stack_of_gram_matrices_gives_the_spectrum_of_each() -> None:
    stack = torch.stack([m.T @ m for m in (gaussian(1100, 990, s) for s in range(2))])
    found = gram_evals(stack.clone())
    for one, evals in zip(stack, found, strict=True):
        assert torch.equal(gram_evals(one), evals)


MANY_ENTRIES = """
import threading, torch
from weightscope.decompositions.entries import entry_statistics
from weightscope.tensor import DTYPES

matrix = torch.arange(4096).bfloat16().repeat(20_000, 1)
peaks = []

def work():
    for rows in (500, 20_000):
        entry_statistics([matrix[:rows]], DTYPES["BF16"])
        status = dict(line.split(":") for line in open("/proc/self/status"))
        peaks.append(int(status["VmHWM"].split()[0]) >> 10)

thread = threading.Thread(target=work)
thread.start()
thread.join()
print(peaks[1] - peaks[0])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the unit of the peak is another")
def test_statistics_of_many_entries_take_no_memory() -> None:
    """160 MiB of them, in a worker's thread; small tensors kept between blocks once took 340."""
    command = [sys.executable, "-c", MANY_ENTRIES]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32


# ---------------------------------------------------------------------------------------- FARMS


@given(st.integers(1, 40), st.lists(st.integers(0, 60), min_size=1, max_size=9, unique=True))
def test_windows_that_share_products_have_exact_gram_matrices(
    height: int, starts: list[int]
) -> None:
    strip = whole_numbers(100, 7)
    places = tuple(sorted(starts))
    found = [gram.clone() for gram in shared_grams(strip, places, height)]
    assert len(found) == len(places)
    for start, one in zip(places, found, strict=True):
        window = strip[start : start + height]
        assert torch.equal(torch.tril(one), torch.tril(window.T @ window))


def test_shared_products_take_fewer_rows_than_windows_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Four windows of 2000 rows, 149 apart, as in the paper's setting: 2745 rows, not 8000."""
    rows: list[int] = []
    monkeypatch.setattr(farms, "add_gram", lambda total, block, N: rows.append(len(block)))
    list(shared_grams(torch.zeros(2500, 4), (0, 149, 298, 447), 2000))
    assert sum(rows) == 1553 + 2 * 298 + 4 * 149


@pytest.mark.parametrize("shape", [(700, 300), (300, 700)])
def test_spectra_record_the_routine_and_agree_with_a_direct_svd(
    shape: tuple[int, int], library: str
) -> None:
    matrix = gaussian(*shape)
    found = full_spectrum([matrix], entry_statistics([matrix], DTYPES["F64"]))
    expected = np.linalg.svd(matrix.numpy(), compute_uv=False)
    np.testing.assert_allclose(found.singular_values, expected, rtol=1e-12)
    routine = "dsyevd" if library == "OpenBLAS" else "eigvalsh"
    assert found.solver == f"gram-{routine}-float64"


def test_the_library_depends_on_shape_and_processor(library: str) -> None:
    used: list[str] = []
    openblas = gram.faster_than_mkl()
    if openblas is not None:
        spied = replace(openblas, dsyrk=lambda *_: used.append("dsyrk"))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gram, "faster_than_mkl", lambda: spied)
            for rows, M, N in ((300, 129, 300), (300, 128, 300), (2, 1000, 600_001)):
                add_gram(torch.zeros(M, M).double(), torch.zeros(rows, M).double(), N)
    solvers = [gram.solver_of(n, torch.device("cpu")) for n in (256, 257, 1599, 1600)]
    usual = "gram-eigvalsh-float64"
    small = "gram-dsyevd-float64" if library == "OpenBLAS" else usual
    assert solvers == [usual, small, small, usual]
    assert gram.solver_of(300, torch.device("cuda")) == usual
    assert used == (["dsyrk"] if library == "OpenBLAS" else [])


@hypothesis_settings(max_examples=12)
@given(st.sampled_from([1.0, 0.7, 1.4]), st.tuples(st.integers(270, 420), st.integers(270, 420)))
def test_large_windows_give_the_same_as_one_svd_each(q: float, shape: tuple[int, int]) -> None:
    matrix = gaussian(*shape)
    windows = windows_for(*shape, Farms("cover", 259, q, 3))
    assert windows is not None
    found = window_spectra([matrix, 2 * matrix], windows, scale=0.5)
    places = [(r, c) for r in windows.row_starts for c in windows.col_starts]
    assert found.shape == (2, len(places), min(windows.rows, windows.cols))
    for (r, c), evals in zip(places, found[0], strict=True):
        window = matrix[r : r + windows.rows, c : c + windows.cols].numpy()
        values = np.linalg.svd(window, compute_uv=False)[::-1]
        np.testing.assert_allclose(evals, values**2 / 4, rtol=1e-9, atol=1e-13 * values[-1] ** 2)
    np.testing.assert_allclose(found[1], 4 * found[0], rtol=1e-9, atol=1e-12 * found.max())


def test_window_spectra_are_the_same_bytes_whatever_the_number_of_threads() -> None:
    matrix = gaussian(650, 900)
    windows = Windows(300, 300, (0, 70, 250), (10, 300))
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(window_spectra([matrix], windows).tobytes())
    torch.set_num_threads(before)
    assert len(set(found)) == 1


def test_a_device_that_runs_out_of_memory_gets_smaller_batches(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrix = gaussian(120, 100)
    windows = Windows(40, 40, (0, 20, 60, 80), (0, 30, 60))
    expected = window_spectra([matrix], windows)
    sizes: list[int] = []
    original = farms._stack_evals

    def limited(stack: list[torch.Tensor], scale: float) -> object:
        sizes.append(len(stack))
        if len(stack) > 4:
            raise torch.OutOfMemoryError
        return original(stack, scale)

    monkeypatch.setattr(farms, "BLOCK_BYTES", 8 * 3200 * 9)
    monkeypatch.setattr(farms, "_stack_evals", limited)
    assert np.array_equal(window_spectra([matrix], windows), expected)
    assert sizes == [9, 4, 4, 4]


def test_a_device_without_room_for_one_window_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(stack: list[torch.Tensor], scale: float) -> object:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(farms, "_stack_evals", never)
    with pytest.raises(torch.OutOfMemoryError):
        window_spectra([gaussian(64, 64)], Windows(32, 32, (0, 32), (0,)))


# ------------------------------------------------------------------------------------- statistics


@pytest.mark.parametrize("at_once", [1, 50, 1 << 17])
@pytest.mark.parametrize("turned", [False, True])
def test_statistics_are_merged_over_blocks(
    at_once: int, turned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entries, "_CACHED", at_once)
    matrix = gaussian(37, 23, 3) + torch.arange(37)[:, None] * 1e3
    matrix[5] = 0
    exact = matrix.numpy().ravel().tolist()
    mean = fsum(exact) / len(exact)
    stats = entry_statistics([matrix.T if turned else matrix], DTYPES["F64"])
    assert stats.mean == pytest.approx(mean, rel=1e-13)
    variance = fsum((v - mean) ** 2 for v in exact) / len(exact)
    assert stats.std == pytest.approx(variance**0.5, rel=1e-13)
    assert stats.zero_fraction == 1 / 37
    assert stats.abs_max == max(map(abs, exact))


def test_the_storage_floor_does_not_depend_on_orientation_or_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    matrix = gaussian(64, 200, 4).to(torch.bfloat16)
    matrix[3] *= 50
    matrix[:, 7] *= 200
    found = [entries.storage_floor(m, DTYPES["BF16"]) for m in (matrix, matrix.T)]
    monkeypatch.setattr(entries, "_CACHED", 300)
    found += [entries.storage_floor(m, DTYPES["BF16"]) for m in (matrix, matrix.T.contiguous())]
    np.testing.assert_allclose(found, found[0], rtol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_one_bad_entry_in_the_last_block_is_found(dtype: torch.dtype) -> None:
    matrix = torch.ones(400, 1000, dtype=dtype)
    for bad in (float("nan"), float("inf"), float("-inf")):
        matrix[-1, -1] = bad
        assert count_nonfinite(matrix) == 1
        assert entry_statistics([torch.ones_like(matrix), matrix], DTYPES["F32"]).nonfinite == 1
    assert abs_max(torch.zeros(0, 3)) == 0.0
