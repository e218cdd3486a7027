"""Text from a checkpoint, made safe to print."""

from __future__ import annotations

import unicodedata


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


def count_of(count: int, what: str) -> str:
    """A count with its noun, in the plural where it is not one."""
    if count == 1:
        return f"1 {what}"
    first, space, rest = what.partition(" ")
    plural = f"{first[:-2]}ices" if first.endswith("ix") else first + "s"
    return f"{count:,} {plural}{space}{rest}"
