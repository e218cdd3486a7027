"""The spectrum of a difference of two matrices, and how their leading directions moved."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from weightscope.decompositions.entries import abs_max, scale_for, storage_floor
from weightscope.decompositions.full import EVAL_ERROR, gram_of, solve_gram
from weightscope.decompositions.gram import add_gram, long_side_blocks, solver_of
from weightscope.difference import Difference, Facts
from weightscope.spectrum import Spectrum
from weightscope.tensor import DType

TOP = 16
"""Leading directions whose span is compared, at most an eighth of the short side."""
INTRUDER = 0.6


def compare_matrices(a: torch.Tensor, b: torch.Tensor, stored: tuple[DType, DType]) -> Difference:
    """Everything that changed from A to B, in float64 over bounded blocks.

    Args:
        a: (rows, cols), finite, stored dtype, on the compute device.
        b: The same matrix later; where its shape differs, only what both have is compared, and
            the spectra are left out.
        stored: How both are stored.

    Raises:
        torch.linalg.LinAlgError: The solver did not converge.
    """
    if a.shape != b.shape:
        return _resized(a, b)
    scale = scale_for(max(abs_max(a), abs_max(b)))
    if scale != 1.0:
        found = compare_matrices(a.to(torch.float64) * scale, b.to(torch.float64) * scale, stored)
        return _unscaled(found, scale)
    sums = _sums(a, b)
    storage = max(2.0 ** (1 - dtype.significand) for dtype in stored)
    noise = sum(storage_floor(m, d) ** 2 for m, d in zip((a, b), stored, strict=True)) ** 0.5
    facts = Facts(_equal(a, b), storage=storage, noise=noise)
    change = Difference(facts, a.numel(), sums.rel_change, sums.cosine)
    if facts.identical:
        return replace(change, subspace_left=1.0, subspace_right=1.0, intruders=0)
    change = _with_subspaces(change, a, b)
    facts = replace(
        facts,
        rounded=_rounded(a, b),
        transposed=a.shape[0] == a.shape[1] and _equal(a, b.T),
        permuted=_permuted(a, b),
    )
    return replace(change, facts=facts, delta=_delta_spectrum(a, b))


def _unscaled(found: Difference, scale: float) -> Difference:
    """Undo a scale that kept the squares of extreme entries in range."""
    facts = replace(found.facts, noise=found.facts.noise / scale)
    delta = found.delta
    if delta is not None:
        delta = replace(
            delta,
            singular_values=delta.singular_values / scale,
            resolution=delta.resolution / scale,
        )
    return replace(found, facts=facts, delta=delta)


@dataclass(frozen=True)
class _Sums:
    aa: float
    bb: float
    ab: float
    dd: float

    @property
    def rel_change(self) -> float | None:
        return float((self.dd / self.aa) ** 0.5) if self.aa else None

    @property
    def cosine(self) -> float | None:
        # roots first: the product of two sums of squares can leave the range of float64
        product = self.aa**0.5 * self.bb**0.5
        return float(self.ab / product) if product else None


def _blocks(*matrices: torch.Tensor) -> Iterator[list[torch.Tensor]]:
    """Matching blocks of matrices of one shape, in float64, tall."""
    for pieces in zip(*(long_side_blocks(m) for m in matrices), strict=True):
        yield [piece.to(torch.float64) for piece in pieces]


def _sums(a: torch.Tensor, b: torch.Tensor) -> _Sums:
    totals = [0.0, 0.0, 0.0, 0.0]
    for x, y in _blocks(a, b):
        step = y - x
        for i, (left, right) in enumerate(((x, x), (y, y), (x, y), (step, step))):
            totals[i] += float(torch.sum(left * right))
    return _Sums(*totals)


def _delta_spectrum(a: torch.Tensor, b: torch.Tensor) -> Spectrum:
    M = min(a.shape)
    gram = torch.zeros(M, M, dtype=torch.float64, device=a.device)
    for x, y in _blocks(a, b):
        add_gram(gram, y - x, max(a.shape))
    values = solve_gram(gram)
    resolution = float(values[0]) * EVAL_ERROR**0.5
    return Spectrum(values, max(a.shape), M, 1, resolution, 1.0, solver_of(M, a.device))


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype == b.dtype:
        return torch.equal(a, b)
    return torch.equal(a.to(torch.float64), b.to(torch.float64))


def _rounded(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether one is the other rounded to bfloat16: nearest, or by less than one unit.

    Every entry of the rounded one is a bfloat16 number, and lies within one unit in the last place
    of the other's.
    """
    return _rounds_to(a, b) or _rounds_to(b, a)


def _rounds_to(exact: torch.Tensor, coarse: torch.Tensor) -> bool:
    for x, y in _blocks(exact, coarse):
        if not torch.equal(y.to(torch.bfloat16).to(torch.float64), y):
            return False
        _, exponent = torch.frexp(x)
        unit = torch.ldexp(torch.ones_like(x), exponent.clamp(min=-125) - 8)
        # a bfloat16 number rounds to itself
        fixed = x.to(torch.bfloat16).to(torch.float64) == x
        if bool(((x != y) & (fixed | (torch.abs(x - y) >= unit))).any()):
            return False
    return True


def _permuted(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether B has A's entries in another order of rows and columns.

    Norms of rows and columns are compared first, over blocks; only where they agree the entries
    are sorted, in the data type that they are stored in.
    """
    if a.dtype != b.dtype:
        return False
    for x, y in zip(_line_norms(a), _line_norms(b), strict=True):
        if not torch.allclose(torch.sort(x)[0], torch.sort(y)[0], rtol=1e-9, atol=0.0):
            return False
    return torch.equal(torch.sort(a.ravel())[0], torch.sort(b.ravel())[0])


def _line_norms(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared norms along the long side and along the short side."""
    rows, columns = [], torch.zeros(min(matrix.shape), dtype=torch.float64, device=matrix.device)
    for (block,) in _blocks(matrix):
        square = block * block
        rows.append(square.sum(1))
        columns += square.sum(0)
    return torch.cat(rows), columns


def _with_subspaces(change: Difference, a: torch.Tensor, b: torch.Tensor) -> Difference:
    """Overlap of the spans of the leading singular vectors, on both sides."""
    k = min(TOP, max(1, min(a.shape) // 8))
    short, long = zip(*(_leading(m, k) for m in (a, b)), strict=True)
    tall = a.shape[0] >= a.shape[1]
    left, right = (long, short) if tall else (short, long)
    overlap = left[0].T @ left[1]
    nearest = torch.linalg.vector_norm(overlap, dim=0)
    return replace(
        change,
        subspace_left=float(overlap.square().sum()) / k,
        subspace_right=float((right[0].T @ right[1]).square().sum()) / k,
        intruders=int((nearest < INTRUDER).sum()),
    )


def _leading(matrix: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Leading singular vectors of the short side (M, k) and of the long side (N, k)."""
    evals, vectors = torch.linalg.eigh(gram_of(matrix, 1.0), UPLO="L")
    short = vectors[:, -k:].flip(-1)
    scale = evals[-k:].flip(-1).clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    long = torch.cat([block @ short for (block,) in _blocks(matrix)]) / scale
    return short, long


def _resized(a: torch.Tensor, b: torch.Tensor) -> Difference:
    facts = Facts(transposed=a.shape == b.T.shape and _equal(a, b.T))
    if facts.transposed:
        return Difference(facts, a.numel())
    rows, cols = (min(x, y) for x, y in zip(a.shape, b.shape, strict=True))
    common = a[:rows, :cols], b[:rows, :cols]
    sums = _sums(*common)
    return Difference(facts, rows * cols, sums.rel_change, sums.cosine, resized=True)
