"""What every executor takes and gives: a job that may travel, batches, and their results."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from weightscope.matrix import Matrix
from weightscope.plan import Batch

Result = TypeVar("Result")
Result_co = TypeVar("Result_co", covariant=True)


class Work(Protocol[Result_co]):
    """What one device does with matrices; called in whichever thread suits the executor."""

    def fetch(self, matrix: Matrix) -> Any:
        """Read one matrix.

        Raises:
            CheckpointError: Its bytes cannot be read.
        """

    def __call__(self, matrix: Matrix, fetched: Any) -> Result_co:
        """Do one matrix with what was read of it."""


class Job(Protocol[Result_co]):
    """Something to be done with matrices, whose results depend on nothing but the matrix."""

    def opened(
        self, wanted: Sequence[Matrix]
    ) -> AbstractContextManager[Callable[[str], Work[Result_co]]]:
        """Open what the matrices are read from, in the order in which they will be.

        Yields:
            The work on a device of a name; all of them may be used side by side.
        """

    def sent(self) -> Job[Result_co]:
        """The job as it travels: small, picklable, without a tensor.

        Raises:
            OptionError: It needs something that only this process has.
        """

    def arrived(self) -> Job[Result_co]:
        """The job that was sent, ready to be opened in another process.

        Raises:
            CheckpointError: The files there are not those that the job is about.
        """


class Executor(Protocol):
    """A place where jobs are done.

    Attributes:
        device: Kind of device that computes, as settings and records name it.
        device_name: Its name for people.
        threads: Linear-algebra threads of a matrix that is worked on alone.
        note: How the place is described to the user; empty where there is nothing to say.
    """

    @property
    def device(self) -> str: ...
    @property
    def device_name(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def note(self) -> str: ...

    def run(
        self, job: Job[Result], batches: Sequence[Batch]
    ) -> Generator[tuple[Batch, list[Result]], None, None]:
        """Do every matrix once; yield every batch when it is whole, in whatever order.

        Closing the iterator ends the work; what was not yielded is lost.

        Raises:
            CheckpointError: The bytes of a matrix cannot be read.
            ExecutorError: The place failed.
        """


def by_cost(batches: Sequence[Batch]) -> list[Batch]:
    """Batches in the order in which several workers take them: the costliest first.

    What is left over at the end is small then, so that all of them finish at about the same time.
    The cost is that of the Gram product and the eigenvalues, m n min(m, n) per matrix.
    """
    return sorted(batches, key=lambda batch: (-_cost(batch), batch.index))


def _cost(batch: Batch) -> int:
    return sum(m.slices * m.N * m.M**2 for m in batch.matrices)
