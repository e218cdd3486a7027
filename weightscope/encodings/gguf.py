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

    blocks = parts["blocks"]
    kind = GGMLQuantizationType(encoded.number("type"))
    with np.errstate(all="ignore"):  # a hostile scale may be anything
        found = dequantize(blocks.cpu().contiguous().numpy(), kind)
    weights = torch.from_numpy(np.ascontiguousarray(found, np.float32)).to(blocks.device)
    return steps_of(weights, encoded.bits, 16 if encoded.facts["kind"] in _SHORT_RUNS else 32)
