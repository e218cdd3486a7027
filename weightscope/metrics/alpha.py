"""The power-law exponent of the spectrum's tail: HTSR's and WeightWatcher's alpha."""

from __future__ import annotations

from dataclasses import replace
from math import log, log10

import numpy as np

from weightscope.columns import Column
from weightscope.laws.power_law import PowerLaw, fit_power_law, fitted_evals
from weightscope.laws.truncated_power_law import TruncatedPowerLaw, fit_truncated_power_law
from weightscope.measurement import Measurement
from weightscope.metrics.rank import is_constant, is_deficient
from weightscope.outcome import Failure, Value, Values
from weightscope.settings import THRESHOLDS, Settings
from weightscope.spectrum import FloatArray, Spectrum

OVER, UNDER = THRESHOLDS["alpha_over"], THRESHOLDS["alpha_under"]
NEEDS = ("rank",)
_CSN = "Clauset, Shalizi & Newman, SIAM Review 51 (2009)"
COLUMNS = (
    Column(
        "alpha",
        "number",
        "power-law exponent of the eigenvalue density's tail",
        formula="1 + n / sum ln(l_i / xmin) over the n tail eigenvalues; xmin by smallest KS "
        "distance. --fit tpl, etpl: the maximum-likelihood a of C l^-a exp(-alpha_lambda l)",
        range="(1, inf)",
        reading="HTSR: 2 to 6 heavy-tailed and well trained, 2 ideal; above 6 weakly heavy-tailed "
        "('under-trained'); below 2 very heavy-tailed ('over-trained').",
        caution="The thresholds are one school's heuristics and belong to this fit only. With few "
        "tail points or a large ks there is no power law to speak of. Square untrained layers look "
        "'ideal' under the mid fit. Do not compare exponents across fits or data types. With a "
        "cutoff (--fit tpl, etpl) the exponent is that of the start of the tail, smaller than the "
        "power law's and far less certain. xmin is then sought where it is above 1: at and below 1 "
        "the cutoff alone shapes the tail, as it does everywhere in pure noise, and the cell is "
        "empty.",
        noise="see alpha_null: median 4 (64 x 64), 8 (384 x 384), 22 (4096 x 4096); single draws a "
        "factor of two to three either way",
        source=_CSN + "; Martin & Mahoney, JMLR 22 (2021)",
        published="WeightWatcher 0.7 on the authors' released tables: LLaMA-13B mean 4.96, "
        "median 4.20 (q 3.17, "
        "k 3.28, v 6.72, o 6.04, gate 3.90, up 6.47, down 5.13), 26 % above 6; Falcon-7B mean "
        "3.69, "
        "median 3.51 (qkv 2.74, dense 3.65), 5 % above 6; VGG19 classifier 2.26, 2.18, 2.08.",
    ),
    Column(
        "alpha_method",
        "text",
        "which fit: ks, ks-small-sample, mid, peak, peak-fixed, tpl, etpl",
        reading="ks: the xmin of all eigenvalues with the smallest KS distance\n"
        "ks-small-sample: ks with the (n - 1) estimator, below 20 eigenvalues\n"
        "mid: xmin is the median (TempBalance)\n"
        "peak: ks below 1.5 times the density's peak, as coded by AlphaPruning and FARMS\n"
        "peak-fixed: ks around the density's peak, as they describe it\n"
        "tpl: a power law with exponential cutoff, its xmin from all tails of at least 8\n"
        "etpl: tpl with xmin around the density's peak",
    ),
    Column(
        "alpha_stderr",
        "number",
        "leading-order standard error of alpha",
        formula="(alpha - 1) / sqrt(n); --fit tpl, etpl: from the observed information of alpha "
        "and alpha_lambda",
        range="(0, inf)",
        caution="Assumes independent points and a known xmin; eigenvalues repel, and xmin is "
        "chosen.",
        source=_CSN,
        reading="Two exponents differ where they are more than two combined errors apart.",
        noise="0.75 to 4 (512 x 512)",
    ),
    Column(
        "alpha_xmin",
        "number",
        "eigenvalue where the tail starts",
        unit="W^2",
        range="(0, inf)",
        source=_CSN,
        formula="the l_i whose tail has the smallest alpha_ks",
        reading="Eigenvalues below it are not described by the fit.",
        caution="Moves with the scale of the weights; several values may fit almost equally well.",
        noise="inside the bulk, near its upper edge",
    ),
    Column(
        "alpha_ks",
        "number",
        "Kolmogorov-Smirnov distance of tail and fit",
        formula="max |F(l_j) - j/n|, j = 0 .. n-1 (empirical distribution from the left)",
        range="[0, 1]",
        reading="Trained language-model layers: 0.01 to 0.06; above 0.1 it is no power law.",
        noise="0.12 to 0.13",
        source=_CSN,
        caution="Small for very short tails whatever they are.",
    ),
    Column(
        "alpha_n_tail",
        "integer",
        "eigenvalues in the tail",
        formula="#{l_i >= xmin}",
        range="2 .. n",
        reading="Below 50 the exponent is uncertain.",
        source=_CSN,
        caution="The search prefers short tails where none fits.",
        noise="15 to 93 of 512",
    ),
    Column(
        "alpha_band",
        "text",
        "very-heavy (alpha < 2), heavy (2 to 6), weak (above 6)",
        reading="very-heavy: alpha below 2; HTSR would call it over-trained\n"
        "heavy: alpha from 2 to 6; HTSR would call it well trained\n"
        "weak: alpha above 6; HTSR would call it under-trained",
        caution="HTSR's thresholds belong to the ks fit; under another fit the cell is empty.",
        source="Martin & Mahoney, JMLR 22 (2021)",
    ),
    Column(
        "alpha_hat",
        "number",
        "exponent weighted by scale ('weighted alpha')",
        formula="alpha log10 l_1",
        unit="log W^2",
        reading="For comparing models of one family; lower is better there.",
        caution="Changes when all weights are multiplied by a constant.",
        source="Martin, Peng & Mahoney, Nature Communications 12 (2021)",
        range="(-inf, inf)",
        noise="33 (512 x 512, unit variance); moves with size and scale",
    ),
    Column(
        "log_alpha_norm",
        "number",
        "log10 of the Schatten norm of order 2 alpha, to that power",
        formula="log10 sum l_i^alpha, all eigenvalues",
        unit="log W^2",
        caution="Changes when all weights are multiplied by a constant.",
        source="Martin, Peng & Mahoney, Nature Communications 12 (2021)",
        range="(-inf, inf)",
        reading="As alpha_hat, with every eigenvalue counted.",
        noise="34 (512 x 512, unit variance); moves with size and scale",
    ),
)


def band_of(alpha: float) -> str:
    """HTSR's band of an exponent."""
    if alpha < OVER:
        return "very-heavy"
    return "heavy" if alpha <= UNDER else "weak"


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:
    """Fit the tail of the whole spectrum."""
    spectrum = measured.spectrum
    if spectrum is None or spectrum.largest == 0:
        return {}
    if is_constant(spectrum, measured.stats):
        return {"alpha": Failure("all singular values are equal, so the exponent is undefined")}
    rank = known["rank"]
    assert isinstance(rank, int)
    # what lies below the rank is the rounding of the stored dtype
    kept = rank if is_deficient(rank, spectrum) else len(spectrum.singular_values)
    fit = _fit(fitted_evals(spectrum, settings.eval_floor, kept), settings, spectrum)
    if isinstance(fit, Failure):
        return {"alpha": fit}
    values: dict[str, Value | Failure] = {
        "alpha": fit.alpha,
        "alpha_method": fit.method,
        "alpha_stderr": fit.stderr,
        "alpha_xmin": spectrum.unscaled(fit.xmin),
        "alpha_ks": fit.ks,
        "alpha_n_tail": fit.n_tail,
        "alpha_band": band_of(fit.alpha) if fit.method.startswith("ks") else None,
        "alpha_hat": fit.alpha * 2 * log10(spectrum.largest),
        "log_alpha_norm": _log_alpha_norm(spectrum, fit.alpha),
    }
    # not columns: what other families and the warnings need
    values |= {"alpha_gap": fit.gap, "alpha_relative_xmin": fit.xmin}
    if isinstance(fit, TruncatedPowerLaw):
        values["alpha_relative_lambda"] = fit.Lambda
    return values


def _fit(evals: FloatArray, settings: Settings, spectrum: Spectrum) -> PowerLaw | Failure:
    if settings.fit != "pl":
        return fit_truncated_power_law(evals, settings.fit)
    top = spectrum.unscaled(1.0)
    if settings.xmin != "peak" or isinstance(top, Failure):
        return fit_power_law(evals, settings.xmin)
    # the authors' peak window compares a logarithm with eigenvalues, so it hangs on their unit
    fit = fit_power_law(evals * top, "peak")
    return replace(fit, xmin=fit.xmin / top) if isinstance(fit, PowerLaw) else fit


def _log_alpha_norm(spectrum: Spectrum, alpha: float) -> float:
    """log10 sum l^alpha, evaluated around the largest eigenvalue so that it cannot overflow."""
    logs = 2 * np.log(spectrum.singular_values[spectrum.singular_values > 0])
    return float((alpha * logs[0] + np.log(np.sum(np.exp(alpha * (logs - logs[0]))))) / log(10))
