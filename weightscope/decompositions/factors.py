"""The spectrum of a product B A from its factors: the product itself is never formed.

With B = Q_B R_B and A^T = Q_A R_A the product is Q_B (R_B R_A^T) Q_A^T, whose singular values are
those of the small matrix in the middle.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from weightscope.decompositions.entries import abs_max, count_nonfinite, scale_for, storage_floor
from weightscope.decompositions.full import ENERGY_ERROR, EPS, LinAlgError
from weightscope.measurement import EntryStatistics
from weightscope.spectrum import FloatArray, Spectrum
from weightscope.tensor import DType

Pair = tuple[torch.Tensor, torch.Tensor]
"""Left factor (rows, r) and right factor (r, cols), stored dtype."""


@dataclass(frozen=True)
class _Core:
    """What both factors come down to, each over its own power of two.

    Attributes:
        values: Singular values of the product, over ``unit``.
        left: Spectral norm of the left factor, unscaled.
        right: Spectral norm of the right factor, unscaled.
        unit: What the values are to be divided by.
    """

    values: FloatArray
    left: float
    right: float
    unit: tuple[float, float]


def factored_spectrum(pairs: Sequence[Pair], scale: float) -> Spectrum:
    """All singular values of ``scale * left @ right``, pooled over the pairs, in float64.

    A product of rank r below M has M - r zeros, which are exact.

    Args:
        pairs: Finite factors of equal shapes, on the compute device.
        scale: Finite factor on the product.

    Raises:
        torch.linalg.LinAlgError: The solver did not converge, lost energy, or float64 cannot hold
            the values.
    """
    rows, cols = pairs[0][0].shape[0], pairs[0][1].shape[1]
    N, M = max(rows, cols), min(rows, cols)
    pooled = np.zeros(M * len(pairs))
    resolution = 0.0
    count = 0
    for core in map(_core, pairs):
        found = core.values * (abs(scale) / core.unit[0]) / core.unit[1]
        pooled[count : count + len(found)] = found
        count += len(found)
        resolution = max(resolution, EPS * N * core.left * core.right * abs(scale))
    pooled = -np.sort(-pooled)
    if not np.isfinite(pooled).all():
        raise LinAlgError("float64 cannot hold the singular values of the product")
    smallest = float(pooled[-1])
    error = min(1.0, resolution / smallest) if smallest else 1.0
    return Spectrum(pooled, N, M, len(pairs), resolution, error, "factors-qr-float64")


def _core(pair: Pair) -> _Core:
    left, right = pair
    units = scale_for(abs_max(left)), scale_for(abs_max(right))
    tall = [left.to(torch.float64) * units[0], right.T.to(torch.float64) * units[1]]
    upper = [torch.linalg.qr(factor, mode="r").R for factor in tall]
    middle = upper[0] @ upper[1].T
    values: FloatArray = torch.linalg.svdvals(middle).cpu().numpy()
    # an independent route to the energy: the Gram matrices of the factors
    grams = [factor.T @ factor for factor in tall]
    energy = float(torch.sum(grams[0] * grams[1]))
    bound = ENERGY_ERROR * float(grams[0].norm() * grams[1].norm())
    if not abs(float(np.square(values).sum()) - energy) <= bound:
        raise LinAlgError("the singular values of the product do not carry its energy")
    norms = [float(torch.linalg.matrix_norm(R, 2)) for R in upper]
    return _Core(values, norms[0] / units[0], norms[1] / units[1], units)


def factored_statistics(
    pairs: Sequence[Pair], scale: float, stored: tuple[DType, DType]
) -> EntryStatistics:
    """Statistics of the entries of ``scale * left @ right``, as far as the factors give them.

    The largest entry and the share of zeros would need the product; they are None unless it
    vanishes.

    Args:
        pairs: Factors of equal shapes, on the compute device.
        scale: Finite factor on the product.
        stored: How left and right factors are stored.
    """
    nonfinite = sum(_nonfinite(pair) for pair in pairs)
    if nonfinite:
        return EntryStatistics(None, None, None, None, nonfinite, None)
    if not scale or not any(abs_max(left) and abs_max(right) for left, right in pairs):
        return EntryStatistics(0.0, 0.0, 0.0, 1.0, 0, 0.0)
    entries = len(pairs) * pairs[0][0].shape[0] * pairs[0][1].shape[1]
    total = squares = floor = 0.0
    for left, right in pairs:
        wide = left.to(torch.float64), right.to(torch.float64)
        total += float(torch.dot(wide[0].sum(0), wide[1].sum(1)))
        squares += float(torch.sum((wide[0].T @ wide[0]) * (wide[1] @ wide[1].T)))
        floor = max(floor, _floor((left, right), stored))
    mean = total / entries
    std = max(0.0, squares / entries - mean * mean) ** 0.5
    return EntryStatistics(scale * mean, abs(scale) * std, None, None, 0, abs(scale) * floor)


def _nonfinite(pair: Pair) -> int:
    """Entries of the product that are not finite: whole rows and columns of it."""
    left, right = pair
    if not (count_nonfinite(left) or count_nonfinite(right)):
        return 0
    rows = int((~torch.isfinite(left)).any(1).sum())
    cols = int((~torch.isfinite(right)).any(0).sum())
    return rows * right.shape[1] + cols * left.shape[0] - rows * cols


def _floor(pair: Pair, stored: tuple[DType, DType]) -> float:
    """What rounding both factors to their dtypes can add to any singular value of the product."""
    norms = [float(torch.linalg.matrix_norm(_root(m), 2)) for m in (pair[0], pair[1].T)]
    floors = [storage_floor(m, dtype) for m, dtype in zip(pair, stored, strict=True)]
    return floors[0] * norms[1] + norms[0] * floors[1] + floors[0] * floors[1]


def _root(tall: torch.Tensor) -> torch.Tensor:
    root: torch.Tensor = torch.linalg.qr(tall.to(torch.float64), mode="r").R
    return root


def formed(pairs: Sequence[Pair], scale: float) -> torch.Tensor:
    """The product itself in float64: (rows, cols), or (rows, cols, slices) of several pairs."""
    made = [scale * (left.to(torch.float64) @ right.to(torch.float64)) for left, right in pairs]
    return made[0] if len(made) == 1 else torch.stack(made, dim=2)


def with_magnitude(weight: torch.Tensor, magnitude: torch.Tensor, axis: int) -> torch.Tensor:
    """DoRA: every row (axis 0) or column (axis 1) brought to its learnt norm.

    Args:
        weight: Base with update, (rows, cols) or (rows, cols, slices), float64.
        magnitude: Norms, one per index of the axis, in any shape.
        axis: Of the outputs.

    Source: Liu et al., DoRA (ICML 2024), equation 5.
    """
    others = [dim for dim in range(weight.dim()) if dim != axis]
    norms: torch.Tensor = torch.linalg.vector_norm(weight, dim=others, keepdim=True)
    return weight * (magnitude.to(torch.float64).reshape(norms.shape) / norms)


def principal(weight: torch.Tensor, rank: int) -> torch.Tensor:
    """PiSSA: the part of a weight that the factors start from, its best approximation of a rank.

    Source: Meng, Wang & Zhang, PiSSA (NeurIPS 2024), equations 2 and 3.
    """
    U, S, Vh = torch.linalg.svd(weight, full_matrices=False)
    found: torch.Tensor = (U[:, :rank] * S[:rank]) @ Vh[:rank]
    return found


def leading_columns(weight: torch.Tensor, rank: int, scale: float) -> torch.Tensor:
    """OLoRA: the part of a weight that the factors start from, times the scale of the update.

    Source: Büyükakyüz, OLoRA, arXiv 2406.01775, algorithm 1.
    """
    Q, R = torch.linalg.qr(weight)
    found: torch.Tensor = scale * (Q[:, :rank] @ R[:rank])
    return found
