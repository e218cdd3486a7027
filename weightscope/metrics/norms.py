"""Norms of W from its singular values."""

from __future__ import annotations

from math import log10, sqrt

from weightscope.columns import Column
from weightscope.measurement import Measurement
from weightscope.outcome import Values
from weightscope.settings import Settings

NEEDS: tuple[str, ...] = ()
COLUMNS = (
    Column(
        "frobenius_norm",
        "number",
        "Frobenius norm of W (not squared)",
        formula="sqrt(sum s_i^2)",
        unit="W",
        range="[0, inf)",
        reading="Overall size of the weights; grows with the number of entries.",
        caution="WeightWatcher's column 'norm' is its square.",
        noise="sigma sqrt(N M)",
        source="Horn & Johnson, Matrix Analysis, 5.6",
    ),
    Column(
        "spectral_norm",
        "number",
        "largest singular value of W (not squared)",
        formula="s_1",
        unit="W",
        range="[0, inf)",
        reading="How much the layer can stretch its input.",
        caution="WeightWatcher's columns 'spectral_norm' and 'lambda_max' are its square.",
        noise="sigma (sqrt N + sqrt M)",
        source="Horn & Johnson, Matrix Analysis, 5.6",
    ),
    Column(
        "nuclear_norm",
        "number",
        "sum of the singular values of W",
        formula="sum s_i",
        unit="W",
        range="[0, inf)",
        reading="Against the Frobenius norm it says how evenly energy is spread over directions.",
        noise="0.85 sigma M sqrt(M) for a square matrix: 8/(3 pi)",
        source="Horn & Johnson, Matrix Analysis, 5.6",
        caution="Grows with size; compare matrices of one shape.",
    ),
    Column(
        "log_norm",
        "number",
        "log10 of the squared Frobenius norm",
        formula="log10 sum l_i",
        unit="log W^2",
        reading="The scale metric 'log_norm' of the HTSR literature.",
        noise="log10(N M sigma^2)",
        source="Martin, Peng & Mahoney, Nature Communications 12 (2021)",
        range="(-inf, inf)",
        caution="Grows with size and scale; compare matrices of one shape.",
    ),
    Column(
        "log_spectral_norm",
        "number",
        "log10 of the squared largest singular value",
        formula="log10 l_1",
        unit="log W^2",
        reading="The scale metric 'log_spectral_norm' of the HTSR literature.",
        caution="Smaller is not always better: in practice the reverse is often seen.",
        noise="2 log10(sigma (sqrt N + sqrt M))",
        source="Martin, Peng & Mahoney, Nature Communications 12 (2021)",
        range="(-inf, inf)",
    ),
)


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """Norms of W; their logarithms stay empty for the zero matrix."""
    if measured.spectrum is None:
        return {}
    s, largest = measured.spectrum.singular_values, measured.spectrum.largest
    if largest == 0:
        return {"frobenius_norm": 0.0, "spectral_norm": 0.0, "nuclear_norm": 0.0}
    share = sqrt(float(measured.spectrum.relative_evals.sum()))
    return {
        "frobenius_norm": share * largest,
        "spectral_norm": largest,
        "nuclear_norm": float(s.sum()),
        "log_norm": 2 * (log10(largest) + log10(share)),
        "log_spectral_norm": 2 * log10(largest),
    }
