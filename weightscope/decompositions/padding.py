"""Rows at the end of a vocabulary that stand for no token."""

from __future__ import annotations

import torch

_AT_ONCE = 1024


def equal_tail_rows(matrix: torch.Tensor) -> int:
    """How many rows at the end of a table equal the last one, that one included; 0 if only that.

    Padded vocabularies end in rows that training never touched: zeros, or one row many times.

    Args:
        matrix: (rows, cols), stored dtype.
    """
    if not matrix.numel():
        return 0
    last, count = matrix[-1], 0
    for block in reversed(torch.split(matrix, _AT_ONCE)):
        equal = (block == last).all(dim=1)
        run = int(equal.flip(0).to(torch.uint8).cumprod(0).sum())
        count += run
        if run < len(block):
            break
    return count if count > 1 else 0
