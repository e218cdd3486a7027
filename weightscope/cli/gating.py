"""``--fail-on`` rules at the end of a verb."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from weightscope.cli.explained import say
from weightscope.errors import GateError
from weightscope.evaluate import Row
from weightscope.gates import Gate, hits, parse_gate
from weightscope.present import short

SHOWN = 20


def read_gates(rules: Iterable[str] | None, columns: Iterable[str]) -> list[Gate]:
    """Read the rules before any work.

    Raises:
        OptionError: One cannot be read.
    """
    columns = tuple(columns)
    return [parse_gate(rule, columns) for rule in rules or ()]


def apply_gates(gates: Sequence[Gate], rows: Sequence[Row]) -> None:
    """Print the rules that rows break, with those rows.

    Raises:
        GateError: There is one.
    """
    broken = hits(gates, rows)
    for gate, found in broken:
        say(f"Rule hit by {len(found)} of {len(rows)} rows: {gate.text}")
        for row in found[:SHOWN]:
            first = str(next(iter(row.values())))
            cells = ", ".join(f"{name} {short(row[name])}" for name in gate.columns)
            say(f"  {first}: {cells}")
        if len(found) > SHOWN:
            say(f"  and {len(found) - SHOWN} more")
    if broken:
        count = "a --fail-on rule was" if len(broken) == 1 else f"{len(broken)} rules were"
        raise GateError(f"{count} hit")
