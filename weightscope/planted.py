"""Matrices and spectra whose figures are known before they are measured."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch

from weightscope.laws import marchenko_pastur
from weightscope.spectrum import FloatArray

Stored = Literal["float64", "float32", "bfloat16", "float16"]
HALVES: tuple[Stored, ...] = ("float32", "bfloat16", "float16")
LOW_RANKS: tuple[tuple[Stored, int, int, int], ...] = (
    ("float32", 100, 256, 256),
    ("bfloat16", 4, 512, 512),
    ("bfloat16", 16, 1024, 512),
    ("float16", 16, 512, 512),
)
"""Type, rank, N and M of low-rank products."""


def orthonormal(rows: int, cols: int, rng: np.random.Generator) -> FloatArray:
    """A (rows, cols) matrix with orthonormal columns, uniformly distributed (Mezzadri 2007)."""
    q, r = torch.linalg.qr(torch.from_numpy(rng.standard_normal((rows, cols))))
    factor: FloatArray = (q * torch.sign(torch.diagonal(r))).numpy()
    return factor


def bases(N: int, M: int, rng: np.random.Generator) -> tuple[FloatArray, FloatArray]:
    """Random singular directions of an (N, M) matrix: (N, M) and (M, M)."""
    return orthonormal(N, M, rng), orthonormal(M, M, rng)


def with_spectrum(evals: FloatArray, directions: tuple[FloatArray, FloatArray]) -> FloatArray:
    """The (N, M) matrix whose Gram matrix has these M eigenvalues, float64."""
    left, right = directions
    product: FloatArray = (left * np.sqrt(evals)) @ right.T
    return product


def stored(matrix: FloatArray, dtype: Stored) -> torch.Tensor:
    """A matrix rounded to the type it is stored in, as a checkpoint has it."""
    return torch.from_numpy(matrix).to(getattr(torch, dtype))


def pareto_evals(exponent: float, n: int) -> FloatArray:
    """Quantiles, ascending, of a power law above 1 whose density has the given exponent."""
    share = (np.arange(n) + 0.5) / n
    evals: FloatArray = (1 - share) ** (-1 / (exponent - 1))
    return evals


def pareto_sample(exponent: float, n: int, rng: np.random.Generator) -> FloatArray:
    """Independent draws, ascending, from the same law."""
    sample: FloatArray = np.sort(np.exp(rng.standard_exponential(n) / (exponent - 1)))
    return sample


def heavy_tail(exponent: float, M: int, n_tail: int) -> FloatArray:
    """A power-law tail above 1 over an even bulk below it: M eigenvalues, ascending."""
    bulk = np.linspace(0.05, 1, M - n_tail, endpoint=False)
    evals: FloatArray = np.concatenate((bulk, pareto_evals(exponent, n_tail)))
    return evals


def marchenko_pastur_evals(M: int, Q: float) -> FloatArray:
    """Quantiles, ascending, of the Marchenko-Pastur law for unit variance."""
    shares = (np.arange(M) + 0.5) / M
    low, high = (np.full(M, edge) for edge in marchenko_pastur.edges(Q))
    for _ in range(100):
        middle = (low + high) / 2
        below = marchenko_pastur.cdf(middle, Q) < shares
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    quantiles: FloatArray = (low + high) / 2
    return quantiles


def noise(N: int, M: int, rng: np.random.Generator) -> FloatArray:
    """Independent normal entries of unit variance, (N, M)."""
    return rng.standard_normal((N, M))


def spiked(N: int, M: int, theta: float, rng: np.random.Generator) -> FloatArray:
    """Noise of unit variance plus one random direction of singular value ``theta sqrt(N)``."""
    left, right = rng.standard_normal(N), rng.standard_normal(M)
    direction = np.outer(left / np.linalg.norm(left), right / np.linalg.norm(right))
    matrix: FloatArray = noise(N, M, rng) + theta * N**0.5 * direction
    return matrix


def detection_limit(N: int, M: int) -> float:
    """Strength ``theta`` below which a direction stays inside the noise: Q^-1/4.

    Baik, Ben Arous & Peche, Annals of Probability 33 (2005).
    """
    return float((N / M) ** -0.25)


def edge_scale(N: int, M: int) -> float:
    """Scale of the fluctuations of noise's largest eigenvalue over N (Johnstone 2001)."""
    root = (N / M) ** -0.5
    return float(root * M ** (-2 / 3) * (1 + root) ** (4 / 3))


def spike_position(N: int, M: int, theta: float) -> float:
    """Largest eigenvalue over N that a direction above the limit leads to, as N grows.

    Benaych-Georges & Nadakuditi, Journal of Multivariate Analysis 111 (2012).
    """
    return (1 + theta**2) * (M / N + theta**2) / theta**2


def low_rank(N: int, M: int, rank: int, rng: np.random.Generator) -> FloatArray:
    """A product of two normal factors, (N, M), of exactly this rank before rounding."""
    matrix: FloatArray = rng.standard_normal((N, rank)) @ rng.standard_normal((rank, M))
    return matrix


def geometric(kappa: float, M: int) -> FloatArray:
    """M singular values from 1 down to 1 / kappa in equal ratios."""
    return np.geomspace(1.0, 1.0 / kappa, M)
