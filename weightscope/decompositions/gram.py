"""The float64 Gram matrix of the short side over bounded blocks, and its eigenvalues."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from weightscope.decompositions.openblas import OpenBlas, faster_than_mkl

BLOCK_BYTES = 256 << 20
_USUAL_BYTES = 64 << 20
_ENOUGH_ROWS = 1024
"""A block of so many rows costs much more to multiply than to add to the Gram matrix."""
_SMALLEST_PRODUCT = 256
_FEW_COLUMNS, _SUMMED_ROWS = 128, 1024
"""With so few columns, sums over more rows than this are the largest error of an eigenvalue: some
kernels add one product to the next, 20 eps over 20,000 rows of 17 nearly equal columns."""
TWO_STAGE = 1100
"""From this order on the solver of MKL reduces in two stages, at twice the speed: 70 ms here
against 91 ms at 1024, measured with AVX-512 on one thread."""
_WORTH_PADDING = 980
_ONE_THREAD_ORDERS = range(257, 1600)
"""Orders at which OpenBLAS with one thread solves faster than MKL where the processor is not
Intel's: 1.1 to 1.9 times; above it MKL's two stages win, below it they come in batches."""
_ONE_THREAD_PRODUCT = 6e11
"""Products of more operations than this, N M^2, may have all threads to themselves."""


def long_side_blocks(matrix: torch.Tensor) -> Iterator[torch.Tensor]:
    """Cut a matrix along its longer side into blocks of at most ``BLOCK_BYTES`` in float64.

    Args:
        matrix: Two-dimensional, any floating dtype.

    Yields:
        Views of shape (rows, M) with rows <= N: tall blocks, transposed where the matrix is wide.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    N, M = tall.shape
    usual = max(_USUAL_BYTES // (8 * M), _ENOUGH_ROWS)
    rows = max(1, min(usual, BLOCK_BYTES // (8 * M)))
    for start in range(0, N, rows):
        yield tall[start : start + rows]


def add_gram(total: torch.Tensor, block: torch.Tensor, long_side: int) -> None:
    """Add ``block^T block`` to the lower triangle of ``total``.

    Args:
        total: (M, M) float64; what lies above the diagonal is left undefined.
        block: (rows, M) float64.
        long_side: Rows of the whole matrix, N, of which the block is one part or all.
    """
    M = block.shape[1]
    openblas = _one_thread(total.device)
    small = long_side * M * M <= _ONE_THREAD_PRODUCT
    if openblas and small and M > _FEW_COLUMNS:
        openblas.add_gram(total, block)
    else:
        _add_by_halves(total, block)


def _one_thread(device: torch.device) -> OpenBlas | None:
    return faster_than_mkl() if device.type == "cpu" else None


def _add_by_halves(total: torch.Tensor, block: torch.Tensor) -> None:
    """The square below the diagonal is one product, the two triangles beside it are done likewise.

    Little more than half the operations of the full product, as a symmetric rank-k update does.
    """
    M = block.shape[1]
    if M <= _FEW_COLUMNS and block.shape[0] > _SUMMED_ROWS:
        even = block.shape[0] // _SUMMED_ROWS * _SUMMED_ROWS
        pieces = block[:even].reshape(-1, _SUMMED_ROWS, M)
        total += torch.bmm(pieces.mT, pieces).sum(dim=0)  # which adds in pairs
        block = block[even:]
    if M <= _SMALLEST_PRODUCT:
        total.addmm_(block.T, block)
        return
    half = M // 2
    left, right = block[:, :half], block[:, half:]
    _add_by_halves(total[:half, :half], left)
    total[half:, :half].addmm_(right.T, left)
    _add_by_halves(total[half:, half:], right)


def solver_of(n: int, device: torch.device) -> str:
    """The routine that ``gram_evals`` takes for matrices of order n, as spectra record it."""
    routine = "dsyevd" if n in _ONE_THREAD_ORDERS and _one_thread(device) else "eigvalsh"
    return f"gram-{routine}-float64"


def gram_evals(grams: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of float64 Gram matrices (..., n, n), ascending, from their lower triangles.

    What the matrices hold may be lost.

    Raises:
        torch.linalg.LinAlgError: The solver did not converge.
    """
    n = grams.shape[-1]
    openblas = _one_thread(grams.device)
    if openblas and n in _ONE_THREAD_ORDERS:
        found = [openblas.evals(gram) for gram in grams.reshape(-1, n, n)]
        return torch.stack(found).reshape(grams.shape[:-1])
    mkl = grams.device.type == "cpu" and torch.backends.mkl.is_available()  # type: ignore[no-untyped-call]
    evals: torch.Tensor
    if not (mkl and _WORTH_PADDING <= n < TWO_STAGE):
        evals = torch.linalg.eigvalsh(grams, UPLO="L")
        return evals
    padded = grams.new_zeros(*grams.shape[:-2], TWO_STAGE, TWO_STAGE)
    padded[..., :n, :n] = grams
    # as many zeros more, which are the smallest there are but for rounding
    evals = torch.linalg.eigvalsh(padded, UPLO="L")
    return evals[..., TWO_STAGE - n :]
