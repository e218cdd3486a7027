"""GGUF files: every tensor from the header, wherever the file is; packed ones name their type.

``weightscope`` reads the header itself and asks the gguf package for the layout of the data types,
so that it is needed, and imported, for GGUF files alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from weightscope.checkpoint import Checkpoint, SourceFile
from weightscope.encoded import Encoded, Fact
from weightscope.errors import CheckpointError
from weightscope.formats.disguises import ENOUGH, check_disguise
from weightscope.formats.gguf_header import Header, Listed, Read, parse_header
from weightscope.tensor import TensorRef
from weightscope.text import shortened

_PLAIN = {
    "F32": "F32", "F16": "F16", "BF16": "BF16", "F64": "F64",
    "I8": "I8", "I16": "I16", "I32": "I32", "I64": "I64",
}  # fmt: skip
"""Data types that are stored as they are."""
_CONFIG = {
    "block_count": "num_hidden_layers",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "expert_count": "num_local_experts",
    "vocab_size": "vocab_size",
    "attention.kv_lora_rank": "kv_lora_rank",
    "ssm.inner_size": "ssm_inner_size",
    "ssm.state_size": "ssm_state_size",
    "ssm.group_count": "ssm_group_count",
    "ssm.time_step_rank": "ssm_time_step_rank",
}
"""Names in ``config.json`` of what a header says about the architecture."""


def index_file(path: Path) -> Checkpoint:
    """Every tensor of a file from its header; no tensor byte is read.

    Raises:
        CheckpointError: No GGUF file, a damaged one, or the gguf package is not installed.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: is not a file; download or copy it again")
        facts = path.stat()
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        try:

            def read(start: int, count: int) -> bytes:
                return os.pread(descriptor, count, start)

            found = index(str(path), path.name, facts.st_size, read)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); check the disk, or copy it again"
        ) from None
    return replace(found, files=(replace(found.files[0], modified_ns=facts.st_mtime_ns),))


def index(place: str, name: str, size: int, read: Read) -> Checkpoint:
    """The same of a file wherever it is.

    Args:
        place: What the tensors name as their file, and the messages too.
        name: Its name.
        size: Bytes of the whole file.
        read: Bytes from a position on, as many as asked for unless the file ends.
    """
    check_disguise(place, read(0, ENOUGH), "gguf")
    header = parse_header(place, size, read)
    tensors = list(_tensors(place, header, size))
    if not tensors:
        raise CheckpointError(f"{place}: lists no tensors; download or copy it again")
    return Checkpoint(
        PurePosixPath(name).stem,
        tuple(ref for ref, _ in tensors),
        (SourceFile(name, size, header.sha256),),
        _config(header.facts),
        notes=tuple(_notes(name, header.facts, tensors)),
        format="gguf",
        metadata={k: v for k, v in header.facts.items() if isinstance(v, str) and len(v) < 1000},
        encoded={ref.name: packed for ref, packed in tensors if isinstance(packed, Encoded)},
        undecoded={ref.name: why for ref, why in tensors if isinstance(why, str) and why},
    )


Placed = tuple[TensorRef, Encoded | str]
"""A tensor, and how it is packed; or why it cannot be decoded, empty for a plain one."""


def _tensors(place: str, header: Header, size: int) -> Iterator[Placed]:
    types = _types(place)
    end = header.stop
    for listed in sorted(header.tensors, key=lambda t: (t.start, t.name)):
        label = shortened(listed.name)
        if listed.type not in types:
            raise CheckpointError(
                f"{place}: tensor {label} is of type {listed.type}, which the installed gguf "
                "package does not know; update it: pip install -U gguf"
            )
        ref, packed = _tensor(place, listed, *types[listed.type])
        if ref.start < end or ref.stop > size:
            what = "overlaps another" if ref.start < end else "ends beyond the file"
            raise CheckpointError(f"{place}: tensor {label} {what}; download or copy it again")
        end = ref.stop
        yield ref, packed


def _tensor(place: str, listed: Listed, kind: str, block: int, nbytes: int) -> Placed:
    row = listed.shape[-1] if listed.shape else 1
    if row % block:
        raise CheckpointError(
            f"{place}: tensor {shortened(listed.name)} has rows of {row} entries, which is no "
            f"multiple of the {block} in a block of {kind}; download or copy it again"
        )
    stop = listed.start + prod(listed.shape) // block * nbytes
    ref = TensorRef(listed.name, listed.shape, _PLAIN.get(kind, "F32"), place, listed.start, stop)
    if kind in _PLAIN or len(listed.shape) < len(("rows", "cols")):
        return ref, ""
    if len(listed.shape) > len(("experts", "rows", "cols")):
        return ref, f"it is quantised ({kind}), and has {len(listed.shape)} dimensions"
    return ref, _encoded(ref, kind, listed.type, row // block * nbytes)


def _encoded(ref: TensorRef, kind: str, number: int, row_bytes: int) -> Encoded:
    """A tensor of two or three dimensions in rows of blocks."""
    blocks = replace(ref, shape=(*ref.shape[:-1], row_bytes), dtype="U8")
    digits = re.search(r"\d+", kind)
    facts: dict[str, Fact] = {"bits": int(digits[0]) if digits else 8, "type": number, "kind": kind}
    name = f"gguf-{kind.lower().replace('_', '-')}"
    return Encoded(ref.name, "gguf", name, ref.shape, (("blocks", blocks),), facts)


def _types(place: str) -> dict[int, tuple[str, int, int]]:
    """Name, entries per block and bytes per block of every type that can be decoded."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
        from gguf.quants import dequantize
    except ImportError:
        raise CheckpointError(
            f"{place}: reading GGUF needs the gguf package: pip install 'weightscope[gguf]'"
        ) from None
    found = {}
    for kind, (block, nbytes) in GGML_QUANT_SIZES.items():
        try:
            if kind.name not in _PLAIN:
                dequantize(np.zeros((1, nbytes), np.uint8), kind)
        except NotImplementedError:
            continue
        found[int(kind)] = kind.name, block, nbytes
    return found


def _config(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of a ``config.json`` that the header knows."""
    family = facts.get("general.architecture")
    if not isinstance(family, str):
        return {}
    named = {name: facts.get(f"{family}.{key}") for key, name in _CONFIG.items()}
    if named["kv_lora_rank"]:
        named |= _latent(family, facts)
    return {
        "model_type": family, **{n: v for n, v in named.items() if type(v) is int and v > 0}
    }  # fmt: skip


def _latent(family: str, facts: Mapping[str, Any]) -> dict[str, int]:
    """The sizes of one head of latent attention, which newer writers keep under other names."""

    def fact(*keys: str) -> int:
        found = (facts.get(f"{family}.{key}") for key in keys)
        return next((value for value in found if type(value) is int), 0)

    rope = fact("rope.dimension_count")
    return {
        "qk_rope_head_dim": rope,
        "qk_nope_head_dim": fact("attention.key_length_mla", "attention.key_length") - rope,
        "v_head_dim": fact("attention.value_length_mla", "attention.value_length"),
    }


def _notes(name: str, facts: Mapping[str, Any], tensors: list[Placed]) -> Iterator[str]:
    kinds = {packed.facts["kind"] for _, packed in tensors if isinstance(packed, Encoded)}
    if kinds:
        yield f"{name}: dequantised to float32 from {', '.join(sorted(map(str, kinds)))}"
    if facts.get("general.architecture") == "llama":
        yield (
            f"{name}: GGUF permutes the rows of llama's query and key matrices within each "
            "head; spectra do not depend on it, FARMS windows do"
        )
