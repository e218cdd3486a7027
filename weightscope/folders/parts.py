"""What a part of a model leaves beside its run, so that the parts can be joined without weights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightscope.errors import RunFolderError
from weightscope.folders.storage import PART, ROWS


def part_record(plan: Sequence[str], ranks: Mapping[str, int]) -> dict[str, Any]:
    """Contents of ``part.json``.

    Args:
        plan: Names of all matrices of the model that are analysed, in the order of the plan.
        ranks: Numerical rank of every matrix of the part, by name.
    """
    return {"plan": list(plan), "ranks": dict(ranks)}


def read_part(folder: Path) -> tuple[list[str], dict[str, int]]:
    """Plan and ranks of a finished part; see ``part_record``.

    Raises:
        RunFolderError: The file is missing or broken.
    """
    path = folder / PART
    try:
        record = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
        return list(record["plan"]), dict(record["ranks"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _broken(path, error) from None


def measured_lines(folder: Path) -> dict[str, bytes]:
    """Lines of ``rows.jsonl`` as they are, by the names of their matrices.

    Raises:
        RunFolderError: The file is missing or broken.
    """
    path = folder / ROWS
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        return {json.loads(line.decode("utf-8", "surrogatepass"))["name"]: line for line in lines}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: Exception) -> RunFolderError:
    return RunFolderError(f"{path}: cannot be read ({error}); analyze the part again")
