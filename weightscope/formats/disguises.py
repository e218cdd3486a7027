"""What a file is that is not what its name says, by its first bytes."""

from __future__ import annotations

from typing import NamedTuple

from weightscope.errors import CheckpointError

ENOUGH = 32
"""First bytes to look at."""


class _Disguise(NamedTuple):
    format: str
    start: bytes
    what: str
    advice: str


_CONVERT = "convert it to safetensors first"
_DISGUISES = (
    _Disguise("", b"version https://git-lfs", "a git-LFS pointer, not the weights",
              "run: git lfs pull"),
    _Disguise("gguf", b"GGUF", "a GGUF file", "give it a name that ends in .gguf"),
    _Disguise("", b"\x89HDF", "an HDF5 file", _CONVERT),
    _Disguise("", b"<", "an HTML or XML page (an error page saved as a file?)",
              "download it again"),
    _Disguise("", b"{", "a JSON text", "name the folder or the file of weights instead"),
)  # fmt: skip


def check_disguise(file: str, start: bytes, wanted: str) -> None:
    """Refuse a file that is recognisably something else.

    Args:
        file: How messages name it.
        start: Its first bytes.
        wanted: The format it should have: ``pytorch`` or ``gguf``.

    Raises:
        CheckpointError: Saying what it is, and what to do about it.
    """
    if not start:
        raise CheckpointError(f"{file}: is empty; download or copy it again")
    for disguise in _DISGUISES:
        if disguise.format != wanted and start.startswith(disguise.start):
            raise CheckpointError(f"{file}: is {disguise.what}; {disguise.advice}")
    if start[8:9] == b"{":
        raise CheckpointError(
            f"{file}: is a safetensors file; give it a name that ends in .safetensors"
        )
