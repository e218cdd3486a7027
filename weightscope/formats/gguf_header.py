"""What the header of a GGUF file says: its facts, and where which tensor lies.

Parsed here rather than by the ``gguf`` package, which maps the whole file, keeps every word of the
vocabulary and trusts what a file claims. Source: the GGUF specification of ggml, versions 2 and 3.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, NoReturn

from weightscope.errors import CheckpointError
from weightscope.text import shortened

MAX_HEADER = 100_000_000
MOST_WORDS = 1 << 22
"""Sixteen times the largest vocabularies; each may be empty."""
_READ_AT_FIRST, _READ_AT_ONCE = 1 << 15, 1 << 20
_MOST_DIMENSIONS = 4
_DEEPEST = 4
_STRING, _ARRAY = 8, 9
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
"""Codes of ``struct`` by the number of a value type."""

Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Listed:
    """A tensor as the header lists it.

    Attributes:
        name: Its name.
        shape: Dimensions, rows first.
        type: Number of its data type.
        start: First byte in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: int
    start: int


@dataclass(frozen=True)
class Header:
    """What the header of one file says.

    Attributes:
        facts: Its numbers and words by key; arrays are left out.
        tensors: Every tensor, in the order of the header.
        sha256: Hash of the header bytes.
        stop: First byte after the header.
    """

    facts: Mapping[str, Any]
    tensors: tuple[Listed, ...]
    sha256: str
    stop: int


def parse_header(file: str, size: int, read: Read) -> Header:
    """Check the header of a file wherever it is.

    Args:
        file: How messages name it.
        size: Bytes of the whole file.
        read: Bytes from a position on, as many as asked for unless the file ends.

    Raises:
        CheckpointError: Not a GGUF file, one of another version, or one whose header lies.
    """
    cursor = _Cursor(file, size, read)
    version = cursor.version()
    if version not in {2, 3}:
        cursor.refuse(f"it has version {version}, not 2 or 3")
    tensors, pairs = cursor.number("Q"), cursor.number("Q")
    facts: dict[str, Any] = {}
    for key, value in cursor.pairs(pairs):
        if key in facts:
            cursor.refuse(f"the key {shortened(key)} appears twice")
        facts[key] = value
    listed = list(cursor.tensors(tensors))
    alignment = facts.get("general.alignment", 32)
    if type(alignment) is not int or not 0 < alignment <= 1 << 20:
        cursor.refuse(f"it claims an alignment of {shortened(alignment)}")
    stop = -(-cursor.position // alignment) * alignment
    placed = tuple(Listed(t.name, t.shape, t.type, stop + t.start) for t in listed)
    kept = {key: value for key, value in facts.items() if value is not None}
    return Header(kept, placed, _sha256(read, cursor.position), stop)


def _sha256(read: Read, size: int) -> str:
    digest = hashlib.sha256()
    for start in range(0, size, _READ_AT_ONCE):
        digest.update(read(start, min(_READ_AT_ONCE, size - start)))
    return digest.hexdigest()


class _Cursor:
    """Reads a header from its start on, in blocks."""

    def __init__(self, file: str, size: int, read: Read) -> None:
        self.file, self.size, self.read = file, size, read
        self.position = 0
        self._block, self._start = b"", 0

    def refuse(self, why: str) -> NoReturn:
        raise CheckpointError(
            f"{self.file}: not a valid GGUF file: {why}; download or copy it again"
        )

    def take(self, count: int) -> bytes:
        """The next bytes."""
        end = self.position + count
        if end > self.size:
            self.refuse(
                f"it is truncated: its header needs {end} bytes but the file has {self.size}"
            )
        if end > MAX_HEADER:
            self.refuse(f"its header is longer than {MAX_HEADER} bytes")
        if end > self._start + len(self._block):
            # as much as was read so far: most headers are short, vocabularies are long
            ahead = min(max(self.position, _READ_AT_FIRST), _READ_AT_ONCE)
            self._block = self.read(self.position, max(count, ahead))
            self._start = self.position
            if len(self._block) < count:
                self.refuse("its header could not be read whole")
        found = self._block[self.position - self._start : end - self._start]
        self.position = end
        return found

    def number(self, code: str) -> Any:
        """The next number, by a code of ``struct``."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        """The next string."""
        raw = self.take(self.number("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            self.refuse(f"{shortened(raw)} is not UTF-8")

    def version(self) -> int:
        """The version, after the four letters that begin every file."""
        if self.take(4) != b"GGUF":
            self.refuse("it does not begin with GGUF")
        version: int = self.number("I")
        if version and not version & 0xFFFF:
            raise CheckpointError(f"{self.file}: is of a big-endian machine; convert it first")
        return version

    def pairs(self, count: int) -> Iterator[tuple[str, Any]]:
        """The facts; None for an array."""
        for _ in range(count):
            yield self.text(), self._value(self.number("I"))

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY:
            self.refuse(f"it has a value of the unknown type {kind}")
        inside, count = self.number("I"), self.number("Q")
        if inside in _SCALARS:
            self._skip(count * struct.calcsize(f"<{_SCALARS[inside]}"))
        elif inside == _STRING and count > MOST_WORDS:
            self.refuse(f"it has a list of {count} words, more than {MOST_WORDS}")
        elif inside == _STRING:
            self._skip_strings(count)
        else:
            self.refuse(f"it has an array of the unknown type {inside}")
        return None

    def _skip(self, count: int) -> None:
        while count:
            piece = min(count, _READ_AT_ONCE)
            self.take(piece)
            count -= piece

    def _skip_strings(self, count: int) -> None:
        """Pass by a vocabulary: most strings end in the block at hand."""
        length_at = struct.Struct("<Q").unpack_from
        while count:
            block, place = self._block, self.position - self._start
            end = len(block) - 8
            while count and place <= end:
                after = place + 8 + length_at(block, place)[0]
                if after > len(block):
                    break
                place, count = after, count - 1
            self.position = self._start + place
            if count:
                self._skip(self.number("Q"))
                count -= 1

    def tensors(self, count: int) -> Iterator[Listed]:
        """The tensors; their first bytes are counted from the end of the header."""
        seen: set[str] = set()
        for _ in range(count):
            name, dimensions = self.text(), self.number("I")
            if name in seen:
                self.refuse(f"the tensor {shortened(name)} appears twice")
            if dimensions > _MOST_DIMENSIONS:
                self.refuse(f"the tensor {shortened(name)} has {dimensions} dimensions")
            seen.add(name)
            shape = tuple(self.number("Q") for _ in range(dimensions))[::-1]
            if prod(shape) >= 2**63:
                self.refuse(f"the tensor {shortened(name)} has the impossible shape {list(shape)}")
            yield Listed(name, shape, self.number("I"), self.number("Q"))
