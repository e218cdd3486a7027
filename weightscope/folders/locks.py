"""One process at a time writes a run."""

from __future__ import annotations

import os
from pathlib import Path

from weightscope.errors import RunFolderError


def locked(path: Path) -> int:
    """Lock a file until its descriptor is closed, by whoever and however.

    Raises:
        RunFolderError: Another process holds it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise RunFolderError(
            f"{path.parent}: another process is writing this run; wait for it, or choose another "
            "folder with --out"
        ) from None
    return descriptor
