"""Statistics of the entries, and the noise floor that their storage leaves in the spectrum."""

from __future__ import annotations

from math import frexp, isfinite

import numpy as np
import torch

from weightscope.measurement import EntryStatistics
from weightscope.tensor import DType

_CACHED = 1 << 17
"""Entries at a time: what is made of them stays in the cache, seven times faster than in memory."""
_LAUNCHED = 1 << 24
"""Entries at a time on a GPU, whose launches cost more than what they do with a few."""
_BITS = {
    torch.float64: (torch.int64, 0x7FF0000000000000),
    torch.float32: (torch.int32, 0x7F800000),
    torch.float16: (torch.int16, 0x7C00),
    torch.bfloat16: (torch.int16, 0x7F80),
}


def entry_statistics(slices: list[torch.Tensor], dtype: DType) -> EntryStatistics:
    """Measure the entries of a matrix, or of all slices of a convolution.

    Args:
        slices: Matrices of equal shape, stored dtype.
        dtype: How they are stored.
    """
    tops = list(map(abs_max, slices))
    if not all(map(isfinite, tops)):
        nonfinite = sum(map(count_nonfinite, slices))
        return EntryStatistics(None, None, None, None, nonfinite, None)
    largest = max(tops)
    scale = scale_for(largest)
    parts = torch.cat([_moments(matrix, scale) for matrix in slices])
    counts, zeros, means, squares = parts.cpu().numpy().T  # one wait for the device
    # sums of squared deviations merge over blocks without cancellation (Chan et al. 1983)
    count = counts.sum()
    mean = float((counts * means).sum() / count)
    squared = float(squares.sum() + (counts * np.square(means - mean)).sum())
    std = (squared / float(count)) ** 0.5 / scale
    floor = max(storage_floor(m, dtype, scale) for m in slices)
    return EntryStatistics(mean / scale, std, largest, float(zeros.sum() / count), 0, floor)


def _moments(matrix: torch.Tensor, scale: float) -> torch.Tensor:
    """Per block: entries, zeros, mean and sum of squared deviations, float64, on the device.

    They go into one tensor: many small ones, each between two blocks that are given back, would
    keep the allocator from using the place of a block again, up to all entries in float64.
    """
    blocks = _row_blocks(matrix)
    parts = torch.empty(len(blocks), 4, dtype=torch.float64, device=matrix.device)
    for part, block in zip(parts, blocks, strict=True):
        wide = block.to(torch.float64)
        wide = wide if scale == 1.0 else wide * scale
        mean = wide.mean()
        part[0] = wide.numel()
        part[1] = wide.numel() - torch.count_nonzero(wide)
        part[2] = mean
        part[3] = (wide - mean).square_().sum()
    return parts


def _along(matrix: torch.Tensor) -> torch.Tensor:
    """The matrix or its transpose, whichever lies row by row in memory."""
    return matrix if matrix.stride(0) >= matrix.stride(1) else matrix.T


def _row_blocks(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    along = _along(matrix)
    entries = _CACHED if matrix.device.type == "cpu" else _LAUNCHED
    return torch.split(along, max(1, entries // along.shape[1]))


def count_nonfinite(matrix: torch.Tensor) -> int:
    """Number of NaN and infinite entries."""
    if not matrix.numel():
        return 0
    return sum(int((~torch.isfinite(block)).sum()) for block in _row_blocks(matrix))


def abs_max(matrix: torch.Tensor) -> float:
    """Largest magnitude among the entries; 0 for an empty matrix, NaN where any entry is."""
    if not matrix.numel():
        return 0.0
    low, high = torch.stack(torch.aminmax(matrix)).tolist()
    return float(max(-low, high))


def scale_for(abs_max: float) -> float:
    """A power of two that brings extreme entries into a range whose squares float64 holds."""
    if 1e-100 < abs_max < 1e100 or abs_max == 0.0:
        return 1.0
    return 2.0 ** -min(max(frexp(abs_max)[1], -1000), 1000)


def storage_floor(matrix: torch.Tensor, dtype: DType, scale: float = 1.0) -> float:
    """What rounding to the stored dtype can add to any singular value.

    Rounding errors of an entry have standard deviation ``ulp / sqrt(12)``; the spectral norm of a
    matrix of independent errors is bounded by sqrt(largest row sum of variances) +
    sqrt(largest column sum) (Bandeira & van Handel 2016, up to lower order).

    Args:
        matrix: (rows, cols) in its stored dtype, finite.
        dtype: How it is stored.
        scale: Factor that keeps the squares of extreme entries in range; undone afterwards.

    Returns:
        The floor, in units of W.
    """
    integer, mask = _BITS[matrix.dtype]
    smallest_power = 2.0**dtype.min_exponent
    along = _along(matrix)
    columns = torch.zeros(along.shape[1], dtype=torch.float64, device=matrix.device)
    rows = torch.zeros((), dtype=torch.float64, device=matrix.device)
    for block in _row_blocks(along):
        bits = block.contiguous().view(integer)
        power = (bits & mask).view(matrix.dtype).to(torch.float64).clamp_(min=smallest_power)
        power.mul_(scale).square_()
        columns += power.sum(0)
        torch.maximum(rows, power.sum(1).max(), out=rows)
    largest = torch.stack((rows, columns.max())).sqrt_().sum()
    return 2.0 ** (1 - dtype.significand) / 12**0.5 * float(largest) / scale
