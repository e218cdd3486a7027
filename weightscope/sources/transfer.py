"""Whole files of a hub model: into its ordinary cache, or into a folder."""

from __future__ import annotations

import shutil
from pathlib import Path

from weightscope.checkpoint import Remote
from weightscope.errors import CheckpointError
from weightscope.sources.client import LIBRARY, asking, patiently
from weightscope.sources.ranges import Ranges, UnreachableError
from weightscope.text import scaled
from weightscope.version import __version__

LATER = "a saved run goes on later with --resume"


def into_cache(remote: Remote, uri: str) -> Path:
    """Have a file in the hub's cache.

    Raises:
        CheckpointError: It cannot be fetched.
    """
    from huggingface_hub import hf_hub_download

    def download() -> str:
        return hf_hub_download(
            remote.repository,
            remote.path(uri),
            revision=remote.commit,
            token=remote.token,
            library_name=LIBRARY,
            library_version=__version__,
        )

    try:
        with asking(uri):
            return Path(patiently(download))
    except CheckpointError as error:
        raise CheckpointError(f"{error}; {LATER}") from None


def into_file(ranges: Ranges, remote: Remote, uri: str, target: Path) -> Path:
    """Put a whole file where it is wanted; its folder is there.

    Raises:
        CheckpointError: It cannot be fetched, or there is no room for it.
    """
    path = remote.path(uri)
    _check_room(uri, remote.sizes[path], target.parent)
    try:
        with target.open("wb", buffering=1 << 20) as file:
            for piece in ranges.read(path, 0, remote.sizes[path]):
                file.write(piece)
    except UnreachableError as error:
        raise CheckpointError(f"{uri}: could not be fetched ({error}); {LATER}") from None
    except OSError as error:
        raise CheckpointError(f"{target}: cannot be written ({error.strerror})") from None
    return target


def _check_room(uri: str, size: int, folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < size:
        needed, there = scaled(size, "B", 1024), scaled(free, "B", 1024)
        raise CheckpointError(
            f"{uri}: needs {needed} in {folder.parent}, where {there} are free; set TMPDIR to a "
            "larger disk, or use --fetch stream where that is possible"
        )
