"""All singular values of a matrix, by eigenvalues of its float64 Gram matrix.

A Gram matrix squares the condition number: an eigenvalue carries an absolute error of a few eps of
the largest, so singular values keep their digits down to about 1e-6 of the largest. Below that a
direct SVD resolves more; it is several times slower and used only where its answer can matter.
"""

from __future__ import annotations

import numpy as np
import torch

from weightscope.decompositions.entries import scale_for
from weightscope.decompositions.gram import add_gram, long_side_blocks
from weightscope.measurement import EntryStatistics
from weightscope.spectrum import FloatArray, Spectrum

EPS = 2.0**-52
EVAL_ERROR = 8 * EPS
"""Error admitted for a Gram eigenvalue near zero, over the largest one. Measured against 80-bit
references (Gaussian, graded, heavy-tailed; n to 1024): below 1 eps from condition number 100 on."""
WANTED_ERROR = 1e-4
"""Relative error up to which a smallest singular value may be printed."""


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
        wide = block.to(torch.float64)
        add_gram(total, wide if scale == 1.0 else wide * scale)
    return total


def full_spectrum(slices: list[torch.Tensor], stats: EntryStatistics) -> Spectrum:
    """Pooled spectrum of one matrix, or of the slices of a convolution.

    Args:
        slices: Matrices of equal shape (rows, cols), finite, stored dtype, on the compute device.
        stats: Their entry statistics.

    Raises:
        torch.linalg.LinAlgError: No solver converged.
    """
    scale = scale_for(stats.abs_max or 0.0)
    values = [solve_gram(gram_of(matrix, scale)) for matrix in slices]
    largest = max(float(v[0]) for v in values)
    smallest = min(float(v[-1]) for v in values)
    resolution = largest * EVAL_ERROR**0.5
    solver = "gram-eigvalsh-float64"
    error = _smallest_error(largest, smallest)
    if error > WANTED_ERROR and _may_exceed(resolution + smallest, stats.sv_floor, scale):
        values = [_direct(matrix, scale) for matrix in slices]
        largest = max(float(v[0]) for v in values)
        smallest = min(float(v[-1]) for v in values)
        shape = slices[0].shape
        resolution = largest * EPS * max(shape)
        error = min(1.0, resolution / smallest) if smallest else 1.0
        solver = "svdvals-float64"
    pooled = -np.sort(-np.concatenate(values)) / scale
    rows, cols = slices[0].shape
    return Spectrum(
        pooled, max(rows, cols), min(rows, cols), len(slices), resolution / scale, error, solver
    )


def _smallest_error(largest: float, smallest: float) -> float:
    if smallest == 0.0:
        return 1.0
    return min(1.0, 0.5 * EVAL_ERROR * (largest / smallest) ** 2)


def _may_exceed(bound: float, sv_floor: float | None, scale: float) -> bool:
    """Whether the smallest singular value may lie above what the stored precision resolves."""
    return bound / scale > (sv_floor or 0.0)


def _direct(matrix: torch.Tensor, scale: float) -> FloatArray:
    values: FloatArray = torch.linalg.svdvals(matrix.to(torch.float64) * scale).cpu().numpy()
    return values
