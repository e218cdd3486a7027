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
    t = np.arccos(np.clip((centre - x) / half, -1, 1))
    product = 1 - 1 / Q  # sqrt(c^2 - d^2), the geometric mean of the edges
    ratio = (1 + Q**-0.5) / max(1 - Q**-0.5, 1e-300)
    # the two-argument form stays exact where tan(t/2) diverges
    angle = np.arctan2(ratio * np.sin(t / 2), np.cos(t / 2)) if product > 0 else 0.0
    integral = np.sin(t) * half + centre * t - 2 * product * angle
    values: FloatArray = np.clip(Q / (2 * pi) * integral, 0, 1)
    return values


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


_TW_UPPER = (0.05, 0.02, 0.01, 0.005, 0.002, 0.001, 0.0005, 0.0002, 0.0001, 0.00001)
_TW_QUANTILE = (
    0.979316, 1.597756, 2.023449, 2.422327, 2.917407,
    3.272196, 3.612865, 4.044764, 4.359420, 5.344296,
)  # fmt: skip


def tracy_widom_quantile(upper: float) -> float:
    """Point that the Tracy-Widom law of order 1 exceeds with the given probability.

    Interpolated in a table of the Fredholm determinant (Ferrari & Spohn 2005), for probabilities
    from 1e-5 to 0.05.
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
