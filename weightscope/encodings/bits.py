"""Fields of a few bits, packed into words or bytes."""

from __future__ import annotations

from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_AT_ONCE = 1 << 22  # fields, so that 64-bit intermediates stay small beside the matrix


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Unpack a continuous stream of little-endian fields that may straddle words.

    Args:
        words: (rows, words) int32; field i of a row takes its bits from i * bits on.
        bits: Width of a field, 1 to 8.
        count: Fields per row; what the last word has beyond them is padding.

    Returns:
        (rows, count) uint8.
    """
    import torch

    if 8 % bits == 0:  # no field straddles a byte
        packed = words.contiguous().flatten().view(torch.uint8).reshape(words.shape[0], -1)
        return fields(packed, bits)[:, :count]
    start = torch.arange(count, device=words.device) * bits
    word, shift = start // 32, start % 32
    following = (word + 1).clamp_(max=words.shape[1] - 1)
    found = torch.empty((words.shape[0], count), dtype=torch.uint8, device=words.device)
    step = max(1, _AT_ONCE // max(count, 1))
    for first in range(0, words.shape[0], step):
        wide = words[first : first + step].to(torch.int64) & 0xFFFFFFFF
        both = (wide[:, word] >> shift) | (wide[:, following] << (32 - shift))
        found[first : first + step] = (both & (2**bits - 1)).to(torch.uint8)
    return found


def fields(packed: torch.Tensor, bits: int) -> torch.Tensor:
    """Split bytes into fields, the lowest bits first.

    Args:
        packed: (..., bytes) uint8.
        bits: Width of a field: 1, 2, 4 or 8.

    Returns:
        (..., bytes * 8 / bits) uint8.
    """
    import torch

    if bits == 8:
        return packed
    parts = [(packed >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, dim=-1).flatten(-2)


def words_for(count: int, bits: int) -> int:
    """Words of 32 bits that so many fields take."""
    return ceil(count * bits / 32)
