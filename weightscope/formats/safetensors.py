"""The safetensors format: a strict header parser, and positioned reads of tensor bytes.

The header is parsed here rather than by the library so that a broken file is explained in one
sentence, nothing is mapped into memory (a file that shrinks cannot kill the process), and torch is
not needed to look inside a checkpoint. The rules are those of the reference implementation; two
are stricter: a tensor name may appear only once, and names must be valid Unicode.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from weightscope.errors import CheckpointError
from weightscope.tensor import DTYPES, TensorRef
from weightscope.text import shortened

if TYPE_CHECKING:
    import torch

MAX_HEADER = 100_000_000
_READ_AT_ONCE = 64 << 20

_DISGUISES = (
    (b"version https://git-lfs", "a git-LFS pointer, not the weights", "run: git lfs pull"),
    (b"GGUF", "a GGUF file", "convert it to safetensors first"),
    (b"PK\x03\x04", "a zip archive or PyTorch pickle", "convert it to safetensors first"),
    (b"\x80\x02", "a Python pickle, which is never opened", "convert it to safetensors first"),
    (b"\x80\x03", "a Python pickle, which is never opened", "convert it to safetensors first"),
    (b"\x80\x04", "a Python pickle, which is never opened", "convert it to safetensors first"),
    (b"\x80\x05", "a Python pickle, which is never opened", "convert it to safetensors first"),
    (b"\x89HDF", "an HDF5 file", "convert it to safetensors first"),
    (b"<", "an HTML or XML page (an error page saved as a file?)", "download it again"),
    (b"{", "a JSON text", "name the folder or the .safetensors file instead"),
)


@dataclass(frozen=True)
class Header:
    """What the header of one file says.

    Attributes:
        tensors: Every tensor, in file order.
        sha256: Hash of the header bytes.
        size: Bytes of the whole file.
    """

    tensors: tuple[TensorRef, ...]
    sha256: str
    size: int


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; no tensor byte is read.

    Raises:
        CheckpointError: Not a safetensors file, or one whose header lies.
    """
    with _opened(path) as descriptor:
        size = os.fstat(descriptor).st_size
        raw = _header_bytes(path, descriptor, size)
    entries = _parse_json(path, raw)
    _check_metadata(path, entries.pop("__metadata__", None))
    refs = [_tensor(path, name, entry, 8 + len(raw)) for name, entry in entries.items()]
    refs.sort(key=lambda ref: (ref.start, ref.stop, ref.name))
    _check_offsets(path, refs, 8 + len(raw), size)
    return Header(tuple(refs), hashlib.sha256(raw).hexdigest(), size)


def read_tensor(ref: TensorRef, part: int | None = None) -> torch.Tensor:
    """Read a tensor, or one index of its first dimension, on the CPU in its stored dtype.

    Raises:
        CheckpointError: The file is gone, shorter than its header said, or not readable.
    """
    import torch

    shape = ref.shape if part is None else ref.shape[1:]
    nbytes = ref.nbytes if part is None else ref.nbytes // ref.shape[0]
    start = ref.start + (0 if part is None else part * nbytes)
    buffer = torch.empty(nbytes, dtype=torch.uint8)
    if nbytes:
        with _opened(Path(ref.file)) as descriptor:
            _fill(descriptor, memoryview(buffer.numpy().data), start, ref)
    return buffer.view(getattr(torch, DTYPES[ref.dtype].torch)).reshape(shape)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0) | _NONBLOCK)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except PermissionError:
        raise CheckpointError(f"{path}: no permission to read it; check the file's mode") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be opened ({error.strerror})") from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # a named pipe must not hang the program


def _fill(descriptor: int, view: memoryview, start: int, ref: TensorRef) -> None:
    done = 0
    while done < len(view):
        piece = view[done : done + _READ_AT_ONCE]
        try:
            count = os.preadv(descriptor, [piece], start + done)
        except OSError as error:
            raise CheckpointError(
                f"{ref.file}: reading tensor {shortened(ref.name)} failed ({error.strerror})"
            ) from None
        if not count:
            raise CheckpointError(
                f"{ref.file}: the file ends inside tensor {shortened(ref.name)}; it has shrunk "
                "since its header was read, download or copy it again"
            )
        done += count


def _header_bytes(path: Path, descriptor: int, size: int) -> bytes:
    try:
        start = os.pread(descriptor, 32, 0)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from None
    length = int.from_bytes(start[:8], "little")
    plausible = len(start) > 8 and length <= MAX_HEADER and 8 + length <= size
    if not (plausible and start[8:9] == b"{"):
        _check_disguise(path, start)
    if size < 8:
        _refuse(path, f"it has {size} bytes, too few for a header")
    if length > MAX_HEADER:
        _refuse(path, f"its header claims {length} bytes, more than {MAX_HEADER}")
    if 8 + length > size:
        _refuse(path, f"its header claims {length} bytes but the file has {size}; it is truncated")
    raw = os.pread(descriptor, length, 8)
    if len(raw) != length:
        _refuse(path, "its header could not be read whole")
    return raw


def _check_disguise(path: Path, start: bytes) -> None:
    """Name what a file is that is no safetensors file."""
    for magic, what, advice in _DISGUISES:
        if start.startswith(magic):
            raise CheckpointError(f"{path}: is {what}; {advice}")


def _refuse(path: Path, why: str) -> NoReturn:
    raise CheckpointError(f"{path}: not a valid safetensors file: {why}")


def _parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                _refuse(path, f"the name {shortened(name)} appears twice in its header")
            found[name] = value
        return found

    def no_constant(text: str) -> NoReturn:
        raise ValueError(text)

    def integer(text: str) -> int:
        if text == "-0":
            raise ValueError(text)
        return int(text)

    if not raw.startswith(b"{"):
        _refuse(path, "its header is not a JSON object")
    try:
        entries = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=unique,
            parse_constant=no_constant,
            parse_int=integer,
        )
    except UnicodeDecodeError:
        _refuse(path, "its header is not UTF-8")
    except RecursionError:
        _refuse(path, "its header is nested too deeply")
    except ValueError:
        _refuse(path, "its header is not valid JSON")
    if not isinstance(entries, dict):
        _refuse(path, "its header is not a JSON object")
    return entries


def _check_metadata(path: Path, metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) and _is_unicode(key) and _is_unicode(value)
        for key, value in metadata.items()
    ):
        _refuse(path, "its __metadata__ is not a table of strings")


def _is_unicode(text: str) -> bool:
    """Whether text has no lone surrogates, which JSON can smuggle in."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _fits(shape: list[int]) -> bool:
    """Whether no product of leading dimensions leaves 64 bits, as the reference demands."""
    total = 1
    for n in shape:
        total *= n
        if total >= 2**64:
            return False
    return True


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


def _tensor(path: Path, name: str, entry: Any, base: int) -> TensorRef:
    label = shortened(name)
    if not _is_unicode(name):
        _refuse(path, f"the tensor name {label} is not valid Unicode")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(path, f"the entry of tensor {label} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        _refuse(path, f"tensor {label} has the unknown dtype {shortened(dtype)}")
    if not isinstance(shape, list) or not all(_is_count(n) for n in shape) or not _fits(shape):
        _refuse(path, f"tensor {label} has the impossible shape {shortened(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(n) for n in offsets):
        _refuse(path, f"tensor {label} has the impossible offsets {shortened(offsets)}")
    start, stop = offsets
    ref = TensorRef(name, tuple(shape), dtype, str(path), base + start, base + stop)
    bits = ref.size * DTYPES[dtype].bits
    if bits % 8 or bits // 8 != stop - start:
        _refuse(
            path,
            f"tensor {label} of shape {shortened(shape)} and dtype {dtype} does not take the "
            f"{stop - start} bytes its offsets give it",
        )
    return ref


def _check_offsets(path: Path, refs: list[TensorRef], base: int, size: int) -> None:
    position = base
    for ref in refs:
        if ref.start != position:
            what = "overlaps the one before it" if ref.start < position else "leaves a hole"
            _refuse(path, f"tensor {shortened(ref.name)} {what}")
        position = ref.stop
    if position > size:
        _refuse(
            path,
            f"it ends after {size} bytes but its tensors need {position}; it is truncated, "
            "download or copy it again",
        )
    if position < size:
        _refuse(path, f"{size - position} bytes at its end belong to no tensor")
