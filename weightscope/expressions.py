"""A matrix as an expression over stored tensors: what to read for it, and how its entries follow.

Four expressions: a stored weight; the update of an adapter, kept as its two factors; a weight minus
that of a base model; a base weight with an update in it. Only the first two are what a file says;
the others are formed here, in float64, one matrix at a time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from threading import Lock

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
from weightscope.encodings.grid import Decoded, noise_floor
from weightscope.encodings.schemes import decode, deviations
from weightscope.matrix import Matrix, Part
from weightscope.once import Once
from weightscope.tensor import DTYPES, TensorRef

Reader = Callable[[TensorRef, int | None], torch.Tensor]
Call = tuple[TensorRef, int | None]


@dataclass(frozen=True)
class Fetched:
    """What was read for one matrix, in stored dtypes and shapes.

    Attributes:
        own: A stored weight, or the index of its first dimension that the matrix is; the parts of
            a quantised one; of an update A, B, and DoRA's norms where it has them.
        base: What was read for the matrix of the base model.
        once: What follows from ``own`` for every part alike: decoded, on a device.
    """

    own: tuple[torch.Tensor, ...]
    base: Fetched | None = None
    once: Once = field(default_factory=Once, compare=False, repr=False)

    def to(self, device: str) -> Fetched:
        """The same on a device; what is shared is moved there once."""
        return self._changed(device, lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Fetched:
        """The same in memory that a GPU can read from while it works; likewise."""
        return self._changed("pinned", torch.Tensor.pin_memory)

    def _changed(self, how: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Fetched:
        own, once = self.once.get(how, lambda: (tuple(map(change, self.own)), Once()))
        base = None if self.base is None else self.base._changed(how, change)
        return Fetched(own, base, once)


def calls(matrix: Matrix) -> Iterator[Call]:
    """What to read for a matrix from its own checkpoint."""
    if matrix.encoded is not None:
        yield from ((ref, index) for _, ref, index in matrix.encoded.pieces(matrix.index))
    elif matrix.product is None:
        rows = matrix.block_of_rows
        yield (matrix.tensor, matrix.index) if rows is None else (rows, None)
    else:
        yield from ((ref, None) for ref in matrix.product.refs)


def base_of(matrix: Matrix) -> Matrix | None:
    """What to read for a matrix from the base model: norms and principal parts are of the whole."""
    if matrix.base is None or matrix.product is None:
        return matrix.base
    return replace(matrix.base, part=None)


class Fetcher:
    """Reads matrices; those that need the very same bytes share what was read. For any thread.

    Args:
        read: Reads tensors.
        read_base: Reads tensors of the base model, where matrices have one.
        expected: All that will be read, where threads may do so out of order: what siblings share
            is kept until the last of them came. Otherwise it is kept until something else is read.
    """

    def __init__(
        self, read: Reader, read_base: Reader | None = None, expected: Iterable[Matrix] = ()
    ) -> None:
        expected = tuple(expected)
        theirs = [base for base in map(base_of, expected) if base]
        self._read = read
        self._base = None if read_base is None else Fetcher(read_base, expected=theirs)
        self._left = Counter(tuple(calls(m)) for m in expected if _has_siblings(m))
        self._counting = bool(expected)
        self._kept: dict[tuple[Call, ...], Once] = {}
        self._lock = Lock()

    def __call__(self, matrix: Matrix) -> Fetched:
        """What a matrix is made of.

        Raises:
            CheckpointError: The bytes cannot be read.
        """
        wanted = tuple(calls(matrix))
        once = self._shared(wanted)
        if not _has_siblings(matrix):
            once = Once()
        own = once.get("read", lambda: tuple(self._read(*call) for call in wanted))
        base = base_of(matrix)
        if base is None:
            return Fetched(own, None, once)
        assert self._base is not None, "a matrix with a base needs a reader of the base"
        return Fetched(own, self._base(base), once)

    def _shared(self, wanted: tuple[Call, ...]) -> Once:
        """What those who want this share, and nobody else any more."""
        with self._lock:
            once = self._kept.get(wanted) or Once()
            if not self._counting:
                self._kept = {wanted: once}
                return once
            self._left[wanted] -= 1
            if self._left[wanted] > 0:
                self._kept[wanted] = once
            else:
                self._kept.pop(wanted, None)
            return once


def _has_siblings(matrix: Matrix) -> bool:
    """Whether other matrices may be made of the very same bytes."""
    shared = matrix.product is not None or matrix.block_of_rows is None
    return shared and matrix.part is not None


def entries(matrix: Matrix, fetched: Fetched) -> torch.Tensor:
    """The entries of a matrix: (rows, cols), or in the shape of a stored kernel.

    Stored weights keep their dtype; what is decoded is float32, what is formed float64.

    Raises:
        DecodingError: The tensors of a quantised weight contradict each other.
    """
    if matrix.product is None:
        own = fetched.own[0]
        if matrix.encoded is not None:
            own = _decoded(matrix, fetched).weights
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
        return _taken(fetched.once.get("whole", lambda: entries(whole, fetched)), matrix.part)
    return _with_update(matrix, fetched, _stacked(matrix.base, fetched.base))


def _by_role(matrix: Matrix, fetched: Fetched) -> dict[str, torch.Tensor]:
    """What was read of a quantised weight, by its role in the decoding."""
    assert matrix.encoded is not None
    pieces = matrix.encoded.pieces(matrix.index)
    return {role: part for (role, _, _), part in zip(pieces, fetched.own, strict=True)}


def _decoded(matrix: Matrix, fetched: Fetched) -> Decoded:
    """Values and noise of a quantised weight, decoded once for all of its parts."""
    encoded = matrix.encoded
    assert encoded is not None
    return fetched.once.get("decoded", lambda: decode(encoded, _by_role(matrix, fetched)))


def _quantiser_noise(matrix: Matrix, fetched: Fetched) -> float:
    """What rounding to the codes can add to any singular value."""
    encoded = matrix.encoded
    assert encoded is not None
    if matrix.part is None:
        return _decoded(matrix, fetched).sv_floor
    noise = fetched.once.get("noise", lambda: deviations(encoded, _by_role(matrix, fetched)))
    return noise_floor(_taken(noise, matrix.part))


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
    return whole_of(matrix, Fetcher(read)(matrix))


def whole_of(matrix: Matrix, fetched: Fetched) -> torch.Tensor:
    """The same of what was fetched."""
    return entries(matrix, fetched).reshape(matrix.rows, -1)
