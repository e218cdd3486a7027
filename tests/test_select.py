"""What is taken for a weight matrix and what is not: names, shapes, copies, padding, reasons."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from behaviour import build, save
from checkpoints import gaussian, run_weightscope, write_file, write_sharded
from hypothesis import given
from hypothesis import strategies as st
from test_layouts import ATTENTION, GATED, GPT, GROUPED, MAMBA, MAMBA_2, PLAIN

import weightscope
from weightscope.checkpoint import Checkpoint
from weightscope.decompositions.padding import equal_tail_rows
from weightscope.evaluate import Row
from weightscope.integrations.architecture import Module, capped, library_modules, modules_of
from weightscope.layouts.roles import ROLES, rule_for
from weightscope.select import findings, natural_key, select
from weightscope.sources import open_model
from weightscope.summary import headline_rows
from weightscope.ties import without_ties
from weightscope.tracing import traces, traces_report


def checkpoint(folder: Path, tensors: dict[str, torch.Tensor], **config: Any) -> Checkpoint:
    """A real file beside a configuration."""
    write_file(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps(config))
    return open_model(folder)


def rows_of(model: Any) -> dict[str, Row]:
    run = weightscope.analyze(model, device="cpu")
    return {str(row["name"]): row for row in run.rows}


# --- wrappers --------------------------------------------------------------------------------

WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "_fsdp_wrapped_module.", "_fpw_module.",
            "_checkpoint_wrapped_module.", "_forward_module.")  # fmt: skip


INSIDE = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


@given(
    st.lists(st.sampled_from(WRAPPERS), max_size=3), st.lists(st.sampled_from(INSIDE), max_size=2)
)
def test_wrappers_are_kept_in_the_name_and_nowhere_else(outer: list[str], inner: list[str]) -> None:
    plain = "model.layers.3.mlp.experts.7.gate_proj.weight"
    name = "".join(outer) + plain.replace("3.", "3." + "".join(inner))
    [matrix] = select(open_model({name: gaussian(12, 16)})).matrices
    assert matrix.name == name
    assert matrix.module == "model.layers.#.mlp.experts.#.gate_proj"
    assert (matrix.role, matrix.block, matrix.expert) == ("expert_gate", 3, 7)


def test_a_wrapped_bias_or_mask_is_one_too() -> None:
    names = ("module.h.0.attn.bias", "_orig_mod.mlp.experts.gate_up_proj_bias")
    tensors = {names[0]: torch.ones(1, 1, 8, 8), names[1]: gaussian(4, 16)}
    found = select(open_model(tensors))
    assert not found.matrices and {e.matrix.name for e in found.exclusions} == set(names)


# --- what is no matrix -----------------------------------------------------------------------

NO_MATRICES: dict[str, tuple[tuple[int, ...], str]] = {
    "transformer.h.0.attn.bias": ((1, 1, 16, 16), "mask"),
    "gpt_neox.layers.0.attention.masked_bias": ((1, 16, 16), "mask"),
    "layers.0.blocks.1.attn_mask": ((4, 9, 9), "mask"),
    "blocks.0.tril": ((16, 16), "mask"),
    "model.layers.0.mlp.experts.gate_up_proj_bias": ((4, 32), "a bias"),
    "model.layers.0.mlp.experts.down_proj_bias": ((4, 16), "a bias"),
    "model.layers.0.mlp.experts.3.bias": ((4, 16), "a bias"),
    "encoder.layers.0.norm.bias": ((4, 16), "a bias"),
    "model.layers.0.mixer.A_log": ((64, 16), "a state space"),
    "blocks.0.attention.time_decay": ((8, 64), "a recurrence"),
    "blocks.0.attention.time_faaaa": ((8, 64), "a recurrence"),
    "model.layers.0.self_attn.rotary_emb.cos_cached": ((1, 1, 32, 8), "rotary positions"),
    "freqs_cis": ((32, 8), "rotary positions"),
    "rope.freqs": ((4, 16), "rotary positions"),
    "model.layers.0.self_attn.q_norm.weight": ((8, 16), "a normalisation"),
    "model.layers.0.mixer.conv1d.weight": ((64, 1, 4), "depth-wise"),
    "stages.0.layers.1.dwconv.weight": ((32, 1, 7, 7), "depth-wise"),
    "model.layers.0.linear_attn.conv1d.weight": ((48, 1, 4), "depth-wise"),
    "conformer.layers.0.conv.depthwise_conv.weight": ((32, 1, 31), "depth-wise"),
    "model.layers.0.mlp.down_proj.weight_scale": ((4, 16), "scales"),
}
MATRICES: dict[str, tuple[tuple[int, ...], str]] = {
    "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight": ((32, 8), "position"),
    "swin.encoder.blocks.0.attention.relative_position_bias_table": ((169, 4), "position"),
    "stages.0.blocks.0.attention_biases": ((8, 196), "position"),
    "model.bias_proj.weight": ((16, 16), "other"),
    "model.layers.0.norm1.linear.weight": ((32, 16), "other"),
    "mask_decoder.transformer.mlp.lin1.weight": ((32, 16), "mlp_up"),
    "blocks.0.attention.time_maa_w1": ((16, 40), "other"),
    "patch_embed.proj.weight": ((32, 1, 4, 4), "conv"),
    "vit.embeddings.patch_embeddings.projection.weight": ((32, 1, 4, 4), "conv"),
    "feature_extractor.conv_layers.0.conv.weight": ((32, 1, 10), "conv"),
    "conv1.weight": ((32, 1, 3, 3), "conv"),
    "features.0.weight": ((32, 1, 5, 5), "conv"),
    "model.embed_tokens.weight": ((40, 16), "embedding"),
    "transformer.wpe.weight": ((40, 16), "position"),
    "lm_head.weight": ((40, 16), "lm_head"),
    "qformer.query_tokens": ((1, 12, 16), "embedding"),
    "model.layers.0.mlp.gate.weight": ((8, 16), "router"),
    "model.layers.0.self_attn.kv_b_proj.weight": ((48, 16), "attn_kv"),
    "model.layers.0.self_attn.experts.input_linear.weight": ((3, 12, 16), "attn_q"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_MATRICES)
def test_what_is_stored_beside_weights_is_skipped_with_a_reason(name: str) -> None:
    shape, reason = NO_MATRICES[name]
    found = select(open_model({name: gaussian(*shape)}))
    [excluded] = found.exclusions
    assert not found.matrices and excluded.status == "skipped"
    assert excluded.reason.startswith("Not analysed: it ") and reason in excluded.reason


@pytest.mark.parametrize("name", MATRICES)
def test_what_only_looks_like_it_is_analysed(name: str) -> None:
    shape, role = MATRICES[name]
    found = select(open_model({name: gaussian(*shape)}))
    assert not found.exclusions and found.matrices
    assert {matrix.role for matrix in found.matrices} == {role}


def test_skipped_tensors_have_a_row(tmp_path: Path) -> None:
    tensors = {"m.mixer.A_log": gaussian(64, 16), "m.mixer.out_proj.weight": gaussian(24, 32)}
    row = rows_of(checkpoint(tmp_path, tensors))["m.mixer.A_log"]
    assert (row["status"], row["rows"], row["cols"], row["params"]) == ("skipped", 64, 16, 1024)
    assert row["alpha"] is None and "one number per channel and state" in str(row["reason"])


def test_tables_have_their_own_role_and_stay_out_of_the_headline(tmp_path: Path) -> None:
    tensors = {
        name: gaussian(*shape, seed=seed)
        for seed, (name, (shape, _)) in enumerate(MATRICES.items())
        if len(shape) == 2
    }
    rows = rows_of(checkpoint(tmp_path, tensors))
    headline = {str(row["role"]) for row in headline_rows(rows.values())}
    assert headline & {"embedding", "position", "lm_head"} == set() and "router" in headline
    assert rows["lm_head.weight"]["alpha"] is not None
    assert {str(row["role"]) for row in rows.values()} <= set(ROLES)


def test_an_expert_of_one_matrix_with_a_batch_dimension() -> None:
    """Its index is in the name, not in the stack."""
    tensors = {"mlp.experts.5.w1": gaussian(1, 12, 16)}
    [row] = rows_of(tensors).values()
    assert (row["expert"], row["rows"], row["cols"], row["status"]) == (5, 12, 16, "ok")


# --- routers ---------------------------------------------------------------------------------


def test_routers_are_reported_without_a_tail(tmp_path: Path) -> None:
    tensors = {
        "model.layers.0.mlp.gate.weight": gaussian(64, 80),
        "model.layers.0.mlp.experts.0.w1.weight": gaussian(64, 80),
    }
    rows = rows_of(checkpoint(tmp_path, tensors))
    router, expert = (rows[name] for name in tensors)
    assert router["status"] == "ok" and router["stable_rank"] is not None
    for column in ("alpha", "alpha_ks", "alpha_n_tail", "alpha_farms", "erg_n_tail", "erg_gap"):
        assert router[column] is None and expert[column] is not None, column
    for column in ("alpha", "alpha_farms", "erg_n_tail"):
        assert f"{column}: a router has no tail to fit." in str(router["reason"])


# --- tied weights ----------------------------------------------------------------------------


def tied_pair(folder: Path, head: torch.Tensor, table: torch.Tensor, **config: Any) -> list[str]:
    """Names of what is left of an embedding and a head, and the reasons of what is not."""
    tensors = {"model.embed_tokens.weight": table, "lm_head.weight": head,
               "model.layers.0.mlp.up_proj.weight": gaussian(40, 16, seed=9)}  # fmt: skip
    opened = checkpoint(folder, tensors, **config)
    found = without_ties(opened, select(opened))
    assert len(found.matrices) + len(found.exclusions) == 3
    return [e.matrix.name + ": " + e.reason for e in found.exclusions]


def test_a_head_that_repeats_the_embedding_is_analysed_once(tmp_path: Path) -> None:
    table = gaussian(50, 16)
    [reason] = tied_pair(tmp_path / "a", table.clone(), table)
    assert reason.startswith("lm_head.weight: ")
    assert "tied to 'model.embed_tokens.weight'" in reason
    rows = rows_of(tmp_path / "a")
    assert rows["lm_head.weight"]["status"] == "skipped"
    assert rows["model.embed_tokens.weight"]["status"] == "ok"


def test_equal_bytes_decide_not_the_configuration(tmp_path: Path) -> None:
    """A configuration that says tied is not believed; NaN entries compare as the bytes they are."""
    table = gaussian(50, 16)
    other = table.clone()
    other[31, 7] += 1e-7
    assert tied_pair(tmp_path / "a", other, table, tie_word_embeddings=True) == []
    assert tied_pair(tmp_path / "b", table.half(), table) == []
    assert tied_pair(tmp_path / "c", table[:49].clone(), table) == []
    table[3, 3] = torch.nan
    assert len(tied_pair(tmp_path / "d", table.clone(), table, tie_word_embeddings=False)) == 1


@pytest.mark.parametrize("row", [0, 1, 5000, 20_001, 33_333, 39_999])
def test_one_entry_anywhere_tells_two_tables_apart(row: int, tmp_path: Path) -> None:
    """Beyond what the first probes see, and over several blocks."""
    table = torch.zeros(40_000, 256, dtype=torch.bfloat16)
    other = table.clone()
    other[row, 128] = 1
    opened = checkpoint(tmp_path, {"embed_tokens.weight": table, "lm_head.weight": other})
    assert len(without_ties(opened, select(opened)).matrices) == 2


def test_several_copies_and_tables_in_shards(tmp_path: Path) -> None:
    table = gaussian(50, 16)
    tensors = {"shared.weight": table, "encoder.embed_tokens.weight": table.clone(),
               "decoder.embed_tokens.weight": table.clone(), "lm_head.weight": table.clone(),
               "decoder.embed_positions.weight": table.clone()}  # fmt: skip
    opened = open_model(write_sharded(tmp_path, tensors))
    found = without_ties(opened, select(opened))
    assert [m.name for m in found.matrices] == [
        "decoder.embed_positions.weight", "decoder.embed_tokens.weight"]  # fmt: skip
    assert len(found.exclusions) == 3


# --- padded vocabularies ---------------------------------------------------------------------


def test_rows_beyond_the_vocabulary_are_noticed(tmp_path: Path) -> None:
    tensors = {"model.embed_tokens.weight": gaussian(64, 16),
               "lm_head.weight": gaussian(64, 16, seed=1),
               "model.layers.0.mlp.up_proj.weight": gaussian(64, 16)}  # fmt: skip
    found = select(checkpoint(tmp_path / "a", tensors, vocab_size=50)).matrices
    assert {m.role: m.padding for m in found} == {"embedding": 14, "lm_head": 14, "mlp_up": 0}
    nested = checkpoint(tmp_path / "b", tensors, text_config={"vocab_size": 63})
    assert {m.padding for m in select(nested).matrices} == {0, 1}
    full = checkpoint(tmp_path / "c", tensors, vocab_size=64)
    assert {m.padding for m in select(full).matrices} == {0}
    rows = rows_of(tmp_path / "a")
    assert {name for name, row in rows.items() if "padded_rows" in str(row["warnings"])} == {
        "model.embed_tokens.weight", "lm_head.weight"}  # fmt: skip


def test_rows_that_no_token_ever_used_are_noticed(tmp_path: Path) -> None:
    """Whatever the configuration says: zeros, or one row many times, at the end."""
    table = gaussian(200, 16)
    zeros, copies, few = table.clone(), table.clone(), table.clone()
    zeros[180:], copies[150:], few[198:] = 0, table[3], table[3]
    tensors = {"a.embed_tokens.weight": zeros, "b.embed_tokens.weight": copies,
               "c.embed_tokens.weight": few, "d.up_proj.weight": zeros.clone()}  # fmt: skip
    rows = rows_of(checkpoint(tmp_path, tensors))
    padded = {name[0] for name, row in rows.items() if "padded_rows" in str(row["warnings"])}
    assert padded == {"a", "b"}


@given(st.integers(1, 2500), st.data())
def test_equal_rows_at_the_end_are_counted(n: int, data: st.DataObject) -> None:
    equal = data.draw(st.integers(1, n))
    table = torch.arange(n, dtype=torch.float32)[:, None].repeat(1, 3)
    table[n - equal :] = -1
    assert equal_tail_rows(table) == (equal if equal > 1 else 0)
    assert equal_tail_rows(table[:, ::2].to(torch.bfloat16)) in {equal_tail_rows(table), *range(n)}


# --- reading ---------------------------------------------------------------------------------


def test_blocks_of_rows_are_read_on_their_own(tmp_path: Path) -> None:
    """Queries, keys and values of one tensor cost its bytes once, not three times."""
    name = "model.layers.0.self_attn.qkv_proj.weight"
    config = {"model_type": "phi3", "num_attention_heads": 4, "num_key_value_heads": 2,
              "hidden_size": 32}  # fmt: skip
    opened = checkpoint(tmp_path, {name: gaussian(64, 32), "x.weight": gaussian(8, 8)}, **config)
    parts = [m for m in select(opened).matrices if m.part]
    refs = [m.block_of_rows for m in sorted(parts, key=lambda m: m.part.offset if m.part else 0)]
    spans = [(ref.start, ref.stop) for ref in refs if ref]
    whole = next(ref for ref in opened.tensors if ref.name == name)
    assert spans[0][0] == whole.start and spans[-1][1] == whole.stop
    assert [a[1] for a in spans[:-1]] == [b[0] for b in spans[1:]]


def test_a_live_model_is_divided_as_its_file_is(tmp_path: Path) -> None:
    model = build("gpt2", **GPT)
    on_disk = {row for row in rows_of(save(model, tmp_path)) if "c_attn" in row}
    live = {row for row in rows_of(model) if "c_attn" in row}
    assert on_disk == live == {
        f"transformer.h.0.attn.c_attn.weight[{label}]" for label in "qkv"}  # fmt: skip


# --- why -------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Any:
    """Keep transformers from talking about configurations that are tiny."""
    transformers.logging.set_verbosity(logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.set_verbosity_warning()


SEEN = (
    *ATTENTION.values(),
    *((family, config) for family, config, *_ in GATED.values() if "audio" not in family),
    *MAMBA.values(), *MAMBA_2.values(),
    ("llama", GROUPED), ("gemma2", GROUPED), ("opt", {**PLAIN, "word_embed_proj_dim": 32}),
    ("bert", PLAIN), ("vit", {**PLAIN, "image_size": 4, "patch_size": 2}), ("gptj", GPT),
    ("stablelm", PLAIN), ("t5", {"d_model": 32, "num_layers": 1, "num_heads": 4, "d_ff": 24,
                                 "vocab_size": 40, "d_kv": 8}),
    ("distilbert", {"dim": 32, "n_layers": 1, "n_heads": 4, "hidden_dim": 24, "vocab_size": 40}),
)  # fmt: skip


def test_the_rules_agree_with_the_library(tmp_path: Path) -> None:
    """Embedding, convolution, norm or layer of weights: for every tensor of these families."""
    known = total = 0
    for number, (family, config, *_) in enumerate(SEEN):
        opened = save(build(family, **config), tmp_path / str(number))
        names = [ref.name for ref in opened.tensors]
        modules, why = library_modules(dict(opened.config), names)
        assert not why, (family, why)
        found = traces(findings(opened), modules)
        differing = [(one.name, one.role, one.library) for one in found if "differs" in one.library]
        assert not differing, family
        known += sum(name in modules for name in names)
        total += len(names)
    assert known == total


def test_every_tensor_is_traced_once() -> None:
    tensors = {
        "model.embed_tokens.weight": gaussian(40, 16), "lm_head.weight": gaussian(40, 16, seed=1),
        "h.0.attn.c_attn.weight": gaussian(16, 48), "h.0.attn.c_attn.bias": gaussian(48),
        "h.1.mlp.gate_up_proj.weight": gaussian(24, 16), "h.1.mixer.A_log": gaussian(16, 4),
        "h.1.mlp.experts.gate_up_proj": gaussian(3, 16, 8), "ids": torch.arange(5),
        "what.is.this": gaussian(12, 16), "conv.weight": gaussian(8, 4, 3),
    }  # fmt: skip
    modules = {"model.embed_tokens.weight": Module("Linear", "matrix"),
               "lm_head.weight": Module("Linear", "matrix")}  # fmt: skip
    found = {one.name: one for one in traces(findings(open_model(tensors)), modules)}
    assert set(found) == set(tensors)
    assert found["model.embed_tokens.weight"].library == "Linear, which differs"
    assert found["lm_head.weight"].library == "Linear, which agrees"
    fused = found["h.0.attn.c_attn.weight"]
    assert fused.layout == "no configuration says how it is divided"
    assert fused.treatment == "analysed as a matrix, undivided"
    assert fused.role == "attn_qkv, by 'c_attn'"
    halves = found["h.1.mlp.gate_up_proj.weight"]
    assert (halves.treatment, halves.layout) == (
        "analysed as gate, up", "rows: gate dim/2, up dim/2 (any family)")  # fmt: skip
    assert found["h.1.mlp.experts.gate_up_proj"].treatment == "analysed as 3 experts, undivided"
    assert found["h.1.mixer.A_log"].treatment.startswith("skipped: ")
    assert found["h.0.attn.c_attn.bias"].treatment.startswith("counted: a vector")
    assert found["ids"].treatment == "counted: integers"
    assert found["what.is.this"].role == "other, as no rule knows its name"
    assert found["conv.weight"].role.startswith("conv, ")
    [table, note] = traces_report("toy", found.values(), "").blocks
    assert len(table.rows) == len(tensors)  # type: ignore[union-attr]
    assert note.text.endswith("1 agree, 1 differ.")  # type: ignore[union-attr]


WORDS = ("experts", "mlp", "0", "attn", "gate_up_proj", "qkv", "weight", "bias", "norm", "conv", "")


@given(st.text(max_size=30), st.lists(st.sampled_from(WORDS), max_size=6))
def test_any_name_has_a_rule_or_none(text: str, words: list[str]) -> None:
    name = ".".join([text, *words])
    rule = rule_for(name)
    assert rule.role in ROLES and (rule.role == "other" or rule.because)
    [*found] = findings(open_model({name or "x": gaussian(4, 6)}))
    assert len(found) == 1 and (found[0].matrices or found[0].exclusion)


@pytest.mark.parametrize(
    "name",
    [
        "attn." * 30_000,
        "rope" * 30_000,
        "decoder.mlp." * 10_000,
        "9" * 30_000,
        "experts." * 20_000,
        "_orig_mod." * 10_000 + "w",
    ],
)
def test_long_names_take_no_time(name: str) -> None:
    """Patterns that look back and forth would take hours; the limit is that of the test run."""
    [found] = findings(open_model({name: gaussian(4, 6)}), divided=True)
    assert found.matrices and select(open_model({name: gaussian(4, 6), "w10": gaussian(4, 4)}))


def test_names_are_sorted_by_their_numbers() -> None:
    names = ["l.10.w", "l.9.w", "l.2.w", "a", "l.010.w", "l.9" + "9" * 5000, "l.w", "l.²"]
    assert sorted(names, key=natural_key)[:4] == ["a", "l.2.w", "l.9.w", "l.010.w"]
    assert len({str(natural_key(name)) for name in names}) == len(names)


def test_counts_of_a_configuration_are_cut_to_what_the_headers_show(tmp_path: Path) -> None:
    tensors = {"model.layers.2.up_proj.weight": gaussian(4, 4), "e.experts": gaussian(5, 4, 4)}
    config = {
        "num_hidden_layers": 200_000, "num_experts": 10**9, "hidden_size": 4096,
        "depths": [2, 9**9], "num_experts_per_tok": 2, "mamba_chunk_size": 256,
        "attn_layer_period": 8, "n_layer": 2, "layer_norm_eps": 1e-5,
        "text_config": {"num_hidden_layers": 50, "vocab_size": 32000},
        "layer_types": ["a"] * 10**5, "tie": True,
    }  # fmt: skip
    cut = capped(config, checkpoint(tmp_path, tensors))
    assert (cut["num_hidden_layers"], cut["num_experts"], cut["n_layer"]) == (3, 5, 2)
    assert cut["depths"] == [2, 3] and cut["text_config"] == {
        "num_hidden_layers": 3, "vocab_size": 32000}  # fmt: skip
    assert len(cut["layer_types"]) < 10**4
    for key in ("hidden_size", "num_experts_per_tok", "mamba_chunk_size", "attn_layer_period",
                "layer_norm_eps", "tie"):  # fmt: skip
        assert cut[key] == config[key]


def test_without_a_known_family_there_is_no_cross_check() -> None:
    assert modules_of(open_model({"w": gaussian(4, 4)})) == (
        {}, "there is no configuration that names a family")  # fmt: skip
    assert library_modules({"model_type": "no-such-family"}, ["w"]) == (
        {}, "transformers does not know the family")  # fmt: skip


@pytest.mark.slow
def test_inspect_why(tmp_path: Path) -> None:
    """The real command, with a configuration that brings code and too many layers."""
    marker = tmp_path / "executed"
    folder = tmp_path / "toy"
    save(build("gpt2", **GPT), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"n_layer": 200_000, "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    for name in ("evil.py", "torch.py", "transformers.py", "json.py"):
        (folder / name).write_text(f"open({str(marker)!r}, 'w')\n")
    done = run_weightscope("inspect", folder, "--why", "--format", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["library"] == "transformers" and not marker.exists()
    lines = {one["name"]: one for one in found["tensors"]}
    assert lines["transformer.h.0.attn.c_attn.weight"]["library"] == "Conv1D, which agrees"
    assert lines["transformer.h.0.attn.c_attn.weight"]["treatment"] == "analysed as q, k, v"


@pytest.mark.slow
@pytest.mark.parametrize("config", [
    {"model_type": "llama", "hidden_size": 10**12, "num_hidden_layers": 10**9},
    {"model_type": "swin", "depths": [10**9] * 1000, "num_heads": [1] * 1000},
    {"model_type": "wav2vec2", "conv_dim": [512] * 10**6},
    {"model_type": "llama", "num_attention_heads": "many"},
    {"model_type": "auto", "architectures": ["os", "PreTrainedModel", 7]},
    json.loads('{"model_type": "llama", "a": ' * 800 + "1" + "}" * 800),
])  # fmt: skip
def test_hostile_configurations_only_cost_the_cross_check(
    config: dict[str, Any], tmp_path: Path
) -> None:
    modules, _ = modules_of(checkpoint(tmp_path, {"layers.0.w": gaussian(4, 4)}, **config))
    assert modules == {}
