"""Adapters: the spectrum of scale * B A from the factors, against the product formed here."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import gaussian, run_weightscope, write_file
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from weightscope.bases import select_against
from weightscope.decompositions.factors import factored_spectrum, factored_statistics
from weightscope.errors import CheckpointError
from weightscope.folders.storage import load_run
from weightscope.layouts.adapters import alphas_in, place
from weightscope.measure import Measure, reading
from weightscope.measurement import Measurement
from weightscope.metrics import adapter
from weightscope.outcome import Values
from weightscope.present.run import run_report
from weightscope.report import Paragraph
from weightscope.select import Selection, select_for
from weightscope.settings import Settings
from weightscope.sources import open_model
from weightscope.tensor import DTYPES, TensorRef

Array = np.ndarray[Any, np.dtype[np.float64]]
PREFIX = "base_model.model."


def peft_test(test: Callable[..., None]) -> Callable[..., None]:
    """A test that needs PEFT itself."""
    missing = importlib.util.find_spec("peft") is None
    skip = pytest.mark.skipif(missing, reason="peft is not installed: pip install '.[oracle]'")
    return pytest.mark.oracle(skip(test))


def write_adapter(folder: Path, tensors: Mapping[str, torch.Tensor], **config: Any) -> Path:
    """A PEFT adapter as its library saves it."""
    write_file(folder / "adapter_model.safetensors", tensors)
    settings = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def factors(
    module: str, rows: int, cols: int, r: int = 4, seed: int = 0
) -> dict[str, torch.Tensor]:
    """Both factors of one module, as PEFT names them."""
    return {
        f"{PREFIX}{module}.lora_A.weight": gaussian(r, cols, seed=seed),
        f"{PREFIX}{module}.lora_B.weight": gaussian(rows, r, seed=seed + 1),
    }


def selected(model: Path | Mapping[str, torch.Tensor], **settings: Any) -> Selection:
    return select_for(open_model(model), Settings(**settings))


def measured(
    model: Path, base: Path | None = None, merged: bool = False, **settings: Any
) -> dict[str, Measurement]:
    """Every matrix of a model on disk, measured."""
    checkpoint, options = open_model(model), Settings(**settings)
    if base is None:
        selection, beside = select_for(checkpoint, options), checkpoint
    else:
        beside = open_model(base)
        selection = select_against(checkpoint, beside, options, merged)
    with reading(checkpoint) as read, reading(beside) as read_base:
        work = Measure(read, None, read_base=read_base)
        return {matrix.name: work(matrix) for matrix in selection.matrices}


def values_of(found: Measurement) -> Array:
    assert found.spectrum is not None
    return found.spectrum.singular_values


def columns_of(found: Measurement) -> Values:
    return adapter.evaluate(found, Settings(), {})


def svdvals(matrix: torch.Tensor) -> Array:
    found: Array = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
    return found


def assert_spectrum(found: Measurement, wanted: Array, rel: float = 1e-11) -> None:
    values = values_of(found)
    assert values.shape == wanted.shape
    np.testing.assert_allclose(values, wanted, rtol=0, atol=rel * wanted[0])


# the product


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 50), st.integers(0, 2**31),
    st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)  # fmt: skip
@hypothesis_settings(max_examples=60, deadline=None)
def test_factors_have_the_spectrum_of_their_product(
    rows: int, cols: int, r: int, seed: int, dtype: torch.dtype
) -> None:
    B = gaussian(rows, r, seed=seed, dtype=dtype, scale=1.0)
    A = gaussian(r, cols, seed=seed + 1, dtype=dtype, scale=1.0)
    found = factored_spectrum([(B, A)], -1.7)
    wanted = np.linalg.svd(1.7 * B.double().numpy() @ A.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(found.singular_values, wanted, rtol=0, atol=1e-13 * wanted[0])
    assert (max(rows, cols), min(rows, cols)) == (found.N, found.M)
    assert not found.singular_values[r:].any()


@pytest.mark.parametrize("exponent", [-150, -60, 60, 150])
def test_extreme_scales_of_the_factors_change_nothing_else(exponent: int) -> None:
    B, A = gaussian(20, 3, seed=1).double(), gaussian(3, 30, seed=2).double()
    plain = factored_spectrum([(B, A)], 1.0).singular_values
    shifted = factored_spectrum([(B * 10.0**exponent, A)], 10.0**-exponent).singular_values
    np.testing.assert_allclose(shifted, plain, rtol=1e-12, atol=1e-14 * plain[0])


def test_statistics_are_those_of_the_product() -> None:
    B, A = gaussian(50, 4, seed=1) + 0.01, gaussian(4, 30, seed=2) - 0.02
    found = factored_statistics([(B, A)], 2.5, (DTYPES["F32"], DTYPES["F32"]))
    product = 2.5 * B.double().numpy() @ A.double().numpy()
    assert found.mean == pytest.approx(product.mean(), rel=1e-12)
    assert found.std == pytest.approx(product.std(), rel=1e-12)


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_rounded_factors_move_no_singular_value_by_more_than_the_floor(dtype: str) -> None:
    kind = DTYPES[dtype]
    narrow = getattr(torch, kind.torch)
    for seed in range(10):
        B = gaussian(60, 8, seed=seed, scale=1.0).double()
        A = gaussian(8, 40, seed=seed + 100, scale=1.0).double()
        rounded = B.to(narrow), A.to(narrow)
        floor = factored_statistics([rounded], 3.0, (kind, kind)).sv_floor
        assert floor is not None
        exact = factored_spectrum([(B, A)], 3.0).singular_values
        moved = np.abs(factored_spectrum([rounded], 3.0).singular_values - exact).max()
        assert floor / 20 < moved < floor


def test_entries_that_are_not_finite_are_counted_as_in_the_product() -> None:
    B, A = gaussian(6, 2, seed=1), gaussian(2, 9, seed=2)
    B[3, 1], A[0, 4] = float("inf"), float("nan")
    found = factored_statistics([(B, A)], 1.0, (DTYPES["F32"], DTYPES["F32"]))
    assert found.nonfinite == int((~torch.isfinite(B @ A)).sum())


# what the files say


def test_a_row_has_the_name_and_shape_of_the_weight(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path, factors("model.layers.3.self_attn.q_proj", 40, 24))
    (found,) = measured(folder).values()
    matrix = found.matrix
    assert matrix.name == "model.layers.3.self_attn.q_proj.weight"
    assert (matrix.role, matrix.block, matrix.rows, matrix.cols) == ("attn_q", 3, 40, 24)
    assert (matrix.N, matrix.M, matrix.full_rank) == (40, 24, 4)


@pytest.mark.parametrize(
    ("config", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q_proj": 3}}, 0.75),
        ({"alpha_pattern": {r"^model\.layers\.1\.": 3}}, 2.0),
        ({"alpha_pattern": {r"layers\.\d+\.q_proj": 3, "q_proj": 5}}, 0.75),
        ({"r": 16, "rank_pattern": {".*q_proj": 4}}, 2.0),
        ({"alpha_pattern": {"roj": 3}}, 2.0),
    ],
)
def test_scale_follows_alpha_rank_and_patterns(
    tmp_path: Path, config: dict[str, Any], scale: float
) -> None:
    tensors = factors("model.layers.0.q_proj", 20, 30)
    (found,) = measured(write_adapter(tmp_path, tensors, **config)).values()
    A, B = tensors.values()
    assert_spectrum(found, svdvals(scale * B.double() @ A.double()))
    assert columns_of(found)["adapter_scale"] == scale
    assert columns_of(found)["adapter_rank"] == 4


def test_fan_in_fan_out_and_embeddings_are_turned_round(tmp_path: Path) -> None:
    tensors = {
        **factors("h.0.attn.c_proj", 20, 30),
        f"{PREFIX}wte.lora_embedding_A": gaussian(4, 50, seed=5),
        f"{PREFIX}wte.lora_embedding_B": gaussian(16, 4, seed=6),
    }
    found = measured(write_adapter(tmp_path, tensors, fan_in_fan_out=True))
    shapes = {name: (one.matrix.rows, one.matrix.cols) for name, one in found.items()}
    assert shapes == {"h.0.attn.c_proj.weight": (30, 20), "wte.weight": (50, 16)}
    assert found["wte.weight"].matrix.role == "embedding"
    A, B = list(tensors.values())[2:]
    assert_spectrum(found["wte.weight"], svdvals(2 * (B.double() @ A.double()).T))


@pytest.mark.parametrize("conv", ["slices", "flatten"])
def test_kernels_are_seen_as_convolutions_are(tmp_path: Path, conv: str) -> None:
    A, B = gaussian(4, 12, 3, 3, seed=1), gaussian(20, 4, 1, 1, seed=2)
    names = [f"{PREFIX}conv1.lora_{side}.weight" for side in "AB"]
    folder = write_adapter(tmp_path, dict(zip(names, (A, B), strict=True)))
    kernel = 2 * torch.einsum("or,rihw->oihw", B[:, :, 0, 0].double(), A.double())
    write_file(tmp_path / "whole" / "model.safetensors", {"conv1.weight": kernel})
    (update,) = measured(folder, conv=conv).values()
    (whole,) = measured(tmp_path / "whole", conv=conv).values()
    assert_spectrum(update, values_of(whole))
    assert update.matrix.slices == (9 if conv == "slices" else 1)


def expert_factors(module: str, out: int, into: int, seed: int) -> dict[str, torch.Tensor]:
    return {
        f"{PREFIX}{module}.lora_A.weight": gaussian(3 * 4, into, seed=seed),
        f"{PREFIX}{module}.lora_B.weight": gaussian(out, 4 * 3, seed=seed + 1),
    }


def test_experts_are_told_apart_with_b_expert_minor(tmp_path: Path) -> None:
    up = expert_factors("layers.0.mlp.experts.base_layer", 40, 16, 1)
    down = expert_factors("layers.0.mlp.experts", 16, 20, 7)
    names = ["experts.gate_up_proj", "mlp.experts.down_proj"]
    found = measured(write_adapter(tmp_path, up | down, target_parameters=names), fused=True)
    for name, tensors in (("gate_up_proj", up), ("down_proj", down)):
        A, B = (t.double() for t in tensors.values())
        stack = torch.einsum("ore,eri->eoi", B.reshape(-1, 4, 3), A.reshape(3, 4, -1))
        for expert in range(3):
            one = found[f"layers.0.mlp.experts.{name}[{expert}]"]
            assert_spectrum(one, svdvals(2 * stack[expert]))
            assert one.matrix.role.startswith("expert_")


def test_a_nesting_the_other_way_round_is_seen_by_the_shapes(tmp_path: Path) -> None:
    down = expert_factors("layers.0.mlp.experts.base_layer", 16, 20, 7)
    up = expert_factors("layers.0.mlp.experts", 40, 16, 1)
    names = ["experts.gate_up_proj", "experts.down_proj"]
    found = measured(write_adapter(tmp_path, up | down, target_parameters=names), fused=True)
    shapes = {one.matrix.name: (one.matrix.rows, one.matrix.cols) for one in found.values()}
    assert shapes["layers.0.mlp.experts.down_proj[2]"] == (16, 20)
    assert shapes["layers.0.mlp.experts.gate_up_proj[2]"] == (40, 16)


def test_modules_to_save_are_ordinary_matrices(tmp_path: Path) -> None:
    head = gaussian(10, 24, seed=9)
    tensors = {**factors("q_proj", 24, 24), f"{PREFIX}score.weight": head}
    found = measured(write_adapter(tmp_path, tensors))
    assert_spectrum(found[f"{PREFIX}score.weight"], svdvals(head))
    assert columns_of(found[f"{PREFIX}score.weight"]) == {}


KOHYA = "lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q"
STYLES = {
    "kohya": (KOHYA, "lora_down.weight", "lora_up.weight"),
    "diffusers": ("unet.mid_block.attn1.to_q", "lora_A.weight", "lora_B.weight"),
    "diffusers of old": ("unet.mid_block.attn1.to_q", "lora.down.weight", "lora.up.weight"),
    "text encoder": ("te.layers.0.q_proj", "lora_linear_layer.down.weight",
                     "lora_linear_layer.up.weight"),
    "live": ("model.layers.0.self_attn.q_proj", "lora_A.default.weight", "lora_B.default.weight"),
}  # fmt: skip


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("alpha", [None, 6.0])
def test_single_files_of_every_style(tmp_path: Path, style: str, alpha: float | None) -> None:
    module, down, up = STYLES[style]
    A, B = gaussian(4, 30, seed=1), gaussian(20, 4, seed=2)
    tensors = {f"{module}.{down}": A, f"{module}.{up}": B}
    if alpha is not None:
        tensors[f"{module}.alpha"] = torch.tensor(alpha)
    (found,) = measured(write_file(tmp_path / "lora.safetensors", tensors)).values()
    scale = 1.0 if alpha is None else alpha / 4
    assert_spectrum(found, svdvals(scale * B.double() @ A.double()))
    assert columns_of(found)["adapter_scale"] == scale
    assert found.matrix.role == "attn_q"


def test_underscored_names_get_their_block_back(tmp_path: Path) -> None:
    tensors = {
        f"{KOHYA}.lora_down.weight": gaussian(4, 8),
        f"{KOHYA}.lora_up.weight": gaussian(8, 4),
    }
    (found,) = measured(write_file(tmp_path / "lora.safetensors", tensors)).values()
    name = "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight"
    assert (found.matrix.name, found.matrix.block) == (name, 0)


def test_several_adapters_of_one_weight_keep_their_names() -> None:
    tensors = {"down_proj.base_layer.weight": gaussian(20, 30)}
    for seed, kind in enumerate(("speech", "vision")):
        tensors[f"down_proj.lora_A.{kind}.weight"] = gaussian(4, 30, seed=seed)
        tensors[f"down_proj.lora_B.{kind}.weight"] = gaussian(20, 4, seed=seed)
    found = {matrix.name: matrix.role for matrix in selected(tensors).matrices}
    assert found == {
        "down_proj.base_layer.weight": "other",
        "down_proj.lora.speech.weight": "mlp_down",
        "down_proj.lora.vision.weight": "mlp_down",
    }


# figures


def test_used_rank_counts_the_directions_of_the_energy(tmp_path: Path) -> None:
    strengths = torch.tensor([10.0, 5.0, 2.0, 1.0])
    B = torch.zeros(20, 4)
    B[:4] = torch.diag(strengths)
    tensors = {
        f"{PREFIX}q_proj.lora_A.weight": torch.eye(4, 12),
        f"{PREFIX}q_proj.lora_B.weight": B,
    }
    (found,) = measured(write_adapter(tmp_path, tensors)).values()
    energy = np.array([100, 25, 4, 1]) / 130
    wanted = {f"delta_rank_{p}": int(np.sum(np.cumsum(energy) < p / 100)) + 1 for p in (90, 95, 99)}
    columns = columns_of(found)
    assert wanted == {"delta_rank_90": 2, "delta_rank_95": 2, "delta_rank_99": 3}
    assert {key: columns[key] for key in wanted} == wanted
    assert columns["delta_top_share"] == pytest.approx(100 / 130, rel=1e-14)


def test_a_module_that_was_never_trained_has_an_empty_spectrum(tmp_path: Path) -> None:
    tensors = factors("q_proj", 20, 12)
    tensors[f"{PREFIX}q_proj.lora_B.weight"].zero_()
    (found,) = measured(write_adapter(tmp_path, tensors)).values()
    assert not values_of(found).any()
    assert columns_of(found) == {
        "adapter_rank": 4, "adapter_scale": 2.0,
        "delta_rank_90": 0, "delta_rank_95": 0, "delta_rank_99": 0,
    }  # fmt: skip


def test_a_module_that_was_never_trained_is_said_loudly(tmp_path: Path) -> None:
    """By its status, on standard error, at the top of the report, and in its advice."""
    tensors = factors("a.q_proj", 40, 36) | factors("b.q_proj", 40, 36)
    tensors[f"{PREFIX}b.q_proj.lora_B.weight"].zero_()
    path = write_adapter(tmp_path / "lora", tensors)
    done = run_weightscope("analyze", path, "--format", "csv", "--out", "run", cwd=tmp_path)
    said = "1 update of the adapter is zero (B = 0), as if never trained: b.q_proj."
    assert done.returncode == 0 and said in done.stderr
    rows = {row["name"]: row for row in load_run(tmp_path / "run").rows}
    assert rows["a.q_proj.weight"]["status"] == "too_few"  # as an update of rank 4
    dead = rows["b.q_proj.weight"]
    assert (dead["status"], dead["reading"], dead["delta_rank_99"]) == ("zero", "dead", 0)
    blocks = run_report(load_run(tmp_path / "run")).blocks
    assert any(isinstance(block, Paragraph) and block.text == said for block in blocks)


# what is refused


def test_kinds_that_need_the_base_say_so(tmp_path: Path) -> None:
    for number, config in enumerate(
        ({"use_dora": True}, {"init_lora_weights": "pissa_niter_4"}, {"init_lora_weights": "olora"},
         {"init_lora_weights": "corda"}, {"init_lora_weights": "loftq"})
    ):  # fmt: skip
        folder = write_adapter(tmp_path / str(number), factors("q_proj", 20, 12), **config)
        selection = selected(folder)
        assert not selection.matrices
        (excluded,) = selection.exclusions
        assert excluded.status == "unsupported"
        assert "--base" in excluded.reason


@pytest.mark.parametrize(
    "kind",
    ["LOHA", "LOKR", "OFT", "IA3", "VERA", "ADALORA", "PREFIX_TUNING", "PROMPT_TUNING", "FUTURE"],
)
def test_other_kinds_are_refused_by_name(tmp_path: Path, kind: str) -> None:
    folder = write_adapter(tmp_path, factors("q_proj", 20, 12), peft_type=kind)
    with pytest.raises(CheckpointError, match=kind):
        selected(folder)


def test_a_whole_model_beside_the_config_of_an_adapter_is_a_model(tmp_path: Path) -> None:
    write_adapter(tmp_path, {"w": gaussian(8, 8)}, peft_type="LOHA")
    (tmp_path / "adapter_model.safetensors").rename(tmp_path / "model.safetensors")
    assert [matrix.name for matrix in selected(tmp_path).matrices] == ["w"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [("m.hada_w1_a", "LoHa"), ("m.lokr_w2", "LoKr"), ("m.lora_mid.weight", "Tucker"),
     ("m.lora_E", "AdaLoRA"), ("m.oft_blocks", "OFT"), ("prompt_embeddings", "prefix tuning"),
     ("m.poly_lora_A", "Poly"), ("m.vblora_logits_A", "VB-LoRA"), ("m.bone_block", "Bone"),
     ("m.hra_u", "HRA"), ("m.fourierft_spectrum", "FourierFT")],
)  # fmt: skip
def test_other_kinds_are_known_by_their_tensors(tmp_path: Path, name: str, kind: str) -> None:
    file = write_file(tmp_path / "x.safetensors", {name: gaussian(4, 4)})
    with pytest.raises(CheckpointError, match=kind):
        selected(file)


def broken() -> dict[str, tuple[dict[str, torch.Tensor], dict[str, Any], str]]:
    good = factors("q_proj", 20, 12)
    A, B = good
    return {
        "no partner": ({A: good[A]}, {}, "factor B"),
        "no partner either": ({B: good[B]}, {}, "factor A"),
        "ranks": ({**good, B: gaussian(20, 5)}, {}, "rank 4.*5"),
        "config rank": (good, {"r": 8}, "rank 4.*8"),
        "no rank": (good, {"r": "many"}, "many"),
        "zero rank": (good, {"r": 0}, "rank 4.*'0'"),
        "no entries": ({A: gaussian(0, 12), B: gaussian(20, 0)}, {}, "rank 0"),
        "alpha huge": (good, {"lora_alpha": 10**400}, "no finite number"),
        "dimensions": ({**good, B: gaussian(20, 4, 1)}, {}, "shape"),
        "kernel of B": ({A: gaussian(4, 12, 3, 3), B: gaussian(20, 4, 3, 3)}, {}, "shape"),
        "alpha NaN": (good, {"lora_alpha": float("nan")}, "nan"),
        "alpha infinite": (good, {"alpha_pattern": {"q_proj": float("inf")}}, "inf"),
        "alpha text": (good, {"lora_alpha": "8"}, "no finite number"),
        "alpha boolean": (good, {"lora_alpha": True}, "no finite number"),
        "pattern list": (good, {"rank_pattern": ["q_proj"]}, "no dictionary"),
        "pattern broken": (good, {"rank_pattern": {"(": 4}}, "rank_pattern"),
        "pattern hangs": (good, {"alpha_pattern": {"(a+)+$": 4}}, "alpha_pattern"),
        "pattern slow": (good, {"alpha_pattern": {".*.*.*.*.*x": 4}}, "alpha_pattern"),
        "alpha tensor NaN": ({**good, f"{PREFIX}q_proj.alpha": torch.tensor(float("nan"))}, {},
                             "alpha.*nan"),
        "alpha tensor of many": ({**good, f"{PREFIX}q_proj.alpha": torch.ones(3)}, {}, "alpha"),
    }  # fmt: skip


@pytest.mark.parametrize("case", broken())
def test_factors_that_do_not_belong_together_are_one_sentence(tmp_path: Path, case: str) -> None:
    tensors, config, words = broken()[case]
    folder = write_adapter(tmp_path, tensors, **config)
    with pytest.raises(CheckpointError, match=words) as raised:
        selected(folder)
    assert "adapter_model.safetensors" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    "config", [[], 3, {"peft_type": None}, {"r": None, "target_parameters": 5}]
)
def test_odd_configs_end_in_a_sentence_or_in_figures(tmp_path: Path, config: Any) -> None:
    folder = write_adapter(tmp_path, factors("q_proj", 20, 12))
    (folder / "adapter_config.json").write_text(json.dumps(config))
    try:
        selected(folder)
    except CheckpointError as error:
        assert str(folder) in str(error)


KEYS = st.sampled_from(
    ["lora_A.weight", "lora_B.weight", "lora_A.x.weight", "lora_embedding_A", "lora_embedding_B",
     "lora_down.weight", "lora_up.weight", "lora.down.weight", "lora.up.weight", "alpha",
     "lora_magnitude_vector", "dora_scale", "base_layer.lora_A.weight", "base_layer.weight",
     "lora_B.bias", "weight"]
)  # fmt: skip
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 8), st.floats(), st.text(max_size=4),
    st.lists(st.sampled_from(["experts.up", "q", "", 3]), max_size=2),
    st.dictionaries(st.text("q.*+()[\\\\d$^|?{", max_size=6), st.integers(0, 4), max_size=2),
)  # fmt: skip
FIELDS = st.sampled_from(
    ["peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
     "fan_in_fan_out", "target_parameters", "init_lora_weights"]
)  # fmt: skip
NAMES = st.builds("{}.{}".format, st.sampled_from(["q", "base_model.model.mlp.experts"]), KEYS)
SHAPES = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@given(
    st.dictionaries(NAMES, SHAPES, min_size=1, max_size=6),
    st.dictionaries(FIELDS, VALUES, max_size=4),
)
@hypothesis_settings(max_examples=400, deadline=None)
def test_no_factors_and_no_config_crash(
    shapes: dict[str, tuple[int, ...]], config: dict[str, Any]
) -> None:
    refs = [TensorRef(name, shape, "F32", "x.safetensors") for name, shape in shapes.items()]
    try:
        alphas = {ref.name: 1.0 for ref in alphas_in(refs)}
        placed = place(refs, config, alphas)
    except CheckpointError as error:
        assert "x.safetensors" in str(error)
    else:
        names = [ref.name for ref in placed.tensors]
        assert placed.products.keys() <= set(names)


# PEFT itself


def llama(**options: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, **options,
        )
    )  # fmt: skip


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=96, n_embd=48, n_layer=2, n_head=4))


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=96, hidden_size=48, intermediate_size=40, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, num_local_experts=3,
        )
    )  # fmt: skip


def resnet() -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[16, 24], depths=[1, 1], num_labels=3)
    return ResNetForImageClassification(config)


PLAIN = ["q_proj", "down_proj"]
VARIANTS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "plain": (llama, {"target_modules": PLAIN}),
    "rslora": (llama, {"target_modules": PLAIN, "use_rslora": True}),
    "patterns": (llama, {"target_modules": PLAIN,
                         "rank_pattern": {r"^model\.layers\.0\.self_attn\.q_proj": 12},
                         "alpha_pattern": {"down_proj": 3, r"layers\.\d+\.self_attn\.q_proj": 5}}),
    "embeddings": (llama, {"target_modules": ["embed_tokens", "v_proj"]}),
    "fan_in_fan_out": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "experts": (mixtral, {"target_modules": ["q_proj"], "target_parameters": [
        "experts.gate_up_proj", "experts.down_proj"]}),
    "convolutions": (resnet, {"target_modules": ["convolution"]}),
    "rank above the width": (llama, {"target_modules": ["k_proj"], "r": 64}),
    "modules to save": (llama, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "orthogonal": (llama, {"target_modules": PLAIN, "init_lora_weights": "orthogonal"}),
}  # fmt: skip


def adapted_model(make: Callable[[], Any], folder: Path, **config: Any) -> Any:
    """A model of PEFT with random factors, saved with its base by the libraries themselves."""
    from peft import LoraConfig, get_peft_model

    model = make()
    model.save_pretrained(folder / "base")
    wrapped = get_peft_model(model, LoraConfig(**{"r": 8, "lora_alpha": 12, **config}))
    torch.manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_magnitude_vector" in name:
            parameter.data *= 1 + 0.3 * torch.rand_like(parameter)
        elif "lora_" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
    wrapped.save_pretrained(folder / "adapter")
    return wrapped.double()


def deltas(wrapped: Any) -> dict[str, torch.Tensor]:
    """What PEFT says that every module's weight changes by."""
    found = {}
    for name, module in wrapped.named_modules():
        if hasattr(module, "get_delta_weight") and hasattr(module, "scaling"):
            plain = name.removeprefix(PREFIX).replace(".base_layer", "")
            key = getattr(module, "parameter_name", "weight")
            found[f"{plain}.{key}"] = module.get_delta_weight("default").detach()
    return found


@peft_test
@pytest.mark.parametrize("variant", VARIANTS)
def test_updates_are_those_of_peft(tmp_path: Path, variant: str) -> None:
    make, config = VARIANTS[variant]
    wrapped = adapted_model(make, tmp_path, **config)
    wanted = deltas(wrapped)
    found = measured(tmp_path / "adapter", fused=True)
    updates = {name: one for name, one in found.items() if one.matrix.product}
    seen = set()
    for one in updates.values():
        matrix = one.matrix
        delta = wanted[matrix.tensor.name]
        seen.add(matrix.tensor.name)
        if matrix.expert is not None:
            delta = delta[matrix.expert]
        if delta.dim() == 4:
            pooled = [svdvals(delta[:, :, i, j]) for i in range(delta.shape[2])
                      for j in range(delta.shape[3])]  # fmt: skip
            assert_spectrum(one, -np.sort(-np.concatenate(pooled)), 1e-10)
        else:
            assert (matrix.rows, matrix.cols) == tuple(delta.shape)
            assert_spectrum(one, svdvals(delta), 1e-10)
    assert seen == set(wanted)


MERGED = {
    **VARIANTS,
    "DoRA": (llama, {"target_modules": PLAIN, "use_dora": True}),
    "DoRA of Conv1D": (gpt2, {"target_modules": ["c_proj"], "use_dora": True,
                              "fan_in_fan_out": True}),
    "DoRA of embeddings": (llama, {"target_modules": ["embed_tokens"], "use_dora": True}),
    "DoRA of convolutions": (resnet, {"target_modules": ["convolution"], "use_dora": True}),
    "PiSSA": (llama, {"target_modules": PLAIN, "init_lora_weights": "pissa"}),
    "PiSSA of Conv1D": (gpt2, {"target_modules": ["c_fc"], "init_lora_weights": "pissa",
                               "fan_in_fan_out": True}),
    "OLoRA": (llama, {"target_modules": PLAIN, "init_lora_weights": "olora"}),
}  # fmt: skip


@peft_test
@pytest.mark.parametrize("variant", MERGED)
def test_merged_weights_are_those_of_peft(tmp_path: Path, variant: str) -> None:
    make, config = MERGED[variant]
    wrapped = adapted_model(make, tmp_path, **config)
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    here = measured(tmp_path / "adapter", tmp_path / "base", merged=True, fused=True)
    there = measured(tmp_path / "merged", fused=True)
    updates = {n: one for n, one in here.items() if one.matrix.product}
    assert updates
    for name, one in updates.items():
        assert_spectrum(one, values_of(there[name]), 2e-6)


@peft_test
@pytest.mark.parametrize("variant", [v for v in MERGED if v not in VARIANTS])
def test_updates_of_kinds_that_need_the_base_are_what_merging_changes(
    tmp_path: Path, variant: str
) -> None:
    make, config = MERGED[variant]
    wrapped = adapted_model(make, tmp_path, **config)
    wrapped.merge_and_unload().save_pretrained(tmp_path / "merged")
    here = measured(tmp_path / "adapter", tmp_path / "base")
    there = measured(tmp_path / "merged", tmp_path / "base")
    updates = {n: one for n, one in here.items() if one.matrix.product}
    assert updates
    for name, one in updates.items():
        assert one.matrix.base is not None
        assert_spectrum(one, values_of(there[name]), 2e-6)
