"""Real checkpoints on disk, well-formed and hostile, and the real command line to read them."""

from __future__ import annotations

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save, save_file

import weightscope

Header = Mapping[str, Any]

ODD_NAMES = (
    "line\nbreak",
    "carriage\rreturn",
    "escape\x1b[31mred\x1b]0;title\x07",
    "=cmd|' /C calc'!A0",
    "+1",
    "-1",
    "@SUM(A1)",
    "\ttab",
    "\rreturn",
    "../../etc/passwd",
    "/absolute",
    "C:\\windows",
    "<script>alert(1)</script>",
    "gewicht.\u00e4\u00f6\u00fc.\u6743\u91cd.\U0001f600",
    "separators\u0085\u2028\u2029",
    "right-to-left\u202e",
    "[bold]markup[/bold]",
    'quote"and,comma;semicolon',
    " spaces ",
    "nul\x00byte",
    "",
)
"""Tensor names that some sink or shell would choke on; the format allows every one."""


def environment(**extra: str) -> dict[str, str]:
    """This environment, with the package importable from any folder and one BLAS thread.

    Without the width of the terminal that the tests are run in, or that their runner invents.
    """
    root = str(Path(weightscope.__file__).parent.parent)
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    inherited = {key: v for key, v in os.environ.items() if key not in {"COLUMNS", "LINES"}}
    return {**inherited, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **extra}


def weightscope_command(*arguments: object) -> list[str]:
    """The command line of ``weightscope ARGUMENTS``."""
    return [sys.executable, "-m", "weightscope", *map(str, arguments)]


def run_weightscope(
    *arguments: object, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``weightscope ARGUMENTS`` to its end, in a process of its own."""
    done = subprocess.run(
        weightscope_command(*arguments),
        cwd=cwd,
        env=dict(env or environment()),
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=120,
    )
    # not text=True, which would turn a carriage return in a name into a newline
    texts = (raw.decode("utf-8", "surrogateescape") for raw in (done.stdout, done.stderr))
    return subprocess.CompletedProcess(done.args, done.returncode, *texts)


FORKS = """
import contextlib, io, json, os, sys, tempfile
import weightscope.analysis, weightscope.inspection
from weightscope.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    sys.argv = ["weightscope", "explain"]
    main()
done = []
for command in json.load(sys.stdin):
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            null = os.open(os.devnull, os.O_RDONLY)
            for number, stream in enumerate((null, out.fileno(), err.fileno())):
                os.dup2(stream, number)
            sys.argv = ["weightscope", *command]
            sys.exit(main())
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "surrogateescape"))
        done.append((status, *texts))
print(json.dumps(done))
"""


def run_each(
    commands: Iterable[Sequence[object]], cwd: Path
) -> list[subprocess.CompletedProcess[str]]:
    """Run many commands, each in a process of its own that finds the imports done.

    For errors and quick looks: what takes long or matters for imports is run alone.
    """
    words = [[str(word) for word in command] for command in commands]
    done = subprocess.run(
        [sys.executable, "-c", FORKS],
        input=json.dumps(words),
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    ends = zip(words, json.loads(done.stdout), strict=True)
    return [subprocess.CompletedProcess(command, *end) for command, end in ends]


def raw_safetensors(header: Header | str | bytes, data: bytes = b"", length: int = -1) -> bytes:
    """The bytes of a file with this header, written as it is, under a true or a lying length."""
    if isinstance(header, Mapping):
        header = json.dumps(header)
    if isinstance(header, str):
        header = header.encode("utf-8", "surrogatepass")
    return (len(header) if length < 0 else length).to_bytes(8, "little") + header + data


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    """One tensor of a header."""
    return {
        "dtype": dtype,
        "shape": list(shape) if isinstance(shape, tuple) else shape,
        "data_offsets": list(offsets) if isinstance(offsets, tuple) else offsets,
    }


def gaussian(
    *shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, scale: float = 0.02
) -> torch.Tensor:
    """Independent Gaussian entries."""
    values = np.random.default_rng(seed).standard_normal(shape) * scale
    return torch.from_numpy(values).to(dtype)


def small_model(blocks: int = 2, width: int = 32, seed: int = 0) -> dict[str, torch.Tensor]:
    """A toy transformer's state dict: an embedding, blocks, a norm vector, an integer buffer."""
    shapes = {
        "self_attn.q_proj": (width, width),
        "self_attn.o_proj": (width, width),
        "mlp.up_proj": (2 * width, width),
        "mlp.down_proj": (width, 2 * width),
    }
    tensors = {"model.embed_tokens.weight": gaussian(3 * width, width, seed=seed)}
    for block in range(blocks):
        for place, (part, shape) in enumerate(shapes.items(), 1):
            key = seed + 100 * block + place
            tensors[f"model.layers.{block}.{part}.weight"] = gaussian(*shape, seed=key)
    tensors["model.norm.weight"] = torch.ones(width)
    tensors["model.position_ids"] = torch.arange(width)
    return tensors


def many_matrices(count: int, rows: int, cols: int, seed: int = 0) -> dict[str, torch.Tensor]:
    """A model of equal matrices, one per block."""
    return {
        f"model.layers.{i}.mlp.up_proj.weight": gaussian(rows, cols, seed=seed + i)
        for i in range(count)
    }


def write_file(path: Path, tensors: Mapping[str, torch.Tensor]) -> Path:
    """One safetensors file, by the library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


def write_in_order(path: Path, tensors: Mapping[str, torch.Tensor], order: Sequence[str]) -> Path:
    """One safetensors file whose tensors lie in the given order, which the library's never do."""
    header, data = {}, b""
    for name in order:
        blob = save({"x": tensors[name].contiguous()})
        start = 8 + int.from_bytes(blob[:8], "little")
        fields = json.loads(blob[8:start])["x"]
        raw = blob[start:]
        header[name] = {**fields, "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(raw_safetensors(header, data))
    return path


def write_sharded(
    folder: Path, tensors: Mapping[str, torch.Tensor], shards: int = 3, index: bool = True
) -> Path:
    """A folder of shards as the hub has them, with or without their index; tensors dealt round."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map: dict[str, str] = {}
    for number in range(shards):
        name = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        mine = dict(list(tensors.items())[number::shards])
        write_file(folder / name, mine)
        weight_map |= dict.fromkeys(mine, name)
    if index:
        write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: Any) -> Path:
    """An index file that maps tensors to files of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map}))
    return path


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, marker: Path) -> None:
        """Remember which file to create."""
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        """Run code on load."""
        return Path.touch, (self.marker,)


def malicious_pickles(marker: Path) -> dict[str, bytes]:
    """Pickles that create ``marker`` when opened: bare ones, and PyTorch's zip."""
    found = {
        f"protocol {protocol}": pickle.dumps({"w": Bomb(marker)}, protocol)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    }
    stream = io.BytesIO()
    torch.save({"w": Bomb(marker)}, stream)
    return {**found, "torch.save": stream.getvalue()}


def _zip() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}.")
    return stream.getvalue()


def _entry_with(**fields: Any) -> bytes:
    return raw_safetensors({"w": {**entry(), **fields}}, b"\0" * 4)


def hostile_files() -> Iterator[tuple[str, bytes]]:
    """Files that are no checkpoint whatever their name says, each with what is wrong."""
    good = save({"w": torch.zeros(4, 4), "v": torch.ones(8)})
    start = 8 + int.from_bytes(good[:8], "little")
    two = {"a": entry(offsets=(0, 4)), "b": entry(offsets=(4, 8))}
    yield "empty", b""
    yield "seven bytes", good[:7]
    yield "length alone", good[:8]
    yield "truncated header", good[: start - 5]
    yield "truncated data", good[:-1]
    yield "no data", good[:start]
    yield "trailing byte", good + b"\0"
    yield "trailing mebibyte", good + b"\0" * (1 << 20)
    yield "header length zero", (0).to_bytes(8, "little") + good[8:]
    yield "header length one short", raw_safetensors(two, b"\0" * 8, len(json.dumps(two)) - 1)
    yield "header length one long", raw_safetensors(two, b"\0" * 8, len(json.dumps(two)) + 1)
    yield "header length 2^62", (2**62).to_bytes(8, "little") + good[8:]
    yield "header length 2^64-1", b"\xff" * 8 + good[8:]
    yield "header length over the cap", (100_000_001).to_bytes(8, "little") + good[8:]
    yield "hole", raw_safetensors({**two, "b": entry(offsets=(8, 12))}, b"\0" * 12)
    yield "hole at the start", raw_safetensors({"a": entry(offsets=(4, 8))}, b"\0" * 8)
    yield "overlap", raw_safetensors({**two, "b": entry(offsets=(2, 6))}, b"\0" * 6)
    yield "same bytes twice", raw_safetensors({"a": entry(), "b": entry()}, b"\0" * 4)
    yield "offsets beyond the file", raw_safetensors({"a": entry(offsets=(400, 404))}, b"\0" * 4)
    yield "offsets reversed", _entry_with(data_offsets=[4, 0])
    yield "offsets negative", _entry_with(data_offsets=[-4, 0])
    yield "offsets three", _entry_with(data_offsets=[0, 4, 8])
    yield "offsets one", _entry_with(data_offsets=[4])
    yield "offsets none", raw_safetensors({"w": {"dtype": "F32", "shape": [1]}}, b"\0" * 4)
    yield "offsets text", _entry_with(data_offsets=["0", "4"])
    yield "offsets 2^64", _entry_with(data_offsets=[2**64 - 4, 2**64])
    yield "offsets wrap round", _entry_with(shape=[2**62], data_offsets=[0, 2**64])
    yield "shape lies", _entry_with(shape=[2])
    yield "shape overflows", _entry_with(shape=[2**40, 2**40])
    yield "shape overflows before a zero", _entry_with(shape=[2**40, 2**40, 0], data_offsets=[0, 0])
    yield "shape negative", _entry_with(shape=[-1])
    yield "shape negative twice", _entry_with(shape=[-1, -1])
    yield (
        "shape minus zero",
        raw_safetensors('{"w":{"dtype":"F32","shape":[-0],"data_offsets":[0,0]}}'),
    )
    yield "shape boolean", _entry_with(shape=[True])
    yield "shape float", _entry_with(shape=[1.0])
    yield "shape text", _entry_with(shape=["1"])
    yield "shape null", _entry_with(shape=None)
    yield "shape nested", _entry_with(shape=[[1]])
    yield "shape object", _entry_with(shape={"0": 1})
    yield (
        "shape integer of 5000 digits",
        raw_safetensors(
            '{"w":{"dtype":"F32","shape":[' + "9" * 5000 + '],"data_offsets":[0,4]}}', b"\0" * 4
        ),
    )
    yield "dtype unknown", _entry_with(dtype="F33")
    yield "dtype null", _entry_with(dtype=None)
    yield "dtype list", _entry_with(dtype=["F32"])
    yield "dtype lower case", _entry_with(dtype="f32")
    yield "odd number of half bytes", _entry_with(dtype="F4", shape=[7], data_offsets=[0, 4])
    yield "entry null", raw_safetensors({"w": None})
    yield "entry number", raw_safetensors({"w": 1})
    yield "entry without dtype", raw_safetensors({"w": {"shape": [1], "data_offsets": [0, 4]}})
    yield (
        "name twice",
        raw_safetensors(
            '{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            '"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            b"\0" * 4,
        ),
    )
    yield (
        "name of a lone surrogate",
        raw_safetensors('{"\\ud800":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    )
    yield (
        "name with a raw control character",
        raw_safetensors('{"a\nb":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}', b"\0" * 4),
    )
    yield "metadata not strings", raw_safetensors({"__metadata__": {"step": 1}})
    yield "metadata nested", raw_safetensors({"__metadata__": {"a": {"b": "c"}}})
    yield "metadata list", raw_safetensors({"__metadata__": ["a"]})
    yield "metadata of a lone surrogate", raw_safetensors('{"__metadata__":{"a":"\\ud800"}}')
    yield "metadata key of a lone surrogate", raw_safetensors('{"__metadata__":{"\\ud800":"a"}}')
    yield "not JSON", raw_safetensors("{not json at all}")
    yield "JSON list", raw_safetensors("[1, 2, 3]")
    yield "JSON string", raw_safetensors('"w"')
    yield "JSON cut off", raw_safetensors('{"w":{"dtype":"F32","shape":[1],')
    yield "JSON with trailing comma", raw_safetensors(json.dumps(two)[:-1] + ",}", b"\0" * 8)
    yield "JSON then zeros", raw_safetensors(json.dumps(two) + "\0\0\0\0", b"\0" * 8)
    yield "NaN literal", raw_safetensors('{"w":{"dtype":"F32","shape":[NaN],"data_offsets":[0,4]}}')
    yield (
        "Infinity literal",
        raw_safetensors('{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,Infinity]}}'),
    )
    yield "nesting in an entry", raw_safetensors('{"w":' + "[" * 200_000 + "]" * 200_000 + "}")
    yield "nesting of objects", raw_safetensors('{"a":' * 200_000 + "1" + "}" * 200_000)
    yield "nesting never closed", raw_safetensors('{"w":' + "[" * 500_000)
    yield "bad UTF-8", raw_safetensors(b'{"\xff\xfe":1}')
    yield "surrogate bytes", raw_safetensors('{"\ud800":1}')
    yield "UTF-16", raw_safetensors(json.dumps(two).encode("utf-16-le"), b"\0" * 8)
    yield "byte order mark", raw_safetensors("\ufeff" + json.dumps(two), b"\0" * 8)
    yield (
        "git-LFS pointer",
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:"
            + b"0" * 64
            + b"\nsize 12345\n"
        ),
    )
    yield "HTML page", b"<!DOCTYPE html><html><head><title>404</title></head></html>" * 9
    yield "XML page", b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>"
    yield "JSON file", json.dumps({"error": "Repository not found"}).encode()
    yield "text", b"Access to this model is restricted. Please log in.\n" * 4
    yield "zip", _zip()
    yield "pickle", pickle.dumps({"w": [1.0] * 100}, 2)
    yield "pickle protocol 4", pickle.dumps({"w": [1.0] * 100}, 4)
    yield "GGUF", b"GGUF\x03\0\0\0" + b"\0" * 64
    yield "HDF5", b"\x89HDF\r\n\x1a\n" + b"\0" * 64
    yield "NumPy", b"\x93NUMPY\x01\0v\0{'descr': '<f4'}" + b" " * 100
    yield "gzip", b"\x1f\x8b\x08\0" + b"\0" * 64
    yield "zeros", b"\0" * 4096
    yield "noise", np.random.default_rng(0).bytes(4096)
