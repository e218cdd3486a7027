"""Checkpoints made of others: several files of one model, or the models of a pipeline."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from weightscope.checkpoint import Checkpoint
from weightscope.encoded import Encoded
from weightscope.errors import CheckpointError
from weightscope.text import shortened


def joined(
    name: str, parts: Sequence[Checkpoint], config: Mapping[str, Any], notes: Iterable[str]
) -> Checkpoint:
    """One checkpoint from several.

    Args:
        name: Its name.
        parts: What it is made of.
        config: Its configuration; where it is empty that of the first part counts.
        notes: Remarks before those of the parts.

    Raises:
        CheckpointError: A tensor is in two parts.
    """
    home: dict[str, str] = {}
    memory: dict[str, Any] = {}
    metadata: dict[str, str] = {}
    encoded: dict[str, Encoded] = {}
    for part in parts:
        for ref in part.tensors:
            if ref.name in home:
                raise CheckpointError(
                    f"{ref.file}: tensor {shortened(ref.name)} is also in {home[ref.name]}; "
                    + _what_to_do(ref.file)
                )
            home[ref.name] = ref.file
        memory |= part.memory
        metadata |= part.metadata
        encoded |= part.encoded
    formats = [part.format for part in parts if part.format != "safetensors"]
    return Checkpoint(
        name,
        tuple(ref for part in parts for ref in part.tensors),
        tuple(file for part in parts for file in part.files),
        config or parts[0].config,
        notes=(*notes, *(note for part in parts for note in part.notes)),
        format=next(iter(formats), "safetensors"),
        memory=memory,
        metadata=metadata,
        encoded=encoded,
    )


def _what_to_do(file: str) -> str:
    if re.search(r"consolidated\.\d\d\.pth$", file):
        return (
            "these are slices of the tensors for several processes, as makers publish them; name "
            "the model as the model library has it"
        )
    return "name one file, or the index that says which files belong together"


def prefixed(component: str, part: Checkpoint) -> Checkpoint:
    """A model of a pipeline: its tensors and files are named after it, as in ``unet.…``."""
    return replace(
        part,
        tensors=tuple(replace(ref, name=f"{component}.{ref.name}") for ref in part.tensors),
        files=tuple(replace(file, name=f"{component}/{file.name}") for file in part.files),
        notes=tuple(f"{component}: {note}" for note in part.notes),
        memory={f"{component}.{name}": stored for name, stored in part.memory.items()},
        metadata={},
        encoded={f"{component}.{name}": packed for name, packed in part.encoded.items()},
    )


def pipeline(
    name: str, parts: Mapping[str, Checkpoint], kind: object, left: Sequence[str]
) -> Checkpoint:
    """The models of a diffusers pipeline as one, each under the name of its folder.

    Args:
        name: Its name.
        parts: Its models by their folders.
        kind: Its class, as its index gives it.
        left: Names of weights beside the folders.
    """
    notes = [
        f"read: the folders of the pipeline; not read beside them: {', '.join(left)}"
    ] if left else []  # fmt: skip
    found = joined(name, [prefixed(*part) for part in parts.items()], {}, notes)
    return replace(found, config={"architectures": [kind]} if isinstance(kind, str) else {})
