"""Models that are already in memory: a state dict or a torch module."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightscope.checkpoint import Checkpoint
from weightscope.errors import CheckpointError
from weightscope.tensor import DTYPES, TensorRef

_CODES = {dtype.torch: dtype.code for dtype in DTYPES.values() if dtype.torch}
_OTHER_CODES = {
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint8": "U8",
    "bool": "BOOL",
    "complex64": "C64",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
}


def open_state_dict(tensors: Mapping[str, Any], name: str, conv: frozenset[str]) -> Checkpoint:
    """Index a mapping of names to torch tensors; tensors sharing storage are listed once.

    Raises:
        CheckpointError: A value is not a tensor, or has a dtype that is not known.
    """
    refs = []
    seen: set[tuple[Any, ...]] = set()
    for key, tensor in tensors.items():
        if not hasattr(tensor, "data_ptr") or not hasattr(tensor, "dtype"):
            raise CheckpointError(f"{key!r} is a {type(tensor).__name__}, not a tensor")
        kind = str(tensor.dtype).removeprefix("torch.")
        code = _CODES.get(kind) or _OTHER_CODES.get(kind)
        if code is None:
            raise CheckpointError(f"{key!r} has the dtype {kind}, which is not known")
        place = (tensor.data_ptr(), tuple(tensor.shape), tuple(tensor.stride()), kind)
        if tensor.numel() and tensor.data_ptr() and place in seen:
            continue  # a tied weight
        seen.add(place)
        refs.append(TensorRef(str(key), tuple(tensor.shape), code))
    if not refs:
        raise CheckpointError(f"{name}: holds no tensors")
    return Checkpoint(name, tuple(refs), format="memory", memory=dict(tensors), conv=conv)


def open_module(module: Any) -> Checkpoint:
    """Index a live ``torch.nn.Module``; its convolutions are known by type."""
    conv = frozenset(
        f"{name}.weight" if name else "weight"
        for name, child in module.named_modules()
        if type(child).__name__.startswith(("Conv", "LazyConv"))
        and type(child).__name__ != "Conv1D"
    )
    return open_state_dict(module.state_dict(), type(module).__name__, conv)
