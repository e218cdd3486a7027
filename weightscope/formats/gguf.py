"""GGUF files: tensors listed from the header, dequantised one at a time by the gguf package.

``weightscope`` reads the header itself and asks the package for the layout of the data types and
for dequantisation, so that it is needed, and imported, for GGUF files alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from weightscope.checkpoint import Checkpoint, SourceFile
from weightscope.errors import CheckpointError
from weightscope.formats.disguises import ENOUGH, check_disguise
from weightscope.formats.gguf_header import Header, Listed, parse_header
from weightscope.formats.memory import Stored
from weightscope.formats.safetensors import fill_from_disk
from weightscope.tensor import TensorRef
from weightscope.text import shortened

if TYPE_CHECKING:
    import torch

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
}
"""Names in ``config.json`` of what a header says about the architecture."""


@dataclass(frozen=True)
class Quantised(Stored):
    """A tensor in blocks of a GGML type, decoded to float32 when it is read.

    Attributes:
        ref: Its name, the shape and dtype it decodes to, and the place of its blocks.
        type: Number of its type.
        encoding: Name of its type, such as ``Q4_K``.
        bits: Bits per entry, scales included.
    """

    ref: TensorRef
    type: int
    encoding: str
    bits: float

    def read(self, part: int | None) -> torch.Tensor:
        """Read the blocks and decode them.

        Raises:
            CheckpointError: The file is gone or has shrunk.
        """
        import torch
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        *above, rows, _ = self.ref.shape if len(self.ref.shape) > 1 else (1, *self.ref.shape)
        nbytes = self.ref.stop - self.ref.start
        start, shape = self.ref.start, self.ref.shape
        if part is not None:
            nbytes //= shape[0]
            start, shape, above = start + part * nbytes, shape[1:], above[1:]
        raw = np.empty(nbytes, np.uint8)
        fill_from_disk(self.ref, start, memoryview(raw.data))
        with np.errstate(all="ignore"):  # a hostile scale may be anything
            found = dequantize(raw.reshape(*above, rows, -1), GGMLQuantizationType(self.type))
        return torch.from_numpy(np.ascontiguousarray(found, np.float32)).reshape(shape)


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

            check_disguise(str(path), read(0, ENOUGH), "gguf")
            header = parse_header(str(path), facts.st_size, read)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); check the disk, or copy it again"
        ) from None
    tensors = list(_tensors(path, header, facts.st_size))
    if not tensors:
        raise CheckpointError(f"{path}: lists no tensors; download or copy it again")
    source = SourceFile(path.name, facts.st_size, header.sha256, facts.st_mtime_ns)
    return Checkpoint(
        path.stem,
        tuple(ref for ref, _ in tensors),
        (source,),
        _config(header.facts),
        notes=tuple(_notes(path, header.facts, tensors)),
        format="gguf",
        memory={ref.name: stored for ref, stored in tensors if stored is not None},
        metadata={k: v for k, v in header.facts.items() if isinstance(v, str) and len(v) < 1000},
    )


def _tensors(path: Path, header: Header, size: int) -> Iterator[tuple[TensorRef, Quantised | None]]:
    types = _types(path)
    end = header.stop
    for listed in sorted(header.tensors, key=lambda t: (t.start, t.name)):
        label = shortened(listed.name)
        if listed.type not in types:
            raise CheckpointError(
                f"{path}: tensor {label} is of type {listed.type}, which the installed gguf "
                "package does not know; update it: pip install -U gguf"
            )
        ref, stored = _tensor(path, listed, *types[listed.type])
        if ref.start < end or ref.stop > size:
            what = "overlaps another" if ref.start < end else "ends beyond the file"
            raise CheckpointError(f"{path}: tensor {label} {what}; download or copy it again")
        end = ref.stop
        yield ref, stored


def _tensor(
    path: Path, listed: Listed, name: str, block: int, nbytes: int
) -> tuple[TensorRef, Quantised | None]:
    row = listed.shape[-1] if listed.shape else 1
    if row % block:
        raise CheckpointError(
            f"{path}: tensor {shortened(listed.name)} has rows of {row} entries, which is no "
            f"multiple of the {block} in a block of {name}; download or copy it again"
        )
    count = 1
    for n in listed.shape:
        count *= n
    stop = listed.start + count // block * nbytes
    ref = TensorRef(
        listed.name, listed.shape, _PLAIN.get(name, "F32"), str(path), listed.start, stop
    )
    if name in _PLAIN:
        return ref, None
    return ref, Quantised(ref, listed.type, name, 8 * nbytes / block)


def _types(path: Path) -> dict[int, tuple[str, int, int]]:
    """Name, entries per block and bytes per block of every type that can be decoded."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
        from gguf.quants import dequantize
    except ImportError:
        raise CheckpointError(
            f"{path}: reading GGUF needs the gguf package: pip install 'weightscope[gguf]'"
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
    named = ((name, facts.get(f"{family}.{key}")) for key, name in _CONFIG.items())
    return {"model_type": family, **{n: v for n, v in named if type(v) is int and v > 0}}


def _notes(
    path: Path, facts: Mapping[str, Any], tensors: list[tuple[TensorRef, Quantised | None]]
) -> Iterator[str]:
    kinds = {stored.encoding for _, stored in tensors if stored is not None}
    if kinds:
        yield f"{path.name}: dequantised to float32 from {', '.join(sorted(kinds))}"
    if facts.get("general.architecture") == "llama":
        yield (
            f"{path.name}: GGUF permutes the rows of llama's query and key matrices within each "
            "head; spectra do not depend on it, FARMS windows do"
        )
