"""Models on the hub, through the ordinary cache of huggingface_hub."""

from __future__ import annotations

import glob
import re
import sys
from dataclasses import replace
from pathlib import Path

from weightscope.checkpoint import Checkpoint
from weightscope.errors import CheckpointError
from weightscope.sources.local import INDEX_SUFFIX, index_names, open_local

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_NOT_REMOTE = (
    ".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".weightscope",
)  # fmt: skip


def is_hub_id(text: str) -> bool:
    """Whether a name that is no local path reads as ``org/name`` or ``org/name@revision``."""
    return bool(_ID.fullmatch(text)) and not text.endswith(_NOT_REMOTE)


def open_hub(text: str) -> Checkpoint:
    """Index a hub model, downloading safetensors and JSON files that the cache lacks.

    Raises:
        CheckpointError: The model, revision or its files cannot be had.
    """
    repository, _, revision = text.partition("@")
    folder = _downloaded(repository, revision or None)
    checkpoint = open_local(folder)
    # content-addressed by commit: times in a cache say nothing about the weights
    files = tuple(replace(file, modified_ns=0) for file in checkpoint.files)
    note = f"{repository} at commit {folder.name}, from the hub's local cache"
    return replace(
        checkpoint,
        name=repository.rpartition("/")[2],
        files=files,
        revision=f"{repository}@{folder.name}",
        notes=(note, *checkpoint.notes),
    )


def _downloaded(repository: str, revision: str | None) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    if not sys.stderr.isatty():
        disable_progress_bars()

    def fetch(wanted: str | None, patterns: list[str]) -> Path:
        # subfolders hold other formats and other models
        return Path(
            snapshot_download(
                repository,
                revision=wanted,
                allow_patterns=patterns,
                ignore_patterns=["*/*"],
                library_name="weightscope",
            )
        )

    try:
        folder = fetch(revision, ["*.json"])
        # by commit from here on: a branch may move between two requests
        return fetch(folder.name, [*_weight_patterns(folder), "*.json"])
    except hub.GatedRepoError:
        why = "is gated: accept its conditions on the hub, then log in with: hf auth login"
    except hub.RepositoryNotFoundError:
        why = "is not on the hub, or is private: check the name, or log in with: hf auth login"
    except hub.RevisionNotFoundError:
        why = f"has no revision {revision!r} on the hub"
    except (hub.LocalEntryNotFoundError, hub.OfflineModeIsEnabled):
        why = (
            "is no local path and not in the local cache, and the hub cannot be reached or "
            "offline mode is on"
        )
    except hub.HFValidationError as error:
        why = f"is neither a local path nor a hub id ({error})"
    except (hub.HfHubHTTPError, hub.HTTPError, OSError) as error:  # type: ignore[attr-defined]
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        why = f"could not be fetched from the hub ({first})"
    raise CheckpointError(f"{repository}: {why}")


def _weight_patterns(folder: Path) -> list[str]:
    index = folder / ("model" + INDEX_SUFFIX)
    return (
        [glob.escape(name) for name in index_names(index)] if index.exists() else ["*.safetensors"]
    )
