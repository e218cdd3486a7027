"""Quantised checkpoints from end to end: rows are those of the weights that the codes mean."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import run_weightscope
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from weightscope.analysis import analyze
from weightscope.expressions import calls
from weightscope.inspection import inspect_checkpoint
from weightscope.layouts.config import model_facts
from weightscope.plan import make_plan
from weightscope.quantised import quantised
from weightscope.run import Run
from weightscope.select import select_for
from weightscope.settings import Settings
from weightscope.sources import open_model

FOLDER = Path(__file__).parent / "data" / "quantised"
CASES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
PLAIN = Settings(metrics=("norms", "condition", "rank", "encoding"))
X = "model.layers.0.mlp.down_proj"
Tensors = dict[str, torch.Tensor]


def case(name: str) -> tuple[Tensors, Tensors, dict[str, Any], dict[str, str]]:
    """Tensors as their library stores them, the weights it unpacks, configuration, metadata."""
    path = FOLDER / f"{name}.safetensors"
    everything = load_file(path)
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
    config = json.loads(metadata.pop("case"))["config"]
    truth = {n.partition(":")[2]: t for n, t in everything.items() if n.startswith("expected:")}
    return {n: t for n, t in everything.items() if ":" not in n}, truth, config, metadata


def written(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
    **facts: Any,
) -> Path:
    """A model folder."""
    folder.mkdir(exist_ok=True)
    save_file(dict(tensors), folder / "model.safetensors", dict(metadata or {}))
    record = {**facts, **({"quantization_config": config} if config else {})}
    (folder / "config.json").write_text(json.dumps(record))
    return folder


def rows_of(run: Run) -> dict[str, Any]:
    return {str(row["name"]): row for row in run.rows}


def spectrum_of(run: Run, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    return run.spectra()[name].singular_values


def exact(weights: torch.Tensor) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.linalg.svd(weights.double().numpy(), compute_uv=False)


def fp8(*shape: int, seed: int = 0) -> torch.Tensor:
    made = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=made).mul_(50).to(torch.float8_e4m3fn)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", CASES)
def test_spectra_are_those_of_what_the_library_unpacks(name: str, tmp_path: Path) -> None:
    tensors, truth, config, metadata = case(name)
    run = analyze(written(tmp_path / "m", tensors, config, metadata), PLAIN)
    rows = rows_of(run)
    ((weight, expected),) = truth.items()
    stacked = expected.dim() == 3
    each = {f"{weight}[{e}]": expected[e] for e in range(len(expected))} if stacked else truth
    assert {row for row in rows if "bias" not in row} == set(each)
    # a value that its library rounded to a narrow dtype is not rounded here
    rounding = 0.0 if expected.dtype == torch.float32 else torch.finfo(expected.dtype).eps
    for row, matrix in each.items():
        assert rows[row]["status"] in {"ok", "too_few", "fused"}, rows[row]["reason"]
        assert rows[row]["encoding"]
        found, sought = spectrum_of(run, row), exact(matrix)
        assert np.abs(found - sought).max() <= (1e-6 + rounding) * sought[0]


@pytest.mark.parametrize("name", ["gptq-v1-int4", "bnb-nf4-double", "hqq-int4-axis1"])
@pytest.mark.parametrize("mmap", [False, True])
def test_live_tensors_and_mapped_files_give_the_same(name: str, mmap: bool, tmp_path: Path) -> None:
    tensors, _, config, metadata = case(name)
    path = written(tmp_path / "m", tensors, config, metadata)
    checkpoint = replace(open_model(path), mmap=mmap)
    live = replace(checkpoint, memory={} if mmap else tensors, mmap=mmap)
    found, sought = analyze(live, PLAIN), analyze(path, PLAIN)
    assert found.rows == sought.rows


def test_rows_say_how_a_weight_was_stored(tmp_path: Path) -> None:
    tensors, _, config, _ = case("gptq-v1-int4")
    plain = {"model.layers.0.self_attn.q_proj.weight": gaussian(40, 32)}
    run = analyze(written(tmp_path / "m", tensors | plain, config), PLAIN)
    rows = rows_of(run)
    assert set(rows) == {f"{X}.weight", *plain}
    packed, other = rows[f"{X}.weight"], rows[next(iter(plain))]
    assert (packed["dtype"], packed["encoding"], packed["role"]) == (
        "I32",
        "gptq-int4-g32",
        "mlp_down",
    )
    assert (other["dtype"], other["encoding"], other["status"]) == ("F32", None, "ok")
    assert run.summary["integer_tensors"] == 0


def test_the_command_line_analyses_quantised_models(tmp_path: Path) -> None:
    tensors, truth, config, _ = case("awq-int4")
    written(tmp_path / "m", tensors, config)
    done = run_weightscope("analyze", "m", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "run" / "table.jsonl").read_text("utf-8").splitlines()
    (row,) = map(json.loads, lines)
    assert row["encoding"] == "awq-int4-g32"
    (expected,) = truth.values()
    assert row["spectral_norm"] == pytest.approx(exact(expected)[0], rel=1e-3)
    shown = run_weightscope("inspect", "m", "--format", "json", cwd=tmp_path)
    assert json.loads(shown.stdout)["patterns"][0]["dtype"] == "awq-int4-g32"


# noise --------------------------------------------------------------------------------------------


def test_the_floor_is_that_of_the_codes_for_parts_too(tmp_path: Path) -> None:
    """One step per row: every entry is off by step / sqrt(12), so both sums are known."""
    name = "model.layers.0.self_attn.qkv_proj.weight"
    step = torch.linspace(0.1, 2.0, 96)[:, None]
    codes = torch.randint(-127, 128, (96, 32), generator=torch.Generator().manual_seed(0))
    tensors = {name: codes.to(torch.int8), f"{name}_scale": step}
    weights = {"num_bits": 8, "type": "int", "strategy": "channel"}
    config = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": weights}}}
    facts = {"num_attention_heads": 4, "num_key_value_heads": 4, "hidden_size": 32}
    path = written(tmp_path / "m", tensors, config, model_type="phi3", **facts)
    run = analyze(path, PLAIN)
    thirds = {f"{name}[{label}]": step[32 * k : 32 * k + 32] for k, label in enumerate("qkv")}
    assert set(rows_of(run)) == set(thirds)
    values = codes.double() * step.double()
    for k, (row, steps) in enumerate(thirds.items()):
        squares = steps.double() ** 2 / 12
        floor = float((32 * squares.max()) ** 0.5 + squares.sum() ** 0.5)
        assert rows_of(run)[row]["sv_floor"] == pytest.approx(floor, rel=1e-6)
        sought = exact(values[32 * k : 32 * k + 32])
        assert np.abs(spectrum_of(run, row) - sought).max() <= 1e-6 * sought[0]
    whole = analyze(path, replace(PLAIN, fused=True))
    squares = step.double() ** 2 / 12
    floor = float((32 * squares.max()) ** 0.5 + squares.sum() ** 0.5)
    assert rows_of(whole)[name]["sv_floor"] == pytest.approx(floor, rel=1e-6)


def test_a_difference_has_the_noise_of_both_sides(tmp_path: Path) -> None:
    tensors, truth, config, _ = case("gptq-v1-int4")
    ((name, expected),) = truth.items()
    base = {name: expected.float() + gaussian(*expected.shape) / 100}
    written(tmp_path / "base", base, {})
    path = written(tmp_path / "m", tensors, config)
    run = analyze(path, replace(PLAIN, base=str(tmp_path / "base")))
    sought = exact(expected.double() - base[name].double())
    assert np.abs(spectrum_of(run, name) - sought).max() <= 1e-2 * sought[0]
    alone = rows_of(analyze(path, PLAIN))[name]["sv_floor"]
    assert rows_of(run)[name]["sv_floor"] == pytest.approx(alone, rel=1e-4)


# experts, parts, plans ----------------------------------------------------------------------------


def experts(tmp_path: Path) -> tuple[Path, str, torch.Tensor]:
    """Three experts in blocks of 32 x 32, gate and up in one."""
    name = "model.layers.0.mlp.experts.gate_up_proj"
    codes, scale = fp8(3, 64, 48), torch.rand(3, 2, 2, generator=torch.Generator()) + 0.5
    config = {"quant_method": "fp8", "weight_block_size": [32, 32]}
    tensors = {name: codes, f"{name}_scale_inv": scale}
    facts = {"hidden_size": 48, "moe_intermediate_size": 32, "num_experts": 3}
    path = written(tmp_path / "m", tensors, config, model_type="qwen3_moe", **facts)
    wide = scale.repeat_interleave(32, 1).repeat_interleave(32, 2)[:, :, :48]
    return path, name, codes.double() * wide.double()


def test_experts_are_decoded_one_at_a_time(tmp_path: Path) -> None:
    path, name, truth = experts(tmp_path)
    selection = select_for(open_model(path), Settings(fused=True))
    for matrix in selection.matrices:
        assert [index for _, index in calls(matrix)] == [matrix.expert] * 2
        assert matrix.nbytes == 64 * 48 + 4 * 4
    run = analyze(path, replace(PLAIN, fused=True))
    for e in range(3):
        sought = exact(truth[e])
        assert np.abs(spectrum_of(run, f"{name}[{e}]") - sought).max() <= 1e-6 * sought[0]


def test_parts_of_experts_are_cut_from_the_decoded_weight(tmp_path: Path) -> None:
    path, name, truth = experts(tmp_path)
    run = analyze(path, PLAIN)
    assert {row["encoding"] for row in run.rows} == {"fp8-e4m3-32x32"}
    for e in range(3):
        for label, rows in (("gate", slice(0, 32)), ("up", slice(32, 64))):
            sought = exact(truth[e, rows])
            found = spectrum_of(run, f"{name}[{e}][{label}]")
            assert np.abs(found - sought).max() <= 1e-6 * sought[0]


def test_the_plan_counts_stored_bytes(tmp_path: Path) -> None:
    tensors, _, config, _ = case("gptq-v1-int4")
    checkpoint = open_model(written(tmp_path / "m", tensors, config))
    selection = select_for(checkpoint, Settings())
    plan = make_plan(selection.matrices, None)
    assert plan.bytes_read == sum(t.nbytes for n, t in tensors.items() if "bias" not in n)
    found = inspect_checkpoint(checkpoint, selection, plan, model_facts(checkpoint.config))
    assert [pattern.dtype for pattern in found.patterns] == ["gptq-int4-g32"]


# what cannot be decoded ---------------------------------------------------------------------------


def test_an_unknown_scheme_is_named(tmp_path: Path) -> None:
    tensors = {f"{X}.weight": torch.zeros(16, 16, dtype=torch.uint8), f"{X}.scale": torch.ones(4)}
    run = analyze(written(tmp_path / "m", tensors, {"quant_method": "vptq-nine"}), PLAIN)
    (row,) = run.rows
    assert row["status"] == "unsupported"
    assert "'vptq-nine' is not supported" in str(row["reason"])


def test_missing_scales_are_said(tmp_path: Path) -> None:
    tensors = {f"{X}.weight": fp8(16, 12), "a.weight": gaussian(20, 16)}
    rows = rows_of(analyze(written(tmp_path / "m", tensors, {}), PLAIN))
    assert rows["a.weight"]["status"] == "ok"
    assert rows[f"{X}.weight"]["status"] == "unsupported"
    assert rows[f"{X}.weight"]["dtype"] == "F8_E4M3"
    assert rows[f"{X}.weight"]["reason"] == (
        f"Not analysed: it is quantised (fp8), and its scales ('{X}.weight_scale_inv') are missing."
    )


def test_patterns_apply_to_what_cannot_be_decoded(tmp_path: Path) -> None:
    tensors = {f"{X}.weight": fp8(16, 12), "a.weight": gaussian(20, 16)}
    path = written(tmp_path / "m", tensors, {})
    run = analyze(path, replace(PLAIN, exclude=("*down_proj*",)))
    assert [row["name"] for row in run.rows] == ["a.weight"]
    assert run.summary["filtered"] == 1


def test_a_damaged_weight_fails_alone(tmp_path: Path) -> None:
    good, bad = f"{X}.weight", "model.layers.1.mlp.down_proj.weight"
    scale = torch.ones(16, 1)
    broken = torch.full((16, 1), float("nan"))
    tensors = {good: fp8(16, 12), f"{good}_scale": scale, bad: fp8(16, 12), f"{bad}_scale": broken}
    run = analyze(written(tmp_path / "m", tensors, {}), Settings(farms="auto"))
    rows = rows_of(run)
    assert rows[good]["status"] == "ok"
    assert rows[bad]["status"] == "failed"
    assert f"tensor '{bad}_scale' has scales that are NaN" in str(rows[bad]["reason"])


def test_plain_models_are_left_as_they_are(tmp_path: Path) -> None:
    tensors = {"a.weight": gaussian(20, 16), "a.mask": torch.ones(4, 4, dtype=torch.bool)}
    checkpoint = open_model(written(tmp_path / "m", tensors, {}))
    assert quantised(checkpoint).checkpoint is checkpoint


# words --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "said"), [("gptq-v1-int4", True), ("gptq-v1-int8", False)])
def test_advice_doubts_tails_at_four_bits(name: str, said: bool, tmp_path: Path) -> None:
    tensors, _, config, _ = case(name)
    run = analyze(written(tmp_path / "m", tensors, config), Settings())
    (row,) = run.rows
    if row["reading"] != "random-like":
        assert ("partly measure the quantiser" in str(row["advice"])) is said
