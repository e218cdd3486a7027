"""GGUF: the block types of GGML, decoded by the gguf package.

The file itself says which tensors are packed, and how, so there is nothing to recognise here. The
package computes on the CPU; the values go to the device of the blocks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np

from weightscope.encoded import Encoded, Unplaced
from weightscope.encodings.steps import Steps, steps_of
from weightscope.encodings.stored import Stored

if TYPE_CHECKING:
    import torch

_AT_ONCE = 1 << 22  # entries decoded together, since the package needs room for them twice
_SHORT_RUNS = frozenset({"Q2_K", "Q3_K", "Q6_K", "NVFP4"})
"""Types with a scale per 16 entries; the others have one per 32 or more."""


def find(stored: Stored) -> Iterable[Encoded | Unplaced]:  # noqa: ARG001
    """Nothing: no other file holds such blocks."""
    return ()


def grid(encoded: Encoded, parts: Mapping[str, torch.Tensor]) -> Steps:
    """Values of one matrix, float32, and the steps between them as far as they can be told."""
    import torch
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    blocks, (rows, cols) = parts["blocks"], encoded.shape[-2:]
    raw, kind = blocks.cpu().numpy(), GGMLQuantizationType(encoded.number("type"))
    weights = torch.empty(rows, cols)
    step = max(1, _AT_ONCE // cols)
    with np.errstate(all="ignore"):  # a hostile scale may be anything
        for start in range(0, rows, step):
            some = np.ascontiguousarray(raw[start : start + step])
            weights[start : start + step] = torch.from_numpy(dequantize(some, kind))
    weights = weights.to(blocks.device)
    return steps_of(weights, encoded.bits, 16 if encoded.facts["kind"] in _SHORT_RUNS else 32)
