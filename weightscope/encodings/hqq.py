"""HQQ: integers of 1 to 8 bits with a scale and a fractional zero point per group.

W = (q - zero) * scale. The matrix is cut into groups in reading order: one per row of a table of
groups (axis 1), or one per column of it (axis 0). The table is packed by folding its rows: the
first part into the highest bits. Shape, width and axis stand in small tensors of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, prod
from typing import TYPE_CHECKING, NamedTuple

from weightscope.encoded import Encoded, Fact, Unplaced
from weightscope.encodings.grid import Blocks, Combs, Grid, Layout, Runs, finite_scales
from weightscope.encodings.stored import FLOATS, Stored, is_count
from weightscope.tensor import TensorRef
from weightscope.text import shortened

if TYPE_CHECKING:
    import torch


class Packing(NamedTuple):
    """How many fields a word of so many bytes folds, and how wide each is."""

    folds: int
    bits: int
    nbytes: int


PACKINGS = {
    "8bit_u8": Packing(1, 8, 1),
    "4bit_u8": Packing(2, 4, 1),
    "3bit_32": Packing(10, 3, 4),
    "2bit_u8": Packing(4, 2, 1),
    "1bit_u8": Packing(8, 1, 1),
}
_TOLD = ("shape", "axis", "group_size", "packing")
_REST = (
    "nbits",
    "view_as_float",
    "unpack_view_dtype",
    "quant_scale",
    "quant_zero",
    "compute_dtype",
    "offload_meta",
    "encoded_state_dict",
    "stores_quant_config",
    "channel_wise",
    "optimize",
    "round_zero",
)


def descriptors(stored: Stored) -> Iterator[TensorRef]:
    """The small tensors beside every packed weight."""
    for module in _modules(stored):
        yield from stored.those(*(f"{module}.{name}" for name in _TOLD))


def find(stored: Stored) -> Iterator[Encoded | Unplaced]:
    """Every ``W_q``."""
    for module in _modules(stored):
        yield _placed(stored, module)


def _modules(stored: Stored) -> list[str]:
    return [name.removesuffix(".W_q") for name in stored.tensors if name.endswith(".W_q")]


def _placed(stored: Stored, module: str) -> Encoded | Unplaced:
    ref = stored.tensors[f"{module}.W_q"]
    scale, zero = stored.first(f"{module}.scale"), stored.first(f"{module}.zero")
    rest = stored.those(*(f"{module}.{name}" for name in (*_TOLD, *_REST)))
    refs = (ref, *(each for each in (scale, zero) if each), *rest)

    def unplaced(why: str) -> Unplaced:
        return Unplaced(f"{module}.weight", "hqq", why, refs)

    if scale is None or zero is None:
        missing = shortened(f"{module}.{'zero' if scale else 'scale'}")
        return unplaced(f"its scales or zero points ({missing}) are missing")
    shape = stored.numbers(f"{module}.shape")
    packing = PACKINGS.get(stored.text(f"{module}.packing"))
    size, axis = stored.number(f"{module}.group_size"), stored.number(f"{module}.axis")
    described = len(shape) == 2 and all(map(is_count, shape)) and is_count(size)
    if packing is None or not described or axis not in {0, 1} or not size:
        return unplaced(
            f"its description ({shortened(f'{module}.shape')} and so on) makes no sense"
        )
    count = prod(shape)
    groups = count // size
    height = size if axis == 0 else groups
    folded = ceil(height / packing.folds) * (count // height) if count % size == 0 else 0
    fits = ref.nbytes == folded * packing.nbytes and scale.size == zero.size
    if not fits or scale.size not in {groups, 1} or {scale.dtype, zero.dtype} - FLOATS:
        return unplaced(f"its tensors do not have the sizes of a weight of shape {list(shape)}")
    facts: dict[str, Fact] = {
        "bits": packing.bits,
        "height": height,
        "groups": groups,
        "axis": axis,
        "packing": stored.text(f"{module}.packing"),
    }
    bits = stored.number(f"{module}.nbits") or packing.bits
    encoding = f"hqq-int{bits}-g{size}" + ("-axis0" if axis == 0 else "")
    parts = (("weight", ref), ("scale", scale), ("zero", zero))
    return Encoded(f"{module}.weight", "hqq", encoding, shape, parts, facts, rest)


def grid(encoded: Encoded, parts: Mapping[str, torch.Tensor]) -> Grid:
    """Codes are the folded fields; groups run with the entries or across them."""
    names = {role: ref.name for role, ref in encoded.parts}
    packing = PACKINGS[str(encoded.facts["packing"])]
    codes = _unfold(parts["weight"], packing, encoded).reshape(encoded.shape)
    scale = finite_scales(parts["scale"], names["scale"])
    zero = finite_scales(parts["zero"], names["zero"])
    rows, cols = encoded.shape
    layout: Layout
    if scale.numel() == 1:
        layout, scale, zero = Blocks(rows, cols), scale.reshape(1, 1), zero.reshape(1, 1)
    elif encoded.facts["axis"] == 1:
        layout = Runs(rows * cols // encoded.number("groups"))
    else:
        layout = Combs(encoded.number("groups"))
    return Grid(codes, scale, layout, zero)


def _unfold(stored: torch.Tensor, packing: Packing, encoded: Encoded) -> torch.Tensor:
    """Fields as (height, width) uint8, the first fold of the rows from the highest bits."""
    import torch

    height = encoded.number("height")
    width = prod(encoded.shape) // height
    words = stored.contiguous().flatten().view(torch.uint8 if packing.nbytes == 1 else torch.int32)
    words = words.reshape(-1, width)
    shifts = range(packing.bits * (packing.folds - 1), -1, -packing.bits)
    mask = 2**packing.bits - 1
    folds = [((words >> shift) & mask).to(torch.uint8) for shift in shifts]
    return torch.cat(folds)[:height]
