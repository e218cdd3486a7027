"""A quantised weight: which stored tensors it is made of, and what decoding them yields."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from weightscope.tensor import TensorRef

Fact = str | int | float | bool | None
Part = tuple[str, TensorRef]


class DecodingError(ValueError):
    """The stored tensors of a quantised weight contradict each other; the message names one."""


@dataclass(frozen=True)
class Encoded:
    """A weight that several stored tensors make up together.

    Attributes:
        name: Name of the weight it decodes to, as the unquantised model has it.
        scheme: Who decodes it: a module of ``encodings``.
        encoding: Scheme, width and group in one word, such as ``gptq-int4-g128``.
        shape: Shape it decodes to: (rows, cols), or (experts, rows, cols) of a stack.
        parts: Role and place of every tensor that decoding reads; the packed one comes first.
        facts: What decoding has to know beside the parts; ``bits`` is always there.
        rest: Tensors that belong to it without being needed, such as scales of activations.
        dtype: What decoding yields.
    """

    name: str
    scheme: str
    encoding: str
    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    facts: Mapping[str, Fact] = field(hash=False)
    rest: tuple[TensorRef, ...] = ()
    dtype: str = "F32"

    @property
    def bits(self) -> int:
        """Bits per entry, scales not counted."""
        return int(self.facts["bits"] or 0)

    @property
    def refs(self) -> tuple[TensorRef, ...]:
        """Every stored tensor it takes up, so that none is analysed on its own."""
        return (*(ref for _, ref in self.parts), *self.rest)

    @property
    def nbytes(self) -> int:
        """Stored bytes of all parts."""
        return sum(ref.nbytes for _, ref in self.parts)

    def number(self, fact: str) -> int:
        """A fact that is a whole number; 0 where there is none."""
        value = self.facts.get(fact)
        return value if isinstance(value, int) else 0

    def pieces(self, expert: int | None = None) -> tuple[tuple[str, TensorRef, int | None], ...]:
        """What to read for one matrix: role, tensor, and index of its first dimension or None.

        Args:
            expert: Index in a stack; None for a weight that is one matrix.
        """
        if expert is None:
            return tuple((role, ref, None) for role, ref in self.parts)
        count = self.shape[0]
        return tuple(
            (role, ref, expert if ref.shape[:1] == (count,) else None) for role, ref in self.parts
        )


@dataclass(frozen=True)
class Unplaced:
    """A quantised weight that cannot be decoded, and why.

    Attributes:
        name: Its name; the stored one where the scheme is unknown.
        scheme: Name of the quantisation scheme, as the configuration or the tensors give it.
        reason: Why, as a clause: ``its scales ... are missing``.
        refs: Stored tensors it takes up; the packed one comes first.
    """

    name: str
    scheme: str
    reason: str
    refs: tuple[TensorRef, ...]
