"""Simulate what Gaussian noise gives at a grid of shapes, and write the table of laws/noise.

python tests/benchmarks/noise_table.py [--out weightscope/laws/noise/table.npz]

Seeded, each shape by itself, so that it writes the same table wherever numpy and LAPACK give the
same numbers; about 20 minutes of one core. Spectra come from the tridiagonal chi model (exact);
pooled ones are drawn from the single ones of the same shape. The simulated quantiles are smoothed
over log M from 64 on (a parabola weighted by the number of draws), and those of the exponents by a
polynomial in log M, Q^-1/2 and log slices.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigvalsh_tridiagonal

from weightscope.laws.noise.expected import Shape, expected_evals, largest_eval
from weightscope.laws.noise.simulation import tridiagonal
from weightscope.laws.noise.tabulated import (
    LEVELS,
    TABULATED,
    distance_unit,
    exponent_formula,
    smallest_sv_formula,
)
from weightscope.laws.power_law import SMALL_SAMPLE, PowerLaw, fit_power_law

Array = npt.NDArray[np.float64]
DRAWS = {2: 40_000, 3: 40_000, 4: 40_000, 8: 20_000, 16: 10_000, 32: 8000, 64: 6000}
DRAWS |= {128: 4000, 256: 2500, 512: 1200, 1024: 1000, 2048: 400, 4096: 160}
EXCESS = (0, 1, 2, 4, 8, 32, 128, 512, 2048, 8192, 32768)
EXCESS_OF_LARGE = (0, 1, 4, 32, 512, 32768)
SLICES = (1, 3, 9, 27, 81, 243, 729)
ROOTS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
UPPER = (0.99, 0.95, 0.9, 0.8, 0.65, 0.5, 0.35, 0.25, 0.2, 0.15, 0.1, 0.07, 0.06, 0.05, 0.04)
UPPER += (0.03, 0.02, 0.01, 0.005, 0.002, 0.001)
MOST = 40_000
"""Pooled eigenvalues per draw; larger shapes take the figures of fewer slices."""
LONGEST_Q = 64
LONGEST = 2048
"""Largest N - M, or 64 M where that is more: beyond it the figures barely change."""
TABLE = Path(__file__).parents[2] / "weightscope" / "laws" / "noise" / "table.npz"
SMOOTH_FROM = 64


@dataclass
class Simulated:
    """Figures of one shape.

    Attributes:
        shape: Of the spectrum.
        draws: Number of spectra.
        distance: Quantiles of the scaled distance, at UPPER from above.
        log_condition: Log of the median condition number over the formula.
        exponents: By method, log of scaled quantiles at LEVELS; empty where not simulated.
    """

    shape: Shape
    draws: int
    distance: Array
    log_condition: float
    exponents: dict[str, Array] = field(default_factory=dict)


def generator(N: int, M: int) -> np.random.Generator:
    """The random numbers of one shape."""
    return np.random.default_rng([crc32(b"noise table"), N, M])


def single_spectra(shape: Shape, draws: int, rng: np.random.Generator) -> Array:
    """Eigenvalues of one slice each, (draws, M), ascending."""
    models = (tridiagonal(shape.N, shape.M, rng) for _ in range(draws))
    return np.array([eigvalsh_tridiagonal(*model, lapack_driver="sterf") for model in models])


def pooled(single: Array, slices: int, draws: int, rng: np.random.Generator) -> Iterator[Array]:
    """Spectra of several slices: groups of a shuffled pool, shuffled anew when used up."""
    order: list[int] = []
    for _ in range(draws):
        if len(order) < slices:
            order = list(rng.permutation(len(single)))
        yield np.sort(single[[order.pop() for _ in range(slices)]], axis=None)


def simulate(shape: Shape, single: Array, rng: np.random.Generator) -> Simulated:
    """All figures of one shape."""
    draws = spectra_wanted(shape, len(single))
    logs = np.log(expected_evals(shape)[::-1])
    unit = distance_unit(logs[::-1], shape)
    distances, conditions = [], []
    fits: dict[str, list[float]] = {method: [] for method in TABULATED}
    for number, evals in enumerate(pooled(single, shape.slices, draws, rng)):
        values = np.log(evals.clip(min=1e-300))
        distances.append(np.mean(np.abs(values - np.log(evals.mean()) - logs)) / unit)
        conditions.append((values[-1] - values[0]) / 2)
        if number < exponents_wanted(shape, draws):
            for method in TABULATED:
                fit = fit_power_law(evals / evals[-1], method)
                assert isinstance(fit, PowerLaw)
                fits[method].append(fit.alpha - 1)
    formula = np.log(largest_eval(shape) ** 0.5 / smallest_sv_formula(shape.N, shape.M))
    return Simulated(
        shape,
        draws,
        np.quantile(distances, 1 - np.array(UPPER)),
        float(np.median(conditions) - formula),
        {
            method: np.log(np.quantile(found, LEVELS) / exponent_formula(shape, method))
            for method, found in fits.items()
            if found
        },
    )


def spectra_wanted(shape: Shape, single: int) -> int:
    """How many spectra of a shape to draw from so many single ones."""
    if shape.slices == 1:
        return single
    return 3000 if shape.count < 1000 else 1000 if shape.count < 5000 else 300


def exponents_wanted(shape: Shape, draws: int) -> int:
    """How many spectra to fit: the exponent does not feel the hard edge, so fewer shapes do."""
    if shape.count < SMALL_SAMPLE or 0 < shape.N - shape.M < shape.M / 2:
        return 0
    return min(draws, 1000 if shape.slices == 1 else 300 if shape.count < 5000 else 60)


def shapes_of(M: int) -> Iterator[tuple[int, list[Shape]]]:
    """For each N at which M is simulated: the shapes of all wanted numbers of slices."""
    for excess in EXCESS if M < 2048 else EXCESS_OF_LARGE:
        if excess <= max(LONGEST, LONGEST_Q * M):
            N = M + excess
            yield N, [Shape(N, M, s) for s in SLICES if s * M <= MOST]


def simulate_all() -> list[Simulated]:
    """Every shape of the grid."""
    found = []
    for M, draws in DRAWS.items():
        start = time.perf_counter()
        for N, shapes in shapes_of(M):
            rng = generator(N, M)
            single = single_spectra(Shape(N, M), draws, rng)
            found += [simulate(shape, single, rng) for shape in shapes]
        print(f"M = {M}: {time.perf_counter() - start:.0f} s", flush=True)
    return found


def grid(found: list[Simulated], figure: str) -> Array:
    """Logs of one figure on the grid (M, excess, slices, ...), NaN where not simulated."""
    size = len(UPPER) if figure == "distance" else 1
    values = np.full((len(DRAWS), len(EXCESS), len(SLICES), size), np.nan)
    for one in found:
        shape = one.shape
        place = (
            list(DRAWS).index(shape.M),
            EXCESS.index(shape.N - shape.M),
            SLICES.index(shape.slices),
        )
        values[place] = np.log(one.distance) if figure == "distance" else one.log_condition
    return values


def smoothed(values: Array, degree: int) -> Array:
    """Polynomials in log M from SMOOTH_FROM on, where there are five nodes to fit."""
    M = np.array(list(DRAWS))
    weight = np.sqrt(np.array(list(DRAWS.values())))
    result = values.copy()
    for place in np.ndindex(values.shape[1:]):
        column = values[(slice(None), *place)]
        fitted = (M >= SMOOTH_FROM) & np.isfinite(column)
        if fitted.sum() >= 5:
            x = np.log(M[fitted])
            line = np.polyfit(x, column[fitted], degree, w=weight[fitted])
            result[(fitted, *place)] = np.polyval(line, x)
    return result


def filled(values: Array) -> Array:
    """Shapes that were not simulated.

    Other N - M: interpolated, and as the largest beyond it. More slices: the step from one number
    of slices to the next that the largest simulated M shows.
    """
    result = values.copy()
    excess = np.log1p(EXCESS)
    for i, k, level in np.ndindex(values.shape[0], *values.shape[2:]):
        row = values[i, :, k, level]
        known = np.isfinite(row)
        if known.any():
            result[i, :, k, level] = np.interp(excess, excess[known], row[known])
    for k in range(1, len(SLICES)):
        known = np.isfinite(result[:, 0, k, 0])
        last = int(np.flatnonzero(known)[-1])
        step = result[last, :, k] - result[last, :, k - 1]
        result[~known, :, k] = result[~known, :, k - 1] + step
    assert np.isfinite(result).all()
    return result


def terms(M: Array, root: Array, slices: Array) -> Array:
    """Terms of the polynomial that smooths exponents, (points, terms)."""
    x, y, z = np.log(M) / 4 - 1, root, np.log(slices) / 4
    powers = [(i, j, k) for i in range(4) for j in range(3) for k in range(4) if i + j + k < 5]
    return np.stack([x**i * y**j * z**k for i, j, k in powers], axis=-1)


def exponent_grid(found: list[Simulated], method: str) -> Array:
    """Logs of scaled exponents at LEVELS, on the grid (M, ROOTS, slices, 3).

    The median and the logs of its distances to the outer quantiles are smooth; they are fitted.
    """
    fitted = [one for one in found if method in one.exponents]
    M, root, slices = (
        np.array([getattr(one.shape, name) for one in fitted], float)
        for name in ("M", "root", "slices")
    )
    low, median, high = np.array([one.exponents[method] for one in fitted]).T
    draws = np.sqrt([exponents_wanted(one.shape, one.draws) for one in fitted])
    basis = terms(M, root, slices)
    decay = int(method == "mid")  # its formula is off by a term of order 1/M

    def fit(target: Array, weight: Array) -> Array:
        line: Array = np.linalg.lstsq(basis * weight[:, None], target * weight, rcond=None)[0]
        print(method, "rms error in sd", np.std((basis @ line - target) * weight).round(2))
        return line

    below = fit(np.log(median - low), draws)
    middle = fit(median * M**decay, draws / (high - low) / M**decay)
    above = fit(np.log(high - median), draws)
    nodes = np.meshgrid(list(DRAWS), ROOTS, SLICES, indexing="ij")
    at = terms(*nodes)
    centre = at @ middle / nodes[0] ** decay
    return np.stack([centre - np.exp(at @ below), centre, centre + np.exp(at @ above)], axis=-1)


def write(found: list[Simulated], path: Path) -> None:
    """Smooth and write."""
    np.savez_compressed(
        path,
        M=np.array(list(DRAWS)),
        excess=np.array(EXCESS),
        slices=np.array(SLICES),
        root=np.array(ROOTS),
        upper=np.array(UPPER),
        distance=np.exp(filled(smoothed(grid(found, "distance"), 2))).astype(np.float32),
        log_condition=filled(smoothed(grid(found, "log_condition"), 1))[..., 0].astype(np.float32),
        **{f"log_{m}": exponent_grid(found, m).astype(np.float32) for m in TABULATED},
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=TABLE)
    write(simulate_all(), parser.parse_args().out)
