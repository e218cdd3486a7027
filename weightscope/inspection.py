"""What a checkpoint holds and what analysing it would cost, from headers alone."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from weightscope.checkpoint import Checkpoint
from weightscope.evaluate import Row
from weightscope.layouts.config import ModelFacts
from weightscope.matrix import Matrix
from weightscope.plan import Plan
from weightscope.report import Block, Cell, Paragraph, Report, Table
from weightscope.resources import available_threads
from weightscope.select import Selection
from weightscope.text import count_of, scaled


@dataclass(frozen=True)
class Pattern:
    """Matrices that differ only in their block or expert index.

    Attributes:
        module: Their name pattern.
        role: Their role.
        shape: Shape as stored.
        dtype: Stored data type, or the encoding of quantised weights.
        view: How a matrix lies in its tensor.
        count: How many there are.
        params: Parameters of all of them.
        treatment: ``analysed``, or why not.
    """

    module: str
    role: str
    shape: tuple[int, ...]
    dtype: str
    view: str
    count: int
    params: int
    treatment: str


@dataclass(frozen=True)
class Inspection:
    """Everything that headers tell.

    Attributes:
        name: Model name.
        files: Number of files.
        patterns: What it holds, in natural order.
        selection: What will be analysed.
        plan: The work.
        facts: What the configuration says.
        seconds: Rough time on this machine's cores.
    """

    name: str
    files: int
    patterns: tuple[Pattern, ...]
    selection: Selection
    plan: Plan
    facts: ModelFacts
    seconds: float


def inspect_checkpoint(
    checkpoint: Checkpoint, selection: Selection, plan: Plan, facts: ModelFacts
) -> Inspection:
    """Collapse the matrices to patterns and estimate the work."""
    groups: dict[tuple[Any, ...], list[Matrix]] = {}
    everything = [(m, _treatment(m)) for m in selection.matrices]
    everything += [(e.matrix, f"{e.status}: {e.reason}") for e in selection.exclusions]
    for matrix, treatment in everything:
        shape = matrix.tensor.shape[1:] if matrix.view == "expert" else matrix.tensor.shape
        if matrix.part is not None:
            shape = (matrix.rows, matrix.cols)
        key = (matrix.module, matrix.role, shape, matrix.form, matrix.view, treatment)
        groups.setdefault(key, []).append(matrix)
    patterns = tuple(
        Pattern(
            module, role, shape, dtype, view, len(found), sum(m.params for m in found), treatment
        )
        for (module, role, shape, dtype, view, treatment), found in groups.items()
    )
    return Inspection(
        checkpoint.name,
        len(checkpoint.files),
        patterns,
        selection,
        plan,
        facts,
        plan.flops / speed(available_threads()),
    )


def _treatment(matrix: Matrix) -> str:
    """What becomes of a matrix that is analysed, and what headers tell against its figures."""
    if matrix.unsplit:
        return f"analysed whole: {matrix.unsplit}"
    if matrix.padding:
        return f"analysed, with {count_of(matrix.padding, 'row')} beyond the vocabulary"
    return "analysed"


def speed(threads: int) -> float:
    """Operations per second that an analysis reaches here, from products of small matrices.

    They are too small for several threads, so that the figure holds on a busy machine too.

    Args:
        threads: Cores to use.
    """
    n = 48
    matrix = np.random.default_rng(0).standard_normal((n, n))
    best = float("inf")
    for _ in range(400):
        start = time.perf_counter()
        matrix @ matrix
        best = min(best, time.perf_counter() - start)
    # Gram products run as fast as this, eigen-solves at half of it
    return 0.6 * threads * 2 * n**3 / best


def inspection_report(inspection: Inspection) -> Report:
    """The inspection for people."""
    blocks: list[Block] = []
    facts = inspection.facts.as_text()
    if facts:
        blocks.append(Paragraph(facts))
    blocks.append(_patterns(inspection.patterns))
    blocks.append(Paragraph(_counts(inspection)))
    blocks.append(Paragraph(_work(inspection), "strong"))
    title = f"{inspection.name}: {count_of(inspection.files, 'file')}"
    return Report(title, tuple(blocks))


def _patterns(patterns: Sequence[Pattern]) -> Table:
    rows = tuple(
        (
            Cell(p.module, "strong"),
            Cell(str(p.count)),
            Cell("x".join(map(str, p.shape))),
            Cell(p.dtype),
            Cell(p.role),
            Cell(f"{p.params:,}"),
            Cell(p.treatment if p.view in {"whole", "expert"} else f"{p.treatment} ({p.view})",
                 "" if p.treatment == "analysed" else "warn"),
        )
        for p in patterns
    )  # fmt: skip
    headers = ("module", "count", "shape", "dtype", "role", "parameters", "treatment")
    return Table("", headers, rows, (False, True, True, False, False, True, False))


_FILTERED = "tensor left out by --include and --exclude"


def _counts(inspection: Inspection) -> str:
    selection = inspection.selection
    analysed = sum(m.params for m in selection.matrices)
    share = 100 * analysed / selection.params if selection.params else 0.0
    text = (
        f"{count_of(len(selection.matrices), 'matrix')} will be analysed: {share:.1f}% of "
        f"{selection.params:,} parameters."
    )
    left = [
        (selection.vectors, "vector or scalar", "vectors and scalars"),
        (selection.integers, "integer tensor", ""),
        (
            len(selection.exclusions),
            "tensor that cannot be analysed",
            "tensors that cannot be analysed",
        ),
        (selection.filtered, _FILTERED, _FILTERED.replace("tensor", "tensors")),
    ]
    counted = ", ".join(count_of(n, one, many) for n, one, many in left if n)
    return text + (f" Not analysed: {counted}." if counted else "")


def _work(inspection: Inspection) -> str:
    plan = inspection.plan
    return (
        f"Work: {scaled(plan.flops, 'FLOP')}, {scaled(plan.bytes_read, 'B', 1024)} to read, "
        f"about {scaled(plan.peak_bytes, 'B', 1024)} of memory, roughly "
        f"{duration(inspection.seconds)} on this CPU."
    )


def duration(seconds: float) -> str:
    """A time for people."""
    for size, unit in ((86400, "days"), (3600, "hours"), (60, "minutes")):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return count_of(max(round(seconds), 1), "second")


def inspection_record(inspection: Inspection) -> Mapping[str, Any]:
    """The inspection as plain values."""
    plan = inspection.plan
    return {
        "model": inspection.name,
        "files": inspection.files,
        "config": inspection.facts.as_record(),
        "patterns": [{**vars(p), "shape": list(p.shape)} for p in inspection.patterns],
        "matrices": len(inspection.selection.matrices),
        "params": inspection.selection.params,
        "vectors": inspection.selection.vectors,
        "integer_tensors": inspection.selection.integers,
        "work": {
            "flops": plan.flops,
            "bytes_read": plan.bytes_read,
            "peak_bytes": plan.peak_bytes,
            "seconds": inspection.seconds,
        },
    }


def patterns_table(inspection: Inspection) -> tuple[list[str], list[Row]]:
    """Column names and rows for a CSV of the patterns."""
    rows: list[Row] = [
        {**vars(p), "shape": "x".join(map(str, p.shape))} for p in inspection.patterns
    ]
    return [field.name for field in fields(Pattern)], rows
