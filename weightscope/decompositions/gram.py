"""The Gram matrix of the short side, in float64, accumulated over bounded blocks."""

from __future__ import annotations

from collections.abc import Iterator

import torch

BLOCK_BYTES = 256 << 20
_PANELS = 8


def long_side_blocks(matrix: torch.Tensor) -> Iterator[torch.Tensor]:
    """Cut a matrix along its longer side into blocks of at most ``BLOCK_BYTES`` in float64.

    Args:
        matrix: Two-dimensional, any floating dtype.

    Yields:
        Views of shape (rows, M) with rows <= N: tall blocks, transposed where the matrix is wide.
    """
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    N, M = tall.shape
    rows = max(1, BLOCK_BYTES // (8 * M))
    for start in range(0, N, rows):
        yield tall[start : start + rows]


def add_gram(total: torch.Tensor, block: torch.Tensor) -> None:
    """Add ``block^T block`` to the lower triangle of ``total``.

    Only block columns on and below the diagonal are multiplied: little more than half the
    operations of the full product, as a symmetric rank-k update does.

    Args:
        total: (M, M) float64; what lies above the diagonal is left undefined.
        block: (rows, M) float64.
    """
    M = block.shape[1]
    width = max(128, -(-M // _PANELS))
    transposed = block.T
    for start in range(0, M, width):
        stop = min(start + width, M)
        total[start:stop, :stop].addmm_(transposed[start:stop], block[:, :stop])
