"""Models on the hub: one commit, its files from headers alone, and how their bytes will come."""

from __future__ import annotations

import glob
import shutil
from collections.abc import Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from weightscope.checkpoint import Access, Checkpoint, Fetch, Remote
from weightscope.errors import CheckpointError, OptionError
from weightscope.sources.address import HubAddress
from weightscope.sources.background import within
from weightscope.sources.choice import weights_in
from weightscope.sources.client import LIBRARY, asking, hushed, patiently
from weightscope.sources.headers import HEADED, read_headers
from weightscope.sources.parts import pipeline
from weightscope.sources.repository import (
    PIPELINE,
    Model,
    Snapshot,
    folder_of,
    models_in,
    stem_of,
)
from weightscope.sources.shards import read_json
from weightscope.sources.whole import CACHE_AT_MOST, from_files
from weightscope.text import scaled
from weightscope.version import __version__

CONFIGS = ("*config.json", "*index.json", "params.json", "trainer_state.json")
"""Small files that say what the weights are; tokenizers and vocabularies do not."""
ANSWER_WITHIN = 60.0
"""Seconds for the commit of a revision, which the client would wait for without end."""
FILES_WITHIN = 600.0
"""Seconds for the list of files and the small ones among them."""


def open_hub(address: HubAddress, access: Access) -> Checkpoint:
    """Index a hub model from small JSON files and headers; no weight is read.

    Files that have no header to tell what is in them are fetched whole.

    Raises:
        CheckpointError: The model, revision or its files cannot be had.
        OptionError: Two revisions, or a way to read that is none for its files.
    """
    if access.revision and address.revision:
        raise OptionError(
            f"--revision {access.revision}: the address names {address.revision!r} already"
        )
    address = replace(address, revision=address.revision or access.revision)
    if address.revision and {"", ".", ".."} & set(address.revision.split("/")):
        raise CheckpointError(f"{address.repository}: has no revision {address.revision!r}")
    remote = None
    with hushed():
        snapshot = _snapshot(address, access.token)
        models = models_in(snapshot, partial(_fetch_json, snapshot, access.token))
        if {model.format for model in models} <= HEADED:
            parts, remote, way = _from_headers(snapshot, models, access)
        else:
            parts, way = from_files(snapshot, models, access, _free(snapshot.folder))
    found = replace(_together(snapshot, models, parts), name=_name(address))
    return replace(
        found,
        revision=f"{address.repository}@{snapshot.commit}",
        notes=(f"{address.repository} at commit {snapshot.commit}, {way}", *found.notes),
        remote=remote,
        mmap=access.mmap,
        held=next((part.held for part in parts if part.held), None),
    )


def _together(
    snapshot: Snapshot, models: Sequence[Model], parts: Sequence[Checkpoint]
) -> Checkpoint:
    """One model as it is; those of a pipeline as one."""
    if not models[0].component:
        return parts[0]
    inside = folder_of(snapshot.address.path)
    listed = read_json(snapshot.folder / inside / PIPELINE)
    named = {model.component: part for model, part in zip(models, parts, strict=True)}
    return pipeline("", named, listed.get("_class_name"), weights_in(snapshot.names(inside)))


def _from_headers(
    snapshot: Snapshot, models: Sequence[Model], access: Access
) -> tuple[list[Checkpoint], Remote | None, str]:
    """The models from the headers of their files, where these are, and a remark on that."""
    headers = read_headers(snapshot, models, access)
    held = () if access.elsewhere else tuple(filter(snapshot.holds, headers.sizes))
    missing = sum(size for path, size in headers.sizes.items() if path not in held)
    if not missing:
        return headers.parts, None, "from the hub's local cache"
    fetch, way = _way(access.fetch, missing, _free(snapshot.folder), headers.ignored)
    repository, commit = snapshot.address.repository, snapshot.commit
    return headers.parts, Remote(repository, commit, fetch, headers.sizes, access.token), way


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
    part = stem_of(address.path)
    return f"{name}-{part}" if part and part != "model" else name


def _snapshot(address: HubAddress, token: str | None) -> Snapshot:
    """Resolve the commit, list its files, and have its JSON files in the cache."""
    from huggingface_hub import HfApi, get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    api = HfApi(token=token, library_name=LIBRARY, library_version=__version__)
    inside = glob.escape(folder_of(address.path))
    wanted = [folder + name for folder in {"", inside} for name in CONFIGS]
    unwanted = [f"{inside}*/*"]  # the stars reach into folders

    def ask() -> tuple[str, Path]:
        resolve = partial(api.resolve_revision, revision=address.revision or None)
        commit = within(ANSWER_WITHIN, partial(resolve, address.repository))
        # by commit from here on: a branch may move between two requests
        folder = _json(address.repository, commit.resolved, (wanted, unwanted), token)
        return commit.resolved, folder

    with asking(address.repository, address.revision):
        commit, folder = patiently(ask)
    try:
        tree = get_cached_repo_tree(address.repository, revision=commit)
        sizes = {file.path: file.size for file in tree}
    except CachedRepoTreeNotFoundError:  # offline, with a cache from an older client
        found = (path for path in folder.rglob("*") if path.is_file())
        sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in found}
    return Snapshot(address, commit, folder, sizes)


def _fetch_json(snapshot: Snapshot, token: str | None, folders: list[str]) -> None:
    """Have the JSON files of some folders in the cache."""
    paths = [
        glob.escape(folder + name)
        for folder in folders
        for name in snapshot.names(folder)
        if any(fnmatchcase(name, pattern) for pattern in CONFIGS)
    ]
    repository, commit = snapshot.address.repository, snapshot.commit
    if paths:
        with asking(repository):
            patiently(partial(_json, repository, commit, (paths, []), token))


def _json(
    repository: str, commit: str, patterns: tuple[list[str], list[str]], token: str | None
) -> Path:
    """The folder of a commit in the cache, once files of the first patterns are there."""
    from huggingface_hub import snapshot_download

    download = partial(
        snapshot_download,
        revision=commit,
        allow_patterns=patterns[0],
        ignore_patterns=patterns[1],
        token=token,
        library_name=LIBRARY,
        library_version=__version__,
    )
    return Path(within(FILES_WITHIN, partial(download, repository)))
