"""Writing a safetensors file as a stream: the header first, then one tensor after another.

The sizes of all tensors are known before any is at hand, so nothing has to be kept in memory.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from weightscope.formats.safetensors import fill_from_disk
from weightscope.tensor import TensorRef

if TYPE_CHECKING:
    import torch

_ALIGNMENT = 8
_COPIED_AT_ONCE = 16 << 20


def header_of(tensors: Sequence[TensorRef], metadata: Mapping[str, str]) -> bytes:
    """Length and header of a file that holds tensors in this order, padded to eight bytes.

    Args:
        tensors: Name, dtype and shape of each; where their bytes are now does not matter.
        metadata: Strings for ``__metadata__``.
    """
    entries: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    for ref in tensors:
        end = position + ref.nbytes
        entries[ref.name] = {
            "dtype": ref.dtype,
            "shape": list(ref.shape),
            "data_offsets": [position, end],
        }
        position = end
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def write_stream(path: Path, header: bytes, pieces: Iterable[bytes | memoryview]) -> None:
    """Write a new file, piece by piece, and make sure that it is on disk.

    Raises:
        OSError: It exists, or cannot be written.
    """
    with path.open("xb") as stream:
        stream.write(header)
        for piece in pieces:
            stream.write(piece)
        stream.flush()
        os.fsync(stream.fileno())


def copied(ref: TensorRef) -> Iterable[memoryview]:
    """The bytes of a stored tensor, a bounded piece at a time; each is valid until the next.

    Raises:
        CheckpointError: Its file is gone or shorter than its header said.
    """
    buffer = memoryview(bytearray(min(_COPIED_AT_ONCE, ref.nbytes)))
    for start in range(ref.start, ref.stop, max(len(buffer), 1)):
        piece = buffer[: min(len(buffer), ref.stop - start)]
        fill_from_disk(ref, start, piece)
        yield piece


def stored_bytes(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor as the format stores them: row by row, little-endian."""
    import torch

    flat = tensor.cpu().contiguous().reshape(-1)
    return memoryview(flat.view(torch.uint8).numpy().data)
