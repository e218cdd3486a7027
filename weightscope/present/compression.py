"""A compression as a table: what was planned per matrix, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence

from weightscope.compressed import Compressed
from weightscope.rank_plan import RankPlan, bytes_of, parameters_of
from weightscope.report import Block, Cell, Paragraph, Report, Table
from weightscope.text import count_of, scaled

COLUMNS = (
    "name",
    "rows",
    "cols",
    "dtype",
    "rank",
    "parameters",
    "new_parameters",
    "planned_error",
    "relative_error",
    "stored_error",
)
"""Columns of the table, as ``Compressed.record`` names them."""
_HEADERS = ("name", "shape", "rank", "parameters", "planned error", "error", "as stored")


def origin_lines(plan: RankPlan, command: str) -> list[str]:
    """What produced it: this command, the criterion of the plan, and the run behind it."""
    said = ", ".join(f"{key} {value}" for key, value in plan.criterion.items() if _short(value))
    return [f"Made by: {command}", f"Plan: {said}", f"Run: {plan.made_by.get('run')}"]


def _short(value: object) -> bool:
    return isinstance(value, int | float) or (isinstance(value, str) and " " not in value)


def compression_report(plan: RankPlan, done: Sequence[Compressed]) -> Report:
    """Every factorised matrix with its errors, then the sizes before and after."""
    rows = tuple(
        (
            Cell(each.planned.name.removesuffix(".weight")),
            Cell(f"{each.planned.rows}x{each.planned.cols}"),
            Cell(str(each.planned.rank)),
            Cell(f"{100 * each.planned.planned_parameters / each.planned.parameters:.0f}%"),
            Cell(f"{each.planned.relative_error:.4f}"),
            Cell(f"{each.relative_error:.4f}"),
            Cell(f"{each.stored_error:.4f}"),
        )
        for each in done
    )
    blocks: list[Block] = []
    if rows:
        numeric = (False, False, *(True,) * 5)
        blocks.append(Table("", _HEADERS, rows, numeric, ("shape", "planned error")))
    now, then = parameters_of(plan.matrices)
    bytes_now, bytes_then = bytes_of(plan.matrices)
    blocks.append(
        Paragraph(
            f"{count_of(len(done), 'matrix')} of {len(plan.matrices)} in two factors: "
            f"{now:,} -> {then:,} parameters, {scaled(bytes_now, 'B')} -> "
            f"{scaled(bytes_then, 'B')}, as planned. Errors are relative, in the Frobenius norm: "
            "of the weights, not of what the model does with them."
        )
    )
    return Report(f"{plan.source['model']}: compressed", tuple(blocks))
