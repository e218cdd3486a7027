"""Spectra of Gaussian matrices without the matrices."""

from __future__ import annotations

import numpy as np

from weightscope.laws.noise.expected import Shape
from weightscope.spectrum import FloatArray


def tridiagonal(N: int, M: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """A tridiagonal matrix whose eigenvalues have the law of W^T W, W (N, M) of unit variance.

    The product of the bidiagonal chi matrix of Dumitriu & Edelman (J. Math. Phys. 43, 2002) with
    its transpose: exact, in M random numbers instead of N M.

    Returns:
        Diagonal (M,) and off-diagonal (M - 1,).
    """
    squares = rng.chisquare(N - np.arange(M))
    coupling = rng.chisquare(np.arange(M - 1, 0, -1)) if M > 1 else np.empty(0)
    diagonal = squares.copy()
    diagonal[1:] += coupling
    return diagonal, np.sqrt(squares[:-1] * coupling)


def small_spectra(shape: Shape, draws: int, rng: np.random.Generator) -> FloatArray:
    """Eigenvalues of noise, for short sides up to a few dozen.

    Returns:
        float64, (draws, M * slices), in no order.
    """
    M = shape.M
    matrices = np.zeros((draws * shape.slices, M, M))
    index = np.arange(M)
    for matrix in matrices:
        matrix[index, index], matrix[index[1:], index[:-1]] = tridiagonal(shape.N, M, rng)
    return np.linalg.eigvalsh(matrices).clip(min=0).reshape(draws, shape.count)
