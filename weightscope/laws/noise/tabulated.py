"""Figures of noise that have no closed form: quantiles simulated once, and interpolated.

The table is written by tests/benchmarks/noise_table.py. Its entries are ratios to a formula that
carries most of the dependence on shape, so that they vary little from node to node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib.resources import files
from math import exp, log, sqrt
from zlib import crc32

import numpy as np

from weightscope.laws.noise.expected import Shape, expected_evals, largest_eval
from weightscope.laws.noise.simulation import small_spectra
from weightscope.laws.power_law import SMALL_SAMPLE, SMALLEST_SAMPLE, PowerLaw, fit_power_law
from weightscope.outcome import Failure
from weightscope.recipe import FitMethod
from weightscope.spectrum import FloatArray, Spectrum

TABULATED: tuple[FitMethod, ...] = ("ks", "mid")
LEAST_SHARE = 0.001
"""No share of noise draws is told below it."""
LEVELS = (0.025, 0.5, 0.975)
DRAWS = 300


@dataclass(frozen=True)
class Exponent:
    """Exponents that noise gives.

    Attributes:
        low: 2.5 % of the draws are below.
        median: Half of them are.
        high: 2.5 % are above.
    """

    low: float
    median: float
    high: float


@cache
def _table() -> Mapping[str, FloatArray]:
    table = files("weightscope.laws.noise") / "table.npz"
    with table.open("rb") as stream, np.load(stream) as data:
        return {name: data[name].astype(np.float64) for name in data.files}


def _interpolate(
    values: FloatArray, axes: Sequence[FloatArray], point: Sequence[float]
) -> FloatArray:
    """Multilinear, over the leading axes; linear beyond the first axis, constant beyond others."""
    for number, (nodes, x) in enumerate(zip(axes, point, strict=True)):
        x = max(x, nodes[0]) if number == 0 else min(max(x, nodes[0]), nodes[-1])
        k = min(max(int(np.searchsorted(nodes, x)) - 1, 0), len(nodes) - 2)
        weight = (x - nodes[k]) / (nodes[k + 1] - nodes[k])
        values = (1 - weight) * values[k] + weight * values[k + 1]
    return values


def _near_square(name: str, shape: Shape, hidden: float = 0.0) -> FloatArray:
    """Look-up by M, N - M and slices: near the hard edge it is the difference that counts."""
    table = _table()
    axes = [np.log(table["M"]), np.log1p(table["excess"]), np.log(table["slices"])]
    excess = shape.N - shape.M + hidden
    return _interpolate(table[name], axes, [log(shape.M), np.log1p(excess), log(shape.slices)])


def smallest_sv_formula(N: int, M: int) -> float:
    """About the median of the smallest singular value, for unit variance and one slice.

    ``d = sqrt N - sqrt M`` with the Tracy-Widom shift of the lower edge, offset so that a square
    matrix gets Edelman's 0.545/sqrt M (SIAM J. Matrix Anal. 9, 1988). Within 4 %.
    """
    d = sqrt(N) - sqrt(M)
    return float(d + 0.634 * ((d + 0.635 / sqrt(M)) / sqrt(N * M)) ** (1 / 3))


@lru_cache(maxsize=1024)
def condition_number(shape: Shape) -> float:
    """Median of ``s_1 / s_M``, over all slices."""
    formula = sqrt(largest_eval(shape)) / smallest_sv_formula(shape.N, shape.M)
    return formula * exp(float(_near_square("log_condition", shape)))


def distance_unit(logs: FloatArray, shape: Shape) -> float:
    """What the distance of noise is of the order of: half the mean gap of its log eigenvalues.

    Args:
        logs: Logarithms of expected eigenvalues, descending.
        shape: Of the spectrum; several slices average out.
    """
    return float(logs[0] - logs[-1]) / (shape.M * sqrt(shape.slices))


def noise_distance(spectrum: Spectrum, kept: int) -> tuple[float, float] | None:
    """How far a spectrum is from noise of its shape, and how many draws of noise are as far.

    Args:
        spectrum: Not zero.
        kept: Singular values above the rounding of the stored dtype. As many of the largest
            expected ones are compared with them; the rest is left out on both sides.

    Returns:
        The Wasserstein-1 distance of the natural logarithms of eigenvalues over their mean, and
        the share of noise draws with one at least as large, at least LEAST_SHARE; None where fewer
        than 8 values are kept.
    """
    if kept < SMALLEST_SAMPLE:
        return None
    shape = Shape(spectrum.N, spectrum.M, spectrum.slices)
    evals = spectrum.relative_evals
    logs = np.log(expected_evals(shape)[:kept])
    distance = float(np.mean(np.abs(np.log(evals[:kept] / evals.mean()) - logs)))
    # without its m smallest values a spectrum ends like one whose sides differ by 2 m more
    hidden = 2 * (shape.count - kept) / shape.slices
    quantiles = _near_square("distance", shape, hidden)
    scaled = distance / distance_unit(logs, shape)
    return distance, float(np.interp(scaled, quantiles, _table()["upper"], left=1.0))


@lru_cache(maxsize=1024)
def exponent(shape: Shape, method: FitMethod) -> Exponent | Failure:
    """Exponents that a fit finds in noise.

    Args:
        shape: Of the spectrum; for FARMS of the windows, taken as independent.
        method: How the tail is found.
    """
    if shape.count < SMALLEST_SAMPLE:
        return Failure("fewer than 8 eigenvalues")
    if method not in TABULATED:
        return Failure("noise is tabulated for the ks and mid fits only")
    if shape.count < SMALL_SAMPLE:
        return _simulated(shape, method)
    table = _table()
    axes = [np.log(table["M"]), table["root"], np.log(table["slices"])]
    point = [log(shape.M), shape.root, log(shape.slices)]
    ratios = np.exp(_interpolate(table[f"log_{method}"], axes, point))
    low, median, high = (1 + exponent_formula(shape, method) * float(ratio) for ratio in ratios)
    return Exponent(low, median, high)


def exponent_formula(shape: Shape, method: FitMethod) -> float:
    """What alpha - 1 of noise is in proportion to.

    The ``mid`` fit averages over half the spectrum: its value on the expected eigenvalues. The
    tail that ``ks`` finds is a few widths of the upper edge long, and alpha - 1 is inverse to the
    width of the bulk in log eigenvalues.
    """
    if method == "mid":
        fit = fit_power_law(expected_evals(shape), "mid")
        assert isinstance(fit, PowerLaw)
        return fit.alpha - 1
    return 1 / log(1 + shape.root)


def _simulated(shape: Shape, method: FitMethod) -> Exponent | Failure:
    """Exponents of seeded draws: the law of few eigenvalues does not interpolate."""
    seed = crc32(repr(shape).encode())
    spectra = small_spectra(shape, DRAWS, np.random.default_rng(seed))
    fits = [fit_power_law(evals / evals.max(), method) for evals in spectra]
    alphas = [fit.alpha for fit in fits if isinstance(fit, PowerLaw)]
    if not alphas:
        return Failure("no draw of noise could be fitted")
    return Exponent(*(float(q) for q in np.quantile(alphas, LEVELS)))
