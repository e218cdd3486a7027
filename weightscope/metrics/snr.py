"""Signal over noise: Spectrum's score as published, and one with a noise edge that is one."""

from __future__ import annotations

import numpy as np

from weightscope.columns import Column
from weightscope.laws import marchenko_pastur
from weightscope.measurement import Measurement
from weightscope.outcome import Failure, Value, Values
from weightscope.settings import Settings
from weightscope.spectrum import FloatArray, Spectrum

NEEDS = ("mp",)
COLUMNS = (
    Column(
        "snr",
        "number",
        "signal-to-noise ratio as Spectrum's program computes it",
        formula="[sum_{s_i > e} s_i / sum_{s_i <= e} s_i] / s_1, e = IQR(s) / 1.349 "
        "(1 + sqrt(M / N)); the lower sum is set to 1 where nothing is below e",
        unit="1/W",
        range="[0, inf)",
        reading="Spectrum trains the layers with the highest values of each module type.",
        caution="Parity with the program, with its faults: the spread of the singular values is "
        "not the noise level, so a quarter (Q = 1) to all (Q = 4) of pure noise counts as signal; "
        "ten times the weights have a tenth of the score.",
        noise="0.8 / s_1 (Q = 1), 4 / s_1 (Q = 2); from Q = 4 on all of it counts as signal",
        source="Hartford et al., Spectrum, arXiv 2406.06623",
    ),
    Column(
        "snr_mp",
        "number",
        "sum of the singular values above the noise edge, over that below",
        formula="sum_{s_i > c} s_i / sum_{s_i <= c} s_i, c^2 = N mp_sigma^2 (x_+ + t Q^-1/2 M^-2/3 "
        "(1 + Q^-1/2)^(4/3)), t = 0.979: the cut of mp_spikes",
        range="[0, inf)",
        reading="0: nothing stands out of a bulk of random entries.",
        caution="Where mp_ks is above 0.1 there is no bulk, and the edge is only that of a random "
        "matrix with the same median.",
        noise="0 in 19 cases of 20",
        source="weightscope; the cut as for mp_spikes",
    ),
)


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """Both scores; they are meant for single matrices, not for pooled slices."""
    spectrum = measured.spectrum
    if spectrum is None or spectrum.largest == 0:
        return {}
    if spectrum.slices > 1:
        why = Failure("it is defined for a matrix, not for the pooled slices of a convolution")
        return {"snr": why, "snr_mp": why}
    return {"snr": spectrum_score(spectrum), "snr_mp": _above_noise(spectrum, known)}


def spectrum_score(spectrum: Spectrum) -> Value | Failure:
    s = spectrum.singular_values / spectrum.largest
    s = np.where(spectrum.singular_values > spectrum.resolution, s, 0.0)  # else rounding is noise
    quarter, three_quarters = np.quantile(s, (0.25, 0.75))
    edge = (three_quarters - quarter) / 1.349 * (1 + spectrum.Q**-0.5)
    signal, noise = _parts(s, float(edge))
    if not noise:
        return signal  # the program then divides by 1, in whatever unit the weights have
    score = signal / noise / spectrum.largest
    if signal and not 0 < score < float("inf"):
        return Failure("the value is outside the range of float64")
    return score


def _above_noise(spectrum: Spectrum, known: Values) -> Value | Failure:
    sigma = known.get("mp_sigma")
    if not isinstance(sigma, float):
        return sigma if isinstance(sigma, Failure) else Failure("there is no noise level")
    cut = spectrum.N * marchenko_pastur.largest_eval_cut(spectrum.N, spectrum.M)
    signal, noise = _parts(
        spectrum.singular_values / spectrum.largest, cut**0.5 * (sigma / spectrum.largest)
    )
    return signal / noise


def _parts(s: FloatArray, edge: float) -> tuple[float, float]:
    """Sums above the edge, and up to it."""
    above = s > edge
    return float(s[above].sum()), float(s[~above].sum())
