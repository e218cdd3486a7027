"""A logical weight matrix: which part of which stored tensor, seen how."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Literal

from weightscope.encoded import Encoded
from weightscope.tensor import DTYPES, TensorRef

View = Literal["whole", "expert", "conv_slices", "conv_flat"]
"""How the matrix lies in its tensor: all of a 2-D tensor; ``tensor[expert]`` of a stack;
one matrix ``tensor[:, :, i, j]`` per kernel position; or ``tensor.reshape(tensor.shape[0], -1)``.
"""


@dataclass(frozen=True)
class Part:
    """A logical matrix inside a fused one: the same span of every group along one axis.

    The axis is cut into ``groups`` groups of equal size; the part takes ``length`` entries from
    ``offset`` of each. One group is a plain block; as many groups as pairs are interleaved rows.

    Attributes:
        label: What the name of the matrix ends in, such as ``q`` or ``up``.
        role: What the part does.
        axis: 0 for rows, 1 for columns, of the matrix as stored.
        groups: Number of groups.
        offset: First entry of the part in each group.
        length: Entries of the part in each group.
    """

    label: str
    role: str
    axis: int
    groups: int
    offset: int
    length: int

    @property
    def size(self) -> int:
        """Entries of the part along its axis."""
        return self.groups * self.length


@dataclass(frozen=True)
class Product:
    """A low-rank update of a weight, scale * B A, stored as its factors.

    Attributes:
        A: (r, in), (experts * r, in) with the expert index slowest, or a kernel (r, in, ...).
        B: (out, r), (out, r * experts) with the expert index fastest, or (out, r, 1, ...).
        scale: Factor on the product.
        rank: r.
        weight: Name of the weight in the base model.
        transposed: The weight is stored as (in, out).
        experts: Number of experts whose factors are stacked.
        needs: Kind of an update that the factors alone do not give, else empty.
        magnitude: DoRA's norms of the rows of the updated weight (out,).
    """

    A: TensorRef
    B: TensorRef
    scale: float
    rank: int
    weight: str
    transposed: bool = False
    experts: int = 1
    needs: str = ""
    magnitude: TensorRef | None = None

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """Every stored tensor that it is made of."""
        return (self.A, self.B) if self.magnitude is None else (self.A, self.B, self.magnitude)


@dataclass(frozen=True)
class Matrix:
    """A weight matrix W to analyse, as an expression over a stored tensor.

    Attributes:
        name: Tensor name, with ``[e]`` for an expert of a stack and ``[q]`` for a part of a fused
            matrix, in this order. Unique in a checkpoint.
        tensor: Where its bytes are.
        view: How it lies in the tensor.
        role: What it does in the model.
        module: Name pattern with ``#`` for the block index, without ``.weight``.
        block: First numeric component of the name.
        expert: Index of the expert, in the name or in the stack.
        part: Which part of a fused matrix it is; None where it is whole.
        unsplit: Why it is whole although it holds several matrices; empty where it does not.
        padding: Rows beyond the vocabulary that the configuration gives.
        product: The update it is, where it is one; ``tensor`` then only has its shape and name.
        base: The weight to subtract, or to which the update belongs; None where there is none.
        merged: It is the base with the update, not the update alone.
        encoded: The quantised weight it is decoded from; ``tensor`` then only has its shape,
            name and place.
    """

    name: str
    tensor: TensorRef
    view: View
    role: str
    module: str
    block: int | None = None
    expert: int | None = None
    part: Part | None = None
    unsplit: str = ""
    padding: int = 0
    product: Product | None = None
    base: Matrix | None = None
    merged: bool = False
    encoded: Encoded | None = None

    @property
    def is_stored(self) -> bool:
        """Whether its entries are stored as they are, neither decoded nor formed."""
        return self.product is None and self.base is None and self.encoded is None

    @property
    def dtype(self) -> str:
        """Stored data type; of a quantised weight that of its codes."""
        return self.encoded.parts[0][1].dtype if self.encoded else self.tensor.dtype

    @property
    def form(self) -> str:
        """How it is stored, for people: the encoding of a quantised weight, else the data type."""
        return self.encoded.encoding if self.encoded else self.tensor.dtype

    @property
    def stored_shape(self) -> tuple[int, int]:
        """Rows and columns as stored, of one slice, before a part is taken out."""
        shape = self.tensor.shape
        if self.view == "expert":
            return shape[1], shape[2]
        return shape[0], prod(shape[1:]) if self.view == "conv_flat" else shape[1]

    @property
    def rows(self) -> int:
        """Rows of one slice."""
        whole = self.stored_shape[0]
        return self.part.size if self.part and self.part.axis == 0 else whole

    @property
    def cols(self) -> int:
        """Columns of one slice."""
        whole = self.stored_shape[1]
        return self.part.size if self.part and self.part.axis == 1 else whole

    @property
    def index(self) -> int | None:
        """Index of the tensor's first dimension where it lies; None where it takes all of them."""
        if self.view != "expert":
            return None
        return self.expert if self.tensor.shape[0] > 1 else 0

    @property
    def block_of_rows(self) -> TensorRef | None:
        """The part as a tensor of its own, where its bytes follow each other in a file."""
        part, ref = self.part, self.tensor
        if part is None or part.axis or part.groups > 1 or self.encoded:
            return None
        if not ref.file or ref.stop <= ref.start:  # no bytes in a file, or nobody knows where
            return None
        rows, cols = self.stored_shape
        first = part.offset + rows * (self.index or 0)
        width = cols * DTYPES[ref.dtype].bits // 8
        start = ref.start + first * width
        return replace(
            ref, shape=(part.length, cols), start=start, stop=start + part.length * width
        )

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
    def full_rank(self) -> int:
        """Largest rank its form allows: n_evals, or less for a low-rank update."""
        if self.product is None or self.base is not None:
            return self.n_evals
        return min(self.M, self.product.rank) * self.slices

    @property
    def unlike_noise(self) -> str:
        """Why Gaussian noise of the same shape is nothing to compare with; empty where it is."""
        if self.product is None or self.merged:
            return ""
        rank = self.product.rank
        return f"Gaussian noise of the same shape is no null for a product of rank {rank}"

    @property
    def nbytes(self) -> int:
        """Stored bytes that belong to this matrix."""
        beside = self.base.nbytes if self.base else 0
        if self.product is not None:
            stored = sum(ref.nbytes for ref in self.product.refs)
            return beside + stored // self.product.experts
        if self.encoded is not None:
            return beside + self.encoded.nbytes * self.params // prod(self.encoded.shape)
        return beside + self.params * DTYPES[self.tensor.dtype].bits // 8


@dataclass(frozen=True)
class Exclusion:
    """A stored tensor that has a row but no spectrum, and why."""

    matrix: Matrix
    status: str
    reason: str
