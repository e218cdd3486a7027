"""Safetensors files whose headers lie."""

from __future__ import annotations

import json
from collections.abc import Iterator

from checkpoints import entry, hostile_files, raw_safetensors

from hostile.case import Case, sparse, written

SAYS = {
    "empty": "0 bytes",
    "seven bytes": "7 bytes",
    "length alone": "truncated",
    "truncated header": "truncated",
    "truncated data": "truncated",
    "no data": "truncated",
    "trailing byte": "1 bytes at its end",
    "trailing mebibyte": "1048576 bytes at its end",
    "header length zero": "not a JSON object",
    "header length one short": "not valid JSON",
    "header length one long": "not valid JSON",
    "header length 2^62": "claims 4611686018427387904 bytes",
    "header length 2^64-1": "claims 18446744073709551615 bytes",
    "header length over the cap": "claims 100000001 bytes",
    "hole": "hole",
    "hole at the start": "hole",
    "overlap": "overlaps",
    "same bytes twice": "overlaps",
    "offsets beyond the file": "hole",
    "offsets reversed": "does not take the -4 bytes",
    "offsets negative": "impossible offsets [-4, 0]",
    "offsets three": "impossible offsets",
    "offsets one": "impossible offsets",
    "offsets none": "is not dtype, shape and data_offsets",
    "offsets text": "impossible offsets",
    "offsets 2^64": "impossible offsets",
    "offsets wrap round": "impossible offsets",
    "shape lies": "does not take the 4 bytes",
    "shape overflows": "impossible shape",
    "shape overflows before a zero": "impossible shape",
    "shape negative": "impossible shape [-1]",
    "shape negative twice": "impossible shape",
    "shape minus zero": "not valid JSON",
    "shape boolean": "impossible shape",
    "shape float": "impossible shape",
    "shape text": "impossible shape",
    "shape null": "impossible shape",
    "shape nested": "impossible shape",
    "shape object": "impossible shape",
    "shape integer of 5000 digits": "not valid JSON",
    "dtype unknown": "unknown dtype 'F33'",
    "dtype null": "unknown dtype",
    "dtype list": "unknown dtype",
    "dtype lower case": "unknown dtype 'f32'",
    "odd number of half bytes": "does not take the 4 bytes",
    "entry null": "is not dtype, shape and data_offsets",
    "entry number": "is not dtype, shape and data_offsets",
    "entry without dtype": "is not dtype, shape and data_offsets",
    "name twice": "appears twice",
    "name of a lone surrogate": "not valid Unicode",
    "name with a raw control character": "not valid JSON",
    "metadata not strings": "__metadata__",
    "metadata nested": "__metadata__",
    "metadata list": "__metadata__",
    "metadata of a lone surrogate": "__metadata__",
    "metadata key of a lone surrogate": "__metadata__",
    "not JSON": "not valid JSON",
    "JSON list": "not a JSON object",
    "JSON string": "not a JSON object",
    "JSON cut off": "not valid JSON",
    "JSON with trailing comma": "not valid JSON",
    "JSON then zeros": "not valid JSON",
    "NaN literal": "not valid JSON",
    "Infinity literal": "not valid JSON",
    "nesting in an entry": "nested too deeply",
    "nesting of objects": "too many lists",
    "nesting never closed": "nested too deeply",
    "bad UTF-8": "not UTF-8",
    "surrogate bytes": "not UTF-8",
    "UTF-16": "not valid JSON",
    "byte order mark": "not a JSON object",
    "git-LFS pointer": "git lfs pull",
    "HTML page": "HTML",
    "XML page": "XML",
    "JSON file": "JSON text",
    "text": "claims",
    "zip": "zip archive",
    "pickle": "pickle, which is never opened",
    "pickle protocol 4": "pickle, which is never opened",
    "GGUF": "GGUF file",
    "HDF5": "HDF5",
    "NumPy": "claims",
    "gzip": "claims",
    "zeros": "not a JSON object",
    "noise": "claims",
}
"""What is said of the files that the reader's own tests have."""
FAR = {"truncated data", "overlap", "name twice", "git-LFS pointer", "HTML page", "pickle", "noise"}


def _endless_shape() -> bytes:
    shape = "1," * 5_000_000 + "1"
    return raw_safetensors(
        f'{{"w":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}}}', bytes(4)
    )


def _many_vectors() -> bytes:
    vector = entry(shape=(0,), offsets=(0, 0))
    return raw_safetensors({f"layers.{i}.scale": vector for i in range(100_000)})


def cases() -> Iterator[Case]:
    """Files of ``checkpoints.hostile_files``, and larger ones."""
    contents = dict(hostile_files())
    assert set(contents) == set(SAYS)
    for name, content in contents.items():
        yield Case(
            f"header: {name}",
            written(content),
            SAYS[name],
            far=name in FAR,
            elsewhere=name not in FAR,
        )
    cap = 100_000_000
    yield Case(
        "header: 100 MB of zeros, sparse",
        sparse(cap.to_bytes(8, "little"), cap + 8),
        "not a JSON object",
    )
    yield Case(
        "header: 100 MB beyond a brace, sparse",
        sparse(cap.to_bytes(8, "little") + b"{", cap + 8),
        "not valid JSON",
        memory=400,
    )
    yield Case(
        "header: 8 GiB in a sparse file of 16",
        sparse((8 << 30).to_bytes(8, "little") + b"{", 16 << 30),
        "claims 8589934592 bytes",
    )
    yield Case(
        "header: 30 MB of empty lists",
        written(raw_safetensors(b'{"w":[' + b"[]," * 10_000_000 + b"0]}")),
        "too many",
    )
    yield Case(
        "header: a shape of 5 million dimensions",
        written(_endless_shape),
        "dimensions",
    )
    yield Case("header: 100,000 vectors", written(_many_vectors), "", code=0, memory=400)
    scalars = {"a": entry(shape=(), offsets=(0, 4)), "b": entry(shape=(), offsets=(4, 8))}
    yield Case("header: scalars alone", written(raw_safetensors(scalars, bytes(8))), "", code=0)
    for name, shape in {
        "2^63 columns and no row": [0, 2**63],
        "2^62 experts without entries": [2**62, 0, 4],
        "2^62 columns and no row": [0, 2**62],
        "2^62 kernels without entries": [8, 2**20, 0, 2**20],
    }.items():
        says, code = ("impossible shape", 1) if 2**63 in shape else ("no entries", 0)
        content = raw_safetensors({"w.weight": entry(shape=shape, offsets=(0, 0))})
        yield Case(f"header: {name}", written(content), says, code, seen=code)
    shape, size = [1_000_000, 1, 2], 8_000_000
    text = json.dumps({"experts.w": entry(shape=shape, offsets=(0, size))})
    yield Case(
        "header: a million experts of two entries, sparse",
        sparse(raw_safetensors(text), 8 + len(text) + size),
        "more than 200,000 matrices",
    )
