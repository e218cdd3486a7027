"""Folders, indexes and links that lead astray."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from checkpoints import gaussian, small_model, write_file, write_index, write_sharded

from hostile.case import Build, Case

INDEX = "model.safetensors.index.json"
SHARD = "model-00002-of-00003.safetensors"
OUTSIDE: dict[str, Any] = {
    "the folder above": "../outside.safetensors",
    "a folder below": "sub/inside.safetensors",
    "an absolute path": "/etc/passwd",
    "a path of Windows": "C:\\outside.safetensors",
    "backslashes": "..\\outside.safetensors",
    "the parent itself": "..",
    "no name": "",
    "a NUL byte": "a\0b.safetensors",
    "a name of 100 kB with a slash": "x" * 100_000 + "/",
    "a number": 7,
    "null": None,
    "a list": ["model.safetensors"],
    "an object": {"file": "model.safetensors"},
}
NO_INDEX: dict[str, tuple[str, str]] = {
    "empty": ("", "not valid JSON"),
    "cut off": ('{"weight_map": {', "not valid JSON"),
    "a list": ("[]", "not a JSON object"),
    "without weight_map": ("{}", "has no weight_map"),
    "weight_map of nothing": ('{"weight_map": {}}', "has no weight_map"),
    "weight_map a list": ('{"weight_map": ["model.safetensors"]}', "has no weight_map"),
    "weight_map a text": ('{"weight_map": "model.safetensors"}', "has no weight_map"),
    "nested 50,000 deep": ('{"weight_map": ' * 50_000, "not valid JSON"),
    "a lone surrogate": ('{"weight_map": {"w": "\\ud800.safetensors"}}', "ud800"),
    "HTML": ("<!DOCTYPE html><html>404</html>", "not valid JSON"),
    "a digit of a million": ('{"weight_map": ' + "9" * 1_000_000 + "}", "not valid JSON"),
    "8 MB of empty lists": ('{"weight_map": [' + "[]," * 2_700_000 + "0]}", "too many"),
}


def _sharded(change: Callable[[Path], None]) -> Build:
    """A good sharded model in which one thing is changed."""

    def build(folder: Path) -> Path:
        write_sharded(folder, small_model(blocks=1, width=16))
        change(folder)
        return folder

    return build


def _index(value: Any) -> Build:
    def build(folder: Path) -> Path:
        write_file(folder.parent / "outside.safetensors", {"w": gaussian(8, 6)})
        write_file(folder / "sub" / "inside.safetensors", {"w": gaussian(8, 6)})
        write_file(folder / "model.safetensors", {"v": gaussian(8, 6)})
        write_index(folder, {"w": value, "v": "model.safetensors"})
        return folder

    return build


def _text(text: str) -> Build:
    def change(folder: Path) -> None:
        (folder / INDEX).write_text(text)

    return _sharded(change)


def _instead(name: str, make: Callable[[Path], object]) -> Build:
    """Something else in the place of a file of a sharded model."""

    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return _sharded(change)


def _link(target: str) -> Callable[[Path], object]:
    return lambda path: path.symlink_to(target)


def _huge(path: Path) -> None:
    with path.open("wb") as stream:
        stream.write(b"{")
        stream.truncate(1 << 34)


def _mode(mode: int) -> Callable[[Path], object]:
    def make(path: Path) -> None:
        write_file(path, {"w": gaussian(8, 6)})
        path.chmod(mode)

    return make


def cases() -> Iterator[Case]:
    """Models of several files."""
    for name, value in OUTSIDE.items():
        far = name in {"the folder above", "an absolute path", "a number"}
        yield Case(f"index: points to {name}", _index(value), "not a plain file name", far=far)
    for name, (text, says) in NO_INDEX.items():
        far = name in {"empty", "HTML", "weight_map a list"}
        yield Case(f"index: is {name}", _text(text), says, far=far)
    yield Case("index: is a file of 16 GiB, sparse", _instead(INDEX, _huge), "larger than")
    yield Case("index: is a pipe", _instead(INDEX, os.mkfifo), "is not a file")
    yield Case("index: is a folder", _instead(INDEX, Path.mkdir), "is not a file")
    yield Case("index: is a link to itself", _instead(INDEX, _link(INDEX)), INDEX)
    yield Case("index: is an endless device", _instead(INDEX, _link("/dev/zero")), "is not a file")
    yield from _shards()
    yield from _folders()


def _shards() -> Iterator[Case]:
    for name, make, says in (
        ("missing", lambda path: None, "1 of 3 shards are missing"),
        ("a pipe", os.mkfifo, "is not a file"),
        ("a folder", Path.mkdir, "is not a file"),
        ("a link to itself", _link(SHARD), "shards are missing"),
        ("a link into nothing", _link("nowhere"), "shards are missing"),
        ("an endless device", _link("/dev/zero"), "is not a file"),
        ("an empty device", _link("/dev/null"), "is not a file"),
        ("closed to its owner", _mode(0), "no permission"),
        ("the index", _link(INDEX), "JSON"),
        ("another shard", _link("model-00001-of-00003.safetensors"), "is also in"),
    ):
        yield Case(f"shard: is {name}", _instead(SHARD, make), says)


def _folder_of_links(folder: Path) -> Path:
    for name in ("checkpoint-1", "unet", "original", "pytorch_model_fsdp_0"):
        (folder / name).symlink_to(folder, target_is_directory=True)
    (folder / "model_index.json").write_text('{"unet": ["diffusers", "X"]}')
    return folder


def _pipeline_outside(folder: Path) -> Path:
    write_file(folder.parent / "x" / "model.safetensors", {"w": gaussian(8, 6)})
    write_file(folder / "unet" / "model.safetensors", {"w": gaussian(8, 6)})
    listed = {name: ["diffusers", "X"] for name in ("../x", "/etc", "unet", "..", "a\0b")}
    (folder / "model_index.json").write_text(json.dumps(listed))
    return folder


def _closed_folder(folder: Path) -> Path:
    write_file(folder / "closed" / "model.safetensors", {"w": gaussian(8, 6)})
    (folder / "closed").chmod(0)
    return folder / "closed"


def _loop(folder: Path) -> Path:
    (folder / "loop").symlink_to(folder / "loop")
    return folder / "loop"


def _directory(folder: Path) -> Path:
    (folder / "x.safetensors").mkdir()
    return folder


def _shrinking(folder: Path) -> Path:
    return write_file(folder / "model.safetensors", small_model(blocks=1, width=64))


def _steering(folder: Path) -> Path:
    path = folder / "m\x1b[31m\n\u202e<b>.safetensors"
    path.write_bytes(b"")
    return path


def _thousands(folder: Path) -> Path:
    for number in range(3000):
        (folder / f"model-{number}.bin").symlink_to("nowhere")
    return folder


def _closed(folder: Path) -> Path:
    _mode(0)(folder / "model.safetensors")
    return folder / "model.safetensors"


def _folders() -> Iterator[Case]:
    for name, build, says in (
        ("file: closed to its owner", _closed, "no permission"),
        ("file: a name that steers a terminal", _steering, "0 bytes"),
        ("folder: empty", lambda folder: folder, "holds no weights"),
        ("folder: named as a file", _directory, "x.safetensors"),
        ("folder: closed to its owner", _closed_folder, "no permission"),
        ("folder: a link to itself", _loop, "loop"),
        ("folder: of links to itself", _folder_of_links, "holds no weights"),
        ("folder: 3000 files that are not there", _thousands, "several models"),
        ("folder: missing", lambda folder: folder / "nothing", "no such file or folder"),
        ("folder: a name of 5000 letters", lambda folder: folder / ("x" * 5000), "too long"),
    ):
        yield Case(name, build, says)
    yield Case("folder: a pipeline that points outside", _pipeline_outside, "unet", code=0)
    yield Case("file: shrinks while it is read", _shrinking, "has shrunk", seen=0, shrinks=20_000)
    yield Case("file: is emptied while it is read", _shrinking, "has shrunk", seen=0, shrinks=0)
