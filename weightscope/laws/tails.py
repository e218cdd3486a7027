"""Is it a power law? Other laws for the same tail, and which of them fits better.

Every law is truncated to x >= xmin and fitted by maximum likelihood; likelihoods are then compared
point by point (Vuong, Econometrica 57, 1989; Clauset, Shalizi & Newman, SIAM Review 51, 2009,
section 5). Densities are those of ``u = ln(x / xmin)``.

The power law is the limit of the lognormal (mu -> -inf), of the stretched exponential (beta -> 0)
and of the truncated power law (Lambda -> 0), so at their maxima these three never have the smaller
likelihood; where the limit is best, their ratio is 0. A positive ratio is possible against the
exponential alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import erfc, log, sqrt

import numpy as np

from weightscope.laws import cutoff
from weightscope.laws.cutoff import EXPONENTIAL, SQUARE, Bend
from weightscope.spectrum import FloatArray

SIGNIFICANT = 0.1
"""The level of Clauset, Shalizi and Newman."""
POWER_LAW = "power_law"
_SAME = 1e-10
"""Two laws that differ by less per point differ by the rounding of their normalisers."""
_LARGEST_EXPONENT = 700.0


@dataclass(frozen=True)
class Law:
    """A fitted law.

    Attributes:
        parameters: Name to value; ``log_lambda`` is the logarithm of a rate times xmin, ``mu`` is
            counted from ln xmin. Empty where the law has become the power law, its limit.
        log_density: Of u, at every point of the tail.
    """

    parameters: dict[str, float]
    log_density: FloatArray


@dataclass(frozen=True)
class Ratio:
    """The power law against one rival.

    Attributes:
        rival: Name.
        llr: Log-likelihood of the power law minus that of the rival.
        normalised: ``llr`` over its standard deviation, Vuong's statistic.
        p: Probability of a ratio at least as far from 0 if both are equally good: two-sided
            normal; for the truncated power law, in which the power law is nested, chi-square of
            one degree of freedom for ``-2 llr``.
        parameters: Of the rival, as in ``Law``.
    """

    rival: str
    llr: float
    normalised: float
    p: float
    parameters: dict[str, float]


@dataclass(frozen=True)
class Comparison:
    """What the tail is best described by.

    Attributes:
        best: The rival with the largest likelihood among those that beat the power law, or
            ``power_law``.
        against: Ratio to that rival; where none beats the power law, to the best of all.
        ratios: One per rival.
    """

    best: str
    against: Ratio
    ratios: tuple[Ratio, ...]


def compare(tail: FloatArray) -> Comparison:
    """Compare the power law with its rivals.

    A rival beats the power law where its likelihood is larger with p below 0.1. Likelihoods of
    rivals are compared after half the logarithm of the sample size is taken off for every
    parameter (Schwarz's criterion), as the exponential is a special case of two of them.

    Args:
        tail: Sample at or above xmin, its smallest value, in any order; positive, not all equal.
    """
    u = np.log(tail)
    u -= u.min()
    power = _power_law(u)
    laws = {
        "exponential": _exponential(u),
        "lognormal": _lognormal(u),
        "stretched_exponential": _stretched_exponential(u),
        "truncated_power_law": _truncated_power_law(u),
    }
    ratios = tuple(_ratio(name, power, law) for name, law in laws.items())
    distinct = [ratio for ratio in ratios if ratio.parameters]
    better = [ratio for ratio in distinct if ratio.llr < 0 and ratio.p < SIGNIFICANT]
    against = min(
        better or distinct or ratios,
        key=lambda ratio: ratio.llr + len(ratio.parameters) * log(len(u)) / 2,
    )
    return Comparison(against.rival if better else POWER_LAW, against, ratios)


def _ratio(name: str, power: FloatArray, law: Law) -> Ratio:
    differences = power - law.log_density
    llr = float(differences.sum())
    if not law.parameters or abs(llr) < _SAME * len(differences):
        return Ratio(name, 0.0, 0.0, 1.0, {})
    normalised = llr / (sqrt(len(differences)) * float(differences.std()))
    nested = name == "truncated_power_law"
    p = erfc(sqrt(max(-llr, 0.0))) if nested else erfc(abs(normalised) / sqrt(2))
    return Ratio(name, llr, normalised, p, law.parameters)


def _power_law(u: FloatArray) -> FloatArray:
    s = 1 / float(u.mean())
    density: FloatArray = log(s) - s * u
    return density


def _exponential(u: FloatArray) -> Law:
    top = max(float(u.max()) - _LARGEST_EXPONENT, 0.0)
    # e^u - 1 over e^top, which cannot overflow
    excess = np.exp(u - top) - np.exp(-top) if top else np.expm1(u)
    log_rate = -log(float(excess.mean())) - top
    return Law({"log_lambda": log_rate}, log_rate + u - excess / float(excess.mean()))


def _bent(u: FloatArray, bend: Bend) -> tuple[float, float, FloatArray]:
    """Slope, strength and log-density of a power law with a bend."""
    v = bend.v(u)
    law = cutoff.fit(bend, np.array([u.mean()]), np.array([v.mean()]))
    s, c = float(law.s[0]), float(law.c[0])
    return s, c, -s * u - c * v - float(law.log_norm[0])


def _lognormal(u: FloatArray) -> Law:
    s, c, density = _bent(u, SQUARE)
    return Law({"mu": -s / c, "sigma": c**-0.5} if c else {}, density)


def _truncated_power_law(u: FloatArray) -> Law:
    s, c, density = _bent(u, EXPONENTIAL)
    return Law({"alpha": 1 + s - c, "log_lambda": log(c)} if c else {}, density)


def _stretched_exponential(u: FloatArray) -> Law:
    """``p(x) ~ x^(beta - 1) exp(-(lambda x)^beta)``, the Weibull law above xmin.

    Given beta, ``lambda^beta = 1 / mean(e^(beta u) - 1)``. The likelihood that remains is concave
    in beta, as mean(e^(beta u) - 1) / beta is log-convex.
    """
    mean = float(u.mean())
    if float((u * u).mean()) >= 2 * mean * mean:
        return Law({}, _power_law(u))
    beta = _stretch(u, mean)
    top = beta * float(u.max())
    # e^(beta u) - 1 over e^top, which cannot overflow
    excess = np.exp(beta * u - top) - np.exp(-top)
    log_rate = -log(float(excess.mean())) - top
    density = log(beta) + log_rate + beta * u - excess / float(excess.mean())
    return Law({"beta": beta, "log_lambda": log_rate / beta}, density)


def _stretch(u: FloatArray, mean: float) -> float:
    """Maximum-likelihood beta, by Newton's method kept inside a shrinking bracket."""
    low, high = 0.0, float("inf")
    beta = 1 / mean
    for _ in range(200):
        grown = np.exp(beta * (u - u.max()))
        total = float((grown - np.exp(-beta * u.max())).mean())
        first, second = float((u * grown).mean()) / total, float((u * u * grown).mean()) / total
        gradient = 1 / beta - first + mean
        curvature = -1 / beta**2 - second + first * first
        low, high = (beta, high) if gradient > 0 else (low, beta)
        last, beta = beta, beta - gradient / curvature
        if not low < beta < high:
            beta = 2 * low if high == float("inf") else (low + high) / 2
        if abs(beta - last) <= 1e-13 * last:
            break
    return beta
