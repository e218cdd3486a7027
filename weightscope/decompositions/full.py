"""All singular values of a matrix, by eigenvalues of its float64 Gram matrix.

A Gram matrix squares the condition number: an eigenvalue carries an absolute error of a few eps of
the largest, so singular values keep their digits down to about 1e-6 of the largest. Below that a
direct SVD resolves more; it is several times slower and used only where its answer can matter, or
where the eigenvalue solver fails. The last resort is another LAPACK.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from sys import float_info

import numpy as np
import torch

from weightscope.decompositions.entries import scale_for
from weightscope.decompositions.gram import add_gram, gram_evals, long_side_blocks, solver_of
from weightscope.measurement import EntryStatistics
from weightscope.spectrum import WANTED_ERROR, FloatArray, Spectrum

EPS = 2.0**-52
EVAL_ERROR = 8 * EPS
"""Error admitted for a Gram eigenvalue near zero, over the largest one. Measured against 80-bit
references for M > 16 (Gaussian, graded, heavy-tailed, nearly constant, trained): at most 4 eps."""
SMALL = 16
"""Up to this short side a direct SVD costs nothing, and sums over a long side round worst."""
ENERGY_ERROR = 1e-9
"""Relative difference between the energy of entries and of singular values that no rounding
explains: far above M eps for any M that fits into memory."""
LinAlgError = torch.linalg.LinAlgError  # type: ignore[attr-defined]


def solve_gram(gram: torch.Tensor) -> FloatArray:
    """Singular values, descending, from the lower triangle of a float64 Gram matrix (M, M).

    Raises:
        torch.linalg.LinAlgError: The eigenvalue solver did not converge, or its values do not add
            up to the trace.
    """
    trace = float(gram.diagonal().sum())
    evals = gram_evals(gram)
    if not abs(float(evals.sum()) - trace) <= ENERGY_ERROR * trace + float_info.min:
        raise LinAlgError("the eigenvalues do not add up to the trace")
    values: FloatArray = evals.clamp_(min=0).sqrt_().flip(-1).cpu().numpy()
    return values


def gram_of(matrix: torch.Tensor, scale: float) -> torch.Tensor:
    """Lower triangle of the float64 Gram matrix (M, M) of ``matrix * scale``."""
    M = min(matrix.shape)
    total = torch.zeros(M, M, dtype=torch.float64, device=matrix.device)
    for block in long_side_blocks(matrix):
        add_gram(total, scaled(block, scale), max(matrix.shape))
    return total


def scaled(matrix: torch.Tensor, scale: float) -> torch.Tensor:
    """The entries in float64, times a power of two; float64 ones unscaled are not copied."""
    wide = matrix.to(torch.float64)
    return wide if scale == 1.0 else wide * scale


def full_spectrum(slices: list[torch.Tensor], stats: EntryStatistics) -> Spectrum:
    """Pooled spectrum of one matrix, or of the slices of a convolution.

    Args:
        slices: Matrices of equal shape (rows, cols), finite, stored dtype, on the compute device.
        stats: Their entry statistics.

    Raises:
        torch.linalg.LinAlgError: No solver converged to values that make sense, or float64 cannot
            hold them.
    """
    scale = scale_for(stats.abs_max or 0.0)
    energy = _energy(stats, len(slices) * prod(slices[0].shape), scale)
    found = _solved(slices, scale, energy)
    if found.relative_error > WANTED_ERROR and found.solver.startswith("gram"):
        # worth the time only where the smallest value may exceed what the stored dtype resolves
        bound = (found.resolution + found.smallest) / scale
        if bound > (stats.sv_floor or 0.0):
            found = _refined(found, slices, scale, energy)
    if found.largest > float_info.max * scale:
        raise LinAlgError("the singular values are outside the range of float64")
    return replace(
        found,
        singular_values=found.singular_values / scale,
        resolution=found.resolution / scale,
    )


def _energy(stats: EntryStatistics, count: int, scale: float) -> tuple[float, float]:
    """Sum of the squares of the scaled entries, and the error to admit."""
    std, mean = (stats.std or 0.0) * scale, abs(stats.mean or 0.0) * scale
    grain = 2.0**-1074 * scale  # the statistics themselves may be subnormal
    energy = count * (std * std + mean * mean)
    return energy, ENERGY_ERROR * energy + 2 * count * (std + mean + grain) * grain


def _solved(slices: list[torch.Tensor], scale: float, energy: tuple[float, float]) -> Spectrum:
    """What the first solver finds that converges to finite values of the right energy."""
    solvers = [_by_small_svd] if min(slices[0].shape) <= SMALL else [_by_gram, _by_svd]
    if slices[0].device.type == "cpu":
        solvers.append(_by_numpy)
    for solver in solvers:
        try:
            return _checked(solver(slices, scale), energy)
        except LinAlgError as error:
            why = str(error)  # the error itself would keep its frames in memory
    raise LinAlgError(why)


def _refined(
    found: Spectrum, slices: list[torch.Tensor], scale: float, energy: tuple[float, float]
) -> Spectrum:
    """The spectrum by a direct SVD; the one there is, where that fails."""
    try:
        return _checked(_by_svd(slices, scale), energy)
    except (RuntimeError, MemoryError):  # no convergence, or no room for the whole matrix
        return found


def _checked(found: Spectrum, energy: tuple[float, float]) -> Spectrum:
    """The spectrum, where it is one and carries the energy of the entries.

    Raises:
        torch.linalg.LinAlgError: It is not, or does not.
    """
    if not (np.isfinite(found.singular_values).all() and found.smallest >= 0):
        raise LinAlgError(f"{found.solver} gave values that are no singular values")
    carried, (wanted, error) = float(found.evals.sum()), energy
    if abs(carried - wanted) > error:
        raise LinAlgError(f"{found.solver} lost or added energy: {carried:.6g} for {wanted:.6g}")
    return found


def _by_gram(slices: list[torch.Tensor], scale: float) -> Spectrum:
    values = [solve_gram(gram_of(matrix, scale)) for matrix in slices]
    solver = solver_of(min(slices[0].shape), slices[0].device)
    pooled = _pooled(values, slices[0].shape, solver)
    resolution = pooled.largest * EVAL_ERROR**0.5
    if not pooled.smallest:
        return replace(pooled, resolution=resolution, relative_error=1.0)
    ratio = pooled.largest / pooled.smallest
    error = 0.5 * EVAL_ERROR * ratio * ratio  # a power would raise where the product is infinite
    return replace(pooled, resolution=resolution, relative_error=min(1.0, error))


def _by_small_svd(slices: list[torch.Tensor], scale: float) -> Spectrum:
    return replace(_by_svd(slices, scale), solver="small-svdvals-float64")


def _by_svd(slices: list[torch.Tensor], scale: float) -> Spectrum:
    values = [torch.linalg.svdvals(scaled(m, scale)).cpu().numpy() for m in slices]
    return _direct(values, slices[0].shape, "svdvals-float64")


def _by_numpy(slices: list[torch.Tensor], scale: float) -> Spectrum:
    try:
        values = [np.linalg.svd(scaled(m, scale).numpy(), compute_uv=False) for m in slices]
    except np.linalg.LinAlgError as error:
        raise LinAlgError(str(error)) from None
    return _direct(values, slices[0].shape, "numpy-svd-float64")


def _direct(values: list[FloatArray], shape: torch.Size, solver: str) -> Spectrum:
    """What a direct SVD found, with the error that such a one makes."""
    pooled = _pooled(values, shape, solver)
    resolution = pooled.largest * EPS * pooled.N
    error = min(1.0, resolution / pooled.smallest) if pooled.smallest else 1.0
    return replace(pooled, resolution=resolution, relative_error=error)


def _pooled(values: list[FloatArray], shape: torch.Size, solver: str) -> Spectrum:
    descending = -np.sort(-np.concatenate(values))
    return Spectrum(descending, max(shape), min(shape), len(values), solver=solver)
