"""Files of a run folder, read without trusting them: bounded, regular, and as the schema says."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from weightscope.errors import RunFolderError
from weightscope.json_text import finite
from weightscope.json_types import MisfitError
from weightscope.outputs import replace_file
from weightscope.spectrum import FloatArray, Spectrum

AGAIN = "analyze the model again (--force replaces it)"
_LARGEST_RECORD = 1 << 26
_LONGEST_LINE = 1 << 24
"""Bytes: a hundred times those of the largest models."""
_UNITS = 2.0
"""No peer's units change a spectrum by more."""
_UNREADABLE = (OSError, ValueError, RecursionError)


def broken(path: Path, why: object) -> RunFolderError:
    """What is said of a file that is not what a run has written."""
    return RunFolderError(f"{path}: {why}; {AGAIN}")


def _unreadable(path: Path, error: Exception) -> RunFolderError:
    if isinstance(error, PermissionError):
        return RunFolderError(f"{path}: cannot be read (you lack the permission)")
    return broken(path, f"cannot be read ({_cause(error)})")


def read_object(path: Path) -> dict[str, Any]:
    """The object that a small file holds.

    Raises:
        FileNotFoundError: There is no such file.
        NotADirectoryError: Nor such a folder.
        RunFolderError: It is no regular file, too large, or no object in JSON.
    """
    try:
        with _opened(path) as stream:
            raw = stream.read(_LARGEST_RECORD + 1)
        if len(raw) > _LARGEST_RECORD:
            raise ValueError(f"it is larger than {_LARGEST_RECORD >> 20} MiB")
        record = finite(raw)
    except (FileNotFoundError, NotADirectoryError):
        raise
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None
    if not isinstance(record, dict):
        raise broken(path, "is no object")
    return record


def checked_object(path: Path, check: Callable[[Any], None]) -> dict[str, Any]:
    """The object that a small file holds, as a check takes it.

    Raises:
        RunFolderError: As ``read_object``; there is none, or it is not what it should be.
    """
    try:
        record = read_object(path)
        check(record)
    except (FileNotFoundError, NotADirectoryError):
        raise broken(path, "is missing") from None
    except MisfitError as error:
        raise broken(path, error) from None
    return record


def checked_lines(path: Path, check: Callable[[Any], None]) -> Iterator[tuple[bytes, Any]]:
    """Lines of a file and what they hold, each as a check takes it, no two of one name.

    Raises:
        RunFolderError: It cannot be read, or naming the first line that is not what it should be.
    """
    seen: set[str] = set()
    for place, line, value in _lines(path):
        try:
            if isinstance(value, Exception):
                raise broken(path, f"{place} cannot be read ({_cause(value)})")
            check(value)
        except MisfitError as error:
            raise broken(path, f"{place}: {error}") from None
        if value["name"] in seen:
            raise broken(path, f"{place}: is a second one of {value['name']!r}")
        seen.add(value["name"])
        yield line, value


def sound_lines(path: Path, check: Callable[[Any], None]) -> Iterator[Any]:
    """What the lines of a file hold, as far as a check takes it.

    Raises:
        RunFolderError: It cannot be read at all.
    """
    for _, _, value in _lines(path):
        try:
            check(value)
        except MisfitError:
            continue
        yield value


def _lines(path: Path) -> Iterator[tuple[str, bytes, Any]]:
    """Where each line is, the line, and what it holds, or why it cannot be read."""
    try:
        with _opened(path) as stream:
            number = 0
            while line := stream.readline(_LONGEST_LINE + 1):
                number += 1
                if len(line) > _LONGEST_LINE:
                    raise ValueError(f"line {number} is longer than {_LONGEST_LINE >> 20} MiB")
                if line.strip():
                    yield f"line {number}", line.rstrip(b"\r\n"), _value(line)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from None


def _value(line: bytes) -> Any:
    try:
        return finite(line)
    except (ValueError, RecursionError) as error:
        return error


def _opened(path: Path) -> BinaryIO:
    """A regular file, opened; a pipe would be waited for."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError("it is no file")
    return path.open("rb")


def _cause(error: Exception) -> str:
    """What is wrong, without the path, which is said already."""
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    return str(getattr(error, "strerror", None) or error)


def read_arrays(path: Path) -> dict[str, FloatArray]:
    """Singular values by matrix name: float64, descending, finite, none negative.

    Raises:
        RunFolderError: The file is missing or broken, or holds something else.
    """
    from safetensors import SafetensorError, safe_open

    try:
        _opened(path).close()
        with safe_open(path, framework="numpy") as stored:
            return {name: _spectrum(path, stored, name) for name in stored.keys()}  # noqa: SIM118
    except (*_UNREADABLE, SafetensorError) as error:
        raise _unreadable(path, error) from None


def _spectrum(path: Path, stored: Any, name: str) -> FloatArray:
    facts = stored.get_slice(name)
    kind, shape = facts.get_dtype(), facts.get_shape()
    if kind != "F64" or len(shape) != 1 or not shape[0]:
        raise broken(path, f"{name!r} is {kind} of shape {shape}, where a list of F64 belongs")
    values: FloatArray = stored.get_tensor(name)
    if not (np.isfinite(values).all() and values[-1] >= 0 and (np.diff(values) <= 0).all()):
        raise broken(path, f"{name!r} holds no singular values, which descend and are not negative")
    return values


def save_arrays(path: Path, arrays: Mapping[str, FloatArray]) -> None:
    """Write a spectra file whole or not at all."""
    from safetensors.numpy import save

    data = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
    replace_file(path, data)


def spectrum_of(
    path: Path, name: str, values: FloatArray | None, facts: dict[str, Any] | None
) -> Spectrum | None:
    """A spectrum, from its values and what was measured beside them; None where both are.

    Raises:
        RunFolderError: One is missing, or they are not of one matrix.
    """
    expected = facts["M"] * facts["slices"] if facts else 0
    found = 0 if values is None else len(values)
    if found != expected:
        raise broken(
            path, f"{name!r} has {found} singular values, of which rows.jsonl says {expected}"
        )
    return Spectrum(values, **facts) if values is not None and facts else None


def belongs(spectrum: Spectrum, row: Mapping[str, Any]) -> bool:
    """Whether a row is about a spectrum: its shape, and its norm but for a peer's units."""
    if (spectrum.N, spectrum.M, spectrum.slices) != (row["N"], row["M"], row["slices"]):
        return False
    norm, largest = row["spectral_norm"], spectrum.largest
    return norm is None or largest / _UNITS <= norm <= largest * _UNITS
