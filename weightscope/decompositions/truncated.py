"""A matrix as two factors: its leading singular directions, the best of their rank.

``W = left right`` with ``left = U_r sqrt(S_r)`` and ``right = sqrt(S_r) V_r^T``. The right singular
vectors are eigenvectors of the float64 Gram matrix of the short side, several times faster than an
SVD of the whole. Everything else follows from ``W V_r``, whose columns have the singular values as
their norms, so ``left right`` is the projection ``W V_r V_r^T`` whatever the eigenvalues lost.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from weightscope.decompositions.entries import scale_for
from weightscope.decompositions.full import gram_of, scaled
from weightscope.decompositions.gram import long_side_blocks


@dataclass(frozen=True)
class Factors:
    """Two factors of a matrix, and how far their product is from it.

    Attributes:
        left: (rows, r), in the dtype of the matrix.
        right: (r, cols), likewise.
        frobenius_norm: Norm of the matrix.
        relative_error: Frobenius norm of what the truncation drops over that of the matrix, before
            the factors are rounded.
        stored_error: The same for the product of the factors as they are stored.
    """

    left: torch.Tensor
    right: torch.Tensor
    frobenius_norm: float
    relative_error: float
    stored_error: float


def truncated(matrix: torch.Tensor, rank: int) -> Factors:
    """The best two factors of a rank, in the Frobenius norm (Eckart & Young 1936).

    Works in float64 on the matrix's device; beside the matrix it holds the matrix in float64, its
    Gram matrix (M, M) with its eigenvectors, and the factors.

    Args:
        matrix: (rows, cols), finite, any floating dtype.
        rank: Between 1 and the short side.

    Raises:
        torch.linalg.LinAlgError: The eigenvalue solver did not converge.
    """
    scale = scale_for(float(matrix.abs().max()))
    blocks = [scaled(block, scale) for block in long_side_blocks(matrix)]
    directions = _leading(gram_of(matrix, scale), rank)  # (M, r)
    projected = torch.cat([block @ directions for block in blocks])  # (N, r)
    s = torch.linalg.vector_norm(projected, dim=0)
    root = (s / scale).sqrt()
    long = (projected * _inverse(s) * root).to(matrix.dtype)
    short = (directions * root).to(matrix.dtype)
    energy, dropped, missed = 0.0, 0.0, 0.0
    start = 0
    for block in blocks:
        rows = slice(start, start + len(block))
        start += len(block)
        energy += _energy(block)
        dropped += _energy(block - projected[rows] @ directions.T)
        stored = long[rows].to(torch.float64) @ (short.T.to(torch.float64) * scale)
        missed += _energy(block - stored)
    tall = matrix.shape[0] >= matrix.shape[1]
    left, right = (long, short.T) if tall else (short, long.T)
    return Factors(
        left.contiguous(),
        right.contiguous(),
        energy**0.5 / scale,
        (dropped / energy) ** 0.5 if energy else 0.0,
        (missed / energy) ** 0.5 if energy else 0.0,
    )


def _leading(gram: torch.Tensor, rank: int) -> torch.Tensor:
    """The eigenvectors of the largest eigenvalues, largest first."""
    vectors: torch.Tensor = torch.linalg.eigh(gram, UPLO="L")[1]
    return vectors[:, -rank:].flip(1)


def _inverse(values: torch.Tensor) -> torch.Tensor:
    """One over each, nothing for zeros."""
    return torch.where(values > 0, 1 / values, 0.0)


def _energy(block: torch.Tensor) -> float:
    return float(torch.sum(block * block))
