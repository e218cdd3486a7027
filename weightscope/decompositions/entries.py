"""Statistics of the entries, and the noise floor that their storage leaves in the spectrum."""

from __future__ import annotations

from math import frexp

import torch

from weightscope.decompositions.gram import long_side_blocks
from weightscope.measurement import EntryStatistics
from weightscope.tensor import DType

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
    nonfinite = sum(map(count_nonfinite, slices))
    if nonfinite:
        return EntryStatistics(None, None, None, None, nonfinite, None)
    largest = max(map(abs_max, slices))
    scale = scale_for(largest)
    # count, mean and sum of squared deviations, merged over blocks (Chan, Golub & LeVeque 1983)
    count, mean, squares, zeros = 0, 0.0, 0.0, 0
    for matrix in slices:
        for block in long_side_blocks(matrix):
            wide = block.to(torch.float64)
            wide = wide if scale == 1.0 else wide * scale
            n = wide.numel()
            block_mean = float(wide.mean())
            step = block_mean - mean
            squares += float((wide - block_mean).square_().sum()) + step**2 * count * n / (
                count + n
            )
            mean += step * n / (count + n)
            count += n
            zeros += n - int(torch.count_nonzero(wide))
    floor = max(storage_floor(m, dtype, scale) for m in slices)
    std = (squares / count) ** 0.5 / scale
    return EntryStatistics(mean / scale, std, largest, zeros / count, 0, floor)


def count_nonfinite(matrix: torch.Tensor) -> int:
    """Number of NaN and infinite entries."""
    if not matrix.numel():
        return 0
    return sum(int((~torch.isfinite(block)).sum()) for block in long_side_blocks(matrix))


def abs_max(matrix: torch.Tensor) -> float:
    """Largest magnitude among the entries; 0 for an empty matrix."""
    if not matrix.numel():
        return 0.0
    low, high = torch.aminmax(matrix)
    return max(-float(low), float(high))


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
    tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    columns = torch.zeros(tall.shape[1], dtype=torch.float64, device=matrix.device)
    largest_row = 0.0
    smallest_power = 2.0**dtype.min_exponent
    for block in long_side_blocks(tall):
        bits = block.contiguous().view(integer)
        power = (bits & mask).view(matrix.dtype).to(torch.float64).clamp_(min=smallest_power)
        power.mul_(scale).square_()
        columns += power.sum(0)
        largest_row = max(largest_row, float(power.sum(1).max()))
    ulp = 2.0 ** (1 - dtype.significand)
    return float(ulp / 12**0.5 * (largest_row**0.5 + float(columns.max()) ** 0.5) / scale)
