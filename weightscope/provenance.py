"""What produced a run: everything that a figure may depend on, as plain values."""

from __future__ import annotations

import platform
import shlex
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from weightscope import compat
from weightscope.checkpoint import Checkpoint
from weightscope.settings import THRESHOLDS, Settings
from weightscope.version import SCHEMA_VERSION, __version__


def provenance_of(
    settings: Settings, checkpoint: Checkpoint, device_name: str, base: Checkpoint | None = None
) -> dict[str, Any]:
    """The record that every output but CSV carries.

    Args:
        settings: With device and threads filled in.
        checkpoint: What is analysed; its files have sizes and hashes of their headers.
        device_name: Name of the device for people.
        base: What the model is compared with; None for nothing.
    """
    return {
        "schema": SCHEMA_VERSION,
        "weightscope": __version__,
        "command": command_line(),
        "model": checkpoint.name,
        "source": {
            "format": checkpoint.format,
            "revision": checkpoint.revision,
            "files": [asdict(file) for file in checkpoint.files],
        },
        "base": None
        if base is None
        else {
            "model": base.name,
            "revision": base.revision,
            "files": [asdict(file) for file in base.files],
        },
        "settings": settings.as_record(),
        "thresholds": dict(THRESHOLDS),
        "compat": compat.record(settings.compat) if settings.compat else None,
        "environment": {
            "python": platform.python_version(),
            "machine": platform.machine(),
            "device_name": device_name,
            "compute_dtype": "float64",
            "blas": blas_name(),
            **{name: _version(name) for name in ("torch", "numpy")},
        },
    }


def blas_name() -> str:
    """The linear-algebra library that torch was built with, with its version where it tells."""
    import torch  # here, because the command line is asked for without it

    for line in torch.__config__.show().splitlines():
        if any(name in line for name in ("Math Kernel Library", "OpenBLAS", "Accelerate")):
            return line.strip(" -").removesuffix(" for Intel(R) 64 architecture applications")
    return "unknown"


def command_line() -> str:
    """The command line, or the name of the program that called the library."""
    program = Path(sys.argv[0]).name if sys.argv and sys.argv[0] else "python"
    if program not in {"weightscope", "__main__.py"}:
        return program
    words = ["weightscope"]
    for before, word in pairwise(sys.argv):
        secret = before == "--token" or word.startswith("--token=")  # of no output's business
        words.append("..." if secret else word)
    return shlex.join(words)


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "unknown"
