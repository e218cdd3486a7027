"""FARMS: eigenvalues of overlapping windows of one fixed aspect ratio (arXiv 2506.06280).

The exponent of a whole matrix moves with its aspect ratio; windows of one shape do not have that
bias. Their equal-sized spectra are pooled, which averages the densities, and fitted once.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch

from weightscope.decompositions.gram import BLOCK_BYTES
from weightscope.recipe import Farms
from weightscope.spectrum import FloatArray

SMALLEST_WINDOW = 32


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
    batch = max(1, BLOCK_BYTES // (8 * (windows.rows * windows.cols + short * short)))
    places = [(r, c) for r in windows.row_starts for c in windows.col_starts]
    spectra = []
    for matrix in slices:
        tall = matrix.T if oriented and matrix.shape[0] < matrix.shape[1] else matrix
        for first in range(0, len(places), batch):
            stack = torch.stack(
                [
                    tall[r : r + windows.rows, c : c + windows.cols]
                    for r, c in places[first : first + batch]
                ]
            ).to(torch.float64)
            stack = stack if scale == 1.0 else stack * scale
            wide = windows.cols > windows.rows
            gram = stack @ stack.mT if wide else stack.mT @ stack
            del stack
            spectra.append(torch.linalg.eigvalsh(gram).clamp_(min=0).cpu().numpy())
    return np.concatenate(spectra).reshape(len(slices), len(places), short)
