"""Bytes to spectra: read one matrix, move it to the device, decompose it there."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, partial
from itertools import groupby
from typing import Any, TypeVar

import torch

from weightscope.checkpoint import Checkpoint
from weightscope.decompositions.entries import entry_statistics, scale_for, storage_floor
from weightscope.decompositions.factors import factored_spectrum, factored_statistics
from weightscope.decompositions.farms import windows_for
from weightscope.decompositions.full import full_spectrum
from weightscope.decompositions.padding import equal_tail_rows
from weightscope.decompositions.quantised import quant_error
from weightscope.decompositions.shuffled import permutations, shuffling_generator
from weightscope.encoded import DecodingError
from weightscope.expressions import (
    Fetched,
    Fetcher,
    Reader,
    calls,
    entries,
    pairs_of,
    slices_of,
    storage_noise,
)
from weightscope.formats import memory, safetensors
from weightscope.layouts.roles import OUTSIDE_BLOCKS, VOCABULAR
from weightscope.matrix import Matrix
from weightscope.measurement import EntryStatistics, FarmsFit, Measurement, QuantError, Shuffled
from weightscope.metrics.rank import numerical_rank
from weightscope.metrics.shuffled import compare
from weightscope.outcome import Failure
from weightscope.recipe import Farms
from weightscope.sources.remote import fetching
from weightscope.spectrum import Spectrum
from weightscope.tensor import DTYPES, TensorRef
from weightscope.window_fits import fit_windows

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
            for one, _ in groupby(tuple(calls(matrix)) for matrix in matrices)
            for ref, index in one
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
    _fetch: Fetcher = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """The parts of one tensor share what is read of it."""
        object.__setattr__(self, "_fetch", Fetcher(self.read, self.read_base))

    def fetch(self, matrix: Matrix) -> Fetched:
        """Read one matrix, in its stored dtype, to where the device can take it from.

        Raises:
            CheckpointError: Its bytes cannot be read.
        """
        found = self._fetch(matrix)
        pinned = self.device != "cpu" and torch.cuda.is_available()
        return found.pinned() if pinned else found

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
        if matrix.role in VOCABULAR:
            stats = replace(stats, equal_tail=equal_tail_rows(slices(self.device)[0]))
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
        stored = entries(matrix, fetched.to("cpu"))
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
        return fit_windows(matrix, slices, stats, spectrum, self.farms)


def farms_fits(
    fetch: Fetcher, matrix: Matrix, recipes: Sequence[Farms], device: str = "cpu"
) -> list[FarmsFit | Failure]:
    """Fit the windows of one matrix, read once, under several recipes.

    Args:
        fetch: Reads matrices.
        matrix: What to read.
        recipes: Geometry and fit of each; those with the same windows and fit are done once.
        device: Where the linear algebra runs.

    Returns:
        As many fits as recipes, or why there is none.

    Raises:
        CheckpointError: Its bytes cannot be read.
    """
    try:
        fetched = fetch(matrix).to(device)
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
                done[key] = fit_windows(matrix, slices, stats, spectrum, recipe)
        return [done[key] for key in keys]
    except (RuntimeError, DecodingError) as error:
        return [_failure(error)] * len(recipes)


def _work_of(matrix: Matrix, recipe: Farms) -> tuple[object, ...]:
    """What two recipes must share to give the same fit of a matrix."""
    windows = windows_for(matrix.rows, matrix.cols, recipe, matrix.role == "conv")
    return windows, recipe.geometry, recipe.fit, recipe.floor


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
