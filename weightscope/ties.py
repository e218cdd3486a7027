"""Weights stored twice: an output head that repeats the embedding, byte for byte."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch

from weightscope.checkpoint import Checkpoint
from weightscope.expressions import Reader
from weightscope.layouts.roles import VOCABULAR
from weightscope.matrix import Exclusion, Matrix
from weightscope.measure import reading
from weightscope.select import Selection, natural_key
from weightscope.tensor import DTYPES, TensorRef
from weightscope.text import shortened

_PROBES = 3
_PROBE_BYTES, _BLOCK_BYTES = 1 << 16, 1 << 24


def without_ties(checkpoint: Checkpoint, selection: Selection) -> Selection:
    """Leave out every embedding and head whose bytes are those of another one.

    A few places tell most pairs apart; only a pair that agrees there is read whole. The
    configuration is not asked: what is tied in memory may have been stored apart, and differ.

    Raises:
        CheckpointError: Their bytes cannot be read.
    """
    candidates = sorted(
        (m for m in selection.matrices if m.role in VOCABULAR and _is_plain(m)),
        key=lambda m: (m.role != "embedding", natural_key(m.name)),
    )
    tied: dict[str, Exclusion] = {}
    kept: list[Matrix] = []
    with reading(checkpoint) as read:
        for matrix in candidates:
            like = (m for m in kept if _form(m) == _form(matrix))
            twin = next((m for m in like if _equal(read, m.tensor, matrix.tensor)), None)
            if twin is None:
                kept.append(matrix)
            else:
                why = f"it is tied to {shortened(twin.name)}, which holds the same bytes"
                tied[matrix.name] = Exclusion(matrix, "skipped", f"Not analysed: {why}.")
    if not tied:
        return selection
    return replace(
        selection,
        matrices=tuple(m for m in selection.matrices if m.name not in tied),
        exclusions=tuple(
            sorted(
                [*selection.exclusions, *tied.values()], key=lambda e: natural_key(e.matrix.name)
            )
        ),
    )


def _is_plain(matrix: Matrix) -> bool:
    """Whether a matrix is a whole tensor of ordinary numbers."""
    plain = matrix.is_stored and matrix.part is None
    return plain and matrix.view == "whole" and DTYPES[matrix.tensor.dtype].kind == "float"


def _form(matrix: Matrix) -> tuple[tuple[int, ...], str]:
    return matrix.tensor.shape, matrix.tensor.dtype


def _equal(read: Reader, a: TensorRef, b: TensorRef) -> bool:
    """Whether two tensors of one shape and dtype hold the same bytes."""
    for start, stop in _spans(a):
        one, other = (_bytes(read, ref, start, stop) for ref in (a, b))
        if not torch.equal(one, other):
            return False
    return True


def _spans(ref: TensorRef) -> Iterator[tuple[int, int]]:
    """Ranges of rows to compare: some here and there first, then all."""
    rows = ref.shape[0]
    width = max(ref.nbytes // rows, 1)
    few = min(max(_PROBE_BYTES // width, 1), rows)
    for probe in range(_PROBES):
        start = (rows - few) * probe // (_PROBES - 1)
        yield start, start + few
    many = max(_BLOCK_BYTES // width, 1)
    yield from ((start, min(start + many, rows)) for start in range(0, rows, many))


def _bytes(read: Reader, ref: TensorRef, start: int, stop: int) -> torch.Tensor:
    found = read(_rows(ref, start, stop), None)
    if found.shape[0] != stop - start:  # a live tensor comes whole
        found = found[start:stop]
    return found.contiguous().view(torch.uint8)


def _rows(ref: TensorRef, start: int, stop: int) -> TensorRef:
    """Some rows of a stored tensor as a tensor of their own."""
    width = ref.nbytes // ref.shape[0]
    shape = (stop - start, *ref.shape[1:])
    return replace(ref, shape=shape, start=ref.start + start * width, stop=ref.start + stop * width)
