"""Two checkpoints to differences: the same matrix read from both, compared on the device."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from weightscope.checkpoint import Checkpoint
from weightscope.decompositions.difference import compare_matrices
from weightscope.decompositions.entries import count_nonfinite
from weightscope.difference import Difference
from weightscope.encoded import DecodingError
from weightscope.executors import local
from weightscope.expressions import Fetcher, whole_of
from weightscope.matrix import Matrix
from weightscope.measure import reading
from weightscope.select import select_for
from weightscope.settings import Settings
from weightscope.tensor import DTYPES


@dataclass(frozen=True)
class MatrixPair:
    """The same matrix in two checkpoints, under the name it has in the first."""

    a: Matrix
    b: Matrix


def matrices_of(checkpoint: Checkpoint, settings: Settings) -> dict[str, Matrix]:
    """The matrices of a checkpoint by name."""
    selection = select_for(checkpoint, settings)
    return {matrix.name: matrix for matrix in selection.matrices}


def measure_changes(
    checkpoints: tuple[Checkpoint, Checkpoint],
    pairs: list[tuple[str, str]],
    settings: Settings,
) -> Iterator[tuple[str, Difference | None]]:
    """Compare the matrices of two checkpoints, in order.

    Args:
        checkpoints: First and second.
        pairs: Names in the first and in the second.
        settings: Device and threads, resolved.

    Yields:
        Name in the first checkpoint, and the difference; None where an entry is not finite,
        cannot be decoded, or no solver converged.
    """
    known = [matrices_of(checkpoint, settings) for checkpoint in checkpoints]
    wanted = [
        MatrixPair(known[0][a], known[1][b]) for a, b in pairs if a in known[0] and b in known[1]
    ]
    workers = settings.threads if settings.device == "cpu" else 1
    a, b = checkpoints
    with (
        reading(a, [pair.a for pair in wanted]) as read_a,
        reading(b, [pair.b for pair in wanted]) as read_b,
    ):
        fetch_a = Fetcher(read_a, expected=[pair.a for pair in wanted])
        fetch_b = Fetcher(read_b, expected=[pair.b for pair in wanted])
        work = _Compare(fetch_a, fetch_b, settings.device)
        results = local.in_order(wanted, work, workers, 1)
        for pair, change in zip(wanted, results, strict=True):
            yield pair.a.name, change


@dataclass(frozen=True)
class _Compare:
    fetch_a: Fetcher
    fetch_b: Fetcher
    device: str

    def __call__(self, pair: MatrixPair) -> Difference | None:
        try:
            a = whole_of(pair.a, self.fetch_a(pair.a)).to(self.device)
            b = whole_of(pair.b, self.fetch_b(pair.b)).to(self.device)
        except DecodingError:
            return None
        if count_nonfinite(a) or count_nonfinite(b) or not a.numel() or not b.numel():
            return None
        stored = DTYPES[pair.a.tensor.dtype], DTYPES[pair.b.tensor.dtype]
        try:
            return compare_matrices(a, b, stored)
        except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
            return None
