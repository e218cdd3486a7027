"""Which row of one run belongs to which row of another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from weightscope.errors import OptionError
from weightscope.evaluate import Row
from weightscope.layouts.wrappers import unwrapped


@dataclass(frozen=True)
class PrefixMap:
    """Names that begin with ``old`` are read as beginning with ``new``."""

    old: str
    new: str


@dataclass(frozen=True)
class Pair:
    """A matrix in the first run, in the second, or in both.

    Attributes:
        a: Its row in the first run.
        b: Its row in the second.
        renamed: They were paired by their spectra, not by name.
    """

    a: Row | None
    b: Row | None
    renamed: bool = False

    @property
    def either(self) -> Row:
        """The row of the first run, else that of the second."""
        row = self.a if self.a is not None else self.b
        assert row is not None
        return row


def parse_prefix_map(text: str) -> PrefixMap:
    """Read ``FROM=TO``; either side may be empty.

    Raises:
        OptionError: There is no ``=``, or nothing on both sides of it.
    """
    old, sign, new = text.partition("=")
    if not sign or not (old or new):
        raise OptionError(f"--map {text!r}: write FROM=TO, for example model.=transformer.")
    return PrefixMap(old, new)


def plain_name(name: str, maps: Iterable[PrefixMap] = ()) -> str:
    """A tensor name without what training wrappers put around it."""
    name = unwrapped(name)
    for prefix in maps:
        if name.startswith(prefix.old):
            return prefix.new + name[len(prefix.old) :]
    return name


def align(a: Sequence[Row], b: Sequence[Row], maps: Iterable[PrefixMap] = ()) -> list[Pair]:
    """Pair the rows of two runs by plain name; every row is in exactly one pair.

    The pairs of the first run's rows come first, in its order; then what only the second has.
    """
    maps = tuple(maps)
    there = by_plain_name(b, maps)
    pairs = [Pair(row, there.pop(name, None)) for name, row in by_plain_name(a, maps).items()]
    return pairs + [Pair(None, row) for row in there.values()]


def by_plain_name(rows: Sequence[Row], maps: tuple[PrefixMap, ...] = ()) -> dict[str, Row]:
    """Rows by plain name; by their own name where two would share it."""
    plain = {str(row["name"]): plain_name(str(row["name"]), maps) for row in rows}
    shared = Counter(plain.values())
    named = {}
    for row in rows:
        raw = str(row["name"])
        named[raw if shared[plain[raw]] > 1 else plain[raw]] = row
    return named
