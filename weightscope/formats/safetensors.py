"""The safetensors format: a strict header parser, and positioned reads of tensor bytes.

The header is parsed here rather than by the library so that a broken file is explained in one
sentence, nothing is mapped into memory (a file that shrinks cannot kill the process), and torch is
not needed to look inside a checkpoint. The rules are those of the reference implementation, but
stricter: a name may appear only once in an object, names and metadata must be valid Unicode, a
tensor has at most 64 dimensions, and a header of more than a mebibyte is not made of brackets.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from weightscope.checkpoint import Fill
from weightscope.errors import CheckpointError
from weightscope.json_text import TooManyListsError, parsed
from weightscope.tensor import DTYPES, TensorRef
from weightscope.text import shortened

if TYPE_CHECKING:
    import torch

MAX_HEADER = 100_000_000
MOST_DIMENSIONS = 64
"""As many as PyTorch and NumPy can handle."""
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
        metadata: What its writer added.
    """

    tensors: tuple[TensorRef, ...]
    sha256: str
    size: int
    metadata: Mapping[str, str] = field(default_factory=dict)


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file; no tensor byte is read.

    Raises:
        CheckpointError: Not a safetensors file, or one whose header lies.
    """
    with _opened(path) as descriptor:
        facts = os.fstat(descriptor)
        if not stat.S_ISREG(facts.st_mode):
            raise CheckpointError(f"{path}: is not a file; download or copy it again")

        def read(start: int, count: int) -> bytes:
            return _pread(path, descriptor, start, count)

        return parse_header(str(path), facts.st_size, read)


def parse_header(file: str, size: int, read: Callable[[int, int], bytes]) -> Header:
    """Check the header of a file wherever it is.

    Args:
        file: What the tensors name as their file, and the messages too.
        size: Bytes of the whole file.
        read: Bytes from a position on, as many as asked for unless the file ends.

    Raises:
        CheckpointError: Not a safetensors file, or one whose header lies.
    """
    raw = _header_bytes(file, size, read)
    entries = _parse_json(file, raw)
    metadata = _metadata(file, entries.pop("__metadata__", None))
    refs = [_tensor(file, name, entry, 8 + len(raw)) for name, entry in entries.items()]
    refs.sort(key=lambda ref: (ref.start, ref.stop, ref.name))
    _check_offsets(file, refs, 8 + len(raw), size)
    return Header(tuple(refs), hashlib.sha256(raw).hexdigest(), size, metadata)


def span(ref: TensorRef, part: int | None = None) -> tuple[int, int]:
    """First byte and number of bytes of a tensor, or of one index of its first dimension."""
    nbytes = ref.nbytes if part is None else ref.nbytes // ref.shape[0]
    return ref.start + (0 if part is None else part * nbytes), nbytes


def fill_from_disk(ref: TensorRef, start: int, view: memoryview) -> None:
    """Fill a view with bytes of a tensor's local file, by positioned reads.

    Raises:
        CheckpointError: The file is gone, shorter than its header said, or not readable.
    """
    fill_from_file(Path(ref.file), ref, start, view)


def fill_from_file(path: Path, ref: TensorRef, start: int, view: memoryview) -> None:
    """The same from a copy of the tensor's file."""
    with _opened(path) as descriptor:
        _fill(path, descriptor, view, start, ref)


def read_tensor(
    ref: TensorRef, part: int | None = None, fill: Fill = fill_from_disk
) -> torch.Tensor:
    """Read a tensor, or one index of its first dimension, on the CPU in its stored dtype.

    Raises:
        CheckpointError: Its bytes cannot be had.
    """
    import torch

    start, nbytes = span(ref, part)
    buffer = torch.empty(nbytes, dtype=torch.uint8)
    if nbytes:
        fill(ref, start, memoryview(buffer.numpy().data))
    return _as_stored(buffer, ref, part)


def map_tensor(ref: TensorRef, part: int | None = None) -> torch.Tensor:
    """Map a tensor of a local file, or one index of its first dimension, into memory.

    Pages come from the disk when they are touched, and what is written stays private. A file that
    is cut meanwhile kills the process: reading is the default.

    Raises:
        CheckpointError: The file is gone, shorter than its header said, or cannot be mapped.
    """
    import torch

    start, nbytes = span(ref, part)
    if not nbytes:
        return read_tensor(ref, part)
    skip = start % mmap.ALLOCATIONGRANULARITY
    with _opened(Path(ref.file)) as descriptor:
        if os.fstat(descriptor).st_size < start + nbytes:
            raise CheckpointError(_shrunk(ref.file, ref))
        try:
            area = mmap.mmap(
                descriptor, skip + nbytes, access=mmap.ACCESS_COPY, offset=start - skip
            )
        except OSError as error:
            raise CheckpointError(
                f"{ref.file}: cannot be mapped into memory ({error.strerror}); read it without "
                "--mmap"
            ) from None
    buffer = torch.frombuffer(area, dtype=torch.uint8, offset=skip, count=nbytes)
    if start % max(DTYPES[ref.dtype].bits // 8, 1):
        buffer = buffer.clone()  # torch views aligned bytes only
    return _as_stored(buffer, ref, part)


def _as_stored(buffer: torch.Tensor, ref: TensorRef, part: int | None) -> torch.Tensor:
    import torch

    shape = ref.shape if part is None else ref.shape[1:]
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
        raise CheckpointError(
            f"{path}: cannot be opened ({error.strerror}); check the disk, or copy it again"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


_NONBLOCK = getattr(os, "O_NONBLOCK", 0)  # a named pipe must not hang the program


def _fill(path: Path, descriptor: int, view: memoryview, start: int, ref: TensorRef) -> None:
    done = 0
    while done < len(view):
        piece = view[done : done + _READ_AT_ONCE]
        try:
            count = os.preadv(descriptor, [piece], start + done)
        except OSError as error:
            raise CheckpointError(
                f"{path}: reading tensor {shortened(ref.name)} failed ({error.strerror}); check "
                "the disk, or copy it again"
            ) from None
        if not count:
            raise CheckpointError(_shrunk(path, ref))
        done += count


def _shrunk(path: Path | str, ref: TensorRef) -> str:
    return (
        f"{path}: the file ends inside tensor {shortened(ref.name)}; it has shrunk since its "
        "header was read, download or copy it again"
    )


def _pread(path: Path, descriptor: int, start: int, count: int) -> bytes:
    try:
        return os.pread(descriptor, count, start)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); check the disk, or copy it again"
        ) from None


def _header_bytes(file: str, size: int, read: Callable[[int, int], bytes]) -> bytes:
    start = read(0, 32)
    length = int.from_bytes(start[:8], "little")
    plausible = len(start) > 8 and length <= MAX_HEADER and 8 + length <= size
    if not (plausible and start[8:9] == b"{"):
        _check_disguise(file, start)
    if size < 8:
        _refuse(file, f"it has {size} bytes, too few for a header")
    if length > MAX_HEADER:
        _refuse(file, f"its header claims {length} bytes, more than {MAX_HEADER}")
    if 8 + length > size:
        _refuse(file, f"it is truncated: its header claims {length} bytes but the file has {size}")
    if start[8:9] != b"{" or not length:
        _refuse(file, "its header is not a JSON object")
    raw = read(8, length)
    if len(raw) != length:
        _refuse(file, "its header could not be read whole")
    return raw


def _check_disguise(file: str, start: bytes) -> None:
    """Name what a file is that is no safetensors file."""
    for magic, what, advice in _DISGUISES:
        if start.startswith(magic):
            raise CheckpointError(f"{file}: is {what}; {advice}")


def _refuse(file: str, why: str) -> NoReturn:
    raise CheckpointError(
        f"{file}: not a valid safetensors file: {why}; download it again, or save the model again"
    )


def _parse_json(file: str, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in pairs:
            if name in found:
                _refuse(file, f"the name {shortened(name)} appears twice in its header")
            found[name] = value
        return found

    def no_constant(text: str) -> NoReturn:
        raise ValueError(text)

    def integer(text: str) -> int:
        if text == "-0":
            raise ValueError(text)
        return int(text)

    try:
        entries = parsed(
            raw, object_pairs_hook=unique, parse_constant=no_constant, parse_int=integer
        )
    except TooManyListsError:
        _refuse(file, "its header has too many lists for the tensors that it could hold")
    except UnicodeDecodeError:
        _refuse(file, "its header is not UTF-8")
    except RecursionError:
        _refuse(file, "its header is nested too deeply")
    except ValueError:
        _refuse(file, "its header is not valid JSON")
    found: dict[str, Any] = entries  # it begins with a brace
    return found


def _metadata(file: str, metadata: Any) -> dict[str, str]:
    if metadata is None:
        return {}
    if not isinstance(metadata, dict) or not all(
        isinstance(value, str) and _is_unicode(key) and _is_unicode(value)
        for key, value in metadata.items()
    ):
        _refuse(file, "its __metadata__ is not a table of strings")
    return metadata


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


def _tensor(file: str, name: str, entry: Any, base: int) -> TensorRef:
    label = shortened(name)
    if not _is_unicode(name):
        _refuse(file, f"the tensor name {label} is not valid Unicode")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        _refuse(file, f"the entry of tensor {label} is not dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        _refuse(file, f"tensor {label} has the unknown dtype {shortened(dtype)}")
    if isinstance(shape, list) and len(shape) > MOST_DIMENSIONS:
        _refuse(file, f"tensor {label} has {len(shape)} dimensions, more than {MOST_DIMENSIONS}")
    if not isinstance(shape, list) or not all(_is_count(n) for n in shape) or not _fits(shape):
        _refuse(file, f"tensor {label} has the impossible shape {shortened(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(n) for n in offsets):
        _refuse(file, f"tensor {label} has the impossible offsets {shortened(offsets)}")
    start, stop = offsets
    ref = TensorRef(name, tuple(shape), dtype, file, base + start, base + stop)
    bits = ref.size * DTYPES[dtype].bits
    if bits % 8 or bits // 8 != stop - start:
        _refuse(
            file,
            f"tensor {label} of shape {shortened(shape)} and dtype {dtype} does not take the "
            f"{stop - start} bytes its offsets give it",
        )
    return ref


def _check_offsets(file: str, refs: list[TensorRef], base: int, size: int) -> None:
    position = base
    for ref in refs:
        if ref.start != position:
            what = "overlaps the one before it" if ref.start < position else "leaves a hole"
            _refuse(file, f"tensor {shortened(ref.name)} {what}")
        position = ref.stop
    if position > size:
        _refuse(
            file,
            f"it is truncated: it ends after {size} bytes but its tensors need {position}",
        )
    if position < size:
        _refuse(file, f"{size - position} bytes at its end belong to no tensor")
