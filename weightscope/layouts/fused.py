"""How fused tensors divide into logical matrices: one family of names per row, as data.

A row names the tensors it is for, the model families (``model_type``) and configuration flags it
holds for, the axis that is fused, into how many equal groups that axis falls, and which parts each
group holds, in order. Sizes are products and quotients of facts of the configuration; ``dim`` is
the length of the axis. ``gate`` is the half of a gated layer that goes through the activation.

Singular values do not depend on the order of heads or rows, only on which of them belong together.
Every row was compared with what the layers of transformers do, but for those under "published".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Parts = tuple[tuple[str, str, str], ...]
"""Label, role and size of each part of a group."""


@dataclass(frozen=True)
class Layout:
    """One row of the table.

    Attributes:
        module: Pattern that the end of the module name must match.
        parts: Parts of a group, in order.
        families: Values of ``model_type`` it holds for; empty for any that has no row of its own.
        when: Configuration flags that must have these values.
        axis: 0 for rows, 1 for columns, of the matrix as stored.
        groups: Number of groups.
        across: What the other axis must measure, where that tells one orientation from another.
    """

    module: str
    parts: Parts
    families: frozenset[str] = frozenset()
    when: Mapping[str, bool] = field(default_factory=dict)
    axis: int = 0
    groups: str = "1"
    across: str = ""


@dataclass(frozen=True)
class Stack:
    """Matrices of equal shape under each other in one 2-D tensor: experts, flattened.

    Attributes:
        module: Pattern that the end of the module name must match.
        families: Values of ``model_type`` it holds for.
        count: How many.
    """

    module: str
    families: frozenset[str]
    count: str


def _families(text: str) -> frozenset[str]:
    return frozenset(text.split())


def _equal(labels: str, roles: str) -> Parts:
    """Parts of equal size that fill the axis."""
    names, share = labels.split(), f"dim/{len(labels.split())}"
    return tuple((label, role, share) for label, role in zip(names, roles.split(), strict=True))


_QKV: Parts = (
    ("q", "attn_q", "heads*head_dim"),
    ("k", "attn_k", "kv_heads*head_dim"),
    ("v", "attn_v", "kv_heads*head_dim"),
)
_MULTI_QUERY: Parts = (
    ("q", "attn_q", "heads*head_dim"),
    ("k", "attn_k", "head_dim"),
    ("v", "attn_v", "head_dim"),
)
_GROUPED: Parts = (
    ("q", "attn_q", "heads*head_dim"),
    ("k", "attn_k", "multi_query_group_num*head_dim"),
    ("v", "attn_v", "multi_query_group_num*head_dim"),
)
_PER_HEAD: Parts = (
    ("q", "attn_q", "head_dim"),
    ("k", "attn_k", "head_dim"),
    ("v", "attn_v", "head_dim"),
)
_PER_GROUP: Parts = (
    ("q", "attn_q", "heads*head_dim/kv_heads"),
    ("k", "attn_k", "head_dim"),
    ("v", "attn_v", "head_dim"),
)
_CODEGEN: Parts = (
    ("q", "attn_q", "dim/12"),
    ("v", "attn_v", "dim/12"),
    ("k", "attn_k", "dim/12"),
)
_VALUE_GROUP = "linear_value_head_dim*linear_num_value_heads/linear_num_key_heads"
_THIRDS = _equal("q k v", "attn_q attn_k attn_v")
_KV = _equal("k v", "attn_k attn_v")
_GATE_UP = _equal("gate up", "mlp_gate mlp_up")
_UP_GATE = _equal("up gate", "mlp_up mlp_gate")
_INTERLEAVED: Parts = (("gate", "mlp_gate", "1"), ("up", "mlp_up", "1"))


def _state_space(inner: str, state: str, heads: str) -> Parts:
    """Mamba-2: gate, input, two state projections, step sizes."""
    return (
        ("z", "other", inner),
        ("x", "other", inner),
        ("B", "other", state),
        ("C", "other", state),
        ("dt", "other", heads),
    )


_GPT2 = _families("gpt2 openai-gpt imagegpt decision_transformer")
_MAMBA = _families("mamba falcon_mamba jamba")
_GRANITE = _families("granitemoe granitemoeshared granitemoehybrid granitemoe_swa")
_NEXT = _families("qwen3_next qwen3_5 qwen3_5_moe")
_ROWS = _families(
    "mixtral qwen2_moe qwen3_moe qwen3_next qwen3_omni_moe qwen3_omni_moe_thinker qwen3_5_moe "
    "olmoe flex_olmo deepseek_v2 deepseek_v3 deepseek_v32 glm4_moe glm4_moe_lite glm4v_moe "
    "glm_moe_dsa jamba minimax minimax_m2 phimoe dots1 ernie4_5_moe hunyuan_v1_moe longcat_flash "
    "exaone_moe cohere2_moe afmoe lfm2_moe kimi_linear solar_open gemma4 granitemoe "
    "granitemoeshared granitemoehybrid granitemoe_swa axk1 axk2 bailing_hybrid beam deepseek_ocr2 "
    "deepseek_v4 diffusion_gemma dots3_note ernie4_5_vl_moe flint glm5_next hy_v3 hy_v4 kolibri1 "
    "laguna mellum mimo_v2_flash minimax_m3_vl mistral4 mistral_large4 qwen4_exp step3p7 "
    "unlimited_ocr zaya"
)
_COLUMNS = _families("llama4 aria openai_privacy_filter")
_EXPERTS = r"(^|\.)experts\.gate_up_proj$"
_MAMBA_2 = r"(mixer|mamba)\.in_proj$"

LAYOUTS: tuple[Layout, ...] = (
    # attention: families whose names are used in more than one way
    Layout(r"attn\.c_attn$", _THIRDS, _GPT2, axis=1, across="dim/3"),
    Layout(r"crossattention\.c_attn$", _KV, _GPT2, axis=1, across="dim/2"),
    Layout(r"attn\.c_attn$", _MULTI_QUERY, _families("gpt_bigcode"), {"multi_query": True}),
    Layout(r"attn\.c_attn$", _PER_HEAD, _families("gpt_bigcode"), {"multi_query": False},
           groups="heads"),
    Layout(r"query_key_value$", _PER_HEAD, _families(
        "gpt_neox gpt_neox_japanese bloom persimmon"), groups="heads"),
    Layout(r"query_key_value$", _PER_GROUP, _families("falcon"),
           {"new_decoder_architecture": True}, groups="kv_heads"),
    Layout(r"query_key_value$", _MULTI_QUERY, _families("falcon"),
           {"new_decoder_architecture": False, "multi_query": True}),
    Layout(r"query_key_value$", _PER_HEAD, _families("falcon"),
           {"new_decoder_architecture": False, "multi_query": False}, groups="heads"),
    Layout(r"qkv_proj$", _CODEGEN, _families("codegen"), groups="4"),
    Layout(r"qkv_proj$", _PER_HEAD, _families("minimax minimax_text_01"), groups="heads"),
    Layout(r"attention\.self\.in_proj$", _PER_HEAD, _families("deberta"), groups="heads"),
    Layout(r"self_attn\.q_proj$", (("q", "attn_q", "head_dim"), ("gate", "other", "head_dim")),
           _NEXT, groups="heads"),
    Layout(r"attn\.qkv$", _THIRDS, _families("hiera sam2_hiera_det_model sam2_vision_model sam2")),
    # published: families whose code only their checkpoints bring
    Layout(r"attn\.c_attn$", _QKV, _families("qwen")),
    Layout(r"query_key_value$", _GROUPED, _families("chatglm"), {"multi_query_attention": True}),
    Layout(r"query_key_value$", _PER_HEAD, _families("chatglm"), {"multi_query_attention": False},
           groups="heads"),
    Layout(r"attention\.wqkv$", _PER_GROUP, _families("internlm2"), groups="kv_heads"),
    Layout(r"mlp\.dense_h_to_4h$", _GATE_UP, _families("chatglm")),
    # attention: names that mean blocks of queries, keys and values wherever they were met
    Layout(r"(^|[._])(qkv_proj|Wqkv|qkv|W_pack|att_proj)$", _QKV),
    Layout(r"(^|[._])(Wqkv|qkv|qkv_linear|W_pack|att_proj|in_proj_weight)$", _THIRDS,
           across="dim/3"),
    Layout(r"(^|\.)to_kv$", _KV),
    # published: GGUF, where every fused attention was put into blocks of queries, keys and values
    Layout(r"blk\.#\.ffn_up$", (
        ("gate", "mlp_gate", "intermediate_size"), ("up", "mlp_up", "intermediate_size")),
           _families("phi3 chatglm glm4")),
    Layout(r"blk\.#\.ssm_in$", _equal("x z", "other other"), _families("mamba jamba")),
    Layout(r"blk\.#\.ssm_x$", (
        ("dt", "other", "ssm_time_step_rank"), ("B", "other", "ssm_state_size"),
        ("C", "other", "ssm_state_size")), _families("mamba jamba")),
    Layout(r"blk\.#\.ssm_in$", _state_space(
        "ssm_inner_size", "ssm_group_count*ssm_state_size", "ssm_time_step_rank"),
           _families("mamba2 falcon-h1 granitehybrid nemotron_h")),
    # feed-forward
    Layout(r"(?<!experts\.)gate_up_proj$", _GATE_UP),
    Layout(r"up_gate_proj$", _UP_GATE),
    Layout(r"feed_forward_\w+\.gate_up_proj$", _UP_GATE, _families("phi4_multimodal_audio")),
    Layout(r"shared_mlp\.input_linear$", _GATE_UP, _GRANITE),
    Layout(r"(mlp|ffn)\.w12$", _GATE_UP),
    Layout(r"mlp\.ff_proj$", _UP_GATE, _families("molmo2")),
    Layout(r"decoder\..*mlp\.fc1$", _UP_GATE, _families("moonshine")),
    Layout(r"mlp\.Wi$", _GATE_UP, _families("modernbert modernbert-decoder")),
    Layout(r"mlp\.weights_in$", _GATE_UP, _families("dinov2 dinov2_with_registers")),
    # experts, one by one of a stack
    Layout(_EXPERTS, _INTERLEAVED, _families("gpt_oss"), groups="dim/2", across="hidden_size"),
    Layout(_EXPERTS, _INTERLEAVED, _families("gpt_oss"), axis=1, groups="dim/2",
           across="hidden_size"),
    Layout(_EXPERTS, _GATE_UP, _ROWS, across="hidden_size"),
    Layout(_EXPERTS, _GATE_UP, _COLUMNS, axis=1, across="hidden_size"),
    Layout(r"experts\.fc1$", _GATE_UP, _families("aria"), axis=1, across="hidden_size"),
    # in memory and on disk
    Layout(_EXPERTS, _GATE_UP, _families("qwen3_vl_moe"), across="hidden_size"),
    Layout(_EXPERTS, _GATE_UP, _families("qwen3_vl_moe"), axis=1, across="hidden_size"),
    Layout(r"block_sparse_moe\.input_linear$", _GATE_UP, _GRANITE, across="hidden_size"),
    Layout(r"mlp\.input_linear$", _GATE_UP, _families("jetmoe"), across="hidden_size"),
    # multi-head latent attention
    Layout(r"kv_a_proj_with_mqa$|attn_kv_a_mqa$", (
        ("latent", "attn_kv", "kv_lora_rank"), ("rope", "attn_k", "qk_rope_head_dim"))),
    Layout(r"kv_b_proj$|attn_kv_b$", (
        ("k", "attn_k", "qk_nope_head_dim"), ("v", "attn_v", "v_head_dim")), groups="heads"),
    Layout(r"(^|\.)q_b_proj$|attn_q_b$|self_attn\.q_proj$", (
        ("nope", "attn_q", "qk_nope_head_dim"), ("rope", "attn_q", "qk_rope_head_dim")),
           groups="heads"),
    # state spaces, gated convolutions and linear attention
    Layout(r"(mixer|mamba)\.in_proj$", _equal("x z", "other other"), _MAMBA),
    Layout(r"(mixer|mamba)\.in_proj$", (("x", "other", "1"), ("z", "other", "1")),
           _families("zamba"), groups="dim/2"),
    Layout(r"mixer\.x_proj$", (
        ("dt", "other", "time_step_rank"), ("B", "other", "state_size"),
        ("C", "other", "state_size")), _families("mamba falcon_mamba")),
    Layout(r"mamba\.x_proj$", (
        ("dt", "other", "mamba_dt_rank"), ("B", "other", "mamba_d_state"),
        ("C", "other", "mamba_d_state")), _families("jamba")),
    Layout(_MAMBA_2, _state_space("expand*hidden_size", "n_groups*state_size", "num_heads"),
           _families("mamba2")),
    Layout(_MAMBA_2, _state_space(
        "mamba_expand*hidden_size", "mamba_n_groups*mamba_d_state", "mamba_n_heads"),
           _families("bamba granitemoehybrid")),
    Layout(_MAMBA_2, _state_space("mamba_d_ssm", "mamba_n_groups*mamba_d_state", "mamba_n_heads"),
           _families("falcon_h1")),
    Layout(_MAMBA_2, _state_space(
        "mamba_expand*hidden_size", "mamba_ngroups*mamba_d_state", "n_mamba_heads"),
           _families("zamba2")),
    Layout(_MAMBA_2, _state_space(
        "mamba_num_heads*mamba_head_dim", "n_groups*ssm_state_size", "mamba_num_heads"),
           _families("nemotron_h")),
    Layout(r"conv\.in_proj$", _equal("B C x", "other other other"), _families("lfm2 lfm2_moe")),
    Layout(r"linear_attn\.in_proj_qkvz$", (
        ("q", "attn_q", "linear_key_head_dim"), ("k", "attn_k", "linear_key_head_dim"),
        ("v", "attn_v", _VALUE_GROUP), ("z", "other", _VALUE_GROUP)),
           _families("qwen3_next"), groups="linear_num_key_heads"),
    Layout(r"linear_attn\.in_proj_ba$", (
        ("b", "other", "linear_num_value_heads/linear_num_key_heads"),
        ("a", "other", "linear_num_value_heads/linear_num_key_heads")),
           _families("qwen3_next"), groups="linear_num_key_heads"),
    Layout(r"linear_attn\.in_proj_qkv$", (
        ("q", "attn_q", "linear_num_key_heads*linear_key_head_dim"),
        ("k", "attn_k", "linear_num_key_heads*linear_key_head_dim"),
        ("v", "attn_v", "linear_num_value_heads*linear_value_head_dim")),
           _families("qwen3_5 qwen3_5_moe")),
)  # fmt: skip

STACKS: tuple[Stack, ...] = (
    Stack(r"experts\.mlp\.(w1|v1|w2)$", _families("dbrx"), "moe_num_experts"),
)
