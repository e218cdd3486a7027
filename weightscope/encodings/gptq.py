"""GPTQ: integers of 2, 3, 4 or 8 bits, packed along the inputs, with groups of them.

W = (q - zero) * scale, transposed on disk. ``checkpoint_format`` gptq (version 1) stores zero - 1:
for 2, 4 and 8 bits the difference was taken of whole words, borrows included, so that one is added
to whole words; 3-bit fields straddle words and wrap alone. gptq_v2 stores zero itself. ``g_idx``
gives the group of every input (activation order). AutoRound stores the same under names of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from weightscope.encoded import Encoded, Part, Unplaced
from weightscope.encodings.bits import unpack, words_for
from weightscope.encodings.blocks import block_length
from weightscope.encodings.grid import Blocks, Columns, Grid, finite_scales, group_index
from weightscope.encodings.stored import FLOATS, Stored
from weightscope.tensor import TensorRef
from weightscope.text import shortened

if TYPE_CHECKING:
    import torch

WIDTHS = (2, 3, 4, 8)
_VERSIONS = {
    "gptq": 1,
    "gptq_v2": 2,
    "auto_round:auto_gptq": 1,
    "auto_round:gptq": 1,
    "auto_round": 2,
    "auto_gptq": 1,
}
"""How zero points are stored, by ``checkpoint_format`` or AutoRound's ``packing_format``."""


def find(stored: Stored) -> Iterator[Encoded | Unplaced]:
    """Every ``qweight`` that has as many columns as its scales."""
    for ref in stored.tensors.values():
        if ref.name.endswith(".qweight") and ref.dtype == "I32" and len(ref.shape) == 2:
            scale = stored.first(f"{ref.name.removesuffix('qweight')}scales")
            if scale is None or scale.shape[-1:] == ref.shape[-1:]:
                yield _placed(stored, ref, scale)


def _format(stored: Stored) -> str:
    key = "packing_format" if stored.method == "auto-round" else "checkpoint_format"
    value = stored.config.get(key, stored.method)  # version 1 had no name before version 2 came
    return value.lower() if isinstance(value, str) else repr(value)


def _placed(stored: Stored, ref: TensorRef, scale: TensorRef | None) -> Encoded | Unplaced:
    module = ref.name.removesuffix(".qweight")
    zero, order = stored.first(f"{module}.qzeros"), stored.first(f"{module}.g_idx")
    ordered = order is None or (len(order.shape) == 1 and order.dtype in {"I32", "I64"})
    companions = tuple(each for each in (scale, zero, order) if each)

    def unplaced(why: str) -> Unplaced:
        return Unplaced(f"{module}.weight", "gptq", why, (ref, *companions))

    if scale is None or zero is None:
        missing = shortened(f"{module}.{'qzeros' if scale else 'scales'}")
        return unplaced(f"its scales or zero points ({missing}) are missing")
    version = _VERSIONS.get(_format(stored))
    if version is None:
        told = f"the packing {shortened(_format(stored))} is not known"
        return unplaced(told if _format(stored) else "no configuration tells its packing")
    if stored.config.get("desc_act") is True and order is None:
        return unplaced(f"the order of its groups ({shortened(f'{module}.g_idx')}) is missing")
    bits = _bits(stored, ref, zero, order) if ordered else None
    if bits is None or not ref.size or scale.dtype not in FLOATS:
        return unplaced(f"a packed shape of {list(ref.shape)} fits no width of 2, 3, 4 or 8 bits")
    cols = order.shape[0] if order else ref.shape[0] * 32 // bits
    groups = scale.shape[0] if len(scale.shape) == 2 else 0
    width = block_length(cols, groups, stored.count("group_size", "q_group_size", "groupsize"))
    fits = words_for(cols, bits) == ref.shape[0] and zero.dtype == "I32" and groups
    if not fits or zero.shape != (groups, words_for(ref.shape[1], bits)) or not (width or order):
        return unplaced(
            f"its scales {list(scale.shape)} and zero points {list(zero.shape)} do not fit a "
            f"weight of shape {[ref.shape[1], cols]}"
        )
    parts: tuple[Part, ...] = (("weight", ref), ("scale", scale), ("zero", zero))
    parts += (("order", order),) if order else ()
    facts = {"bits": bits, "cols": cols, "version": version, "width": width or 0}
    label = "channel" if groups == 1 else f"g{width or 'roups'}"
    label += "-act" if stored.config.get("desc_act") is True else ""
    encoding = f"gptq-int{bits}-{label}"
    return Encoded(f"{module}.weight", "gptq", encoding, (ref.shape[1], cols), parts, facts)


def _bits(stored: Stored, ref: TensorRef, zero: TensorRef, order: TensorRef | None) -> int | None:
    """Bits per entry: by the number of inputs, else by configuration, else by the zero points."""
    fits = [b for b in WIDTHS if zero.shape[1:] == (words_for(ref.shape[1], b),)]
    if order is not None:
        fits = [b for b in fits if words_for(order.shape[0], b) == ref.shape[0]]
    configured = stored.count("bits", "w_bit")
    if configured in fits:
        return configured
    return fits[0] if len(fits) == 1 else None


def grid(encoded: Encoded, parts: Mapping[str, torch.Tensor]) -> Grid:
    """Codes are the fields, one row per output."""
    names = {role: ref.name for role, ref in encoded.parts}
    bits, cols = encoded.bits, encoded.number("cols")
    codes = unpack(parts["weight"].T, bits, cols)
    scale = finite_scales(parts["scale"], names["scale"]).T
    zero = zeros(parts["zero"], bits, codes.shape[0], encoded.number("version")).T
    if "order" in parts:
        order = group_index(parts["order"], scale.shape[1], names["order"])
        return Grid(codes, scale, Columns(order), zero.float())
    return Grid(codes, scale, Blocks(1, encoded.number("width")), zero.float())


def zeros(packed: torch.Tensor, bits: int, count: int, version: int) -> torch.Tensor:
    """Zero points: (groups, outputs) uint8.

    Args:
        packed: (groups, words) int32.
        bits: Width of a field.
        count: Outputs.
        version: 1 where zero - 1 is stored.
    """
    if version == 1 and bits != 3:
        ones = sum(1 << shift for shift in range(0, 32, bits))
        packed = packed + ones  # wraps like the subtraction did
    found = unpack(packed, bits, count)
    return (found + 1) & 7 if version == 1 and bits == 3 else found
