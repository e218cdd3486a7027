"""Integers of compressed-tensors: pack-quantized (1 to 8 bits) and int-quantized (8 bits).

W = (q - zero) * scale. Packed fields are unsigned and run on over the borders of 32-bit words; q is
the field less half its range. Zero points are packed likewise, along the rows. The float forms of
compressed-tensors are in ``fp8``, ``nvfp4`` and ``mxfp4``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import TYPE_CHECKING

from weightscope.encoded import Encoded, Unplaced
from weightscope.encodings.bits import unpack, words_for
from weightscope.encodings.blocks import Blocking, blocking_of, config_groups
from weightscope.encodings.grid import Blocks, Columns, Grid, finite_scales, group_index
from weightscope.encodings.stored import FLOATS, Stored, is_count
from weightscope.tensor import TensorRef
from weightscope.text import shortened

if TYPE_CHECKING:
    import torch

_PACKED = ".weight_packed"


def descriptors(stored: Stored) -> Iterator[TensorRef]:
    """Shapes of the packed weights whose scales and configuration do not tell them already."""
    for ref in _packed(stored):
        shape = stored.first(f"{_module(ref)}.weight_shape")
        if shape is not None and _grouped(stored, ref) is None:
            yield shape


def find(stored: Stored) -> Iterator[Encoded | Unplaced]:
    """Every packed weight, and every eight-bit one with float scales."""
    for ref in _packed(stored):
        yield _pack_quantized(stored, ref)
    for ref in stored.tensors.values():
        scale = stored.first(f"{ref.name}_scale")
        if ref.dtype == "I8" and len(ref.shape) in {2, 3} and scale and scale.dtype in FLOATS:
            yield _int_quantized(stored, ref, scale)


def _packed(stored: Stored) -> Iterator[TensorRef]:
    for ref in stored.tensors.values():
        if ref.name.endswith(_PACKED) and ref.dtype == "I32" and len(ref.shape) in {2, 3}:
            yield ref


def _module(ref: TensorRef) -> str:
    return ref.name.removesuffix(_PACKED)


def _grouped(stored: Stored, ref: TensorRef) -> tuple[int, int] | None:
    """Bits and columns of a weight in groups, where exactly one configured form fits."""
    scale = stored.first(f"{_module(ref)}.weight_scale")
    if scale is None or len(scale.shape) != len(ref.shape) or scale.shape[-1] < 2:
        return None
    fits = {
        (bits, scale.shape[-1] * width)
        for bits, width in _configured(stored)
        if width and words_for(scale.shape[-1] * width, bits) == ref.shape[-1]
    }
    return fits.pop() if len(fits) == 1 else None


def _configured(stored: Stored) -> Iterator[tuple[int, int | None]]:
    """Bits and group size of every configured group of modules that is of integers."""
    for weights in config_groups(stored.config):
        bits, width = weights.get("num_bits"), weights.get("group_size")
        if isinstance(bits, int) and 1 <= bits <= 8 and weights.get("type") != "float":
            yield bits, width if is_count(width) else None


def _described(stored: Stored, ref: TensorRef) -> tuple[int, int] | None:
    """Bits and columns by the stored shape, where one width of field explains the words."""
    shape = stored.numbers(f"{_module(ref)}.weight_shape")
    if len(shape) != len(ref.shape) or shape[:-1] != ref.shape[:-1] or not is_count(shape[-1]):
        return None
    widths = {bits for bits, _ in _configured(stored)} or set(range(1, 9))
    fits = [bits for bits in widths if words_for(shape[-1], bits) == ref.shape[-1]]
    return (fits[0], shape[-1]) if len(fits) == 1 else None


def _pack_quantized(stored: Stored, ref: TensorRef) -> Encoded | Unplaced:
    module = _module(ref)
    name = f"{module}.weight"
    scale, zero, order = (
        stored.first(f"{name}_{role}") for role in ("scale", "zero_point", "g_idx")
    )
    rest = stored.those(f"{name}_shape", f"{module}.input_global_scale", f"{module}.input_scale")
    refs = (ref, *(each for each in (scale, zero, order) if each), *rest)

    def unplaced(why: str) -> Unplaced:
        return Unplaced(name, "compressed-tensors", why, refs)

    if scale is None or scale.dtype not in FLOATS:
        return unplaced(f"its scales ({shortened(f'{name}_scale')}) are missing")
    found = _grouped(stored, ref) or _described(stored, ref)
    if found is None:
        return unplaced(
            f"its width follows neither from {shortened(f'{name}_shape')} nor from the "
            "group size in the configuration"
        )
    bits, cols = found
    shape = (*ref.shape[:-1], cols)
    blocking = blocking_of(stored, shape, scale)
    if blocking is None or blocking.height not in {1, shape[-2]}:
        return unplaced(_misfit(scale, shape))
    if zero is not None and not _zero_fits(zero, blocking, shape, bits):
        return unplaced(_misfit(zero, shape))
    if order is not None and (order.shape != (cols,) or order.dtype not in {"I32", "I64"}):
        return unplaced(_misfit(order, shape))
    label = blocking.label + ("-act" if order else "") + ("-asym" if zero else "")
    parts = [("weight", ref), ("scale", scale)]
    parts += [("zero", zero)] if zero else []
    parts += [("order", order)] if order else []
    facts = {"bits": bits, "cols": cols, **blocking.facts}
    encoding = f"compressed-tensors-int{bits}-{label}"
    return Encoded(name, "compressed_tensors", encoding, shape, tuple(parts), facts, rest)


def _zero_fits(zero: TensorRef, blocking: Blocking, shape: tuple[int, ...], bits: int) -> bool:
    """Zero points are plain bytes, one for each scale, or packed along the rows."""
    if zero.dtype == "I8":
        return zero.size == prod(shape[:-2]) * blocking.down * blocking.across
    packed = (*shape[:-2], words_for(shape[-2], bits), blocking.across)
    return zero.dtype == "I32" and zero.shape == packed and blocking.height == 1


def _misfit(ref: TensorRef, shape: tuple[int, ...]) -> str:
    return (
        f"{shortened(ref.name)} of shape {list(ref.shape)} does not fit a weight of shape "
        f"{list(shape)}"
    )


def _int_quantized(stored: Stored, ref: TensorRef, scale: TensorRef) -> Encoded | Unplaced:
    zero = stored.first(f"{ref.name}_zero_point")
    module = ref.name.removesuffix(".weight")
    rest = stored.those(f"{module}.input_scale", f"{module}.input_zero_point")
    refs = (ref, scale, *((zero,) if zero else ()), *rest)
    blocking = blocking_of(stored, ref.shape, scale)
    if blocking is None:
        return Unplaced(ref.name, "compressed-tensors", _misfit(scale, ref.shape), refs)
    if zero is not None and (zero.dtype != "I8" or zero.size != scale.size):
        return Unplaced(ref.name, "compressed-tensors", _misfit(zero, ref.shape), refs)
    label = blocking.label + ("-asym" if zero else "")
    widths = {bits for bits, _ in _configured(stored)}
    bits = widths.pop() if len(widths) == 1 else 8  # a byte may hold a narrower integer
    return Encoded(
        ref.name,
        "compressed_tensors",
        f"compressed-tensors-int{bits}-{label}",
        ref.shape,
        (("weight", ref), ("scale", scale), *((("zero", zero),) if zero else ())),
        {"bits": bits, **blocking.facts},
        rest,
    )


def grid(encoded: Encoded, parts: Mapping[str, torch.Tensor]) -> Grid:
    """Codes are the fields; half the range is part of the zero point."""
    names = {role: ref.name for role, ref in encoded.parts}
    blocking = Blocking(*(encoded.number(k) for k in ("height", "width", "down", "across")))
    table = (blocking.down, blocking.across)
    scale = finite_scales(parts["scale"], names["scale"]).reshape(table)
    blocks = Blocks(blocking.height, blocking.width)
    if parts["weight"].dtype.itemsize == 1:
        zero = parts["zero"].float().reshape(table) if "zero" in parts else None
        return Grid(parts["weight"], scale, blocks, zero)
    bits, cols = encoded.bits, encoded.number("cols")
    codes = unpack(parts["weight"], bits, cols)
    zero = _zeros(parts, bits, codes.shape[0])
    zero = zero.reshape(table) if zero.numel() > 1 else zero.reshape(1, 1).expand(table)
    if "order" not in parts or bool((parts["order"] < 0).any()):  # -1: never in use
        return Grid(codes, scale, blocks, zero)
    order = group_index(parts["order"], scale.shape[1], names["order"])
    rows = (codes.shape[0], scale.shape[1])
    return Grid(codes, scale.expand(rows), Columns(order), zero.expand(rows))


def _zeros(parts: Mapping[str, torch.Tensor], bits: int, rows: int) -> torch.Tensor:
    """Zero points on the scale of the unsigned fields; half their range where there are none."""
    import torch

    half = 2 ** (bits - 1)
    zero = parts.get("zero")
    if zero is None:
        return torch.full((1, 1), float(half), device=parts["weight"].device)
    packed = zero.dtype == torch.int32
    return unpack(zero.T, bits, rows).T.float() if packed else zero.float() + half
