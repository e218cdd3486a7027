"""A matrix as an expression over stored tensors: what to read for it, and how its entries follow.

Four expressions: a stored weight; the update of an adapter, kept as its two factors; a weight minus
that of a base model; a base weight with an update in it. Only the first two are what a file says;
the others are formed here, in float64, one matrix at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from weightscope.decompositions.entries import count_nonfinite, storage_floor
from weightscope.decompositions.factors import (
    Pair,
    factored_statistics,
    formed,
    leading_columns,
    principal,
    with_magnitude,
)
from weightscope.encodings.grid import noise_floor
from weightscope.encodings.schemes import decode, deviations
from weightscope.matrix import Matrix, Part
from weightscope.tensor import DTYPES, TensorRef

Reader = Callable[[TensorRef, int | None], torch.Tensor]


@dataclass(frozen=True)
class Fetched:
    """What was read for one matrix, in stored dtypes and shapes.

    Attributes:
        own: A stored weight, or the index of its first dimension that the matrix is; the parts of
            a quantised one; of an update A, B, and DoRA's norms where it has them.
        base: What was read for the matrix of the base model.
    """

    own: tuple[torch.Tensor, ...]
    base: Fetched | None = None

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Fetched:
        """The same with every tensor changed."""
        base = None if self.base is None else self.base.each(change)
        return Fetched(tuple(map(change, self.own)), base)

    def to(self, device: str) -> Fetched:
        """The same on a device."""
        return self.each(lambda tensor: tensor.to(device, non_blocking=True))


def calls(matrix: Matrix) -> Iterator[tuple[TensorRef, int | None]]:
    """What to read for a matrix from its own checkpoint."""
    if matrix.encoded is not None:
        yield from ((ref, index) for _, ref, index in matrix.encoded.pieces(matrix.index))
    elif matrix.product is None:
        rows = matrix.block_of_rows
        yield (matrix.tensor, matrix.index) if rows is None else (rows, None)
    else:
        yield from ((ref, None) for ref in matrix.product.refs)


def fetch(read: Reader, matrix: Matrix, read_base: Reader | None = None) -> Fetched:
    """Read what a matrix is made of.

    Raises:
        CheckpointError: The bytes cannot be read.
    """
    own = tuple(read(*call) for call in calls(matrix))
    base = None
    if matrix.base is not None:
        assert read_base is not None, "a matrix with a base needs a reader of the base"
        # norms and principal parts belong to the whole
        whole = matrix.base if matrix.product is None else replace(matrix.base, part=None)
        base = fetch(read_base, whole)
    return Fetched(own, base)


def entries(matrix: Matrix, fetched: Fetched) -> torch.Tensor:
    """The entries of a matrix: (rows, cols), or in the shape of a stored kernel.

    Stored weights keep their dtype; what is decoded is float32, what is formed float64.

    Raises:
        DecodingError: The tensors of a quantised weight contradict each other.
    """
    if matrix.product is None:
        own = fetched.own[0]
        if matrix.encoded is not None:
            own = decode(matrix.encoded, _by_role(matrix, fetched)).weights
        if matrix.part is not None and own.numel() != matrix.params:
            own = _taken(own.reshape(matrix.stored_shape), matrix.part)
        if matrix.base is None or fetched.base is None:
            return own
        base = entries(matrix.base, fetched.base)
        return own.to(torch.float64) - base.to(torch.float64).reshape(own.shape)
    if matrix.base is None or fetched.base is None:
        return formed(pairs_of(matrix, fetched), matrix.product.scale)
    if matrix.part is not None:  # norms and principal parts belong to the whole
        whole = replace(matrix, part=None, base=replace(matrix.base, part=None))
        return _taken(entries(whole, fetched), matrix.part)
    return _with_update(matrix, fetched, _stacked(matrix.base, fetched.base))


def _by_role(matrix: Matrix, fetched: Fetched) -> dict[str, torch.Tensor]:
    """What was read of a quantised weight, by its role in the decoding."""
    assert matrix.encoded is not None
    pieces = matrix.encoded.pieces(matrix.index)
    return {role: part for (role, _, _), part in zip(pieces, fetched.own, strict=True)}


def _quantiser_noise(matrix: Matrix, fetched: Fetched) -> float:
    """What rounding to the codes can add to any singular value."""
    assert matrix.encoded is not None
    parts = _by_role(matrix, fetched)
    if matrix.part is None:
        return decode(matrix.encoded, parts).sv_floor
    return noise_floor(_taken(deviations(matrix.encoded, parts), matrix.part))


def _with_update(matrix: Matrix, fetched: Fetched, base: torch.Tensor) -> torch.Tensor:
    """A base weight with an update in it, or what that changes of it; float64."""
    product = matrix.product
    assert product is not None
    merged = base + formed(pairs_of(matrix, fetched), product.scale)
    if product.magnitude is not None:
        merged = with_magnitude(merged, fetched.own[2], 1 if product.transposed else 0)
    elif product.needs == "PiSSA":
        merged = merged - principal(base, product.rank)
    elif product.needs == "OLoRA":
        merged = merged - leading_columns(base, product.rank, product.scale)
    return merged if matrix.merged else merged - base


def _stacked(matrix: Matrix, fetched: Fetched) -> torch.Tensor:
    """Entries as float64: (rows, cols), or (rows, cols, slices) of a convolution."""
    slices = [piece.to(torch.float64) for piece in slices_of(matrix, entries(matrix, fetched))]
    return slices[0] if len(slices) == 1 else torch.stack(slices, dim=2)


def pairs_of(matrix: Matrix, fetched: Fetched) -> list[Pair]:
    """The factors of every slice of an update: left (rows, r) and right (r, cols)."""
    product = matrix.product
    assert product is not None
    A, B = fetched.own[:2]
    if product.experts > 1:
        expert = matrix.expert or 0
        A = A.reshape(product.experts, product.rank, -1)[expert]
        B = B.reshape(B.shape[0], product.rank, product.experts)[:, :, expert]
    B = B.reshape(B.shape[0], -1)
    if matrix.view == "conv_slices":
        kernels = A.reshape(A.shape[0], A.shape[1], -1)
        rights = [kernels[:, :, position] for position in range(kernels.shape[2])]
    else:
        rights = [A.reshape(A.shape[0], -1)]
    pairs = [(B, right) for right in rights]
    if product.transposed:
        pairs = [(right.T, left.T) for left, right in pairs]
    return pairs if matrix.part is None else [_part_of(pair, matrix.part) for pair in pairs]


def _part_of(pair: Pair, part: Part) -> Pair:
    left, right = pair
    return (_taken(left, part), right) if part.axis == 0 else (left, _taken(right, part))


def _taken(fused: torch.Tensor, part: Part) -> torch.Tensor:
    """The entries of one part of a fused matrix."""
    rows, cols = fused.shape
    inside = slice(part.offset, part.offset + part.length)
    if part.axis == 0:
        return fused.reshape(part.groups, -1, cols)[:, inside].reshape(-1, cols)
    return fused.reshape(rows, part.groups, -1)[:, :, inside].reshape(rows, -1)


def slices_of(matrix: Matrix, found: torch.Tensor) -> list[torch.Tensor]:
    """The matrices whose eigenvalues are pooled."""
    if matrix.view == "conv_slices":
        kernels = found.reshape(*found.shape[:2], -1)
        return [kernels[:, :, j] for j in range(kernels.shape[2])]
    return [found.reshape(matrix.rows, matrix.cols)]


def storage_noise(matrix: Matrix, fetched: Fetched) -> float:
    """What rounding of all that a matrix is made of can add to any singular value.

    The bounds of independent errors add up as their squares do.
    """
    own = 0.0
    if matrix.product is not None:
        dtypes = DTYPES[matrix.product.B.dtype], DTYPES[matrix.product.A.dtype]
        stored = dtypes[::-1] if matrix.product.transposed else dtypes
        pairs = pairs_of(matrix, fetched)
        own = factored_statistics(pairs, matrix.product.scale, stored).sv_floor or 0.0
    elif matrix.encoded is not None:
        own = _quantiser_noise(matrix, fetched)
    else:
        plain = replace(matrix, base=None)
        dtype = DTYPES[matrix.tensor.dtype]
        pieces = slices_of(plain, entries(plain, replace(fetched, base=None)))
        own = max(0.0 if count_nonfinite(m) else storage_floor(m, dtype) for m in pieces)
    if matrix.base is None or fetched.base is None:
        return own
    return float((own * own + storage_noise(matrix.base, fetched.base) ** 2) ** 0.5)


def read_matrix(read: Reader, matrix: Matrix) -> torch.Tensor:
    """The entries as one matrix: a convolution as (rows, cols times positions).

    Raises:
        CheckpointError: The bytes cannot be read.
        DecodingError: The tensors of a quantised weight contradict each other.
    """
    return entries(matrix, fetch(read, matrix)).reshape(matrix.rows, -1)
