"""Text from a checkpoint, made safe to print."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import takewhile
from math import floor, log10
from typing import Any


def printable(text: str) -> str:
    """Replace what could steer a terminal or mislead a reader by its escape sequence.

    Control characters, bidirectional overrides and invisible format characters go; a newline
    becomes ``\\n``.
    """
    if text.isprintable():
        return text
    return "".join(
        c if c == " " or unicodedata.category(c)[0] not in "CZ" else _escape(c) for c in text
    )


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "backslashreplace").decode("ascii")


def shortened(value: object, length: int = 100) -> str:
    """A value as Python writes it, cut in the middle where hostile input made it long."""
    text = repr(value[: 4 * length]) if isinstance(value, str | list) else repr(value)
    if len(text) <= length:
        return text
    return f"{text[: length // 2]}...{text[-length // 3 :]}"


_LIMITS = (48, 40, 32, 24, 20, 16, 12, 10, 8)
"""Characters that a part of a dotted name keeps, the fewest last."""


def cut(text: str, length: int) -> str:
    """A text without its middle where it is longer."""
    kept = length // 2
    return text if len(text) <= length else f"{text[:kept]}…{text[kept + 1 - length :]}"


def fitted(names: Sequence[str], width: int) -> tuple[list[str], str]:
    """Dotted names in fewer characters: without the parts that all begin with, and those cut.

    Numbers stay whole, and names that differ stay different, so that some may stay too long.

    Args:
        names: At least one is longer than ``width``.
        width: Characters that there is room for.

    Returns:
        The names, and the beginning that a leading ``…`` stands for.
    """
    split = [name.split(".") for name in names]
    levels = zip(*(parts[:-1] for parts in split), strict=False) if len(names) > 1 else ()
    shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
    found = [("…", *parts[len(shared) :]) if shared else tuple(parts) for parts in split]
    fewest = len(set(names))
    short = [".".join(parts) for parts in found]
    for limit in _LIMITS:
        if max(map(len, short)) <= width:
            break
        shorter = [
            ".".join(part if part.isdecimal() else cut(part, limit) for part in parts)
            for parts in found
        ]
        if len(set(shorter)) < fewest:
            break
        short = shorter
    return short, "".join(f"{part}." for part in shared)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a sentence about an unknown name: those like it, or nothing."""
    close = difflib.get_close_matches(name, list(known), 3)
    return f"; did you mean {', '.join(close)}?" if close else ""


def count_of(count: int, one: str, many: str = "") -> str:
    """A count with its noun: ``1 matrix``, ``2 matrices``."""
    plural = f"{one[:-2]}ices" if one.endswith("ix") else one + "s"
    return f"1 {one}" if count == 1 else f"{count:,} {many or plural}"


def short(value: Any, digits: int = 3) -> str:
    """A number for people: three significant digits, an empty text for nothing."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, int) or (float(value).is_integer() and abs(value) < 1e4):
        return f"{int(value):d}" if abs(value) < 1e7 else f"{value:.{digits - 1}e}"
    size = abs(value)
    if size >= 10**5 or size < 1e-3:
        mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
        return f"{mantissa}e{int(exponent)}"
    return f"{value:.{max(0, digits - 1 - floor(log10(size)))}f}"


def scaled(value: float, unit: str, step: float = 1000.0) -> str:
    """A quantity with a prefix that leaves one to three digits before the point.

    Args:
        value: Amount in the unit.
        unit: Such as ``FLOP``, or ``B`` with ``step`` 1024.
        step: Factor between prefixes.
    """
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    level = 0
    while value >= step and level < len(prefixes) - 1:
        value, level = value / step, level + 1
    middle = "i" if step == 1024 and level else ""
    return f"{value:.{0 if value >= 100 else 1}f} {prefixes[level]}{middle}{unit}"
