"""The one place that owns output files and standard output."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from weightscope.errors import OutputError
from weightscope.text import printable

STDOUT = "-"
_WEIGHTS = frozenset({".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".distcp"})


def check_target(target: str, force: bool) -> None:
    """Make sure, before any work, that an output can be written.

    Raises:
        OutputError: It exists and ``force`` is not set, it holds weights or is part of a run, or
            its folder does not exist.
    """
    path = Path(target)
    if target == STDOUT:
        return
    if path.is_dir():
        raise OutputError(f"{target or 'the empty name'}: is a folder; give a file name")
    if path.exists() and not path.is_file():
        return  # a device or a pipe: nothing to replace
    if path.exists() and not force:
        raise OutputError(
            f"{target}: exists already; choose another name, or --force to replace it"
        )
    if path.exists() and path.suffix in _WEIGHTS:
        raise OutputError(f"{target}: holds weights by its name, which no output replaces")
    if path.exists() and (path.parent / "run.json").is_file():
        raise OutputError(f"{target}: is part of a run folder; choose another place")
    if not path.parent.is_dir():
        raise OutputError(f"{target}: its folder does not exist")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{target}: its folder is not writable")


def check_folder(target: str, force: bool) -> None:
    """Make sure, before any work, that a folder can be filled.

    Raises:
        OutputError: It is a file, holds something and ``force`` is not set, or cannot be made.
    """
    path = Path(target)
    if target in {STDOUT, ""} or (path.exists() and not path.is_dir()):
        raise OutputError(f"{target or 'the empty name'}: is no folder; give the name of one")
    if path.is_dir() and not force and any(path.iterdir()):
        raise OutputError(
            f"{target}: is not empty; choose another folder, or --force to replace what is written"
        )
    if not path.is_dir() and not path.parent.is_dir():
        raise OutputError(f"{target}: the folder that it would be in does not exist")
    if not os.access(path if path.is_dir() else path.parent, os.W_OK):
        raise OutputError(f"{target}: cannot be written to")


def write_into(folder: str, name: str, data: bytes, force: bool) -> None:
    """Write a file of a folder that is made where it is missing.

    Args:
        folder: As ``check_folder`` has accepted it.
        name: Name of the file, without any folder.
        data: Its content.
        force: Replace it where it exists.

    Raises:
        OutputError: It exists, or cannot be written.
    """
    path = Path(folder) / name
    if path.parent != Path(folder) or (path.exists() and not force):
        raise OutputError(f"{path}: exists already; choose another folder, or --force")
    try:
        Path(folder).mkdir(exist_ok=True)
        replace_file(path, data)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror})") from None


def write_output(target: str, text: str, bom: bool = False) -> None:
    """Write UTF-8 text to a file, whole or not at all, or to standard output.

    Raises:
        OutputError: The file cannot be written.
    """
    if target == STDOUT and sys.stdout.isatty():
        # names are hostile, and a terminal obeys what a file only stores
        text = "\n".join(map(printable, text.split("\n")))
    _write(target, (b"\xef\xbb\xbf" if bom else b"") + text.encode("utf-8", "backslashreplace"))


def write_binary(target: str, data: bytes) -> None:
    """Write bytes to a file, whole or not at all, or to standard output.

    Raises:
        OutputError: The file cannot be written, or standard output is a terminal.
    """
    if target == STDOUT and sys.stdout.isatty():
        raise OutputError("not text, and standard output is a terminal: name a file, or pipe it")
    _write(target, data)


def _write(target: str, data: bytes) -> None:
    if target == STDOUT:
        with writing_stdout():
            sys.stdout.flush()
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
        return
    path = Path(target)
    try:
        if path.exists() and not path.is_file():
            with path.open("wb") as stream:
                stream.write(data)
        else:
            replace_file(path, data)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from None


@contextmanager
def writing_stdout() -> Iterator[None]:
    """Say what is wrong with standard output; a closed pipe is left to the door.

    Raises:
        OutputError: Its device is full or gone.
        BrokenPipeError: The reader has seen enough.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise OutputError(f"standard output: cannot be written ({error.strerror})") from None


def replace_file(path: Path, data: bytes) -> None:
    """Write a file under a temporary name of its own, make sure of it, rename it into place.

    Raises:
        OSError: It cannot be written; nothing is left behind.
    """
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def check_whole_folder(target: Path, force: bool, why_foreign: Callable[[Path], str]) -> None:
    """Make sure, before any work, that a folder can be created or replaced.

    Args:
        target: The folder.
        force: Replace one that is there.
        why_foreign: What makes a folder one that is never replaced; empty where nothing does.

    Raises:
        OutputError: It exists and may not be replaced, or its parent is missing or read-only.
    """
    if target.exists() and (why := why_foreign(target)):
        raise OutputError(f"{target}: {why}, so it is not replaced; choose another name")
    if target.exists() and not force:
        raise OutputError(
            f"{target}: exists already; choose another name, or --force to replace it"
        )
    parent = target.resolve().parent
    if not parent.is_dir():
        raise OutputError(f"{target}: its folder does not exist")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"{target}: its folder is not writable")


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A folder that appears under its name when everything is in it, or not at all.

    It is filled under a hidden name beside it. What a killed process left there is deleted, unless
    that process is still at it.

    Yields:
        The folder to fill, empty.

    Raises:
        OutputError: Another process is filling it, or it cannot be written.
    """
    target = target.resolve()
    building = target.with_name(f".{target.name}.tmp")
    lock = _held(building)
    try:
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir()
        yield building
        _put(building, target)
    except OSError as error:
        raise OutputError(f"{target}: cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(building, ignore_errors=True)
        building.with_suffix(".lock").unlink(missing_ok=True)
        os.close(lock)


def _put(building: Path, target: Path) -> None:
    """Give a finished folder its name; what had it before is deleted afterwards."""
    if not target.exists():
        building.rename(target)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".old", dir=target.parent))
    target.rename(old / target.name)
    building.rename(target)
    shutil.rmtree(old)


def _held(building: Path) -> int:
    """The lock on a folder that is being filled, which a dead process does not keep."""
    try:
        descriptor = os.open(building.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise OutputError(f"{building.parent}: cannot be written ({error.strerror})") from None
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        name = building.name.removeprefix(".").removesuffix(".tmp")
        raise OutputError(f"{name}: another process is writing it; wait for it") from None
    return descriptor


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
