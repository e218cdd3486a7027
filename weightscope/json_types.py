"""What a value of JSON may be, as checks that name the first one that is not.

A check takes a value and where it stands, returns nothing, and raises ``MisfitError``. Checks of
lists and objects are made of checks of what they hold.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from math import inf
from typing import Any

from weightscope.text import shortened

Check = Callable[[Any, str], None]
LARGEST_INTEGER = (1 << 63) - 1
DEEPEST = 32
"""Lists and objects inside each other, where nothing says what they hold."""


class MisfitError(ValueError):
    """A value is not what belongs in its place."""


def misfit(value: Any, at: str, what: str) -> MisfitError:
    """The sentence about a value in the wrong place.

    Args:
        value: What is there.
        at: Where, as dotted names; empty for the outermost value.
        what: What belongs there, with its article.
    """
    return MisfitError(f"{at or 'it'} is {_seen(value)}, where {what} belongs")


def _seen(value: Any) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    words = {True: "true", False: "false"}
    if value is None or isinstance(value, bool):
        return words[value] if value is not None else "null"
    return shortened(value)


def text(value: Any, at: str) -> None:
    """Any text."""
    if type(value) is not str:
        raise misfit(value, at, "a text")


def truth(value: Any, at: str) -> None:
    """true or false."""
    if type(value) is not bool:
        raise misfit(value, at, "true or false")


def whole(least: int = -LARGEST_INTEGER, most: int = LARGEST_INTEGER) -> Check:
    """Integers within bounds, which belong to them."""
    what = "a whole number" if least < 0 else f"a whole number of at least {least}"

    def check(value: Any, at: str) -> None:
        if type(value) is not int or not least <= value <= most:
            raise misfit(value, at, what)

    return check


def number(least: float = -inf, above: float = -inf, most: float = inf) -> Check:
    """Finite numbers, with or without a point.

    Args:
        least: The smallest that belongs to them.
        above: What they exceed.
        most: The largest that belongs to them.
    """
    bounds = [f"of at least {least:g}"] if least > max(above, -inf) else []
    bounds += [f"above {above:g}"] if above > -inf else []
    bounds += [f"up to {most:g}"] if most < inf else []
    what = " ".join(["a number", " and ".join(bounds)]).strip()

    def check(value: Any, at: str) -> None:
        if type(value) not in (float, int) or not (least <= value <= most and above < value < inf):
            raise misfit(value, at, what)

    return check


COUNT = whole(0)
INTEGER = whole()
NUMBER = number()


def one_of(words: Collection[str]) -> Check:
    """Texts that are listed."""

    def check(value: Any, at: str) -> None:
        text(value, at)
        if value not in words:
            raise misfit(value, at, f"one of {', '.join(words)}")

    return check


def optional(check: Check) -> Check:
    """null, or what another check takes."""

    def checked(value: Any, at: str) -> None:
        if value is not None:
            check(value, at)

    return checked


def each(check: Check) -> Check:
    """Lists whose members another check takes."""

    def checked(value: Any, at: str) -> None:
        if type(value) is not list:
            raise misfit(value, at, "a list")
        for index, member in enumerate(value):
            check(member, f"{at}[{index}]")

    return checked


def by_name(check: Check) -> Check:
    """Objects of any names, whose values another check takes."""

    def checked(value: Any, at: str) -> None:
        _object(value, at)
        for name, member in value.items():
            check(member, _inside(at, name))

    return checked


def entries(
    needed: Mapping[str, Check], also: Mapping[str, Check] | None = None, others: bool = True
) -> Check:
    """Objects of known names.

    Args:
        needed: What is there, by name.
        also: What may be there.
        others: Allow other names, for what later versions add.
    """
    known = {**needed, **(also or {})}

    def checked(value: Any, at: str) -> None:
        _object(value, at)
        for name in needed:
            if name not in value:
                raise MisfitError(f"{at or 'it'} has no {name!r}")
        for name, member in value.items():
            if name not in known and not others:
                raise MisfitError(f"{at or 'it'} has an entry {shortened(name)} that none knows")
            known.get(name, anything)(member, _inside(at, name))

    return checked


def anything(value: Any, at: str, depth: int = DEEPEST) -> None:
    """Any value that is not nested too deeply to be written again."""
    if not isinstance(value, dict | list):
        return
    if not depth:
        raise MisfitError(f"{at} is nested more than {DEEPEST} deep")
    for member in value.values() if isinstance(value, dict) else value:
        anything(member, at, depth - 1)


def _object(value: Any, at: str) -> None:
    if type(value) is not dict:
        raise misfit(value, at, "an object")


def _inside(at: str, name: str) -> str:
    name = name if len(name) <= 100 else shortened(name)
    return f"{at}.{name}" if at else name
