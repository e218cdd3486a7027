"""Tensors at hand: those of a live model, and those that know how to be read when wanted."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from weightscope.errors import CheckpointError
from weightscope.tensor import DTYPES, TensorRef
from weightscope.text import shortened

if TYPE_CHECKING:
    import torch

DTYPE_CODES = {
    **{dtype.torch: dtype.code for dtype in DTYPES.values() if dtype.torch},
    "complex64": "C64",
    "complex128": "C64",
}
"""Codes of ``DTYPES`` by the names that torch has for them."""


class Stored(ABC):
    """A tensor that is put together when it is read."""

    @abstractmethod
    def read(self, part: int | None) -> torch.Tensor:
        """The tensor, or one index of its first dimension, on the CPU.

        Raises:
            CheckpointError: Its bytes cannot be had.
        """


def read_tensor(
    tensors: Mapping[str, torch.Tensor | Stored], ref: TensorRef, part: int | None = None
) -> torch.Tensor:
    """The tensor, or one index of its first dimension, detached and in its own dtype.

    Raises:
        CheckpointError: Its bytes cannot be had.
    """
    found = tensors[ref.name]
    if isinstance(found, Stored):
        return found.read(part)
    tensor = found.detach()
    # as a file would have it: the last bits of a product depend on the order in memory
    return (tensor if part is None else tensor[part]).contiguous()


def refs_of(tensors: Mapping[str, Any], file: str = "") -> tuple[TensorRef, ...]:
    """Claim tickets of tensors at hand; those that are one piece of memory get one.

    Args:
        tensors: Torch tensors by name.
        file: Where they come from; empty for a live model.

    Raises:
        CheckpointError: A value is not a tensor, has no values, or a dtype that is not known.
    """
    refs = []
    seen: set[tuple[Any, ...]] = set()
    for key, tensor in tensors.items():
        label = shortened(key)
        if not hasattr(tensor, "data_ptr") or not hasattr(tensor, "dtype"):
            raise CheckpointError(f"{label} is a {type(tensor).__name__}, not a tensor")
        kind = str(tensor.dtype).removeprefix("torch.")
        code = DTYPE_CODES.get(kind)
        if code is None:
            raise CheckpointError(f"{label} has the dtype {kind}, which is not known; convert it")
        if tensor.is_meta or str(tensor.layout) != "torch.strided":
            what = "on the meta device, without values" if tensor.is_meta else "sparse"
            raise CheckpointError(f"{label} is {what}; convert the model first")
        place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), kind)
        if tensor.numel() and tensor.data_ptr() and place in seen:
            continue  # a tied weight
        seen.add(place)
        refs.append(TensorRef(str(key), tuple(tensor.shape), code, file))
    return tuple(refs)
