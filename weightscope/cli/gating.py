"""What ends a verb with another code than 0 after its output: ``--fail-on``, nothing analysed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from weightscope.cli.explained import say
from weightscope.errors import CheckpointError, GateError, OptionError
from weightscope.evaluate import Row, all_columns
from weightscope.gates import Gate, hits, parse_gate
from weightscope.present.run import unanalysed
from weightscope.run import Run
from weightscope.text import short

SHOWN = 20


_TEXTS = frozenset(
    {column.name for column in all_columns() if column.kind == "text"}
    | {"change", "reading", "alpha_moved", "band_change", "class_change", "present"}
)
"""Columns of runs and comparisons that hold words, without the letter of the run."""


def read_gates(
    rules: Iterable[str] | None, columns: Iterable[str], texts: Collection[str] = _TEXTS
) -> list[Gate]:
    """Read the rules before any work.

    Args:
        rules: As they were written.
        columns: Of the table.
        texts: Those that hold words, without the letter of the run.

    Raises:
        OptionError: One cannot be read.
    """
    kinds = {name: not _is_text(name, texts) for name in columns}
    return [parse_gate(rule, kinds) for rule in rules or ()]


def _is_text(column: str, texts: Collection[str]) -> bool:
    return column in texts or column.removesuffix("_a").removesuffix("_b") in texts


def check_computed(gates: Iterable[Gate], left_out: Mapping[str, str]) -> None:
    """A rule on a column that nothing fills can never do its work: that is a slip, not a pass.

    Args:
        gates: The rules.
        left_out: Columns that are empty in every row, and what to do about each.

    Raises:
        OptionError: A rule mentions one of them.
    """
    for gate in gates:
        for name in gate.columns:
            if name in left_out:
                raise OptionError(
                    f"--fail-on {gate.text!r}: {name} is not computed here; {left_out[name]}"
                )


def apply_gates(gates: Sequence[Gate], rows: Sequence[Row]) -> None:
    """Print the rules that rows break, with those rows.

    Raises:
        GateError: There is one.
    """
    for gate in gates:
        for name in gate.columns:
            if rows and "empty" not in gate.text and all(row[name] is None for row in rows):
                say(f"Warning: {name} is empty in every row, so the rule cannot fit: {gate.text}")
    broken = hits(gates, rows)
    for gate, found in broken:
        say(f"Rule hit by {len(found)} of {len(rows)} rows: {gate.text}")
        for row in found[:SHOWN]:
            cells = ", ".join(f"{name} {short(row[name])}" for name in gate.columns)
            say(f"  {row['name']}: {cells}")
        if len(found) > SHOWN:
            say(f"  and {len(found) - SHOWN} more")
    if broken:
        count = "a --fail-on rule was" if len(broken) == 1 else f"{len(broken)} rules were"
        raise GateError(f"{count} hit")


def check_analysed(run: Run, model: object) -> None:
    """A pipeline must not take a run without any figure for a good one.

    Args:
        run: What was made.
        model: Of what, as the user names it.

    Raises:
        CheckpointError: No matrix of the model could be analysed.
    """
    if why := unanalysed(run):
        raise CheckpointError(f"{model}: {why}")
