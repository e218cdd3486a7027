"""torchao as transformers saves it: the parts of a tensor subclass, described in the metadata.

``X.weight`` becomes ``X._weight_qdata``, ``X._weight_scale`` and perhaps ``X._weight_zero_point``;
its class stands as JSON under ``X.weight`` in the ``__metadata__`` of the safetensors file. Of the
classes, those with one code per element are decoded: W = (q - zero) * scale per block.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from weightscope.encoded import Encoded, Unplaced
from weightscope.encodings import floats
from weightscope.encodings.blocks import Blocking, block_length
from weightscope.encodings.grid import Blocks, Grid, finite_scales
from weightscope.encodings.stored import FLOATS, Stored, is_count, json_object
from weightscope.tensor import TensorRef
from weightscope.text import shortened

if TYPE_CHECKING:
    import torch

_DATA = "_weight_qdata"
_ALONGSIDE = (
    "act_quant_scale",
    "act_quant_zero_point",
    "act_pre_scale",
    "act_per_tensor_scale",
    "per_tensor_scale",
)
_CLASSES = {
    "Float8Tensor": "float8",
    "Int8Tensor": "int8",
    "IntxUnpackedToInt8Tensor": "int",
}
_DTYPES = {"float8": {"F8_E4M3", "F8_E5M2"}, "int8": {"I8"}, "int": {"I8"}}


def find(stored: Stored) -> Iterator[Encoded | Unplaced]:
    """Every ``_weight_qdata``."""
    for ref in stored.tensors.values():
        if ref.name.endswith(_DATA):
            yield _placed(stored, ref)


def _placed(stored: Stored, ref: TensorRef) -> Encoded | Unplaced:
    stem = ref.name.removesuffix("qdata")
    name = ref.name.removesuffix(_DATA) + "weight"
    scale, zero = stored.first(f"{stem}scale"), stored.first(f"{stem}zero_point")
    rest = stored.those(*(stem + role for role in _ALONGSIDE))
    refs = (ref, *(each for each in (scale, zero) if each), *rest)
    told = json_object(stored.metadata.get(name, ""))
    kind = told.get("_type")

    def unplaced(why: str) -> Unplaced:
        return Unplaced(name, "torchao", why, refs)

    if not isinstance(kind, str):
        return unplaced("the metadata of its file does not describe it")
    if kind not in _CLASSES:
        return unplaced(f"torchao's {shortened(kind)} is not supported")
    if stored.first(f"{stem}act_pre_scale"):
        return unplaced("its inputs are scaled too (act_pre_scale)")
    if scale is None:
        return unplaced(f"its scales ({shortened(f'{stem}scale')}) are missing")
    blocking = _blocking(told, ref, scale)
    fits = ref.dtype in _DTYPES[_CLASSES[kind]] and scale.dtype in FLOATS
    if blocking is None or not fits or (zero is not None and zero.size != scale.size):
        return unplaced(f"its tensors do not fit a weight of shape {list(ref.shape)}")
    bits = _bits(told)
    word = _CLASSES[kind] if _CLASSES[kind] != "int" else f"int{bits}"
    parts = (("weight", ref), ("scale", scale), *((("zero", zero),) if zero else ()))
    facts = {"bits": bits, **blocking.facts}
    return Encoded(
        name, "torchao", f"torchao-{word}-{blocking.label}", ref.shape, parts, facts, rest
    )


def _blocking(told: Mapping[str, Any], ref: TensorRef, scale: TensorRef) -> Blocking | None:
    """Blocks by their size in the metadata, which the number of scales has to confirm."""
    if len(ref.shape) != 2 or not ref.size:
        return None
    rows, cols = ref.shape
    data = told.get("_data")
    block = data.get("block_size") if isinstance(data, Mapping) else None
    if isinstance(block, list) and len(block) == 2 and all(map(is_count, block)):
        height, width = block
        down, across = -(-rows // height), -(-cols // width)
        return Blocking(height, width, down, across) if down * across == scale.size else None
    if scale.size == 1:
        return Blocking(rows, cols, 1, 1)
    if len(scale.shape) != 2:
        return None
    down, across = scale.shape
    sides = block_length(rows, down), block_length(cols, across)
    return Blocking(sides[0], sides[1], down, across) if sides[0] and sides[1] else None


def _bits(told: Mapping[str, Any]) -> int:
    """Width by ``target_dtype``, such as torch.int4; eight bits where nothing says."""
    data = told.get("_data")
    target = data.get("target_dtype") if isinstance(data, Mapping) else None
    word = target.get("_data") if isinstance(target, Mapping) else None
    digits = word.removeprefix("int") if isinstance(word, str) else ""
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) == 1 else 8


def grid(encoded: Encoded, parts: Mapping[str, torch.Tensor]) -> Grid:
    """Codes are the elements: signed bytes, or bytes with a table of floats."""
    import torch

    weight = parts["weight"]
    shape = encoded.number("down"), encoded.number("across")
    scale = finite_scales(parts["scale"], dict(encoded.parts)["scale"].name).reshape(shape)
    blocks = Blocks(encoded.number("height"), encoded.number("width"))
    if weight.dtype == torch.int8:
        zero = parts["zero"].float().reshape(shape) if "zero" in parts else None
        return Grid(weight, scale, blocks, zero)
    table = floats.eight_bit(weight.dtype, weight.device)
    return Grid(weight.view(torch.uint8), scale, blocks, table=table)
