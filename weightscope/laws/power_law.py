"""The continuous power-law fit of Clauset, Shalizi and Newman (SIAM Review 51, 2009), exactly.

The tail of a sample above ``xmin`` is modelled by ``p(x) = (alpha - 1)/xmin (x/xmin)^-alpha``. For
every candidate ``xmin`` alpha is the maximum-likelihood value, and the candidate with the
smallest Kolmogorov-Smirnov distance wins. The distance is the one-sided form of the authors' own
code, of the powerlaw package and of WeightWatcher: the empirical distribution is taken from the
left, 0, 1/n, ..., (n-1)/n.

The search over xmin does not evaluate all n^2/2 terms. The distance of a candidate is a maximum
over sample points, so its value at any few of them bounds it from below: candidates are bounded at
a few shared points, the most promising ones evaluated in full, and the point where each attains
its maximum is shared as a new cut, until no candidate left can win. The result is that of the full
search, near ties included.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt

from weightscope.outcome import Failure
from weightscope.recipe import EvalFloor, FitMethod
from weightscope.spectrum import FloatArray, Spectrum

SMALLEST_SAMPLE = 8
SMALL_SAMPLE = 20
SMALL_SAMPLE_TAIL = 8
NEAR_TIE = 1e-7
"""Two candidates whose distances differ by less may swap under the solver's rounding."""
SECOND_WITHIN = 0.005
"""Another minimum of the distance is worth reporting up to this excess over the smallest."""
_PROBES = 24
_AT_ONCE = 6

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PowerLaw:
    """A fitted tail.

    Attributes:
        alpha: Exponent of the density of the eigenvalues.
        xmin: Where the tail starts, in units of W^2.
        ks: Kolmogorov-Smirnov distance (one-sided empirical distribution).
        n_tail: Eigenvalues at or above xmin.
        stderr: Leading-order standard error ``(alpha - 1)/sqrt(n_tail)``.
        method: Which fit, as printed in ``alpha_method``.
        gap: Distance of the runner-up candidate minus ``ks``; None without a search.
    """

    alpha: float
    xmin: float
    ks: float
    n_tail: int
    stderr: float
    method: str
    gap: float | None = None


def fit_power_law(
    evals: FloatArray, method: FitMethod = "ks", floor: float = 0.0
) -> PowerLaw | Failure:
    """Fit the tail of a spectrum.

    Args:
        evals: Eigenvalues in any order, finite, at least zero, units of W^2.
        method: ``ks``: search over every eigenvalue but the largest; ``mid``: xmin is the median
            (TempBalance); ``peak``: search below 1.5 times the peak of the log-density, as coded
            by AlphaPruning and FARMS; ``peak-fixed``: search around the peak as they describe it.
        floor: Eigenvalues at or below it are left out.

    Returns:
        The fit, or why there is none. Between 8 and 19 eigenvalues ``ks`` uses the (n - 1)
        estimator and tails of at least 8 points, and its method is ``ks-small-sample``.
    """
    values = np.sort(evals[evals > floor])
    if len(values) < SMALLEST_SAMPLE:
        return Failure(
            f"{len(values)} eigenvalues above the floor are too few for a power-law fit",
            f"at least {SMALLEST_SAMPLE} are needed",
        )
    if values[-1] < (1 + 1e-6) * values[0]:
        return Failure("all eigenvalues are equal, so the exponent is undefined")
    if method == "mid":
        return _fit_at(values, len(values) // 2, "mid")
    if method == "ks" and len(values) < SMALL_SAMPLE:
        return _search_small(values)
    return search(values, _candidates(values, method), method)


def search(values: FloatArray, candidates: IntArray, method: str) -> PowerLaw | Failure:
    """Find the candidate with the smallest distance, the first of them on a tie.

    Args:
        values: Sample, ascending, positive.
        candidates: Indices into ``values``, ascending, the last value excluded.
        method: Name to record.
    """
    tails = _tails(values, candidates)
    if not len(tails.starts):
        return Failure("no eigenvalue can start a power-law tail")
    exact, _ = _evaluate_promising(tails)
    best = int(exact.argmin())
    evaluated = np.sort(exact[np.isfinite(exact)])
    gap = float(evaluated[1] - evaluated[0]) if len(evaluated) > 1 else None
    alpha = 1.0 + float(tails.slopes[best])
    n = int(tails.sizes[best])
    xmin = float(values[tails.starts[best]])
    return PowerLaw(alpha, xmin, float(exact[best]), n, (alpha - 1) / n**0.5, method, gap)


def second_minimum(
    evals: FloatArray, method: FitMethod = "ks", floor: float = 0.0
) -> PowerLaw | None:
    """The best fit beyond a ridge of the distance over xmin, if it is nearly as good.

    Along the candidates the distance jitters, so a minimum counts as another one only where every
    way to the best candidate climbs by at least ``SECOND_WITHIN`` above it (its prominence), and
    it is reported only where its distance exceeds the smallest by at most ``SECOND_WITHIN``.

    Args:
        evals: Eigenvalues in any order, finite, at least zero.
        method: As for ``fit_power_law``.
        floor: Eigenvalues at or below it are left out.

    Returns:
        That fit; None where there is none, or where the method does not search (``mid``, and
        ``ks`` below 20 eigenvalues).
    """
    values = np.sort(evals[evals > floor])
    if method == "mid" or len(values) < SMALL_SAMPLE:
        return None
    tails = _tails(values, _candidates(values, method))
    if not len(tails.starts):
        return None
    second = _beyond_a_ridge(tails)
    if second is None:
        return None
    k, ks = second
    slope, n = float(tails.slopes[k]), int(tails.sizes[k])
    return PowerLaw(1 + slope, float(values[tails.starts[k]]), ks, n, slope / n**0.5, method)


def distance_curve(
    evals: FloatArray, floor: float = 0.0, points: int = 200_000_000
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """What a search over xmin sees: the distance and the exponent of every candidate.

    Args:
        evals: Eigenvalues in any order, finite, at least zero.
        floor: Eigenvalues at or below it are left out.
        points: Most terms to evaluate; beyond, every so many-th candidate stands for its
            neighbours, but the winner and the second minimum are always among them.

    Returns:
        xmin (ascending), ks and alpha of the candidates; below 20 eigenvalues by the rules of
        ``ks-small-sample``. All empty where nothing can start a tail.
    """
    values = np.sort(evals[evals > floor])
    small = len(values) < SMALL_SAMPLE
    tails = _tails(values, _first_of_ties(values)) if len(values) else None
    if tails is None or not len(tails.starts):
        return np.empty(0), np.empty(0), np.empty(0)
    chosen = np.arange(len(tails.starts))
    if small:
        chosen = chosen[tails.sizes >= SMALL_SAMPLE_TAIL]
        tails = replace(tails, slopes=tails.slopes * (tails.sizes - 1) / tails.sizes)
    elif (step := -(-int(tails.sizes.sum()) // points)) > 1:
        exact, _ = _evaluate_promising(tails)
        second = _beyond_a_ridge(tails)
        special = [int(exact.argmin())] + ([second[0]] if second else [])
        chosen = np.unique(np.r_[chosen[::step], special])
    ks = np.array([float(tails.gaps_of(int(k)).max()) for k in chosen])
    return values[tails.starts[chosen]], ks, 1 + tails.slopes[chosen]


def distances(logs: FloatArray, start: int, slope: float) -> FloatArray:
    """|model - empirical| at every point of one tail.

    Args:
        logs: Logarithms of the sample, ascending.
        start: Index of xmin.
        slope: alpha - 1 at that xmin.
    """
    gaps: FloatArray = logs[start:] - logs[start]
    gaps *= -slope
    np.expm1(gaps, out=gaps)
    gaps += np.arange(0.0, len(gaps)) / len(gaps)
    return np.abs(gaps, out=gaps)


@dataclass(frozen=True)
class _Tails:
    """The tails that candidates start, with their maximum-likelihood slopes.

    Attributes:
        logs: Logarithms of the sample, ascending.
        starts: Indices of the candidates.
        slopes: alpha - 1 of each.
    """

    logs: FloatArray
    starts: IntArray
    slopes: FloatArray

    @cached_property
    def sizes(self) -> IntArray:
        """Points in each tail."""
        return len(self.logs) - self.starts

    @cached_property
    def origins(self) -> FloatArray:
        """Logarithm of each xmin."""
        return self.logs[self.starts]

    def gaps_of(self, k: int) -> FloatArray:
        """|model - empirical| at every point of one tail."""
        return distances(self.logs, int(self.starts[k]), float(self.slopes[k]))

    def gaps_at(self, points: IntArray) -> FloatArray:
        """|model - empirical| of every tail at one point of each: a lower bound of its distance."""
        offsets = points - self.starts
        model = -np.expm1(-self.slopes * (self.logs[points] - self.origins))
        bound: FloatArray = np.where(offsets > 0, np.abs(model - offsets / self.sizes), 0.0)
        return bound


def _tails(values: FloatArray, candidates: IntArray) -> _Tails:
    logs = np.log(values)
    n_tail = len(values) - candidates
    suffix = np.cumsum(logs[::-1])[::-1]
    excess = suffix[candidates] - n_tail * logs[candidates]
    usable = excess > 1e-12 * n_tail
    return _Tails(logs, candidates[usable], n_tail[usable] / excess[usable])


def _evaluate_promising(tails: _Tails) -> tuple[FloatArray, FloatArray]:
    """Distances of all candidates that may win or nearly tie, else inf; lower bounds of all."""
    starts, sizes = tails.starts, tails.sizes
    lower = np.zeros(len(starts))
    for share in (np.arange(_PROBES) + 0.5) / _PROBES:
        np.maximum(lower, tails.gaps_at(starts + (share * sizes).astype(np.int64)), out=lower)
    exact = np.full(len(starts), np.inf)
    while True:
        limit = float(np.partition(exact, 1)[1]) if len(exact) > 1 else float(exact[0])
        # the runner-up matters only as far as a near tie goes
        limit = min(limit, float(exact.min()) + NEAR_TIE)
        open_ones = np.flatnonzero((lower <= limit) & np.isinf(exact))
        if not len(open_ones):
            return exact, lower
        order = np.argpartition(lower[open_ones], min(_AT_ONCE, len(open_ones)) - 1)
        for k in open_ones[order[:_AT_ONCE]]:
            gaps = tails.gaps_of(int(k))
            worst = int(gaps.argmax())
            exact[k] = gaps[worst]
            np.maximum(lower, tails.gaps_at(np.maximum(starts, starts[k] + worst)), out=lower)


def _beyond_a_ridge(tails: _Tails) -> tuple[int, float] | None:
    """The other minimum of ``second_minimum``: its index among the candidates, and distance."""
    exact, lower = _evaluate_promising(tails)
    best = int(exact.argmin())
    limit = float(exact[best]) + SECOND_WITHIN

    def evaluate(wanted: npt.NDArray[np.bool_]) -> None:
        for k in np.flatnonzero(wanted & np.isinf(exact)):
            exact[k] = tails.gaps_of(int(k)).max()

    def beyond() -> npt.NDArray[np.bool_]:
        """Good candidates with a ridge between them and the best, as far as is known."""
        known = np.where(np.isinf(exact), lower, exact)
        left = np.maximum.accumulate(known[best::-1])[::-1]
        climbed = np.r_[left, np.maximum.accumulate(known[best:])[1:]]
        apart: npt.NDArray[np.bool_] = climbed >= exact + SECOND_WITHIN
        return (exact <= limit) & apart

    evaluate(lower <= limit)
    doubtful = np.flatnonzero((exact <= limit) & ~beyond())
    between = np.zeros(len(exact), dtype=bool)
    between[doubtful[0] : doubtful[-1]] = True
    evaluate(between & (lower <= limit + SECOND_WITHIN))
    found = np.flatnonzero(beyond())
    if not len(found):
        return None
    second = int(found[exact[found].argmin()])
    return second, float(exact[second])


def _fit_at(values: FloatArray, start: int, method: str) -> PowerLaw | Failure:
    logs = np.log(values)
    n = len(values) - start
    excess = float(np.sum(logs[start:] - logs[start]))
    if excess <= 1e-12 * n:
        return Failure("the upper half of the eigenvalues are all equal")
    slope = n / excess
    ks = float(distances(logs, start, slope).max())
    return PowerLaw(1 + slope, float(values[start]), ks, n, slope / n**0.5, method)


def _search_small(values: FloatArray) -> PowerLaw | Failure:
    """Below 20 points: bias-corrected estimator, tails of at least 8 points."""
    logs = np.log(values)
    fits = []
    for start in _first_of_ties(values):
        n = len(values) - int(start)
        excess = float(np.sum(logs[start:] - logs[start]))
        if n >= SMALL_SAMPLE_TAIL and excess > 1e-12 * n:
            slope = (n - 1) / excess
            fits.append((float(distances(logs, int(start), slope).max()), int(start), slope))
    if not fits:
        return Failure("no tail of at least 8 eigenvalues can be fitted")
    fits.sort()
    ks, start, slope = fits[0]
    n = len(values) - start
    gap = fits[1][0] - ks if len(fits) > 1 else None
    xmin = float(values[start])
    return PowerLaw(1 + slope, xmin, ks, n, slope / n**0.5, "ks-small-sample", gap)


def _candidates(values: FloatArray, method: FitMethod) -> IntArray:
    """Indices of the eigenvalues that a search tries as xmin."""
    distinct = _first_of_ties(values)
    return distinct if method == "ks" else distinct[_in_peak(values, values[distinct], method)]


def _first_of_ties(values: FloatArray) -> IntArray:
    """Indices of distinct values, each the first of its run, without the largest value."""
    new = np.r_[True, values[1:] > values[:-1]]
    new &= values < values[-1]
    return np.flatnonzero(new)


def _in_peak(
    values: FloatArray, candidates: FloatArray, method: FitMethod
) -> npt.NDArray[np.bool_]:
    """Candidates near the fullest of 100 bins of log10, in the authors' window or the intended."""
    counts, edges = np.histogram(np.log10(values), bins=100)
    peak = 10.0 ** float(edges[int(counts.argmax())])
    # their lower bound is the logarithm of the value that it bounds
    lower = np.log10(0.95 * peak) if method == "peak" else 0.95 * peak
    inside: npt.NDArray[np.bool_] = (candidates >= lower) & (candidates <= 1.5 * peak)
    return inside


def fitted_evals(spectrum: Spectrum, floor: EvalFloor, kept: int) -> FloatArray:
    """Eigenvalues over the largest that the tail of a spectrum is sought among, ascending.

    Args:
        spectrum: Not zero.
        floor: Eigenvalues at or below it are left out.
        kept: How many of the largest are more than the rounding of the stored dtype: all of them,
            unless the matrix is rank-deficient.
    """
    evals = spectrum.relative_evals
    lowest = floor.relative(spectrum.largest, spectrum.N)
    if floor.kind == "rank" and kept < len(evals):
        lowest = max(lowest, float(evals[kept]))
    return np.sort(evals[evals > lowest])
