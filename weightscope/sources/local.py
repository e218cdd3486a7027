"""Checkpoints on disk: a file, a folder of files, an index, a pipeline, a folder of a training."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from weightscope.checkpoint import Checkpoint
from weightscope.errors import CheckpointError
from weightscope.formats.safetensors import MAX_HEADER, read_header
from weightscope.sources.choice import (
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
from weightscope.sources.parts import joined, pipeline
from weightscope.sources.sample import sampled_sha256
from weightscope.sources.shards import (
    Shard,
    assemble,
    check_listed,
    index_names,
    read_config,
    read_json,
)
from weightscope.text import count_of

_STEP = re.compile(r"checkpoint-(\d{1,18})")
_OF_THE_TRAINER = "pytorch_model_fsdp_0"
"""Where the Trainer puts a distributed checkpoint."""


def open_local(path: Path) -> Checkpoint:
    """Index a checkpoint on disk; no matrix is read, and no code of it is run.

    Raises:
        CheckpointError: Nothing there, nothing readable, a missing shard, or a broken file.
    """
    try:
        if path.is_dir():
            return _open_folder(path)
        form = index_format(path.name)
        if form and path.is_file():
            return _open_chosen(path.parent, Choice(form, path.name, (), ()))
        if not path.exists():
            hint = "; a hub id has the form org/name" if path.name == str(path) else ""
            raise CheckpointError(f"{path}: no such file or folder{hint}")
        return _open_file(path)
    except PermissionError:
        raise CheckpointError(f"{path}: no permission to read it; check the mode") from None
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); check the disk, or copy it again"
        ) from None


def _open_file(path: Path) -> Checkpoint:
    if path.suffix == ".json":
        raise CheckpointError(f"{path}: not a safetensors index; name the folder instead")
    if path.name == ".metadata" or path.suffix in SUFFIXES["distributed"]:
        raise CheckpointError(
            f"{path}: is one file of a distributed checkpoint; name its folder instead"
        )
    form = _format_of(path)
    if form == "pytorch" and is_training_state(path.name):
        raise CheckpointError(
            f"{path}: is the state of a training, not weights; name its folder instead"
        )
    return read_files(path.stem, path.parent, form, [path], [])


def _format_of(path: Path) -> Format:
    """What a file is: by its name for safetensors, whose reader names disguises; else by bytes."""
    if path.suffix in SUFFIXES["safetensors"] or not path.is_file():
        return "safetensors"
    with path.open("rb") as stream:
        start = stream.read(9)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") <= MAX_HEADER:
        return "safetensors"
    if start.startswith(b"GGUF") or path.suffix in SUFFIXES["gguf"]:
        return "gguf"
    pickled = start.startswith((b"PK\x03\x04", b"\x80")) or path.suffix in SUFFIXES["pytorch"]
    return "pytorch" if pickled else "safetensors"


def _open_folder(folder: Path) -> Checkpoint:
    names = _names_in(folder)
    if {"run.json", "rows.jsonl"} <= set(names):
        raise CheckpointError(
            f"{folder}: is a run folder, not a model; show it with: weightscope report {folder}"
        )
    own = _pipeline(folder, names) or _own_weights(folder, names)
    steps = _steps(folder, names)
    if steps:
        return _of_training(folder, steps, own)
    if own is None:
        raise CheckpointError(f"{folder}: {_why_no_weights(folder, names)}")
    return own


def _of_training(folder: Path, steps: Sequence[str], own: Checkpoint | None) -> Checkpoint:
    """The model of a training's folder: its own, else its last; and how to choose another."""
    of = f"of its {count_of(len(steps), 'checkpoint')} of a training"
    if own is not None:
        which = f"its own weights are read and none {of}"
    else:
        last = folder / steps[-1]
        names = _names_in(last)
        own = _own_weights(last, names)
        if own is None:
            raise CheckpointError(f"{last}: {_why_no_weights(last, names)}")
        which = f"{of} the last is read, {last.name}"
    how = f"name the folder of another, or follow all with: weightscope track {folder}"
    return replace(own, notes=(f"{folder}: {which}; {how}", *own.notes))


def _names_in(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def _steps(folder: Path, names: Iterable[str]) -> list[str]:
    """Folders of a training's checkpoints, in the order of their steps."""
    found = ((int(match[1]), name) for name in names if (match := _STEP.fullmatch(name)))
    return [name for _, name in sorted(found) if (folder / name).is_dir()]


def _own_weights(folder: Path, names: Iterable[str]) -> Checkpoint | None:
    """The model whose files lie in the folder itself."""
    choice = choose(str(folder), names)
    if choice is not None:
        return _open_chosen(folder, choice)
    inside = folder / _OF_THE_TRAINER
    if (inside / ".metadata").is_file():
        return replace(_open_chosen(inside, Choice("distributed", "", (), ())), name=_name(folder))
    return None


def _pipeline(folder: Path, names: Iterable[str]) -> Checkpoint | None:
    """The models of a diffusers pipeline as one, each under the name of its folder."""
    if "model_index.json" not in names:
        return None
    listed = read_json(folder / "model_index.json")
    parts = {}
    for component in sorted(listed):
        inside = folder / component
        if component in names and isinstance(listed[component], list) and inside.is_dir():
            found = _own_weights(inside, _names_in(inside))
            if found is not None:
                parts[component] = found
    if not parts:
        return None
    return pipeline(_name(folder), parts, listed.get("_class_name"), weights_in(names))


def _open_chosen(folder: Path, choice: Choice) -> Checkpoint:
    names = _names_in(folder)
    files = list(choice.files)
    if choice.index:
        files = index_names(folder / choice.index)
        missing = [name for name in files if not (folder / name).exists()]
        check_listed(folder / choice.index, files, missing)
    inside = folder / "original"
    original = inside.is_dir() and bool(weights_in(_names_in(inside)))
    notes = remarks(choice, files, names, original)
    return read_files(
        _name(folder), folder, choice.format, [folder / name for name in files], notes
    )


def _name(folder: Path) -> str:
    return folder.resolve().name


def read_files(
    name: str,
    folder: Path,
    form: Format,
    files: Sequence[Path],
    notes: Sequence[str],
    config_file: Path | None = None,
) -> Checkpoint:
    """One model from files on this machine.

    Args:
        name: Its name.
        folder: Where a distributed checkpoint is.
        form: What the files are.
        files: Where they are.
        notes: Remarks on how they were chosen.
        config_file: Its configuration, where it is not beside them.

    Raises:
        CheckpointError: One of them cannot be read.
    """
    found = _read_files(name, folder, form, files, (notes, config_file or folder / "config.json"))
    place = {path.name: path for path in files}
    sources = tuple(
        replace(source, sample_sha256=sampled_sha256(place.get(source.name, folder / source.name)))
        for source in found.files
    )
    return replace(found, files=sources)


def _read_files(
    name: str,
    folder: Path,
    form: Format,
    files: Sequence[Path],
    beside: tuple[Sequence[str], Path],
) -> Checkpoint:
    notes, config_file = beside
    config, config_notes = read_config(config_file)
    notes = [*notes, *config_notes]
    if form == "safetensors":
        shards = [Shard(str(f), f.name, read_header(f), f.stat().st_mtime_ns) for f in files]
        return assemble(name, shards, config, notes)
    if form == "distributed":
        from weightscope.formats import distributed

        parts = [distributed.index_folder(folder)]
    elif form == "pytorch":
        from weightscope.formats import pytorch

        parts = [pytorch.index_file(file) for file in files]
    else:
        from weightscope.formats import gguf

        parts = [gguf.index_file(file) for file in files]
    return joined(name, parts, config, notes)


def _why_no_weights(folder: Path, names: Sequence[str]) -> str:
    for name in names:
        if (folder / name).is_dir() and weights_in(_names_in(folder / name)):
            return f"holds no weights itself, but its folder {name!r} does; name that one"
    chunks = any(name.endswith(SUFFIXES["distributed"]) for name in names)
    if chunks or ".metadata" in names:
        lacks = "its .metadata" if chunks else "its .distcp files"
        return f"holds a distributed checkpoint without {lacks}; copy the rest of it"
    return why_none(names)
