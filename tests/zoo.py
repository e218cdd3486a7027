"""Matrices with known facts, one table that every contract test runs over.

A member is built in float64 by numpy from a fixed seed and then stored in its own data type. Its
facts are what theory says about its row, never what a program printed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Member:
    """One matrix.

    Attributes:
        build: Makes it.
        dtype: Name of the torch data type in which it is stored.
        status: Status of its row.
        facts: Column to exact value; a float is meant to 1e-6, None is an empty cell.
        warnings: Codes that its row must carry.
    """

    build: Callable[[], Array]
    dtype: str = "float32"
    status: str = "ok"
    facts: dict[str, float | int | str | None] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def gaussian(rows: int, cols: int, seed: int = 0, std: float = 1.0) -> Array:
    """Independent normal entries."""
    return std * np.random.default_rng(seed).standard_normal((rows, cols))


def orthogonal(n: int, seed: int = 0) -> Array:
    """An orthogonal matrix, uniformly distributed."""
    q, r = np.linalg.qr(gaussian(n, n, seed))
    return np.asarray(q * np.sign(np.diag(r)))


def with_singular_values(s: Array, rows: int, cols: int, seed: int = 0) -> Array:
    """A (rows, cols) matrix with the given singular values and random directions."""
    left, right = orthogonal(rows, seed)[:, : len(s)], orthogonal(cols, seed + 1)[:, : len(s)]
    return np.asarray((left * s) @ right.T)


def pareto_evals(exponent: float, n: int = 200) -> Array:
    """Quantiles of a pure power law with the given density exponent, ascending."""
    share = (np.arange(n) + 0.5) / n
    return np.asarray((1 - share) ** (-1 / (exponent - 1)))


def exponent_of(evals: Array) -> float:
    """Maximum-likelihood exponent of a whole sample, ascending."""
    return float(1 + len(evals) / np.sum(np.log(evals / evals[0])))


def power_law(exponent: float, n: int = 200, cols: int = 260) -> Array:
    """A matrix whose eigenvalues are quantiles of a power law."""
    return with_singular_values(np.sqrt(pareto_evals(exponent, n)), n, cols)


def low_rank(n: int, rank: int, seed: int = 0) -> Array:
    """A product of two Gaussian factors."""
    return gaussian(n, rank, seed) @ gaussian(rank, n, seed + 1)


def spiked(rows: int, cols: int, spikes: int, seed: int = 0) -> Array:
    """Unit noise and orthogonal directions far above its edge."""
    strength = np.linspace(3, 4, spikes) * np.sqrt(max(rows, cols))
    return gaussian(rows, cols, seed) + with_singular_values(strength, rows, cols, seed + 1)


def _fp16_range() -> Array:
    values = gaussian(48, 64, 5)
    values *= np.where(np.arange(64) % 2, 1e4, 1e-6)  # 6e4 is the largest half, 6e-5 the least
    return np.clip(values, -65504, 65504)


def _with(value: float) -> Array:
    matrix = gaussian(24, 24, 6)
    matrix[3, 5] = value
    return matrix


_NOT_FITTED = {"alpha": None, "alpha_ks": None, "alpha_band": None, "erg_gap": None}
_NO_FIGURES = {
    **_NOT_FITTED, "rank": None, "condition_number": None, "frobenius_norm": None, "sv_floor": None,
    "weight_mean": None, "weight_abs_max": None, "alpha_farms": None, "welore_rank": None,
}  # fmt: skip

ZOO: dict[str, Member] = {
    "zero": Member(
        lambda: np.zeros((40, 36)), status="zero",
        facts={**_NOT_FITTED, "rank": 0, "frobenius_norm": 0.0, "spectral_norm": 0.0,
               "log_norm": None, "condition_number": None, "stable_rank": None, "entropy": None,
               "weight_zero_fraction": 1.0, "welore_class": None, "alpha_farms": None},
    ),
    "rank_one": Member(
        lambda: np.outer(gaussian(40, 1, 1), gaussian(36, 1, 2)), "float64", "rank_one",
        {"rank": 1, "stable_rank": 1.0, "effective_rank_vn": 1.0, "participation_ratio": 1.0,
         "entropy": 0.0, "mp_sigma": None, "condition_number": None},
        ("rank_deficient",),
    ),
    "all_ones": Member(
        lambda: np.ones((48, 32)), status="rank_one",
        facts={"rank": 1, "stable_rank": 1.0, "spectral_norm": (48 * 32) ** 0.5,
               "frobenius_norm": (48 * 32) ** 0.5, "weight_std": 0.0, "entropy": 0.0,
               "condition_number": None},
        warnings=("rank_deficient",),
    ),
    "identity": Member(
        lambda: np.eye(64), status="constant",
        facts={**_NOT_FITTED, "rank": 64, "stable_rank": 64.0, "condition_number": 1.0,
               "entropy": 1.0, "effective_rank": 64.0, "erg_n_tail": 64, "nuclear_norm": 64.0,
               "welore_class": "N-LRC", "welore_rank": 64},
    ),
    "orthogonal": Member(
        lambda: orthogonal(64), "float64", "constant",
        {**_NOT_FITTED, "rank": 64, "stable_rank": 64.0, "condition_number": 1.0, "entropy": 1.0,
         "participation_ratio": 64.0, "erg_n_tail": 64, "log_norm": np.log10(64)},
    ),
    "gaussian_q1": Member(lambda: gaussian(160, 160), facts={"rank": 160, "M": 160, "Q": 1.0}),
    "gaussian_q2": Member(
        lambda: gaussian(256, 128), facts={"rank": 128, "N": 256, "Q": 2.0}
    ),
    "gaussian_q4": Member(
        lambda: gaussian(100, 400), facts={"rank": 100, "N": 400, "M": 100, "Q": 4.0}
    ),
    "student_t": Member(
        lambda: np.random.default_rng(3).standard_t(2.5, (128, 192)), facts={"rank": 128}
    ),
    "power_law_2": Member(
        lambda: power_law(2), "float64",
        facts={"alpha": exponent_of(pareto_evals(2)), "alpha_n_tail": 200, "erg_n_tail": 75},
    ),
    "power_law_3": Member(
        lambda: power_law(3), "float64",
        facts={"alpha": exponent_of(pareto_evals(3)), "alpha_n_tail": 200, "erg_n_tail": 142},
    ),
    "low_rank": Member(
        lambda: low_rank(96, 20), "float64", facts={"rank": 20, "condition_number": None},
        warnings=("rank_deficient",),
    ),
    "spiked": Member(lambda: spiked(200, 300, 5), facts={"rank": 200, "mp_spikes": 5}),
    "ties": Member(
        lambda: np.kron(np.diag(np.arange(1.0, 21.0)), np.eye(4)), facts={"rank": 80}
    ),
    "row": Member(
        lambda: gaussian(1, 50, 7), status="too_few",
        facts={**_NOT_FITTED, "rank": 1, "M": 1, "N": 50, "condition_number": 1.0,
               "stable_rank": 1.0, "entropy": 0.0},
    ),
    "column": Member(
        lambda: gaussian(50, 1, 7), status="too_few",
        facts={**_NOT_FITTED, "rank": 1, "M": 1, "N": 50, "condition_number": 1.0,
               "stable_rank": 1.0, "entropy": 0.0},
    ),
    "few": Member(
        lambda: gaussian(6, 40, 8), status="too_few", facts={**_NOT_FITTED, "rank": 6}
    ),
    "small_sample": Member(
        lambda: gaussian(14, 40, 9), facts={"alpha_method": "ks-small-sample", "rank": 14},
        warnings=("tail_small",),
    ),
    "tiny": Member(lambda: gaussian(64, 48, 10, 1e-12), facts={"rank": 48}),
    "huge": Member(lambda: gaussian(64, 48, 10, 1e12), facts={"rank": 48}),
    "tiny_float64": Member(
        lambda: gaussian(64, 48, 10, 1e-200), "float64", facts={"rank": 48}
    ),
    "huge_float64": Member(
        lambda: gaussian(64, 48, 10, 1e200), "float64", facts={"rank": 48}
    ),
    "fp16_range": Member(_fp16_range, "float16", facts={"weight_nonfinite": 0}),
    "bfloat16": Member(lambda: gaussian(96, 64, 11, 7e4), "bfloat16", facts={"rank": 64}),
    "one_nan": Member(
        lambda: _with(np.nan), status="nonfinite", facts={**_NO_FIGURES, "weight_nonfinite": 1}
    ),
    "one_inf": Member(
        lambda: _with(-np.inf), status="nonfinite", facts={**_NO_FIGURES, "weight_nonfinite": 1}
    ),
}  # fmt: skip

FINITE = tuple(name for name, member in ZOO.items() if member.status != "nonfinite")
FITTED = tuple(name for name, member in ZOO.items() if member.status == "ok")


def tensor(name: str) -> torch.Tensor:
    """A member in its stored data type."""
    return stored(ZOO[name].build(), ZOO[name].dtype)


def stored(matrix: Array, dtype: str) -> torch.Tensor:
    """A matrix rounded to a data type."""
    return torch.from_numpy(np.ascontiguousarray(matrix)).to(getattr(torch, dtype))


def truth(name: str) -> Array:
    """float64 LAPACK singular values of the stored member, descending."""
    return np.asarray(np.linalg.svd(tensor(name).double().numpy(), compute_uv=False))
