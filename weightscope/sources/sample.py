"""Some bytes of a file: what tells two checkpoints of equal shapes, sizes and times apart."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from weightscope.errors import CheckpointError

_PIECES, _PIECE_BYTES = 16, 4096


def sampled_sha256(path: Path) -> str:
    """Hash of 16 pieces of 4 KiB, evenly spread from the first byte to the last.

    A step of training changes nearly every weight, so it changes a sample too; an edit of a few
    entries may escape, and is left to the time of modification.

    Raises:
        CheckpointError: It cannot be read.
    """
    digest = sha256()
    try:
        with path.open("rb") as stream:
            last = max(0, path.stat().st_size - _PIECE_BYTES)
            for i in range(_PIECES):
                stream.seek(last * i // (_PIECES - 1))
                digest.update(stream.read(_PIECE_BYTES))
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); check the disk, or copy it again"
        ) from None
    return digest.hexdigest()
