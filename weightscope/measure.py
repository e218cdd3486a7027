"""Bytes to spectra: read one matrix, move it to the device, decompose it there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, TypeVar

import numpy as np
import torch

from weightscope.checkpoint import Checkpoint
from weightscope.decompositions.entries import entry_statistics, scale_for, storage_floor
from weightscope.decompositions.factors import factored_spectrum, factored_statistics
from weightscope.decompositions.farms import SMALLEST_WINDOW, Windows, window_spectra, windows_for
from weightscope.decompositions.full import full_spectrum
from weightscope.decompositions.quantised import quant_error
from weightscope.decompositions.shuffled import permutations, shuffling_generator
from weightscope.encoded import DecodingError
from weightscope.expressions import (
    Fetched,
    Reader,
    calls,
    entries,
    fetch,
    pairs_of,
    slices_of,
    storage_noise,
)
from weightscope.formats import memory, safetensors
from weightscope.layouts.roles import OUTSIDE_BLOCKS
from weightscope.matrix import Matrix
from weightscope.measurement import EntryStatistics, FarmsFit, Measurement, QuantError, Shuffled
from weightscope.metrics.rank import is_deficient, numerical_rank
from weightscope.metrics.shuffled import compare
from weightscope.outcome import Failure
from weightscope.power_law import PowerLaw, fit_power_law
from weightscope.recipe import Farms
from weightscope.sources.remote import fetching
from weightscope.spectrum import FloatArray, Spectrum
from weightscope.tensor import DTYPES, TensorRef

Result = TypeVar("Result")
AVERAGES_ITSELF, FEW_REPLICAS = 512, 5
"""From this short side on one shuffled replica is enough by default; below, so many."""


@contextmanager
def reading(checkpoint: Checkpoint, matrices: Iterable[Matrix] = ()) -> Iterator[Reader]:
    """Open a checkpoint for reading, by any number of threads.

    Args:
        checkpoint: Where the tensors are.
        matrices: What will be read, in order: a remote model is read ahead by it.

    Yields:
        The function that reads tensors, or one index of their first dimension.
    """
    if checkpoint.remote is not None:
        expected = [
            (ref.file, *safetensors.span(ref, index))
            for matrix in matrices
            for ref, index in calls(matrix)
        ]
        with fetching(checkpoint.remote, expected) as fill:
            yield partial(safetensors.read_tensor, fill=fill)
    else:
        from_file = safetensors.map_tensor if checkpoint.mmap else safetensors.read_tensor
        yield partial(_read, checkpoint.memory, from_file)


def _read(
    at_hand: Mapping[str, Any], from_file: Reader, ref: TensorRef, part: int | None
) -> torch.Tensor:
    if ref.name in at_hand:
        return memory.read_tensor(at_hand, ref, part)
    return from_file(ref, part)


@dataclass(frozen=True)
class Measure:
    """How every matrix of a run is measured.

    Attributes:
        read: Reads tensors.
        farms: FARMS recipe; None where the family was not asked for.
        device: Where the linear algebra runs.
        farms_embeddings: Cut windows from embeddings and heads too.
        shuffled: Replicas of the shuffled null; 0 chooses by size, None computes none.
        quant_error: Bit widths whose rounding error is measured.
        seed: Seed of the shuffles.
        read_base: Reads tensors of the base model, where matrices have one.
    """

    read: Reader
    farms: Farms | None
    device: str = "cpu"
    farms_embeddings: bool = False
    shuffled: int | None = None
    quant_error: tuple[int, ...] = ()
    seed: int = 0
    read_base: Reader | None = None

    def fetch(self, matrix: Matrix) -> Fetched:
        """Read one matrix, in its stored dtype, to where the device can take it from.

        Raises:
            CheckpointError: Its bytes cannot be read.
        """
        found = fetch(self.read, matrix, self.read_base)
        pinned = self.device != "cpu" and torch.cuda.is_available()
        return found.each(torch.Tensor.pin_memory) if pinned else found

    def __call__(self, matrix: Matrix, fetched: Fetched | None = None) -> Measurement:
        """Measure one matrix; what cannot be computed is a failure in its place.

        Args:
            matrix: What to measure.
            fetched: What ``fetch`` read of it before; None reads it now.

        Raises:
            CheckpointError: Its bytes cannot be read.
        """
        fetched = self.fetch(matrix) if fetched is None else fetched
        if matrix.product is not None and matrix.base is None:
            return self._update(matrix, fetched)
        slices = cache(lambda device: slices_of(matrix, entries(matrix, fetched.to(device))))
        stats = self._first(lambda device: _statistics(matrix, fetched.to(device), slices(device)))
        if isinstance(stats, Failure):
            return Measurement(matrix, failure=stats)
        if stats.nonfinite:
            return Measurement(matrix, stats)
        spectrum = self._first(lambda device: _on(full_spectrum(slices(device), stats), device))
        if isinstance(spectrum, Failure):
            return Measurement(matrix, stats, failure=spectrum)
        if not spectrum.largest:
            return Measurement(matrix, stats, spectrum)
        return Measurement(
            matrix,
            stats,
            spectrum,
            self._first(lambda device: self._farms(matrix, slices(device), stats, spectrum)),
            shuffled=self._first(
                lambda device: self._shuffled(matrix, fetched, stats, spectrum, device)
            ),
            quant=self._first(lambda device: self._quant(slices(device), stats, spectrum)),
        )

    def _update(self, matrix: Matrix, fetched: Fetched) -> Measurement:
        """Measure an update by its factors; what needs its entries fails with the reason."""
        product = matrix.product
        assert product is not None
        stored = DTYPES[product.B.dtype], DTYPES[product.A.dtype]
        stored = stored[::-1] if product.transposed else stored
        pairs = cache(lambda device: pairs_of(matrix, fetched.to(device)))
        scale = product.scale
        stats = self._first(lambda device: factored_statistics(pairs(device), scale, stored))
        if isinstance(stats, Failure):
            return Measurement(matrix, failure=stats)
        if stats.nonfinite:
            return Measurement(matrix, stats)
        spectrum = self._first(lambda device: _on(factored_spectrum(pairs(device), scale), device))
        if isinstance(spectrum, Failure):
            return Measurement(matrix, stats, failure=spectrum)
        if not spectrum.largest:
            return Measurement(matrix, stats, spectrum)
        why = Failure("it needs the entries of the update, which is kept as its factors")
        return Measurement(
            matrix,
            stats,
            spectrum,
            why if self.farms else None,
            shuffled=None if self.shuffled is None else why,
            quant=why if self.quant_error else None,
        )

    def _first(self, work: Callable[[str], Result]) -> Result | Failure:
        """What the device finds, else the CPU, else why neither could."""
        for device in dict.fromkeys((self.device, "cpu")):
            try:
                return work(device)
            except (RuntimeError, MemoryError, DecodingError) as error:
                failure = _failure(error)
        return failure

    def _shuffled(
        self,
        matrix: Matrix,
        fetched: Fetched,
        stats: EntryStatistics,
        spectrum: Spectrum,
        device: str,
    ) -> Shuffled | None:
        if self.shuffled is None:
            return None
        count = self.shuffled or (1 if matrix.M >= AVERAGES_ITSELF else FEW_REPLICAS)
        dtype, scale = DTYPES[matrix.tensor.dtype], scale_for(stats.abs_max or 0.0)
        replicas = []
        stored = entries(matrix, fetched)
        for permuted in permutations(stored, count, shuffling_generator(self.seed, matrix.name)):
            slices = slices_of(matrix, permuted.to(device))
            floor = max(storage_floor(m, dtype, scale) for m in slices)
            floor = floor if matrix.is_stored else stats.sv_floor or 0.0
            replicas.append((full_spectrum(slices, replace(stats, sv_floor=floor)), floor))
        return compare(spectrum, replicas, stats)

    def _quant(
        self, slices: list[torch.Tensor], stats: EntryStatistics, spectrum: Spectrum
    ) -> tuple[QuantError, ...] | None:
        rank = numerical_rank(spectrum, stats.sv_floor or 0.0)
        scale = scale_for(stats.abs_max or 0.0)
        found = (quant_error(slices, bits, spectrum, rank, scale) for bits in self.quant_error)
        return tuple(found) or None

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
        return _farms_fit_of(matrix, slices, stats, spectrum, self.farms)


def farms_fits(
    read: Reader, matrix: Matrix, recipes: Sequence[Farms], device: str = "cpu"
) -> list[FarmsFit | Failure]:
    """Fit the windows of one matrix, read once, under several recipes.

    Args:
        read: Reads tensors.
        matrix: What to read.
        recipes: Geometry and fit of each; those with the same windows and fit are done once.
        device: Where the linear algebra runs.

    Returns:
        As many fits as recipes, or why there is none.

    Raises:
        CheckpointError: Its bytes cannot be read.
    """
    try:
        fetched = fetch(read, matrix).to(device)
        slices = slices_of(matrix, entries(matrix, fetched))
        stats = _statistics(matrix, fetched, slices)
        if stats.nonfinite:
            return [Failure("some entries are not finite")] * len(recipes)
        spectrum = full_spectrum(slices, stats)
        if not spectrum.largest:
            return [Failure("all entries are zero")] * len(recipes)
        done: dict[tuple[object, ...], FarmsFit | Failure] = {}
        keys = [_work_of(matrix, recipe) for recipe in recipes]
        for key, recipe in zip(keys, recipes, strict=True):
            if key not in done:
                done[key] = _farms_fit_of(matrix, slices, stats, spectrum, recipe)
        return [done[key] for key in keys]
    except (RuntimeError, DecodingError) as error:
        return [_failure(error)] * len(recipes)


def _work_of(matrix: Matrix, recipe: Farms) -> tuple[object, ...]:
    """What two recipes must share to give the same fit of a matrix."""
    windows = windows_for(matrix.rows, matrix.cols, recipe, matrix.role == "conv")
    return windows, recipe.geometry, recipe.fit, recipe.floor


def _farms_fit_of(
    matrix: Matrix,
    slices: list[torch.Tensor],
    stats: EntryStatistics,
    spectrum: Spectrum,
    recipe: Farms,
) -> FarmsFit | Failure:
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


def _statistics(matrix: Matrix, fetched: Fetched, slices: list[torch.Tensor]) -> EntryStatistics:
    """Statistics of the entries; the storage noise of all that they were formed from."""
    if matrix.is_stored:
        return entry_statistics(slices, DTYPES[matrix.tensor.dtype])
    found = entry_statistics(slices, DTYPES["F64"])
    return found if found.nonfinite else replace(found, sv_floor=storage_noise(matrix, fetched))


def _failure(error: Exception) -> Failure:
    """Why something could not be computed; never an end of the run."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    if isinstance(error, DecodingError):
        return Failure(f"its codes cannot be decoded: {text}")
    lacks_memory = isinstance(error, MemoryError | torch.OutOfMemoryError)
    if lacks_memory or "can't allocate memory" in text:
        return Failure("it does not fit into memory", "try fewer --threads, or --device cpu")
    return Failure(f"the solver failed ({text})")


def _on(found: Spectrum, device: str) -> Spectrum:
    return replace(found, solver=f"{found.solver}-{torch.device(device).type}")


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
