"""A logical weight matrix: which part of which stored tensor, seen how."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from weightscope.tensor import DTYPES, TensorRef

View = Literal["whole", "expert", "conv_slices", "conv_flat"]
"""How the matrix lies in its tensor: all of a 2-D tensor; ``tensor[expert]`` of a stack;
one matrix ``tensor[:, :, i, j]`` per kernel position; or ``tensor.reshape(tensor.shape[0], -1)``.
"""


@dataclass(frozen=True)
class Matrix:
    """A weight matrix W to analyse, as an expression over a stored tensor.

    Attributes:
        name: Tensor name, with ``[e]`` for an expert of a stack. Unique in a checkpoint.
        tensor: Where its bytes are.
        view: How it lies in the tensor.
        role: What it does in the model.
        module: Name pattern with ``#`` for the block index, without ``.weight``.
        block: First numeric component of the name.
        expert: Index of the expert, in the name or in the stack.
    """

    name: str
    tensor: TensorRef
    view: View
    role: str
    module: str
    block: int | None = None
    expert: int | None = None

    @property
    def rows(self) -> int:
        """Rows as stored, of one slice."""
        return self.tensor.shape[1] if self.view == "expert" else self.tensor.shape[0]

    @property
    def cols(self) -> int:
        """Columns as stored, of one slice."""
        shape = self.tensor.shape
        if self.view == "expert":
            return shape[2]
        return prod(shape[1:]) if self.view == "conv_flat" else shape[1]

    @property
    def slices(self) -> int:
        """Number of matrices whose eigenvalues are pooled into one spectrum."""
        return prod(self.tensor.shape[2:]) if self.view == "conv_slices" else 1

    @property
    def N(self) -> int:
        """Longer side."""
        return max(self.rows, self.cols)

    @property
    def M(self) -> int:
        """Shorter side."""
        return min(self.rows, self.cols)

    @property
    def Q(self) -> float | None:
        """Aspect ratio N / M, at least 1; None for an empty matrix."""
        return self.N / self.M if self.M else None

    @property
    def n_evals(self) -> int:
        """Number of eigenvalues of the pooled spectrum: M per slice."""
        return self.M * self.slices

    @property
    def params(self) -> int:
        """Number of entries."""
        return self.rows * self.cols * self.slices

    @property
    def nbytes(self) -> int:
        """Stored bytes that belong to this matrix."""
        return self.params * DTYPES[self.tensor.dtype].bits // 8


@dataclass(frozen=True)
class Exclusion:
    """A stored tensor that has a row but no spectrum, and why."""

    matrix: Matrix
    status: str
    reason: str
