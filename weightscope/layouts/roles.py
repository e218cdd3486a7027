"""What a tensor's name says about its role, as a table of rules in order.

Names follow the model libraries' habits, so each rule names the families it was made for. The
first rule that matches wins; what no rule knows is ``other`` and is analysed all the same.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import NamedTuple

from weightscope import columns
from weightscope.layouts.wrappers import unwrapped

ROLES = tuple(columns.ROLES)
OUTSIDE_BLOCKS = frozenset({"embedding", "position", "lm_head", "norm"})
"""Roles that stay out of model averages and of WeLore's fit."""
VOCABULAR = frozenset({"embedding", "lm_head"})
"""Roles of tables with a row per token; some models keep one for both."""
FUSED = frozenset({"attn_kv", "attn_qkv", "mlp_gate_up", "expert_gate_up"})
"""Roles of tensors that hold several matrices."""
LONGEST = 1000
"""Characters of a name that rules look at; no model has longer ones, and patterns take time."""
TAILLESS = frozenset({"router"})
"""Roles of matrices whose few directions are no tail: nothing is fitted to them."""

_EXPERT = r"(^|\.)experts(\.|$)"
_ATTENTION = r"(^|[._])(attn|attention|self_attn|selfattention|encdecattention|crossattention|mha)"

_GGUF = r"(^|\.)blk\.#\."

_RULES: tuple[tuple[str, str], ...] = (
    # GGUF, whose names are those of no model library
    (r"(^|_)token_(embd|types)$", "embedding"),
    (r"(^|\.)position_embd$|" + _GGUF + r"attn_rel_b$", "position"),
    (r"^cls(\.output)?$", "lm_head"),
    (_GGUF + r"attn_qkv$", "attn_qkv"),
    (_GGUF + r"(cross_)?attn_q(_[ab])?$", "attn_q"),
    (_GGUF + r"(cross_)?attn_k(_b)?$", "attn_k"),
    (_GGUF + r"(cross_)?attn_v(_b)?$", "attn_v"),
    (_GGUF + r"attn_kv_(a_mqa|b)$", "attn_kv"),
    (_GGUF + r"(cross_)?attn_o(ut|utput)?$", "attn_o"),
    (_GGUF + r"ffn_gate_inp(_shexp)?$", "router"),
    (_GGUF + r"ffn_gate_up_exps$", "expert_gate_up"),
    (_GGUF + r"ffn_gate(_exps|\.#)$", "expert_gate"),
    (_GGUF + r"ffn_up(_exps|\.#)$", "expert_up"),
    (_GGUF + r"ffn_down(_exps|\.#)$", "expert_down"),
    (_GGUF + r"ffn_gate(_shexp)?$", "mlp_gate"),
    (_GGUF + r"(ffn_up(_shexp)?|channel_mix_key)$", "mlp_up"),
    (_GGUF + r"(ffn_down(_shexp)?|channel_mix_value)$", "mlp_down"),
    # Llama 4 as its makers publish it
    (r"\.router_DE$", "router"),
    (r"\.moe_w_in_eD_F$", "expert_gate"),
    (r"\.moe_w_swiglu_eD_F$", "expert_up"),
    (r"\.moe_w_out_eF_D$", "expert_down"),
    (r"\.w_in_shared_FD$", "mlp_gate"),
    (r"\.w_swiglu_FD$", "mlp_up"),
    (r"\.w_out_shared_DF$", "mlp_down"),
    # biases, gains, masks and tables that happen to have two dimensions
    (r"(attention|position|pos)_bias(es)?$", "position"),
    (r"[._]bias$(?<!rel_pos_bias)", "norm"),
    # JetMoE's experts of attention, which are named like those of the feed-forward layer
    (_ATTENTION + r".*experts\.input_linear$", "attn_q"),
    (_ATTENTION + r".*experts\.output_linear$", "attn_o"),
    # mixtures of experts: Mixtral w1/w2/w3; DBRX w1/v1/w2; Qwen, DeepSeek, OLMoE, gpt-oss, Llama-4
    (_EXPERT + r".*(gate_up_proj|gate_and_up\w*|input_linear|w13(_weight)?)$",
     "expert_gate_up"),
    (r"(^|\.)(moe|block_sparse_moe|mlp)\.input_linear$", "expert_gate_up"),
    (r"(^|\.)(moe|block_sparse_moe|mlp)\.output_linear$", "expert_down"),
    (_EXPERT + r".*(gate_proj|w1|linear_fc1_gate)$", "expert_gate"),
    (_EXPERT + r".*(up_proj|w3|v1|fc1|wi)$", "expert_up"),
    (_EXPERT + r".*(down_projs?|w2(_weight)?|fc2|wo|output_linear)$", "expert_down"),
    (r"(router(\.(layer|classifier|linear|weight|gate|proj))?|shared_expert_gate)$", "router"),
    (r"(mlp|moe|feed_forward|ffn|block_sparse_moe)\.gate$", "router"),
    # positions before embeddings: both end alike
    (r"(positions?|pos)_?(embeddings?|embed|embedding_table|emb|ids|bias_table)$", "position"),
    (r"(embed_positions|wpe|positional_embedding|relative_attention_bias|pe|rel_pos_[hw])$",
     "position"),
    (r"(position_embedding|relative_position|rotary).*$", "position"),
    (r"(^|\.)(word_embeddings?|token_type_embeddings|embed_tokens(_per_layer)?|wte|tok_embeddings)$",
     "embedding"),
    (r"(^|\.)(token_embedding|embed_in|shared|embeddings?|embed|tokens_embed|emb)$", "embedding"),
    (r"(^|\.)embed_tokens\.#$|(^|[._])(cls|class|mask|query|register|dist|distillation)_tokens?$",
     "embedding"),
    (r"(^|\.)(lm_head|embed_out|classifier|score|qa_outputs|predictions\.decoder|head|heads\.head)$",
     "lm_head"),
    (r"(^|\.)(lm_head\.decoder|generator_lm_head|lm_loss|output_layer|lm_heads\.#|seq_relationship)$",
     "lm_head"),
    (r"^(output|decoder|proj_out|fc|vocab_projector|classifier\.out_proj)$", "lm_head"),
    (r"^(model\.)?output_projection$|^classification_head\..*$", "lm_head"),
    # feed-forward blocks that live below something called attention: diffusers, RWKV
    (r"(^|\.)ff(_context)?\.net\.(0|#)\.proj$|(^|\.)proj_mlp$", "mlp_up"),
    (r"(^|\.)ff(_context)?\.net\.2$", "mlp_down"),
    (r"(^|\.)(ffn|feed_forward)\.key$", "mlp_up"),
    (r"(^|\.)(ffn|feed_forward)\.value$", "mlp_down"),
    (r"(^|[._])(norm|layernorm|layer_norm|ln_?\d*|ln_f|rmsnorm|batchnorm|bn\d*)$", "norm"),
    # keys and values: cross-attention of GPT-2, resamplers, multi-head latent attention
    (r"(^|\.)(crossattention\.c_attn|to_kv|kv_a_proj_with_mqa|kv_b_proj)$", "attn_kv"),
    # fused attention: GPT-2 c_attn, Phi qkv_proj, NeoX/BLOOM/Falcon query_key_value, MPT Wqkv
    (r"(c_attn|linear_qkv|qkv_proj|query_key_value|wqkv|w_qkv|w_pack|in_proj_weight|in_proj_qkvz?"
     r"|att_proj|qkv_linear)$",
     "attn_qkv"),
    (r"(^|\.)(qkv|to_qkv|attn\.in_proj|self_attn\.in_proj|attention\.self\.in_proj)$", "attn_qkv"),
    (r"(^|[._])(linear_q|query_global|q_head|q_proj|query|to_q|add_q_proj|q_lin|wq|q_a_proj"
     r"|q_b_proj|query_proj)$", "attn_q"),
    (r"(^|[._])(linear_k|key_global|k_head|k_proj|key|to_k|add_k_proj|k_lin|wk|key_proj)$",
     "attn_k"),
    (r"(^|[._])(linear_v|value_global|v_head|v_proj|value|to_v|add_v_proj|v_lin|wv|value_proj)$",
     "attn_v"),
    (_ATTENTION + r"[^.]*\.(q|queries)$", "attn_q"),
    (_ATTENTION + r"[^.]*\.(k|keys)$", "attn_k"),
    (_ATTENTION + r"[^.]*\.(v|values)$", "attn_v"),
    (_ATTENTION + r".*\.(o|o_proj|out_proj|output\.dense|dense|c_proj|wo|out|proj|projection|output"
     r"|linear_proj|linear_out|post_proj|out_lin)$",
     "attn_o"),
    (r"(^|\.)(o_proj|to_out(\.0)?|to_add_out|out_lin|wo)$(?<!mlp\.wo)(?<!dense\.wo)", "attn_o"),
    (_ATTENTION + r".*\.to_out\.\d+$", "attn_o"),
    # feed-forward: Llama gate/up/down; BERT intermediate/output; GPT-2 c_fc/c_proj; T5 wi/wo
    (r"(^|[._])(gate_up_proj|up_gate_proj|gate_and_up_proj|fc1_gate_up)$", "mlp_gate_up"),
    (r"(^|\.)((mlp|ffn)\.(wi|w12|weights_in|ff_proj)|shared_mlp\.input_linear)$", "mlp_gate_up"),
    (r"(^|\.)((mlp|ffn)\.weights_out|shared_mlp\.output_linear)$", "mlp_down"),
    (r"(^|\.)(gate_proj|fc_1|w1|wi_0|linear_gate)$", "mlp_gate"),
    (r"(^|\.)(up_proj|w3|wi_1|wi|c_fc|fc1|fc_in|lin1|linear1|fc_2|intermediate[._]dense"
     r"|mlp\.(0|dense1|linear_1)|ff\.layer_1)$", "mlp_up"),
    (r"(^|\.)(dense_h_to_4h|linear_fc1)$", "mlp_up"),
    (r"(^|\.)(down_proj|w2|wo|fc2|fc_out|lin2|linear2|output[._]dense|mlp\.(2|3|dense2|linear_2)|mlp\.proj"
     r"|ff\.layer_2|dense_4h_to_h)$", "mlp_down"),
    (r"(^|\.)(mlp\.c_proj|linear_fc2)$", "mlp_down"),
)  # fmt: skip
_CONV_NAME = re.compile(
    r"(^|[._])(conv|deconv|convolution|patch_embedding)|conv(\d*[a-z]?)?$", re.I
)


@cache
def _compiled() -> tuple[tuple[re.Pattern[str], str], ...]:
    """The rules, compiled when a role is first asked for: saved runs carry theirs."""
    return tuple((re.compile(pattern, re.IGNORECASE), role) for pattern, role in _RULES)


_OF_EXPERTS = frozenset({"experts", "ffn_gate", "ffn_up", "ffn_down"})
"""What comes before the number of an expert; the last three in GGUF files of the first Mixtral."""


class Place(NamedTuple):
    """Where a name puts its tensor: block and expert index, and the pattern without them."""

    module: str
    block: int | None
    expert: int | None


@lru_cache(maxsize=4096)
def place_of(name: str) -> Place:
    """Split a tensor name into its pattern and its indices."""
    parts = unwrapped(name).removesuffix(".weight").split(".")
    block: int | None = None
    expert: int | None = None
    for position, part in enumerate(parts):
        is_expert = position and parts[position - 1] in _OF_EXPERTS
        if is_expert:
            part = part.removeprefix("expert_")  # Switch Transformers
        start = "encoder_layer_" if part.startswith("encoder_layer_") else ""  # torchvision
        part = part.removeprefix(start)
        if not (part.isascii() and part.isdigit() and len(part) < 10):
            continue
        if is_expert:
            expert = int(part)
        elif block is None:
            block = int(part)
        else:
            continue
        parts[position] = f"{start}#"
    return Place(".".join(parts), block, expert)


class Rule(NamedTuple):
    """What a name says: the role, and which part of the name says so."""

    role: str
    because: str


@lru_cache(maxsize=4096)
def rule_for(module: str) -> Rule:
    """The first rule that knows a two-dimensional weight; ``other`` and nothing where none does."""
    if len(module) > LONGEST:
        return Rule("other", "")
    for pattern, role in _compiled():
        found = pattern.search(module)
        if found:
            return Rule(role, found.group().strip("._"))
    return Rule("other", "")


def role_of(module: str) -> str:
    """Role of a two-dimensional weight by its module pattern; ``other`` where no rule knows it."""
    return rule_for(module).role


def is_expert_stack(module: str) -> bool:
    """Whether the name of a 3-D tensor says that it stacks experts."""
    return bool(re.search(r"(^|\.)experts?(\.|$)|(^|\.)(moe|block_sparse_moe)\.|_exps$", module))


@lru_cache(maxsize=4096)
def is_convolution(module: str) -> bool:
    """Whether the name of a 3-D tensor says that it is a convolution kernel."""
    return bool(_CONV_NAME.search(module)) and not is_expert_stack(module)
