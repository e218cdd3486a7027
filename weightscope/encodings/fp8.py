"""Eight-bit floats with scales: per tensor, per channel, per group or per block.

W = w * scale, whatever the scale is called: ``weight_scale_inv`` of DeepSeek and transformers' fp8
(blocks of 128 x 128, ragged at the edges), ``weight_scale`` of compressed-tensors (float-quantized
and mxfp8-quantized), ModelOpt and fbgemm, ``scale_weight`` of ComfyUI. Scales of one byte are
powers of two (OCP MX).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from weightscope.encoded import Encoded, Unplaced
from weightscope.encodings import floats
from weightscope.encodings.blocks import Blocking, blocking_of
from weightscope.encodings.grid import Blocks, Grid, finite_scales
from weightscope.encodings.names import is_companion
from weightscope.encodings.stored import EXPONENTS, FLOATS, Stored
from weightscope.tensor import TensorRef
from weightscope.text import shortened

if TYPE_CHECKING:
    import torch

_WEIGHTS = {
    "F8_E4M3": "e4m3",
    "F8_E5M2": "e5m2",
    "F8_E4M3FNUZ": "e4m3fnuz",
    "F8_E5M2FNUZ": "e5m2fnuz",
}
_ALONGSIDE = (
    "input_scale",
    "input_scale_ub",
    "activation_scale",
    "scale_input",
    "k_scale",
    "v_scale",
    "comfy_quant",
)


def find(stored: Stored) -> Iterator[Encoded | Unplaced]:
    """Every eight-bit float matrix or stack of them, with the scales that belong to it."""
    for ref in stored.tensors.values():
        if ref.dtype in _WEIGHTS and len(ref.shape) >= 2 and not is_companion(ref.name):
            yield _placed(stored, ref)


def _placed(stored: Stored, ref: TensorRef) -> Encoded | Unplaced:
    def unplaced(why: str) -> Unplaced:
        return Unplaced(ref.name, "fp8", why, (ref, *((scale,) if scale else ()), *rest))

    module = ref.name.removesuffix(".weight")
    spellings = [f"{ref.name}_scale_inv", f"{ref.name}_scale"]
    spellings += [f"{module}.scale_weight", f"{module}.scale"] if module != ref.name else []
    scale = stored.first(*spellings)
    rest = stored.those(*(f"{module}.{name}" for name in _ALONGSIDE))
    if stored.first(f"{module}.pre_quant_scale"):
        return unplaced("its inputs are scaled too (pre_quant_scale)")
    if scale is None:
        return unplaced(f"its scales ({shortened(spellings[0])}) are missing")
    if len(ref.shape) > 3:
        return unplaced("a quantised convolution is not supported")
    blocking = _blocking(stored, ref, scale)
    if blocking is None or scale.dtype not in FLOATS | EXPONENTS:
        return unplaced(
            f"its scales of shape {list(scale.shape)} and dtype {scale.dtype} do not fit a weight "
            f"of shape {list(ref.shape)}"
        )
    return Encoded(
        ref.name,
        "fp8",
        f"fp8-{_WEIGHTS[ref.dtype]}-{blocking.label}",
        ref.shape,
        (("weight", ref), ("scale", scale)),
        {"bits": 8, **blocking.facts},
        rest,
    )


def _blocking(stored: Stored, ref: TensorRef, scale: TensorRef) -> Blocking | None:
    if stored.method == "fbgemm_fp8" and len(ref.shape) == 3 and scale.size != 1:
        # Llama-4's stacks: one scale per column, stored as (experts, 1, n) or as (experts, n, 1)
        fits = scale.size == ref.shape[0] * ref.shape[2] and scale.shape[0] == ref.shape[0]
        return Blocking(ref.shape[1], 1, 1, ref.shape[2]) if fits else None
    return blocking_of(stored, ref.shape, scale)


def grid(encoded: Encoded, parts: Mapping[str, torch.Tensor]) -> Grid:
    """Codes are the bytes, their values a table of all 256."""
    import torch

    weight, scale = parts["weight"], parts["scale"]
    scales = finite_scales(scale, dict(encoded.parts)["scale"].name)
    shape = encoded.number("down"), encoded.number("across")
    blocks = Blocks(encoded.number("height"), encoded.number("width"))
    table = floats.eight_bit(weight.dtype, weight.device)
    return Grid(weight.view(torch.uint8), scales.reshape(shape), blocks, table=table)
