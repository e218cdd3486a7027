"""bitsandbytes: nf4 and fp4 with a scale per block of entries, perhaps quantised again, and int8.

Four bits: W = table[code] * absmax of runs of entries in reading order; the high half of a byte is
the first of its two entries. Double quantisation stores absmax in bytes of its own table, with a
scale per run of them and one offset. Shape and block sizes stand in a small tensor of JSON. The
packed tensor may have any dtype (``bnb_4bit_quant_storage``).
Eight bits (LLM.int8): W = q * SCB / 127, one SCB per row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import ceil, isfinite, prod
from typing import TYPE_CHECKING, Any

from weightscope.encoded import Encoded, Unplaced
from weightscope.encodings.grid import Blocks, Grid, Runs, finite_scales
from weightscope.encodings.stored import FLOATS, Stored, is_count
from weightscope.tensor import TensorRef
from weightscope.text import shortened

if TYPE_CHECKING:
    import torch

_STATE = ".quant_state.bitsandbytes__"
_DOUBLE = ("nested_absmax", "nested_quant_map")


def descriptors(stored: Stored) -> Iterator[TensorRef]:
    """The JSON of four-bit weights, and the layout flag of eight-bit ones."""
    for ref in stored.tensors.values():
        if _STATE in ref.name or (ref.name.endswith(".weight_format") and ref.size == 1):
            yield ref


def find(stored: Stored) -> Iterator[Encoded | Unplaced]:
    """Every weight that has a quantisation state or row statistics beside it."""
    for ref in stored.tensors.values():
        name, state, kind = ref.name.partition(_STATE)
        if state and name in stored.tensors:
            yield _four_bits(stored, stored.tensors[name], ref, kind)
        elif ref.name.endswith(".SCB"):
            weight = stored.first(f"{ref.name.removesuffix('SCB')}weight")
            if weight is not None and weight.dtype == "I8":
                yield _eight_bits(stored, weight, ref)


def _four_bits(stored: Stored, ref: TensorRef, state: TensorRef, kind: str) -> Encoded | Unplaced:
    told = stored.record(state.name)
    roles = ("absmax", "quant_map", *(_DOUBLE if "nested_blocksize" in told else ()))
    found = {role: stored.first(f"{ref.name}.{role}") for role in roles}
    parts = (("weight", ref), *((role, each) for role, each in found.items() if each))
    refs = (*(each for _, each in parts), state)

    def unplaced(why: str) -> Unplaced:
        return Unplaced(ref.name, "bitsandbytes", why, refs)

    missing = [f"{ref.name}.{role}" for role, each in found.items() if each is None]
    if missing:
        return unplaced(f"its scales ({shortened(missing[0])}) are missing")
    facts = _facts(told)
    if facts is None or kind not in {"nf4", "fp4"}:
        return unplaced(f"its description ({shortened(state.name)}) makes no sense")
    shape = (facts["rows"], facts["cols"])
    if not _sizes_fit(dict(parts), facts):
        return unplaced(f"its tensors do not have the sizes of a weight of shape {list(shape)}")
    label = f"{kind}-double" if "nested_absmax" in found else kind
    encoding = f"bitsandbytes-{label}-b{facts['blocksize']}"
    return Encoded(ref.name, "bitsandbytes", encoding, shape, parts, facts, (state,))


def _facts(told: Mapping[str, Any]) -> dict[str, Any] | None:
    """Shape and block sizes, checked."""
    shape, size = told.get("shape"), told.get("blocksize")
    if not (isinstance(shape, list) and len(shape) == 2 and all(map(is_count, shape))):
        return None
    nested, offset = told.get("nested_blocksize", 1), told.get("nested_offset", 0.0)
    if not (is_count(size) and is_count(nested)):
        return None
    if isinstance(offset, bool) or not isinstance(offset, int | float) or not isfinite(offset):
        return None
    return {
        "bits": 4,
        "rows": shape[0],
        "cols": shape[1],
        "blocksize": size,
        "nested_blocksize": nested,
        "nested_offset": float(offset),
    }


def _sizes_fit(parts: Mapping[str, TensorRef], facts: Mapping[str, Any]) -> bool:
    runs = ceil(facts["rows"] * facts["cols"] / facts["blocksize"])
    sizes = {"absmax": runs, "quant_map": 16}
    if "nested_absmax" in parts:
        sizes |= {"nested_absmax": ceil(runs / facts["nested_blocksize"]), "nested_quant_map": 256}
    narrow = {"absmax"} if "nested_absmax" in parts else set()
    if any(parts[role].dtype not in ({"U8"} if role in narrow else FLOATS) for role in sizes):
        return False
    packed = ceil(facts["rows"] * facts["cols"] / 2)
    return parts["weight"].nbytes == packed and all(
        parts[role].size == size for role, size in sizes.items()
    )


def _eight_bits(stored: Stored, ref: TensorRef, scale: TensorRef) -> Encoded | Unplaced:
    module = scale.name.removesuffix(".SCB")
    layout = f"{module}.weight_format"
    rest = stored.those(layout)
    if stored.number(layout) not in {None, 0}:
        why = "its rows are stored in an order made for one kind of processor"
        return Unplaced(ref.name, "bitsandbytes", why, (ref, scale, *rest))
    if len(ref.shape) != 2 or scale.size != ref.shape[0] or not ref.size:
        why = f"its scales of shape {list(scale.shape)} do not fit a weight of {list(ref.shape)}"
        return Unplaced(ref.name, "bitsandbytes", why, (ref, scale, *rest))
    parts = (("weight", ref), ("scale", scale))
    return Encoded(
        ref.name, "bitsandbytes", "bitsandbytes-int8", ref.shape, parts, {"bits": 8}, rest
    )


def grid(encoded: Encoded, parts: Mapping[str, torch.Tensor]) -> Grid:
    """Codes are half bytes with a table, or signed bytes."""
    import torch

    names = {role: ref.name for role, ref in encoded.parts}
    if encoded.bits == 8:
        scale = finite_scales(parts["scale"], names["scale"]).reshape(-1, 1) / 127
        return Grid(parts["weight"], scale, Blocks(1, encoded.shape[1]))
    packed = parts["weight"].flatten().view(torch.uint8)
    codes = torch.stack((packed >> 4, packed & 15), dim=-1).flatten()
    codes = codes[: prod(encoded.shape)].reshape(encoded.shape)
    table = finite_scales(parts["quant_map"], names["quant_map"]).flatten()
    absmax = _absmax(encoded, parts, names)
    return Grid(codes, absmax, Runs(encoded.number("blocksize")), table=table)


def _absmax(
    encoded: Encoded, parts: Mapping[str, torch.Tensor], names: Mapping[str, str]
) -> torch.Tensor:
    """Scale of every run, itself decoded where it was quantised."""
    import torch

    if "nested_absmax" not in parts:
        return finite_scales(parts["absmax"], names["absmax"]).flatten()
    table = finite_scales(parts["nested_quant_map"], names["nested_quant_map"]).flatten()
    outer = finite_scales(parts["nested_absmax"], names["nested_absmax"])
    runs = parts["absmax"].flatten().to(torch.int32)
    place = torch.arange(len(runs), device=runs.device) // encoded.number("nested_blocksize")
    return table[runs] * outer.flatten()[place] + float(encoded.facts["nested_offset"] or 0.0)
