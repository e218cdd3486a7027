"""What a plan hands over: the text that another tool reads, and why it says what it says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from weightscope.outcome import Value


@dataclass(frozen=True)
class Proposal:
    """The result of planning.

    Attributes:
        body: Contents of the file for the other tool, ending in a newline.
        records: One mapping per weight that was considered, in the order of the plan: its name,
            whether it was chosen, what the plan gives it, and the columns of the run that decided.
        criterion: A sentence: what decided.
        budget: A sentence: what became of the budget.
        noise: A sentence: what noise of the same shapes would have got.
        deviations: Sentences: where this is not what the paper or its program does.
        remarks: Sentences: what else a reader should know, such as what was left out.
        comment: What begins a comment line of the format; empty where it has none.
        facts: Figures of the plan as a whole, by name.
    """

    body: str
    records: tuple[Mapping[str, Value], ...]
    criterion: str
    budget: str
    noise: str
    deviations: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    comment: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def sentences(self) -> tuple[str, ...]:
        """Everything that explains it, in reading order."""
        told = (f"Not as published: {sentence}" for sentence in self.deviations)
        return (self.criterion, self.budget, self.noise, *told, *self.remarks)


def json_text(value: Any) -> str:
    """JSON for other tools: ASCII, so that no name can be misread; one item a line."""
    return json.dumps(value, allow_nan=False, indent=2) + "\n"
