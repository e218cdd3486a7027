"""From the rows of a run to the parameters and modules that a model in memory has."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from weightscope.errors import OptionError
from weightscope.evaluate import Row
from weightscope.layouts.roles import VOCABULAR, place_of, role_of
from weightscope.layouts.wrappers import unwrapped
from weightscope.run import Run

_PART = re.compile(r"\[\w+\]$")
_NAMES_OF_THEIR_OWN = {"gguf": "GGUF"}


@dataclass(frozen=True)
class Weight:
    """A stored parameter with all its rows: one, or one for each expert or part of it.

    Attributes:
        name: Parameter name without what training wrappers put around it.
        kind: Its module type: the name with ``#`` for the indices, without ``.weight``.
        rows: Its rows of the run, in order.
        position: Place among the weights of the run, in natural order of names.
    """

    name: str
    kind: str
    rows: tuple[Row, ...]
    position: int

    @property
    def module(self) -> str | None:
        """The module whose weight it is; None for a parameter that is no module's ``weight``."""
        return self.name.removesuffix(".weight") if self.name.endswith(".weight") else None

    @property
    def role(self) -> str:
        """What it does; of a fused one what its first part does."""
        return str(self.rows[0]["role"])

    @property
    def is_vocabular(self) -> bool:
        """Whether it is an embedding of tokens or a head."""
        return self.role in VOCABULAR

    @property
    def params(self) -> int:
        """Number of entries."""
        return sum(int(row["params"] or 0) for row in self.rows)

    @property
    def sides(self) -> tuple[int, int]:
        """Outputs and inputs of the whole, those of a kernel's positions together."""
        pairs = [(_count(row, "rows"), _count(row, "cols")) for row in self.rows]
        rows, cols = pairs[0]
        if len(pairs) == 1:
            return rows, cols * _count(self.rows[0], "slices")
        if len({c for _, c in pairs}) == 1:
            return sum(r for r, _ in pairs), cols
        return rows, sum(c for _, c in pairs)

    @property
    def is_stack(self) -> bool:
        """Whether it stacks experts, which no module stands for."""
        return len(self.rows) > 1 and self.rows[0]["expert"] != self.rows[-1]["expert"]


def weights_of(run: Run, prefix: str = "") -> tuple[Weight, ...]:
    """Every parameter that has rows, in natural order of names.

    Args:
        run: A run.
        prefix: What the model in memory has before the names in the file.

    Raises:
        OptionError: The run is not of all the weights of a model, or the names of the file are not
            those of any model in memory.
    """
    _check(run)
    found: dict[str, list[Row]] = {}
    for row in run.rows:
        found.setdefault(prefix + unwrapped(tensor_of(row)), []).append(row)
    return tuple(
        Weight(name, str(rows[0]["module"]).removesuffix(_part_of(rows[0])), tuple(rows), position)
        for position, (name, rows) in enumerate(found.items())
    )


def _check(run: Run) -> None:
    """Refuse runs that say nothing about what to do with a model's weights."""
    form = _NAMES_OF_THEIR_OWN.get(str(run.provenance["source"]["format"]))
    if form:
        raise OptionError(
            f"{run.name}: is a {form} file, whose names no model in memory has; plan from a run "
            "of the original checkpoint"
        )
    merged = run.provenance["settings"]["merged"]
    adapter = any(row["adapter_rank"] is not None for row in run.rows)
    if not merged and (adapter or run.provenance.get("base")):
        what = "the update of an adapter" if adapter else "a difference to a base model"
        raise OptionError(
            f"{run.name}: the run is of {what}; plans are for the weights of a model: analyze the "
            "model itself, or an adapter with --base and --merged"
        )
    if run.summary.get("undrawn"):
        raise OptionError(f"{run.name}: the run is a sample; analyze the whole model to plan")


def tensor_of(row: Row) -> str:
    """Name of the stored tensor that a row is of, without ``[3]`` and ``[q]``."""
    name = str(row["name"]).removesuffix(_part_of(row))
    return name if row["expert"] is None else name.removesuffix(f"[{row['expert']}]")


def _part_of(row: Row) -> str:
    """What marks the part of a fused tensor in the row's name, such as ``[q]``; empty elsewhere."""
    name, module = str(row["name"]), str(row["module"])
    part = _PART.search(module)
    # a stored name may end in brackets too; then its role is read off it as it is
    stored = place_of(name).module == module and role_of(module) == row["role"]
    return "" if part is None or stored else part.group()


def hidden_by(target: str, names: Iterable[str]) -> list[str]:
    """Names that end in ``.target``: what a tool that compares endings would take as well."""
    return [name for name in names if name.endswith(f".{target}")]


def _count(row: Row, column: str) -> int:
    return int(row[column] or 0)
