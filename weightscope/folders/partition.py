"""A model's matrices cut into parts for several processes, on any machines.

Every process makes the same cut from headers alone. The matrices are taken in the order of the
plan, which is that of their bytes, and each goes to the part in whose equal stretch of the whole
cost its own middle lies. So every part is one run of consecutive matrices: a file belongs to one
part but for those at the cuts, at most one more read of a file than there are parts. And every
part's cost is within one matrix of the mean: the run of its matrices begins and ends at most half
a matrix outside its stretch or inside it, so |cost - total / parts| <= largest cost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from weightscope.matrix import Matrix
from weightscope.plan import flops, make_plan
from weightscope.recipe import Farms
from weightscope.select import Selection
from weightscope.share import Share


@dataclass(frozen=True)
class Portion:
    """A share of a selection.

    Attributes:
        selection: The matrices of the share; tensors without figures belong to the first part.
        names: Matrices of the whole selection, in the order of its plan.
    """

    selection: Selection
    names: tuple[str, ...]

    def as_record(self) -> dict[str, Any]:
        """What it is a portion of, for provenance."""
        return {"matrices": len(self.names), "names_sha256": fingerprint(self.names)}


def portion(selection: Selection, share: Share, farms: Farms | None) -> Portion:
    """The share of a selection that one process has to analyse."""
    ordered = list(make_plan(selection.matrices, farms).matrices)
    owners = cut([cost(matrix, farms) for matrix in ordered], share.count)
    wanted = {index - 1 for index in share.indices}
    mine = {m.name for m, owner in zip(ordered, owners, strict=True) if owner in wanted}
    kept = tuple(matrix for matrix in selection.matrices if matrix.name in mine)
    exclusions = selection.exclusions if share.indices[0] == 1 else ()
    part = replace(selection, matrices=kept, exclusions=exclusions)
    return Portion(part, tuple(matrix.name for matrix in ordered))


def cost(matrix: Matrix, farms: Farms | None) -> int:
    """What balance is measured in: the operations of a matrix, an integer so that sums are exact.

    The same on every machine, and at least 1.
    """
    return max(1, round(flops(matrix, farms)))


def cut(costs: Sequence[int], parts: int) -> list[int]:
    """The part, from 0, that each of consecutive costs belongs to.

    Args:
        costs: Positive.
        parts: How many there are; some are empty where a cost is larger than an equal stretch.

    Returns:
        As many numbers as costs, ascending. The sum of no part is further from the mean of all
        parts than the largest cost.
    """
    total, before, owners = sum(costs), 0, []
    for one in costs:
        owners.append((2 * before + one) * parts // (2 * total))
        before += one
    return owners


def fingerprint(names: Sequence[str]) -> str:
    """Hash of names in order, whatever characters they hold."""
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()
