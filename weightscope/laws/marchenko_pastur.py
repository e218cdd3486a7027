"""The Marchenko-Pastur law of X = W^T W / N, and the Tracy-Widom law of its largest eigenvalue.

Theory units: entries of W independent with variance sigma^2, eigenvalues x = l / N, aspect ratio
Q = N / M >= 1. The bulk lies between sigma^2 (1 - Q^-1/2)^2 and sigma^2 (1 + Q^-1/2)^2.
"""

from __future__ import annotations

from functools import lru_cache
from math import log, pi, sqrt

import numpy as np

from weightscope.spectrum import FloatArray


def edges(Q: float) -> tuple[float, float]:
    """Lower and upper edge of the bulk for unit variance."""
    root = Q**-0.5
    return (1 - root) ** 2, (1 + root) ** 2


def cdf(x: FloatArray, Q: float) -> FloatArray:
    """Cumulative distribution for unit variance at any x.

    With x = c - d cos(t), c = 1 + 1/Q and d = 2/sqrt(Q), the density integrates in closed form.
    """
    centre, half = 1 + 1 / Q, 2 / sqrt(Q)
    return _share(np.arccos(np.clip((centre - x) / half, -1, 1)), Q)


def density(x: FloatArray, Q: float) -> FloatArray:
    """Probability density for unit variance at points inside the bulk; zero outside it."""
    lower, upper = edges(Q)
    inside = np.sqrt(np.clip((upper - x) * (x - lower), 0, None))
    values: FloatArray = Q / (2 * pi) * inside / np.maximum(x, 1e-300)
    return values


def _share(t: FloatArray, Q: float) -> FloatArray:
    """Share of the law below the point at angle t, 0 at the lower edge and pi at the upper."""
    centre, half = 1 + 1 / Q, 2 / sqrt(Q)
    product = 1 - 1 / Q  # sqrt(c^2 - d^2), the geometric mean of the edges
    ratio = (1 + Q**-0.5) / max(1 - Q**-0.5, 1e-300)
    # the two-argument form stays exact where tan(t/2) diverges
    angle = np.arctan2(ratio * np.sin(t / 2), np.cos(t / 2)) if product > 0 else 0.0
    integral = np.sin(t) * half + centre * t - 2 * product * angle
    values: FloatArray = np.clip(Q / (2 * pi) * integral, 0, 1)
    return values


def _point(t: FloatArray, Q: float) -> FloatArray:
    """Eigenvalue at angle t, without the cancellation of c - d cos(t) near the lower edge."""
    points: FloatArray = edges(Q)[0] + 4 / sqrt(Q) * np.square(np.sin(t / 2))
    return points


_ANGLES = np.concatenate([[0.0], np.geomspace(1e-8, 0.5, 1500), np.linspace(0.5, pi, 1500)[1:]])
"""Dense at zero, where the law of a square matrix needs its relative precision."""


def _angles(shares: FloatArray, Q: float) -> FloatArray:
    """Angles below which the given shares lie: table look-up and one Newton step."""
    table = np.maximum.accumulate(_share(_ANGLES, Q))
    t = np.interp(shares, table, _ANGLES)
    slope = 2 / pi * np.square(np.sin(t)) / np.maximum(_point(t, Q), 1e-300)
    # at the edges the slope vanishes, and the look-up is exact enough
    step = np.where(slope > 1e-3, (_share(t, Q) - shares) / np.maximum(slope, 1e-3), 0.0)
    angles: FloatArray = np.clip(t - step, 0, pi)
    return angles


def quantiles(shares: FloatArray, Q: float) -> FloatArray:
    """Points below which the given shares of the law lie, for unit variance.

    Args:
        shares: Between 0 and 1.
        Q: Aspect ratio, at least 1.
    """
    return _point(_angles(shares, Q), Q)


def finite_quantiles(N: int, M: int, slices: int = 1) -> FloatArray:
    """Where the eigenvalues of real Gaussian noise lie on average, for unit variance.

    The number of eigenvalues below x is ``M F(x) + 1/4 - t/(2 pi)`` up to terms of order 1/M
    (t the angle of x), the correction of real matrices to the law F (Dumitriu & Edelman, J. Math.
    Phys. 47, 2006). Its jump of a quarter at either edge is smeared over the outermost
    eigenvalue; the form ``tanh(2 u) / 4`` for that is ours. Within 0.05 of an eigenvalue, 0.2 at
    the ends of pooled slices.

    Returns:
        float64, ascending, (M * slices,): the middle of every step of the pooled distribution.
    """
    below = (np.arange(M * slices) + 0.5) / slices
    edge = (np.tanh(2 * (M - below)) - np.tanh(2 * below)) / 4 - 0.25
    first = _angles(below / M, N / M)
    return _point(_angles((below + edge + first / (2 * pi)) / M, N / M), N / M)


@lru_cache(maxsize=256)
def median(Q: float) -> float:
    """Median of the law for unit variance."""
    low, high = edges(Q)
    for _ in range(200):
        middle = (low + high) / 2
        if float(cdf(np.array([middle]), Q)[0]) < 0.5:
            low = middle
        else:
            high = middle
    return (low + high) / 2


_TW_UPPER = (
    0.5, 0.45, 0.4, 0.35, 0.3, 0.25, 0.2, 0.16, 0.13, 0.1, 0.08, 0.065,
    0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001, 0.00001,
)  # fmt: skip
_TW_QUANTILE = (
    -1.268575, -1.109767, -0.946330, -0.775169, -0.592287, -0.391994,
    -0.165313, 0.045393, 0.229935, 0.450143, 0.627919, 0.786670,
    0.979316, 1.597756, 2.023449, 2.422327, 2.917407,
    3.272196, 3.612865, 4.044764, 4.359420, 5.344296,
)  # fmt: skip


def tracy_widom_quantile(upper: float) -> float:
    """Point that the Tracy-Widom law of order 1 exceeds with the given probability.

    Interpolated in a table of the Fredholm determinant (Ferrari & Spohn 2005), for probabilities
    from 1e-5 to 0.5.
    """
    return float(np.interp(-log(upper), [-log(p) for p in _TW_UPPER], _TW_QUANTILE))


def largest_eval_cut(N: int, M: int, slices: int = 1, level: float = 0.95) -> float:
    """Eigenvalue of X that pure noise of unit variance exceeds with probability 1 - level.

    The largest of several independent slices is meant where ``slices`` is more than one.
    """
    Q = N / M
    root = float(Q**-0.5)
    t = tracy_widom_quantile(1 - level ** (1 / slices))
    return float((1 + root) ** 2 + t * root * M ** (-2 / 3) * (1 + root) ** (4 / 3))
