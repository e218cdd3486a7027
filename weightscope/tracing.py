"""Why every tensor is treated as it is: the rules that fired, and what the model library says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from weightscope.evaluate import Row
from weightscope.layouts.roles import place_of
from weightscope.report import Cell, Paragraph, Report, Table
from weightscope.select import Finding

_ROLES_OF = {"table": {"embedding", "position"}, "conv": {"conv"}, "norm": {"norm"}}
"""Roles that fit a kind of module; a layer of weights fits all others."""
_COUNTED = {
    "vector": "counted: a vector or scalar",
    "integer": "counted: integers",
    "filtered": "left out by --include and --exclude",
}


@dataclass(frozen=True)
class Trace:
    """How one stored tensor was judged.

    Attributes:
        name: Its name.
        shape: Its dimensions.
        dtype: Stored data type, or the encoding of a quantised weight.
        treatment: What becomes of it.
        role: The rule that gave it its role.
        layout: The row of the layout table that divided it, or why none did.
        library: Class of the module that it belongs to, and whether that agrees with the role.
    """

    name: str
    shape: str
    dtype: str
    treatment: str
    role: str
    layout: str
    library: str


def traces(
    findings: Iterable[Finding], modules: Mapping[str, tuple[str, str]]
) -> tuple[Trace, ...]:
    """One trace per stored tensor, in the order of the checkpoint.

    Args:
        findings: What was found.
        modules: Class and kind of the module of a tensor, for those that a library knows.
    """
    return tuple(
        Trace(
            one.tensor.name,
            "x".join(map(str, one.tensor.shape)),
            one.matrices[0].form if one.matrices else one.tensor.dtype,
            _treatment(one),
            one.role,
            one.layout,
            _agreement(one, modules.get(one.tensor.name)),
        )
        for one in findings
    )


def _treatment(found: Finding) -> str:
    if found.counted:
        return _COUNTED[found.counted]
    if found.exclusion is not None:
        return f"{found.exclusion.status}: {found.exclusion.reason}"
    labels = dict.fromkeys(m.part.label for m in found.matrices if m.part is not None)
    experts = {m.expert for m in found.matrices} - {None}
    count = f"{len(experts)} experts" if len(experts) > 1 else "a matrix"
    if found.matrices[0].unsplit:
        return f"analysed as {count}, undivided"
    if not labels or any(m.part and m.part.role == "" for m in found.matrices):
        return f"analysed as {count}"
    parts = ", ".join(labels)
    return f"analysed as {parts}" + (f" of {count}" if len(experts) > 1 else "")


def _agreement(found: Finding, module: tuple[str, str] | None) -> str:
    if module is None:
        return ""
    name, kind = module
    if kind == "other" or not found.matrices:
        return name
    role = found.matrices[0].role
    others = set().union(*_ROLES_OF.values())
    agrees = role in _ROLES_OF[kind] if kind in _ROLES_OF else role not in others
    return f"{name}, which agrees" if agrees else f"{name}, which differs"


def traces_report(name: str, found: Iterable[Trace], why_not: str) -> Report:
    """The traces for people: tensors that differ only in their block index are one line.

    Args:
        name: Model name.
        found: The traces.
        why_not: Why a library was not asked; empty where it was.
    """
    counts = Counter(replace(one, name=place_of(one.name).module) for one in found)
    rows = tuple(
        (
            Cell(one.name, "strong"),
            Cell(str(count)),
            Cell(one.shape),
            Cell(one.treatment, "" if one.treatment.startswith("analysed") else "warn"),
            Cell(one.role),
            Cell(one.layout),
            Cell(one.library, "bad" if one.library.endswith("differs") else ""),
        )
        for one, count in counts.items()
    )
    headers = ("module", "count", "shape", "treatment", "role", "layout", "library")
    table = Table("", headers, rows, (False, True, True, False, False, False, False))
    note = f"Not compared with transformers: {why_not}." if why_not else _verdict(counts)
    return Report(f"{name}: why", (table, Paragraph(note)))


def _verdict(counts: Mapping[Trace, int]) -> str:
    agree, differ = (
        sum(n for one, n in counts.items() if one.library.endswith(word))
        for word in ("agrees", "differs")
    )
    return f"transformers, which builds this model without weights: {agree} agree, {differ} differ."


def traces_table(found: Iterable[Trace]) -> tuple[list[str], list[Row]]:
    """Column names and one row per tensor, for CSV."""
    return [field.name for field in fields(Trace)], [asdict(one) for one in found]


def traces_record(found: Iterable[Trace], why_not: str) -> dict[str, Any]:
    """Plain values for JSON."""
    return {"library": why_not or "transformers", "tensors": [asdict(one) for one in found]}
