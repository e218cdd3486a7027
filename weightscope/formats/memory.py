"""Tensors of a live model, handed out as they are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from weightscope.tensor import TensorRef


def read_tensor(
    tensors: Mapping[str, torch.Tensor], ref: TensorRef, part: int | None = None
) -> torch.Tensor:
    """The tensor, or one index of its first dimension, detached and in its own dtype."""
    tensor = tensors[ref.name].detach()
    return tensor if part is None else tensor[part]
