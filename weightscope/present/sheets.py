"""A table becomes a workbook: the rows, what their columns mean, and what produced them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from weightscope.columns import Column, base_of
from weightscope.drawings.sheets import (
    Bands,
    Bar,
    Field,
    Highlight,
    Shade,
    Sheet,
    Words,
    field_of,
    kind_of,
)
from weightscope.evaluate import Row, columns_of
from weightscope.outcome import Value
from weightscope.report import Style
from weightscope.settings import FAMILIES, THRESHOLDS

_BANDS: tuple[Style, Style, Style] = ("extreme", "good", "warn")
_STATUS: dict[str, Style] = {
    **dict.fromkeys(("nonfinite", "zero", "failed", "unsupported"), "bad"),
    **dict.fromkeys(("empty", "constant", "too_few", "rank_one", "fused"), "warn"),
    "skipped": "dim",
}
_READING: dict[str, Style] = {
    "random-like": "warn",
    "dead": "bad",
    "very-heavy-tailed": "extreme",
    "heavy-tailed": "good",
    "weakly-heavy-tailed": "warn",
    "unresolved": "dim",
    "identical": "dim",
    "low-rank-update": "good",
    "full-rank-update": "warn",
    "re-initialised": "bad",
    "resized": "warn",
}
_SHADED = ("alpha_ks", "noise_w1", "shuffled_w1", "spectrum_w1", "rel_change", "intruders")
_BARRED = ("welore_rank_ratio", "farms_coverage", "mp_softrank", "noise_p", "delta_top_share")
_ASPECTS = ("meaning", "formula", "unit", "range", "reading", "caution", "noise", "source",
            "published")  # fmt: skip


def workbook(
    names: Sequence[str],
    rows: Sequence[Row],
    facts: Mapping[str, Any],
    glossary: Sequence[Column],
) -> tuple[Sheet, ...]:
    """Sheets of one table: ``table``, ``glossary``, ``summary`` where there is one, ``provenance``.

    Args:
        names: Column names.
        rows: Cells by column name.
        facts: What goes with them: provenance by any name, ``summary``, ``details``.
        glossary: Columns that the names stand for, alone or with ``_a``, ``_b``, ``_delta``.
    """
    known = {column.name: column for column in reversed(glossary)}
    fields = tuple(_field(name, rows) for name in names)
    metrics = dict.fromkeys(str(row["metric"]) for row in rows if "metric" in row)
    sheets = [
        Sheet("table", fields, rows, _highlights(names)),
        _glossary([*names, *metrics], rows, known),
    ]
    if facts.get("summary"):
        sheets.append(_pairs("summary", facts["summary"]))
    produced = {key: value for key, value in facts.items() if key not in {"summary", "details"}}
    sheets.append(_pairs("provenance", produced.get("provenance", produced)))
    return tuple(sheets)


def _field(name: str, rows: Sequence[Row]) -> Field:
    values = [row[name] for row in rows]
    return field_of(name, kind_of(values), values)


def _highlights(names: Sequence[str]) -> tuple[Highlight, ...]:
    """What stands out, of the columns that there are."""
    low, high = THRESHOLDS["alpha_over"], THRESHOLDS["alpha_under"]
    bands = dict(zip(("very-heavy", "heavy", "weak"), _BANDS, strict=True))
    wanted: list[Highlight] = [
        *(Bands(name, low, high, _BANDS) for name in names if name in {"alpha", "alpha_a",
                                                                        "alpha_b"}),
        *(Words(name, bands) for name in names if name.startswith("alpha_band")),
        *(Words(name, _STATUS) for name in ("status", "status_a", "status_b")),
        Words("reading", _READING),
        Words("welore_class", {"LRC": "strong"}),
        Words("alpha_moved", {"yes": "warn"}),
        *(Shade(name) for name in _SHADED),
        *(Bar(name) for name in _BARRED),
    ]  # fmt: skip
    return tuple(highlight for highlight in wanted if highlight.column in names)


def _glossary(names: Sequence[str], rows: Sequence[Row], known: Mapping[str, Column]) -> Sheet:
    """One row per column: its family, how many of its cells are filled, and all that is known."""
    families = {column.name: family for family in FAMILIES for column in columns_of([family])}
    entries: list[dict[str, Value]] = []
    for name in names:
        base, suffix = base_of(name, known)
        column = known.get(base, Column(name, "text", ""))
        entry: dict[str, Value] = {"column": name, "family": families.get(base)}
        entry["filled"] = sum(
            row.get(name) is not None or row.get("metric") == name for row in rows
        )
        for aspect in _ASPECTS:
            entry[aspect] = getattr(column, aspect) or None
        if column.kind == "text":
            entry["unit"] = None  # words have none
        if suffix:
            entry["meaning"] = f"{column.meaning}; {_which(suffix)}"
        entries.append(entry)
    widths = {"column": 26, "family": 12, "filled": 8, "unit": 10}
    fields = tuple(
        Field(name, "integer" if name == "filled" else "text", width=widths.get(name, 48))
        for name in ("column", "family", "filled", *_ASPECTS)
    )
    return Sheet("glossary", fields, entries)


def _which(suffix: str) -> str:
    letter = suffix.rpartition("_")[2]
    if suffix.startswith("_delta"):
        return "change from a to b" if letter == "delta" else f"change from a to {letter}"
    return f"in {letter}"


def _pairs(title: str, facts: Mapping[str, Any]) -> Sheet:
    """Nested facts as a list of dotted names and values."""
    fields = (Field("entry", "text", width=44), Field("value", "text", width=90))
    rows = [{"entry": name, "value": value} for name, value in _flat(facts, "")]
    return Sheet(title, fields, rows)


def _flat(value: Any, name: str) -> Iterator[tuple[str, Value]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from _flat(inner, f"{name}[{index}]")
    elif value is not None:
        yield name, str(value) if isinstance(value, bool) else value
