"""PyTorch files and distributed checkpoints that would run code, blow up, or are none."""

from __future__ import annotations

import argparse
import io
import json
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import Bomb, gaussian, malicious_pickles, write_file, write_index

from hostile.case import Build, Case, sparse, written


def rezipped(raw: bytes, method: int, extra: str = "") -> bytes:
    """An archive packed in another way, perhaps with one more entry."""
    stream = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(raw)) as old,
        zipfile.ZipFile(stream, "w", method) as new,
    ):
        for name in old.namelist():
            new.writestr(name, old.read(name))
        if extra:
            new.writestr(extra, b"")
    return stream.getvalue()


def archive(model: Any, **options: Any) -> bytes:
    """What PyTorch saves."""
    stream = io.BytesIO()
    torch.save(model, stream, **options)
    return stream.getvalue()


def no_pytorch_files() -> Iterator[tuple[str, bytes, str]]:
    good = archive({"w": gaussian(8, 8)})
    yield "empty", b"", "empty"
    yield "one byte", b"\x80", "damaged"
    yield "text", b"Access to this model is restricted.\n" * 9, "damaged, or no PyTorch file"
    yield "HTML", b"<!DOCTYPE html><html><head>", "HTML"
    yield "LFS", b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"
    yield "JSON", b'{"error": "Repository not found"}', "JSON"
    yield "HDF5", b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "HDF5"

    yield "zeros", b"\0" * 5000, "no PyTorch file"
    yield "noise", np.random.default_rng(0).bytes(5000), "no PyTorch file"
    yield "plain pickle", pickle.dumps({"w": [1.0] * 9}, 2), "no PyTorch file"
    yield "plain pickle of arrays", pickle.dumps({"w": np.zeros((2, 2))}, 4), "numpy"
    yield (
        "plain zip",
        rezipped(good, zipfile.ZIP_STORED).replace(b"data.pkl", b"data.txt"),
        "no PyT",
    )
    yield "compressed zip", rezipped(good, zipfile.ZIP_DEFLATED), "compressed"
    yield "TorchScript", rezipped(good, zipfile.ZIP_STORED, "archive/constants.pkl"), "TorchScript"
    yield "start only", good[:40], "truncated"
    yield "half", good[: len(good) // 2], "truncated"
    yield "one byte short", good[:-1], "truncated"
    yield (
        "hyperparameters",
        archive({"w": gaussian(2, 2), "args": argparse.Namespace(lr=1)}),
        ("argparse.Namespace"),
    )


def packed(pickled: bytes, method: int = zipfile.ZIP_STORED, **entries: bytes) -> bytes:
    """An archive as PyTorch writes it, with this pickle and these storages."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", method) as whole:
        whole.writestr("archive/data.pkl", pickled)
        whole.writestr("archive/version", "3\n")
        whole.writestr("archive/byteorder", "little")
        for name, content in entries.items():
            whole.writestr(f"archive/data/{name.removeprefix('_')}", content)
    return stream.getvalue()


def tensor_of(
    shape: tuple[int, ...], stride: tuple[int, ...], count: int, offset: int = 0
) -> bytes:
    """A pickle of one tensor ``w`` that claims these numbers of its storage ``0``."""

    def number(n: int) -> bytes:
        raw = n.to_bytes(10, "little", signed=True)
        return b"\x8a\x0a" + raw

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"((X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpu"
    storage += number(count) + b"tQ"
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n" + storage + number(offset)
    rebuilt += numbers(shape) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"\x80\x02}X\x01\0\0\0w" + rebuilt + b"s."


BYTEARRAY = b"\x80\x02}X\x01\0\0\0wcbuiltins\nbytearray\n\x8a\x05\0\0\0@\0\x85Rs."
"""A pickle that has a bytearray of 2^30 zeros made, of names that PyTorch allows."""


def _quietly(make: Callable[[], Any]) -> bytes:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return archive({"w": make()})


def _sparse_rows() -> bytes:
    return _quietly(lambda: torch.eye(8).to_sparse_csr())


def _quantised() -> bytes:
    return _quietly(lambda: torch.quantize_per_tensor(torch.ones(8, 8), 0.1, 0, torch.qint8))


def _archives() -> dict[str, tuple[bytes | Callable[[], bytes], str]]:
    good = archive({"w": gaussian(8, 8)})
    pickled = zipfile.ZipFile(io.BytesIO(good)).read("archive/data.pkl")
    stored = bytes(256)
    return {
        "sparse rows": (_sparse_rows, "sparse"),
        "no values": (archive({"w": torch.zeros(8, 8, device="meta")}), "meta device"),
        "quantised tensors": (_quantised, "qint8"),
        "compressed 1000 to 1": (
            lambda: packed(pickled, zipfile.ZIP_DEFLATED, _0=bytes(64 << 20)),
            "compressed",
        ),
        "pickle compressed 1000 to 1": (
            lambda: packed(bytes(64 << 20), zipfile.ZIP_DEFLATED),
            "compressed",
        ),
        "without its storage": (packed(tensor_of((8, 8), (8, 1), 64)), "damaged"),
        "a storage cut short": (packed(tensor_of((8, 8), (8, 1), 64), _0=bytes(8)), "8 are stored"),
        "a storage of 2^60": (
            packed(tensor_of((8, 8), (8, 1), 2**60), _0=stored),
            "256 are stored",
        ),
        "a storage of minus one": (packed(tensor_of((8, 8), (8, 1), -1), _0=stored), "damaged"),
        "a shape beyond its storage": (
            packed(tensor_of((2**20, 2**20), (2**20, 1), 64), _0=stored),
            "damaged",
        ),
        "a shape of 2^62": (packed(tensor_of((2**62, 4), (4, 1), 64), _0=stored), "damaged"),
        "a negative shape": (packed(tensor_of((-8, 8), (8, 1), 64), _0=stored), "damaged"),
        "a negative stride": (packed(tensor_of((8, 8), (-8, 1), 64), _0=stored), "damaged"),
        "an offset beyond its storage": (
            packed(tensor_of((8, 8), (8, 1), 64, 2**40), _0=stored),
            "damaged",
        ),
        "a negative offset": (packed(tensor_of((8, 8), (8, 1), 64, -8), _0=stored), "damaged"),
        "repeated beyond its file": (
            packed(tensor_of((2**20, 2**20), (0, 0), 64), _0=stored),
            "claims",
        ),
        "a bytearray of a gibibyte": (packed(BYTEARRAY), "bytearray"),
        "tuples 300,000 deep": (packed(b"\x80\x02}(N" + b"\x85" * 300_000 + b"K\x01u."), "deep"),
        "lists 300,000 deep": (packed(b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b"."), ""),
        "a memo of 2^32": (packed(b"\x80\x02Nr\xff\xff\xff\xff."), ""),
        "a text of 2^63": (packed(b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f."), ""),
        "a pickle without an end": (packed(b"\x80\x02}"), "damaged"),
        "a persistent id of nothing": (packed(b"\x80\x02NQ."), "damaged"),
        "the dictionary as its own value": (packed(b"\x80\x02}q\0X\1\0\0\0wh\0s."), "no weights"),
    }


def _traversal(folder: Path) -> Path:
    """Entries whose names climb out; reading a file must never write one."""
    path = folder / "model.pt"
    path.write_bytes(archive({"w": gaussian(8, 8)}))
    with zipfile.ZipFile(path, "a") as whole:
        for name in ("../../evil", "/tmp/evil", "archive/../../../evil", "a\nb", "c:\\evil"):
            whole.writestr(name, b"evil")
    return path


def _thousands_of_entries(folder: Path) -> Path:
    path = folder / "model.pt"
    path.write_bytes(archive({"w": gaussian(8, 8)}))
    with zipfile.ZipFile(path, "a") as whole:
        for number in range(20_000):
            whole.writestr(f"archive/data/x{number}", b"")
    return path


def _huge_listing(folder: Path) -> Path:
    """An archive whose pickle has 8 GiB of zeros that take no room on the disk."""
    small = io.BytesIO()
    with zipfile.ZipFile(small, "w") as whole:
        whole.writestr("archive/data.pkl", b"")
    raw, size = small.getvalue(), 8 << 30
    start, end = raw.index(b"PK\x01\x02"), raw.index(b"PK\x05\x06")
    extra = (1).to_bytes(2, "little") + (16).to_bytes(2, "little") + size.to_bytes(8, "little") * 2
    central = bytearray(raw[start:end])
    central[20:28] = b"\xff" * 8
    central[30:32] = len(extra).to_bytes(2, "little")
    central += extra
    place = start + size
    record = b"PK\x06\x06" + (44).to_bytes(8, "little") + b"\x2d\0\x2d\0" + bytes(8)
    record += (1).to_bytes(8, "little") * 2 + len(central).to_bytes(8, "little")
    record += place.to_bytes(8, "little")
    locator = b"PK\x06\x07" + bytes(4) + (place + len(central)).to_bytes(8, "little")
    locator += (1).to_bytes(4, "little")
    ending = b"PK\x05\x06" + bytes(4) + b"\1\0\1\0" + b"\xff" * 8 + bytes(2)
    path = folder / "model.pt"
    with path.open("wb") as stream:
        stream.write(raw[:start])
        stream.seek(place)
        stream.write(bytes(central) + record + locator + ending)
    return path


def _legacy(count: int) -> bytes:
    """The format before PyTorch 1.6, whose storage claims a number of entries."""
    raw = archive({"w": torch.zeros(8, 8)}, _use_new_zipfile_serialization=False)
    record = (64).to_bytes(8, "little") + bytes(8)
    raw = raw.replace(b"K@", b"\x8a\x0a" + count.to_bytes(10, "little", signed=True))
    return raw.replace(record, (count % 2**64).to_bytes(8, "little") + bytes(8))


def _distributed(change: Callable[[Any], Any]) -> Build:
    def build(folder: Path) -> Path:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.save({"w": gaussian(8, 6)}, checkpoint_id=folder)
        path = folder / ".metadata"
        metadata = pickle.loads(path.read_bytes())
        change(metadata)
        path.write_bytes(pickle.dumps(metadata))
        return folder

    return build


def _place(metadata: Any) -> Any:
    return next(iter(metadata.storage_data.values()))


def _listed(metadata: Any) -> Any:
    return next(iter(metadata.state_dict_metadata.values()))


def _malicious() -> Iterator[Case]:
    """One pickle that creates a file, wherever a program may be made to open it."""

    def at(name: str, kind: str, model: str = "") -> Build:
        def build(folder: Path) -> Path:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(malicious_pickles(folder / "executed")[kind])
            return folder / model if model else path

        return build

    whole, bare = "torch.save", "protocol 4"
    for name, build, says in (
        (".pt", at("model.pt", whole), "pathlib"),
        (".bin", at("pytorch_model.bin", whole), "pathlib"),
        (".pth, a bare pickle", at("model.pth", bare), "pathlib"),
        (".ckpt, a pickle of protocol 0", at("last.ckpt", "protocol 0"), "pathlib"),
        (".safetensors", at("model.safetensors", whole), "zip archive"),
        (".safetensors, a bare pickle", at("model.safetensors", bare), "never opened"),
        (".gguf", at("model.gguf", bare), "does not begin with GGUF"),
        ("a name without an ending", at("weights", whole), "pathlib"),
        ("a folder", at("x/pytorch_model.bin", whole, "x"), "pathlib"),
        ("the folder of a training", at("checkpoint-5/pytorch_model.bin", bare, "."), "pathlib"),
        (".metadata", _metadata_of_code, "posix.system"),
        ("an optimizer's state", at("optimizer.pt", whole), "state of a training"),
        ("a training dictionary", _training, "pathlib"),
        ("an index that calls it a shard", _shard_of_code, "zip archive"),
        ("a pipeline", _pipeline, "pathlib"),
    ):
        yield Case(f"code in {name}", build, says)
    yield Case("code in a chunk", _chunk_of_code, "pathlib", seen=0)
    yield Case("code beside the weights", _code_beside, "w", code=0)


def _metadata_of_code(folder: Path) -> Path:
    (folder / "__0_0.distcp").write_bytes(b"")
    touch = f"touch {folder / 'executed'}".encode()
    (folder / ".metadata").write_bytes(b"cposix\nsystem\n(V" + touch + b"\ntR.")
    return folder


def _training(folder: Path) -> Path:
    state = {"model": {"w": gaussian(8, 8)}, "hook": Bomb(folder / "executed")}
    torch.save(state, folder / "last.ckpt")
    return folder / "last.ckpt"


def _shard_of_code(folder: Path) -> Path:
    (folder / "a.safetensors").write_bytes(malicious_pickles(folder / "executed")["torch.save"])
    write_index(folder, {"w": "a.safetensors"})
    return folder


def _pipeline(folder: Path) -> Path:
    (folder / "unet").mkdir()
    content = malicious_pickles(folder / "executed")["torch.save"]
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(content)
    (folder / "model_index.json").write_text('{"unet": ["diffusers", "X"]}')
    return folder


def _chunk_of_code(folder: Path) -> Path:
    code = malicious_pickles(folder / "executed")["torch.save"]

    def change(metadata: Any) -> None:
        _place(metadata).offset, _place(metadata).length = 0, len(code)

    _distributed(change)(folder)
    (folder / "__0_0.distcp").write_bytes(code)
    return folder


def _code_beside(folder: Path) -> Path:
    write_file(folder / "model.safetensors", {"w": gaussian(8, 8)})
    for number, content in enumerate(malicious_pickles(folder / "executed").values()):
        (folder / f"optimizer-{number}.pt").write_bytes(content)
        (folder / f"model-{number}.bin").write_bytes(content)
    (folder / "evil.py").write_text(f"open({str(folder / 'executed')!r}, 'w')")
    config = {"model_type": "evil", "auto_map": {"AutoConfig": "evil.Config"}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def cases() -> Iterator[Case]:
    """Files of PyTorch, and what is called so."""
    yield from _malicious()
    for name, content, says in no_pytorch_files():
        yield Case(f"PyTorch: {name}", written(content, "pytorch_model.bin"), says)
    for name, (content, says) in _archives().items():
        yield Case(f"archive: {name}", written(content, "model.pt"), says)
    yield Case("archive: entries that climb out", _traversal, "damaged")
    yield Case("archive: 20,000 entries", _thousands_of_entries, "w", code=0)
    yield Case("archive: a pickle of 8 GiB, sparse", _huge_listing, "more than 100000000")
    for name, count in {"2^34": 2**34, "2^60": 2**60, "minus one": -1, "one": 1}.items():
        yield Case(
            f"before 1.6: a storage of {name}",
            written(partial(_legacy, count), "old.pth"),
            "damaged",
        )
    yield Case("before 1.6: a bytearray of a gibibyte", written(BYTEARRAY, "old.pth"), "bytearray")
    yield Case("before 1.6: zeros, sparse", sparse(b"\x80\x02", 1 << 34, "old.pth"), "damaged")
    for name, change, says in (
        ("a chunk outside", lambda m: setattr(_place(m), "relative_path", "../x"), "plain file"),
        ("a chunk elsewhere", lambda m: setattr(_place(m), "relative_path", "/etc/group"), "plain"),
        ("a chunk of minus one", lambda m: setattr(_place(m), "offset", -1), "no counts"),
        ("a chunk of 2^62", lambda m: setattr(_place(m), "length", 2**62), "truncated"),
        ("a tensor of 2^40", lambda m: setattr(_listed(m), "size", torch.Size((2**20, 2**20))),
         "do not make it up"),
        ("tensors without chunks", lambda m: m.storage_data.clear(), "damaged"),
        ("an unknown dtype", lambda m: setattr(_listed(m).properties, "dtype", torch.qint8),
         "qint8"),
    ):  # fmt: skip
        yield Case(f"distributed: {name}", _distributed(change), says)
    zeros = sparse(b"\x80\x02", 1 << 34, ".metadata")

    def beside_a_chunk(folder: Path) -> Path:
        (folder / "__0_0.distcp").write_bytes(b"")
        return zeros(folder).parent

    yield Case("distributed: metadata of 16 GiB, sparse", beside_a_chunk, "larger than 512 MiB")
