"""Checkpoints on disk: a safetensors file, a folder of shards, or an index file."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from weightscope.checkpoint import Checkpoint, SourceFile
from weightscope.errors import CheckpointError
from weightscope.formats.safetensors import read_header
from weightscope.tensor import TensorRef
from weightscope.text import shortened

MAX_JSON = 64 << 20
INDEX_SUFFIX = ".safetensors.index.json"


def open_local(path: Path) -> Checkpoint:
    """Index a checkpoint on disk from headers alone.

    Raises:
        CheckpointError: Nothing there, nothing readable, a missing shard, or a broken file.
    """
    try:
        if path.is_dir():
            if (path / "run.json").is_file() and (path / "rows.jsonl").is_file():
                raise CheckpointError(
                    f"{path}: is a run folder, not a model; show it with: weightscope report {path}"
                )
            files, notes = _folder_files(path)
            return _index(path.resolve().name, path, files, notes)
        if path.name.endswith(INDEX_SUFFIX) and path.is_file():
            listed = _listed_files(path)
            return _index(path.resolve().parent.name, path.parent, listed, _strays(path, listed))
        if not path.exists():
            hint = "; a hub id has the form org/name" if path.name == str(path) else ""
            raise CheckpointError(f"{path}: no such file or folder{hint}")
    except PermissionError:
        raise CheckpointError(f"{path}: no permission to read it; check the mode") from None
    if path.suffix == ".json":
        raise CheckpointError(f"{path}: not a safetensors index; name the folder instead")
    return _index(path.stem, path.parent, [path], [])


def _folder_files(folder: Path) -> tuple[list[Path], list[str]]:
    indexes = sorted(folder.glob("*" + INDEX_SUFFIX))
    if indexes:
        usual = folder / ("model" + INDEX_SUFFIX)
        chosen = usual if usual in indexes else indexes[0]
        files = _listed_files(chosen)
        return files, _strays(chosen, files)
    files = sorted(
        entry for entry in folder.glob("*.safetensors") if not entry.name.startswith(".")
    )
    if not files:
        raise CheckpointError(f"{folder}: {_why_no_weights(folder)}")
    return files, []


def _why_no_weights(folder: Path) -> str:
    pickles = sorted(p.name for p in folder.iterdir() if p.suffix in {".bin", ".pt", ".pth"})
    if pickles:
        return (
            f"holds no safetensors file, only {pickles[0]!r}, a pickle, which is never opened; "
            "convert the model to safetensors first"
        )
    inside = sorted({p.parent.name for p in folder.glob("*/*.safetensors")})
    if inside:
        return f"holds no safetensors file itself, but its folder {inside[0]!r} does; name that one"
    return "holds no weights (no .safetensors file)"


def _strays(index: Path, listed: list[Path]) -> list[str]:
    strays = sorted(
        p.name for p in index.parent.glob("*.safetensors") if p not in listed and p.name[0] != "."
    )
    if not strays:
        return []
    return [f"{index.name} chooses the files; not in it and not read: {', '.join(strays)}"]


def index_names(index: Path) -> list[str]:
    """File names an index lists, sorted; each a plain name in the index's own folder.

    Raises:
        CheckpointError: Not an index, or one that points elsewhere.
    """
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: has no weight_map; it is not a safetensors index")
    names = set()
    for name in weight_map.values():
        plain = isinstance(name, str) and name == Path(name).name and not set(name) & {"\\", "\0"}
        if not plain or name in {"", "..", "."}:
            raise CheckpointError(
                f"{index}: points to {shortened(name)}, which is not a plain file name in its "
                "own folder"
            )
        names.add(name)
    return sorted(names)


def _listed_files(index: Path) -> list[Path]:
    files = [index.parent / name for name in index_names(index)]
    missing = [file.name for file in files if not file.exists()]
    if missing:
        raise CheckpointError(
            f"{index}: {len(missing)} of {len(files)} shards are missing, first {missing[0]!r}; "
            "download the rest of the model"
        )
    return files


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: is not a file")
        if path.stat().st_size > MAX_JSON:
            raise CheckpointError(
                f"{path}: larger than {MAX_JSON >> 20} MiB, not a config or index"
            )
        parsed = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path}: is not valid JSON") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{path}: is not a JSON object")
    return parsed


def _index(name: str, folder: Path, files: Iterable[Path], notes: list[str]) -> Checkpoint:
    home: dict[str, str] = {}
    tensors: list[TensorRef] = []
    sources = []
    for file in files:
        header = read_header(file)
        for ref in header.tensors:
            if ref.name in home:
                raise CheckpointError(
                    f"{file}: tensor {shortened(ref.name)} is also in {home[ref.name]}; "
                    "name one file, or the index that says which files belong together"
                )
            home[ref.name] = file.name
        tensors += header.tensors
        modified = file.stat().st_mtime_ns
        sources.append(SourceFile(file.name, header.size, header.sha256, modified))
    if not tensors:
        raise CheckpointError(f"{folder / name}: holds no tensors")
    config, config_notes = _config(folder)
    return Checkpoint(name, tuple(tensors), tuple(sources), config, "", (*notes, *config_notes))


def _config(folder: Path) -> tuple[dict[str, Any], list[str]]:
    path = folder / "config.json"
    if not path.is_file():
        return {}, []
    try:
        return _read_json(path), []
    except CheckpointError as error:
        return {}, [f"the config was ignored: {error}"]
