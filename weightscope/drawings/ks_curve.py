"""The search for the start of the tail, as points to be drawn: how sharp its minimum is.

Along x runs the decimal logarithm of xmin (an eigenvalue of W^T W, units of W^2). A narrow, deep
minimum of the distance and a flat exponent around it mean that the fit hangs on no choice; a flat
distance, or a second minimum with another exponent, that it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log10

import numpy as np

from weightscope.laws.power_law import distance_curve, fitted_evals
from weightscope.outcome import Failure, Value
from weightscope.recipe import EvalFloor
from weightscope.settings import TAIL_LAWS, THRESHOLDS
from weightscope.spectrum import FloatArray, Spectrum


@dataclass(frozen=True)
class Minimum:
    """A start of the tail that a row reports.

    Attributes:
        x: Decimal logarithm of xmin.
        ks: Distance there.
        alpha: Exponent there.
    """

    x: float
    ks: float
    alpha: float


@dataclass(frozen=True, eq=False)
class KsCurve:
    """Distance and exponent over the candidates for xmin.

    Attributes:
        x: Decimal logarithms of the candidates, ascending.
        ks: Kolmogorov-Smirnov distance of the tail that each starts.
        alpha: Its maximum-likelihood exponent.
        chosen: The start that the row reports; not the lowest where the fit did not search all.
        second: The other minimum that the row reports (``alpha_second``), if any.
        method: Which fit chose, as in ``alpha_method``.
    """

    x: FloatArray
    ks: FloatArray
    alpha: FloatArray
    chosen: Minimum
    second: Minimum | None
    method: str

    @property
    def start(self) -> float:
        """Where a drawn axis begins: the smallest tenth of the candidates spans most decades."""
        marked = [minimum.x for minimum in (self.chosen, self.second) if minimum is not None]
        return min(float(self.x[len(self.x) // 10]), *marked)


def ks_curve_of(
    spectrum: Spectrum, row: Mapping[str, Value], floor: EvalFloor
) -> KsCurve | Failure:
    """The distance over every xmin, from a saved spectrum.

    Args:
        spectrum: Singular values of one matrix.
        row: Its row. Where the row is in other units, the spectrum follows it.
        floor: Eigenvalues that the run kept out of the fit.

    Returns:
        The curve, or why there is none.
    """
    alpha, xmin, ks = (row.get(name) for name in ("alpha", "alpha_xmin", "alpha_ks"))
    if not isinstance(alpha, float) or not isinstance(xmin, float) or not isinstance(ks, float):
        return Failure("its row has no start of a power-law tail", str(row.get("reason") or ""))
    method = str(row["alpha_method"])
    if method in TAIL_LAWS:
        return Failure("the start of a truncated power law is sought by likelihood, not distance")
    if (kept := _kept(spectrum, row)) is None:
        return Failure("its rank, which limits the search, is not in the run", "analyze with rank")
    norm = row.get("spectral_norm")
    top = 2 * log10(norm if isinstance(norm, float) else spectrum.largest)
    points, distances, exponents = distance_curve(fitted_evals(spectrum, floor, kept))
    if not len(points):
        return Failure("no eigenvalue can start a power-law tail")
    x = np.log10(points) + top
    chosen = Minimum(log10(xmin), ks, alpha)
    return KsCurve(x, distances, exponents, chosen, _second(row, x, distances), method)


def _kept(spectrum: Spectrum, row: Mapping[str, Value]) -> int | None:
    """Largest eigenvalues among which the tail was sought; None where the row does not say."""
    count, rank = len(spectrum.singular_values), row.get("rank")
    if isinstance(rank, int):
        return rank if rank < THRESHOLDS["rank_deficient"] * count else count
    return None if "rank_deficient" in str(row.get("warnings")) else count


def _second(row: Mapping[str, Value], x: FloatArray, ks: FloatArray) -> Minimum | None:
    alpha, xmin = row.get("alpha_second"), row.get("alpha_second_xmin")
    if not isinstance(alpha, float) or not isinstance(xmin, float):
        return None
    nearest = int(np.abs(x - log10(xmin)).argmin())
    return Minimum(log10(xmin), float(ks[nearest]), alpha)
