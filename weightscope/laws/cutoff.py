"""Power laws whose tail bends down, as exponential families in ``u = ln(x / xmin) >= 0``.

    q(u) = exp(-s u - c v(u)) / G(s, c),    c >= 0

Without a bend (c = 0) this is the power law of density exponent ``s + 1``. Two bends matter:

    truncated power law   v = e^u - 1 - u    alpha = 1 + s - c,  Lambda = c / xmin
    lognormal             v = u^2 / 2        mu = ln xmin - s / c,  sigma^2 = 1 / c

The log-likelihood per point, ``-s mean(u) - c mean(v) - ln G``, is concave in (s, c), so it has one
maximum. That lies at c = 0, the power law itself, exactly where mean(v) is at least what this power
law expects (for the lognormal: del Castillo & Puig, J. Am. Stat. Assoc. 94, 1999).

G and the moments of u and v come from one Gauss-Legendre rule over the range that matters. For the
truncated power law ``G = e^z E_alpha(z)``, ``z = Lambda xmin``: the generalised exponential
integral, here for every real alpha, integers included, as no recurrence divides by alpha - 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np

from weightscope.laws.power_law import IntArray
from weightscope.spectrum import FloatArray

_DEPTH = 40.0
"""Integrands are followed down to e^-40 of their maximum."""
_CONVERGED = 1e-22
"""Squared length of the last Newton step, in standard errors of a single observation."""
_NO_BEND = 1e-60
"""Below it c no longer shows within the range of float64 samples."""
_ITERATIONS = 100
"""Ten are enough; what is left then is the rounding of hardly identified bends."""


@dataclass(frozen=True)
class Bend:
    """How a power law is bent down.

    Attributes:
        v: The statistic: convex, v(0) = v'(0) = 0.
        expected: Its mean under a power law of slope s, for arrays.
        reach: Lowest and highest u that the integrals need, given arrays s and c.
    """

    v: Callable[[FloatArray], FloatArray]
    expected: Callable[[FloatArray], FloatArray]
    reach: Callable[[FloatArray, FloatArray], tuple[FloatArray, FloatArray]]


@dataclass(frozen=True)
class Bent:
    """Members of a family, one per entry of float64 arrays of shape (k,).

    Attributes:
        s: Slope at xmin; any real number.
        c: Strength of the bend, at least zero.
        log_norm: ln G(s, c).
        var_alpha: What n times the variance of ``s - c`` tends to as n grows.
    """

    s: FloatArray
    c: FloatArray
    log_norm: FloatArray
    var_alpha: FloatArray

    def __getitem__(self, chosen: IntArray) -> Bent:
        """Some of them, by index."""
        return Bent(self.s[chosen], self.c[chosen], self.log_norm[chosen], self.var_alpha[chosen])


@dataclass(frozen=True)
class _Moments:
    """Means, variances and covariance of u and v."""

    u: FloatArray
    v: FloatArray
    uu: FloatArray
    uv: FloatArray
    vv: FloatArray

    @property
    def determinant(self) -> FloatArray:
        return self.uu * self.vv - self.uv * self.uv


def fit(bend: Bend, mean_u: FloatArray, mean_v: FloatArray) -> Bent:
    """Maximum likelihood for many samples at once.

    Args:
        bend: Which family.
        mean_u: Mean of u of each sample, positive, shape (k,).
        mean_v: Mean of v of each sample, more than v(mean_u), shape (k,).

    Returns:
        Their laws, with c = 0 where no bend fits better than any.
    """
    s = 1 / mean_u
    c, log_norm, var_alpha = np.zeros_like(s), -np.log(s), s * s
    bent = np.flatnonzero(mean_v < bend.expected(s))
    slope, strength = _maximise(bend, mean_u[bent], mean_v[bent])
    some = strength > _NO_BEND
    bent = bent[some]
    s[bent], c[bent] = slope[some], strength[some]
    log_norm[bent], m = _integrate(bend, s[bent], c[bent])
    var_alpha[bent] = (m.uu + 2 * m.uv + m.vv) / m.determinant
    return Bent(s, c, log_norm, var_alpha)


def log_norm(bend: Bend, s: FloatArray, c: FloatArray) -> FloatArray:
    """ln G, to an absolute error of 1e-11.

    Args:
        bend: Which family.
        s: Slopes, any real, shape (k,).
        c: Strengths of the bend, positive, shape (k,).
    """
    return _integrate(bend, s, c)[0]


def _maximise(bend: Bend, mean_u: FloatArray, mean_v: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Newton's method with step halving, for all samples side by side."""
    s, c = np.zeros_like(mean_u), 1 / (2 * mean_v)
    best = np.full_like(s, -np.inf)
    step_s, step_c = np.zeros_like(s), np.zeros_like(s)
    todo = np.arange(len(s))
    for _ in range(_ITERATIONS):
        trial_s, trial_c = s[todo] + step_s, c[todo] + step_c
        norm, m = _integrate(bend, trial_s, trial_c)
        likelihood = -trial_s * mean_u[todo] - trial_c * mean_v[todo] - norm
        # rounding may turn the last steps uphill or down
        better = likelihood >= best - 1e-13 * (1 + np.abs(likelihood))
        excess_u, excess_v = m.u - mean_u[todo], m.v - mean_v[todo]
        newton_s = (m.vv * excess_u - m.uv * excess_v) / m.determinant
        newton_c = (m.uu * excess_v - m.uv * excess_u) / m.determinant
        s[todo[better]], c[todo[better]] = trial_s[better], trial_c[better]
        best = np.where(better, likelihood, best)
        squared = newton_s * excess_u + newton_c * excess_v
        far = (squared > _CONVERGED) | (np.abs(newton_c) > 1e-6 * trial_c)
        # c stays positive: no step takes more than nine tenths of it, and s follows
        held = newton_c < -0.9 * trial_c
        newton_c = np.where(held, -0.9 * trial_c, newton_c)
        newton_s = np.where(held, (excess_u - m.uv * newton_c) / m.uu, newton_s)
        step_s = np.where(better, newton_s, step_s / 4)
        step_c = np.where(better, newton_c, step_c / 4)
        open_ones = ~better | (far & (trial_c > _NO_BEND))
        todo, best = todo[open_ones], best[open_ones]
        step_s, step_c = step_s[open_ones], step_c[open_ones]
        if not len(todo):
            break
    return s, c


@cache
def _rule() -> tuple[FloatArray, FloatArray]:
    """Nodes and weights on [-1, 1]; found when first needed, as it takes an eigen-solve."""
    nodes, masses = np.polynomial.legendre.leggauss(64)
    return nodes, masses


def _integrate(bend: Bend, s: FloatArray, c: FloatArray) -> tuple[FloatArray, _Moments]:
    low, high = bend.reach(s, c)
    half = (high - low)[:, None] / 2
    nodes, masses = _rule()
    u = low[:, None] + half * (1 + nodes)
    v = bend.v(u)
    exponent = -s[:, None] * u - c[:, None] * v
    top = exponent.max(axis=1, keepdims=True)
    weights = np.exp(exponent - top) * masses
    total = weights.sum(axis=1, keepdims=True)
    norm: FloatArray = (top + np.log(total * half))[:, 0]
    weights /= total
    mean_u = (weights * u).sum(axis=1)
    mean_v = (weights * v).sum(axis=1)
    u -= mean_u[:, None]
    v -= mean_v[:, None]
    weighted_u = weights * u
    uu, uv = (weighted_u * u).sum(axis=1), (weighted_u * v).sum(axis=1)
    return norm, _Moments(mean_u, mean_v, uu, uv, (weights * v * v).sum(axis=1))


def exponential_excess(u: FloatArray) -> FloatArray:
    """e^u - 1 - u for u >= 0, without cancellation."""
    excess: FloatArray = np.expm1(u) - u
    small = u < 0.5
    x = u[small]
    series = np.ones_like(x)
    for k in range(12, 2, -1):
        series = 1 + series * x / k
    excess[small] = x * x / 2 * series
    return excess


def _exponential_expected(s: FloatArray) -> FloatArray:
    expected = np.full_like(s, np.inf)
    return np.divide(1, s * (s - 1), out=expected, where=s > 1)


def _exponential_reach(s: FloatArray, c: FloatArray) -> tuple[FloatArray, FloatArray]:
    peak, curvature = _peak(s, c)
    # e^-d - 1 + d is at least d - 1, and d^2/3 below 1
    down = np.where(curvature > 3 * _DEPTH, np.sqrt(3 * _DEPTH / curvature), _DEPTH / curvature + 1)
    return np.maximum(peak - down, 0), _exponential_top(s - 2, c)


def _peak(s: FloatArray, c: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Where exp(-s u - c (e^u - 1 - u)) is largest on u >= 0, and c e^u there."""
    rising = np.maximum(-s, 0)
    return np.log1p(rising / c), c + rising


def _exponential_top(s: FloatArray, c: FloatArray) -> FloatArray:
    """Where it has fallen by _DEPTH; with s - 2 for s, the same for v^2 times it."""
    peak, curvature = _peak(s, c)
    slope = np.maximum(s, 0)
    # from above, as e^d - 1 - d is at least d^2/2, and e^d/2 beyond 2; then Newton
    d = np.minimum(np.sqrt(2 * _DEPTH / curvature), np.maximum(2, np.log(2 * _DEPTH / curvature)))
    np.divide(_DEPTH, slope, out=d, where=slope * d > _DEPTH)
    for _ in range(4):
        drop = slope * d + curvature * exponential_excess(d)
        d -= (drop - _DEPTH) / (slope + curvature * np.expm1(d))
    top: FloatArray = peak + d
    return top


def _square_reach(s: FloatArray, c: FloatArray) -> tuple[FloatArray, FloatArray]:
    peak, slope = np.maximum(-s / c, 0), np.maximum(s, 0)
    up = 2 * _DEPTH / (slope + np.sqrt(slope * slope + 2 * _DEPTH * c))
    return np.maximum(peak - np.sqrt(2 * _DEPTH / c), 0), peak + up


EXPONENTIAL = Bend(exponential_excess, _exponential_expected, _exponential_reach)
"""The bend of the truncated power law."""
SQUARE = Bend(lambda u: u * u / 2, lambda s: 1 / (s * s), _square_reach)
"""The bend of the lognormal."""
