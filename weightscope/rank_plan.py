"""A rank plan: which matrices become two factors, of what rank, and what that should give.

The file is JSON, ``weightscope_plan`` its version and ``for`` its kind. It says what it was made
of (files with the hashes of their headers), how (the criterion) and, per matrix, what to expect
(parameters, bytes, error), so that whoever applies it can tell that it fits and that it worked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from weightscope.errors import PlanError
from weightscope.tensor import DTYPES
from weightscope.text import shortened

PLAN_VERSION = 1
KIND = "welore"
MAX_BYTES = 256 << 20


def break_even(rows: int, cols: int) -> int:
    """The largest rank whose two factors hold no more parameters than the matrix.

    ``r (rows + cols) <= rows cols``: 2048 for 4096 x 4096, 2985 for 11008 x 4096.
    """
    return rows * cols // (rows + cols) if rows + cols else 0


@dataclass(frozen=True)
class PlannedMatrix:
    """One matrix of a plan.

    Attributes:
        name: Name of its tensor.
        rows: Rows as stored.
        cols: Columns as stored.
        dtype: Stored data type, a code of ``DTYPES``; factors keep it.
        count: Number of singular values.
        rank: Singular values that the criterion keeps.
        factorised: Whether it becomes two factors of this rank; otherwise it stays as it is.
        relative_error: Frobenius norm of what the rank drops, over that of the matrix, both from
            the saved spectrum; what it would be for a matrix that stays.
        frobenius_norm: Norm of the matrix, by which it is recognised.
        noise_rank: Rank that the same criterion keeps where every matrix is Gaussian noise of its
            shape; None where that was not asked.
        noise_factorised: Whether it would be factorised then.
    """

    name: str
    rows: int
    cols: int
    dtype: str
    count: int
    rank: int
    factorised: bool
    relative_error: float
    frobenius_norm: float
    noise_rank: int | None = None
    noise_factorised: bool | None = None

    @property
    def parameters(self) -> int:
        """Parameters now."""
        return self.rows * self.cols

    @property
    def planned_parameters(self) -> int:
        """Parameters under the plan."""
        return self.rank * (self.rows + self.cols) if self.factorised else self.parameters

    @property
    def width(self) -> int:
        """Bytes of one entry."""
        return DTYPES[self.dtype].bits // 8

    def record(self) -> dict[str, Any]:
        """Plain values, with what follows from them for readers of the file."""
        sizes = {
            "parameters": self.parameters,
            "planned_parameters": self.planned_parameters,
            "bytes": self.parameters * self.width,
            "planned_bytes": self.planned_parameters * self.width,
            "break_even_rank": break_even(self.rows, self.cols),
        }
        return {**asdict(self), **sizes}


@dataclass(frozen=True)
class RankPlan:
    """Ranks for the matrices of one model.

    Attributes:
        source: Model name, format, revision and files (name, size, header hash) it was made of.
        made_by: Version, command and run behind it.
        criterion: What chose the ranks, as plain values.
        matrices: Those that the criterion decided on, in natural order of names.
        kept: Matrices that no rank was sought for, by name, and why.
        budget: What became of the target, as plain values.
    """

    source: Mapping[str, Any]
    made_by: Mapping[str, Any]
    criterion: Mapping[str, Any]
    matrices: tuple[PlannedMatrix, ...]
    kept: Mapping[str, str] = field(default_factory=dict)
    budget: Mapping[str, Any] = field(default_factory=dict)

    @property
    def factorised(self) -> tuple[PlannedMatrix, ...]:
        """The matrices that become two factors."""
        return tuple(matrix for matrix in self.matrices if matrix.factorised)

    def record(self) -> dict[str, Any]:
        """The whole plan as plain values."""
        return {
            "weightscope_plan": PLAN_VERSION,
            "for": KIND,
            "source": self.source,
            "made_by": self.made_by,
            "criterion": self.criterion,
            "budget": self.budget,
            "matrices": [matrix.record() for matrix in self.matrices],
            "kept": self.kept,
        }


def parameters_of(matrices: Sequence[PlannedMatrix]) -> tuple[int, int]:
    """Parameters of some matrices now, and under the plan."""
    now = sum(matrix.parameters for matrix in matrices)
    return now, sum(matrix.planned_parameters for matrix in matrices)


def bytes_of(matrices: Sequence[PlannedMatrix]) -> tuple[int, int]:
    """Bytes of some matrices now, and under the plan."""
    now = sum(matrix.parameters * matrix.width for matrix in matrices)
    return now, sum(matrix.planned_parameters * matrix.width for matrix in matrices)


def budget(
    matrices: Sequence[PlannedMatrix], model_parameters: int, noise_threshold: float | None
) -> dict[str, Any]:
    """What becomes of the target: ranks, parameters, bytes, error, and the same on noise."""
    now, planned = parameters_of(matrices)
    bytes_now, bytes_planned = bytes_of(matrices)
    ranks = sum(matrix.count for matrix in matrices)
    chosen = [matrix for matrix in matrices if matrix.factorised]
    dropped = sum((m.relative_error * m.frobenius_norm) ** 2 for m in chosen)
    energy = sum(matrix.frobenius_norm**2 for matrix in matrices)
    return {
        "matrices": len(matrices),
        "factorised": len(chosen),
        "attempted": sum(m.count - m.rank for m in matrices) / ranks,
        "effective": sum(m.count - m.rank for m in chosen) / ranks,
        "parameters": now,
        "planned_parameters": planned,
        "parameter_ratio": planned / now,
        "bytes": bytes_now,
        "planned_bytes": bytes_planned,
        "model_parameters": model_parameters,
        "planned_model_parameters": model_parameters - now + planned,
        "relative_error": (dropped / energy) ** 0.5 if energy else 0.0,
        "noise": None if noise_threshold is None else _on_noise(matrices, noise_threshold),
    }


def _on_noise(matrices: Sequence[PlannedMatrix], threshold: float) -> dict[str, Any]:
    """The same criterion where every matrix is Gaussian noise of its shape."""
    here = {matrix.name for matrix in matrices if matrix.factorised}
    there = {matrix.name for matrix in matrices if matrix.noise_factorised}
    ranks = sum(matrix.count for matrix in matrices)
    chosen = [matrix for matrix in matrices if matrix.noise_factorised]
    return {
        "threshold": threshold,
        "factorised": len(there),
        "in_both": len(here & there),
        "effective": sum(m.count - (m.noise_rank or 0) for m in chosen) / ranks,
        "follows_shape": bool(here) and here == there,
    }


def read_rank_plan(path: Path) -> RankPlan:
    """Read a plan file.

    Raises:
        PlanError: Not there, no plan of ranks, of another version, or one that contradicts itself.
    """
    record = _parsed(path)
    kind, version = record.get("for"), record.get("weightscope_plan")
    if version is None or kind != KIND:
        what = f"a plan for {shortened(kind)}" if version is not None else "no plan of weightscope"
        raise PlanError(f"{path}: is {what}; write one with: weightscope plan RUN --for {KIND}")
    if version != PLAN_VERSION:
        raise PlanError(
            f"{path}: has plan version {shortened(version)}, this version reads {PLAN_VERSION}; "
            "plan again"
        )
    tables = {name: record.get(name) for name in ("source", "made_by", "criterion", "budget")}
    kept, listed = record.get("kept"), record.get("matrices")
    for name, table in {**tables, "kept": kept}.items():
        if not isinstance(table, dict):
            raise PlanError(f"{path}: its {name} is not a table; plan again")
    if not isinstance(listed, list):
        raise PlanError(f"{path}: its matrices are not a list; plan again")
    matrices = tuple(_matrix(path, entry) for entry in listed)
    if len({matrix.name for matrix in matrices}) < len(matrices):
        raise PlanError(f"{path}: names a matrix twice; plan again")
    assert isinstance(kept, dict)
    return RankPlan(**tables, matrices=matrices, kept=kept)  # type: ignore[arg-type]


def _parsed(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise PlanError(f"{path}: is larger than {MAX_BYTES >> 20} MiB, no plan")
        record = json.loads(path.read_bytes())
    except OSError as error:
        raise PlanError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError):
        raise PlanError(f"{path}: is not valid JSON") from None
    if not isinstance(record, dict):
        raise PlanError(f"{path}: is not a JSON object")
    return record


_KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str, "rows": int, "cols": int, "dtype": str, "count": int, "rank": int,
    "factorised": bool, "relative_error": (int, float), "frobenius_norm": (int, float),
    "noise_rank": (int, type(None)), "noise_factorised": (bool, type(None)),
}  # fmt: skip


def _is(value: Any, name: str) -> bool:
    """Whether a value is of the kind of its field; a truth value is no number."""
    kind = _KINDS[name]
    return isinstance(value, kind) and (
        isinstance(value, bool) is ("factorised" in name) or value is None
    )


def _matrix(path: Path, entry: Any) -> PlannedMatrix:
    """One entry of the file, checked: ranks and sizes are asked of people, too."""
    names = [each.name for each in fields(PlannedMatrix)]
    if not isinstance(entry, dict) or not all(_is(entry.get(name), name) for name in names):
        raise PlanError(f"{path}: {shortened(entry)} is no entry of a plan; plan again")
    found = PlannedMatrix(**{name: entry[name] for name in names})
    label = f"{path}: {shortened(found.name)}"
    if DTYPES.get(found.dtype) is None or DTYPES[found.dtype].kind != "float":
        raise PlanError(f"{label} has the data type {shortened(found.dtype)}, which has no factors")
    if not 1 <= found.rank <= min(found.rows, found.cols):
        raise PlanError(
            f"{label} of shape {found.rows} x {found.cols} cannot have rank {found.rank}"
        )
    for key, value in found.record().items():
        if key not in names and entry.get(key, value) != value:
            raise PlanError(
                f"{label}: its {key} is {shortened(entry[key])}, but its rank gives {value}; "
                "plan again rather than editing the file"
            )
    return found
