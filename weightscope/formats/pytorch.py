"""PyTorch files (.bin, .pt, .pth, .ckpt): tensors mapped from disk, no code of the file is run.

``torch.load`` is called with ``weights_only=True``: its unpickler knows tensors and plain
containers and refuses everything else before it is built. With ``mmap=True`` bytes come from the
disk when they are used; a file that is cut meanwhile kills the process.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch

from weightscope.checkpoint import Checkpoint, SourceFile
from weightscope.errors import CheckpointError
from weightscope.formats.depth import DEEPEST, nests_too_deep
from weightscope.formats.disguises import ENOUGH, check_disguise
from weightscope.formats.memory import refs_of
from weightscope.formats.nested import weights_in
from weightscope.text import shortened

MAX_LISTING = 100_000_000
"""Bytes of the pickle that lists the tensors of a file."""
_SCANNED = 16 << 20
_ZIP = b"PK\x03\x04"
_BYTEARRAY = re.compile(rb"c(__builtin__|builtins)\nbytearray\n")
"""How a pickle names the one thing that PyTorch allows and that takes memory for a mere number."""
_INTERNAL = re.compile(r"^\[enforce fail at [^\]]*\][ .]*")


class Archive(NamedTuple):
    """What the list of contents of an archive says.

    Attributes:
        sha256: Hash of names, sizes, checksums and of the pickle that lists the tensors.
        stored: Bytes of all storages together.
    """

    sha256: str
    stored: int


def index_file(path: Path) -> Checkpoint:
    """Every tensor of a file by name, mapped from disk and read when it is used.

    Raises:
        CheckpointError: No PyTorch file, a damaged one, one that holds code, or no weights.
    """
    source, archive = _checked(path)
    loaded = _loaded(path)
    if isinstance(loaded, torch.Tensor):
        loaded = {path.stem: loaded}
    if not isinstance(loaded, Mapping):
        raise CheckpointError(
            f"{path}: holds a {type(loaded).__name__}, not a dictionary of tensors; save the "
            "model's state_dict()"
        )
    try:
        weights = weights_in(loaded, lambda value: isinstance(value, torch.Tensor))
        if not weights.tensors:
            raise ValueError(_why_no_weights(loaded))
        _check_claims(weights.tensors, source.size, archive)
        refs = refs_of(weights.tensors, str(path))
    except (ValueError, CheckpointError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    whole = () if archive else ("written before PyTorch 1.6, so read whole into memory",)
    notes = tuple(f"{path.name}: {note}" for note in (*whole, *weights.notes))
    memory = {ref.name: weights.tensors[ref.name] for ref in refs}
    return Checkpoint(path.stem, refs, (source,), notes=notes, format="pytorch", memory=memory)


def _why_no_weights(loaded: Mapping[Any, Any]) -> str:
    keys = ", ".join(shortened(k, 40) for k in islice(loaded, 5) if isinstance(k, str))
    what = f"under its keys ({keys})" if keys else "at all"
    return f"holds no weights {what}; save the model's state_dict()"


def _check_claims(tensors: Mapping[str, torch.Tensor], size: int, archive: Archive | None) -> None:
    """Refuse tensors that repeat bytes beyond the size of their file, or take those of others."""
    claims: dict[int, int] = {}
    for name, tensor in tensors.items():
        if archive and tensor.layout == torch.strided and not tensor.is_meta:
            storage = tensor.untyped_storage()
            claims[storage.data_ptr()] = storage.nbytes()
        claimed = tensor.numel() * tensor.element_size()
        if claimed > size:
            raise ValueError(
                f"tensor {shortened(name)} claims {claimed} bytes but the file has {size}; "
                "download or copy it again"
            )
    if archive and sum(claims.values()) > archive.stored:
        raise ValueError(
            f"its tensors claim {sum(claims.values())} bytes but {archive.stored} are stored; "
            "download or copy it again"
        )


def _checked(path: Path) -> tuple[SourceFile, Archive | None]:
    """What identifies a file: its size and a hash of what it lists; and its contents if an archive.

    Raises:
        CheckpointError: It cannot be opened, or is recognisably something else.
    """
    try:
        if not path.is_file():
            raise CheckpointError(f"{path}: is not a file; download or copy it again")
        facts = path.stat()
        with path.open("rb") as stream:
            start = stream.read(ENOUGH)
            check_disguise(str(path), start, "pytorch")
            archive = check_archive(str(path), stream) if start.startswith(_ZIP) else None
            if archive is None:  # the format before PyTorch 1.6, or no PyTorch file
                start += stream.read(_SCANNED)
                _check_listing(str(path), start)
            sha256 = archive.sha256 if archive else hashlib.sha256(start).hexdigest()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); check the disk, or copy it again"
        ) from None
    return SourceFile(path.name, facts.st_size, sha256, facts.st_mtime_ns), archive


def check_archive(place: str, stream: IO[bytes]) -> Archive:
    """Refuse an archive that cannot be mapped or would unpack to more than it is.

    Args:
        place: How messages name it.
        stream: Its bytes.

    Raises:
        CheckpointError: Damaged, compressed, a program, or with too long a listing.
    """
    try:
        entries = zipfile.ZipFile(stream).infolist()
    except Exception:  # of many kinds for a hostile archive
        raise CheckpointError(
            f"{place}: is truncated or damaged (its list of contents cannot be read); download or "
            "copy it again"
        ) from None
    digest, stored = hashlib.sha256(), 0
    for entry in entries:
        if entry.filename.endswith("/constants.pkl"):
            raise CheckpointError(
                f"{place}: is a TorchScript program, which is code; save its state_dict() instead"
            )
        if entry.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(
                f"{place}: is a compressed archive, which PyTorch never writes; unpack it first"
            )
        if "/data/" in entry.filename:
            stored += entry.file_size
        if entry.filename.endswith("/data.pkl"):
            digest.update(_listing(place, stream, entry))
        digest.update(repr((entry.filename, entry.file_size, entry.CRC)).encode())
    return Archive(digest.hexdigest(), stored)


def _listing(place: str, stream: IO[bytes], entry: zipfile.ZipInfo) -> bytes:
    """The pickle that lists the tensors, without a look at its checksum, which may be left out."""
    if entry.file_size > MAX_LISTING:
        raise CheckpointError(
            f"{place}: its list of tensors has {entry.file_size} bytes, more than {MAX_LISTING}; "
            "convert it to safetensors first"
        )
    stream.seek(entry.header_offset)
    header = stream.read(30)
    stream.seek(sum(int.from_bytes(header[at : at + 2], "little") for at in (26, 28)), 1)
    raw = stream.read(entry.file_size)
    _check_listing(place, raw)
    return raw


def _check_listing(place: str, raw: bytes) -> None:
    """Refuse a pickle that would kill the process or take all its memory before it is refused."""
    if _BYTEARRAY.search(raw):
        raise CheckpointError(
            f"{place}: holds a bytearray, which may claim any amount of memory; save the state "
            "dict alone, best as safetensors"
        )
    if nests_too_deep(raw):
        raise CheckpointError(
            f"{place}: its list of tensors nests tuples more than {DEEPEST} deep, so it is no "
            "checkpoint; download or copy it again"
        )


def load_bytes(place: str, raw: bytes | bytearray) -> Any:
    """What an archive in memory holds.

    Args:
        place: How messages name it.
        raw: The archive.

    Raises:
        CheckpointError: Damaged, or more than tensors and plain containers.
    """
    check_archive(place, io.BytesIO(raw))
    with _explained(place, io.BytesIO(raw)):
        return torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)


def _loaded(path: Path) -> Any:
    with _explained(str(path), path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles that it then refuses
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)


@contextmanager
def _explained(place: str, source: Path | io.BytesIO) -> Iterator[None]:
    """Turn what loading an archive raises into one sentence."""
    try:
        yield
    except pickle.UnpicklingError as error:
        names = _culprits(source)
        what = refused(names) if names else f"is {_damaged(error)}"
        raise CheckpointError(f"{place}: {what}") from None
    except OSError as error:
        raise CheckpointError(
            f"{place}: cannot be read ({error.strerror or error}); check the disk, or copy it again"
        ) from None
    except Exception as error:  # of many kinds for a damaged file
        raise CheckpointError(f"{place}: is {_damaged(error)}") from None


def _damaged(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    why = _INTERNAL.sub("", text.splitlines()[0]).partition(". ")[0]
    return f"damaged, or no PyTorch file ({shortened(why)}); download or copy it again"


def refused(names: list[str]) -> str:
    """Why a pickle is not read that names more than tensors."""
    found = shortened(", ".join(names), 160)
    return (
        f"holds more than tensors ({found}), and unpickling that would run code from the file; "
        "save the state dict alone, best as safetensors"
    )


def _culprits(source: Path | io.BytesIO) -> list[str]:
    """What a pickle would import, told from its text alone."""
    with suppress(Exception):  # only for archives that PyTorch wrote
        found = torch.serialization.get_unsafe_globals_in_checkpoint(source)
        if found:
            return sorted(found)
    return sorted(set(_globals_in(source)))


def _globals_in(source: Path | io.BytesIO) -> Iterator[str]:
    """The names in the bare pickles at the start of a file."""
    if isinstance(source, Path):
        with source.open("rb") as stream:
            source = io.BytesIO(stream.read(_SCANNED))
    words, memo = ["?", "?"], list[str]()
    with suppress(Exception):  # the end, or what is no pickle any more
        while True:
            for opcode, argument, _ in pickletools.genops(source):
                if opcode.name in {"GLOBAL", "INST"}:
                    yield str(argument).replace(" ", ".")
                elif opcode.name == "STACK_GLOBAL":
                    yield ".".join(words[-2:])
                elif opcode.name == "MEMOIZE":
                    memo.append(words[-1])
                elif opcode.name in {"BINGET", "LONG_BINGET"}:
                    words.append(memo[argument or 0])
                else:
                    words.append(argument if isinstance(argument, str) else "?")
