"""What rounding to a few bits does to a matrix: measured while the matrix is there.

Symmetric round-to-nearest with one scale per group of neighbouring entries in a row, the simplest
weight quantiser: q = round(w / d) d with d = max |w| / (2^(bits - 1) - 1) over the group.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from weightscope.decompositions.full import EVAL_ERROR, scaled, solve_gram
from weightscope.decompositions.gram import BLOCK_BYTES, add_gram
from weightscope.measurement import QuantError
from weightscope.spectrum import FloatArray, Spectrum

GROUP = 128
"""Entries of a row that share a scale."""
_BLOCK_BYTES = BLOCK_BYTES // 4  # three copies of a block are held at once
_CACHED = 1 << 17
"""Entries rounded at a time: what is made of them stays in the cache."""


def quantise(block: torch.Tensor, bits: int) -> torch.Tensor:
    """Round every group of a block.

    Args:
        block: (rows, cols) float64; groups run along the second dimension, the last may be short.
        bits: At least 2.

    Returns:
        Rounded values, same shape.
    """
    found = torch.empty_like(block)
    length = max(1, _CACHED // block.shape[1])
    for start in range(0, len(block), length):
        found[start : start + length] = _nearest(block[start : start + length], bits)
    return found


def _nearest(block: torch.Tensor, bits: int) -> torch.Tensor:
    rows, cols = block.shape
    groups = -(-cols // GROUP)
    padded = torch.nn.functional.pad(block, (0, groups * GROUP - cols))
    padded = padded.reshape(rows, groups, GROUP)
    largest = torch.linalg.vector_norm(padded, float("inf"), dim=2, keepdim=True)
    step = largest / (2 ** (bits - 1) - 1)
    step = step.masked_fill_(step == 0, 1.0)  # a group of zeros stays zero
    whole: torch.Tensor = (padded / step).round_().mul_(step)
    return whole.view(rows, -1)[:, :cols]


def quant_error(
    slices: list[torch.Tensor], bits: int, spectrum: Spectrum, rank: int, scale: float
) -> QuantError:
    """Round a matrix, or all slices of a convolution, and compare.

    Args:
        slices: Matrices of equal shape as stored: groups run along their second dimension. Finite,
            not all zero, on the compute device.
        bits: Width of the integers.
        spectrum: Spectrum of the slices as they are.
        rank: How many of the largest singular values are compared.
        scale: Power of two that keeps the squares of extreme entries in range.

    Raises:
        torch.linalg.LinAlgError: The eigenvalue solver did not converge.
    """
    kept = lost = 0.0
    values = []
    for matrix in slices:
        M = min(matrix.shape)
        gram = torch.zeros(M, M, dtype=torch.float64, device=matrix.device)
        for block in _blocks(matrix):
            exact = scaled(block, scale)
            found = quantise(exact, bits)
            tall = found if matrix.shape[0] >= matrix.shape[1] else found.T
            add_gram(gram, tall, max(matrix.shape))
            kept += float(exact.square().sum())
            lost += float((exact - found).square_().sum())
        values.append(solve_gram(gram))
    after = -np.sort(-np.concatenate(values))
    return QuantError(bits, (lost / kept) ** 0.5, _shift(spectrum, rank, after / scale))


def _shift(spectrum: Spectrum, rank: int, after: FloatArray) -> float | None:
    """Mean change of the log singular values; none counts as less than the solver resolves."""
    if not rank:
        return None
    resolved = np.maximum(after[:rank], after[0] * EVAL_ERROR**0.5)
    return float(np.mean(np.abs(np.log(resolved / spectrum.singular_values[:rank]))))


def _blocks(matrix: torch.Tensor) -> Iterator[torch.Tensor]:
    """Cut along the longer side, never through a group."""
    rows, cols = matrix.shape
    length = max(1, _BLOCK_BYTES // (8 * min(rows, cols)))
    if rows >= cols:
        for start in range(0, rows, length):
            yield matrix[start : start + length]
        return
    length = max(1, length // GROUP) * GROUP
    for start in range(0, cols, length):
        yield matrix[:, start : start + length]
