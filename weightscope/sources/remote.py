"""Reading a checkpoint whose weights are not on this machine, in the way that was chosen for it."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from weightscope.checkpoint import Fetch, Fill, Remote, hub_uri
from weightscope.errors import CheckpointError
from weightscope.formats.safetensors import fill_from_file
from weightscope.sources.client import hushed
from weightscope.sources.downloads import Downloads
from weightscope.sources.ranges import Ranges, UnreachableError
from weightscope.sources.stream import Span, Stream
from weightscope.sources.transfer import LATER, into_cache, into_file
from weightscope.tensor import TensorRef
from weightscope.text import shortened

_AT_ONCE = 4
"""Files that are downloaded side by side into the cache."""


@contextmanager
def fetching(remote: Remote, expected: Iterable[Span]) -> Iterator[Fill]:
    """Open a remote checkpoint for reading; what was fetched for nothing but this is gone after.

    Args:
        remote: Where it is, and how to read it.
        expected: File, first byte and byte count of every read to come, in their order; reads that
            are not among them work too, at a request each.

    Yields:
        A function that fills a view with the bytes of a tensor; for any number of threads.
    """
    cached = _cached(remote)
    missing = [span for span in expected if span[0] not in cached and span[2]]
    with hushed(), _WAYS[remote.fetch](remote, missing) as fetched:

        def fill(ref: TensorRef, start: int, view: memoryview) -> None:
            if ref.file in cached:
                fill_from_file(cached[ref.file], ref, start, view)
            else:
                fetched(ref, start, view)

        yield fill


def _cached(remote: Remote) -> dict[str, Path]:
    """Files that the hub's cache holds, by how tensors name them."""
    from huggingface_hub import try_to_load_from_cache

    found = {}
    for path in remote.sizes:
        file = try_to_load_from_cache(remote.repository, path, revision=remote.commit)
        if isinstance(file, str):
            found[hub_uri(remote.repository, remote.commit, path)] = Path(file)
    return found


@contextmanager
def _streaming(remote: Remote, expected: Sequence[Span]) -> Iterator[Fill]:
    ranges = Ranges(remote.repository, remote.commit, remote.token)
    stream = Stream(ranges, [(remote.path(file), start, size) for file, start, size in expected])

    def fill(ref: TensorRef, start: int, view: memoryview) -> None:
        with _named(ref):
            stream.fill(remote.path(ref.file), start, view)

    try:
        yield fill
    finally:
        stream.close()


@contextmanager
def _named(ref: TensorRef) -> Iterator[None]:
    """Say which tensor could not be read."""
    try:
        yield
    except UnreachableError as error:
        raise CheckpointError(
            f"{ref.file}: reading tensor {shortened(ref.name)} failed ({error}); {LATER}"
        ) from None


@contextmanager
def _by_shard(remote: Remote, expected: Sequence[Span]) -> Iterator[Fill]:
    ranges = Ranges(remote.repository, remote.commit, remote.token)
    with TemporaryDirectory(prefix="weightscope-", ignore_cleanup_errors=True) as name:
        folder = Path(name)

        def fetch(uri: str) -> Path:
            path = remote.path(uri)  # files of several folders may have one name
            return into_file(ranges, remote, uri, folder / re.sub(r"[/\\]", "--", path))

        def room(uri: str) -> bool:
            return shutil.disk_usage(folder).free > 3 * remote.sizes[remote.path(uri)]

        files = [file for file, _, _ in expected]
        downloads = Downloads(fetch, files, 1, room, Path.unlink)

        def fill(ref: TensorRef, start: int, view: memoryview) -> None:
            if ref.file in announced or ranges.ignored:
                downloads.fill(ref, start, view)
                return
            try:  # a small look at a file is not worth the whole of it
                with _named(ref):
                    ranges.fill(remote.path(ref.file), start, view)
            except CheckpointError:
                if not ranges.ignored:
                    raise
                downloads.fill(ref, start, view)

        announced = set(files)
        try:
            yield fill
        finally:
            ranges.close()
            downloads.close()


@contextmanager
def _through_cache(remote: Remote, expected: Sequence[Span]) -> Iterator[Fill]:
    def fetch(uri: str) -> Path:
        return into_cache(remote, uri)

    def room(_uri: str) -> bool:
        return True

    def keep(_path: Path) -> None:
        """It is in the cache for next time."""

    downloads = Downloads(fetch, [file for file, _, _ in expected], _AT_ONCE - 1, room, keep)
    try:
        yield downloads.fill
    finally:
        downloads.close()


_WAYS: dict[Fetch, Callable[[Remote, Sequence[Span]], AbstractContextManager[Fill]]] = {
    "stream": _streaming,
    "shard": _by_shard,
    "cache": _through_cache,
}
