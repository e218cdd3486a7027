"""GGUF models as analyses see them: roles, parts, experts, encodings, and the noise of rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import gaussian

from weightscope import analysis
from weightscope.encodings.grid import noise_floor
from weightscope.encodings.steps import steps_of
from weightscope.expressions import read_matrix
from weightscope.integrations.architecture import modules_of
from weightscope.layouts.roles import place_of, role_of
from weightscope.measure import reading
from weightscope.select import select_for
from weightscope.settings import Settings
from weightscope.sources import open_model

gguf = pytest.importorskip("gguf", reason="pip install 'weightscope[gguf]'")
Kind = gguf.GGMLQuantizationType
FAMILIES = ("norms", "stats", "condition", "encoding", "reading", "alpha")
QUICK = Settings(metrics=FAMILIES, threads=1)


def write(path: Path, family: str, facts: dict[str, int], tensors: dict[str, Any]) -> Path:
    """A GGUF file by the library; a pair of weights and a type is quantised to that type."""
    writer = gguf.GGUFWriter(path, family)
    for key, value in facts.items():
        writer.add_uint32(f"{family}.{key}", value)
    for name, found in tensors.items():
        if isinstance(found, tuple):
            weights, kind = found
            writer.add_tensor(name, gguf.quants.quantize(weights.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, found.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


ROLES = {
    "token_embd.weight": "embedding",
    "token_types.weight": "embedding",
    "per_layer_token_embd.weight": "embedding",
    "position_embd.weight": "position",
    "v.position_embd.weight": "position",
    "output.weight": "lm_head",
    "cls.output.weight": "lm_head",
    "blk.0.attn_q.weight": "attn_q",
    "blk.0.attn_k.weight": "attn_k",
    "blk.0.attn_v.weight": "attn_v",
    "blk.0.attn_output.weight": "attn_o",
    "v.blk.0.attn_out.weight": "attn_o",
    "enc.blk.0.attn_o.weight": "attn_o",
    "dec.blk.0.cross_attn_k.weight": "attn_k",
    "blk.0.attn_qkv.weight": "attn_qkv",
    "blk.0.attn_q_a.weight": "attn_q",
    "blk.0.attn_q_b.weight": "attn_q",
    "blk.0.attn_kv_a_mqa.weight": "attn_kv",
    "blk.0.attn_kv_b.weight": "attn_kv",
    "blk.0.ffn_gate.weight": "mlp_gate",
    "blk.0.ffn_up.weight": "mlp_up",
    "blk.0.ffn_down.weight": "mlp_down",
    "blk.0.ffn_gate_exps.weight": "expert_gate",
    "blk.0.ffn_up_exps.weight": "expert_up",
    "blk.0.ffn_down_exps.weight": "expert_down",
    "blk.0.ffn_down.3.weight": "expert_down",
    "blk.0.ffn_up_shexp.weight": "mlp_up",
    "blk.0.ffn_gate_inp.weight": "router",
    # what makers publish beside the files of the model library
    "layers.0.attention.wq.weight": "attn_q",
    "layers.0.attention.wo.weight": "attn_o",
    "layers.0.feed_forward.w1.weight": "mlp_gate",
    "layers.0.feed_forward.w2.weight": "mlp_down",
    "layers.0.feed_forward.w3.weight": "mlp_up",
    "tok_embeddings.weight": "embedding",
    "layers.0.feed_forward.router_DE": "router",
    "layers.0.feed_forward.experts.moe_w_in_eD_F": "expert_gate",
    "layers.0.feed_forward.experts.moe_w_out_eF_D": "expert_down",
    # torchvision
    "encoder.layers.encoder_layer_0.self_attention.out_proj.weight": "attn_o",
    "encoder.layers.encoder_layer_0.mlp.0.weight": "mlp_up",
    "encoder.layers.encoder_layer_0.mlp.3.weight": "mlp_down",
    "encoder.layers.encoder_layer_0.mlp.linear_1.weight": "mlp_up",
    "class_token": "embedding",
}


@pytest.mark.parametrize("name", ROLES)
def test_roles_of_names_of_other_habits(name: str) -> None:
    place = place_of(name)
    assert role_of(place.module) == ROLES[name]
    assert place.block == (0 if "0" in name else None)
    assert place.expert == (3 if "ffn_down.3" in name else None)


def parts_of(path: Path) -> dict[str, torch.Tensor]:
    """Every matrix of a model by its name, as it is decomposed."""
    checkpoint = open_model(path)
    with reading(checkpoint) as read:
        return {m.name: read_matrix(read, m) for m in select_for(checkpoint, Settings()).matrices}


def test_fused_attention_is_in_blocks_whatever_the_family_was(tmp_path: Path) -> None:
    weights = gaussian(96, 64)
    facts = {"embedding_length": 64, "attention.head_count": 4, "attention.head_count_kv": 1}
    for family in ("phi3", "gptneox", "bloom", "qwen"):
        path = write(tmp_path / f"{family}.gguf", family, facts, {"blk.0.attn_qkv.weight": weights})
        found = parts_of(path)
        assert list(found) == [f"blk.0.attn_qkv.weight[{part}]" for part in "kqv"]
        for part, rows in {"q": slice(0, 64), "k": slice(64, 80), "v": slice(80, 96)}.items():
            assert torch.equal(found[f"blk.0.attn_qkv.weight[{part}]"], weights[rows])


def test_gates_are_above_what_they_gate(tmp_path: Path) -> None:
    weights = gaussian(96, 64)
    facts = {"feed_forward_length": 48}
    found = parts_of(
        write(tmp_path / "a.gguf", "phi3", facts, {"blk.0.ffn_up.weight": (weights, Kind.Q8_0)})
    )
    assert set(found) == {"blk.0.ffn_up.weight[gate]", "blk.0.ffn_up.weight[up]"}
    gate = found["blk.0.ffn_up.weight[gate]"]
    np.testing.assert_allclose(gate, weights[:48], atol=float(weights.abs().max()) / 127)
    whole = parts_of(write(tmp_path / "b.gguf", "llama", facts, {"blk.0.ffn_up.weight": weights}))
    assert list(whole) == ["blk.0.ffn_up.weight"]


@pytest.mark.parametrize("newer", [True, False])
def test_latent_attention_has_its_sizes_from_the_header(tmp_path: Path, newer: bool) -> None:
    """2 heads of 12 + 4 for queries and keys, 8 for values, over a latent vector of 16."""
    mla = "_mla" if newer else ""
    facts = {
        "embedding_length": 64,
        "attention.head_count": 2,
        "attention.head_count_kv": 1,
        "attention.kv_lora_rank": 16,
        "rope.dimension_count": 4,
        **({"attention.key_length": 20, "attention.value_length": 16} if newer else {}),
        f"attention.key_length{mla}": 16,
        f"attention.value_length{mla}": 8,
    }
    q, down, up = gaussian(32, 24, seed=1), gaussian(20, 64, seed=2), gaussian(40, 16, seed=3)
    path = write(
        tmp_path / "a.gguf",
        "deepseek2",
        facts,
        {
            "blk.0.attn_q_b.weight": q,
            "blk.0.attn_kv_a_mqa.weight": down,
            "blk.0.attn_kv_b.weight": up,
        },
    )
    found = parts_of(path)
    heads = up.reshape(2, 20, 16)
    expected = {
        "q_b.weight[nope]": q.reshape(2, 16, 24)[:, :12].reshape(-1, 24),
        "q_b.weight[rope]": q.reshape(2, 16, 24)[:, 12:].reshape(-1, 24),
        "kv_a_mqa.weight[latent]": down[:16],
        "kv_a_mqa.weight[rope]": down[16:],
        "kv_b.weight[k]": heads[:, :12].reshape(-1, 16),
        "kv_b.weight[v]": heads[:, 12:].reshape(-1, 16),
    }
    assert len(found) == len(expected)
    assert all(torch.equal(found[f"blk.0.attn_{name}"], part) for name, part in expected.items())


def test_state_spaces_of_mamba(tmp_path: Path) -> None:
    facts = {"ssm.inner_size": 32, "ssm.state_size": 8, "ssm.time_step_rank": 4}
    inner, steps = gaussian(64, 16, seed=1), gaussian(4 + 8 + 8, 32, seed=2)
    tensors = {"blk.0.ssm_in.weight": inner, "blk.0.ssm_x.weight": steps}
    found = parts_of(write(tmp_path / "a.gguf", "mamba", facts, tensors))
    expected = {
        "ssm_in.weight[x]": inner[:32],
        "ssm_in.weight[z]": inner[32:],
        "ssm_x.weight[dt]": steps[:4],
        "ssm_x.weight[B]": steps[4:12],
        "ssm_x.weight[C]": steps[12:],
    }
    assert len(found) == len(expected)
    assert all(torch.equal(found[f"blk.0.{name}"], part) for name, part in expected.items())


def test_state_spaces_of_mamba_2(tmp_path: Path) -> None:
    facts = {
        "ssm.inner_size": 32,
        "ssm.state_size": 8,
        "ssm.group_count": 1,
        "ssm.time_step_rank": 4,
    }
    weights = gaussian(2 * 32 + 2 * 8 + 4, 16)
    tensors = {
        "blk.0.ssm_in.weight": weights,
        "blk.0.ssm_a": gaussian(4, 1),
        "blk.0.ssm_conv1d.weight": gaussian(48, 4),
    }
    path = write(tmp_path / "a.gguf", "mamba2", facts, tensors)
    found = parts_of(path)
    starts = {"z": 0, "x": 32, "B": 64, "C": 72, "dt": 80}
    assert set(found) == {f"blk.0.ssm_in.weight[{part}]" for part in starts}
    for part, start in starts.items():
        values = found[f"blk.0.ssm_in.weight[{part}]"]
        assert torch.equal(values, weights[start : start + len(values)])
    selection = select_for(open_model(path), Settings())
    reasons = {e.matrix.name: e.reason for e in selection.exclusions}
    assert "state space" in reasons["blk.0.ssm_a"]
    assert "depth-wise" in reasons["blk.0.ssm_conv1d.weight"]


def heavy_tailed(rows: int, cols: int, seed: int) -> torch.Tensor:
    """A matrix that does not read as noise."""
    scale = torch.arange(1, min(rows, cols) + 1) ** -0.7
    return gaussian(rows, len(scale), seed=seed) * scale @ gaussian(len(scale), cols, seed=seed + 9)


def test_rows_name_the_encoding_and_doubt_the_tail_at_four_bits(tmp_path: Path) -> None:
    experts = gaussian(3, 64, 96, seed=1)
    tensors = {
        "blk.0.ffn_up.weight": (heavy_tailed(96, 64, seed=2), Kind.Q4_0),
        "blk.0.ffn_down.weight": (heavy_tailed(64, 96, seed=3), Kind.Q8_0),
        "blk.0.attn_q.weight": gaussian(64, 64, seed=4),
        "blk.0.ffn_gate_exps.weight": (experts, Kind.Q5_0),
    }
    path = write(tmp_path / "a.gguf", "llama", {"expert_count": 3}, tensors)
    rows = {str(row["name"]): row for row in analysis.analyze(path, QUICK).rows}
    for name, kind in {"ffn_up": "gguf-q4-0", "ffn_down": "gguf-q8-0", "attn_q": None}.items():
        row = rows[f"blk.0.{name}.weight"]
        assert (row["encoding"], row["dtype"]) == (kind, "U8" if kind else "F32")
    assert "quantiser" in str(rows["blk.0.ffn_up.weight"]["advice"])
    assert "quantiser" not in str(rows["blk.0.ffn_down.weight"]["advice"])
    for expert in range(3):
        row = rows[f"blk.0.ffn_gate_exps.weight[{expert}]"]
        norm = float(torch.linalg.matrix_norm(experts[expert].double(), 2))
        assert row["encoding"] == "gguf-q5-0" and row["role"] == "expert_gate"
        assert row["spectral_norm"] == pytest.approx(norm, rel=0.01)


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_0", "Q5_1", "Q4_0", "Q4_1"])
def test_the_floor_is_what_rounding_to_blocks_does(tmp_path: Path, kind: str) -> None:
    """Singular values may have moved by as much as the norm of the rounding errors."""
    weights = gaussian(192, 256, seed=5)
    path = write(tmp_path / "a.gguf", "llama", {}, {"blk.0.ffn_up.weight": (weights, Kind[kind])})
    [row] = analysis.analyze(path, QUICK).rows
    [decoded] = parts_of(path).values()
    error = float(torch.linalg.matrix_norm((decoded - weights).double(), 2))
    floor = row["sv_floor"]
    assert isinstance(floor, float) and 0.8 * floor < error < 1.15 * floor


def test_the_library_does_not_know_these_names_and_it_is_said(tmp_path: Path) -> None:
    facts = {"block_count": 1, "embedding_length": 64, "attention.head_count": 4}
    path = write(tmp_path / "a.gguf", "llama", facts, {"blk.0.attn_q.weight": gaussian(64, 64)})
    modules, why = modules_of(open_model(path))
    assert not modules and "other names" in why


def test_the_sums_are_those_of_the_single_entries() -> None:
    """The floor of a whole matrix is taken without forming as many variances as entries."""
    found = steps_of(gaussian(48, 96, seed=1), 4, 32)
    decoded = found.decoded()
    spread = found.deviations()
    assert spread.shape == (48, 96) and torch.equal(spread[:, 0], spread[:, 31])
    assert decoded.sv_floor == pytest.approx(noise_floor(spread), rel=1e-6)
    run = gaussian(48, 96, seed=1)[5, 32:64]
    step = float(run.max() - run.min()) / 15
    assert float(spread[5, 40]) == pytest.approx(step / 12**0.5, rel=1e-6)


def test_a_constant_block_has_no_steps(tmp_path: Path) -> None:
    weights = torch.zeros(32, 64)
    weights[:16, :32] = gaussian(16, 32)
    path = write(tmp_path / "a.gguf", "llama", {}, {"blk.0.ffn_up.weight": (weights, Kind.Q4_0)})
    [row] = analysis.analyze(path, QUICK).rows
    assert row["status"] == "ok" and row["params"] == 32 * 64
