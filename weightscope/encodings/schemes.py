"""The table of quantisation schemes: who recognises what, and who decodes it.

described = {ref.name: bytes of ref for ref in descriptors(tensors, config)}
found = find(tensors, config, metadata, described)
decoded = decode(encoded, {role: tensor for role, ref, index in encoded.pieces(expert)})
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from weightscope.encoded import DecodingError, Encoded, Unplaced
from weightscope.encodings import (
    awq,
    bitsandbytes,
    compressed_tensors,
    fp8,
    gguf,
    gptq,
    hqq,
    mxfp4,
    nvfp4,
    torchao,
)
from weightscope.encodings import grid as grids
from weightscope.encodings.grid import Decoded, Grid
from weightscope.encodings.names import is_companion, is_packed
from weightscope.encodings.steps import Steps
from weightscope.encodings.stored import SMALL, Stored, stored
from weightscope.tensor import DTYPES, TensorRef
from weightscope.text import shortened

if TYPE_CHECKING:
    import torch


class Scheme(Protocol):
    """What a file of this drawer has to have."""

    def find(self, stored: Stored) -> Iterable[Encoded | Unplaced]:
        """Weights that it recognises, the ones it cannot decode included."""
        ...

    def grid(self, encoded: Encoded, parts: Mapping[str, torch.Tensor]) -> Grid | Steps:
        """Codes of one matrix, or its values where only a library knows the codes."""
        ...


# in the order in which they look: what a scheme has recognised, those after it do not see
SCHEMES: dict[str, Scheme] = {
    "bitsandbytes": bitsandbytes,
    "hqq": hqq,
    "torchao": torchao,
    "gptq": gptq,
    "awq": awq,
    "nvfp4": nvfp4,
    "mxfp4": mxfp4,
    "compressed_tensors": compressed_tensors,
    "fp8": fp8,
    "gguf": gguf,
}
METHODS: dict[str, tuple[str, ...]] = {
    "": tuple(name for name in SCHEMES if name != "gguf"),
    "auto-round": ("gptq", "awq", "nvfp4", "mxfp4", "fp8"),
    "awq": ("awq",),
    "bitsandbytes": ("bitsandbytes",),
    "bitsandbytes_4bit": ("bitsandbytes",),
    "bitsandbytes_8bit": ("bitsandbytes",),
    "compressed-tensors": ("nvfp4", "mxfp4", "compressed_tensors", "fp8"),
    "fbgemm_fp8": ("fp8",),
    "fp8": ("mxfp4", "fp8"),
    "gptq": ("gptq",),
    "hqq": ("hqq",),
    "modelopt": ("nvfp4", "mxfp4", "fp8"),
    "modelopt_fp4": ("nvfp4", "fp8"),
    "mxfp4": ("mxfp4",),
    "mxfp8": ("fp8",),
    "torchao": ("torchao",),
}
"""Schemes to try by the ``quant_method`` of the configuration; all of them where it is silent."""
_FORMATS_REFUSED = {"marlin-24", "sparse-24-bitmask", "sparse-bitmask", "mxfp6-pack-quantized"}
_NARROW = {"I8", "U8", "I16", "U16", "I32", "U32", "I64"}
_TABLES = re.compile(r"(ids|index|mask|bias)$")  # of integers, but of no weights
_DEEPEST = 32  # a hostile name may have millions of components


class Findings(NamedTuple):
    """The quantised weights of a checkpoint.

    Attributes:
        encoded: Those that can be decoded.
        unplaced: Those that cannot, each with the reason.
    """

    encoded: tuple[Encoded, ...]
    unplaced: tuple[Unplaced, ...]

    @property
    def names(self) -> frozenset[str]:
        """Stored tensors that are taken up; none of them is a matrix by itself."""
        weights: tuple[Encoded | Unplaced, ...] = (*self.encoded, *self.unplaced)
        return frozenset(ref.name for each in weights for ref in each.refs)


def quantization_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of ``config.json`` that is about quantisation, wherever its writer put it."""
    nested = (config.get(key) for key in ("text_config", "language_config", "llm_config"))
    for place in (config, *(each for each in nested if isinstance(each, Mapping))):
        for key in ("quantization_config", "compression_config"):
            if isinstance(found := place.get(key), Mapping):
                return found
    return {}


def descriptors(
    tensors: Mapping[str, TensorRef], config: Mapping[str, Any]
) -> tuple[TensorRef, ...]:
    """Small tensors whose bytes ``find`` needs, such as the shape of a packed weight.

    Args:
        tensors: Every stored tensor by name.
        config: ``quantization_config`` of ``config.json``.
    """
    seen = stored(tensors, config, {}, {})
    tried = METHODS.get(seen.method, ())
    wanted = [
        ref
        for scheme in (bitsandbytes, hqq, compressed_tensors)
        if scheme.__name__.rpartition(".")[2] in tried
        for ref in scheme.descriptors(seen)
    ]
    return tuple(ref for ref in wanted if ref.nbytes <= SMALL)


def find(
    tensors: Mapping[str, TensorRef],
    config: Mapping[str, Any],
    metadata: Mapping[str, str],
    described: Mapping[str, bytes],
) -> Findings:
    """Say which stored tensors are quantised weights, from headers and small tensors alone.

    Args:
        tensors: Every stored tensor by name.
        config: ``quantization_config`` of ``config.json``; empty where there is none.
        metadata: ``__metadata__`` of the safetensors headers, all files merged.
        described: Bytes of the tensors that ``descriptors`` named.
    """
    left = stored(tensors, config, metadata, described)
    encoded: list[Encoded] = []
    unplaced: list[Unplaced] = []
    form = config.get("format")
    refused = isinstance(form, str) and form in _FORMATS_REFUSED
    for name in () if refused else METHODS.get(left.method, ()):
        taken: set[str] = set()
        for each in SCHEMES[name].find(left):
            if not taken.isdisjoint(ref.name for ref in each.refs):
                continue  # two claims on one tensor: hostile names
            taken |= {ref.name for ref in each.refs}
            if isinstance(each, Encoded):
                encoded.append(each)
            else:
                unplaced.append(each)
        left = replace(left, tensors=_without(left.tensors, taken))
    unplaced += _leftovers(left)
    return Findings(*_with_entries(encoded, unplaced))


def _without(tensors: Mapping[str, TensorRef], taken: set[str]) -> dict[str, TensorRef]:
    return {name: ref for name, ref in tensors.items() if name not in taken}


def _with_entries(
    encoded: Iterable[Encoded], unplaced: list[Unplaced]
) -> tuple[tuple[Encoded, ...], tuple[Unplaced, ...]]:
    """Move weights without entries to those that cannot be decoded."""
    good = []
    for each in encoded:
        if 0 in each.shape:
            unplaced.append(Unplaced(each.name, each.scheme, "it has no entries", each.refs))
        else:
            good.append(each)
    return tuple(good), tuple(unplaced)


def _leftovers(left: Stored) -> Iterator[Unplaced]:
    """Tensors that look packed and that no scheme has placed."""
    if left.method not in METHODS:
        yield from _foreign(left)
        return
    form = left.config.get("format")
    refused = isinstance(form, str) and form in _FORMATS_REFUSED
    reason = f"the format {form} is not supported" if refused else "its scales are missing"
    for ref in left.tensors.values():
        if len(ref.shape) < 2 or is_companion(ref.name):
            continue
        kind = DTYPES[ref.dtype].kind
        mask = left.first(ref.name.removesuffix(".compressed") + ".bitmask")
        if ref.name.endswith(".compressed") and mask is not None:
            yield Unplaced(ref.name, "sparse-24", "sparse weights are not supported", (ref, mask))
        elif kind == "encoded" or (kind == "integer" and is_packed(ref.name)):
            yield Unplaced(ref.name, left.method or "unknown", reason, (ref,))


def _foreign(left: Stored) -> Iterator[Unplaced]:
    """One row per module of a method that has no decoder, with all its tensors but the bias."""
    reason = f"the quantisation method {shortened(left.method)} is not supported"
    packed: dict[str, list[TensorRef]] = {}
    for ref in left.tensors.values():
        module, _, leaf = ref.name.rpartition(".")
        narrow = ref.dtype in _NARROW and not _TABLES.search(leaf)
        if len(ref.shape) >= 2 and (narrow or DTYPES[ref.dtype].kind == "encoded"):
            packed.setdefault(module, []).append(ref)
    siblings: dict[str, list[TensorRef]] = {module: [] for module in packed}
    for ref in left.tensors.values():
        owner = _owner(ref.name, packed)
        if owner is not None and not ref.name.endswith("bias"):
            siblings[owner].append(ref)
    for module, group in siblings.items():
        if group:
            largest = max(group, key=lambda ref: (ref in packed[module], ref.nbytes))
            others = (ref for ref in group if ref is not largest)
            yield Unplaced(largest.name, left.method, reason, (largest, *others))


def _owner(name: str, modules: Mapping[str, object]) -> str | None:
    """The outermost of these modules that a tensor is in; the empty one has only its own."""
    parts = name.split(".", maxsplit=_DEEPEST)
    prefixes = [".".join(parts[:count]) for count in range(1, len(parts))] or [""]
    return next((prefix for prefix in prefixes if prefix in modules), None)


def decode(encoded: Encoded, parts: Mapping[str, torch.Tensor]) -> Decoded:
    """Decode one matrix, on the device its parts are on.

    Args:
        encoded: What ``find`` said.
        parts: Tensors by role, as ``Encoded.pieces`` asks for them, in their stored dtypes.

    Raises:
        DecodingError: The parts contradict each other, or scales are missing, NaN or infinite.
    """
    found = _grid(encoded, parts)
    return found.decoded() if isinstance(found, Steps) else grids.decode(found)


def deviations(encoded: Encoded, parts: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Standard deviation of the rounding error of every entry of a matrix: (rows, cols) float32.

    For the noise of a part of it: ``grid.noise_floor(deviations[part])``.

    Raises:
        DecodingError: As ``decode``.
    """
    found = _grid(encoded, parts)
    return found.deviations() if isinstance(found, Steps) else grids.deviations(found)


def _grid(encoded: Encoded, parts: Mapping[str, torch.Tensor]) -> Grid | Steps:
    for role, ref, index in encoded.pieces(0 if len(encoded.shape) == 3 else None):
        expected = ref.shape if index is None else ref.shape[1:]
        found = tuple(parts[role].shape) if role in parts else None
        if found != expected:
            was = "was not read" if found is None else f"has shape {list(found)}"
            raise DecodingError(f"tensor {shortened(ref.name)} {was}, not {list(expected)}")
    return SCHEMES[encoded.scheme].grid(encoded, parts)
