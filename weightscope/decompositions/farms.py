"""FARMS: eigenvalues of overlapping windows of one fixed aspect ratio (arXiv 2506.06280).

The exponent of a whole matrix moves with its aspect ratio; windows of one shape do not have that
bias. Their equal-sized spectra are pooled, which averages the densities, and fitted once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from typing import TypeVar

import numpy as np
import torch

from weightscope.decompositions.full import scaled
from weightscope.decompositions.gram import BLOCK_BYTES, add_gram, gram_evals
from weightscope.recipe import Farms
from weightscope.spectrum import FloatArray

Task = TypeVar("Task")
Result = TypeVar("Result")

SMALLEST_WINDOW = 32
LARGEST_IN_BATCH = 256
"""Windows up to this order are solved in batches on the CPU too."""
_TOGETHER = 4
"""Windows whose Gram matrices are made together: three more are held at once."""


@dataclass(frozen=True)
class Windows:
    """Where the windows lie.

    Attributes:
        rows: Window rows.
        cols: Window columns.
        row_starts: First rows, ascending.
        col_starts: First columns, ascending.
    """

    rows: int
    cols: int
    row_starts: tuple[int, ...]
    col_starts: tuple[int, ...]

    def coverage(self, rows: int, cols: int) -> float:
        """Share of the entries of a (rows, cols) matrix that lie in at least one window."""
        return (
            _covered(self.row_starts, self.rows)
            * _covered(self.col_starts, self.cols)
            / (rows * cols)
        )

    @property
    def count(self) -> int:
        """Number of windows in one matrix."""
        return len(self.row_starts) * len(self.col_starts)


def _covered(starts: tuple[int, ...], length: int) -> int:
    total, end = 0, 0
    for start in starts:
        total += max(0, start + length - max(start, end))
        end = max(end, start + length)
    return total


def windows_for(rows: int, cols: int, recipe: Farms, conv: bool = False) -> Windows | None:
    """Choose the windows of a (rows, cols) matrix; None where it is too small for one."""
    if recipe.geometry == "paper-conv" and conv:
        return _conv_blocks(rows, cols, recipe.q)
    if recipe.geometry != "cover":
        return _paper_windows(rows, cols, recipe)
    M = min(rows, cols)
    wanted = recipe.rows or min(max(M // 2, SMALLEST_WINDOW), 1024)
    # clipped on both sides, so that the ratio survives
    height = min(wanted, rows, int(cols / recipe.q))
    width = int(height * recipe.q)
    if min(height, width) < SMALLEST_WINDOW:
        return None
    return Windows(
        height,
        width,
        _even_starts(rows, height, recipe.per_dimension),
        _even_starts(cols, width, recipe.per_dimension),
    )


def _even_starts(length: int, window: int, most: int) -> tuple[int, ...]:
    """Starts with half a window between them, at most ``most``, the ends touched."""
    count = min(most, ceil((length - window) / (window / 2)) + 1)
    return tuple(int(s) for s in np.round(np.linspace(0, length - window, count)))


def _paper_windows(rows: int, cols: int, recipe: Farms) -> Windows | None:
    """The authors' fixed sampling: rounded-down steps, so the last rows and columns are missed."""
    height = min(recipe.rows, rows, cols)
    width = int(height * recipe.q)
    if width > cols:  # their code goes on with a negative start; keep the ratio instead
        width = cols
        height = int(width / recipe.q)
    if not height or not width:
        return None
    return Windows(
        height,
        width,
        _paper_starts(rows, height, recipe.per_dimension),
        _paper_starts(cols, width, recipe.per_dimension),
    )


def _paper_starts(length: int, window: int, per_dimension: int) -> tuple[int, ...]:
    step = max(1, (length - window) // max(1, per_dimension - 1))
    count = min(per_dimension, max(1, (length - window) // step + 1))
    return tuple(min(k * step, length - window) for k in range(count))


def _conv_blocks(rows: int, cols: int, q: float) -> Windows | None:
    """The authors' convolution code: row blocks of the oriented slice that do not overlap."""
    N, M = max(rows, cols), min(rows, cols)
    height, width = (M, int(M * q)) if q <= 1 else (int(M / q), M)
    if not height or not width:
        return None
    starts = tuple(k * height for k in range(N // M))
    return Windows(height, width, starts, (0,))


def window_spectra(
    slices: list[torch.Tensor], windows: Windows, scale: float = 1.0, oriented: bool = False
) -> FloatArray:
    """Eigenvalues of every window.

    Small windows, and all of them on a GPU, go through the solver in batches. Large ones on the CPU
    take their Gram matrices from products that overlapping windows share, and are solved side by
    side on one thread each, whatever the number of threads, so that it changes no figure.

    Args:
        slices: Matrices of equal shape, finite, on the compute device, any floating dtype.
        windows: Where to cut.
        scale: Factor on the entries that keeps the squares of extreme ones in range.
        oriented: Transpose wide slices first (the authors' convolution code does).

    Returns:
        float64, shape (slices, windows, n), of the scaled entries: ascending, n = shorter side of
        a window.
    """
    short = min(windows.rows, windows.cols)
    batched = short <= LARGEST_IN_BATCH or slices[0].device.type != "cpu"
    spectra = []
    for matrix in slices:
        tall = matrix.T if oriented and matrix.shape[0] < matrix.shape[1] else matrix
        found = (_in_batches if batched else _with_shared_products)(tall, windows, scale)
        spectra.append(found.reshape(windows.count, short))
    return np.maximum(np.stack(spectra), 0.0)


def _in_batches(matrix: torch.Tensor, windows: Windows, scale: float) -> FloatArray:
    """Windows stacked as far as memory allows; half as many whenever it turns out not to."""
    short = min(windows.rows, windows.cols)
    each = 8 * (windows.rows * windows.cols + short * short)
    batch = max(1, _room_for_batches(matrix.device) // each)
    places = [(r, c) for r in windows.row_starts for c in windows.col_starts]
    found: list[FloatArray] = []
    while places:
        stack = [matrix[r : r + windows.rows, c : c + windows.cols] for r, c in places[:batch]]
        try:
            found.append(_stack_evals(stack, scale))
        except torch.OutOfMemoryError:
            if batch == 1:
                raise
            batch //= 2
            continue
        del places[:batch]
    return np.concatenate(found)


def _room_for_batches(device: torch.device) -> int:
    if device.type != "cuda":
        return BLOCK_BYTES
    return max(BLOCK_BYTES, torch.cuda.mem_get_info(device)[0] // 4)


def _stack_evals(stack: list[torch.Tensor], scale: float) -> FloatArray:
    wide = scaled(torch.stack(stack), scale)
    grams = wide @ wide.mT if wide.shape[2] > wide.shape[1] else wide.mT @ wide
    del wide
    found: FloatArray = gram_evals(grams).cpu().numpy()
    return found


def _with_shared_products(matrix: torch.Tensor, windows: Windows, scale: float) -> FloatArray:
    """Eigenvalues of shape (rows of windows, columns of windows, n)."""
    if _by_column(windows):
        return _column_evals(matrix, windows, scale).swapaxes(0, 1)
    turned = Windows(windows.cols, windows.rows, windows.col_starts, windows.row_starts)
    return _column_evals(matrix.T, turned, scale)


def _by_column(windows: Windows) -> bool:
    """Whether Gram matrices are of the columns of windows: fewer than rows, or closer below."""
    if windows.rows != windows.cols:
        return windows.rows > windows.cols
    return _spacing(windows.row_starts) <= _spacing(windows.col_starts)


def _spacing(starts: tuple[int, ...]) -> float:
    return (starts[-1] - starts[0]) / (len(starts) - 1) if len(starts) > 1 else float("inf")


def _column_evals(matrix: torch.Tensor, windows: Windows, scale: float) -> FloatArray:
    """Eigenvalues of shape (columns of windows, rows of windows, n)."""

    def solve(task: tuple[int, tuple[int, ...]]) -> list[FloatArray]:
        first, starts = task
        strip = matrix[:, first : first + windows.cols]
        grams = shared_grams(strip, starts, windows.rows, scale)
        return [gram_evals(gram).numpy() for gram in grams]

    rows = windows.row_starts
    groups = [rows[i : i + _TOGETHER] for i in range(0, len(rows), _TOGETHER)]
    tasks = [(first, group) for first in windows.col_starts for group in groups]
    found = np.array([evals for group in _side_by_side(solve, tasks) for evals in group])
    return found.reshape(len(windows.col_starts), len(rows), windows.cols)


def _side_by_side(work: Callable[[Task], Result], tasks: list[Task]) -> Iterator[Result]:
    """Apply ``work`` to every task, on as many threads as torch may use here, one each."""
    workers = torch.get_num_threads()
    if workers == 1:
        yield from map(work, tasks)
        return
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(work, tasks)


def shared_grams(
    strip: torch.Tensor, starts: tuple[int, ...], height: int, scale: float = 1.0
) -> Iterator[torch.Tensor]:
    """Gram matrices of overlapping windows; rows that neighbours share are multiplied once.

    The rows in all windows of a group come first, then those in all of its first half, and so on
    down to single windows: products are only ever added, so nothing cancels.

    Args:
        strip: (rows, n), on the CPU, any floating dtype.
        starts: First rows of the windows, ascending.
        height: Rows of a window.
        scale: Factor on the entries.

    Yields:
        (n, n) float64 per window, lower triangle; to be used before the next, whose memory it is.
    """
    n = strip.shape[1]
    grams = torch.empty(1 + (len(starts) - 1).bit_length(), n, n, dtype=torch.float64)
    grams[0] = 0.0
    yield from _split(strip, starts, height, scale, grams, range(0))


def _split(
    strip: torch.Tensor,
    starts: tuple[int, ...],
    height: int,
    scale: float,
    grams: torch.Tensor,
    rows: range,
) -> Iterator[torch.Tensor]:
    """Windows that all hold some rows, whose product the first matrix is; the others are free.

    Not a function within the other: one that calls itself keeps what it refers to, the stored
    matrix too, until garbage is collected.
    """
    gram = grams[0]
    low, high = starts[-1], starts[0] + height
    if low < high:
        pieces = [(low, rows.start), (rows.stop, high)] if rows else [(low, high)]
        for start, end in pieces:
            if start < end:
                add_gram(gram, scaled(strip[start:end], scale), height)
        rows = range(low, high)
    if len(starts) == 1:
        yield gram
        return
    half = (len(starts) + 1) // 2
    grams[1].copy_(gram)
    yield from _split(strip, starts[:half], height, scale, grams[1:], rows)
    yield from _split(strip, starts[half:], height, scale, grams, rows)
