"""What the schemes look at when they recognise quantised weights: headers and small tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from weightscope.tensor import TensorRef

SMALL = 1 << 16
"""Most bytes of a tensor that describes another one."""
FLOATS = frozenset({"F64", "F32", "F16", "BF16"})
EXPONENTS = frozenset({"F8_E8M0", "U8"})
"""Dtypes of scales that are powers of two, stored as exponents biased by 127 (OCP MX, E8M0)."""
_LONGEST = 64  # of a method's name, which ends up in tables
_WHOLE = {"I8": 1, "U8": 1, "BOOL": 1, "I16": 2, "U16": 2, "I32": 4, "U32": 4, "I64": 8, "U64": 8}


@dataclass(frozen=True)
class Stored:
    """A checkpoint as far as quantisation is concerned.

    Attributes:
        tensors: Every stored tensor by name; two packed four-bit floats count as one U8.
        config: ``quantization_config`` of ``config.json``; empty where there is none.
        metadata: ``__metadata__`` of the safetensors headers, all files merged.
        described: Bytes of the small tensors that ``descriptors`` of the schemes named.
    """

    tensors: Mapping[str, TensorRef]
    config: Mapping[str, Any]
    metadata: Mapping[str, str]
    described: Mapping[str, bytes]

    @property
    def method(self) -> str:
        """Quantisation method as configured, in lower case; empty where nothing says."""
        method = self.config.get("quant_method")
        if isinstance(method, str):
            return method.lower()[:_LONGEST]
        return "modelopt" if "quant_algo" in self.config else ""

    def first(self, *names: str) -> TensorRef | None:
        """The first of these tensors that is stored."""
        return next((self.tensors[name] for name in names if name in self.tensors), None)

    def those(self, *names: str) -> tuple[TensorRef, ...]:
        """All of these tensors that are stored."""
        return tuple(self.tensors[name] for name in names if name in self.tensors)

    def numbers(self, name: str) -> tuple[int, ...]:
        """Entries of a small integer tensor; empty where it is none or was not read."""
        width = _WHOLE.get(self.tensors[name].dtype) if name in self.tensors else None
        raw = self.described.get(name, b"")
        if not width or len(raw) % width:
            return ()
        signed = self.tensors[name].dtype.startswith("I")
        return tuple(
            int.from_bytes(raw[start : start + width], "little", signed=signed)
            for start in range(0, len(raw), width)
        )

    def number(self, name: str) -> int | None:
        """The one entry of a small integer tensor."""
        numbers = self.numbers(name)
        return numbers[0] if len(numbers) == 1 else None

    def text(self, name: str) -> str:
        """A small tensor of bytes as text; empty where it was not read."""
        return self.described.get(name, b"").decode("utf-8", "replace")

    def record(self, name: str) -> dict[str, Any]:
        """A small tensor of bytes as a JSON object; empty where it is none."""
        return json_object(self.text(name))

    def count(self, *keys: str) -> int | None:
        """The first of these settings that is a positive whole number."""
        found = (self.config.get(key) for key in keys)
        return next((value for value in found if is_count(value)), None)


def stored(
    tensors: Mapping[str, TensorRef],
    config: Mapping[str, Any],
    metadata: Mapping[str, str],
    described: Mapping[str, bytes],
) -> Stored:
    """Bring the tensors into one form: a byte of two four-bit floats is a U8."""
    plain = {name: _as_bytes(ref) if ref.dtype == "F4" else ref for name, ref in tensors.items()}
    return Stored(plain, config, metadata, described)


def _as_bytes(ref: TensorRef) -> TensorRef:
    if not ref.shape or ref.shape[-1] % 2:
        return ref
    return replace(ref, dtype="U8", shape=(*ref.shape[:-1], ref.shape[-1] // 2))


def json_object(text: str) -> dict[str, Any]:
    """Parse a JSON object; empty where the text is none."""
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}


def is_count(value: Any) -> bool:
    """Whether a setting is a positive whole number of plausible size."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31
