"""What executors are given to do: measure and evaluate the matrices of a checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from weightscope.checkpoint import Access, Checkpoint, SourceFile
from weightscope.errors import CheckpointError, OptionError
from weightscope.evaluate import Evaluated, evaluate
from weightscope.expressions import Reader, base_of
from weightscope.matrix import Matrix
from weightscope.measure import Measure, reading
from weightscope.measurement import Measurement
from weightscope.recipe import Farms
from weightscope.settings import Settings
from weightscope.sources import open_model
from weightscope.tensor import TensorRef

Done = tuple[Measurement, Evaluated]


@dataclass(frozen=True)
class Assignment:
    """A checkpoint and what is wanted of it; a job as executors take it.

    Attributes:
        checkpoint: Where the weights are.
        base: Where those of the base model are; None without one.
        settings: What is wanted.
        farms: FARMS recipe; None where the family was not asked for.
    """

    checkpoint: Checkpoint
    base: Checkpoint | None
    settings: Settings
    farms: Farms | None

    @contextmanager
    def opened(self, wanted: Sequence[Matrix]) -> Iterator[Callable[[str], MeasureAndEvaluate]]:
        """Open the checkpoints for reading; yields the work on a device."""
        theirs = [base for base in map(base_of, wanted) if base]
        with (
            reading(self.checkpoint, wanted) as read,
            reading(self.base or self.checkpoint, theirs) as read_base,
        ):
            yield partial(self._work, read, read_base)

    def _work(self, read: Reader, read_base: Reader, device: str) -> MeasureAndEvaluate:
        chosen = self.settings
        measure = Measure(
            read,
            self.farms,
            device,
            chosen.farms_embeddings,
            chosen.shuffled,
            chosen.quant_error,
            chosen.seed,
            read_base,
        )
        return MeasureAndEvaluate(measure, chosen)

    def sent(self) -> Assignment:
        """The same without tensors and without their names: matrices bring those along.

        Raises:
            OptionError: The model is in the memory of this process alone.
        """
        base = None if self.base is None else _sent(self.base)
        return replace(self, checkpoint=_sent(self.checkpoint), base=base)

    def arrived(self) -> Assignment:
        """The same with checkpoints that can be read in the process where it has arrived.

        Raises:
            CheckpointError: Files are not there, or are not the same.
        """
        base = None if self.base is None else _arrived(self.base)
        return replace(self, checkpoint=_arrived(self.checkpoint), base=base)


@dataclass(frozen=True)
class MeasureAndEvaluate:
    """Measures a matrix on a device, and evaluates it beside the work on the others."""

    measure: Measure
    settings: Settings

    def fetch(self, matrix: Matrix) -> Any:
        """Read one matrix.

        Raises:
            CheckpointError: Its bytes cannot be read.
        """
        return self.measure.fetch(matrix)

    def __call__(self, matrix: Matrix, fetched: Any) -> Done:
        """Measure one matrix with what was read of it, and evaluate that."""
        measured = self.measure(matrix, fetched)
        return measured, evaluate(measured, self.settings)


def anywhere(checkpoint: Checkpoint) -> Checkpoint:
    """The same with file names that mean the same in a process with another working folder.

    Raises:
        OptionError: It can be read in this process alone.
    """
    _check_travels(checkpoint)
    if checkpoint.remote is not None:
        return checkpoint

    @cache  # one text per file, which is then sent once and not with every tensor
    def place(file: str) -> str:
        return str(Path(file).absolute())

    def absolute(ref: TensorRef) -> TensorRef:
        return replace(ref, file=place(ref.file)) if ref.file else ref

    return checkpoint.moved(absolute)


def _check_travels(checkpoint: Checkpoint) -> None:
    if checkpoint.remote is None and not checkpoint.place:
        raise OptionError(
            f"{checkpoint.name}: is in the memory of this process, and tensors are not sent to a "
            "cluster; save it first, or leave out --executor ray"
        )
    if checkpoint.remote is not None and checkpoint.remote.fetch == "shard":
        raise OptionError(
            "--fetch shard keeps whole files for one process; with --executor ray choose stream or "
            "cache"
        )


def _sent(checkpoint: Checkpoint) -> Checkpoint:
    _check_travels(checkpoint)
    return Checkpoint(
        checkpoint.name,
        (),
        checkpoint.files,
        format=checkpoint.format,
        remote=checkpoint.remote,
        mmap=checkpoint.mmap,
        place=checkpoint.place,
    )


def _arrived(checkpoint: Checkpoint) -> Checkpoint:
    if checkpoint.remote is not None:
        return checkpoint
    found = open_model(checkpoint.place, Access(mmap=checkpoint.mmap))
    if list(map(_identity, found.files)) != list(map(_identity, checkpoint.files)):
        raise CheckpointError(
            f"{checkpoint.place}: holds other weights here than where the analysis was started"
        )
    return found


def _identity(file: SourceFile) -> tuple[str, int, str]:
    """What a copy of a file shares with it."""
    return file.name, file.size, file.header_sha256
