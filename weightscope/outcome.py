"""A quantity that could not be computed: why, as data, never a sentinel number."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Failure:
    """Why a quantity is undefined, and what to do about it.

    Attributes:
        reason: A clause for people, without a final full stop.
        advice: What the reader can do, or an empty string.
    """

    reason: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.reason}; {self.advice}" if self.advice else self.reason


Number = float | int
Value = Number | str | None
"""A cell: a finite number, a word, or nothing."""

Details = Mapping[str, Any]
"""Figures of one matrix that are no cells: for JSON and Python."""
Values = Mapping[str, Value | Failure | Details]
"""Column name to cell, or to why the cell is empty; names that are no columns may hold details."""
