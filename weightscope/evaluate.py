"""Measurements to rows: every cell a finite number, a word, or empty with a reason."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite, log10
from typing import Any

from weightscope import plugins
from weightscope.columns import IDENTITY, Column
from weightscope.compat import conventions, in_units_of
from weightscope.laws.power_law import NEAR_TIE, SMALLEST_SAMPLE
from weightscope.layouts.roles import OUTSIDE_BLOCKS, TAILLESS
from weightscope.matrix import Exclusion, Matrix
from weightscope.measurement import Measurement
from weightscope.metrics import welore
from weightscope.metrics.rank import DEFICIENT, is_constant
from weightscope.outcome import Details, Failure, Value, Values
from weightscope.settings import FAMILIES, THRESHOLDS, Settings
from weightscope.spectrum import Spectrum

Cell = Value | Failure | Details
Row = dict[str, Value]
"""One row of the result table: every column name, in order, to its cell."""

UNCHANGED = "It equals the base."
WHOLE_MODEL = ("welore",)
TAILS = {"alpha": "alpha", "farms": "alpha_farms", "erg": "erg_n_tail"}
"""Families that look for a tail, and the column that says why there is none."""
PADDING_WANTED = 16
TAIL_WANTED = THRESHOLDS["tail_small"]
DECADES_WANTED = THRESHOLDS["tail_short_decades"]


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


def left_out(settings: Settings) -> dict[str, str]:
    """Columns that settings leave empty in every row, and what to do about each."""
    found: dict[str, str] = {}
    for family in FAMILIES:
        for column in columns_of([family]):
            if advice := _needed(column.name, family, settings):
                found[column.name] = advice
    return found


def _needed(column: str, family: str, settings: Settings) -> str:
    """What to do to have a column at all; empty where the settings ask for it."""
    bits = column.rpartition("_")[2]
    if family == "bootstrap" and not settings.bootstrap:
        return "analyze with --bootstrap 200"
    if family == "shuffled" and settings.shuffled is None:
        return "analyze with --shuffled"
    if family == "quant" and int(bits) not in settings.quant_error:
        return f"analyze with --quant-error {bits}"
    if family not in settings.metrics:
        return f"analyze with {family} in --metrics"
    if column == "alpha_lambda" and settings.fit == "pl":
        return "analyze with --fit tpl"
    if family in WHOLE_MODEL and settings.shard is not None:
        return "merge the parts of the model first"
    return ""


@dataclass(frozen=True)
class Evaluated:
    """A row and what goes with it.

    Attributes:
        row: Its cells.
        rank: Numerical rank, which WeLore needs even where the column is not shown.
        details: Figures that are no cells, by name.
    """

    row: Row
    rank: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)


def evaluate(measured: Measurement, settings: Settings) -> Evaluated:
    """All per-matrix columns of one row.

    Columns that need the whole model stay empty; see ``complete``.
    """
    measured = in_units_of(measured, conventions(settings.compat))
    values = _family_values(measured, settings)
    status, why = _status(measured, values)
    reasons = [why] if why else []
    if status in {"ok", "rank_one", "constant", "too_few", "fused"}:
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
    details = {name: dict(v) for name, v in values.items() if isinstance(v, Mapping)}
    return Evaluated(row, rank if isinstance(rank, int) else 0, details)


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
        WeLore's threshold; None where it was not asked for or cannot be found, and for a part of
        a model.
    """
    if "welore" not in settings.metrics or settings.shard is not None:
        return None
    evaluated = list(evaluated)
    members = in_welore_fit(e.row for e in evaluated)
    fitted = welore.fit_under([spectra[name] for name in members if name in spectra], settings)
    if fitted is not None:
        for entry in evaluated:
            spectrum = spectra.get(str(entry.row["name"]))
            if spectrum is not None:
                entry.row.update(welore.evaluate(spectrum, entry.rank, fitted))
    return fitted


def _family_values(measured: Measurement, settings: Settings) -> dict[str, Cell]:
    """Values of the wanted families and of those they need, each computed once."""
    known: dict[str, Cell] = {}
    # status and warnings must not depend on what is shown
    for family in _needed_first((*settings.metrics, "rank", "alpha", "condition")):
        if family in TAILS and measured.matrix.role in TAILLESS:
            known[TAILS[family]] = Failure("a router has no tail to fit")
        else:
            module: Any = plugins.load("metrics", family)
            known.update(module.evaluate(measured, settings, known))
    return known


def _needed_first(wanted: Iterable[str]) -> Iterable[str]:
    """Families of a matrix, each behind those that it needs."""
    found: dict[str, None] = {}
    for family in wanted:
        if family not in WHOLE_MODEL:
            module: Any = plugins.load("metrics", family)
            found |= dict.fromkeys((*_needed_first(module.NEEDS), family))
    return found


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
        dtype=matrix.dtype,
        params=matrix.params,
    )
    return row


def _status(measured: Measurement, values: Values) -> tuple[str, str | None]:
    """The first status that applies, and a sentence where it is not ok."""
    stats, spectrum = measured.stats, measured.spectrum
    if stats is not None and stats.nonfinite:
        return "nonfinite", f"{stats.nonfinite} of {measured.matrix.params} entries are NaN or Inf."
    if spectrum is None:
        return "failed", f"{measured.failure or 'No spectrum could be computed'}."
    if spectrum.largest == 0:
        return "zero", _nothing(measured.matrix)
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
    if measured.matrix.unsplit:
        return (
            "fused",
            f"Several matrices in one tensor, analysed whole: {measured.matrix.unsplit}.",
        )
    return "ok", None


def _nothing(matrix: Matrix) -> str:
    """What a spectrum of zeros says."""
    if matrix.product is not None and matrix.base is None:
        return "The update is zero: a factor of the adapter is, so it was never trained here."
    if matrix.base is not None and not matrix.merged:
        return UNCHANGED
    return "All entries are zero."


def _warnings(measured: Measurement, values: Values) -> list[str]:
    """Codes for figures to be read with care."""
    spectrum = measured.spectrum
    if spectrum is None or spectrum.largest == 0:
        return []
    rank, n_tail, gap = (values.get(key) for key in ("rank", "alpha_n_tail", "alpha_gap"))
    condition = values.get("condition_number")
    resolvable = values.get("condition_number_resolvable")
    xmin, pooled = values.get("alpha_relative_xmin"), values.get("alpha_farms_n_tail")
    codes = {
        "tail_small": isinstance(n_tail, int) and n_tail < TAIL_WANTED,
        "tail_short": isinstance(xmin, float) and -log10(xmin) < DECADES_WANTED,
        "outside_interval": _outside(values),
        "farms_tail_small": isinstance(pooled, int) and pooled < TAIL_WANTED,
        "rank_deficient": isinstance(rank, int) and rank < DEFICIENT * measured.matrix.full_rank,
        "below_floor": measured.matrix.full_rank == measured.matrix.n_evals
        and isinstance(resolvable, float)
        and (isinstance(condition, Failure) or _exceeds(condition, resolvable)),
        "near_tie": isinstance(gap, float) and gap < NEAR_TIE,
        "padded_rows": measured.matrix.padding > 0
        or (measured.stats is not None and measured.stats.equal_tail >= PADDING_WANTED),
        "slow_solver": spectrum.solver.startswith(("svdvals", "numpy")),
    }
    return [code for code, applies in codes.items() if applies]


def _outside(values: Values) -> bool:
    """Whether the bootstrap interval does not hold the exponent that it is for."""
    alpha, low, high = (values.get(key) for key in ("alpha", "alpha_lo", "alpha_hi"))
    if not (isinstance(alpha, float) and isinstance(low, float) and isinstance(high, float)):
        return False
    return not low <= alpha <= high


def _exceeds(value: Cell, bound: float) -> bool:
    return isinstance(value, float) and value > bound


def _cell(value: Cell) -> Value:
    """A finite number, a word, or nothing."""
    if isinstance(value, Failure | Mapping) or (isinstance(value, float) and not isfinite(value)):
        return None
    return value
