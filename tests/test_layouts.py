"""Every row of the layout table against what the layers do, on files as transformers writes them.

``behaviour`` finds out which outputs of a fused layer are queries, keys, values, gates and so on
from what they reach in a running model; the parts are what weightscope reads from the file.
"""

from __future__ import annotations

import importlib
import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from behaviour import (
    attention,
    build,
    dump,
    is_affine_in,
    layer_width,
    on_disk,
    outputs_of,
    parts_of,
    places,
    reaching,
    save,
    spread,
)
from checkpoints import gaussian, write_file
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import weightscope
from weightscope.checkpoint import Checkpoint
from weightscope.expressions import read_matrix
from weightscope.layouts.divide import divide, fitted, size_of
from weightscope.layouts.facts import Facts
from weightscope.layouts.fused import LAYOUTS, STACKS, Layout
from weightscope.matrix import Matrix, Part
from weightscope.select import select
from weightscope.sources import open_model
from weightscope.tensor import TensorRef

Config = dict[str, Any]

WIDTH, HEADS = 32, 4
GPT: Config = {
    "vocab_size": 40, "n_embd": WIDTH, "n_layer": 1, "n_head": HEADS, "n_positions": 16,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
PLAIN: Config = {
    "vocab_size": 40, "hidden_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": HEADS,
    "intermediate_size": 24, "max_position_embeddings": 16,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GROUPED: Config = {**PLAIN, "num_key_value_heads": 2}
EXPERTS: Config = {
    **GROUPED, "num_local_experts": 3, "num_experts": 3, "n_routed_experts": 3, "n_group": 1,
    "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24, "head_dim": 8,
    "decoder_sparse_step": 1, "shared_expert_intermediate_size": 12,
}  # fmt: skip
LATENT: Config = {
    **EXPERTS, "num_key_value_heads": HEADS, "head_dim": 4, "first_k_dense_replace": 0,
    "kv_lora_rank": 12, "q_lora_rank": 20, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6,
    "v_head_dim": 10,
}  # fmt: skip
SPACE: Config = {"vocab_size": 40, "hidden_size": WIDTH, "num_hidden_layers": 1, "pad_token_id": 0}
INNER: Config = {
    **GROUPED, "mamba_d_state": 5, "mamba_n_groups": 2, "mamba_n_heads": 8, "mamba_d_head": 8,
    "mamba_chunk_size": 4,
}  # fmt: skip
LINEAR: Config = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 6,
    "linear_value_head_dim": 5,
}  # fmt: skip
DBRX: Config = {
    "vocab_size": 40, "d_model": WIDTH, "n_layers": 1, "n_heads": HEADS, "max_seq_len": 16,
    "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 99.0},
    "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 3, "moe_top_k": 2,
                   "ffn_act_fn": {"name": "silu"}},
}  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """Keep transformers from talking about configurations that are tiny."""
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity_warning()


def on_tokens(model: nn.Module) -> Callable[[int], torch.Tensor]:
    """Runs a language model on so many tokens."""
    return lambda n: model(torch.arange(3, 3 + n)[None], use_cache=False)[0][0]


def on_states(attention: nn.Module, width: int, **more: Any) -> Callable[[int], torch.Tensor]:
    """Runs one attention module on so many states."""
    states = torch.from_numpy(np.random.default_rng(1).standard_normal((4, width)))
    dtype = next(attention.parameters()).dtype

    def run(n: int) -> torch.Tensor:
        answer = attention(states[None, :n].to(dtype), **more)
        return torch.as_tensor(answer[0] if isinstance(answer, tuple) else answer)[0]

    return run


def the_module(model: nn.Module, ending: str) -> tuple[str, nn.Module]:
    """The one submodule whose path ends so."""
    [found] = [(path, m) for path, m in model.named_modules() if path.endswith(ending)]
    return found


def compare_parts(checkpoint: Checkpoint, layer: nn.Module, path: str, truth: Any) -> None:
    """The parts on disk are those rows, in their order, and have their singular values."""
    # the outermost module may have another name on the hub
    parts = parts_of(checkpoint, on_disk(checkpoint, f"{path.partition('.')[2]}.weight"))
    assert {label: outputs_of(part, layer) for label, part in parts.items()} == truth
    assert sum(map(len, truth.values())) == layer_width(layer)
    weight = layer.weight.detach().double()
    rows = weight.T if parts and layer_width(layer) != weight.shape[0] else weight
    for label, part in parts.items():
        true = np.linalg.svd(rows[sorted(truth[label])].numpy(), compute_uv=False)
        ours = np.linalg.svd(part.double().numpy(), compute_uv=False)
        np.testing.assert_allclose(ours, true, rtol=1e-12, atol=1e-13 * true[0])


# --- fused attention -------------------------------------------------------------------------

ATTENTION: dict[str, tuple[str, Config, str]] = {
    "gpt2": ("gpt2", GPT, "attn.c_attn"),
    "openai-gpt": ("openai-gpt", GPT, "attn.c_attn"),
    "imagegpt": ("imagegpt", GPT, "attn.c_attn"),
    "gpt_bigcode-multi-query": ("gpt_bigcode", {**GPT, "multi_query": True}, "attn.c_attn"),
    "gpt_bigcode-per-head": ("gpt_bigcode", {**GPT, "multi_query": False}, "attn.c_attn"),
    "gpt_neox": ("gpt_neox", PLAIN, "query_key_value"),
    "gpt_neox_japanese": ("gpt_neox_japanese", {**PLAIN, "intermediate_multiple_size": 2},
                          "query_key_value"),
    "bloom": ("bloom", {**PLAIN, "n_layer": 1, "n_head": HEADS}, "query_key_value"),
    "persimmon": ("persimmon", PLAIN, "query_key_value"),
    "falcon-grouped": ("falcon", {**PLAIN, "new_decoder_architecture": True, "num_kv_heads": 2},
                       "query_key_value"),
    "falcon-multi-query": ("falcon", {**PLAIN, "new_decoder_architecture": False,
                                      "multi_query": True}, "query_key_value"),
    "falcon-per-head": ("falcon", {**PLAIN, "new_decoder_architecture": False, "alibi": True,
                                   "multi_query": False}, "query_key_value"),
    "codegen": ("codegen", {**GPT, "rotary_dim": 4}, "qkv_proj"),
    "mpt": ("mpt", {"vocab_size": 40, "d_model": WIDTH, "n_layers": 1, "n_heads": HEADS,
                    "max_seq_len": 16, "expansion_ratio": 2}, "Wqkv"),
    "dbrx": ("dbrx", DBRX, "Wqkv"),
    "phi3": ("phi3", GROUPED, "qkv_proj"),
    "phi3-narrow-heads": ("phi3", {**GROUPED, "head_dim": 6, "partial_rotary_factor": 1.0},
                          "qkv_proj"),
    "modernbert": ("modernbert", {**PLAIN, "cls_token_id": 1, "sep_token_id": 2}, "Wqkv"),
    "deberta": ("deberta", {**PLAIN, "type_vocab_size": 0}, "self.in_proj"),
}  # fmt: skip


@pytest.mark.parametrize("case", ATTENTION)
def test_queries_keys_and_values_are_what_they_do(case: str, tmp_path: Path) -> None:
    family, config, ending = ATTENTION[case]
    model = build(family, **config)
    path, layer = the_module(model, ending)
    compare_parts(save(model, tmp_path), layer, path, attention(on_tokens(model), layer))


def test_the_oracle_refuses_a_split_that_looks_right(tmp_path: Path) -> None:
    """Thirds of a per-head layout have plausible singular values; nothing but the model tells."""
    model = build("gpt_neox", **PLAIN)
    _, layer = the_module(model, "query_key_value")
    truth = attention(on_tokens(model), layer)
    thirds = layer.weight.chunk(3)
    for label, third in zip(("[q]", "[k]", "[v]"), thirds, strict=True):
        assert outputs_of(third, layer) != truth[label]


def test_cross_attention_of_gpt2(tmp_path: Path) -> None:
    model = build("gpt2", **GPT, add_cross_attention=True)
    path, layer = the_module(model, "crossattention.c_attn")
    torch.manual_seed(1)
    states = torch.randn(1, 4, WIDTH, dtype=torch.float64)

    def call(n: int) -> torch.Tensor:
        more = {"encoder_hidden_states": states[:, :n], "use_cache": False}
        return model(torch.tensor([[3]]), **more)[0][0]

    keys_and_values, values = reaching(call, layer, 2), reaching(call, layer, 1)
    truth = {"[k]": keys_and_values - values, "[v]": values}
    compare_parts(save(model, tmp_path), layer, path, truth)


def test_a_vision_tower_is_not_divided_by_the_heads_of_the_language_model(tmp_path: Path) -> None:
    """Its own 2 heads of 12 are neither 8 heads of 3 nor the 32 channels beside it."""
    vision = {"depth": 1, "embed_dim": 24, "hidden_size": WIDTH, "num_heads": 2, "patch_size": 2}
    text = {**GROUPED, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}}
    model = build("qwen2_vl", "AutoModelForImageTextToText",
                  vision_config=vision, text_config=text)  # fmt: skip
    _, attn = the_module(model, "visual.blocks.0.attn")
    layer = attn.qkv
    angles = torch.zeros(4, 12, dtype=torch.float64)

    def call(n: int) -> torch.Tensor:
        states = torch.linspace(-1, 1, 4 * 24, dtype=torch.float64).reshape(4, 24)[:n]
        rotation = (angles[:n].cos(), angles[:n].sin())
        return attn(states, cu_seqlens=torch.tensor([0, n]), position_embeddings=rotation)

    checkpoint = save(model, tmp_path)
    compare_parts(checkpoint, layer, "visual.blocks.0.attn.qkv", attention(call, layer))
    assert all(not m.unsplit for m in select(checkpoint).matrices)


def test_vision_transformers_with_one_layer_for_all_three(tmp_path: Path) -> None:
    model = build("blip_vision_model", "BlipVisionModel", hidden_size=WIDTH, num_hidden_layers=1,
                  image_size=4, num_attention_heads=HEADS, intermediate_size=24,
                  patch_size=2)  # fmt: skip
    path, attn = the_module(model, "self_attn")
    compare_parts(
        save(model, tmp_path), attn.qkv, f"{path}.qkv", attention(on_states(attn, WIDTH), attn.qkv)
    )


@pytest.mark.parametrize("family", ["hiera", "sam2_hiera_det_model"])
def test_a_layer_whose_output_is_wider_than_its_input(family: str, tmp_path: Path) -> None:
    """Hierarchical towers widen inside attention: three equal parts, none of them square."""
    model = build(family, **WIDENING[family])
    path, layer = next((n, m) for n, m in model.named_modules()
                       if n.endswith("attn.qkv") and m.weight.shape == (96, 16))  # fmt: skip
    attn = model.get_submodule(path.removesuffix(".qkv"))
    attn.query_stride = 1 if family == "hiera" else None  # no queries pooled over tokens here,
    attn.use_mask_unit_attn = False  # and no windows
    states = torch.from_numpy(np.random.default_rng(1).standard_normal((2, 16)))

    def call(n: int) -> torch.Tensor:
        answer = attn(states[None, :n] if family == "hiera" else states[None, None, :n])
        return (answer[0] if isinstance(answer, tuple) else answer).reshape(n, -1)

    compare_parts(save(model, tmp_path), layer, path, attention(call, layer))


WIDENING: dict[str, Config] = {
    "hiera": {
        "embed_dim": 16, "image_size": [8, 8], "patch_size": [3, 3], "patch_stride": [2, 2],
        "patch_padding": [1, 1], "depths": [1, 1], "num_heads": [1, 2], "query_stride": [2, 2],
        "num_query_pool": 1, "masked_unit_size": [2, 2], "masked_unit_attention": [True, False],
        "embed_dim_multiplier": 2.0, "mlp_ratio": 2.0},
    "sam2_hiera_det_model": {
        "hidden_size": 16, "image_size": [16, 16], "blocks_per_stage": [1, 1],
        "embed_dim_per_stage": [16, 32], "num_attention_heads_per_stage": [1, 2],
        "window_size_per_stage": [2, 2], "global_attention_blocks": [],
        "num_query_pool_stages": 1, "window_positional_embedding_background_size": [2, 2]},
}  # fmt: skip


def test_multi_head_attention_of_torch(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(WIDTH, HEADS, bias=False, batch_first=True, dtype=torch.float64)
    checkpoint = open_model(
        write_file(tmp_path / "m.safetensors",
                   {f"block.attn.{k}": v.detach() for k, v in layer.state_dict().items()})
    )  # fmt: skip
    parts = parts_of(checkpoint, "block.attn.in_proj_weight")
    states = torch.randn(3, 5, WIDTH, dtype=torch.float64)

    def heads(x: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
        return (x @ part.T).reshape(3, 5, HEADS, -1).transpose(1, 2)

    q, k, v = (heads(states, parts[label]) for label in ("[q]", "[k]", "[v]"))
    mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(3, 5, -1)
    expected = mixed @ layer.out_proj.weight.T
    torch.testing.assert_close(layer(states, states, states)[0], expected, rtol=1e-12, atol=1e-12)


def alone(folder: Path, config: Config, tensors: dict[str, torch.Tensor]) -> Checkpoint:
    """A file with a few tensors beside a configuration."""
    write_file(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return open_model(folder)


def module_alone(folder: Path, config: Config, attn: nn.Module, name: str) -> Checkpoint:
    """One attention module with random weights, and a file with its fused layer."""
    attn.eval().requires_grad_(False)
    torch.manual_seed(0)
    for parameter in attn.parameters():
        nn.init.normal_(parameter, std=0.3)
    return alone(folder, config, {f"{name}.weight": attn.get_submodule(name).weight.detach()})


def test_attention_of_bark(tmp_path: Path) -> None:
    from transformers.models.bark.modeling_bark import BarkSelfAttention

    attn = BarkSelfAttention(SimpleNamespace(dropout=0, hidden_size=WIDTH, num_heads=HEADS,
                                             bias=False))  # fmt: skip
    checkpoint = module_alone(tmp_path, {"model_type": "bark"}, attn, "att_proj")
    truth = attention(on_states(attn, WIDTH), attn.att_proj)
    compare_parts(checkpoint, attn.att_proj, ".att_proj", truth)


def test_attention_of_layoutlmv2(tmp_path: Path) -> None:
    from transformers.models.layoutlmv2.modeling_layoutlmv2 import LayoutLMv2SelfAttention

    config = {"model_type": "layoutlmv2", "hidden_size": WIDTH, "num_attention_heads": HEADS}
    attn = LayoutLMv2SelfAttention(SimpleNamespace(
        **config, fast_qkv=True, attention_probs_dropout_prob=0, has_relative_attention_bias=False,
        has_spatial_attention_bias=False))  # fmt: skip
    checkpoint = module_alone(tmp_path, config, attn, "qkv_linear")
    call = on_states(attn, WIDTH, attention_mask=torch.zeros(1, 1, 1, 1, dtype=torch.bool))
    compare_parts(checkpoint, attn.qkv_linear, ".qkv_linear", attention(call, attn.qkv_linear))


def test_decision_transformers_are_gpt2(tmp_path: Path) -> None:
    model = build("decision_transformer", hidden_size=WIDTH, n_layer=1, n_head=HEADS)
    path, attn = the_module(model, "h.0.attn")
    truth = attention(on_states(attn, WIDTH), attn.c_attn)
    compare_parts(save(model, tmp_path), attn.c_attn, f"{path}.c_attn", truth)


def test_keys_and_values_of_resamplers_and_conformers(tmp_path: Path) -> None:
    from transformers.models.granite_speech import modeling_granite_speech as granite

    attn = granite.GraniteSpeechConformerAttention(SimpleNamespace(
        dim_head=8, num_heads=HEADS, hidden_dim=WIDTH, max_pos_emb=8, context_size=2,
        dropout=0))  # fmt: skip
    checkpoint = module_alone(tmp_path, {"model_type": "granite_speech"}, attn, "to_kv")
    states = torch.randn(1, 2, WIDTH)

    def call(n: int) -> torch.Tensor:
        attn.context_size = n
        return attn(states[:, :n], torch.zeros(n, n, dtype=torch.long))[0]

    values = reaching(call, attn.to_kv, 1)
    truth = {"[k]": reaching(call, attn.to_kv, 2) - values, "[v]": values}
    compare_parts(checkpoint, attn.to_kv, ".to_kv", truth)


# --- families whose code only their checkpoints bring: written out from what they published ----


def internlm2(x: torch.Tensor) -> list[torch.Tensor]:
    """modeling_internlm2.py: "b q (h gs d) -> b q h gs d", gs = 2 + heads per key head."""
    grouped = x.view(2, 2 + 2, 8)
    return [grouped[:, :2], grouped[:, -2], grouped[:, -1]]


def chatglm_grouped(x: torch.Tensor) -> list[torch.Tensor]:
    """modeling_chatglm.py with multi_query_attention: heads, then two groups, each of 8."""
    return list(x.split([4 * 8, 2 * 8, 2 * 8], dim=-1))


def chatglm_per_head(x: torch.Tensor) -> list[torch.Tensor]:
    """modeling_chatglm.py without: per head, split into three along the last dimension."""
    return list(x.view(4, 3 * 8).chunk(3, dim=-1))


def blocks(x: torch.Tensor) -> list[torch.Tensor]:
    """modeling_qwen.py: split(split_size, dim=2); modeling_baichuan.py: unflatten(-1, (3, d))."""
    return list(x.unflatten(-1, (3, 32)).unbind(-2))


def lightning(x: torch.Tensor) -> list[torch.Tensor]:
    """modeling_minimax_text_01.py: view(..., heads, -1), split([head_dim] * 3, dim=3)."""
    return list(x.view(4, -1).split([8] * 3, dim=1))


HEAD_FACTS: Config = {"hidden_size": WIDTH, "num_attention_heads": HEADS}
CHATGLM: Config = {**HEAD_FACTS, "model_type": "chatglm", "kv_channels": 8,
                   "multi_query_group_num": 2}  # fmt: skip
PUBLISHED: tuple[tuple[str, Config, int, Callable[[torch.Tensor], list[torch.Tensor]]], ...] = (
    ("attention.wqkv", {**HEAD_FACTS, "model_type": "internlm2", "num_key_value_heads": 2}, 64,
     internlm2),
    ("attention.wqkv", {"model_type": "internvl_chat", "llm_config": {
        **HEAD_FACTS, "model_type": "internlm2", "num_key_value_heads": 2}}, 64, internlm2),
    ("self_attention.query_key_value", {**CHATGLM, "multi_query_attention": True}, 64,
     chatglm_grouped),
    ("self_attention.query_key_value", {**CHATGLM, "multi_query_attention": False}, 96,
     chatglm_per_head),
    ("attn.c_attn", {**HEAD_FACTS, "model_type": "qwen", "kv_channels": 8}, 96, blocks),
    ("self_attn.W_pack", {**HEAD_FACTS, "model_type": "baichuan"}, 96, blocks),
    ("self_attn.qkv_proj", {**HEAD_FACTS, "model_type": "minimax_text_01", "head_dim": 8}, 96,
     lightning),
)  # fmt: skip


@pytest.mark.parametrize("case", range(len(PUBLISHED)))
def test_published_formulas(case: int, tmp_path: Path) -> None:
    name, config, rows, formula = PUBLISHED[case]
    weight = gaussian(rows, WIDTH, dtype=torch.float64)
    parts = parts_of(alone(tmp_path, config, {f"m.{name}.weight": weight}), f"m.{name}.weight")
    taken = [set(t.ravel().tolist()) for t in formula(torch.arange(rows))]
    assert list(parts) == ["[k]", "[q]", "[v]"]
    for label, expected in zip(("[q]", "[k]", "[v]"), taken, strict=True):
        assert torch.equal(parts[label], weight[sorted(expected)])


def test_the_gate_of_chatglm_comes_first(tmp_path: Path) -> None:
    """swiglu of modeling_chatglm.py: chunk(2), then silu of the first times the second."""
    weight = gaussian(48, WIDTH)
    name = "encoder.layers.0.mlp.dense_h_to_4h.weight"
    parts = parts_of(alone(tmp_path, CHATGLM, {name: weight}), name)
    assert torch.equal(parts["[gate]"], weight.chunk(2)[0])
    assert torch.equal(parts["[up]"], weight.chunk(2)[1])


def linear_attention(model: nn.Module, layer: nn.Module, probe: nn.Module) -> dict[str, set[int]]:
    """Queries reach no later token, a value one channel of it, a key all channels of its head."""
    reached = spread(on_tokens(model), layer, probe)
    values = {i for i, n in reached.items() if n == 1}
    keys = set(reached) - values
    return {"[q]": set(range(layer_width(layer))) - values - keys, "[k]": keys, "[v]": values}


def test_linear_attention_of_minimax(tmp_path: Path) -> None:
    model = build("minimax", **EXPERTS, layer_types=["linear_attention"], block_size=4)
    path, layer = the_module(model, "qkv_proj")
    truth = linear_attention(model, layer, the_module(model, "self_attn.norm")[1])
    compare_parts(save(model, tmp_path), layer, path, truth)


@pytest.mark.parametrize("family", ["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"])
def test_queries_that_bring_their_gate(family: str, tmp_path: Path) -> None:
    """With one token the query has no say, its gate has."""
    config = {**EXPERTS, "layer_types": ["full_attention"], "shared_expert_intermediate_size": 8}
    model = build(family, **config)
    path, layer = the_module(model, "self_attn.q_proj")
    gates = reaching(on_tokens(model), layer, 1)
    truth = {"[q]": set(range(64)) - gates, "[gate]": gates}
    compare_parts(save(model, tmp_path), layer, path, truth)


# --- layers that transformers takes apart when it loads them, and puts together when it saves --


def test_fused_on_disk_and_apart_in_memory(tmp_path: Path) -> None:
    """The parts of the file are the very weights of the module."""
    for family, config, tensor, names in APART:
        model = build(family, **config)
        live = dict(model.named_parameters())
        checkpoint = save(model, tmp_path / f"{family}-{tensor}")
        parts = parts_of(checkpoint, on_disk(checkpoint, tensor))
        assert set(parts) == set(names), family
        for label, name in names.items():
            [weight] = [w for path, w in live.items() if path.endswith(name)]
            assert torch.equal(parts[label], weight), (family, label)


_SEPARATE = {"[q]": "q_proj.weight", "[k]": "k_proj.weight", "[v]": "v_proj.weight"}
_GATED = {"[gate]": "mlp.gate_proj.weight", "[up]": "mlp.up_proj.weight"}
APART: tuple[tuple[str, Config, str, dict[str, str]], ...] = (
    ("nomic_bert", PLAIN, "Wqkv.weight", _SEPARATE),
    ("gte", PLAIN, "qkv_proj.weight", _SEPARATE),
    ("gte", PLAIN, "up_gate_proj.weight", _GATED),
    ("dinov2", {**PLAIN, "use_swiglu_ffn": True, "image_size": 4, "patch_size": 2},
     "mlp.weights_in.weight", _GATED),
    ("dinov2_with_registers", {**PLAIN, "use_swiglu_ffn": True, "image_size": 4, "patch_size": 2},
     "mlp.weights_in.weight", _GATED),
    ("jina_embeddings_v3", PLAIN, "Wqkv.weight", _SEPARATE),
    ("radio", {**PLAIN, "image_size": 8, "patch_size": 2}, "attn.qkv.weight", _SEPARATE),
    ("sapiens2", {**GROUPED, "image_size": 8, "patch_size": 2}, "ffn.w12.weight", _GATED),
    ("molmo2_text", {**GROUPED, "head_dim": 8}, "att_proj.weight", _SEPARATE),
    ("molmo2_text", {**GROUPED, "head_dim": 8}, "ff_proj.weight", _GATED),
    ("hrm_text", PLAIN, "L_module.layers.0.mlp.gate_up_proj.weight",
     {"[gate]": "L_module.layers.0.mlp.gate_proj.weight",
      "[up]": "L_module.layers.0.mlp.up_proj.weight"}),
)  # fmt: skip


# --- gates and experts -----------------------------------------------------------------------

# family, configuration, block, weight in memory, tensor on disk where that is fused
GATED: dict[str, tuple[str, Config, str, str, str]] = {
    "phi3": ("phi3", GROUPED, "mlp", "gate_up_proj.weight", "gate_up_proj.weight"),
    "glm": ("glm", {**GROUPED, "head_dim": 8}, "mlp", "gate_up_proj.weight",
            "gate_up_proj.weight"),
    "glm4": ("glm4", {**GROUPED, "head_dim": 8}, "mlp", "gate_up_proj.weight",
             "gate_up_proj.weight"),
    "modernbert": ("modernbert", {**PLAIN, "cls_token_id": 1, "sep_token_id": 2}, "mlp",
                   "mlp.Wi.weight", "mlp.Wi.weight"),
    "modernbert_decoder": ("modernbert-decoder", PLAIN, "mlp", "mlp.Wi.weight", "mlp.Wi.weight"),
    "phi4-audio": ("phi4_multimodal_audio", {
        "hidden_size": WIDTH, "num_blocks": 1, "num_attention_heads": HEADS,
        "intermediate_size": 24, "ext_pw_out_channel": 32, "nemo_conv_channels": 32,
        "depthwise_separable_out_channel": 32, "depthwise_multiplier": 1}, "feed_forward_in",
        "feed_forward_in.gate_up_proj.weight", "feed_forward_in.gate_up_proj.weight"),
    "moonshine": ("moonshine", {**PLAIN, "encoder_num_hidden_layers": 1,
                                "decoder_num_hidden_layers": 1, "encoder_num_attention_heads": 4,
                                "decoder_num_attention_heads": 4}, "decoder.layers.0.mlp",
                  "decoder.layers.0.mlp.fc1.weight", "decoder.layers.0.mlp.fc1.weight"),
    "mixtral": ("mixtral", EXPERTS, "mlp", "experts.gate_up_proj", ""),
    "qwen2_moe": ("qwen2_moe", EXPERTS, "mlp", "experts.gate_up_proj", ""),
    "qwen3_moe": ("qwen3_moe", EXPERTS, "mlp", "experts.gate_up_proj", ""),
    "deepseek_v3": ("deepseek_v3", LATENT, "mlp", "experts.gate_up_proj", ""),
    "qwen3_vl_moe": ("qwen3_vl_moe_text", {**EXPERTS, "rope_parameters": {
        "rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}, "mlp",
        "experts.gate_up_proj", "experts.gate_up_proj"),
    "gpt_oss": ("gpt_oss", EXPERTS, "mlp", "experts.gate_up_proj", "experts.gate_up_proj"),
    "llama4": ("llama4_text", {**EXPERTS, "interleave_moe_layer_step": 1,
                               "intermediate_size_mlp": 24}, "feed_forward",
               "experts.gate_up_proj", "experts.gate_up_proj"),
    "openai_privacy_filter": ("openai_privacy_filter", EXPERTS, "mlp", "experts.gate_up_proj",
                              "experts.gate_up_proj"),
    "aria": ("aria_text", {**EXPERTS, "moe_num_experts": 3, "moe_topk": 2,
                           "moe_num_shared_experts": 1}, "mlp", "experts.gate_up_proj",
             "experts.fc1.weight"),
    "granitemoe": ("granitemoe", EXPERTS, "block_sparse_moe", "experts.gate_up_proj",
                   "input_linear.weight"),
    "granitemoeshared": ("granitemoeshared", {**EXPERTS, "shared_intermediate_size": 20},
                         "shared_mlp", "shared_mlp.input_linear.weight",
                         "shared_mlp.input_linear.weight"),
    "granitemoe_swa": ("granitemoe_swa", EXPERTS, "block_sparse_moe", "experts.gate_up_proj",
                       ""),
    "granitemoehybrid": ("granitemoehybrid", {**INNER, **EXPERTS, "shared_intermediate_size": 20,
                                              "layer_types": ["attention"]}, "block_sparse_moe",
                         "experts.gate_up_proj", "block_sparse_moe.input_linear.weight"),
    "jetmoe": ("jetmoe", {**EXPERTS, "kv_channels": 8}, "mlp", "mlp.input_linear.weight",
               "mlp.input_linear.weight"),
}  # fmt: skip


@pytest.mark.parametrize("case", GATED)
def test_gates_and_what_they_gate_are_what_they_do(case: str, tmp_path: Path) -> None:
    """What a block says is affine in the ungated half, of all experts at once, not in the gates."""
    family, config, block_path, name, tensor = GATED[case]
    task = {"phi4_multimodal_audio": "Phi4MultimodalAudioModel"}.get(family, "")
    model = build(family, task, **config)
    block = next(m for path, m in model.named_modules() if path.endswith(block_path))
    [weight] = [w for path, w in model.named_parameters() if path.endswith(name)]
    states = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 6, WIDTH)) / 4)

    def run() -> torch.Tensor:
        answer = block(states)
        return (answer[0] if isinstance(answer, tuple) else answer).clone()

    files = {name: dump(model, tmp_path / "memory")}
    if tensor:
        files[tensor] = save(model, tmp_path / "hub")
    for ending, checkpoint in files.items():
        gate, up = masks(weight, parts_of(checkpoint, on_disk(checkpoint, ending)))
        assert torch.equal(gate, ~up)
        assert is_affine_in(run, weight, up) and not is_affine_in(run, weight, gate)


def masks(
    weight: torch.Tensor, parts: dict[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Where a weight in memory has the gates and the halves they gate, of all its experts."""
    found = {"[gate]": torch.zeros_like(weight, dtype=torch.bool)}
    found["[up]"] = found["[gate]"].clone()
    experts = weight.shape[0] if weight.dim() == 3 else 1
    assert len(parts) == 2 * experts
    for label, mask in found.items():
        for e in range(experts):
            stacked = weight.dim() == 3
            part = parts[f"[{e}]{label}" if stacked else label]
            where = mask[e] if stacked else mask
            where |= places(part, weight[e] if stacked else weight)
    return found["[gate]"], found["[up]"]


def test_experts_whose_file_has_the_other_orientation(tmp_path: Path) -> None:
    """Qwen3-VL's experts lie as columns in the hub's files, and transformers turns them round."""
    vision = {"depth": 1, "hidden_size": 24, "num_heads": 2, "patch_size": 2, "out_hidden_size": 32,
              "intermediate_size": 24, "deepstack_visual_indexes": [0],
              "num_position_embeddings": 4}  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    task, name = "AutoModelForImageTextToText", "experts.gate_up_proj"
    model = build("qwen3_vl_moe", task, vision_config=vision,
                  text_config={**EXPERTS, "rope_parameters": rope})  # fmt: skip
    save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    turned = {key: tensor.mT.contiguous() if "experts" in key else tensor
              for key, tensor in tensors.items()}  # fmt: skip
    save_file(turned, tmp_path / "model.safetensors", {"format": "pt"})
    loaded = getattr(transformers, task).from_pretrained(tmp_path, dtype=torch.float64)
    [weight] = [p for path, p in loaded.named_parameters() if path.endswith(name)]
    [original] = [p for path, p in model.named_parameters() if path.endswith(name)]
    assert torch.equal(weight, original) and weight.shape == (3, 48, 32)
    checkpoint = open_model(tmp_path)
    assert {r.shape for r in checkpoint.tensors if r.name.endswith(name)} == {(3, 32, 48)}
    gate, up = masks(weight, parts_of(checkpoint, on_disk(checkpoint, name)))
    assert gate[:, :24].all() and up[:, 24:].all()  # which half is which: tested on the text model


def test_interleaved_experts_decoded_as_rows(tmp_path: Path) -> None:
    """The four-bit form of gpt-oss decodes to the transpose of the sixteen-bit one."""
    weight, name = gaussian(3, 32, 48), "model.layers.0.mlp.experts.gate_up_proj"
    config = {"model_type": "gpt_oss", "hidden_size": 32}
    columns = parts_of(alone(tmp_path / "a", config, {name: weight}), name)
    rows = parts_of(alone(tmp_path / "b", config, {name: weight.mT.contiguous()}), name)
    assert set(rows) == set(columns) and len(rows) == 6
    assert all(torch.equal(rows[label], columns[label].T) for label in rows)


def test_flattened_experts_of_dbrx(tmp_path: Path) -> None:
    """What one expert says depends on its own rows, affinely in v1 and w2, not in w1."""
    model = build("dbrx", **DBRX)
    path, experts = the_module(model, "ffn.experts")
    checkpoint = save(model, tmp_path)
    states = torch.from_numpy(np.random.default_rng(1).standard_normal((1, 5, WIDTH)) / 4)
    parts = {n: parts_of(checkpoint, f"{path}.mlp.{n}") for n in ("w1", "v1", "w2")}
    for e in range(3):

        def run(e: int = e) -> torch.Tensor:
            return experts(states, torch.full((5, 1), e), torch.ones(5, 1, dtype=torch.float64))

        for name, affine in (("w1", False), ("v1", True), ("w2", True)):
            weight = getattr(experts.mlp, name)
            mask = places(parts[name][f"[{e}]"], weight)
            assert mask.sum() == weight.numel() / 3
            assert is_affine_in(run, weight, mask) == affine
            before = run()
            kept = weight.clone()
            weight[~mask] = 0
            assert torch.equal(run(), before)
            weight.copy_(kept)
    rows = [m for m in select(checkpoint).matrices if ".experts.mlp.v1" in m.name]
    assert [(m.name.rpartition("v1")[2], m.expert, m.role) for m in rows] == [
        (f"[{e}]", e, "expert_up") for e in range(3)
    ]
    assert {m.module for m in rows} == {"transformer.blocks.#.ffn.experts.mlp.v1"}


# --- multi-head latent attention -------------------------------------------------------------


@pytest.mark.parametrize("family", ["deepseek_v2", "deepseek_v3", "minicpm3"])
@pytest.mark.parametrize("query_rank", [20, None])
def test_latent_attention(family: str, query_rank: int | None, tmp_path: Path) -> None:
    model = build(family, **{**LATENT, "q_lora_rank": query_rank})
    checkpoint, call = save(model, tmp_path), on_tokens(model)
    found = {path.rpartition(".")[2]: (path, m) for path, m in model.named_modules()
             if "self_attn" in path and ".1." not in path}  # fmt: skip
    path, layer = found["kv_b_proj"]
    values = reaching(call, layer, 1)
    compare_parts(checkpoint, layer, path,
                  {"[k]": reaching(call, layer, 2) - values, "[v]": values})  # fmt: skip
    path, layer = found["kv_a_proj_with_mqa"]
    latent = reaching(call, layer, 1)  # the shared rotary key is no part of any value
    rope = set(range(layer_width(layer))) - latent
    compare_parts(checkpoint, layer, path, {"[latent]": latent, "[rope]": rope})
    layer.weight[sorted(rope)] = 0  # without rotary keys, rotary queries say nothing
    path, layer = found["q_b_proj" if query_rank else "q_proj"]
    nope = reaching(call, layer, 2, at=1)
    everything = set(range(layer_width(layer)))
    compare_parts(checkpoint, layer, path, {"[nope]": nope, "[rope]": everything - nope})


# --- state spaces and linear attention -------------------------------------------------------

MAMBA: dict[str, tuple[str, Config]] = {
    "mamba": ("mamba", {**SPACE, "state_size": 5, "time_step_rank": 3}),
    "mamba-of-default-rank": ("mamba", {**SPACE, "state_size": 5}),
    "falcon_mamba": ("falcon_mamba", {**SPACE, "state_size": 5, "time_step_rank": 3}),
    "jamba": ("jamba", {**GROUPED, "attn_layer_offset": 3, "attn_layer_period": 4,
                        "expert_layer_offset": 3, "expert_layer_period": 4, "mamba_d_state": 5,
                        "mamba_dt_rank": 3, "use_mamba_kernels": False, "num_experts": 1}),
}  # fmt: skip
MAMBA_2: dict[str, tuple[str, Config]] = {
    "mamba2": ("mamba2", {**SPACE, "state_size": 5, "num_heads": 8, "head_dim": 8, "n_groups": 2,
                          "chunk_size": 4}),
    "bamba": ("bamba", {**INNER, "attn_layer_indices": []}),
    "granitemoehybrid": ("granitemoehybrid", {**INNER, "layer_types": ["mamba"],
                                              "num_local_experts": 2,
                                              "shared_intermediate_size": 20}),
    "falcon_h1": ("falcon_h1", {**INNER, "mamba_d_ssm": 64, "head_dim": 8}),
    "zamba2": ("zamba2", {**SPACE, "num_attention_heads": HEADS, "intermediate_size": 24,
                          "mamba_d_state": 5, "mamba_expand": 2, "mamba_ngroups": 2,
                          "n_mamba_heads": 8, "mamba_headdim": 8, "chunk_size": 4,
                          "layers_block_type": ["mamba"]}),
    "nemotron_h": ("nemotron_h", {**GROUPED, "ssm_state_size": 5, "mamba_num_heads": 8,
                                  "mamba_head_dim": 8, "n_groups": 2, "chunk_size": 4,
                                  "layers_block_type": ["mamba"]}),
}  # fmt: skip


def everything(layer: nn.Module) -> set[int]:
    """All outputs of a layer."""
    return set(range(layer_width(layer)))


@pytest.mark.parametrize("case", MAMBA)
def test_mamba(case: str, tmp_path: Path) -> None:
    """Neither a gate nor C of one token reaches the next; the step size goes through a layer."""
    family, config = MAMBA[case]
    model = build(family, **config)
    checkpoint, call = save(model, tmp_path), on_tokens(model)
    path, layer = the_module(model, "in_proj")
    inner = reaching(call, layer, 2)
    compare_parts(checkpoint, layer, path, {"[x]": inner, "[z]": everything(layer) - inner})
    path, layer = the_module(model, "x_proj")
    state = reaching(call, layer, 2)
    the_module(model, "dt_proj")[1].weight[:] = 0
    B = reaching(call, layer, 2)
    truth = {"[dt]": state - B, "[B]": B, "[C]": everything(layer) - state}
    compare_parts(checkpoint, layer, path, truth)


def test_zamba_interleaves_input_and_gate(tmp_path: Path) -> None:
    model = build("zamba", **SPACE, num_attention_heads=HEADS, intermediate_size=24,
                  mamba_d_state=5, mamba_dt_rank=3, n_mamba_heads=1, use_mamba_kernels=False,
                  layers_block_type=["mamba"])  # fmt: skip
    path, layer = the_module(model, "mamba.in_proj")
    inner = reaching(on_tokens(model), layer, 2)
    truth = {"[x]": inner, "[z]": everything(layer) - inner}
    compare_parts(save(model, tmp_path), layer, path, truth)


@pytest.mark.parametrize("case", MAMBA_2)
def test_mamba_2(case: str, tmp_path: Path) -> None:
    """Each of the five is what is left when something else is switched off."""
    family, config = MAMBA_2[case]
    model = build(family, **config)
    checkpoint, call = save(model, tmp_path), on_tokens(model)
    path, layer = the_module(model, "in_proj")
    forget_slowly(model)
    z = everything(layer) - reaching(call, layer, 2)  # a gate reaches no later token
    conv = the_module(model, "conv1d")[1]
    conv.weight[..., :-1] = 0  # now nothing but the state does
    if conv.bias is not None:
        conv.bias[:] = 0
    C = everything(layer) - reaching(call, layer, 2) - z
    # without C, what comes out at once is the input, through the skip
    x = reaching(call, layer, 1, override=silent(C)) - z - C
    # with no input at the second token, its step size still decides what is forgotten
    dt = reaching(call, layer, 2, at=1, override=silent(x, at=1)) - z - C - x
    B = everything(layer) - z - C - x - dt
    compare_parts(checkpoint, layer, path,
                  {"[z]": z, "[x]": x, "[B]": B, "[C]": C, "[dt]": dt})  # fmt: skip


def forget_slowly(model: nn.Module) -> None:
    """Keep what a token leaves for the next above the rounding, and step sizes off their limits."""
    for name, parameter in model.named_parameters():
        if name.endswith("A_log"):
            parameter[:] = -2
        if name.endswith("dt_bias"):
            parameter[:] = 2


def silent(outputs: set[int], at: int | None = None) -> Callable[[torch.Tensor], torch.Tensor]:
    """Sets some outputs of a layer to zero, at one token or at all."""

    def change(value: torch.Tensor) -> torch.Tensor:
        value[:, slice(None) if at is None else at, sorted(outputs)] = 0
        return value

    return change


@pytest.mark.parametrize("family", ["lfm2", "lfm2_moe"])
def test_gated_convolutions(family: str, tmp_path: Path) -> None:
    """LFM2: B and x are multiplied, then convolved; C gates what comes out."""
    model = build(family, **EXPERTS, num_dense_layers=1, layer_types=["conv"])
    path, layer = the_module(model, "conv.in_proj")
    call = on_tokens(model)
    later = reaching(call, layer, 2)
    parts = parts_of(save(model, tmp_path), f"{path}.weight")
    found = {label: outputs_of(part, layer) for label, part in parts.items()}
    assert found["[C]"] == everything(layer) - later
    assert found["[B]"] | found["[x]"] == later
    # B and x differ by name only: what multiplies an entry of one is an entry of the other
    for entry in sorted(found["[B]"])[::5]:
        [partner] = later - reaching(call, layer, 2, override=silent({entry})) - {entry}
        assert partner in found["[x]"]


def test_queries_keys_values_and_gates_of_qwen3_next(tmp_path: Path) -> None:
    """The module's own method takes the outputs apart; it is given their numbers."""
    config = {**EXPERTS, **LINEAR, "layer_types": ["linear_attention"]}
    model = build("qwen3_next", **config)
    checkpoint = save(model, tmp_path)
    path, attn = the_module(model, "linear_attn")
    numbers = [torch.arange(layer_width(layer)).reshape(1, 1, -1)
               for layer in (attn.in_proj_qkvz, attn.in_proj_ba)]  # fmt: skip
    taken = [set(t.ravel().tolist()) for t in attn.fix_query_key_value_ordering(*numbers)]
    wide = dict(zip(("[q]", "[k]", "[v]", "[z]"), taken[:4], strict=True))
    compare_parts(checkpoint, attn.in_proj_qkvz, f"{path}.in_proj_qkvz", wide)
    narrow = dict(zip(("[b]", "[a]"), taken[4:], strict=True))
    compare_parts(checkpoint, attn.in_proj_ba, f"{path}.in_proj_ba", narrow)


@pytest.mark.parametrize("family", ["qwen3_5_text", "qwen3_5_moe_text"])
def test_linear_attention_of_qwen3_5(family: str, tmp_path: Path) -> None:
    model = build(family, **{**EXPERTS, **LINEAR}, layer_types=["linear_attention"])  # fmt: skip
    forget_slowly(model)
    path, layer = the_module(model, "in_proj_qkv")
    the_module(model, "conv1d")[1].weight[..., :-1] = 0
    truth = linear_attention(model, layer, the_module(model, "linear_attn.norm")[1])
    compare_parts(save(model, tmp_path), layer, path, truth)


# --- the arithmetic of parts -----------------------------------------------------------------

WORDS = sorted({
    word
    for row in LAYOUTS
    for size in (row.groups, row.across, *(size for _, _, size in row.parts))
    for word in re.findall(r"[a-z]\w*", size)
    if word != "dim"
})  # fmt: skip


@given(
    st.sampled_from(LAYOUTS),
    st.fixed_dictionaries({word: st.integers(1, 9) for word in WORDS}),
    st.integers(1, 9),
    st.integers(-1, 1),
)
def test_a_division_uses_every_entry_once_or_is_not_made(
    row: Layout, facts: dict[str, int], other: int, more: int
) -> None:
    """Over all rows, head counts that divide and that do not, shapes that fit and that do not."""
    asked = size_of(row.groups, {**facts, "dim": 12}) * sum(
        size_of(size, {**facts, "dim": 12}) for _, _, size in row.parts
    )
    takes_any = re.search(r"\bdim\b", str(row.parts) + row.groups)
    length = asked * other if takes_any else asked
    length = max(length + more, 1)
    width = size_of(row.across, {**facts, "dim": length}) if row.across else other
    shape = (length, width) if row.axis == 0 else (width, length)
    whole = torch.arange(length * width).reshape(shape)
    parts = fitted(row, shape, facts)
    if parts:
        taken = torch.cat([taken_from(whole, part).ravel() for part in parts])
        assert taken.sort().values.tolist() == list(range(length * width))
        assert [part.label for part in parts] == [label for label, _, _ in row.parts]
    else:
        assert more or not asked or length * width == 0
    assert not (parts and row.across and fitted(row, (width + 1, length + 1), facts))


def taken_from(whole: torch.Tensor, part: Part) -> torch.Tensor:
    """The entries of one part, read as an analysis reads them."""
    shape = (int(whole.shape[0]), int(whole.shape[1]))
    matrix = Matrix("w[p]", TensorRef("w", shape, "F32"), "whole", "other", "w", part=part)
    return read_matrix(lambda ref, index: whole, matrix)


def test_what_is_missing_or_wrong_is_said() -> None:
    def reason(module: str, shape: tuple[int, int], **config: Any) -> str:
        return divide(module, shape, Facts(config), fused=True).reason

    qkv, family = "h.#.self_attn.qkv_proj", {"model_type": "unheard-of"}
    heads = {"num_attention_heads": 4, "hidden_size": 32, "num_key_value_heads": 2}
    assert not reason(qkv, (64, 32), **family, **heads)
    assert reason(qkv, (64, 32)) == "the configuration does not say heads"
    assert reason(qkv, (65, 32), **family, **heads) == (
        "the sizes that the configuration gives do not add up to its shape"
    )
    name = "h.#.attn.c_attn"
    assert reason(name, (32, 96)) == "no configuration says how it is divided"
    assert reason(name, (32, 96), **family) == (
        "no layout of it is known for the family 'unheard-of'"
    )
    moe = {"model_type": "gpt_oss", "hidden_size": 48, **heads, "num_local_experts": 3}
    moe["hidden_size"] = 48
    assert reason("mlp.experts.gate_up_proj", (48, 48), **moe) == (
        "it has a shape that two layouts of this family fit"
    )
    dbrx = {"model_type": "dbrx", "ffn_config": {"moe_num_experts": 5}}
    assert "do not add up" in reason("ffn.experts.mlp.w1", (72, 32), **dbrx)


def test_flags_that_a_configuration_leaves_out_are_those_of_the_family() -> None:
    """Falcon's first configurations say neither; transformers knows what that means."""
    config = {"model_type": "falcon", "hidden_size": 32, "num_attention_heads": 4}
    division = divide("h.#.self_attention.query_key_value", (48, 32), Facts(config), True)
    assert [part.size for part in division.parts] == [32, 8, 8]


def test_every_family_of_the_table_is_one() -> None:
    """A name that no checkpoint carries would never match."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    brought = {"qwen", "chatglm", "internlm2", "minimax_text_01"}
    of_gguf = {"falcon-h1", "granitehybrid"}
    named = set().union(*(row.families for row in (*LAYOUTS, *STACKS)))
    assert {name for name in named if name not in CONFIG_MAPPING} == brought | of_gguf


def test_fused_tensors_are_kept_whole_on_request(tmp_path: Path) -> None:
    model = build("phi3", **GROUPED)
    save(model, tmp_path)
    run = weightscope.analyze(tmp_path, fused=True, metrics=("norms",), device="cpu")
    rows = {str(row["name"]): row for row in run.rows}
    whole = rows["model.layers.0.self_attn.qkv_proj.weight"]
    assert (whole["rows"], whole["status"], whole["role"]) == (64, "ok", "attn_qkv")


def test_rows_of_an_analysis_are_parts_with_their_own_figures(tmp_path: Path) -> None:
    """From the file through the solver: names, modules, roles, shapes, Frobenius norms."""
    model = build("phi3", **GROUPED)
    save(model, tmp_path)
    run = weightscope.analyze(tmp_path, metrics=("norms",), device="cpu")
    rows = {str(row["name"]): row for row in run.rows}
    name = "model.layers.0.self_attn.qkv_proj.weight"
    weight = dict(model.named_parameters())[name]
    for label, role, part in zip("qkv", ("attn_q", "attn_k", "attn_v"),
                                 weight.split([32, 16, 16]), strict=True):  # fmt: skip
        row = rows[f"{name}[{label}]"]
        assert row["module"] == f"model.layers.#.self_attn.qkv_proj[{label}]"
        assert (row["role"], row["rows"], row["cols"], row["block"]) == (role, len(part), 32, 0)
        assert row["frobenius_norm"] == pytest.approx(float(part.norm()), rel=1e-12)
    assert name not in rows


def test_a_fused_tensor_that_cannot_be_divided_says_why(tmp_path: Path) -> None:
    name = "h.0.attn.c_attn.weight"
    run = weightscope.analyze(alone(tmp_path, {}, {name: gaussian(32, 96)}), device="cpu")
    [row] = run.rows
    assert row["status"] == "fused" and row["role"] == "attn_qkv"
    assert str(row["reason"]).startswith(
        "Several matrices in one tensor, analysed whole: no configuration says how it is divided."
    )
    assert row["alpha"] is not None


# --- every family with a stack of experts, one after the other -------------------------------


@pytest.mark.slow
def test_all_stacks_of_rows_are_gates_then_what_they_gate() -> None:
    """Each family that the table lists as such, by its own experts module."""
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    [listed] = [row.families for row in LAYOUTS
                if "mixtral" in row.families and "gate" in str(row.parts)]  # fmt: skip
    for family in sorted(listed):
        folder = model_type_to_module_name(family)
        module = importlib.import_module(f"transformers.models.{folder}.modeling_{folder}")
        classes = [value for name, value in vars(module).items()
                   if name.endswith("Experts") and isinstance(value, type)]  # fmt: skip
        assert classes, family
        for made in classes:
            check_experts(family, made)


class Anything:
    """A configuration that answers whatever an experts module may ask for."""

    _experts_implementation = "eager"
    hidden_act = hidden_activation = expert_act = activation = "silu"

    def __getattr__(self, name: str) -> Any:
        """Small sizes, by what the name says."""
        if name.startswith("__"):
            raise AttributeError(name)
        if "intermediate" in name or "ffn" in name or "inter" in name:
            return 24
        if "hidden_size" in name or "d_model" in name or "n_embd" in name:
            return WIDTH
        if "limit" in name:
            return 7.0
        return 0 if "zero" in name else 3


def check_experts(family: str, made: type) -> None:
    """One experts module: affine in the second half of the rows, not in the first."""
    torch.manual_seed(0)
    experts = made(Anything()).double().requires_grad_(False)
    weight = experts.gate_up_proj
    assert weight.shape == (3, 48, WIDTH), family
    for parameter in experts.parameters():
        nn.init.normal_(parameter, std=0.3)
    states = torch.randn(6, WIDTH, dtype=torch.float64) / 4
    index = torch.stack([torch.arange(6) % 3, torch.arange(1, 7) % 3], 1)

    def run() -> torch.Tensor:
        return experts(states, index, torch.ones(6, 2, dtype=torch.float64)).clone()

    up = torch.zeros_like(weight, dtype=torch.bool)
    up[:, 24:] = True
    assert is_affine_in(run, weight, up) and not is_affine_in(run, weight, ~up), family
