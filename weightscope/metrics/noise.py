"""How far a spectrum is from that of random entries."""

from __future__ import annotations

from weightscope.columns import Column
from weightscope.laws.noise.tabulated import LEAST_SHARE, noise_distance
from weightscope.laws.power_law import SMALLEST_SAMPLE
from weightscope.measurement import Measurement
from weightscope.metrics.rank import is_deficient
from weightscope.outcome import Failure, Values
from weightscope.settings import Settings

NEEDS = ("rank",)
COLUMNS = (
    Column(
        "noise_w1",
        "number",
        "distance of the spectrum from that of Gaussian noise of its shape",
        formula="mean |ln(l_i / mean l) - ln e_i|, e_i the expected eigenvalues of noise over "
        "their mean; the largest `rank` of both",
        range="[0, inf)",
        reading="0.7 is a factor of two between the eigenvalues and those of noise, on average.",
        caution="Falls with size for noise, about as 1/M: noise_p tells what is small.",
        noise="0.6 times the log range of the spectrum over M",
        source="Wasserstein-1 distance of log eigenvalues; Marchenko & Pastur 1967, corrected at "
        "order 1/M after Dumitriu & Edelman, J. Math. Phys. 47 (2006)",
    ),
    Column(
        "noise_p",
        "number",
        "share of noise draws at least as far from the expected spectrum",
        formula="upper tail of noise_w1 over seeded draws, interpolated in a table of shapes",
        range="[0.001, 1]",
        reading="0.05 and more: the matrix cannot be told from random entries (random-like), by "
        "its singular values. 0.001: no draw comes near.",
        caution="Independent entries that are not Gaussian pass too in most cases: 94 to 95 % of "
        "uniform matrices, 76 to 90 % of those of nine pooled slices, about half with 25. What "
        "training did to the directions alone cannot be seen.",
        noise="uniform between 0 and 1",
        source="simulated with the chi model of Dumitriu & Edelman, J. Math. Phys. 43 (2002)",
    ),
)


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """Distance and share; a matrix without full rank is not noise."""
    spectrum = measured.spectrum
    if spectrum is None or spectrum.largest == 0:
        return {}
    if measured.matrix.unlike_noise:
        return {"noise_p": Failure(measured.matrix.unlike_noise)}
    if len(spectrum.singular_values) < SMALLEST_SAMPLE or spectrum.M < 2:
        return {}
    rank = known["rank"]
    assert isinstance(rank, int)
    found = noise_distance(spectrum, rank)
    if found is None:
        reason = Failure(f"only {rank} singular values are above the rounding of the stored dtype")
        return {"noise_w1": reason, "noise_p": LEAST_SHARE}
    distance, share = found
    return {"noise_w1": distance, "noise_p": LEAST_SHARE if is_deficient(rank, spectrum) else share}
