"""Names under which quantised weights are packed, so that they are never taken for numbers."""

from __future__ import annotations

import re

_PACKED = re.compile(r"\.(weight|qweight|weight_packed|W_q|weight_qdata)$|_blocks$")
_COMPANION = re.compile(
    r"\.(scales|qzeros|weight_scale|weight_scale_inv|weight_zero_point|weight_global_scale"
    r"|weight_scale_2|input_scale|absmax|SCB|quant_map|nested_absmax)$|_scales$|quant_state"
)


def is_packed(name: str) -> bool:
    """Whether an integer tensor's name says that it holds packed weights."""
    return bool(_PACKED.search(name))


def is_companion(name: str) -> bool:
    """Whether a tensor's name says that it holds scales or zero points of another one."""
    return bool(_COMPANION.search(name))
