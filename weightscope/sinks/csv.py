"""Comma-separated values that open in a spreadsheet as numbers, and never as formulas."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

from weightscope.evaluate import Row
from weightscope.outcome import Value

_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")
_QUOTED = frozenset(',"\r\n')


def render(columns: Sequence[str], rows: Iterable[Row]) -> str:
    """One header line and one line per row; floats round-trip, an undefined cell is empty."""
    lines = [",".join(map(_cell, columns))]
    lines += [",".join(_cell(row[name]) for name in columns) for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Value) -> str:
    if value is None:
        return ""
    return _quoted(value) if isinstance(value, str) else repr(value)


@lru_cache(maxsize=4096)
def _quoted(value: str) -> str:
    text = "'" + value if value.startswith(_FORMULA_STARTS) else value
    return '"' + text.replace('"', '""') + '"' if _QUOTED & set(text) else text


def unescape(text: str) -> str:
    """Text of a cell as it was before a spreadsheet was kept from reading it as a formula."""
    return text[1:] if text[:1] == "'" and text[1:].startswith(_FORMULA_STARTS) else text
