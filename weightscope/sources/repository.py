"""What a commit of a hub repository holds, and which of its files are the model that is meant."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from weightscope.errors import CheckpointError
from weightscope.sources.address import HubAddress
from weightscope.sources.choice import (
    INDEX_SUFFIXES,
    SUFFIXES,
    Choice,
    Format,
    choose,
    index_format,
    is_training_state,
    remarks,
    weights_in,
    why_none,
)
from weightscope.sources.shards import check_listed, index_names, read_json

_WEIGHTS = tuple(suffix for of in (SUFFIXES, INDEX_SUFFIXES) for s in of.values() for suffix in s)
PIPELINE = "model_index.json"


@dataclass(frozen=True)
class Snapshot:
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

    def below(self, inside: str) -> list[str]:
        """Paths of the files below a folder, without it."""
        return [name.removeprefix(inside) for name in self.sizes if name.startswith(inside)]

    def names(self, inside: str) -> list[str]:
        """Names of the files in a folder itself."""
        return [name for name in self.below(inside) if "/" not in name]


@dataclass(frozen=True)
class Model:
    """One model of a repository.

    Attributes:
        component: Its folder in a pipeline; empty for a model of its own.
        inside: The folder its files are in, with a slash; empty for the root.
        format: What they are.
        paths: Where they are in the repository.
        notes: Remarks on others.
    """

    component: str
    inside: str
    format: Format
    paths: tuple[str, ...]
    notes: tuple[str, ...]


def folder_of(path: str) -> str:
    """The folder that an address is about, with its slash; empty for the root."""
    folder = path.rpartition("/")[0] if path.endswith(_WEIGHTS) else path
    return f"{folder}/" if folder else ""


def stem_of(path: str) -> str:
    """The last part of a path, without what the names of weights end in."""
    name = path.rpartition("/")[2]
    return next((name.removesuffix(end) for end in _WEIGHTS[::-1] if name.endswith(end)), name)


def models_in(snapshot: Snapshot, fetch_json: Callable[[list[str]], None]) -> list[Model]:
    """The model that an address means, or those of the pipeline that it means.

    Args:
        snapshot: The commit.
        fetch_json: Has the JSON files of some folders put into the cache.

    Raises:
        CheckpointError: There is none, there are several, or a file is missing.
    """
    path = snapshot.address.path
    inside = folder_of(path)
    place = f"{snapshot.address.repository}/{path}".rstrip("/")
    if path.endswith(_WEIGHTS):
        named = _named(snapshot, place, path.removeprefix(inside))
        one = _model(snapshot, inside, named)
        return [one if named.index else replace(one, notes=())]
    names = snapshot.names(inside)
    if PIPELINE in names:
        found = list(_pipeline(snapshot, inside, fetch_json))
        if found:
            return found
    choice = choose(place, names)
    if choice is None:
        raise CheckpointError(f"{place}: {_why_no_weights(snapshot, inside)}")
    return [_model(snapshot, inside, choice)]


def _named(snapshot: Snapshot, place: str, name: str) -> Choice:
    """The choice of who names a file."""
    if snapshot.address.path not in snapshot.sizes:
        raise CheckpointError(f"{place}: there is no such file")
    if is_training_state(name) or name.endswith(SUFFIXES["distributed"]):
        raise CheckpointError(f"{place}: is no model by itself; name its folder instead")
    form = index_format(name)
    if form is not None:
        return Choice(form, name, (), ())
    kind = next(kind for kind, suffixes in SUFFIXES.items() if name.endswith(suffixes))
    return Choice(kind, "", (name,), ())


def _pipeline(
    snapshot: Snapshot, inside: str, fetch_json: Callable[[list[str]], None]
) -> Iterator[Model]:
    listed = read_json(snapshot.folder / inside / PIPELINE)
    folders = [name for name in sorted(listed) if isinstance(listed[name], list)]
    chosen = {
        name: choose(f"{snapshot.address.repository}/{inside}{name}", names)
        for name in folders
        if _is_plain(name) and (names := snapshot.names(f"{inside}{name}/"))
    }
    fetch_json([f"{inside}{name}/" for name, choice in chosen.items() if choice])
    for name, choice in chosen.items():
        if choice is not None:
            yield _model(snapshot, f"{inside}{name}/", choice, name)


def _is_plain(name: str) -> bool:
    """Whether a component can only be a folder in the repository."""
    return name == Path(name).name and name not in {"", ".", ".."} and not set(name) & {"\\", "\0"}


def _model(snapshot: Snapshot, inside: str, choice: Choice, component: str = "") -> Model:
    names = snapshot.names(inside)
    files = list(choice.files)
    if choice.index:
        files = index_names(snapshot.folder / inside / choice.index)
        place = f"{snapshot.address.repository}/{inside}{choice.index}"
        check_listed(place, files, [name for name in files if name not in names])
    original = bool(weights_in(snapshot.names(f"{inside}original/")))
    notes = remarks(choice, files, names, original)
    if choice.format == "distributed":
        files.append(".metadata")
    paths = tuple(inside + name for name in files)
    return Model(component, inside, choice.format, paths, tuple(notes))


def _why_no_weights(snapshot: Snapshot, inside: str) -> str:
    below = (name.partition("/") for name in snapshot.below(inside))
    folders = sorted({head for head, _, rest in below if weights_in([rest.rpartition("/")[2]])})
    if folders:
        return (
            f"holds no weights itself, but its folder {folders[0]!r} does; name that one: "
            f"hf://{snapshot.address.repository}/{inside}{folders[0]}"
        )
    return why_none(snapshot.names(inside))
