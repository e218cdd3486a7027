"""GGUF files whose headers lie."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from hostile.case import Case, sparse, written


def gguf_header(version: int = 3, tensors: bytes = b"", count: int = 0, pairs: bytes = b"",
                keys: int = 0) -> bytes:  # fmt: skip
    """A GGUF file written by hand, with 4096 bytes of zeros for its tensors."""
    head = b"GGUF" + struct.pack("<IQQ", version, count, keys) + pairs + tensors
    return head + bytes(-len(head) % 32) + bytes(4096)


def gguf_tensor(name: bytes = b"w", shape: tuple[int, ...] = (32, 4), kind: int = 0,
                offset: int = 0) -> bytes:  # fmt: skip
    shapes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return struct.pack("<Q", len(name)) + name + shapes + struct.pack("<IQ", kind, offset)


def gguf_pair(key: bytes, kind: int, value: bytes) -> bytes:
    return struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value


LYING_GGUF = {
    "empty": (b"", "empty"),
    "four bytes": (b"GGUF", "truncated"),
    "text": (b"hello, world" * 9, "does not begin with GGUF"),
    "HTML": (b"<html>" * 9, "HTML"),
    "LFS": (b"version https://git-lfs.github.com/spec/v1", "git lfs pull"),
    "zip": (b"PK\x03\x04" + bytes(99), "does not begin with GGUF"),
    "version 1": (gguf_header(1), "version 1"),
    "version 99": (gguf_header(99), "version 99"),
    "big endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(99), "big-endian"),
    "no tensors": (gguf_header(), "no tensors"),
    "2^60 tensors": (gguf_header(count=2**60), "twice"),
    "2^60 facts": (gguf_header(keys=2**60), "twice"),
    "name beyond the end": (gguf_header(count=1, tensors=struct.pack("<Q", 2**63)), "truncated"),
    "name no text": (gguf_header(count=1, tensors=gguf_tensor(b"\xff")), "UTF-8"),
    "name twice": (gguf_header(count=2, tensors=gguf_tensor() + gguf_tensor(offset=512)), "twice"),
    "overlap": (gguf_header(count=2, tensors=gguf_tensor() + gguf_tensor(b"v")), "overlaps"),
    "beyond the end": (gguf_header(count=1, tensors=gguf_tensor(offset=4000)), "beyond the file"),
    "too large": (gguf_header(count=1, tensors=gguf_tensor(shape=(2**20, 2**20))), "beyond"),
    "shape overflows": (gguf_header(count=1, tensors=gguf_tensor(shape=(2**40,) * 3)), "shape"),
    "five dimensions": (gguf_header(count=1, tensors=gguf_tensor(shape=(2,) * 5)), "5 dimensions"),
    "unknown type": (gguf_header(count=1, tensors=gguf_tensor(kind=4000)), "type 4000"),
    "part of a block": (gguf_header(count=1, tensors=gguf_tensor(shape=(33, 2), kind=8)), "33"),
    "unknown value": (gguf_header(keys=1, pairs=gguf_pair(b"k", 77, b"")), "type 77"),
    "array of arrays": (gguf_header(keys=1, pairs=gguf_pair(b"k", 9, struct.pack("<IQ", 9, 1))),
                        "array"),
    "endless array": (gguf_header(keys=1, pairs=gguf_pair(b"k", 9, struct.pack("<IQ", 12, 2**60))),
                      "truncated"),
    "endless words": (gguf_header(keys=1, pairs=gguf_pair(b"k", 9, struct.pack("<IQ", 8, 2**60))),
                      "words, more than"),
    "no alignment": (gguf_header(keys=1, pairs=gguf_pair(b"general.alignment", 4, bytes(4))),
                     "alignment"),
}  # fmt: skip

MORE: dict[str, tuple[bytes, str]] = {
    "name of 2^60": (gguf_header(count=1, tensors=struct.pack("<Q", 2**60) + b"w"), "truncated"),
    "value of 2^62 letters": (
        gguf_header(keys=1, pairs=gguf_pair(b"k", 8, struct.pack("<Q", 2**62))),
        "truncated",
    ),
    "2^32 dimensions": (
        gguf_header(count=1, tensors=struct.pack("<Q", 1) + b"w" + struct.pack("<I", 2**32 - 1)),
        "4294967295 dimensions",
    ),
    "offset of 2^64": (gguf_header(count=1, tensors=gguf_tensor(offset=2**64 - 32)), "beyond"),
    "alignment of 2^31": (
        gguf_header(
            keys=1, pairs=gguf_pair(b"general.alignment", 4, struct.pack("<I", 2**31))
        ),
        "alignment",
    ),
}  # fmt: skip


def cases() -> Iterator[Case]:
    """Files written by hand."""
    for name, (content, says) in {**LYING_GGUF, **MORE}.items():
        yield Case(f"GGUF: {name}", written(content, "model.gguf"), says)
    zeros = struct.pack("<IQQ", 3, 0, 2**60)
    yield Case(
        "GGUF: 2^60 facts in a sparse file", sparse(b"GGUF" + zeros, 1 << 34, "m.gguf"), "twice"
    )
    words = gguf_pair(b"k", 9, struct.pack("<IQ", 8, 2**33))
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + words
    yield Case(
        "GGUF: 2^33 empty words in a sparse file",
        sparse(start, 1 << 37, "m.gguf"),
        "words, more than",
    )
    experts = gguf_tensor(b"blk.0.ffn_up_exps.weight", (32, 0, 2**40))
    yield Case(
        "GGUF: experts of nothing",
        written(gguf_header(count=1, tensors=experts), "m.gguf"),
        "no entries",
        code=0,
    )
    steering = gguf_tensor(b"\x1b[31m\n=1+1<script>", (32, 4))
    yield Case(
        "GGUF: a name that steers",
        written(gguf_header(count=1, tensors=steering), "m.gguf"),
        "",
        code=0,
    )
