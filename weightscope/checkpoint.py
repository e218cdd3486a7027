"""A checkpoint as it is before any weight is read: tensors, where they are, and its config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weightscope.tensor import TensorRef


@dataclass(frozen=True)
class SourceFile:
    """One file of a checkpoint, as far as it identifies the weights.

    Attributes:
        name: File name inside the checkpoint, never a path.
        size: Bytes.
        header_sha256: Hash of its header.
        modified_ns: Modification time of a local file; 0 where the revision identifies it.
    """

    name: str
    size: int
    header_sha256: str
    modified_ns: int = 0


@dataclass(frozen=True)
class Checkpoint:
    """Everything known about a model from headers and configuration alone.

    Attributes:
        name: Short name for titles and default file names.
        tensors: Every stored tensor; names are unique.
        files: The files they lie in.
        config: Parsed ``config.json``; empty where there is none.
        revision: Commit of a hub model, else empty.
        notes: Remarks for the user about how the checkpoint was read.
        format: Reader of the bytes: a module of ``formats``.
        memory: Live tensors by name, where the checkpoint is a model in memory.
        conv: Names known to be convolutions, where a live model told us.
    """

    name: str
    tensors: tuple[TensorRef, ...]
    files: tuple[SourceFile, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    revision: str = ""
    notes: tuple[str, ...] = ()
    format: str = "safetensors"
    memory: Mapping[str, Any] = field(default_factory=dict)
    conv: frozenset[str] = frozenset()
