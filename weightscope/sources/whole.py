"""Hub models whose files have to be here before they can be looked into: pickles, and the like.

What a pickle holds stands in a program in its midst, so nothing of it can be told from a few bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from weightscope.checkpoint import Access, Checkpoint, Remote, hub_uri
from weightscope.errors import OptionError
from weightscope.sources.background import in_order
from weightscope.sources.local import read_files
from weightscope.sources.ranges import Ranges
from weightscope.sources.repository import Model, Snapshot
from weightscope.sources.shards import config_file
from weightscope.sources.transfer import into_cache, into_file
from weightscope.text import scaled

CACHE_AT_MOST = 8 << 30
"""Bytes that are downloaded into the hub's cache without being told to."""
_AT_ONCE = 4


def from_files(
    snapshot: Snapshot, models: Sequence[Model], access: Access, free: int
) -> tuple[list[Checkpoint], str]:
    """Every model from its whole files, and a remark on how they came.

    Args:
        snapshot: The commit.
        models: Which files.
        access: How to fetch those that the cache does not hold.
        free: Bytes of disk that the cache may still take.

    Raises:
        OptionError: They are to be streamed, or read by other machines.
        CheckpointError: They cannot be had or read.
    """
    paths = [path for model in models for path in model.paths]
    if access.elsewhere:
        raise OptionError(
            f"{snapshot.address.repository}: is read from whole files on this machine, which "
            "others do not see; download it into a folder that all of them have, and name that"
        )
    missing = sum(snapshot.sizes[path] for path in paths if not snapshot.holds(path))
    if not missing:
        return _read(snapshot, models, lambda path: snapshot.folder / path), _CACHED
    amount = f"{scaled(missing, 'B', 1024)} of weights fetched whole, as their format demands, "
    repository, commit = snapshot.address.repository, snapshot.commit
    if access.fetch == "stream":
        first = next(path for m in models if m.format != "safetensors" for path in m.paths)
        raise OptionError(
            f"--fetch stream: {repository} holds {first!r}, and what is in such a file cannot be "
            "told before all of it is here; use --fetch shard or cache"
        )
    small = missing <= CACHE_AT_MOST and 2 * missing <= free
    if access.fetch == "cache" or (access.fetch == "auto" and small):
        remote = Remote(repository, commit, "cache", snapshot.sizes, access.token)
        fetched = _each(paths, lambda path: into_cache(remote, hub_uri(repository, commit, path)))
        return _read(snapshot, models, fetched.__getitem__), f"{amount}into the hub's local cache"
    remote = Remote(repository, commit, "shard", snapshot.sizes, access.token)
    folder = TemporaryDirectory(prefix="weightscope-", ignore_cleanup_errors=True)
    ranges = Ranges(repository, commit, access.token)

    def fetch(path: str) -> Path:
        target = Path(folder.name, *path.replace("\\", "--").split("/"))
        target.parent.mkdir(parents=True, exist_ok=True)
        return into_file(ranges, remote, hub_uri(repository, commit, path), target)

    try:
        found = _read(snapshot, models, _each(paths, fetch).__getitem__)
    except BaseException:
        ranges.close()
        folder.cleanup()
        raise
    return [replace(each, held=folder) for each in found], f"{amount}into a temporary folder"


_CACHED = "from the hub's local cache"


def _each(paths: Sequence[str], fetch: Callable[[str], Path]) -> dict[str, Path]:
    return dict(zip(paths, in_order(fetch, paths, _AT_ONCE), strict=True))


def _read(
    snapshot: Snapshot, models: Sequence[Model], place: Callable[[str], Path]
) -> list[Checkpoint]:
    found = []
    for model in models:
        files = [place(path) for path in model.paths]
        config = config_file(snapshot.folder, model.inside)
        read = read_files("", files[0].parent, model.format, files, model.notes, config)
        # the commit tells one version from another, not the time of a download
        sources = tuple(replace(file, modified_ns=0, sample_sha256="") for file in read.files)
        found.append(replace(read, files=sources))
    return found
