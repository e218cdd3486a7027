"""The bootstrap of alpha: an interval that re-selects xmin, and a test of the power law."""

from __future__ import annotations

from weightscope.columns import Column
from weightscope.laws.bootstrap import alpha_interval, generator, plausibility
from weightscope.laws.power_law import PowerLaw, fit_power_law, fitted_evals
from weightscope.measurement import Measurement
from weightscope.metrics.rank import is_deficient
from weightscope.outcome import Failure, Values
from weightscope.recipe import FIT_METHODS, FitMethod
from weightscope.settings import Settings

NEEDS = ("alpha", "rank")
_INTERVAL = (
    "Approximate: eigenvalues repel each other and are not independent draws. Empty without "
    "--bootstrap."
)
_EFRON = "Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapter 13"
COLUMNS = (
    Column(
        "alpha_lo",
        "number",
        "lower end of the 95 % bootstrap interval of alpha (approximate)",
        formula="2.5 % quantile of alpha over B resamples of the fitted eigenvalues, xmin searched "
        "again in each",
        range="(1, inf)",
        reading="Two exponents whose intervals do not overlap differ.",
        caution=_INTERVAL,
        noise="2.4 to 3.2 (512 x 512)",
        source=_EFRON,
    ),
    Column(
        "alpha_hi",
        "number",
        "upper end of the 95 % bootstrap interval of alpha (approximate)",
        formula="97.5 % quantile, as alpha_lo",
        range="(1, inf)",
        reading="A wide interval means that the choice of xmin decides the exponent.",
        caution=_INTERVAL,
        noise="15 to 37 (512 x 512)",
        source=_EFRON,
    ),
    Column(
        "alpha_p",
        "number",
        "plausibility of the power law (semi-parametric Clauset test, approximate)",
        formula="share of B synthetic spectra, the fitted law above xmin and resampled eigenvalues "
        "below it, whose ks after a new fit is at least alpha_ks",
        range="[0, 1]",
        reading="Below 0.1 the tail is no power law; above, it is not ruled out, which with a "
        "short tail says little.",
        caution="Approximate: made for independent draws. Eigenvalues repel each other, which makes"
        " ks smaller and p larger than they should be. Empty without --bootstrap.",
        noise="below 0.1 in three draws of four, else up to 0.6 (512 x 512)",
        source="Clauset, Shalizi & Newman, SIAM Review 51 (2009), section 4.1",
    ),
)


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:
    """Resample the fitted eigenvalues; nothing where it was not asked for or alpha is undefined."""
    spectrum, alpha, rank = measured.spectrum, known.get("alpha"), known.get("rank")
    if not settings.bootstrap or spectrum is None or not isinstance(alpha, float):
        return {}
    method = _search_of(str(known["alpha_method"]))
    if method is None:
        return {"alpha_p": Failure("the bootstrap is defined for --fit pl only")}
    assert isinstance(rank, int)
    kept = rank if is_deficient(rank, spectrum) else len(spectrum.singular_values)
    evals = fitted_evals(spectrum, settings.eval_floor, kept)
    fit = fit_power_law(evals, method)
    assert isinstance(fit, PowerLaw)
    name, count = measured.matrix.name, settings.bootstrap
    interval = alpha_interval(evals, method, count, generator(settings.seed, name, "interval"))
    low, high = (interval, interval) if isinstance(interval, Failure) else interval
    rng = generator(settings.seed, name, "plausibility")
    return {
        "alpha_lo": low,
        "alpha_hi": high,
        "alpha_p": plausibility(evals, fit, method, count, rng),
    }


def _search_of(method: str) -> FitMethod | None:
    """The search behind a printed method; None where it is none of the power law's."""
    name = method.removesuffix("-small-sample")
    return next((known for known in FIT_METHODS if known == name), None)
