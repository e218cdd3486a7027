"""How far two spectra are apart."""

from __future__ import annotations

import numpy as np

from weightscope.spectrum import FloatArray, Spectrum


def log_wasserstein(a: FloatArray, b: FloatArray) -> float:
    """Wasserstein-1 distance of two samples' natural logarithms.

    The integral over the distance of the quantile functions, exact for samples of any sizes.

    Args:
        a: Positive values, in any order.
        b: Positive values, in any order.
    """
    x, y = np.sort(np.log(a)), np.sort(np.log(b))
    if len(x) == len(y):
        return float(np.mean(np.abs(x - y)))
    levels = np.union1d(np.arange(1, len(x) + 1) / len(x), np.arange(1, len(y) + 1) / len(y))
    widths = np.diff(levels, prepend=0.0)
    middles = levels - widths / 2
    gaps = np.abs(x[(middles * len(x)).astype(int)] - y[(middles * len(y)).astype(int)])
    return float(np.sum(widths * gaps))


def spectrum_distance(a: Spectrum, b: Spectrum, floor: float) -> float | None:
    """Wasserstein-1 distance of the log eigenvalues; None where one has none above the floor.

    Args:
        a: First spectrum.
        b: Second spectrum.
        floor: Singular values at or below it are left out on both sides (units of W).
    """
    kept = [s.singular_values[s.singular_values > floor] for s in (a, b)]
    if not all(len(values) for values in kept):
        return None
    return 2 * log_wasserstein(*kept)


def same_spectrum(a: Spectrum, b: Spectrum, tolerance: float = 1e-9) -> bool:
    """Whether two spectra agree relative to their largest value."""
    x, y = a.singular_values, b.singular_values
    return len(x) == len(y) and bool(np.max(np.abs(x - y)) <= tolerance * max(x[0], 1e-300))
