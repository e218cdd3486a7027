"""Names under which quantised weights and their scales are stored."""

from __future__ import annotations

import re

_PACKED = re.compile(r"\.(weight|qweight|weight_packed|W_q|_?weight_qdata)$|_blocks$|\.codes$")
_COMPANION = re.compile(
    r"\.(scales|qzeros|g_idx|SCB|absmax|nested_absmax|quant_map|nested_quant_map"
    r"|scale_weight|scale_input|input_scale(_ub)?|[kqv]_scale|input_global_scale|pre_quant_scale"
    r"|_?weight_(scale|scale_inv|scale_2|zero_point|global_scale|shape|g_idx|format))$"
    r"|_scales$|_scale_inv$|_proj_scale$|\.quant_state\."
)


def is_packed(name: str) -> bool:
    """Whether an integer tensor's name says that it holds packed weights."""
    return bool(_PACKED.search(name))


def is_companion(name: str) -> bool:
    """Whether a tensor's name says that it holds scales or zero points of another one."""
    return bool(_COMPANION.search(name))
