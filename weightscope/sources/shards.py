"""One checkpoint from several files: what an index says, and what their headers say together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightscope.checkpoint import Checkpoint, SourceFile
from weightscope.errors import CheckpointError
from weightscope.formats.safetensors import Header
from weightscope.json_text import TooManyListsError, parsed
from weightscope.tensor import TensorRef
from weightscope.text import shortened

MAX_JSON = 64 << 20
SUFFIX = ".safetensors"
INDEX_SUFFIX = ".safetensors.index.json"


@dataclass(frozen=True)
class Shard:
    """One file and its header.

    Attributes:
        file: How messages name it.
        name: Its name inside the checkpoint.
        header: What it says.
        modified_ns: When it was written; 0 where a commit identifies it.
    """

    file: str
    name: str
    header: Header
    modified_ns: int = 0


def assemble(
    name: str, shards: Iterable[Shard], config: dict[str, Any], notes: Sequence[str]
) -> Checkpoint:
    """A checkpoint from the headers of its files.

    Raises:
        CheckpointError: A tensor lies in two files, or there is none.
    """
    home: dict[str, str] = {}
    tensors: list[TensorRef] = []
    sources = []
    metadata: dict[str, str] = {}
    for shard in shards:
        for ref in shard.header.tensors:
            if ref.name in home:
                raise CheckpointError(
                    f"{shard.file}: tensor {shortened(ref.name)} is also in {home[ref.name]}; "
                    "name one file, or the index that says which files belong together"
                )
            home[ref.name] = shard.name
        tensors += shard.header.tensors
        header = shard.header
        metadata |= header.metadata
        sources.append(SourceFile(shard.name, header.size, header.sha256, shard.modified_ns))
    if not tensors:
        raise CheckpointError(f"{name}: holds no tensors; download or copy it again")
    return Checkpoint(
        name, tuple(tensors), tuple(sources), config, notes=tuple(notes), metadata=metadata
    )


def index_among(names: Iterable[str]) -> str:
    """The index that says which files of a folder belong together; empty where there is none."""
    indexes = sorted(name for name in names if name.endswith(INDEX_SUFFIX))
    usual = "model" + INDEX_SUFFIX
    return usual if usual in indexes else next(iter(indexes), "")


def weights_among(names: Iterable[str]) -> list[str]:
    """Names of visible safetensors files, sorted."""
    return sorted(name for name in names if name.endswith(SUFFIX) and not name.startswith("."))


def strays(index: str, listed: Iterable[str], names: Iterable[str]) -> list[str]:
    """A remark on weights that an index leaves out."""
    left = sorted(set(weights_among(names)) - set(listed))
    if not left:
        return []
    return [f"{index} chooses the files; not in it and not read: {', '.join(left)}"]


def index_names(index: Path) -> list[str]:
    """File names an index lists, sorted; each a plain name in the index's own folder.

    Raises:
        CheckpointError: Not an index, or one that points elsewhere.
    """
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(
            f"{index}: has no weight_map, so it is no index; download or copy it again"
        )
    names = set()
    for name in weight_map.values():
        plain = isinstance(name, str) and name == Path(name).name and not set(name) & {"\\", "\0"}
        if not plain or name in {"", "..", "."}:
            raise CheckpointError(
                f"{index}: points to {shortened(name)}, which is not a plain file name in its "
                "own folder; do not trust this model, or correct the index"
            )
        names.add(name)
    return sorted(names)


def check_listed(index: object, listed: Sequence[str], missing: Sequence[str]) -> None:
    """Refuse an index of which files are missing.

    Raises:
        CheckpointError: Naming the first.
    """
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of {len(listed)} shards are missing, first {missing[0]!r}; "
            "download the rest of the model"
        )


def read_config(path: Path) -> tuple[dict[str, Any], list[str]]:
    """A model's configuration, which may be missing, and a remark where it is broken.

    That of an adapter is kept in it under its own name.
    """
    config, notes = _optional(path)
    adapter, more = _optional(path.with_name("adapter_config.json"))
    return ({**config, "adapter_config": adapter} if adapter else config), [*notes, *more]


def _optional(path: Path) -> tuple[dict[str, Any], list[str]]:
    if not path.is_file():
        return {}, []
    try:
        return read_json(path), []
    except CheckpointError as error:
        return {}, [f"the config was ignored: {error}"]


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of bounded size.

    Raises:
        CheckpointError: Not a file, too large, or no JSON object.
    """
    why = ""
    try:
        if not path.is_file():
            why = "is not a file"
        elif path.stat().st_size > MAX_JSON:
            why = f"is larger than {MAX_JSON >> 20} MiB, so it is no config and no index"
        else:
            found = parsed(path.read_bytes())
            if isinstance(found, dict):
                return found
            why = "is not a JSON object"
    except OSError as error:
        why = f"cannot be read ({error.strerror})"
    except TooManyListsError:
        why = "has too many lists for a config or an index"
    except (ValueError, RecursionError):
        why = "is not valid JSON"
    raise CheckpointError(f"{path}: {why}; download or copy it again")
