"""Whether two runs were made of the same thing in the same way, told from their provenance."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from weightscope.errors import IncomparableRunsError
from weightscope.text import shortened


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], folder: Path) -> None:
    """Make sure that two runs were made of the same thing in the same way.

    Raises:
        IncomparableRunsError: Naming the first thing that differs.
    """
    for name, there, here in differences(found, wanted):
        raise IncomparableRunsError(
            f"{folder}: holds another run: {name} is {shortened(there)} there and "
            f"{shortened(here)} here; choose "
            "another folder with --out, or replace that run with --force"
        )


def differences(
    found: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Entries in which two provenance records differ, as (dotted name, found, wanted)."""
    ignored = {"finished", "summary", "model", "command", "solvers", "threads", "parts"}
    for key in (*wanted, *(key for key in found if key not in wanted)):
        if key not in ignored:
            yield from _differences(found.get(key), wanted.get(key), f"{prefix}{key}")


def _differences(there: Any, here: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(there, Mapping) and isinstance(here, Mapping):
        yield from differences(there, here, f"{name}.")
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        for index, (old, new) in enumerate(zip(there, here, strict=True)):
            yield from _differences(old, new, f"{name}[{index}]")
    elif there != here:
        yield name, there, here
