"""The safetensors reader against the reference library, and against files that lie."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    ODD_NAMES,
    entry,
    environment,
    gaussian,
    hostile_files,
    raw_safetensors,
    write_file,
)
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from weightscope.errors import CheckpointError
from weightscope.formats import safetensors as ours
from weightscope.formats.safetensors import read_header, read_tensor
from weightscope.tensor import DTYPES

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
OTHERS = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint64,
    torch.uint32,
    torch.uint16,
    torch.uint8,
    torch.bool,
    torch.complex64,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)
HOSTILE = list(hostile_files())


def raw_bits(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def library_view(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    with safe_open(path, framework="pt") as file:
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
        return {n: (tuple(s.get_shape()), s.get_dtype()) for n, s in slices.items()}


def library_accepts(path: Path) -> bool:
    try:
        with safe_open(path, framework="np"):
            return True
    except SafetensorError:
        return False


def our_view(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    return {ref.name: (ref.shape, ref.dtype) for ref in read_header(path).tensors}


# --- good files ------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", FLOATS + OTHERS, ids=str)
def test_header_agrees_with_the_library_for_every_dtype(tmp_path: Path, dtype: torch.dtype) -> None:
    shapes = [(3, 5), (2, 3, 4), (7,), (), (0, 4), (4, 0), (1, 1, 1, 1, 1)]
    tensors = {f"t{i}": torch.zeros(shape, dtype=dtype) for i, shape in enumerate(shapes)}
    path = write_file(tmp_path / "m.safetensors", tensors)
    assert our_view(path) == library_view(path)
    assert {ref.nbytes for ref in read_header(path).tensors} == {
        t.numel() * t.element_size() for t in tensors.values()
    }


def test_every_dtype_of_the_table_has_the_width_the_library_gives_it(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for dtype in DTYPES.values():
        for nbytes in (dtype.bits, dtype.bits + 1):  # of 8 elements: the true size and a lie
            path.write_bytes(
                raw_safetensors({"w": entry(dtype.code, (8,), (0, nbytes))}, b"\0" * nbytes)
            )
            assert library_accepts(path) == (nbytes == dtype.bits)
            if nbytes == dtype.bits:
                assert our_view(path) == {"w": ((8,), dtype.code)}
            else:
                with pytest.raises(CheckpointError):
                    read_header(path)


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_tensors_are_read_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    width = torch.empty(0, dtype=dtype).element_size()
    bits = torch.randint(0, 256, (6 * 10 * width,), dtype=torch.uint8, generator=generator)
    stored = {
        "any bits, NaN payloads too": bits.view(dtype).reshape(6, 10),
        "b": gaussian(4, 3, 5, dtype=dtype),
        "scalar": torch.tensor(-1.5, dtype=dtype),
        "empty": torch.zeros((0, 3), dtype=dtype),
        "special": torch.tensor([float("nan"), float("inf"), -0.0, 1e-7], dtype=dtype),
    }
    path = write_file(tmp_path / "m.safetensors", stored)
    with safe_open(path, framework="pt") as file:
        for ref in read_header(path).tensors:
            read, expected = read_tensor(ref), file.get_tensor(ref.name)
            assert read.dtype == dtype and read.shape == expected.shape
            assert raw_bits(read) == raw_bits(expected) == raw_bits(stored[ref.name])


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_one_expert_is_read_alone(tmp_path: Path, dtype: torch.dtype) -> None:
    stack = gaussian(5, 6, 7, dtype=dtype)
    path = write_file(tmp_path / "m.safetensors", {"a": gaussian(3, 3), "experts": stack})
    ref = {r.name: r for r in read_header(path).tensors}["experts"]
    with safe_open(path, framework="pt") as file:
        for index in range(5):
            expected = file.get_slice("experts")[index]
            assert raw_bits(read_tensor(ref, index)) == raw_bits(expected)
            assert read_tensor(ref, index).shape == (6, 7)


def test_long_tensors_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ours, "_READ_AT_ONCE", 7)
    stored = gaussian(9, 11)
    path = write_file(tmp_path / "m.safetensors", {"w": stored})
    assert torch.equal(read_tensor(read_header(path).tensors[0]), stored)


@pytest.mark.parametrize("name", [*ODD_NAMES, "x" * 100_000])
def test_odd_names_are_kept_as_stored(tmp_path: Path, name: str) -> None:
    path = write_file(tmp_path / "m.safetensors", {name: gaussian(2, 3), "plain": gaussian(3, 2)})
    refs = {ref.name: ref for ref in read_header(path).tensors}
    assert set(refs) == {name, "plain"} == set(library_view(path))
    assert torch.equal(read_tensor(refs[name]), gaussian(2, 3))


def test_tensors_come_in_file_order(tmp_path: Path) -> None:
    stored = {"z": gaussian(2, 2), "a": gaussian(2, 2, dtype=torch.float16), "m": gaussian(3, 2)}
    path = write_file(tmp_path / "m.safetensors", stored)
    with safe_open(path, framework="pt") as file:
        assert [ref.name for ref in read_header(path).tensors] == file.offset_keys()


def test_size_and_hash_describe_the_file(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    save_file({"w": gaussian(2, 2)}, path, {"note": "\u00fc\n"})
    header = read_header(path)
    assert header.size == path.stat().st_size
    save_file({"w": gaussian(2, 2, seed=1)}, path, {"note": "\u00fc\n"})
    assert read_header(path).sha256 == header.sha256  # of the header, not of the weights
    save_file({"v": gaussian(2, 2)}, path, {"note": "\u00fc\n"})
    assert read_header(path).sha256 != header.sha256


@pytest.mark.parametrize(
    "header", ["{}", "{}   ", '{"__metadata__":null}', '{"__metadata__":{}}', '{"__metadata__":'
               '{"format":"pt"}}']
)  # fmt: skip
def test_a_file_without_tensors_is_well_formed(tmp_path: Path, header: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw_safetensors(header))
    assert library_accepts(path)
    assert read_header(path).tensors == ()


@pytest.mark.parametrize("length", [60, 123, 640, 896, 1152, 1408, 0x3C3C, 0x7B7B, 0x4850])
def test_a_header_length_that_looks_like_a_magic_number_is_only_a_length(
    tmp_path: Path, length: int
) -> None:
    """640 is the bytes 80 02, as a pickle begins; 60 is '<' and 123 is '{'."""
    path = tmp_path / "m.safetensors"
    header = json.dumps({"w": entry()}, separators=(",", ":")).encode().ljust(length)
    path.write_bytes(raw_safetensors(header, b"\0" * 4))
    assert library_accepts(path)
    assert our_view(path) == {"w": ((1,), "F32")}


def test_files_of_any_header_length_are_accepted(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    for length in range(8, 1500):
        path.write_bytes(raw_safetensors(b"{}".ljust(length)))
        assert read_header(path).tensors == ()


# --- hostile files ---------------------------------------------------------------------------


def refused(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    return str(caught.value)


def test_the_hostile_corpus_is_large_and_the_library_refuses_it_too(tmp_path: Path) -> None:
    """Names that appear twice are the one thing that only we refuse."""
    assert len(HOSTILE) >= 80
    path = tmp_path / "m.safetensors"
    accepted = set()
    for label, content in HOSTILE:
        path.write_bytes(content)
        if library_accepts(path):
            accepted.add(label)
    assert accepted == {"name twice"}


@pytest.mark.parametrize(("label", "content"), HOSTILE, ids=[label for label, _ in HOSTILE])
def test_a_hostile_file_is_refused_in_one_sentence_that_names_it(
    tmp_path: Path, label: str, content: bytes
) -> None:
    path = tmp_path / "some model.safetensors"
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message and message.isprintable()
    assert len(message) < len(str(path)) + 300


@pytest.mark.parametrize(
    ("label", "says"),
    [
        ("git-LFS pointer", "git lfs pull"),
        ("HTML page", "HTML"),
        ("XML page", "HTML or XML"),
        ("JSON file", "JSON"),
        ("zip", "zip"),
        ("pickle", "pickle"),
        ("pickle protocol 4", "pickle"),
        ("GGUF", "GGUF"),
        ("HDF5", "HDF5"),
        ("empty", "0 bytes"),
        ("seven bytes", "7 bytes"),
        ("truncated header", "truncated"),
        ("truncated data", "truncated"),
        ("trailing byte", "1 bytes at its end"),
        ("name twice", "twice"),
        ("hole", "hole"),
        ("overlap", "overlaps"),
        ("dtype unknown", "F33"),
        ("bad UTF-8", "UTF-8"),
    ],
)
def test_the_sentence_says_what_is_wrong(tmp_path: Path, label: str, says: str) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(dict(HOSTILE)[label])
    assert says in refused(path)


def test_a_directory_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "m.safetensors"
    folder.mkdir()
    assert refused(folder).startswith(f"{folder}: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert refused(tmp_path / "m.safetensors") == f"{tmp_path / 'm.safetensors'}: no such file"


def test_a_dangling_link_and_a_loop_of_links_are_refused(tmp_path: Path) -> None:
    for name, target in (("dangling", "nowhere"), ("loop", "loop")):
        (tmp_path / name).symlink_to(tmp_path / target)
        assert refused(tmp_path / name).startswith(f"{tmp_path / name}: ")


READ_IT = """
import sys
from pathlib import Path
from weightscope.errors import CheckpointError
from weightscope.formats.safetensors import read_header
try:
    read_header(Path(sys.argv[1]))
except CheckpointError as error:
    print("refused:", error)
"""


def read_in_a_process(path: Path, timeout: float = 60) -> str:
    done = subprocess.run(
        [sys.executable, "-c", READ_IT, path],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_named_pipe_does_not_hang(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    os.mkfifo(path)
    assert read_in_a_process(path).startswith(f"refused: {path}: ")


def test_a_file_without_permission_is_refused_for_that_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_file(tmp_path / "m.safetensors", {"w": gaussian(2, 2)})
    path.chmod(0)
    if os.geteuid() == 0:  # root may read everything: let the kernel's answer come from here

        def denied(*args: Any, **options: Any) -> int:
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr(os, "open", denied)
    assert "permission" in refused(path)


def many_dimensions() -> bytes:
    shape = ",".join(["4611686018427387904"] * 400_000)
    return raw_safetensors(f'{{"w":{{"dtype":"F32","shape":[{shape}],"data_offsets":[0,4]}}}}')


def many_names() -> bytes:
    one = '"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    names = ",".join(one % i for i in [*range(200_000), 199_999])
    return raw_safetensors("{" + names + "}")


@pytest.mark.parametrize("content", [many_dimensions, many_names])
def test_a_large_hostile_header_is_refused_at_once_and_briefly(
    tmp_path: Path, content: Any
) -> None:
    """The limit is no stopwatch: work that is quadratic in the header would take hours."""
    path = tmp_path / "m.safetensors"
    path.write_bytes(content())
    message = read_in_a_process(path)
    assert message.startswith(f"refused: {path}: ")
    assert len(message) < 1000


@pytest.mark.parametrize(
    "header",
    [
        {"n" * 1_000_000: entry(shape=(7,))},
        {"w": entry(dtype="D" * 1_000_000)},
        {"w": entry(shape=[1] * 300_000 + [2])},
        {"w": entry(offsets=[0] * 300_000)},
        {"n" * 1_000_000: entry(), "b": entry(offsets=(0, 4))},
    ],
    ids=["name", "dtype", "shape", "offsets", "overlap"],
)
def test_long_hostile_values_do_not_fill_the_screen(tmp_path: Path, header: Any) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(raw_safetensors(header, b"\0" * 4))
    assert len(refused(path)) < 1000


def test_a_claimed_length_costs_no_memory(tmp_path: Path) -> None:
    """Lying lengths and shapes are refused before anything of their size is allocated."""
    paths = []
    for name, length, size in (("lie", 99_000_000, 1000), ("sparse", 8 << 30, 16 << 30)):
        path = tmp_path / f"{name}.safetensors"
        with path.open("wb") as file:
            file.write(length.to_bytes(8, "little") + b"{" * 100)
            file.truncate(size)
        paths.append(path)
    shape = tmp_path / "shape.safetensors"
    shape.write_bytes(raw_safetensors({"w": entry(shape=(2**30, 2**30), offsets=(0, 2**62))}))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in (*paths, shape):
        refused(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # in KiB


def test_a_file_that_shrinks_after_its_header_was_read_is_explained(tmp_path: Path) -> None:
    path = write_file(tmp_path / "m.safetensors", {"w": gaussian(64, 64)})
    ref = read_header(path).tensors[0]
    with path.open("r+b") as file:
        file.truncate(ref.stop - 100)
    with pytest.raises(CheckpointError) as caught:
        read_tensor(ref)
    assert str(caught.value).startswith(f"{path}: ") and "'w'" in str(caught.value)
    path.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        read_tensor(ref)
