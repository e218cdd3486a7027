"""Criteria that order weights, each with what noise of the same shape would get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightscope.errors import OptionError
from weightscope.evaluate import Row, in_welore_fit
from weightscope.laws.noise.expected import Shape, expected_evals
from weightscope.metrics import snr, welore
from weightscope.run import Run
from weightscope.spectrum import Spectrum


@dataclass(frozen=True)
class Criterion:
    """An order of weights, best first.

    Attributes:
        name: What ``--by`` takes.
        column: The column of the run that decides.
        family: The metric family that fills it.
        first: ``lowest`` or ``highest``: which values come first.
        meaning: Why these come first, as a clause.
        source: Where it comes from.
        null: The column with its value for noise; empty where ``noise_values`` computes it.
        per_eval: The column is a count that is compared over the number of singular values.
        noise_keeps: What the noise has in common with the weights.
        deviation: A sentence where it is not what was published; empty where it is.
    """

    name: str
    column: str
    family: str
    first: str
    meaning: str
    source: str
    null: str = ""
    per_eval: bool = False
    noise_keeps: str = "shapes"
    deviation: str = ""

    @property
    def sign(self) -> int:
        """What makes the first value the smallest."""
        return 1 if self.first == "lowest" else -1

    def of(self, row: Row) -> float | None:
        """Its value for a row; None where the run has none."""
        return self._scaled(number(row, self.column), row)

    def null_of(self, row: Row) -> float | None:
        """Its value for noise of the row's shape by the null column; None where there is none."""
        return self._scaled(number(row, self.null), row) if self.null else None

    def _scaled(self, value: float | None, row: Row) -> float | None:
        if value is None or not self.per_eval:
            return value
        return value / (int(row["M"] or 0) * int(row["slices"] or 1))

    @property
    def formula(self) -> str:
        """What is compared, for people."""
        return f"{self.column} / (M slices)" if self.per_eval else self.column


CRITERIA = (
    Criterion(
        "kappa", "condition_number", "condition", "lowest",
        "an even, unspecialised matrix, whose change costs least of what is known",
        "KappaTune, arXiv 2506.16289", "condition_number_null",
    ),
    Criterion(
        "alpha", "alpha", "alpha", "highest",
        "a light tail, the least trained (TempBalance gives it the larger learning rate)",
        "Zhou et al., TempBalance, arXiv 2312.00359", "alpha_null",
    ),
    Criterion(
        "farms", "alpha_farms", "farms", "highest",
        "a light tail, the least trained, without the bias of the aspect ratio",
        "Hu et al., FARMS, arXiv 2506.06280; the direction is TempBalance's, arXiv 2312.00359",
        "alpha_farms_null",
    ),
    Criterion(
        "erg", "erg_gap", "erg", "highest",
        "the power-law tail furthest from SETOL's ideal, where the gap is 0",
        "Martin & Hinrichs, SETOL, arXiv 2507.17912", "erg_null", per_eval=True,
        deviation="SETOL ranks no layers; noise is given by erg_null alone, of which the tail of "
        "noise takes a few per cent away.",
    ),
    Criterion(
        "welore", "welore_rank_ratio", "welore", "lowest",
        "the lowest rank under one threshold: WeLore's low-rank components are those to tune",
        "Jaiswal et al., WeLore, arXiv 2407.11239",
    ),
    Criterion(
        "snr", "snr_mp", "snr", "highest",
        "most of its singular values' sum above the edge of noise",
        "Hartford et al., Spectrum, arXiv 2406.06623",
        deviation="snr is snr_mp, with the Marchenko-Pastur edge of the bulk: the published "
        "program's own score counts noise as signal and falls as the weights grow; "
        "--by snr-spectrum takes that.",
    ),
    Criterion(
        "snr-spectrum", "snr", "snr", "highest",
        "the score of Spectrum's program, with its faults",
        "Hartford et al., Spectrum, arXiv 2406.06623", noise_keeps="shapes and norms",
    ),
)  # fmt: skip
"""Everything that ``--by`` takes."""


def criterion_named(name: str) -> Criterion:
    """The criterion of that name.

    Raises:
        OptionError: There is none.
    """
    for criterion in CRITERIA:
        if criterion.name == name:
            return criterion
    raise OptionError(f"--by {name!r}: choose from {', '.join(c.name for c in CRITERIA)}")


def number(row: Row, column: str) -> float | None:
    """A cell as a number; None where it is empty."""
    value = row[column]
    return None if value is None else float(value)


def require(run: Run, column: str, family: str) -> None:
    """Make sure that a run has any value of a column.

    Raises:
        OptionError: It has none, with how to get it.
    """
    if any(row[column] is not None for row in run.rows):
        return
    settings = run.provenance["settings"]
    if family not in settings["metrics"]:
        kept = ",".join([*settings["metrics"], family])
        how = f"analyze again without --metrics, or with --metrics {kept}"
    else:
        how = "no row of it could be computed: see the column reason"
    raise OptionError(f"{run.name}: the run has no {column} (family {family}); {how}")


def noise_values(criterion: Criterion, run: Run, rows: Sequence[Row]) -> list[float | None]:
    """What noise of the same shapes would get, row by row; None where that is unknown.

    WeLore and the score of Spectrum's program have no null column: they are computed from the
    expected spectrum of Gaussian entries with the shape and the Frobenius norm of each matrix.
    """
    if criterion.null:
        return [criterion.null_of(row) for row in rows]
    if criterion.name == "snr":
        return [0.0] * len(rows)  # nothing stands above the edge of noise
    if criterion.name == "welore":
        return _welore_of_noise(run, rows)
    return [_score_of_noise(row) for row in rows]


def _noise(row: Row, norm: float) -> Spectrum:
    """The expected spectrum of Gaussian entries with the shape of a row and a Frobenius norm."""
    shape = Shape(*(int(row[key] or 0) for key in ("N", "M", "slices")))
    evals = expected_evals(shape) * (norm * norm / shape.count)
    return Spectrum(np.sqrt(evals), shape.N, shape.M, shape.slices, solver="noise")


def _score_of_noise(row: Row) -> float | None:
    norm = number(row, "frobenius_norm")
    score = snr.spectrum_score(_noise(row, norm)) if norm else None
    return score if isinstance(score, int | float) else None


def _welore_of_noise(run: Run, rows: Sequence[Row]) -> list[float | None]:
    fitted_on = set(in_welore_fit(run.rows))
    members = [row for row in run.rows if row["name"] in fitted_on and row["welore_rank"]]
    target = run.provenance["settings"]["welore_target"]
    fitted = welore.fit([_noise(row, 1.0) for row in members], target)
    ratios: dict[tuple[object, ...], float | None] = {}
    for row in rows:
        shape = (row["N"], row["M"], row["slices"])
        if shape not in ratios and fitted is not None and row["welore_rank"]:
            ratios[shape] = _kept_share(_noise(row, 1.0), fitted.k)
    return [ratios.get((row["N"], row["M"], row["slices"])) for row in rows]


def _kept_share(spectrum: Spectrum, threshold: float) -> float:
    return 1 - welore.pruned_rank(spectrum, threshold) / len(spectrum.singular_values)
