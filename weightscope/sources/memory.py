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
    "uint16": "U16",
    "uint32": "U32",
    "uint64": "U64",
    "bool": "BOOL",
    "complex64": "C64",
    "complex128": "C64",
    "float8_e8m0fnu": "F8_E8M0",
    "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
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
        if tensor.is_meta or tensor.is_sparse:
            what = "on the meta device, without values" if tensor.is_meta else "sparse"
            raise CheckpointError(f"{key!r} is {what}; load or densify the model first")
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
    prefixes = tuple(
        f"{name}." if name else ""
        for name, child in module.named_modules()
        if type(child).__name__.startswith(("Conv", "LazyConv"))
        and type(child).__name__ != "Conv1D"
    )
    state = module.state_dict()
    # below, because weight_norm and other parametrisations put the kernel into a child
    conv = frozenset(key for key in state if prefixes and key.startswith(prefixes))
    return open_state_dict(state, type(module).__name__, conv)
