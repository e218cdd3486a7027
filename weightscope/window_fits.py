"""FARMS: the windows of one matrix, cut, solved and fitted."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from weightscope.decompositions.entries import scale_for
from weightscope.decompositions.farms import SMALLEST_WINDOW, Windows, window_spectra, windows_for
from weightscope.laws.power_law import PowerLaw, fit_power_law
from weightscope.matrix import Matrix
from weightscope.measurement import EntryStatistics, FarmsFit
from weightscope.metrics.rank import is_deficient, numerical_rank
from weightscope.outcome import Failure
from weightscope.recipe import Farms
from weightscope.spectrum import FloatArray, Spectrum


def fit_windows(
    matrix: Matrix,
    slices: list[torch.Tensor],
    stats: EntryStatistics,
    spectrum: Spectrum,
    recipe: Farms,
) -> FarmsFit | Failure:
    """Fit the pooled spectra of the windows of one matrix (arXiv 2506.06280).

    Args:
        matrix: What the slices are of.
        slices: Matrices of equal shape, finite, on the compute device.
        stats: Their entry statistics.
        spectrum: The spectrum of the whole, not zero.
        recipe: Geometry, fit and floor.

    Returns:
        The fit, or why there is none.
    """
    conv = matrix.role == "conv"
    windows = windows_for(matrix.rows, matrix.cols, recipe, conv)
    if windows is None:
        return Failure(f"the matrix is too small for a window of {SMALLEST_WINDOW} rows")
    blocks = recipe.geometry == "paper-conv" and conv
    scale = scale_for(stats.abs_max or 0.0)
    spectra = window_spectra(slices, windows, scale, blocks)
    noise = _storage_noise(recipe, stats, spectrum)
    fitter = _Fitter(recipe, max(windows.rows, windows.cols), scale, noise)
    fits = (_fit_blocks if blocks else _fit_pooled)(spectra, fitter)
    lambda_max = float(spectra.max()) / scale / scale
    return _farms_fit(fits, lambda_max, windows, matrix, blocks)


@dataclass(frozen=True)
class _Fitter:
    """How the eigenvalues of one matrix's windows are fitted.

    Attributes:
        recipe: Fit and floor.
        N: Longer side of a window.
        scale: Factor on the entries.
        sv_floor: Singular values at or below it are storage noise; 0 for a matrix of full rank.
    """

    recipe: Farms
    N: int
    scale: float
    sv_floor: float

    def __call__(self, evals: FloatArray) -> PowerLaw | Failure:
        top = float(evals.max())
        if not top:
            return Failure("all windows are zero")
        largest = top**0.5 / self.scale
        floor = self.recipe.floor.relative(largest, self.N)
        floor = max(floor, self.sv_floor / largest * (self.sv_floor / largest))
        # the authors' peak window compares a logarithm with eigenvalues, so it hangs on their unit
        unit = 1.0 if self.recipe.fit == "peak" and self.scale == 1.0 else top
        fit = fit_power_law(evals / unit, self.recipe.fit, floor * (top / unit))
        return replace(fit, xmin=fit.xmin * (unit / top)) if isinstance(fit, PowerLaw) else fit


def _storage_noise(recipe: Farms, stats: EntryStatistics, spectrum: Spectrum) -> float:
    """What to keep out of the pooled fit of a rank-deficient matrix: the rounding of its dtype."""
    sv_floor = stats.sv_floor or 0.0
    rank = numerical_rank(spectrum, sv_floor)
    return sv_floor if recipe.floor.kind == "rank" and is_deficient(rank, spectrum) else 0.0


@dataclass(frozen=True)
class _Fits:
    """The fit of a matrix, and those of its parts."""

    whole: PowerLaw | Failure
    parts: list[PowerLaw | Failure]


def _fit_pooled(spectra: FloatArray, fit: _Fitter) -> _Fits:
    """One fit of all windows of all slices, and one of each window."""
    return _Fits(fit(spectra.ravel()), [fit(e) for e in spectra.reshape(-1, spectra.shape[-1])])


def _fit_blocks(spectra: FloatArray, fit: _Fitter) -> _Fits:
    """The authors' convolution rule: pool each block over the kernel, fit, average the blocks."""
    parts = [fit(spectra[:, k].ravel()) for k in range(spectra.shape[1])]
    tops = spectra.max(axis=(0, 2)) / spectra.max()  # each block is fitted over its own largest
    good = [
        replace(part, xmin=part.xmin * float(top))
        for part, top in zip(parts, tops, strict=True)
        if isinstance(part, PowerLaw)
    ]
    if not good:
        return _Fits(parts[0], parts)
    alpha, xmin, ks, stderr = (
        float(np.mean([getattr(part, key) for part in good]))
        for key in ("alpha", "xmin", "ks", "stderr")
    )
    n_tail = sum(part.n_tail for part in good)
    method = f"{good[0].method}-block-mean"
    return _Fits(PowerLaw(alpha, xmin, ks, n_tail, stderr, method), parts)


def _farms_fit(
    fits: _Fits, lambda_max: float, windows: Windows, matrix: Matrix, oriented: bool
) -> FarmsFit:
    rows, cols = (matrix.N, matrix.M) if oriented else (matrix.rows, matrix.cols)
    alphas = [fit.alpha for fit in fits.parts if isinstance(fit, PowerLaw)]
    return FarmsFit(
        fits.whole,
        lambda_max if 0 < lambda_max < float("inf") else None,
        float(np.std(alphas, ddof=1)) if len(alphas) > 1 else None,
        windows.cols / windows.rows,
        windows.count * matrix.slices,
        windows.rows,
        windows.cols,
        windows.coverage(rows, cols),
    )
