"""One hostile checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

Build = Callable[[Path], Path]
"""Writes files into an empty folder, and returns what to name as the model."""


@dataclass(frozen=True)
class Case:
    """A checkpoint that is wrong in one way, and what the command line has to make of it.

    Attributes:
        name: What is wrong.
        build: Writes it.
        says: Part of the sentence, or of the table, that tells of it.
        code: Exit code of ``analyze``.
        seen: Exit code of ``inspect``, which reads no weights; None for that of ``analyze``.
        shrinks: Bytes that are left of the model's file when its tensors are read; None for all.
        memory: Most MiB that either command may take beyond the imports.
        far: Whether the same files on a hub have to end alike.
        elsewhere: Whether the reader's own tests have the same bytes: here the slow suite has.
    """

    name: str
    build: Build
    says: str
    code: int = 1
    seen: int | None = None
    shrinks: int | None = None
    memory: int = 200
    far: bool = False
    elsewhere: bool = False

    def expected(self, verb: str) -> int:
        """Exit code of a verb."""
        return self.code if verb == "analyze" or self.seen is None else self.seen


def written(content: bytes | Callable[[], bytes], name: str = "model.safetensors") -> Build:
    """A model of one file with this content, which is made when it is wanted."""

    def build(folder: Path) -> Path:
        path = folder / name
        path.write_bytes(content() if callable(content) else content)
        return path

    return build


def sparse(start: bytes, size: int, name: str = "model.safetensors") -> Build:
    """A file that begins with these bytes and goes on with zeros that take no room on the disk."""

    def build(folder: Path) -> Path:
        path = folder / name
        with path.open("wb") as stream:
            stream.write(start)
            stream.truncate(size)
        return path

    return build
