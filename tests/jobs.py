"""Jobs for executors that compute nothing, in a module that other processes can import."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from weightscope.errors import CheckpointError
from weightscope.matrix import Matrix
from weightscope.plan import Batch
from weightscope.tensor import TensorRef


def matrix(i: int, rows: int = 8) -> Matrix:
    """A matrix of which there are no bytes."""
    name = f"layers.{i}.w"
    return Matrix(name, TensorRef(name, (rows, 8), "F32", "f", i, i + 1), "whole", "linear", "w", i)


def batches(count: int, each: int = 1) -> list[Batch]:
    """Batches of matrices, those further on larger."""
    return [
        Batch(i, tuple(matrix(i * each + j, 8 + i) for j in range(each)), False)
        for i in range(count)
    ]


@dataclass(frozen=True)
class Names:
    """Tells which device did which matrix; leaves a file for every one that it begins.

    Attributes:
        folder: Where to leave them; None for nowhere.
        seconds: How long a matrix takes.
        troubles: Times that reading ``layers.0.w`` fails before it works.
        broken: Matrices that raise a programming error.
        deaths: Times that ``layers.1.w`` kills its process before it works.
    """

    folder: Path | None = None
    seconds: float = 0.0
    troubles: int = 0
    broken: tuple[str, ...] = ()
    deaths: int = 0

    @contextmanager
    def opened(self, wanted: Sequence[Matrix]) -> Iterator[Callable[[str], Named]]:
        """Open nothing."""
        yield lambda device: Named(self, device)

    def sent(self) -> Names:
        """As it is."""
        return self

    def arrived(self) -> Names:
        """As it was."""
        return self


@dataclass(frozen=True)
class Named:
    """The work on one device."""

    job: Names
    device: str

    def fetch(self, m: Matrix) -> str:
        """Leave a file for the attempt, and fail as often as was wished for."""
        folder = self.job.folder
        if folder is not None:
            attempts = len(list(folder.glob(f"{m.name}.*")))
            (folder / f"{m.name}.{attempts}").touch()
            if m.block == 0 and attempts < self.job.troubles:
                raise CheckpointError("the disk hiccups")
        return f"bytes of {m.name}"

    def __call__(self, m: Matrix, fetched: str) -> tuple[str, str, str, int]:
        """Name of the matrix, what was read, the device, and the threads it had."""
        time.sleep(self.job.seconds)
        if self.job.deaths and self.job.folder is not None and m.block == 1:
            attempts = len(list(self.job.folder.glob(f"{m.name}.*")))
            if attempts <= self.job.deaths:
                os._exit(9)
        if m.name in self.job.broken:
            raise ZeroDivisionError(m.name)
        return m.name, fetched, self.device, torch.get_num_threads()
