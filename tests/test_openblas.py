"""OpenBLAS called directly, against NumPy and against whole numbers."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from weightscope.decompositions import openblas
from weightscope.decompositions.openblas import OpenBlas, faster_than_mkl

found = openblas.loaded()
pytestmark = pytest.mark.skipif(found is None, reason="NumPy has no OpenBLAS here")
library: OpenBlas = found  # type: ignore[assignment]


def whole_numbers(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    """Small whole numbers, whose products and sums are exact in float64."""
    values = np.random.default_rng(seed).integers(-9, 10, (rows, cols))
    return torch.from_numpy(values.astype(np.float64))


LAYOUTS: dict[str, Callable[[int, int], torch.Tensor]] = {
    "rows": whole_numbers,
    "columns": lambda rows, cols: whole_numbers(cols, rows).T,
    "part of rows": lambda rows, cols: whole_numbers(rows, cols + 5)[:, 3 : cols + 3],
    "part of columns": lambda rows, cols: whole_numbers(cols, rows + 5).T[3 : rows + 3],
    "every second": lambda rows, cols: whole_numbers(2 * rows, 2 * cols)[::2, ::2],
}


@hypothesis_settings(max_examples=60)
@given(st.sampled_from(sorted(LAYOUTS)), st.integers(1, 40), st.integers(1, 40), st.integers(0, 3))
def test_products_are_added_to_the_lower_triangle_and_nothing_else(
    layout: str, rows: int, M: int, offset: int
) -> None:
    block, total = LAYOUTS[layout](rows, M), whole_numbers(M + offset, M + offset, 1)
    expected = total.numpy().copy()
    expected[offset:, offset:] += np.tril(block.numpy().T @ block.numpy())
    library.add_gram(total[offset:, offset:], block)
    assert np.array_equal(total.numpy(), expected)


@pytest.mark.parametrize("n", [1, 2, 17, 64, 300])
def test_eigenvalues_are_those_of_the_lower_triangle(n: int) -> None:
    """Known ones: -3 to 5 in a random basis; the upper triangle holds something else."""
    basis, _ = np.linalg.qr(np.random.default_rng(n).standard_normal((n, n)))
    wanted = np.linspace(-3, 5, n)
    matrix = torch.from_numpy(np.tril((basis * wanted) @ basis.T)) + torch.full((n, n), 9.0).triu(1)
    evals = library.evals(matrix).numpy()
    np.testing.assert_allclose(evals, wanted, atol=5 * 2**-52 * n**0.5 * 5)


def test_a_solver_that_does_not_converge_says_so() -> None:
    def fails(*arguments: object) -> None:
        arguments[-3]._obj.value = 7  # type: ignore[attr-defined]

    with pytest.raises(torch.linalg.LinAlgError, match="dsyevd did not converge"):  # type: ignore[attr-defined]
        replace(library, dsyevd=fails).evals(torch.eye(3).double())


def test_calls_side_by_side_give_the_same_and_leave_the_number_of_threads() -> None:
    before = library.get_num_threads()
    library.set_num_threads(3)
    seen: list[int] = []

    def dsyevd(*arguments: object) -> None:
        seen.append(library.get_num_threads())
        library.dsyevd(*arguments)

    spied = replace(library, dsyevd=dsyevd)
    block = torch.randn(400, 300, generator=torch.Generator().manual_seed(0)).double()

    def work(_: int) -> torch.Tensor:
        gram = torch.zeros(300, 300).double()
        spied.add_gram(gram, block)
        return spied.evals(gram)

    try:
        alone = work(0)
        with ThreadPoolExecutor(4) as pool:
            assert all(torch.equal(alone, evals) for evals in pool.map(work, range(24)))
        assert set(seen) == {1}
        assert library.get_num_threads() == 3
        with pytest.raises(TypeError):
            replace(library, dsyrk=lambda: None).add_gram(torch.zeros(2, 2), torch.zeros(2, 2))
        assert library.get_num_threads() == 3
    finally:
        library.set_num_threads(before)


@pytest.mark.parametrize(
    ("vendor", "mkl", "wanted"),
    [
        ("AuthenticAMD", True, True),
        ("AuthenticAMD", False, False),
        ("GenuineIntel", True, False),
        ("", True, False),
    ],
)
def test_it_is_taken_where_mkl_is_not_at_home(
    vendor: str, mkl: bool, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openblas, "_vendor", lambda: vendor)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: mkl)
    faster_than_mkl.cache_clear()
    try:
        assert (faster_than_mkl() is not None) == wanted
    finally:
        faster_than_mkl.cache_clear()


def test_the_vendor_is_what_the_system_says(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\n"
    monkeypatch.setattr(Path, "read_text", lambda self: text)
    assert openblas._vendor() == "AuthenticAMD"
    monkeypatch.setattr(Path, "read_text", lambda self: "CPU architecture: 8\n")
    assert openblas._vendor() == ""


def test_other_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    openblas.loaded.cache_clear()
    try:
        monkeypatch.setattr(openblas, "NAMES", (("mkl_", "", int),))
        assert openblas.loaded() is None
    finally:
        openblas.loaded.cache_clear()
