"""The empirical spectral density of one matrix and the laws beside it, as points to be drawn.

Every coordinate is a decimal logarithm: along x of an eigenvalue of W^T W (units of W^2), along y
of a density per unit of eigenvalue, or of the share of eigenvalues at or above x (the survival
function). On these axes a power law is a straight line, of slope -alpha in the density and
1 - alpha in the survival function; the second has no bins, and shows a tail of few points as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, log10

import numpy as np
import numpy.typing as npt

from weightscope.laws import marchenko_pastur
from weightscope.outcome import Value
from weightscope.spectrum import FloatArray, Spectrum

DEEPEST = 12.0
"""Decades below the largest eigenvalue that are drawn."""
FEWEST_BINS, MOST_BINS = 10, 80
TOP_RANKS = 24
"""So many of the largest eigenvalues are points of their own."""
_LAW_POINTS = 48
_FINE = 4000


@dataclass(frozen=True, eq=False)
class Curve:
    """Points, both coordinates as decimal logarithms, ascending in x."""

    x: FloatArray
    y: FloatArray


@dataclass(frozen=True, eq=False)
class Law:
    """A law beside the spectrum, scaled to the share of eigenvalues that it stands for.

    Attributes:
        density: Per unit of eigenvalue; integrates to ``mass``.
        survival: Share of eigenvalues at or above x, those above the whole law included.
        mass: That share of all eigenvalues.
    """

    density: Curve
    survival: Curve
    mass: float


@dataclass(frozen=True, eq=False)
class Esd:
    """The spectrum of one matrix, ready to be drawn.

    Attributes:
        n: Eigenvalues, zeros included.
        hidden: How many are not drawn: at or below what rounding and the solver resolve, or more
            than 12 decades below the largest.
        edges: Of the histogram's bins, equally wide, ascending.
        density: Of each bin, over all n eigenvalues; -inf in an empty bin.
        survival: Share of eigenvalues at or above x, thinned below the largest few.
        tail: The power law (with cutoff, where one was fitted) from xmin up; None without a fit.
        xmin: Where it starts; None without a fit.
        erg_cut: Where the determinant of the eigenvalues above is one; None where undefined.
        bulk: The Marchenko-Pastur law of the same median; None where there is no bulk.
        shuffled: The same entries in random order; None where it was not asked for.
    """

    n: int
    hidden: int
    edges: FloatArray
    density: FloatArray
    survival: Curve
    tail: Law | None = None
    xmin: float | None = None
    erg_cut: float | None = None
    bulk: Law | None = None
    shuffled: Law | None = None


def esd_of(
    spectrum: Spectrum, row: Mapping[str, Value], shuffled: Mapping[str, Sequence[float]] | None
) -> Esd | None:
    """The density of a spectrum with the laws that its row describes.

    Args:
        spectrum: Singular values of one matrix.
        row: Its row; what is empty there is not drawn. Where the row is in other units (the
            convolutions of ``--compat weightwatcher``), the spectrum follows it.
        shuffled: ``ranks`` and ``singular_values`` of the shuffled entries, in the row's units.

    Returns:
        The density; None where every singular value is zero or all that differ are one.
    """
    logs = _drawn(spectrum, row)
    if len(logs) < 2 or logs[-1] - logs[0] < 1e-9:
        return None
    n = len(spectrum.singular_values)
    edges = _edges(logs, n)
    top = float(logs[-1])
    xmin, cut = _log(row.get("alpha_xmin")), _log(row.get("erg_xmin"))
    return Esd(
        n,
        n - len(logs),
        edges,
        _density(np.histogram(logs, edges)[0] / n, edges),
        _survival(logs[::-1], n),
        None if xmin is None else _tail(row, xmin, top, n),
        xmin,
        cut,
        _bulk(spectrum, row, n),
        _reordered(shuffled, edges, n),
    )


def ranks(n: int) -> npt.NDArray[np.int64]:
    """Ranks (from 1, the largest) that stand for a spectrum of n values when it is drawn.

    Every one of the largest few, then ever fewer, and some more among the smaller half.
    """
    chosen = [
        np.arange(1, min(n, TOP_RANKS) + 1),
        np.geomspace(1, n, 60),
        np.linspace(n / 2, n, 16),
    ]
    return np.unique(np.clip(np.round(np.concatenate(chosen)).astype(np.int64), 1, n))


def _log(value: object) -> float | None:
    return log10(value) if isinstance(value, int | float) and value > 0 else None


def _number(row: Mapping[str, Value], name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else None


def _drawn(spectrum: Spectrum, row: Mapping[str, Value]) -> FloatArray:
    """Logarithms of the eigenvalues that can be told from zero, ascending, in the row's units."""
    s = spectrum.singular_values
    if not spectrum.largest:
        return np.empty(0)
    norm = _number(row, "spectral_norm") or spectrum.largest
    factor = norm / spectrum.largest
    floor = max(spectrum.resolution, (_number(row, "sv_floor") or 0.0) / factor)
    floor = max(floor, spectrum.largest * 10 ** (-DEEPEST / 2))
    logs: FloatArray = 2 * (np.log10(s[s > floor][::-1]) + log10(factor))
    return logs


def _edges(logs: FloatArray, n: int) -> FloatArray:
    """Bins that are finer where there are more eigenvalues: 0.8 n^(1/3) a decade."""
    decades = float(logs[-1] - logs[0])
    count = min(max(ceil(0.8 * decades * n ** (1 / 3)), FEWEST_BINS), MOST_BINS)
    edges: FloatArray = np.linspace(logs[0], logs[-1], count + 1)
    return edges


def _density(shares: FloatArray, edges: FloatArray) -> FloatArray:
    """Logarithm of shares over the widths of their bins, which may be out of float64's range."""
    widths = edges[:-1] + np.log10(np.expm1(np.diff(edges) * np.log(10)))
    with np.errstate(divide="ignore"):
        logs: FloatArray = np.log10(shares) - widths
    return logs


def _survival(descending: FloatArray, n: int) -> Curve:
    chosen = ranks(len(descending))[::-1]
    return Curve(descending[chosen - 1], np.log10(chosen / n))


def _tail(row: Mapping[str, Value], xmin: float, top: float, n: int) -> Law | None:
    """The fitted law from xmin to the largest eigenvalue."""
    alpha, count = _number(row, "alpha"), _number(row, "alpha_n_tail")
    if alpha is None or count is None:
        return None
    mass = count / n
    rate = _number(row, "alpha_lambda")
    if rate:
        return _cut_off(alpha, rate * 10**xmin, (xmin, top), mass)
    x = np.array([xmin, max(top, xmin)])
    start = log10(mass) + log10(alpha - 1) - xmin
    density = Curve(x, start - alpha * (x - xmin))
    return Law(density, Curve(x, log10(mass) - (alpha - 1) * (x - xmin)), mass)


def _cut_off(alpha: float, rate: float, span: tuple[float, float], mass: float) -> Law:
    """A power law with exponential cutoff; ``rate`` in units of 1 / xmin."""
    xmin, top = span
    # far enough that what is left out of the normaliser does not show
    ratio = np.linspace(0, np.log(max(60 / rate, 10 ** (top - xmin)) + 1), _FINE)
    weight = np.exp(-(alpha - 1) * ratio - rate * np.expm1(ratio))
    steps = (weight[1:] + weight[:-1]) / 2 * np.diff(ratio)
    above = np.append(np.cumsum(steps[::-1])[::-1], 0.0)
    at = np.linspace(0, (top - xmin) * np.log(10), _LAW_POINTS)
    x = xmin + at / np.log(10)
    logs = (-alpha * at - rate * np.expm1(at)) / np.log(10)
    density = Curve(x, log10(mass) - xmin + logs - np.log10(above[0]))
    survival = np.interp(at, ratio, above / above[0])
    return Law(density, Curve(x, np.log10(np.maximum(mass * survival, 1e-300))), mass)


def _bulk(spectrum: Spectrum, row: Mapping[str, Value], n: int) -> Law | None:
    """The Marchenko-Pastur law of the row's level of noise, for all but its spikes."""
    sigma, spikes = _number(row, "mp_sigma"), _number(row, "mp_spikes")
    if not sigma or spikes is None:
        return None
    mass = 1 - spikes / n
    inner = (1 - np.cos(np.pi * np.arange(1, _LAW_POINTS) / _LAW_POINTS)) / 2
    shares = np.concatenate([[1e-6, 1e-4], inner, [1 - 1e-4, 1 - 1e-6]])
    points = marchenko_pastur.quantiles(shares, spectrum.Q)
    unit = log10(spectrum.N) + 2 * log10(sigma)
    x = np.log10(points) + unit
    density = np.log10(mass * marchenko_pastur.density(points, spectrum.Q)) - unit
    # every spike lies above the bulk, and counts wherever the share at or above x is told
    survival = np.log10(spikes / n + mass * (1 - shares))
    return Law(Curve(x, density), Curve(x, survival), mass)


def _reordered(
    shuffled: Mapping[str, Sequence[float]] | None, edges: FloatArray, n: int
) -> Law | None:
    """The spectrum of the shuffled entries, from the values at some of its ranks."""
    if not shuffled or len(shuffled.get("ranks", ())) < 2:
        return None
    rank = np.asarray(shuffled["ranks"], dtype=np.float64)[::-1]
    s = np.asarray(shuffled["singular_values"], dtype=np.float64)[::-1]
    logs = 2 * np.log10(s)
    bins = np.linspace(logs[0], logs[-1], max(FEWEST_BINS, len(edges) // 2) + 1)
    # between ranks evenly in s, as where a square matrix reaches down to zero; not in log s,
    # which would spread the last few eigenvalues over decades
    above = np.interp(10 ** ((bins - logs[-1]) / 2), s / s[-1], rank / n)
    above[-1] = 0.0  # the largest lies in the last bin
    density = _density(above[:-1] - above[1:], bins)
    middle = (bins[:-1] + bins[1:]) / 2
    seen = np.isfinite(density)
    return Law(Curve(middle[seen], density[seen]), Curve(logs, np.log10(rank / n)), 1.0)
