"""A result field that knows its type, unit, format, meaning and how far to believe it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "integer", "number"]


@dataclass(frozen=True)
class Column:
    """One column of the result table, and its entry in ``weightscope explain``.

    Attributes:
        name: Column name, stable across versions.
        kind: Type of its cells.
        meaning: One line, for tables of columns.
        formula: How it is computed.
        unit: ``1`` for a pure number, ``W`` or ``W^2`` for what scales with the weights.
        range: Values it can take.
        reading: How to read it.
        caution: When not to believe it.
        noise: What it is for a matrix of independent Gaussian entries.
        source: Paper, equation or section.
    """

    name: str
    kind: Kind
    meaning: str
    formula: str = ""
    unit: str = "1"
    range: str = ""
    reading: str = ""
    caution: str = ""
    noise: str = ""
    source: str = ""


IDENTITY: tuple[Column, ...] = (
    Column("name", "text", "tensor name as stored, [e] for one expert of a stack"),
    Column("block", "integer", "first numeric component of the name (the layer index)"),
    Column("module", "text", "name without .weight, # for the block and expert index"),
    Column("role", "text", "what the matrix does, such as attn_q, mlp_up, embedding, conv"),
    Column("expert", "integer", "index of the expert, for mixtures of experts"),
    Column("rows", "integer", "rows as stored (of one slice, for a convolution)"),
    Column("cols", "integer", "columns as stored (of one slice, for a convolution)"),
    Column("N", "integer", "longer side"),
    Column("M", "integer", "shorter side"),
    Column("Q", "number", "aspect ratio N / M", range="[1, inf)"),
    Column("slices", "integer", "matrices pooled into one spectrum (kernel positions), else 1"),
    Column("dtype", "text", "stored data type"),
    Column("params", "integer", "number of entries"),
    Column(
        "status",
        "text",
        "ok, or the first that applies of empty nonfinite zero constant too_few rank_one "
        "unsupported failed skipped",
        reading="Anything but ok means that some or all figures of the row are undefined; "
        "the reason column says which and why.",
    ),
    Column("warnings", "text", "codes, separated by ';', for figures to read with care"),
    Column("reason", "text", "a sentence: why cells of this row are empty"),
)
"""The columns that identify a row; the metric families append theirs."""
