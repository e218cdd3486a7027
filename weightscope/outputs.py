"""The one place that owns output files and standard output."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from weightscope.errors import OutputError

STDOUT = "-"


def check_target(target: str, force: bool) -> None:
    """Make sure, before any work, that an output can be written.

    Raises:
        OutputError: It exists and ``force`` is not set, or its folder does not exist.
    """
    path = Path(target)
    if target == STDOUT:
        return
    if path.is_dir():
        raise OutputError(f"{target}: is a folder; give a file name")
    if path.exists() and not force:
        raise OutputError(
            f"{target}: exists already; choose another name, or --force to replace it"
        )
    if not path.parent.is_dir():
        raise OutputError(f"{target}: its folder does not exist")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{target}: its folder is not writable")


def write_output(target: str, text: str, bom: bool = False) -> None:
    """Write UTF-8 text to a file, whole or not at all, or to standard output.

    Raises:
        OutputError: The file cannot be written.
    """
    data = (b"\xef\xbb\xbf" if bom else b"") + text.encode("utf-8", "backslashreplace")
    if target == STDOUT:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    path = Path(target)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(data)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{target}: cannot be written ({error.strerror})") from None
