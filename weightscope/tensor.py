"""What is stored: data types and claim tickets for tensors. No handle, no bytes, picklable."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

DTypeKind = Literal["float", "encoded", "integer", "complex"]


@dataclass(frozen=True)
class DType:
    """A storage type.

    Attributes:
        code: Name in a safetensors header.
        bits: Width of one element.
        kind: ``float`` can be analysed as it is; ``encoded`` is a narrow float that means nothing
            without its scales; ``integer`` includes booleans.
        torch: Name of the torch dtype, or an empty string where none is needed.
        significand: Significand bits with the implicit one (floats only).
        min_exponent: Exponent of the smallest normal number (floats only).
    """

    code: str
    bits: int
    kind: DTypeKind
    torch: str = ""
    significand: int = 0
    min_exponent: int = 0


_TABLE = (
    DType("F64", 64, "float", "float64", 53, -1022),
    DType("F32", 32, "float", "float32", 24, -126),
    DType("F16", 16, "float", "float16", 11, -14),
    DType("BF16", 16, "float", "bfloat16", 8, -126),
    DType("F8_E4M3", 8, "encoded", "float8_e4m3fn"),
    DType("F8_E5M2", 8, "encoded", "float8_e5m2"),
    DType("F8_E4M3FNUZ", 8, "encoded", "float8_e4m3fnuz"),
    DType("F8_E5M2FNUZ", 8, "encoded", "float8_e5m2fnuz"),
    DType("F8_E8M0", 8, "encoded", "float8_e8m0fnu"),
    DType("F6_E2M3", 6, "encoded"),
    DType("F6_E3M2", 6, "encoded"),
    DType("F4", 4, "encoded"),
    DType("C64", 64, "complex"),
    DType("I64", 64, "integer", "int64"),
    DType("I32", 32, "integer", "int32"),
    DType("I16", 16, "integer", "int16"),
    DType("I8", 8, "integer", "int8"),
    DType("U64", 64, "integer", "uint64"),
    DType("U32", 32, "integer", "uint32"),
    DType("U16", 16, "integer", "uint16"),
    DType("U8", 8, "integer", "uint8"),
    DType("BOOL", 8, "integer", "bool"),
)
DTYPES: dict[str, DType] = {dtype.code: dtype for dtype in _TABLE}
"""Every data type of the safetensors format, by its header code."""


@dataclass(frozen=True)
class TensorRef:
    """A tensor that can be read later.

    Attributes:
        name: Name as stored: hostile input, to be escaped by whatever prints it.
        shape: Dimensions as stored.
        dtype: A code of ``DTYPES``.
        file: Where the bytes are: a path, or an empty string for a tensor in memory.
        start: First byte in the file.
        stop: One past the last byte.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str = ""
    start: int = 0
    stop: int = 0

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes in storage."""
        return self.size * DTYPES[self.dtype].bits // 8
