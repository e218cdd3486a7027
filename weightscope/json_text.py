"""JSON that somebody else wrote, parsed without giving it the memory of a machine."""

from __future__ import annotations

import json
from math import isfinite
from typing import Any

_SMALL = 1 << 20
_SPARSEST = 16
"""Bytes of text per list or object: a header has three in the 51 bytes of its shortest tensor."""
_LONGEST_INTEGER = 300
"""Digits, with which an integer is a number of float64 still."""


class TooManyListsError(ValueError):
    """A text that is hardly more than brackets."""


def parsed(raw: bytes, **hooks: Any) -> Any:
    """What ``json.loads`` makes of a text.

    An empty list is 3 bytes of text and 64 of memory, so a large text may not be made of them.

    Args:
        raw: The text, in UTF-8, perhaps with a byte-order mark.
        hooks: Options of ``json.loads``.

    Raises:
        TooManyListsError: It would take many times the memory that it takes on disk.
        ValueError: It is no JSON, or not UTF-8.
        RecursionError: It is nested too deeply.
    """
    _check_dense(raw)
    return json.loads(raw.decode("utf-8-sig"), **hooks)


def _check_dense(raw: bytes) -> None:
    if len(raw) > _SMALL and _SPARSEST * (raw.count(b"[") + raw.count(b"{")) > len(raw):
        raise TooManyListsError("it is hardly more than brackets")


def finite(raw: bytes) -> Any:
    """What a text of ours holds: no NaN, no infinity, no number that float64 cannot hold.

    Args:
        raw: The text, in UTF-8 with the surrogates of names that are not.

    Raises:
        ValueError: It is no such text, or hardly more than brackets.
        RecursionError: It is nested too deeply.
    """
    _check_dense(raw)
    text = raw.decode("utf-8", "surrogatepass")
    return json.loads(text, parse_constant=_refused, parse_float=_float, parse_int=_int)


def _refused(word: str) -> float:
    raise ValueError(f"{word} is no number")


def _float(text: str) -> float:
    value = float(text)
    if not isfinite(value):
        raise ValueError(f"{text[:20]} is beyond the numbers of float64")
    return value


def _int(text: str) -> int:
    if len(text) > _LONGEST_INTEGER:
        raise ValueError(f"{text[:20]}... is beyond the numbers of float64")
    return int(text)
