"""JSON that somebody else wrote, parsed without giving it the memory of a machine."""

from __future__ import annotations

import json
from typing import Any

_SMALL = 1 << 20
_SPARSEST = 16
"""Bytes of text per list or object: a header has three in the 51 bytes of its shortest tensor."""


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
    if len(raw) > _SMALL and _SPARSEST * (raw.count(b"[") + raw.count(b"{")) > len(raw):
        raise TooManyListsError
    return json.loads(raw.decode("utf-8-sig"), **hooks)
