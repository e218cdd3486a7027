"""NVFP4: four-bit floats with a scale per 16 columns in eight-bit floats, and one for the tensor.

W = e2m1 * scale / global of compressed-tensors (nvfp4-pack-quantized), or e2m1 * (scale * global)
of ModelOpt. The low half of a byte is the first of its two entries.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from weightscope.encoded import Encoded, Unplaced
from weightscope.encodings import floats
from weightscope.encodings.bits import fields
from weightscope.encodings.grid import Blocks, Grid, finite_scales
from weightscope.encodings.stored import Stored
from weightscope.tensor import TensorRef
from weightscope.text import shortened

if TYPE_CHECKING:
    import torch

GROUP = 16
_ALONGSIDE = ("input_global_scale", "input_scale", "k_scale", "v_scale", "comfy_quant")


def find(stored: Stored) -> Iterator[Encoded | Unplaced]:
    """Every matrix of packed bytes whose scales are eight-bit floats."""
    for ref in stored.tensors.values():
        suffix = next((s for s in (".weight_packed", ".weight") if ref.name.endswith(s)), "")
        if not suffix or ref.dtype != "U8" or len(ref.shape) not in {2, 3}:
            continue
        scale = stored.first(f"{ref.name.removesuffix(suffix)}.weight_scale")
        if scale is not None and scale.dtype == "F8_E4M3":
            yield _placed(stored, ref, scale)


def _placed(stored: Stored, ref: TensorRef, scale: TensorRef) -> Encoded | Unplaced:
    module = scale.name.removesuffix(".weight_scale")
    name = f"{module}.weight"
    divisor, factor = (
        stored.first(f"{name}_{spelling}") for spelling in ("global_scale", "scale_2")
    )
    whole = divisor or factor
    rest = stored.those(*(f"{module}.{each}" for each in _ALONGSIDE))
    refs = (ref, scale, *((whole,) if whole else ()), *rest)

    def unplaced(why: str) -> Unplaced:
        return Unplaced(name, "nvfp4", why, refs)

    if stored.first(f"{module}.pre_quant_scale"):
        return unplaced("its inputs are scaled too (pre_quant_scale)")
    if whole is None or whole.dtype != "F32" or whole.size not in {1, *ref.shape[:-2]}:
        missing = shortened(f"{name}_global_scale")
        return unplaced(f"the scale of the whole tensor ({missing}) is missing")
    if stored.first(f"{module}.comfy_quant") or "_quantization_metadata" in stored.metadata:
        return unplaced("its scales are swizzled for one kind of processor (ComfyUI)")
    shape = (*ref.shape[:-1], ref.shape[-1] * 2)
    if scale.shape != (*ref.shape[:-1], shape[-1] // GROUP) or shape[-1] % GROUP or not ref.size:
        return unplaced(
            f"its scales of shape {list(scale.shape)} are not one per {GROUP} columns of a weight "
            f"of shape {list(shape)}"
        )
    parts = (("weight", ref), ("scale", scale), ("divisor" if divisor else "factor", whole))
    return Encoded(name, "nvfp4", f"nvfp4-g{GROUP}", shape, parts, {"bits": 4}, rest)


def grid(encoded: Encoded, parts: Mapping[str, torch.Tensor]) -> Grid:
    """Codes are half bytes, their values those of e2m1."""
    names = {role: ref.name for role, ref in encoded.parts}
    scale = finite_scales(parts["scale"], names["scale"])
    role = "divisor" if "divisor" in parts else "factor"
    whole = finite_scales(parts[role], names[role]).reshape(1, 1)
    scale = scale / whole if role == "divisor" else scale * whole
    finite_scales(scale, names[role])  # a divisor of zero
    codes = fields(parts["weight"], 4)
    return Grid(codes, scale, Blocks(1, GROUP), table=floats.e2m1(codes.device))
