"""AWQ in its gemm packing: four-bit integers, eight per word along the outputs, in groups.

W = (q - zero) * scale, transposed on disk. The eight fields of a word belong to outputs
0, 2, 4, 6, 1, 3, 5, 7 of their eight.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from weightscope.encoded import Encoded, Unplaced
from weightscope.encodings.bits import fields
from weightscope.encodings.blocks import block_length
from weightscope.encodings.grid import Blocks, Grid, finite_scales
from weightscope.encodings.stored import FLOATS, Stored
from weightscope.tensor import TensorRef
from weightscope.text import shortened

if TYPE_CHECKING:
    import torch

_PER_WORD = 8
_FIELD_OF = (0, 4, 1, 5, 2, 6, 3, 7)
"""Which field of a word holds output 0, 1, ..."""
_KNOWN = {"", "gemm", "auto_round:auto_awq", "auto_awq"}


def find(stored: Stored) -> Iterator[Encoded | Unplaced]:
    """Every ``qweight`` that has an eighth of the columns of its scales."""
    for ref in stored.tensors.values():
        if ref.name.endswith(".qweight") and ref.dtype == "I32" and len(ref.shape) == 2:
            scale = stored.first(f"{ref.name.removesuffix('qweight')}scales")
            if scale is None or scale.shape[-1:] != ref.shape[-1:]:
                yield _placed(stored, ref, scale)


def _packing(stored: Stored) -> str:
    auto_round = stored.method == "auto-round"
    keys = ("packing_format",) if auto_round else ("version", "checkpoint_format")
    value = next((stored.config[key] for key in keys if key in stored.config), "")
    return value.lower() if isinstance(value, str) else repr(value)


def _placed(stored: Stored, ref: TensorRef, scale: TensorRef | None) -> Encoded | Unplaced:
    module = ref.name.removesuffix(".qweight")
    zero = stored.first(f"{module}.qzeros")
    companions = tuple(each for each in (scale, zero) if each)

    def unplaced(why: str) -> Unplaced:
        return Unplaced(f"{module}.weight", "awq", why, (ref, *companions))

    if scale is None or zero is None:
        missing = shortened(f"{module}.{'qzeros' if scale else 'scales'}")
        return unplaced(f"its scales or zero points ({missing}) are missing")
    if _packing(stored) not in _KNOWN:
        return unplaced(f"the packing {shortened(_packing(stored))} is not known")
    if stored.count("bits", "w_bit") not in {None, 4}:
        return unplaced("only four bits are known")
    cols, rows = ref.shape[0], ref.shape[1] * _PER_WORD
    groups = scale.shape[0] if len(scale.shape) == 2 else 0
    width = block_length(cols, groups, stored.count("group_size", "q_group_size"))
    fits = scale.shape == (groups, rows) and scale.dtype in FLOATS and ref.size
    if not fits or not width or zero.shape != (groups, ref.shape[1]) or zero.dtype != "I32":
        return unplaced(
            f"its scales {list(scale.shape)} and zero points {list(zero.shape)} do not fit a "
            f"weight of shape {[rows, cols]}"
        )
    parts = (("weight", ref), ("scale", scale), ("zero", zero))
    facts = {"bits": 4, "width": width}
    label = "channel" if groups == 1 else f"g{width}"
    return Encoded(f"{module}.weight", "awq", f"awq-int4-{label}", (rows, cols), parts, facts)


def grid(encoded: Encoded, parts: Mapping[str, torch.Tensor]) -> Grid:
    """Codes are the fields in the order of the outputs, one row per output."""
    scale = finite_scales(parts["scale"], dict(encoded.parts)["scale"].name).T
    codes = _ordered(parts["weight"]).T.contiguous()
    zero = _ordered(parts["zero"]).T.float()
    return Grid(codes, scale, Blocks(1, encoded.number("width")), zero)


def _ordered(words: torch.Tensor) -> torch.Tensor:
    """Fields of each word in the order of the outputs: (n, words * 8) uint8."""
    import torch

    nibbles = fields(words.contiguous().view(torch.uint8), 4)
    by_word = nibbles.reshape(words.shape[0], -1, _PER_WORD)
    return by_word[:, :, list(_FIELD_OF)].flatten(1)
