"""All singular values of a matrix, by eigenvalues of its float64 Gram matrix.

A Gram matrix squares the condition number: an eigenvalue carries an absolute error of a few eps of
the largest, so singular values keep their digits down to about 1e-6 of the largest. Below that a
direct SVD resolves more; it is several times slower and used only where its answer can matter.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from weightscope.decompositions.entries import scale_for
from weightscope.decompositions.gram import add_gram, long_side_blocks
from weightscope.measurement import EntryStatistics
from weightscope.spectrum import WANTED_ERROR, FloatArray, Spectrum

EPS = 2.0**-52
EVAL_ERROR = 8 * EPS
"""Error admitted for a Gram eigenvalue near zero, over the largest one. Measured against 80-bit
references for M > 16 (Gaussian, graded, heavy-tailed, nearly constant, trained): at most 4 eps."""
SMALL = 16
"""Up to this short side a direct SVD costs nothing, and sums over a long side round worst."""


def solve_gram(gram: torch.Tensor) -> FloatArray:
    """Singular values, descending, from the lower triangle of a float64 Gram matrix (M, M).

    Raises:
        torch.linalg.LinAlgError: The eigenvalue solver did not converge.
    """
    evals = torch.linalg.eigvalsh(gram, UPLO="L")
    values: FloatArray = evals.clamp_(min=0).sqrt_().flip(-1).cpu().numpy()
    return values


def gram_of(matrix: torch.Tensor, scale: float) -> torch.Tensor:
    """Lower triangle of the float64 Gram matrix (M, M) of ``matrix * scale``."""
    M = min(matrix.shape)
    total = torch.zeros(M, M, dtype=torch.float64, device=matrix.device)
    for block in long_side_blocks(matrix):
        add_gram(total, _scaled(block, scale))
    return total


def _scaled(matrix: torch.Tensor, scale: float) -> torch.Tensor:
    wide = matrix.to(torch.float64)
    return wide if scale == 1.0 else wide * scale


def full_spectrum(slices: list[torch.Tensor], stats: EntryStatistics) -> Spectrum:
    """Pooled spectrum of one matrix, or of the slices of a convolution.

    Args:
        slices: Matrices of equal shape (rows, cols), finite, stored dtype, on the compute device.
        stats: Their entry statistics.

    Raises:
        torch.linalg.LinAlgError: No solver converged.
    """
    scale = scale_for(stats.abs_max or 0.0)
    found = _by_gram(slices, scale)
    if found.relative_error > WANTED_ERROR and found.solver.startswith("gram"):
        # worth the time only where the smallest value may exceed what the stored dtype resolves
        bound = (found.resolution + found.smallest) / scale
        if bound > (stats.sv_floor or 0.0):
            found = _by_svd(slices, scale, "svdvals-float64")
    return replace(
        found,
        singular_values=found.singular_values / scale,
        resolution=found.resolution / scale,
    )


def _by_gram(slices: list[torch.Tensor], scale: float) -> Spectrum:
    if min(slices[0].shape) <= SMALL:
        return _by_svd(slices, scale, "small-svdvals-float64")
    values = [solve_gram(gram_of(matrix, scale)) for matrix in slices]
    pooled = _pooled(values, slices[0].shape, "gram-eigvalsh-float64")
    resolution = pooled.largest * EVAL_ERROR**0.5
    if not pooled.smallest:
        return replace(pooled, resolution=resolution, relative_error=1.0)
    error = 0.5 * EVAL_ERROR * (pooled.largest / pooled.smallest) ** 2
    return replace(pooled, resolution=resolution, relative_error=min(1.0, error))


def _by_svd(slices: list[torch.Tensor], scale: float, solver: str) -> Spectrum:
    values = [torch.linalg.svdvals(_scaled(m, scale)).cpu().numpy() for m in slices]
    pooled = _pooled(values, slices[0].shape, solver)
    resolution = pooled.largest * EPS * pooled.N
    error = min(1.0, resolution / pooled.smallest) if pooled.smallest else 1.0
    return replace(pooled, resolution=resolution, relative_error=error)


def _pooled(values: list[FloatArray], shape: torch.Size, solver: str) -> Spectrum:
    descending = -np.sort(-np.concatenate(values))
    return Spectrum(descending, max(shape), min(shape), len(values), solver=solver)
