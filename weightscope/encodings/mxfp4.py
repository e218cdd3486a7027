"""MXFP4: four-bit floats with a power of two per 32 columns (OCP Microscaling Formats 1.0).

W = e2m1 * 2^(exponent - 127); the low half of a byte is the first of its two entries. Stored as
``*_blocks`` and ``*_scales`` (gpt-oss, experts as (outputs, inputs) where the unquantised model has
(inputs, outputs), to which they are turned), ``weight_packed`` and ``weight_scale``
(compressed-tensors, mxfp4-pack-quantized), or as bytes under the name of the weight, scales beside
it (DeepSeek-V4).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

from weightscope.encoded import Encoded, Unplaced
from weightscope.encodings import floats
from weightscope.encodings.bits import fields
from weightscope.encodings.grid import Blocks, Grid, finite_scales
from weightscope.encodings.stored import EXPONENTS, Stored
from weightscope.tensor import TensorRef
from weightscope.text import shortened

if TYPE_CHECKING:
    import torch

GROUP = 32


def find(stored: Stored) -> Iterator[Encoded | Unplaced]:
    """Every matrix or stack of packed bytes whose scales are exponents."""
    for ref in stored.tensors.values():
        if ref.dtype not in {"U8", "I8"} or len(ref.shape) < 2:
            continue
        if ref.name.endswith("_blocks") and ref.dtype == "U8" and len(ref.shape) == 4:
            yield _gpt_oss(stored, ref)
        elif len(ref.shape) in {2, 3}:
            scale = stored.first(*_scale_names(ref.name))
            if scale is not None and scale.dtype in EXPONENTS:
                yield _beside(stored, ref, scale)


def _scale_names(name: str) -> list[str]:
    if name.endswith(".weight_packed"):
        return [name.removesuffix("_packed") + "_scale"]
    names = [f"{name}_scale_inv", f"{name}_scale"]
    return [*names, name.removesuffix("weight") + "scale"] if name.endswith(".weight") else names


def _gpt_oss(stored: Stored, ref: TensorRef) -> Encoded | Unplaced:
    name = ref.name.removesuffix("_blocks")
    scale = stored.first(f"{name}_scales")
    if scale is None:
        missing = shortened(f"{name}_scales")
        return Unplaced(name, "mxfp4", f"its scales ({missing}) are missing", (ref,))
    if ref.shape[-1] * 2 != GROUP or scale.shape != ref.shape[:-1] or scale.dtype not in EXPONENTS:
        return Unplaced(name, "mxfp4", _misfit(scale, ref.shape), (ref, scale))
    experts, rows, groups, _ = ref.shape
    return _encoded(name, ref, scale, (experts, groups * GROUP, rows))


def _beside(stored: Stored, ref: TensorRef, scale: TensorRef) -> Encoded | Unplaced:
    shape = (*ref.shape[:-1], ref.shape[-1] * 2)
    name = ref.name.removesuffix("_packed")
    rest = stored.those(f"{name.removesuffix('.weight')}.input_global_scale")
    if scale.shape != (*shape[:-1], shape[-1] // GROUP) or shape[-1] % GROUP:
        return Unplaced(name, "mxfp4", _misfit(scale, shape), (ref, scale, *rest))
    return _encoded(name, ref, scale, shape, rest)


def _misfit(scale: TensorRef, shape: tuple[int, ...]) -> str:
    return (
        f"its scales of shape {list(scale.shape)} and dtype {scale.dtype} are not one per {GROUP} "
        f"columns of a weight of shape {list(shape)}"
    )


def _encoded(
    name: str,
    ref: TensorRef,
    scale: TensorRef,
    shape: tuple[int, ...],
    rest: tuple[TensorRef, ...] = (),
) -> Encoded | Unplaced:
    if not prod(shape):
        return Unplaced(name, "mxfp4", "it has no entries", (ref, scale, *rest))
    parts = (("weight", ref), ("scale", scale))
    facts = {"bits": 4, "transposed": ref.name.endswith("_blocks")}
    return Encoded(name, "mxfp4", f"mxfp4-g{GROUP}", shape, parts, facts, rest)


def grid(encoded: Encoded, parts: Mapping[str, torch.Tensor]) -> Grid:
    """Codes are half bytes, their values those of e2m1."""
    import torch

    packed = parts["weight"].view(torch.uint8)
    codes = fields(packed.reshape(packed.shape[0], -1), 4)
    scale = finite_scales(parts["scale"], dict(encoded.parts)["scale"].name)
    table = floats.e2m1(codes.device)
    if encoded.facts["transposed"]:
        return Grid(codes.T, scale.T, Blocks(GROUP, 1), table=table)
    return Grid(codes, scale, Blocks(1, GROUP), table=table)
