"""Bytes to spectra: read one matrix, move it to the device, decompose it there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from weightscope.checkpoint import Checkpoint
from weightscope.decompositions.entries import entry_statistics, scale_for
from weightscope.decompositions.farms import SMALLEST_WINDOW, Windows, window_spectra, windows_for
from weightscope.decompositions.full import full_spectrum
from weightscope.formats import memory, safetensors
from weightscope.layouts.roles import OUTSIDE_BLOCKS
from weightscope.matrix import Matrix
from weightscope.measurement import EntryStatistics, FarmsFit, Measurement
from weightscope.metrics.rank import is_deficient, numerical_rank
from weightscope.outcome import Failure
from weightscope.power_law import PowerLaw, fit_power_law
from weightscope.recipe import Farms
from weightscope.spectrum import FloatArray, Spectrum
from weightscope.tensor import DTYPES, TensorRef

Reader = Callable[[TensorRef, int | None], torch.Tensor]


def reader_for(checkpoint: Checkpoint) -> Reader:
    """The function that reads tensors of a checkpoint, or one index of their first dimension."""
    if checkpoint.format == "memory":
        return lambda ref, part: memory.read_tensor(checkpoint.memory, ref, part)
    return safetensors.read_tensor


@dataclass(frozen=True)
class Measure:
    """How every matrix of a run is measured.

    Attributes:
        read: Reads tensors.
        farms: FARMS recipe; None where the family was not asked for.
        device: Where the linear algebra runs.
        farms_embeddings: Cut windows from embeddings and heads too.
    """

    read: Reader
    farms: Farms | None
    device: str = "cpu"
    farms_embeddings: bool = False

    def __call__(self, matrix: Matrix) -> Measurement:
        """Measure one matrix.

        Raises:
            CheckpointError: Its bytes cannot be read.
        """
        stored = _stored(self.read, matrix)
        try:
            return self._on(self.device, matrix, stored)
        except RuntimeError as error:
            failed = _failed(matrix, error)
        if self.device != "cpu":
            try:
                return self._on("cpu", matrix, stored)
            except RuntimeError as error:
                return _failed(matrix, error)
        return failed

    def _on(self, device: str, matrix: Matrix, stored: torch.Tensor) -> Measurement:
        slices = _slices(matrix, stored.to(device))
        stats = entry_statistics(slices, DTYPES[matrix.tensor.dtype])
        if stats.nonfinite:
            return Measurement(matrix, stats)
        spectrum = full_spectrum(slices, stats)
        spectrum = replace(spectrum, solver=f"{spectrum.solver}-{torch.device(device).type}")
        farms = self._farms(matrix, slices, stats, spectrum) if spectrum.largest else None
        return Measurement(matrix, stats, spectrum, farms)

    def _farms(
        self,
        matrix: Matrix,
        slices: list[torch.Tensor],
        stats: EntryStatistics,
        spectrum: Spectrum,
    ) -> FarmsFit | Failure | None:
        if self.farms is None:
            return None
        if matrix.role in OUTSIDE_BLOCKS and not self.farms_embeddings:
            return Failure("embeddings and heads get FARMS windows only with --farms-embeddings")
        conv = matrix.role == "conv"
        windows = windows_for(matrix.rows, matrix.cols, self.farms, conv)
        if windows is None:
            return Failure(f"the matrix is too small for a window of {SMALLEST_WINDOW} rows")
        blocks = self.farms.geometry == "paper-conv" and conv
        scale = scale_for(stats.abs_max or 0.0)
        spectra = window_spectra(slices, windows, scale, blocks)
        noise = _storage_noise(self.farms, stats, spectrum)
        fitter = _Fitter(self.farms, max(windows.rows, windows.cols), scale, noise)
        fits = (_fit_blocks if blocks else _fit_pooled)(spectra, fitter)
        lambda_max = float(spectra.max()) / scale / scale
        return _farms_fit(fits, lambda_max, windows, matrix, blocks)


def _stored(read: Reader, matrix: Matrix) -> torch.Tensor:
    return read(matrix.tensor, (matrix.expert or 0) if matrix.view == "expert" else None)


def read_matrix(read: Reader, matrix: Matrix) -> torch.Tensor:
    """The entries as one matrix, stored dtype: a convolution as (rows, cols times positions).

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    return _stored(read, matrix).reshape(matrix.rows, -1)


def _failed(matrix: Matrix, error: RuntimeError) -> Measurement:
    """A row for a matrix that no solver could do; every other error is a defect of ours.

    Raises:
        RuntimeError: The given one, where it is neither non-convergence nor lack of memory.
    """
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "can't allocate memory" in text or isinstance(error, torch.OutOfMemoryError):
        failure = Failure("it does not fit into memory", "try fewer --threads, or --device cpu")
    elif isinstance(error, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
        failure = Failure(f"the solver failed ({text})")
    else:
        raise error
    return Measurement(matrix, failure=failure)


def _slices(matrix: Matrix, stored: torch.Tensor) -> list[torch.Tensor]:
    if matrix.view == "conv_slices":
        kernels = stored.reshape(*stored.shape[:2], -1)
        return [kernels[:, :, j] for j in range(kernels.shape[2])]
    return [stored.reshape(matrix.rows, matrix.cols)]


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
        return fit_power_law(evals / top, self.recipe.fit, floor)


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
