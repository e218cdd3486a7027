"""The power law with exponential cutoff, ``p(x) = C x^-alpha e^(-Lambda x)`` for ``x >= xmin``.

``C = xmin^(alpha - 1) / E_alpha(Lambda xmin)``, E the generalised exponential integral. As in the
fit of Clauset, Shalizi and Newman (SIAM Review 51, 2009), every candidate xmin gets the
maximum-likelihood values, and the candidate with the smallest Kolmogorov-Smirnov distance wins
(one-sided, as in ``power_law``).

alpha is not held above 1 while the likelihood is maximised: the cutoff makes every real alpha
normalisable, and a fit that stops at a wall is no maximum. But only a candidate whose maximum has
alpha above 1 starts a tail: at and below 1 the cutoff does all the work, and a search over such
candidates would run down into the bulk, which a gamma law fits well.

All candidates are fitted at once. A truncated power law that is cut further up is another one, so
the survival function at any point is a ratio of two normalisers; taken at a few points it bounds
every candidate's distance from below, and only those are evaluated at all their points that the
bound leaves in the race. The winner is that of the full search.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from weightscope.laws import cutoff
from weightscope.laws.cutoff import EXPONENTIAL, Bent, exponential_excess
from weightscope.laws.power_law import (
    NEAR_TIE,
    SMALLEST_SAMPLE,
    IntArray,
    PowerLaw,
    _candidates,
    distances,
)
from weightscope.outcome import Failure
from weightscope.spectrum import FloatArray

SMALLEST_TAIL = 8
LOWEST_ALPHA = 1.0
_PROBES = 16
_BOUND_ERROR = 1e-9
"""More than what the two quadratures of a distance can differ by."""
_X, _WEIGHTS = np.polynomial.legendre.leggauss(6)


@dataclass(frozen=True)
class TruncatedPowerLaw(PowerLaw):
    """A fitted tail with cutoff.

    Attributes:
        Lambda: Rate of the cutoff, in units of 1 / xmin's; 0 where no cutoff fits better than any.
    """

    Lambda: float = 0.0


def fit_truncated_power_law(
    evals: FloatArray, method: Literal["tpl", "etpl"] = "tpl", floor: float = 0.0
) -> TruncatedPowerLaw | Failure:
    """Fit the tail of a spectrum.

    Args:
        evals: Eigenvalues in any order, finite, at least zero.
        method: ``tpl``: search over every eigenvalue that leaves a tail of at least 8 with alpha
            above 1; ``etpl``: over those of them around the peak of the log-density only.
        floor: Eigenvalues at or below it are left out.

    Returns:
        The fit, or why there is none. ``stderr`` is that of alpha, from the observed information
        of both parameters; where Lambda is 0, that of the power law.
    """
    values = np.sort(evals[evals > floor])
    if len(values) < SMALLEST_SAMPLE:
        return Failure(
            f"{len(values)} eigenvalues above the floor are too few for a power-law fit",
            f"at least {SMALLEST_SAMPLE} are needed",
        )
    if values[-1] / values[0] - 1 < 1e-6:
        return Failure("all eigenvalues are equal, so the exponent is undefined")
    candidates = _candidates(values, "ks" if method == "tpl" else "peak-fixed")
    return search(values, candidates[len(values) - candidates >= SMALLEST_TAIL], method)


def search(values: FloatArray, candidates: IntArray, method: str) -> TruncatedPowerLaw | Failure:
    """Find the candidate with the smallest distance, the first of them on a tie.

    Args:
        values: Sample, ascending, positive.
        candidates: Indices into ``values``, ascending, the last value excluded.
        method: Name to record.
    """
    logs = np.log(values)
    mean_u, mean_v = tail_means(logs)
    candidates = candidates[mean_u[candidates] > 1e-12]
    laws = cutoff.fit(EXPONENTIAL, mean_u[candidates], mean_v[candidates])
    is_tail = np.flatnonzero(1 + laws.s - laws.c > LOWEST_ALPHA)
    if not len(is_tail):
        return Failure(
            "no eigenvalue starts a tail that is a power law before its cutoff: alpha would be "
            "1 or less wherever it starts"
        )
    candidates, laws = candidates[is_tail], laws[is_tail]
    best, ks, gap = _smallest_distance(logs, candidates, laws)
    s, c = float(laws.s[best]), float(laws.c[best])
    n = int(len(values) - candidates[best])
    xmin = float(values[candidates[best]])
    stderr = float(laws.var_alpha[best] / n) ** 0.5
    return TruncatedPowerLaw(1 + s - c, xmin, ks, n, stderr, method, gap, c / xmin)


def tail_means(logs: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Means of u = ln(x / xmin) and of e^u - 1 - u, for every element of a sample as xmin.

    Sums of positive terms from the top down, so that short and narrow tails lose no digits.

    Args:
        logs: Logarithms of the sample, ascending.
    """
    gaps = np.diff(logs)
    growth, excess = np.expm1(gaps).tolist(), exponential_excess(gaps).tolist()
    sums_u, sums_v = [0.0], [0.0]
    for below, gap in enumerate(reversed(gaps.tolist()), start=1):
        u, v = sums_u[-1], sums_v[-1]
        sums_v.append(v + growth[-below] * (u + v) + below * excess[-below])
        sums_u.append(u + below * gap)
    n_tail = np.arange(len(logs), 0, -1)
    return np.array(sums_u[::-1]) / n_tail, np.array(sums_v[::-1]) / n_tail


def survival(u: FloatArray, laws: Bent) -> FloatArray:
    """Probability of more than u, one u for each law."""
    tail = np.exp(-laws.s * u)
    bent = np.flatnonzero(laws.c > 0)
    u, s, c = u[bent], laws.s[bent], laws.c[bent]
    further = cutoff.log_norm(EXPONENTIAL, s + c * np.expm1(u), c * np.exp(u))
    tail[bent] = np.exp(further - laws.log_norm[bent] - s * u - c * exponential_excess(u))
    return tail


def model_cdf(u: FloatArray, s: float, c: float, log_norm: float) -> FloatArray:
    """Distribution function of one law with c > 0 at ascending u, the first of them 0.

    Each stretch between neighbours is cut so finely that the logarithm of the density changes by at
    most 1/2 in a piece, which a Gauss rule of 6 points then integrates to 1e-12.
    """
    low, high = (float(end[0]) for end in EXPONENTIAL.reach(np.array([s]), np.array([c])))
    inside = np.clip(u, low, high)
    inside[0] = low
    width = np.diff(inside)
    steepness = np.abs(s + c * np.expm1(inside))
    pieces = np.ceil(2 * width * np.maximum(steepness[1:], steepness[:-1])).astype(np.int64)
    pieces = np.maximum(pieces, 1)
    first = np.cumsum(pieces) - pieces
    part = np.repeat(width / pieces, pieces)
    number = np.arange(len(part)) - np.repeat(first, pieces)
    left = np.repeat(inside[:-1], pieces) + number * part
    nodes = left[:, None] + part[:, None] / 2 * (1 + _X)
    density = np.exp(-s * nodes - c * exponential_excess(nodes) - log_norm)
    mass = np.add.reduceat((density * _WEIGHTS).sum(axis=1) * part / 2, first)
    return np.concatenate([[0.0], np.cumsum(mass)])


def _smallest_distance(
    logs: FloatArray, candidates: IntArray, laws: Bent
) -> tuple[int, float, float | None]:
    """Index of the winner among the candidates, its distance, and the runner-up's excess."""
    lower = _lower_bounds(logs, candidates, laws)
    exact = np.full(len(candidates), np.inf)
    first = second = np.inf
    for k in np.argsort(lower, kind="stable"):
        # the runner-up matters only as far as a near tie goes
        if np.isfinite(second) and lower[k] - _BOUND_ERROR > min(second, first + NEAR_TIE):
            break
        exact[k] = _distance(logs[candidates[k] :], laws, int(k))
        first, second = sorted((first, second, float(exact[k])))[:2]
    gap = float(second - first) if np.isfinite(second) else None
    return int(exact.argmin()), float(first), gap


def _lower_bounds(logs: FloatArray, candidates: IntArray, laws: Bent) -> FloatArray:
    """Largest of the distances at a few points of every tail."""
    n_tail = len(logs) - candidates
    lower = np.zeros(len(candidates))
    for share in (np.arange(_PROBES) + 0.5) / _PROBES:
        offsets = (share * n_tail).astype(np.int64)
        below = 1 - survival(logs[candidates + offsets] - logs[candidates], laws)
        np.maximum(lower, np.abs(below - offsets / n_tail), out=lower)
    return lower


def _distance(logs: FloatArray, laws: Bent, k: int) -> float:
    s, c = float(laws.s[k]), float(laws.c[k])
    if c == 0:
        return float(distances(logs, 0, s).max())
    model = model_cdf(logs - logs[0], s, c, float(laws.log_norm[k]))
    return float(np.abs(model - np.arange(len(logs)) / len(logs)).max())
