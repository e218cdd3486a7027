"""Quantised models by HTTP ranges, and by the configurations that quantisers write beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import test_remote
import torch
from fake_hub import FakeHub, files_of
from safetensors.torch import save_file
from test_quantised_models import CASES, case, written
from test_remote import WAYS, of_bytes, temporary_files

import weightscope
from weightscope.analysis import analyze
from weightscope.checkpoint import Access
from weightscope.settings import Settings
from weightscope.sources import open_model
from weightscope.sources.stream import GAP

hub = test_remote.hub
QUICK = Settings(metrics=("norms", "condition", "encoding"), threads=1)


@pytest.mark.parametrize("name", CASES)
def test_codes_scales_and_zeros_come_by_ranges(hub: FakeHub, tmp_path: Path, name: str) -> None:
    """Several tensors make up one matrix; none of their bytes comes twice."""
    tensors, _, config, metadata = case(name)
    path = written(tmp_path / "m", tensors, config, metadata)
    hub.add("acme/packed", files_of(path))
    near = analyze(path, QUICK)
    far = analyze("acme/packed", QUICK, access=Access("stream"))
    assert far.rows == near.rows and any(row["spectral_norm"] for row in far.rows)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    size = (path / "model.safetensors").stat().st_size
    assert hub.bytes_sent(".safetensors") <= 2 * size + 65536  # small descriptions come before


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["gptq-v2-int4-act", "bnb-nf4-double", "gpt-oss-mxfp4"])
def test_every_way_gives_the_rows_of_the_folder(
    hub: FakeHub, tmp_path: Path, name: str, way: str
) -> None:
    tensors, _, config, metadata = case(name)
    path = written(tmp_path / "m", tensors, config, metadata)
    hub.add("acme/packed", files_of(path))
    far = weightscope.analyze("acme/packed", fetch=way, metrics=QUICK.metrics, threads=1)
    assert far.rows == analyze(path, QUICK).rows


def test_of_a_stack_only_the_expert_that_is_wanted_comes(hub: FakeHub, tmp_path: Path) -> None:
    """Codes and scales of one expert of many, by ranges of their own."""
    made = torch.Generator().manual_seed(0)
    experts, rows, cols = 64, 96, 512
    tensors = {
        "model.layers.0.mlp.experts.down_proj_blocks": torch.randint(
            0, 256, (experts, rows, cols // 32, 16), dtype=torch.uint8, generator=made
        ),
        "model.layers.0.mlp.experts.down_proj_scales": torch.randint(
            120, 130, (experts, rows, cols // 32), dtype=torch.uint8, generator=made
        ),
    }
    facts = {"model_type": "gpt_oss", "hidden_size": rows}
    path = written(tmp_path / "m", tensors, {"quant_method": "mxfp4"}, **facts)
    hub.add("acme/packed", files_of(path))
    checkpoint = open_model("acme/packed", Access("stream"))
    before = len(of_bytes(hub))
    names = [str(row["name"]) for row in analyze(path, QUICK).rows]
    wanted = Settings(include=("*down_proj*",), sample=1, metrics=("norms",), threads=1)
    [row] = [row for row in analyze(checkpoint, wanted).rows if row["status"] == "ok"]
    assert row["name"] in names and len(names) == experts
    sent = sum(one.sent for one in of_bytes(hub)[before:])
    own, whole = rows * cols // 32 * 17, (path / "model.safetensors").stat().st_size
    assert own <= sent <= own + GAP < whole // 4


def test_every_quantiser_is_known_by_the_file_it_writes(hub: FakeHub, tmp_path: Path) -> None:
    nvfp4 = {"quant_algo": "NVFP4", "kv_cache_quant_algo": None, "group_size": 16}
    files: dict[str, tuple[str, dict[str, Any]]] = {
        "gptq-v1-int4": ("quantize_config.json", {"bits": 4, "group_size": 32, "desc_act": False}),
        "gptq-v2-int4-act": (
            "quantize_config.json",
            {"bits": 4, "group_size": 32, "desc_act": True, "checkpoint_format": "gptq_v2"},
        ),
        "awq-int4": ("quant_config.json", {"w_bit": 4, "q_group_size": 32, "version": "GEMM"}),
        "modelopt-nvfp4": (
            "hf_quant_config.json",
            {"producer": {"name": "modelopt"}, "quantization": {**nvfp4, "exclude_modules": []}},
        ),
    }
    for name, (file, config) in files.items():
        tensors, _, usual, _ = case(name)
        path = written(tmp_path / name, tensors, {})
        bare = analyze(path, QUICK)
        (path / file).write_text(json.dumps(config))
        expected = analyze(written(tmp_path / "usual", tensors, usual), QUICK)
        found = analyze(path, QUICK)
        assert found.rows == expected.rows and all(row["spectral_norm"] for row in found.rows)
        hub.add(f"acme/{name}", files_of(path))
        assert analyze(f"acme/{name}", QUICK, access=Access("stream")).rows == found.rows
        if "gptq" in name:
            assert {row["status"] for row in bare.rows} == {"unsupported"}
            assert any("no configuration tells" in str(row["reason"]) for row in bare.rows)


def test_a_method_of_modelopt_that_is_not_known_is_named(tmp_path: Path) -> None:
    weight = torch.randint(0, 256, (32, 32), dtype=torch.uint8)
    path = written(tmp_path / "m", {"layers.0.q_proj.weight": weight}, {})
    algorithm = {"quantization": {"quant_algo": "W4A8_AWQ"}}
    (path / "hf_quant_config.json").write_text(json.dumps(algorithm))
    [row] = analyze(path, QUICK).rows
    assert row["status"] == "unsupported" and "modelopt_w4a8_awq" in str(row["reason"])


@pytest.mark.parametrize(
    "own", [{"quantization": []}, {"quantization": {"quant_algo": {}}}, {"bits": "four"}, {}]
)
@pytest.mark.parametrize("file", ["quantize_config.json", "hf_quant_config.json"])
def test_odd_configurations_of_quantisers_do_no_harm(
    tmp_path: Path, file: str, own: Mapping[str, Any]
) -> None:
    tmp_path.mkdir(exist_ok=True)
    save_file({"layers.0.q_proj.weight": torch.randn(16, 16)}, tmp_path / "model.safetensors")
    (tmp_path / file).write_text(json.dumps(own))
    [row] = analyze(tmp_path, QUICK).rows
    assert row["status"] == "ok"
    (tmp_path / file).write_text("{")
    assert any(file in note for note in open_model(tmp_path).notes)


@pytest.mark.parametrize("way", WAYS)
def test_codes_and_scales_may_lie_in_different_shards(
    hub: FakeHub, tmp_path: Path, way: str
) -> None:
    tensors, _, config, metadata = case("gptq-v2-int4-act")
    near = analyze(written(tmp_path / "m", tensors, config, metadata), QUICK)
    folder = tmp_path / "shards"
    folder.mkdir()
    weight_map = {}
    for place, (name, tensor) in enumerate(sorted(tensors.items()), 1):
        file = f"model-{place:05d}-of-{len(tensors):05d}.safetensors"
        save_file({name: tensor.contiguous()}, folder / file)
        weight_map[name] = file
    index = json.dumps({"weight_map": weight_map})
    (folder / "model.safetensors.index.json").write_text(index)
    (folder / "config.json").write_text(json.dumps({"quantization_config": config}))
    hub.add("acme/packed", files_of(folder))
    far = analyze("acme/packed", QUICK, access=Access(way))  # type: ignore[arg-type]
    assert far.rows == near.rows == analyze(folder, QUICK).rows
    assert not temporary_files(tmp_path)
