"""Which row of the layout table a tensor fits, and the parts it then has.

A division that does not use every entry exactly once is not made, and none is guessed: singular
values of a wrong part look as plausible as those of the right one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from weightscope.layouts.facts import Facts
from weightscope.layouts.fused import LAYOUTS, STACKS, Layout, Stack
from weightscope.layouts.roles import LONGEST
from weightscope.matrix import Part
from weightscope.text import shortened

_MOST_EXPERTS = 10_000
_UNFIT = "the sizes that the configuration gives do not add up to its shape"
_AMBIGUOUS = "it has a shape that two layouts of this family fit"


@dataclass(frozen=True)
class Division:
    """What becomes of one tensor.

    Attributes:
        parts: Its logical matrices; empty where it stays whole.
        experts: The parts are experts of a flattened stack, labelled by their index.
        rule: The row that decided, for people; empty where none is for it.
        reason: Why it stays whole although it is fused; empty where it is not known to be.
    """

    parts: tuple[Part, ...] = ()
    experts: bool = False
    rule: str = ""
    reason: str = ""


class UnknownFactError(Exception):
    """The configuration lacks a fact; the message is its name."""


def divide(module: str, shape: tuple[int, int], facts: Facts, fused: bool = False) -> Division:
    """Divide one stored matrix (or one expert of a stack).

    Args:
        module: Name pattern of the tensor, without ``.weight``.
        shape: Rows and columns as stored.
        facts: What the configuration says about its tower.
        fused: Whether its role alone says that it holds several matrices.
    """
    if len(module) > LONGEST:
        return Division()
    division = _divided(module, shape, facts.families, facts.values)
    if division.parts or not (fused or division.rule):
        return division if division.parts else Division()
    if not division.reason:
        return Division(reason=_no_row(facts.families))
    completed = _divided(module, shape, facts.families, facts.completed)
    return completed if completed.parts else division


def _no_row(families: tuple[str, ...]) -> str:
    if not families:
        return "no configuration says how it is divided"
    return f"no layout of it is known for the family {shortened(families[-1])}"


def _divided(
    module: str, shape: tuple[int, int], families: tuple[str, ...], values: Mapping[str, Any]
) -> Division:
    """Try the rows of the narrowest family that has any; those of no family come last."""
    for stack in STACKS:
        if re.search(stack.module, module) and stack.families & set(families):
            return _stacked(stack, shape, values)
    for family in (*families, None):
        rows = [row for row in LAYOUTS if _is_for(row, family) and re.search(row.module, module)]
        if rows:
            return _fitting(rows, family, shape, values)
    return Division()


def _is_for(row: Layout, family: str | None) -> bool:
    return family in row.families if family is not None else not row.families


def _fitting(
    rows: list[Layout], family: str | None, shape: tuple[int, int], values: Mapping[str, Any]
) -> Division:
    found: dict[tuple[Part, ...], str] = {}
    reasons: list[str] = []
    for row in rows:
        try:
            if not _holds(row, values):
                continue
            parts = fitted(row, shape, values)
        except UnknownFactError as unknown:
            reasons.append(f"the configuration does not say {unknown}")
            continue
        if parts:
            found.setdefault(parts, _described(row, family))
        else:
            reasons.append(_UNFIT)
    if len(found) == 1:
        parts, rule = next(iter(found.items()))
        return Division(parts, rule=rule)
    named = _described(rows[0], family) if family else ""
    return Division(rule=named, reason=_AMBIGUOUS if found else "".join(reasons[:1]) or _UNFIT)


def _holds(row: Layout, values: Mapping[str, Any]) -> bool:
    """Whether the flags of the configuration are those of the row.

    Raises:
        UnknownFactError: The configuration does not say one.
    """
    for flag in row.when:
        if not isinstance(values.get(flag), bool):
            raise UnknownFactError(flag)
    return all(values[flag] is wanted for flag, wanted in row.when.items())


def fitted(row: Layout, shape: tuple[int, int], values: Mapping[str, Any]) -> tuple[Part, ...]:
    """The parts that one row gives a matrix; none where they do not use up the axis exactly.

    Args:
        row: A row of the table whose flags hold.
        shape: Rows and columns as stored.
        values: Facts of the configuration by name.

    Raises:
        UnknownFactError: The facts lack one that the row needs.
    """
    dim = shape[row.axis]
    values = {**values, "dim": dim}
    groups = size_of(row.groups, values)
    lengths = [size_of(size, values) for _, _, size in row.parts]
    if groups * sum(lengths) != dim or not all(lengths):
        return ()
    if row.across and size_of(row.across, values) != shape[1 - row.axis]:
        return ()
    parts, offset = [], 0
    for (label, role, _), length in zip(row.parts, lengths, strict=True):
        parts.append(Part(label, role, row.axis, groups, offset, length))
        offset += length
    return tuple(parts)


def _stacked(stack: Stack, shape: tuple[int, int], values: Mapping[str, Any]) -> Division:
    rule = f"{stack.count} matrices under each other"
    try:
        count = size_of(stack.count, values)
    except UnknownFactError as unknown:
        return Division(rule=rule, reason=f"the configuration does not say {unknown}")
    if not count or not shape[0] or shape[0] % count or count > _MOST_EXPERTS:
        return Division(rule=rule, reason=_UNFIT)
    length = shape[0] // count
    parts = tuple(Part(str(e), "", 0, 1, e * length, length) for e in range(count))
    return Division(parts, True, rule)


def size_of(expression: str, values: Mapping[str, Any]) -> int:
    """Value of a product of names and numbers; 0 where it is no whole number.

    Raises:
        UnknownFactError: A name has no positive whole number for its value.
    """
    total = Fraction(1)
    for sign, word in re.findall(r"([*/]?)(\w+)", expression):
        number = int(word) if word.isdecimal() else values.get(word)
        if not isinstance(number, int) or isinstance(number, bool) or number <= 0:
            if word == "dim":
                return 0
            raise UnknownFactError(word)
        total = total / number if sign == "/" else total * number
    return int(total) if total.denominator == 1 else 0


def _described(row: Layout, family: str | None) -> str:
    """A row of the table in words."""
    parts = ", ".join(f"{label} {size}" for label, _, size in row.parts)
    axis = "columns" if row.axis else "rows"
    groups = "" if row.groups == "1" else f"{row.groups} groups of "
    return f"{axis}: {groups}{parts} ({family or 'any family'})"
