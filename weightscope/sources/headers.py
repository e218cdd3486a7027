"""Hub models from the headers of their files: from the cache, or by the first bytes over HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from weightscope.checkpoint import Access, Checkpoint, hub_uri
from weightscope.errors import CheckpointError
from weightscope.formats.safetensors import parse_header, read_header
from weightscope.sources.background import in_order
from weightscope.sources.choice import Format
from weightscope.sources.parts import joined
from weightscope.sources.ranges import Ranges, UnreachableError
from weightscope.sources.repository import Model, Snapshot
from weightscope.sources.shards import Shard, assemble, config_file, read_config
from weightscope.tensor import TensorRef

Read = Callable[[int, int], bytes]

HEADED: frozenset[Format] = frozenset({"safetensors", "gguf"})
"""Formats whose files begin with a list of their tensors."""
FIRST_READ = 64 << 10
"""Bytes of a file to ask for at first: nearly all headers are shorter."""
_AT_ONCE = 8


@dataclass(frozen=True)
class Headers:
    """What the headers say.

    Attributes:
        parts: Every model.
        sizes: Bytes of each file, by its path in the repository.
        ignored: The server ignores byte ranges.
    """

    parts: list[Checkpoint]
    sizes: Mapping[str, int]
    ignored: bool


def read_headers(snapshot: Snapshot, models: Sequence[Model], access: Access) -> Headers:
    """Index models from the headers of their files; no weight is read.

    Where other machines read the weights, every file is named as remote, whatever is cached here.

    Raises:
        CheckpointError: One of them cannot be had, or is no header.
    """
    ranges = Ranges(snapshot.address.repository, snapshot.commit, access.token)
    all_here = not access.elsewhere and all(
        snapshot.holds(path) for model in models for path in model.paths
    )
    files = [(model.format, path) for model in models for path in model.paths]

    def read(file: tuple[Format, str]) -> Shard | Checkpoint:
        form, path = file
        # one name for every file, whatever the cache will hold later
        index = _shard if form == "safetensors" else _gguf
        found = index(snapshot, ranges, path)
        uri = hub_uri(snapshot.address.repository, snapshot.commit, path)
        return found if all_here else _moved(found, uri)

    try:
        found = dict(zip((path for _, path in files), in_order(read, files, _AT_ONCE), strict=True))
    finally:
        ranges.close()
    sizes = {
        path: one.header.size if isinstance(one, Shard) else one.files[0].size
        for path, one in found.items()
    }
    parts = [_model(snapshot, model, [found[path] for path in model.paths]) for model in models]
    return Headers(parts, sizes, ranges.ignored)


def _model(snapshot: Snapshot, model: Model, found: Sequence[Shard | Checkpoint]) -> Checkpoint:
    config, notes = read_config(config_file(snapshot.folder, model.inside))
    shards = [one for one in found if isinstance(one, Shard)]
    place = f"{snapshot.address.repository}/{model.inside}".rstrip("/")
    if shards:
        return assemble(place, shards, config, [*model.notes, *notes])
    indexed = [one for one in found if isinstance(one, Checkpoint)]
    return joined(place, indexed, config, [*model.notes, *notes])


def _shard(snapshot: Snapshot, ranges: Ranges, path: str) -> Shard:
    uri = hub_uri(snapshot.address.repository, snapshot.commit, path)
    file = snapshot.folder / path
    if file.exists():
        header = read_header(file)
    else:
        with _reading(ranges, uri, path) as (size, read):
            header = parse_header(uri, size, read)
    return Shard(uri, path.rpartition("/")[2], header)


def _gguf(snapshot: Snapshot, ranges: Ranges, path: str) -> Checkpoint:
    from weightscope.formats import gguf

    uri = hub_uri(snapshot.address.repository, snapshot.commit, path)
    file = snapshot.folder / path
    if file.exists():
        found = gguf.index_file(file)
        return replace(found, files=(replace(found.files[0], modified_ns=0),))
    with _reading(ranges, uri, path) as (size, read):
        return gguf.index(uri, path.rpartition("/")[2], size, read)


def _moved(found: Shard | Checkpoint, uri: str) -> Shard | Checkpoint:
    """The same with tensors that name another file as theirs."""

    def moved(ref: TensorRef) -> TensorRef:
        return replace(ref, file=uri)

    if isinstance(found, Shard):
        tensors = tuple(map(moved, found.header.tensors))
        return replace(found, header=replace(found.header, tensors=tensors))
    return found.moved(moved)


@contextmanager
def _reading(ranges: Ranges, uri: str, path: str) -> Iterator[tuple[int, Read]]:
    """The size of a remote file, and a function that reads from its beginning; nothing twice."""
    try:
        size = ranges.size(path)
        known = bytearray(min(size, FIRST_READ))
        ranges.fill(path, 0, memoryview(known))

        def read(start: int, count: int) -> bytes:
            before, stop = len(known), min(start + count, size)
            if stop > before:
                more = bytearray(stop - before)
                ranges.fill(path, before, memoryview(more))
                known.extend(more)
            return bytes(known[start:stop])

        yield size, read
    except UnreachableError as error:
        raise CheckpointError(f"{uri}: its header cannot be read ({error})") from None
