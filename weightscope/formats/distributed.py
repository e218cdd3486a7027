"""Distributed checkpoints (.metadata and .distcp files): tensors put together from their chunks.

The metadata is a raw pickle; it is read by ``inert``, so that none of it can run. Every chunk lies
in its .distcp file as a PyTorch archive of one tensor, which is loaded with ``weights_only=True``.
No process group is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from weightscope.checkpoint import Checkpoint, SourceFile
from weightscope.errors import CheckpointError
from weightscope.formats import inert
from weightscope.formats.inert import Inert, record
from weightscope.formats.memory import DTYPE_CODES, Stored
from weightscope.formats.nested import TRAINING_STATE, weights_in
from weightscope.formats.pytorch import load_bytes, refused
from weightscope.formats.safetensors import fill_from_file
from weightscope.tensor import DTYPES, TensorRef
from weightscope.text import shortened

METADATA = ".metadata"
MAX_METADATA = 1 << 29

_Metadata, _Tensor, _Chunk, _Properties, _Index, _Place = map(
    record, ("Metadata", "Tensor", "Chunk", "Properties", "Index", "Place")
)
_HERE = "torch.distributed.checkpoint."
_OLD = "torch.distributed._shard.sharded_tensor.metadata"


def _nothing(*_arguments: Any) -> None:
    """What a path or an enumeration becomes, since nothing is asked of it."""


def _empty(*_arguments: Any) -> dict[Any, Any]:
    """What an ordered dictionary begins as."""
    return {}


_ALLOWED: dict[inert.Name, inert.StandIn] = {
    (f"{_HERE}metadata", "Metadata"): _Metadata,
    (f"{_HERE}metadata", "TensorStorageMetadata"): _Tensor,
    (f"{_HERE}metadata", "BytesStorageMetadata"): record("Bytes"),
    (f"{_HERE}metadata", "ChunkStorageMetadata"): _Chunk,
    (f"{_HERE}metadata", "MetadataIndex"): _Index,
    (f"{_HERE}metadata", "StorageMeta"): record("StorageMeta"),
    (f"{_HERE}metadata", "TensorProperties"): _Properties,
    (f"{_HERE}metadata", "_MEM_FORMAT_ENCODING"): _nothing,
    (_OLD, "TensorProperties"): _Properties,
    (_OLD, "MEM_FORMAT_ENCODING"): _nothing,
    (f"{_HERE}filesystem", "_StorageInfo"): _Place,
    ("torch.serialization", "_get_layout"): _nothing,
    ("torch", "Size"): tuple,
    **{("torch", name): name for name in DTYPE_CODES},
    ("collections", "OrderedDict"): _empty,
    ("builtins", "getattr"): _nothing,  # how some versions of Python pickle an enumeration
    **{
        (module, f"{pure}{kind}Path"): _nothing
        for module in ("pathlib", "pathlib._local")
        for pure in ("", "Pure")
        for kind in ("Posix", "Windows", "")
    },
}
"""The names that torch.distributed.checkpoint writes, and what each becomes here."""


class _Piece(NamedTuple):
    """A chunk: where it belongs in its tensor, and where its bytes are."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: Path
    start: int
    length: int

    @property
    def box(self) -> tuple[slice, ...]:
        """The place in the tensor."""
        return tuple(slice(o, o + n) for o, n in zip(self.offsets, self.sizes, strict=True))


Load = Callable[[TensorRef, str, _Piece], torch.Tensor]


@dataclass(frozen=True)
class Chunked(Stored):
    """A tensor in chunks.

    Attributes:
        ref: Its name, shape and dtype.
        kind: Name of its torch dtype.
        pieces: Its chunks.
        load_again: Loads a chunk, and keeps the last one of the checkpoint for the next expert.
    """

    ref: TensorRef
    kind: str
    pieces: tuple[_Piece, ...]
    load_again: Load = field(compare=False, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        """Dimensions."""
        return self.ref.shape

    def read(self, part: int | None) -> torch.Tensor:
        """Load the chunks that it takes and put them together.

        Raises:
            CheckpointError: A chunk is missing, damaged, holds code, or is another than announced.
        """
        if part is None:
            found = self._holes(self.shape)
            for piece in self.pieces:
                found[piece.box].copy_(_load(self.ref, self.kind, piece))
            return found
        found = self._holes(self.shape[1:])
        for piece in self.pieces:
            row = part - piece.offsets[0]
            if 0 <= row < piece.sizes[0]:
                found[piece.box[1:]].copy_(self.load_again(self.ref, self.kind, piece)[row])
        return found

    def _holes(self, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor in which what no chunk covers does not look like weights."""
        found: torch.Tensor = torch.zeros(shape, dtype=getattr(torch, self.kind))
        if DTYPES[self.ref.dtype].kind == "float":
            found.fill_(float("nan"))
        return found


def _load(ref: TensorRef, kind: str, piece: _Piece) -> torch.Tensor:
    raw = bytearray(piece.length)
    fill_from_file(piece.file, ref, piece.start, memoryview(raw))
    place = f"{piece.file}: the chunk of {shortened(ref.name)} at byte {piece.start}"
    found = load_bytes(place, raw)
    if isinstance(found, torch.Tensor):
        there = str(found.dtype).removeprefix("torch."), tuple(found.shape)
        if there == (kind, piece.sizes):
            return found.detach()
    raise CheckpointError(f"{place}: is not what {METADATA} says of it; copy the checkpoint again")


def index_folder(folder: Path) -> Checkpoint:
    """Every tensor of a checkpoint from its metadata; no chunk is read.

    Raises:
        CheckpointError: The metadata is damaged or would run code, or a file is missing or cut.
    """
    path = folder / METADATA
    raw, source = _read_metadata(path)
    try:
        metadata = inert.load(raw, _ALLOWED)
        stored = dict(_tensors(folder, _fields(metadata, _Metadata)))
        planned = metadata.fields.get("planner_data")
        tree = _nested(stored, planned if isinstance(planned, Mapping) else {})
        weights = weights_in(tree, lambda value: isinstance(value, Chunked))
    except inert.RefusedError as error:
        raise CheckpointError(f"{path}: {refused([str(error)])}") from None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{path}: is damaged, or no metadata of a distributed checkpoint "
            f"({shortened(str(error))}); copy the checkpoint again"
        ) from None
    if not weights.tensors:
        raise CheckpointError(f"{path}: lists no weights; save the model's state_dict()")
    memory = {
        name: replace(chunked, ref=replace(chunked.ref, name=name))
        for name, chunked in weights.tensors.items()
    }
    sources = (source, *_sources(path, [p for chunked in stored.values() for p in chunked.pieces]))
    return Checkpoint(
        folder.resolve().name,
        tuple(chunked.ref for chunked in memory.values()),
        sources,
        notes=tuple(f"{folder.name}: {note}" for note in weights.notes),
        format="distributed",
        memory=memory,
    )


def _read_metadata(path: Path) -> tuple[bytes, SourceFile]:
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: is not a file; copy the checkpoint again")
        facts = path.stat()
        if facts.st_size > MAX_METADATA:
            raise CheckpointError(
                f"{path}: is larger than {MAX_METADATA >> 20} MiB, so it is no metadata; copy the "
                "checkpoint again"
            )
        raw = path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); check the disk, or copy it again"
        ) from None
    return raw, SourceFile(path.name, len(raw), sha256(raw).hexdigest(), facts.st_mtime_ns)


def _sources(path: Path, pieces: Sequence[_Piece]) -> Iterator[SourceFile]:
    """The files of chunks, which must be there and long enough."""
    ends: dict[Path, int] = {}
    for piece in pieces:
        ends[piece.file] = max(piece.start + piece.length, ends.get(piece.file, 0))
    missing = sorted(file.name for file in ends if not file.is_file())
    if missing:
        raise CheckpointError(
            f"{path}: {len(missing)} of {len(ends)} files are missing, first {missing[0]!r}; copy "
            "the rest of the checkpoint"
        )
    for file, end in sorted(ends.items()):
        facts = file.stat()
        if facts.st_size < end:
            raise CheckpointError(
                f"{file}: has {facts.st_size} bytes but {METADATA} needs {end}; it is truncated, "
                "copy it again"
            )
        yield SourceFile(file.name, facts.st_size, "", facts.st_mtime_ns)


def _nested(stored: Mapping[str, Chunked], planned: Mapping[Any, Any]) -> dict[Any, Any]:
    """The training dictionary that was saved, as its writer planned it."""
    tree: dict[Any, Any] = {}
    for name, chunked in stored.items():
        inside = tree
        *above, last = _path(name, planned.get(name))
        for key in above:
            inside = inside.setdefault(key, {})
            if not isinstance(inside, dict):
                raise ValueError(f"{shortened(name)} lies below a tensor")
        inside[last] = chunked
    return tree


def _path(name: str, planned: Any) -> tuple[str | int, ...]:
    """Keys that lead to a tensor; its name where nothing was planned."""
    if isinstance(planned, tuple) and planned and all(isinstance(k, str | int) for k in planned):
        return planned
    first, dot, rest = name.partition(".")
    return (first, rest) if dot and first in TRAINING_STATE else (name,)


def _tensors(folder: Path, metadata: Mapping[str, Any]) -> Iterator[tuple[str, Chunked]]:
    load_again = lru_cache(maxsize=1)(_load)
    places = {_index(index): place for index, place in metadata["storage_data"].items()}
    for name, entry in metadata["state_dict_metadata"].items():
        if isinstance(name, str) and isinstance(entry, _Tensor):
            ref, kind, pieces = _tensor(folder, name, entry, places)
            yield name, Chunked(ref, kind, pieces, load_again)


def _index(value: Any) -> tuple[str, tuple[int, ...] | None]:
    """Name of a tensor and place of a chunk in it."""
    fields = _fields(value, _Index)
    name, offset = fields["fqn"], fields.get("offset")
    if not isinstance(name, str):
        raise ValueError("a chunk belongs to no tensor")
    return name, None if offset is None else _counts(offset)


def _tensor(
    folder: Path, name: str, entry: Inert, places: Mapping[tuple[Any, Any], Any]
) -> tuple[TensorRef, str, tuple[_Piece, ...]]:
    shape, kind = _counts(entry.fields["size"]), _kind(entry.fields["properties"])
    code = DTYPE_CODES.get(kind)
    if code is None:
        raise ValueError(f"{shortened(name)} has the unknown dtype {shortened(kind)}")
    pieces = []
    for chunk in entry.fields["chunks"]:
        fields = _fields(chunk, _Chunk)
        offsets, sizes = _counts(fields["offsets"]), _counts(fields["sizes"])
        where = _fields(places.get((name, offsets)) or places[name, None], _Place)
        pieces.append(_piece(folder, offsets, sizes, where))
    ref = TensorRef(name, shape, code, str(pieces[0].file) if pieces else "")
    _check_pieces(ref, pieces)
    return ref, kind, tuple(pieces)


def _piece(
    folder: Path, offsets: tuple[int, ...], sizes: tuple[int, ...], where: Mapping[str, Any]
) -> _Piece:
    file = where["relative_path"]
    plain = isinstance(file, str) and file == Path(file).name and not set(file) & {"\\", "\0"}
    if not plain or file in {"", "..", "."}:
        raise ValueError(f"it points to {shortened(file)}, no plain file name in its own folder")
    if where.get("transform_descriptors"):
        raise ValueError(f"its chunks are packed by {shortened(where['transform_descriptors'])}")
    start, length = _counts((where["offset"], where["length"]))
    return _Piece(offsets, sizes, folder / file, start, length)


def _check_pieces(ref: TensorRef, pieces: Sequence[_Piece]) -> None:
    """Whether the chunks lie in their tensor, and are as many entries and bytes as it takes."""
    for piece in pieces:
        inside = len(piece.offsets) == len(piece.sizes) == len(ref.shape) and all(
            o + n <= size for o, n, size in zip(piece.offsets, piece.sizes, ref.shape, strict=True)
        )
        bits = prod(piece.sizes) * DTYPES[ref.dtype].bits
        if not inside or bits > 8 * piece.length:
            raise ValueError(f"a chunk does not fit {shortened(ref.name)}")
    if sum(prod(piece.sizes) for piece in pieces) != ref.size:
        raise ValueError(f"the chunks of {shortened(ref.name)} do not make it up")


def _kind(properties: Any) -> str:
    """Name of the dtype in the properties of a tensor, which are pickled in one of two ways."""
    if not isinstance(properties, _Properties):
        raise ValueError("a tensor has no properties")
    state = properties.state
    kind = state[0] if isinstance(state, tuple) and state else properties.fields.get("dtype")
    return str(kind)


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple) or not all(type(n) is int and 0 <= n < 2**63 for n in values):
        raise ValueError(f"{shortened(values)} are no counts")
    return values


def _fields(value: Any, kind: type[Inert]) -> Mapping[Any, Any]:
    if not isinstance(value, kind):
        raise ValueError(f"a {type(value).__name__} is where a {kind.__name__} should be")
    return value.fields
