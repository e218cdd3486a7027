"""A plan for people: why each weight was chosen, as a report, as comments and as a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weightscope.outcome import Value
from weightscope.present.provenance import provenance_lines
from weightscope.proposal import Proposal
from weightscope.report import Cell, Paragraph, Report, Table
from weightscope.run import Run
from weightscope.text import printable
from weightscope.version import __version__


def plan_report(proposal: Proposal, title: str) -> Report:
    """Every weight that was considered, and the sentences."""
    headers = tuple(dict.fromkeys(key for record in proposal.records for key in record))
    rows = tuple(
        tuple(Cell(_text(record.get(key)), _style(record)) for key in headers)
        for record in proposal.records
    )
    numeric = tuple(
        any(isinstance(record.get(key), int | float) for record in proposal.records)
        for key in headers
    )
    table = Table("", headers, rows, numeric, droppable=("decided_by", "module"))
    return Report(title, (table, *map(Paragraph, proposal.sentences)))


def plan_text(proposal: Proposal, run: Run, command: str) -> str:
    """The file: the body, under comments that say what made it where the format has them."""
    if not proposal.comment:
        return proposal.body
    lines = [f"weightscope {__version__}: {command}", *proposal.sentences]
    lines += [f"run: {line}" for line in provenance_lines(run.provenance)]
    # a name with a line break must not end the comment
    head = "".join(f"{proposal.comment} {printable(line)}\n" for line in lines)
    return head + proposal.body


def plan_facts(proposal: Proposal, run: Run, command: str) -> Mapping[str, Any]:
    """What a plan was made of and by, for the record beside it."""
    return {
        "weightscope": __version__,
        "command": command,
        "criterion": proposal.criterion,
        "budget": proposal.budget,
        "noise": proposal.noise,
        "deviations": proposal.deviations,
        "remarks": proposal.remarks,
        "facts": proposal.facts,
        "records": proposal.records,
        "run": run.provenance,
    }


def _text(value: Value) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _style(record: Mapping[str, Value]) -> Any:
    return "dim" if record.get("chosen") == "no" else ""
