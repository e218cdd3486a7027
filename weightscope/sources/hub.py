"""Models on the hub: one commit, its files from headers alone, and how their bytes will come."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from weightscope.checkpoint import Access, Checkpoint, Fetch, Remote, hub_uri
from weightscope.errors import CheckpointError, OptionError
from weightscope.formats.safetensors import Header, parse_header, read_header
from weightscope.sources.address import HubAddress
from weightscope.sources.background import in_order, within
from weightscope.sources.client import LIBRARY, asking, hushed, patiently
from weightscope.sources.ranges import Ranges, UnreachableError
from weightscope.sources.shards import (
    INDEX_SUFFIX,
    SUFFIX,
    Shard,
    assemble,
    check_listed,
    index_among,
    index_names,
    read_config,
    strays,
    weights_among,
)
from weightscope.text import scaled
from weightscope.version import __version__

CACHE_AT_MOST = 8 << 30
"""Bytes that are downloaded into the hub's cache without being told to; larger models stream."""
CONFIGS = ("*config.json", "*index.json", "params.json", "trainer_state.json")
"""Small files that say what the weights are; tokenizers and vocabularies do not."""
FIRST_READ = 64 << 10
"""Bytes of a file to ask for at first: nearly all headers are shorter."""
ANSWER_WITHIN = 60.0
"""Seconds for the commit of a revision, which the client would wait for without end."""
FILES_WITHIN = 600.0
"""Seconds for the list of files and the small ones among them."""
_HEADERS_AT_ONCE = 8


@dataclass(frozen=True)
class _Snapshot:
    """One commit of a repository, as far as it is known.

    Attributes:
        address: What was asked for.
        commit: Full hash.
        folder: Where the hub's cache has its files; the JSON files are there.
        sizes: Bytes of every file by its path; of some hubs only what they say.
    """

    address: HubAddress
    commit: str
    folder: Path
    sizes: Mapping[str, int]

    def holds(self, path: str) -> bool:
        """Whether the cache has a file."""
        return (self.folder / path).exists()


def open_hub(address: HubAddress, access: Access) -> Checkpoint:
    """Index a hub model from small JSON files and headers; no weight is read.

    Raises:
        CheckpointError: The model, revision or its files cannot be had.
        OptionError: Two revisions.
    """
    if access.revision and address.revision:
        raise OptionError(
            f"--revision {access.revision}: the address names {address.revision!r} already"
        )
    address = replace(address, revision=address.revision or access.revision)
    if address.revision and {"", ".", ".."} & set(address.revision.split("/")):
        raise CheckpointError(f"{address.repository}: has no revision {address.revision!r}")
    with hushed():
        snapshot = _snapshot(address, access.token)
        paths, notes = _weights(snapshot)
        shards, ignored = _shards(snapshot, paths, access)
    sizes = {path: shard.header.size for path, shard in zip(paths, shards, strict=True)}
    held = () if access.elsewhere else tuple(filter(snapshot.holds, paths))
    missing = sum(size for path, size in sizes.items() if path not in held)
    remote, way = None, "from the hub's local cache"
    if missing:
        fetch, way = _way(access.fetch, missing, _free(snapshot.folder), ignored)
        remote = Remote(address.repository, snapshot.commit, fetch, sizes, access.token)
    config, config_notes = read_config(_config_file(snapshot, paths[0]))
    note = f"{address.repository} at commit {snapshot.commit}, {way}"
    checkpoint = assemble(_name(address), shards, config, [note, *notes, *config_notes])
    revision = f"{address.repository}@{snapshot.commit}"
    return replace(checkpoint, revision=revision, remote=remote, mmap=access.mmap)


def _way(wanted: str, missing: int, free: int, ignored: bool) -> tuple[Fetch, str]:
    """How files that are not here will be read, and a remark that says so.

    Args:
        wanted: ``Access.fetch``.
        missing: Bytes of them.
        free: Bytes of disk that the cache may still take.
        ignored: The server ignores byte ranges.
    """
    amount = f"{scaled(missing, 'B', 1024)} of weights"
    small = missing <= CACHE_AT_MOST and 2 * missing <= free
    if wanted == "cache" or (wanted == "auto" and small):
        return "cache", f"{amount} to be downloaded into the hub's local cache"
    if wanted == "shard":
        return "shard", f"{amount} to be read file by file through a temporary folder"
    if ignored:
        return "shard", (
            f"{amount} to be read file by file through a temporary folder, since the server "
            "ignores byte ranges"
        )
    return "stream", f"{amount} to be read by byte ranges and kept nowhere"


def _free(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def _name(address: HubAddress) -> str:
    """``name``, or ``name-part`` for one file or folder of it."""
    name = address.repository.rpartition("/")[2]
    part = address.path.rpartition("/")[2]
    for suffix in (INDEX_SUFFIX, SUFFIX):
        part = part.removesuffix(suffix)
    return f"{name}-{part}" if part and part != "model" else name


def _config_file(snapshot: _Snapshot, path: str) -> Path:
    """The config beside a file, or the one at the root."""
    beside = (snapshot.folder / path).parent / "config.json"
    return beside if beside.is_file() else snapshot.folder / "config.json"


def _snapshot(address: HubAddress, token: str | None) -> _Snapshot:
    """Resolve the commit, list its files, and have its JSON files in the cache."""
    from huggingface_hub import HfApi, get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    api = HfApi(token=token, library_name=LIBRARY, library_version=__version__)
    inside = glob.escape(_folder_of(address.path))

    def ask() -> tuple[str, Path]:
        resolve = partial(api.resolve_revision, revision=address.revision or None)
        commit = within(ANSWER_WITHIN, partial(resolve, address.repository))
        # by commit from here on: a branch may move between two requests
        download = partial(
            snapshot_download,
            revision=commit.resolved,
            allow_patterns=[folder + name for folder in {"", inside} for name in CONFIGS],
            ignore_patterns=[f"{inside}*/*"],  # the stars reach into folders
            token=token,
            library_name=LIBRARY,
            library_version=__version__,
        )
        folder = within(FILES_WITHIN, partial(download, address.repository))
        return commit.resolved, Path(folder)

    with asking(address.repository, address.revision):
        commit, folder = patiently(ask)
    try:
        tree = get_cached_repo_tree(address.repository, revision=commit)
        sizes = {file.path: file.size for file in tree}
    except CachedRepoTreeNotFoundError:  # offline, with a cache from an older client
        found = (path for path in folder.rglob("*") if path.is_file())
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
    return _Snapshot(address, commit, folder, sizes)


def _folder_of(path: str) -> str:
    """The folder that an address is about, with its slash; empty for the root."""
    folder = path.rpartition("/")[0] if path.endswith((SUFFIX, INDEX_SUFFIX)) else path
    return f"{folder}/" if folder else ""


def _weights(snapshot: _Snapshot) -> tuple[list[str], list[str]]:
    """Paths of the weight files that an address means, and remarks on others."""
    path = snapshot.address.path
    place = f"{snapshot.address.repository}/{path}".rstrip("/")
    inside = _folder_of(path)
    below = [name.removeprefix(inside) for name in snapshot.sizes if name.startswith(inside)]
    names = [name for name in below if "/" not in name]
    if path.endswith((SUFFIX, INDEX_SUFFIX)) and path not in snapshot.sizes:
        raise CheckpointError(f"{place}: there is no such file")
    if path.endswith(SUFFIX):
        return [path], []
    index = path.removeprefix(inside) if path.endswith(INDEX_SUFFIX) else index_among(names)
    if index:
        listed = index_names(snapshot.folder / inside / index)
        check_listed(place, listed, [name for name in listed if name not in names])
        return [inside + name for name in listed], strays(index, listed, names)
    found = weights_among(names)
    if not found:
        raise CheckpointError(f"{place}: {_why_no_weights(snapshot.address, names, below)}")
    return [inside + name for name in found], []


def _why_no_weights(address: HubAddress, names: list[str], below: list[str]) -> str:
    pickles = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")))
    if pickles:
        return (
            f"holds no safetensors file, only {pickles[0]!r}, a pickle, which is never opened; "
            "convert the model to safetensors first"
        )
    folders = sorted(name.partition("/")[0] for name in below if name.endswith(SUFFIX))
    if folders:
        return (
            f"holds no safetensors file itself, but its folder {folders[0]!r} does; name that "
            f"one: hf://{address.repository}/{_folder_of(address.path)}{folders[0]}"
        )
    return "holds no weights (no .safetensors file)"


def _shards(snapshot: _Snapshot, paths: list[str], access: Access) -> tuple[list[Shard], bool]:
    """Headers of all files, and whether the server ignored byte ranges."""
    repository, commit = snapshot.address.repository, snapshot.commit
    ranges = Ranges(repository, commit, access.token)
    all_here = all(map(snapshot.holds, paths)) and not access.elsewhere

    def shard(path: str) -> Shard:
        uri, file = hub_uri(repository, commit, path), snapshot.folder / path
        header = read_header(file) if file.exists() else _remote_header(ranges, uri, path)
        if not all_here:  # one name for every file, whatever the cache will hold later
            header = replace(header, tensors=tuple(replace(t, file=uri) for t in header.tensors))
        return Shard(uri, path.rpartition("/")[2], header)

    try:
        return list(in_order(shard, paths, _HEADERS_AT_ONCE)), ranges.ignored
    finally:
        ranges.close()


def _remote_header(ranges: Ranges, uri: str, path: str) -> Header:
    try:
        size = ranges.size(path)
        first = bytearray(min(size, FIRST_READ))
        ranges.fill(path, 0, memoryview(first))

        def read(start: int, count: int) -> bytes:
            found = bytearray(min(count, max(size - start, 0)))
            known = first[start : start + len(found)]
            found[: len(known)] = known
            ranges.fill(path, start + len(known), memoryview(found)[len(known) :])
            return bytes(found)

        return parse_header(uri, size, read)
    except UnreachableError as error:
        raise CheckpointError(f"{uri}: its header cannot be read ({error})") from None
