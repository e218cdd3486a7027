"""What changed between two versions of one matrix, as values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from weightscope.laws.power_law import fit_power_law
from weightscope.outcome import Failure, Value
from weightscope.spectrum import Spectrum

Reading = Literal[
    "identical",
    "bf16-rounding",
    "low-rank-update",
    "full-rank-update",
    "scaled",
    "re-initialised",
    "transposed",
    "permuted",
    "resized",
    "renamed",
]
LOW_RANK_SHARE = 0.25
"""An update that uses at most this share of the directions is called low-rank."""
COLUMNS = (
    "rel_change",
    "cosine",
    "delta_stable_rank",
    "delta_rank_90",
    "delta_rank_95",
    "delta_rank_99",
    "delta_alpha",
    "delta_top_share",
    "subspace_left",
    "subspace_right",
    "intruders",
)


@dataclass(frozen=True)
class Facts:
    """Exact relations between the entries of A and B, and the noise of how they are stored.

    Attributes:
        identical: Every entry is the same number.
        rounded: One is the other rounded to bfloat16, entry by entry.
        transposed: B is the transpose of A.
        permuted: The same entries and the same singular values in another order.
        storage: Relative rounding error of the coarser of the two data types.
        noise: Singular values of B - A at or below it are rounding of the two data types.
    """

    identical: bool = False
    rounded: bool = False
    transposed: bool = False
    permuted: bool = False
    storage: float = 0.0
    noise: float = 0.0


@dataclass(frozen=True)
class Difference:
    """The change from A to B.

    Attributes:
        facts: Exact relations.
        params: Number of entries compared.
        rel_change: |B - A|_F / |A|_F.
        cosine: <A, B>_F / (|A|_F |B|_F).
        delta: Spectrum of B - A; None where nothing changed or the shapes differ.
        subspace_left: Mean squared cosine of the principal angles of the top left directions.
        subspace_right: The same for the top right directions.
        intruders: Top left directions of B whose cosine with the top space of A is below 0.6.
        resized: Only the entries common to both shapes were compared.
    """

    facts: Facts
    params: int
    rel_change: float | None = None
    cosine: float | None = None
    delta: Spectrum | None = None
    subspace_left: float | None = None
    subspace_right: float | None = None
    intruders: int | None = None
    resized: bool = False


def difference_columns(change: Difference) -> dict[str, Value]:
    """The columns that need the weights."""
    values: dict[str, Value] = dict.fromkeys(COLUMNS)
    values.update(
        rel_change=change.rel_change,
        cosine=change.cosine,
        subspace_left=change.subspace_left,
        subspace_right=change.subspace_right,
        intruders=change.intruders,
    )
    delta = change.delta
    if delta is None or delta.largest == 0:
        return values
    evals = delta.relative_evals
    shares = np.cumsum(evals) / float(evals.sum())
    for percent in (90, 95, 99):
        values[f"delta_rank_{percent}"] = int(np.searchsorted(shares, percent / 100)) + 1
    values["delta_stable_rank"] = float(evals.sum())
    values["delta_top_share"] = float(shares[0])
    floor = max((delta.N * 2.0**-23) ** 2, (change.facts.noise / delta.largest) ** 2)
    fit = fit_power_law(evals, "ks", floor)
    values["delta_alpha"] = None if isinstance(fit, Failure) else fit.alpha
    return values


def delta_rank(change: Difference) -> int:
    """Directions of the update above the rounding of both data types."""
    if change.delta is None:
        return 0
    values = change.delta.singular_values
    cut = max(change.delta.N * 2.0**-23 * change.delta.largest, change.facts.noise)
    return int(np.count_nonzero(values > cut))


def reading_of(change: Difference) -> Reading:
    """One word for the change; the first that applies, exact relations before measured ones."""
    facts = change.facts
    exact: tuple[tuple[bool, Reading], ...] = (
        (facts.transposed and not facts.identical, "transposed"),
        (change.resized, "resized"),
        (facts.identical, "identical"),
        (facts.rounded, "bf16-rounding"),
        (facts.permuted, "permuted"),
        (_is_scaled(change), "scaled"),
        (_is_new(change), "re-initialised"),
    )
    for applies, word in exact:
        if applies:
            return word
    n = len(change.delta.singular_values) if change.delta else 0
    low = 0 < delta_rank(change) <= LOW_RANK_SHARE * n
    return "low-rank-update" if low else "full-rank-update"


def _is_scaled(change: Difference) -> bool:
    """B is a multiple of A, up to the rounding of the stored types."""
    if not change.cosine or change.rel_change is None:
        return False
    residual = max(0.0, 1 - change.cosine**2) ** 0.5
    tolerance = max(1e-7, change.facts.storage)
    return residual <= tolerance and change.rel_change > 3 * tolerance


def _is_new(change: Difference) -> bool:
    """B has nothing to do with A: their cosine is that of independent matrices."""
    if change.cosine is None:
        return False
    return bool(abs(change.cosine) < min(0.5, max(0.02, 4 / change.params**0.5)))
