"""What will be done in which order, and what it will cost; no weight is read.

The unit of work is a matrix, the unit of commitment a batch: consecutive matrices bounded in bytes
and operations, so that an interruption loses little. Whether a matrix gets one thread or all of
them depends on its shape alone, so the figures do not depend on what else is analysed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from weightscope.layouts.roles import OUTSIDE_BLOCKS
from weightscope.matrix import Matrix
from weightscope.recipe import Farms
from weightscope.tensor import DTYPES

BATCH_BYTES = 64 << 20
BATCH_FLOPS = 2e11
BATCH_MATRICES = 64
SHARED_FLOPS = 2e12
SHARED_BYTES = 1 << 30
SHARED_STORED = 256 << 20
"""Matrices that need more operations or memory than this, or more bytes where they are stored, get
all threads, one after the other."""
BLOCK_BYTES = 64 << 20
BLOCK_ROWS = 1024
READ_AHEAD_BYTES = 128 << 20
"""Stored bytes that may be held beside the largest matrix, so that reading need not wait."""
BASE_BYTES = 300 << 20
"""Python and its libraries."""
SOLVE_FLOPS = 4 / 3


@dataclass(frozen=True)
class Batch:
    """Matrices whose results are written to disk together.

    Attributes:
        index: Position in the plan.
        matrices: In the order in which they are read.
        alone: Each of them gets all threads.
    """

    index: int
    matrices: tuple[Matrix, ...]
    alone: bool


@dataclass(frozen=True)
class Plan:
    """Everything to do.

    Attributes:
        batches: In order of execution.
        flops: Floating-point operations of the linear algebra.
        bytes_read: Stored bytes to read.
        peak_bytes: Expected peak memory.
    """

    batches: tuple[Batch, ...]
    flops: float
    bytes_read: int
    peak_bytes: int

    @property
    def matrices(self) -> Iterator[Matrix]:
        """All matrices, in order of execution."""
        for batch in self.batches:
            yield from batch.matrices


def make_plan(matrices: tuple[Matrix, ...], farms: Farms | None, threads: int = 1) -> Plan:
    """Order the matrices file by file, small ones first, by place, and cut them into batches."""

    def place(matrix: Matrix) -> tuple[str, bool, int, int]:
        ref = matrix.tensor
        return ref.file, _alone(matrix, farms), ref.start, matrix.expert or 0

    batches: list[Batch] = []
    for alone, group in groupby(sorted(matrices, key=place), key=lambda m: _alone(m, farms)):
        for chunk in _chunks(group, farms):
            batches.append(Batch(len(batches), chunk, alone))
    return Plan(
        tuple(batches),
        sum(flops(m, farms) for m in matrices),
        sum(m.nbytes for m in matrices),
        BASE_BYTES + READ_AHEAD_BYTES + _most_at_once(matrices, farms, threads),
    )


def _most_at_once(matrices: tuple[Matrix, ...], farms: Farms | None, threads: int) -> int:
    """Bytes of the largest matrix that is worked on alone, or of the largest side by side."""
    alone = max((memory_of(m) for m in matrices if _alone(m, farms)), default=0)
    shared = sorted((memory_of(m) for m in matrices if not _alone(m, farms)), reverse=True)
    return max(alone, sum(shared[:threads]))


def _chunks(matrices: Iterator[Matrix], farms: Farms | None) -> Iterator[tuple[Matrix, ...]]:
    chunk: list[Matrix] = []
    room, work = BATCH_BYTES, BATCH_FLOPS
    for matrix in matrices:
        cost = flops(matrix, farms)
        if chunk and (matrix.nbytes > room or cost > work or len(chunk) == BATCH_MATRICES):
            yield tuple(chunk)
            chunk, room, work = [], BATCH_BYTES, BATCH_FLOPS
        chunk.append(matrix)
        room -= matrix.nbytes
        work -= cost
    if chunk:
        yield tuple(chunk)


def _alone(matrix: Matrix, farms: Farms | None) -> bool:
    return (
        flops(matrix, farms) > SHARED_FLOPS
        or memory_of(matrix) > SHARED_BYTES
        or _stored(matrix) > SHARED_STORED
    )


def flops(matrix: Matrix, farms: Farms | None) -> float:
    """Operations for one matrix: Gram product, eigenvalues, and those of the windows."""
    N, M = matrix.N, matrix.M
    if matrix.product is not None and matrix.base is None:  # two QR of the factors, a small SVD
        r = matrix.product.rank
        return float(matrix.slices * (4 * (N + M) * r**2 + 20 * r**3))
    total = matrix.slices * (N * M**2 + SOLVE_FLOPS * M**3)
    count, short = windows_in(matrix, farms)
    return float(total + matrix.slices * count * (2 + SOLVE_FLOPS) * short**3)


def windows_in(matrix: Matrix, farms: Farms | None) -> tuple[int, int]:
    """How many windows FARMS cuts from a slice, about, and their shorter side."""
    M = matrix.M
    if farms is None or not M or matrix.role in OUTSIDE_BLOCKS:
        return 0, 0
    short = min(farms.rows or min(max(M // 2, 32), 1024), M)
    ops = farms.per_dimension
    count = min(ops, max(1, -(-2 * matrix.rows // short) - 1)) * min(
        ops, max(1, -(-2 * matrix.cols // short) - 1)
    )
    return count, short


def memory_of(matrix: Matrix) -> int:
    """Bytes while one matrix is worked on: as stored, a block of it, Gram matrix and a copy."""
    if matrix.product is not None and matrix.base is None:
        return matrix.nbytes + 3 * 8 * (matrix.N + matrix.M) * matrix.product.rank * matrix.slices
    formed = 3 * 8 * matrix.params + matrix.base.nbytes if matrix.base is not None else 0
    block = max(BLOCK_BYTES, 8 * BLOCK_ROWS * matrix.M)
    rows, cols = matrix.stored_shape
    decoded = 5 * rows * cols if matrix.encoded is not None else 0  # codes and their values
    needed = 2 * 8 * matrix.M**2 + min(block, 8 * matrix.params)
    return needed + _stored(matrix) + formed + decoded


def _stored(matrix: Matrix) -> int:
    if matrix.encoded is not None:
        return matrix.nbytes
    return matrix.params * DTYPES[matrix.tensor.dtype].bits // 8
