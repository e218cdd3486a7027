"""OpenBLAS as NumPy brings it, one thread per call: MKL is slow on processors that are not Intel's.

Its number of threads is one for the whole process, and calls with several wait for each other. So
it is set to one while any call is under way here, and calls from several threads run side by side.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from numpy.linalg import _umath_linalg

NAMES = (("scipy_", "64_", ctypes.c_int64), ("", "64_", ctypes.c_int64), ("", "", ctypes.c_int))
"""What names in the library begin and end with, and its integers: in wheels of NumPy, in older
ones, and in builds of distributions."""
_LENGTHS = (ctypes.c_size_t(1), ctypes.c_size_t(1))
"""Of the two words that a routine takes; Fortran expects them behind everything else."""
LinAlgError = torch.linalg.LinAlgError  # type: ignore[attr-defined]


@dataclass(frozen=True)
class OpenBlas:
    """The routines that are used of it, called without the interpreter's lock.

    Attributes:
        get_num_threads: Threads of the process.
        set_num_threads: Change them.
        dsyrk: Symmetric rank-k update (BLAS).
        dsyevd: Eigenvalues of a symmetric matrix (LAPACK).
        integer: Type of whole numbers.
    """

    get_num_threads: Callable[[], int]
    set_num_threads: Callable[[int], object]
    dsyrk: Callable[..., object]
    dsyevd: Callable[..., object]
    integer: type[ctypes.c_int] | type[ctypes.c_int64]
    _lock: Lock = field(default_factory=Lock, repr=False, compare=False)
    _before: list[int] = field(default_factory=list, repr=False, compare=False)

    def add_gram(self, total: torch.Tensor, block: torch.Tensor) -> None:
        """Add ``block^T block`` to the lower triangle of ``total``.

        Args:
            total: (M, M) float64 on the CPU, rows contiguous; what lies above is left as it is.
            block: (rows, M) float64 on the CPU.
        """
        if 1 not in block.stride():
            block = block.contiguous()
        rows, M = block.shape
        # Fortran sees transposes: of the lower triangle the upper one
        by_rows = block.stride(1) == 1
        lda = max(block.stride(0) if by_rows else block.stride(1), M if by_rows else rows)
        with self._one_thread():
            self.dsyrk(
                b"U",
                b"N" if by_rows else b"T",
                self._integer(M),
                self._integer(rows),
                _real(1.0),
                ctypes.c_void_p(block.data_ptr()),
                self._integer(lda),
                _real(1.0),
                ctypes.c_void_p(total.data_ptr()),
                self._integer(max(total.stride(0), M)),
                *_LENGTHS,
            )

    def evals(self, gram: torch.Tensor) -> torch.Tensor:
        """Eigenvalues, ascending, of a matrix from its lower triangle.

        Args:
            gram: (n, n) float64 on the CPU; what it holds is lost where its rows are contiguous.

        Raises:
            torch.linalg.LinAlgError: The solver did not converge.
        """
        n = gram.shape[0]
        matrix = gram.contiguous()
        evals = torch.empty(n, dtype=torch.float64)
        room, info = torch.empty(1, dtype=torch.float64), self.integer(0)
        integers = self.integer(0)

        def solve(wanted: int) -> None:
            self.dsyevd(
                b"N",
                b"U",
                self._integer(n),
                ctypes.c_void_p(matrix.data_ptr()),
                self._integer(n),
                ctypes.c_void_p(evals.data_ptr()),
                ctypes.c_void_p(room.data_ptr()),
                self._integer(wanted),
                ctypes.byref(integers),
                self._integer(wanted if wanted < 0 else 1),
                ctypes.byref(info),
                *_LENGTHS,
            )

        with self._one_thread():
            solve(-1)  # which tells how much room it wants
            room = torch.empty(int(room[0]), dtype=torch.float64)
            solve(len(room))
        if info.value:
            raise LinAlgError(f"dsyevd did not converge ({info.value})")
        return evals

    def _integer(self, value: int) -> Any:
        return ctypes.byref(self.integer(value))

    @contextmanager
    def _one_thread(self) -> Iterator[None]:
        with self._lock:
            before = self.get_num_threads() if not self._before else self._before[0]
            if not self._before:
                self.set_num_threads(1)
            self._before.append(before)
        try:
            yield
        finally:
            with self._lock:
                self._before.pop()
                if not self._before:
                    self.set_num_threads(before)


def _real(value: float) -> Any:
    return ctypes.byref(ctypes.c_double(value))


@cache
def faster_than_mkl() -> OpenBlas | None:
    """The library, where torch computes by MKL on a processor for which that was not written."""
    mkl = torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    return loaded() if mkl and _vendor() not in {"", "GenuineIntel"} else None


@cache
def loaded() -> OpenBlas | None:
    """The library that NumPy uses, where it is OpenBLAS."""
    with suppress(OSError):
        library = ctypes.CDLL(_umath_linalg.__file__)  # names are found in what it loads, too
        for before, after, integer in NAMES:
            with suppress(AttributeError):
                return OpenBlas(
                    library[f"{before}openblas_get_num_threads{after}"],
                    library[f"{before}openblas_set_num_threads{after}"],
                    library[f"{before}dsyrk_{after}"],
                    library[f"{before}dsyevd_{after}"],
                    integer,
                )
    return None


def _vendor() -> str:
    """Who made the processor; empty where the system does not say."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("vendor_id"):
                return line.partition(":")[2].strip()
    return ""
