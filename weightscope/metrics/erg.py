"""SETOL's ERG condition (trace-log, 'detX'): where the determinant of the tail is one."""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np

from weightscope.columns import Column
from weightscope.compat import conventions
from weightscope.measurement import Measurement
from weightscope.metrics.rank import is_deficient
from weightscope.outcome import Failure, Value, Values
from weightscope.settings import Settings
from weightscope.spectrum import FloatArray

NEEDS = ("alpha", "rank")
_SOURCE = "Martin & Hinrichs, SETOL, arXiv 2507.17912, section 6.3"
COLUMNS = (
    Column(
        "erg_n_tail",
        "integer",
        "size of the effective correlation space: eigenvalues whose product is one",
        formula="smallest k with sum_{i<=k} ln(s l_i) < 0, s = n / sum l",
        range="1 .. n",
        reading="Compare with alpha_n_tail: at ideal learning both are equal.",
        caution="The search always finds a crossing; erg_tracelog is what tests the condition.",
        noise="0.73 n (Q = 1) to 0.87 n (Q = 4)",
        source=_SOURCE,
    ),
    Column(
        "erg_xmin", "number", "eigenvalue at the crossing", unit="W^2", range="(0, inf)",
        source=_SOURCE,
        formula='the l_k of erg_n_tail',
        reading='Compare with alpha_xmin: erg_delta and erg_log_ratio do.',
        caution='Moves with the scale of the weights.',
        noise='0.18 (Q = 1) to 0.43 (Q = 4) of the mean eigenvalue',
    ),
    Column(
        "erg_gap",
        "integer",
        "tail sizes: ERG minus power law",
        formula="erg_n_tail - alpha_n_tail",
        reading="Near 0 together with alpha near 2: SETOL's ideal. Positive: the power-law tail is "
        "smaller than the correlation space. Negative: over-regularised.",
        caution="On the authors' own LLaMA-13B and Falcon-7B tables the gap is not monotone in "
        "alpha: a diagnostic, not a proof.",
        noise="0.69 n (Q = 1) to 0.82 n (Q = 4)",
        source=_SOURCE,
        range='-n .. n',
    ),
    Column(
        "erg_delta",
        "number",
        "scaled power-law cut minus scaled ERG cut (Delta lambda_min)",
        formula="s xmin - s l_k, in units where the mean eigenvalue is 1",
        reading="Positive for ordinary layers, towards 0 as alpha falls to 2, negative below.",
        noise="3.06 (Q = 1) to 1.50 (Q = 4)",
        source=_SOURCE,
        range='(-inf, inf)',
        caution="A few huge eigenvalues set its scale; see erg_log_ratio. The paper's table prints "
        "the other sign.",
        published="SETOL authors' tables: LLaMA-13B mean 3.56, Falcon-7B mean 2.42, above 0 for "
        "all 408 layers; "
        "rank correlation with alpha +0.12 and -0.28. VGG19 classifier 0.027, 0.431, 0.166.",
    ),
    Column(
        "erg_log_ratio",
        "number",
        "log of the ratio of the two cuts",
        formula="ln(xmin / l_k)",
        reading="erg_delta on a scale that a few huge eigenvalues cannot dominate.",
        source="weightscope",
        range='(-inf, inf)',
        caution='Undefined without a power-law tail.',
        noise='2.8 (Q = 1) to 1.5 (Q = 4)',
    ),
    Column(
        "erg_tracelog",
        "number",
        "mean log eigenvalue of the power-law tail",
        formula="sum_{i<=n_tail} ln(s l_i) / n_tail",
        reading="0: the power-law tail itself has determinant one; above 0 it is smaller than the "
        "correlation space.",
        source=_SOURCE,
        range='(-inf, inf)',
        caution='Undefined without a power-law tail, and where the tail is longer than the rank.',
        noise='1.2 (Q = 1) to 0.70 (Q = 4)',
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Crossing:
    """Where the log-determinant of the largest eigenvalues becomes negative.

    Attributes:
        n_tail: Number of eigenvalues up to and including the crossing one.
        xmin: The crossing eigenvalue, unscaled.
        sums: Cumulative sums of ln(s l), from the largest eigenvalue down.
        scale: s, which makes the mean eigenvalue 1.
    """

    n_tail: int
    xmin: float
    sums: FloatArray
    scale: float


def crossing(evals: FloatArray) -> Crossing:
    """Find the ERG cut in log space, where no product can under- or overflow.

    The sums rise while s l > 1 and fall afterwards, so there is exactly one crossing.

    Args:
        evals: Descending, at least one positive.
    """
    scale = len(evals) / float(evals.sum())
    with np.errstate(divide="ignore"):
        sums = np.cumsum(np.log(scale * evals))
    below = np.flatnonzero(sums < -1e-14 * len(evals))
    n_tail = int(below[0]) + 1 if len(below) else len(evals)
    return Crossing(n_tail, float(evals[n_tail - 1]), sums, scale)


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:
    """The ERG cut, and its distance from the power-law tail where there is one."""
    spectrum = measured.spectrum
    if spectrum is None or spectrum.largest == 0:
        return {}
    rank = known["rank"]
    assert isinstance(rank, int)
    # among all of them the crossing could land in rounding noise
    limited = conventions(settings.compat).erg_within_rank and is_deficient(rank, spectrum)
    kept = rank if limited else len(spectrum.singular_values)
    cut = crossing(spectrum.relative_evals[: max(kept, 1)])
    values: dict[str, Value | Failure] = {
        "erg_n_tail": cut.n_tail,
        "erg_xmin": spectrum.unscaled(cut.xmin),
    }
    xmin, n_tail = known.get("alpha_relative_xmin"), known.get("alpha_n_tail")
    if not isinstance(xmin, float) or not isinstance(n_tail, int):
        return values
    values["erg_gap"] = cut.n_tail - n_tail
    values["erg_delta"] = cut.scale * (xmin - cut.xmin)
    values["erg_log_ratio"] = log(xmin / cut.xmin) if cut.xmin else None
    if n_tail <= len(cut.sums):
        values["erg_tracelog"] = float(cut.sums[n_tail - 1]) / n_tail
    return values
