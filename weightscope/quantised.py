"""A checkpoint of packed codes and their scales as the weights that they make up together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from weightscope.checkpoint import Checkpoint
from weightscope.encoded import Encoded, Unplaced
from weightscope.encodings.names import is_packed
from weightscope.encodings.schemes import Findings, descriptors, find, quantization_config
from weightscope.matrix import Matrix
from weightscope.tensor import DTYPES, TensorRef

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Quantised:
    """A checkpoint in which every quantised weight is one tensor.

    Attributes:
        checkpoint: For the selection; its virtual tensors cannot be read.
        encoded: What is decoded for each virtual tensor, by its name.
    """

    checkpoint: Checkpoint
    encoded: Mapping[str, Encoded]

    def matrix(self, found: Matrix) -> Matrix:
        """The matrix with what it is decoded from, if it is quantised."""
        encoded = self.encoded.get(found.tensor.name)
        return found if encoded is None else replace(found, encoded=encoded)


def quantised(checkpoint: Checkpoint) -> Quantised:
    """Replace packed tensors by the weights that they decode to, and leave their scales out.

    Small tensors that describe packed ones are read for it, nothing else, and nothing at all where
    neither the configuration nor a tensor speaks of quantisation.

    Raises:
        CheckpointError: A describing tensor cannot be read.
    """
    config = quantization_config(checkpoint.config)
    known = checkpoint.encoded
    tensors = {ref.name: ref for ref in checkpoint.tensors if ref.name not in known}
    if not config and not any(map(_looks_packed, tensors.values())):
        return Quantised(checkpoint, known)
    described = _bytes_of(checkpoint, descriptors(tensors, config))
    found = find(tensors, config, checkpoint.metadata, described)
    return Quantised(
        replace(
            checkpoint,
            tensors=_weights(checkpoint.tensors, found),
            undecoded={
                **checkpoint.undecoded,
                **{each.name: _reason(each) for each in found.unplaced},
            },
        ),
        {**known, **{each.name: each for each in found.encoded}},
    )


def _looks_packed(ref: TensorRef) -> bool:
    kind = DTYPES[ref.dtype].kind
    return kind == "encoded" or (kind == "integer" and is_packed(ref.name))


def _weights(tensors: tuple[TensorRef, ...], found: Findings) -> tuple[TensorRef, ...]:
    """Every weight in the place of its packed tensor; what else belongs to it is left out."""
    places: dict[str, TensorRef | None] = dict.fromkeys(found.names)
    for unplaced in found.unplaced:
        first = unplaced.refs[0]
        places[first.name] = replace(first, name=unplaced.name, shape=first.shape or (1,))
    for encoded in found.encoded:
        first = encoded.refs[0]
        places[first.name] = replace(
            first, name=encoded.name, shape=encoded.shape, dtype=encoded.dtype
        )
    put = (places.get(ref.name, ref) for ref in tensors)
    return tuple(ref for ref in put if ref is not None)


def _reason(unplaced: Unplaced) -> str:
    known = unplaced.scheme if unplaced.scheme != "unknown" else unplaced.refs[0].dtype
    return f"it is quantised ({known}), and {unplaced.reason}"


def _bytes_of(checkpoint: Checkpoint, refs: tuple[TensorRef, ...]) -> dict[str, bytes]:
    """The bytes of small tensors, read in the order in which they lie."""
    if not refs:
        return {}
    from weightscope.measure import reading  # here, because it imports torch

    ordered = sorted(refs, key=lambda ref: (ref.file, ref.start))
    wanted = [Matrix(ref.name, ref, "whole", "", "") for ref in ordered]
    with reading(checkpoint, wanted) as read:
        return {ref.name: _raw(read(ref, None)) for ref in ordered}


def _raw(tensor: torch.Tensor) -> bytes:
    import torch

    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
