"""What is stored beside weights: tensors of two or more dimensions that are no matrices."""

from __future__ import annotations

import re

from weightscope.layouts.roles import LONGEST, place_of, role_of
from weightscope.layouts.wrappers import unwrapped

_NOT_MATRICES = (
    (r"(^|\.)(attn|attention|self_attn|self_attention)\.(attention\.)?(masked_)?bias$",
     "an attention mask", 3),
    (r"(^|[._])(attn_mask|attention_mask|causal_mask|masked_bias|tril|triu|mask)$", "a mask", 2),
    (r"(^|[._])bias(es)?$(?<!attention_bias)(?<!attention_biases)(?<!position_bias)(?<!pos_bias)",
     "a bias", 2),
    (r"(^|[._])(inv_freqs?|freqs_(cis|cos|sin)|(cos|sin)_cached|cos_sin_cache)$"
     r"|(^|\.)(rotary|rope)\w*\.(freqs?|cos|sin)\w*$", "a table of rotary positions", 2),
    (r"(^|[._])(A_logs?|A_imag|A_real|log_A_real|log_dt|dt_bias)$",
     "a parameter of a state space, one number per channel and state", 2),
    (r"(^|\.)blk\.\d+\.ssm_a$",
     "a parameter of a state space, one number per channel and state", 2),
    (r"(^|\.)blk\.\d+\.ssm_conv1d(_[qkv])?\.weight$",
     "a depth-wise convolution, one filter per channel", 2),
    (r"(^|\.)time_(decay|first|faaaa|mix_\w+|maa_[a-z])$",
     "a parameter of a recurrence, one number per channel", 2),
)  # fmt: skip
_COMPILED = tuple((re.compile(pattern), what, least) for pattern, what, least in _NOT_MATRICES)
_INPUT_LAYER = re.compile(
    r"(^|[._])patch_embed|(^|\.)conv_layers\.0\.conv\.|(^|\.)(patch_)?embeddings?\.|"
    r"^(\w+\.)?(conv_?[01]?|conv_in|conv_stem|stem(\.0)?|features\.0|layer1\.0|net\.0|0)\.weight$"
)


def what_else(name: str, dimensions: int) -> str:
    """What a tensor is, by its name, if it is no matrix; empty if it may be one.

    Args:
        name: Tensor name as stored.
        dimensions: How many it has, two at least.
    """
    name = unwrapped(name)
    if len(name) > LONGEST:
        return ""
    for pattern, what, least in _COMPILED:
        if dimensions >= least and pattern.search(name):
            return what
    return "the gain of a normalisation" if role_of(place_of(name).module) == "norm" else ""


def is_depthwise(name: str, shape: tuple[int, ...]) -> bool:
    """Whether a convolution of this shape filters every channel on its own.

    One input channel per filter says so, but for the layer that sees the input itself: audio and
    grey images have one channel.
    """
    return shape[1] == 1 < shape[0] and not _INPUT_LAYER.search(unwrapped(name))
