"""Narrow floats as tables: the value of every code."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def e2m1(device: torch.device) -> torch.Tensor:
    """The 16 values of a four-bit float with 2 exponent bits and 1 mantissa bit (OCP MX)."""
    import torch

    return torch.tensor((*_E2M1, *(-value for value in _E2M1)), device=device)


def eight_bit(dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """The 256 values of an eight-bit float dtype, NaN included."""
    import torch

    return torch.arange(256, dtype=torch.uint8).view(dtype).to(torch.float32).to(device)
