"""Is the tail a power law? Rivals on the same tail, and the rate of an exponential cutoff."""

from __future__ import annotations

from math import exp, log
from typing import Any

from weightscope.columns import Column
from weightscope.laws.tails import Ratio, compare
from weightscope.measurement import Measurement
from weightscope.outcome import Failure, Values
from weightscope.settings import Settings
from weightscope.spectrum import Spectrum

SMALLEST_TAIL = 8
NEEDS = ("alpha",)
_VUONG = "Vuong, Econometrica 57 (1989); Clauset, Shalizi & Newman, SIAM Review 51 (2009)"
COLUMNS = (
    Column(
        "tail_best",
        "text",
        "law that describes the tail best: power_law, exponential, lognormal, "
        "stretched_exponential or truncated_power_law",
        formula="maximum likelihood of each on the tail found for alpha (l >= alpha_xmin). A rival "
        "is named only where it beats the power law with p < 0.1 (Vuong's test; for the truncated "
        "power law, in which the power law is nested, the likelihood ratio as chi-square); of "
        "several the one with the largest likelihood, less ln(n) / 2 for every parameter",
        range="one of the five",
        reading="power_law: no rival beats it, so it is not rejected, which is no proof\n"
        "exponential: exp(-lambda l), which has a scale of its own and no heavy tail\n"
        "lognormal: the logarithms of the eigenvalues are normal\n"
        "stretched_exponential: exp(-(lambda l)^beta), the tail of Weibull's law\n"
        "truncated_power_law: l^-alpha exp(-lambda l), a power law that bends away",
        caution="Below 50 tail points most rivals go unnoticed, and several hundred are needed to "
        "tell them from each other. A true power law is rejected in up to one case of ten. The "
        "tests assume independent points; eigenvalues repel.",
        noise="stretched_exponential in half of all draws, power_law in a quarter (512 x 512)",
        source=_VUONG,
    ),
    Column(
        "tail_llr",
        "number",
        "log-likelihood ratio of power law and best rival, in standard deviations",
        formula="sum d_i / (sqrt(n) sd(d)), d_i = ln p_power(l_i) - ln p_rival(l_i)",
        range="(-inf, inf)",
        reading="Negative: the rival fits better; positive: the power law does. The rival is "
        "tail_best or, where that is power_law, the best of those that differ from it. All four "
        "ratios and their parameters are in the JSON output, under tail_ratios.",
        caution="The power law is a limit of the lognormal, the stretched exponential and the "
        "truncated power law, so against these it cannot be positive.",
        noise="-3 to -1 (512 x 512)",
        source=_VUONG,
    ),
    Column(
        "tail_llr_p",
        "number",
        "probability of a ratio at least that far from 0 if both laws were equally good",
        formula="erfc(|tail_llr| / sqrt(2)); truncated power law: chi-square with one degree of "
        "freedom of twice the ratio",
        range="[0, 1]",
        reading="Below 0.1 the sign of tail_llr can be trusted; above it the tail decides nothing.",
        caution="As tail_best; and the best of four was picked first.",
        noise="0.003 to 0.3 (512 x 512)",
        source=_VUONG,
    ),
    Column(
        "alpha_lambda",
        "number",
        "rate of the exponential cutoff that goes with alpha (--fit tpl, etpl)",
        formula="maximum-likelihood L of C l^-alpha exp(-L l), C = xmin^(alpha - 1) / "
        "E_alpha(L xmin), for l >= alpha_xmin",
        unit="1/W^2",
        range="[0, inf)",
        reading="The power law bends away near 1 / alpha_lambda; 0: it fits best without a cutoff, "
        "and alpha is the power law's. Empty under --fit pl.",
        caution="Moves with the scale of the weights: compare alpha_lambda times alpha_xmin. Where "
        "1 / alpha_lambda is far above the largest eigenvalue it is not determined.",
        noise="empty: no tail has an alpha above 1",
        source="Clauset, Shalizi & Newman, SIAM Review 51 (2009), table 1",
    ),
)


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """Compare laws on the tail of alpha; nothing where there is no such tail."""
    spectrum, xmin = measured.spectrum, known.get("alpha_relative_xmin")
    if spectrum is None or not isinstance(xmin, float):
        return {}
    values: dict[str, Any] = {}
    relative = known.get("alpha_relative_lambda")
    if isinstance(relative, float):
        values["alpha_lambda"] = _per_unit(relative, spectrum)
    tail = spectrum.relative_evals[spectrum.relative_evals >= xmin]
    if len(tail) < SMALLEST_TAIL:
        reason = f"{len(tail)} eigenvalues in the tail are too few to compare laws"
        return values | {"tail_llr": Failure(reason, f"at least {SMALLEST_TAIL} are needed")}
    found = compare(tail)
    log_xmin = log(xmin) + 2 * log(spectrum.largest)
    return values | {
        "tail_best": found.best,
        "tail_llr": found.against.normalised,
        "tail_llr_p": found.against.p,
        # no column: for JSON
        "tail_ratios": {ratio.rival: _record(ratio, log_xmin) for ratio in found.ratios},
    }


def _per_unit(relative: float, spectrum: Spectrum) -> float | Failure:
    """A rate per relative eigenvalue as one per W^2, or that float64 cannot hold it."""
    value = relative / spectrum.largest / spectrum.largest
    if relative and not 0 < value < float("inf"):
        return Failure("the value is outside the range of float64")
    return value


def _record(ratio: Ratio, log_xmin: float) -> dict[str, Any]:
    """A ratio as plain values, its parameters in units of the eigenvalues."""
    parameters: dict[str, float | None] = dict(ratio.parameters)
    if "mu" in ratio.parameters:
        parameters["mu"] = ratio.parameters["mu"] + log_xmin
    if "log_lambda" in ratio.parameters:
        exponent = ratio.parameters["log_lambda"] - log_xmin
        del parameters["log_lambda"]
        parameters["lambda"] = exp(exponent) if abs(exponent) < 700 else None
    return {
        "llr": ratio.llr,
        "normalised": ratio.normalised,
        "p": ratio.p,
        "parameters": parameters,
    }
