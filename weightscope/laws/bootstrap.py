"""Resampling behind an exponent: how far it scatters, and whether its law is plausible at all.

Both treat the eigenvalues as independent draws, which they are not: eigenvalues of one matrix repel
each other, so their spectrum is more even than a sample. The figures are approximate.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np

from weightscope.laws.power_law import PowerLaw, fit_power_law
from weightscope.outcome import Failure
from weightscope.recipe import FitMethod
from weightscope.spectrum import FloatArray

LEVEL = 0.95
_FITTED_WANTED = 0.9
_LARGEST_LOG = 500.0
"""Draws above ``e^500 xmin`` are cut there, inside float64: only slopes below 0.05 come near."""


def generator(seed: int, name: str, purpose: str) -> np.random.Generator:
    """Random numbers that depend on a seed, a tensor and a purpose, and on nothing else.

    Args:
        seed: Any integer.
        name: Tensor name.
        purpose: What they are for, so that no two figures share their draws.
    """
    text = "\0".join((str(seed), purpose, name))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def alpha_interval(
    evals: FloatArray, method: FitMethod, replicates: int, rng: np.random.Generator
) -> tuple[float, float] | Failure:
    """Percentile interval of alpha: resample with replacement, fit again, xmin included.

    Args:
        evals: The eigenvalues that were fitted, ascending, positive, any unit.
        method: How they were fitted; every replicate is fitted in the same way.
        replicates: Number of resamples.
        rng: Where the draws come from.

    Returns:
        The 2.5 % and 97.5 % quantiles of the replicates' exponents (Efron & Tibshirani 1993,
        chapter 13), or why there are none.
    """
    n = len(evals)
    # a resample is the sorted values with multiplicities: nothing has to be sorted
    samples = (
        np.repeat(evals, np.bincount(rng.integers(n, size=n), minlength=n))
        for _ in range(replicates)
    )
    alphas = [fit.alpha for fit in _fits(samples, method)]
    if len(alphas) < _FITTED_WANTED * replicates:
        return _too_few(len(alphas), replicates)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(alphas, (tail, 1 - tail))
    return float(low), float(high)


def plausibility(
    evals: FloatArray, fit: PowerLaw, method: FitMethod, replicates: int, rng: np.random.Generator
) -> float | Failure:
    """The semi-parametric test of Clauset, Shalizi & Newman (2009), section 4.1.

    Synthetic samples follow the fitted law above xmin and resample what lies below it; each is
    fitted again, xmin included.

    Args:
        evals: The eigenvalues that were fitted, ascending, positive.
        fit: Their fit, ``xmin`` in the same unit.
        method: How they were fitted.
        replicates: Number of synthetic samples.
        rng: Where the draws come from.

    Returns:
        Share of the synthetic samples whose distance from their own fit is at least the observed
        one, or why there is none.
    """
    below = evals[: len(evals) - fit.n_tail]
    samples = (_synthetic(below, fit, rng) for _ in range(replicates))
    distances = [found.ks for found in _fits(samples, method)]
    if len(distances) < _FITTED_WANTED * replicates:
        return _too_few(len(distances), replicates)
    return sum(ks >= fit.ks for ks in distances) / len(distances)


def _synthetic(below: FloatArray, fit: PowerLaw, rng: np.random.Generator) -> FloatArray:
    """One sample as long as the observed one, ascending."""
    n = len(below) + fit.n_tail
    tail = int(rng.binomial(n, fit.n_tail / n))
    logs = np.minimum(rng.standard_exponential(tail) / (fit.alpha - 1), _LARGEST_LOG)
    counts = np.bincount(rng.integers(len(below), size=n - tail), minlength=len(below))
    sample: FloatArray = np.r_[np.repeat(below, counts), fit.xmin * np.exp(np.sort(logs))]
    return sample


def _fits(samples: Iterator[FloatArray], method: FitMethod) -> Iterator[PowerLaw]:
    for sample in samples:
        fit = fit_power_law(sample, method)
        if isinstance(fit, PowerLaw):
            yield fit


def _too_few(fitted: int, replicates: int) -> Failure:
    return Failure(f"only {fitted} of {replicates} resampled spectra can be fitted")
