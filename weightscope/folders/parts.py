"""What a part of a model leaves beside its run, so that the parts can be joined without weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from weightscope.folders.files import checked_lines, checked_object
from weightscope.folders.schema import check_measurement, check_part
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
    record = checked_object(folder / PART, check_part)
    return record["plan"], record["ranks"]


def measured_lines(folder: Path) -> dict[str, bytes]:
    """Lines of ``rows.jsonl`` as they are, by the names of their matrices.

    Raises:
        RunFolderError: The file is missing or broken.
    """
    lines = checked_lines(folder / ROWS, check_measurement)
    return {record["name"]: line for line, record in lines}
