"""Measurements to rows: every cell a finite number, a word, or empty with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

from weightscope import plugins
from weightscope.columns import IDENTITY, Column
from weightscope.layouts.roles import OUTSIDE_BLOCKS
from weightscope.matrix import Exclusion, Matrix
from weightscope.measurement import Measurement
from weightscope.metrics import welore
from weightscope.metrics.rank import is_constant, is_deficient
from weightscope.outcome import Failure, Value
from weightscope.power_law import NEAR_TIE, SMALLEST_SAMPLE
from weightscope.settings import FAMILIES, Settings
from weightscope.spectrum import Spectrum

Row = dict[str, Value]
"""One row of the result table: every column name, in order, to its cell."""

WHOLE_MODEL = ("welore",)
TAIL_WANTED = 50


def columns_of(families: Iterable[str]) -> tuple[Column, ...]:
    """Columns of the given families, in table order."""
    wanted = set(families)
    return tuple(
        column
        for family in FAMILIES
        if family in wanted
        for column in plugins.load("metrics", family).COLUMNS
    )


def all_columns() -> tuple[Column, ...]:
    """Every column of the result table, in order."""
    return IDENTITY + columns_of(FAMILIES)


@dataclass(frozen=True)
class Evaluated:
    """A row, and its numerical rank, which WeLore needs even where the column is not shown."""

    row: Row
    rank: int = 0


def evaluate(measured: Measurement, settings: Settings) -> Evaluated:
    """All per-matrix columns of one row.

    Columns that need the whole model stay empty; see ``complete``.
    """
    values = _family_values(measured, settings)
    status, why = _status(measured, values)
    reasons = [why] if why else []
    if status in {"ok", "rank_one", "constant", "too_few"}:
        shown = {column.name for column in columns_of(settings.metrics)}
        reasons += [
            f"{name}: {value}."
            for name, value in values.items()
            if isinstance(value, Failure) and name in shown and not (why and name == "alpha")
        ]
    row = _identity(measured.matrix)
    row["status"] = status
    row["warnings"] = ";".join(_warnings(measured, values)) or None
    row["reason"] = " ".join(reasons) or None
    for column in columns_of(settings.metrics):
        row[column.name] = _cell(values.get(column.name))
    rank = values.get("rank")
    return Evaluated(row, rank if isinstance(rank, int) else 0)


def excluded(exclusion: Exclusion) -> Evaluated:
    """Row of a tensor without figures."""
    row = _identity(exclusion.matrix)
    row["status"], row["reason"] = exclusion.status, exclusion.reason
    return Evaluated(row)


def in_welore_fit(rows: Iterable[Row]) -> list[str]:
    """Names of the matrices that WeLore is fitted on.

    Those inside the blocks; all but embeddings and heads where there are no blocks.
    """
    members = [row for row in rows if row["role"] not in OUTSIDE_BLOCKS]
    inside = [row for row in members if row["block"] is not None]
    return [str(row["name"]) for row in inside or members]


def complete(
    evaluated: Iterable[Evaluated], spectra: Mapping[str, Spectrum], settings: Settings
) -> welore.WeloreFit | None:
    """Fill in the columns that depend on the whole model, in place.

    Args:
        evaluated: All rows.
        spectra: Spectrum of every matrix that has one, by name.
        settings: How to fit.

    Returns:
        WeLore's threshold; None where it was not asked for or cannot be found.
    """
    if "welore" not in settings.metrics:
        return None
    evaluated = list(evaluated)
    members = in_welore_fit(e.row for e in evaluated)
    fitted = welore.fit(
        [spectra[name] for name in members if name in spectra], settings.welore_target
    )
    if fitted is not None:
        for entry in evaluated:
            spectrum = spectra.get(str(entry.row["name"]))
            if spectrum is not None:
                entry.row.update(welore.evaluate(spectrum, entry.rank, fitted))
    return fitted


def _family_values(measured: Measurement, settings: Settings) -> dict[str, Value | Failure]:
    """Values of the wanted families and of those they need, each computed once."""
    known: dict[str, Value | Failure] = {}
    done: set[str] = set()

    def add(family: str) -> None:
        if family in done or family in WHOLE_MODEL:
            return
        module: Any = plugins.load("metrics", family)
        for needed in module.NEEDS:
            add(needed)
        known.update(module.evaluate(measured, settings, known))
        done.add(family)

    # status and warnings must not depend on what is shown
    for family in (*settings.metrics, "rank", "alpha", "condition"):
        add(family)
    return known


def _identity(matrix: Matrix) -> Row:
    row: Row = dict.fromkeys(column.name for column in all_columns())
    row.update(
        name=matrix.name,
        block=matrix.block,
        module=matrix.module,
        role=matrix.role,
        expert=matrix.expert,
        rows=matrix.rows,
        cols=matrix.cols,
        N=matrix.N,
        M=matrix.M,
        Q=matrix.Q,
        slices=matrix.slices,
        dtype=matrix.tensor.dtype,
        params=matrix.params,
    )
    return row


def _status(measured: Measurement, values: Mapping[str, Value | Failure]) -> tuple[str, str | None]:
    """The first status that applies, and a sentence where it is not ok."""
    stats, spectrum = measured.stats, measured.spectrum
    if stats is not None and stats.nonfinite:
        return "nonfinite", f"{stats.nonfinite} of {measured.matrix.params} entries are NaN or Inf."
    if spectrum is None:
        return "failed", f"{measured.failure or 'No spectrum could be computed'}."
    if spectrum.largest == 0:
        return "zero", "All entries are zero."
    n = len(spectrum.singular_values)
    if is_constant(spectrum, stats):
        return "constant", "All singular values are equal, so a power law is undefined."
    if n < SMALLEST_SAMPLE:
        what = "1 eigenvalue is" if n == 1 else f"{n} eigenvalues are"
        return "too_few", f"{what} too few for a power law; {SMALLEST_SAMPLE} are needed."
    if values.get("rank") == 1:
        return "rank_one", "The matrix has rank one, so a power law is undefined."
    alpha = values.get("alpha")
    if isinstance(alpha, Failure) and "too few" in alpha.reason:
        return "too_few", f"{alpha}."
    return "ok", None


def _warnings(measured: Measurement, values: Mapping[str, Value | Failure]) -> list[str]:
    """Codes for figures to be read with care."""
    spectrum = measured.spectrum
    if spectrum is None or spectrum.largest == 0:
        return []
    rank, n_tail, gap = (values.get(key) for key in ("rank", "alpha_n_tail", "alpha_gap"))
    condition = values.get("condition_number")
    resolvable = values.get("condition_number_resolvable")
    codes = {
        "tail_small": isinstance(n_tail, int) and n_tail < TAIL_WANTED,
        "rank_deficient": isinstance(rank, int) and is_deficient(rank, spectrum),
        "below_floor": isinstance(resolvable, float)
        and (isinstance(condition, Failure) or _exceeds(condition, resolvable)),
        "near_tie": isinstance(gap, float) and gap < NEAR_TIE,
        "slow_solver": spectrum.solver.startswith("svdvals"),
    }
    return [code for code, applies in codes.items() if applies]


def _exceeds(value: Value | Failure, bound: float) -> bool:
    return isinstance(value, float) and value > bound


def _cell(value: Value | Failure) -> Value:
    """A finite number, a word, or nothing."""
    if isinstance(value, Failure) or (isinstance(value, float) and not isfinite(value)):
        return None
    return value
