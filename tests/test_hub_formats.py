"""Hub models in other formats than safetensors: pickles, GGUF, pipelines; a hub on loopback."""

from __future__ import annotations

import gc
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import test_remote
import torch
from checkpoints import Bomb, gaussian, small_model, write_file, write_sharded
from fake_hub import FakeHub, Fault, files_of
from test_remote import TOKEN, WAYS, refused, temporary_files

import weightscope
from weightscope.checkpoint import Access
from weightscope.errors import CheckpointError, OptionError
from weightscope.sources import open_model, whole
from weightscope.sources.headers import FIRST_READ

hub = test_remote.hub
quick = test_remote.quick
SHARDS = [f"pytorch_model-0000{n}-of-00002.bin" for n in (1, 2)]
WHOLE = ("shard", "cache", "auto")


def saved(found: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(found, stream)
    return stream.getvalue()


def pickled(tensors: dict[str, torch.Tensor]) -> dict[str, bytes]:
    """A sharded model as repositories had it before safetensors."""
    names = list(tensors)
    parts = [{name: tensors[name] for name in names[k::2]} for k in range(2)]
    weight_map = {name: SHARDS[k] for k, part in enumerate(parts) for name in part}
    return {
        "config.json": b'{"model_type": "toy"}',
        "pytorch_model.bin.index.json": json.dumps({"weight_map": weight_map}).encode(),
        **{name: saved(part) for name, part in zip(SHARDS, parts, strict=True)},
    }


def near_rows(folder: Path, files: dict[str, bytes], **wanted: Any) -> Any:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return weightscope.analyze(folder, **wanted).rows


# --- pickles -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WHOLE)
def test_a_model_of_pickles_gives_the_rows_of_its_folder(
    hub: FakeHub, tmp_path: Path, way: str
) -> None:
    files = pickled(small_model())
    commit = hub.add("acme/old", files, gated=True).branches["main"]
    wanted: dict[str, Any] = {"metrics": "norms,stats", "threads": 1}
    run = weightscope.analyze("acme/old", fetch=way, token=TOKEN, **wanted)
    assert run.rows == near_rows(tmp_path / "near", files, **wanted) and len(run.rows) == 9
    source = run.provenance["source"]
    assert source["revision"] == f"acme/old@{commit}" and source["format"] == "pytorch"
    assert all(file["modified_ns"] == 0 for file in source["files"])
    assert not any(one.token for one in hub.log if one.host == "storage")
    gc.collect()
    assert not temporary_files(tmp_path)
    cached = [path.name for path in (tmp_path / "cache").rglob("*.bin")]
    assert sorted(cached) == ([] if way == "shard" else SHARDS)
    if way != "shard":
        hub.log.clear()
        assert open_model("acme/old", Access("stream", token=TOKEN)).format == "pytorch"
        assert not [one for one in hub.log if one.host == "storage"]


def test_pickles_are_not_streamed_and_the_reason_is_said(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("acme/old", pickled(small_model()))
    with pytest.raises(OptionError, match=r"--fetch stream: .*pytorch_model-00001.*shard or cache"):
        open_model("acme/old", Access("stream"))
    assert not [one for one in hub.log if one.host == "storage"]


def test_what_is_too_large_for_the_cache_goes_through_a_temporary_folder(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = pickled(small_model())
    hub.add("acme/old", files)
    size = sum(len(content) for name, content in files.items() if name in SHARDS)
    monkeypatch.setattr(whole, "CACHE_AT_MOST", size - 1)
    checkpoint = open_model("acme/old")
    assert "temporary folder" in checkpoint.notes[0] and temporary_files(tmp_path) == SHARDS
    del checkpoint
    gc.collect()
    assert not temporary_files(tmp_path)


@pytest.mark.parametrize("way", ["shard", "cache"])
def test_a_pickle_from_the_hub_runs_no_code(hub: FakeHub, tmp_path: Path, way: str) -> None:
    marker = tmp_path / "executed"
    hub.add("acme/evil", {"pytorch_model.bin": saved({"w": Bomb(marker)})})
    message = refused("acme/evil", Access(way))  # type: ignore[arg-type]
    assert "would run code" in message and "pytorch_model.bin" in message
    gc.collect()
    assert not marker.exists() and not temporary_files(tmp_path)


def test_a_file_that_is_cut_on_its_way_is_fetched_to_its_end(
    hub: FakeHub, tmp_path: Path, quick: None
) -> None:
    hub.add("acme/old", {"model.pt": saved({"w": gaussian(300, 300)})})
    hub.faults = [Fault("storage GET", times=2, cut=100_000)]
    checkpoint = open_model("acme/old", Access("shard"))
    assert torch.equal(checkpoint.memory["w"], gaussian(300, 300))


def test_a_file_that_never_comes_is_an_error_and_leaves_nothing(
    hub: FakeHub, tmp_path: Path, quick: None
) -> None:
    hub.add("acme/old", pickled(small_model()))
    hub.faults = [Fault(f"storage GET .*{SHARDS[1]}", times=-1, status=500)]
    assert SHARDS[1] in refused("acme/old", Access("shard"))
    gc.collect()
    assert not temporary_files(tmp_path)


def test_a_missing_pickle_of_an_index_is_named_before_anything_is_fetched(hub: FakeHub) -> None:
    files = pickled(small_model())
    hub.add("acme/old", {name: data for name, data in files.items() if name != SHARDS[1]})
    assert SHARDS[1] in refused("acme/old")
    assert not [one for one in hub.log if one.host == "storage"]


def test_an_adapter_of_pickles_and_one_file_by_its_address(hub: FakeHub, tmp_path: Path) -> None:
    module = "base_model.model.layers.0.q_proj"
    factors = {
        f"{module}.lora_A.weight": gaussian(4, 32),
        f"{module}.lora_B.weight": gaussian(16, 4),
    }
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    hub.add(
        "acme/lora",
        {
            "adapter_model.bin": saved(factors),
            "adapter_config.json": json.dumps(config).encode(),
            "optimizer.pt": b"never opened",
            "deep/model.pth": saved({"w": gaussian(8, 8)}),
        },
    )
    [row] = weightscope.analyze("acme/lora", metrics="adapter").rows
    assert (row["name"], row["adapter_rank"], row["adapter_scale"]) == (
        "layers.0.q_proj.weight",
        4,
        2,
    )
    assert [ref.name for ref in open_model("hf://acme/lora/deep/model.pth").tensors] == ["w"]
    assert "name its folder" in refused("hf://acme/lora/optimizer.pt")
    assert "optimizer.pt" not in hub.fetched()


# --- GGUF --------------------------------------------------------------------------------------


def gguf_of(path: Path, tensors: dict[str, torch.Tensor], kind: str) -> bytes:
    gguf = pytest.importorskip("gguf", reason="pip install 'weightscope[gguf]'")
    writer = gguf.GGUFWriter(path, "llama")
    for name, weights in tensors.items():
        packed = gguf.quants.quantize(weights.numpy(), gguf.GGMLQuantizationType[kind])
        writer.add_tensor(name, packed, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.add_tensor("plain", np.ones((4, 4), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


@pytest.mark.parametrize("way", WAYS)
def test_gguf_files_are_read_in_every_way(hub: FakeHub, tmp_path: Path, way: str) -> None:
    tensors = {f"blk.{i}.ffn_up.weight": gaussian(128, 256, seed=i) for i in range(6)}
    tensors["blk.6.ffn_gate_exps.weight"] = gaussian(3, 32, 64, seed=7)
    content = gguf_of(tmp_path / "toy.gguf", tensors, "Q4_0")
    other = gguf_of(tmp_path / "b", {}, "Q8_0")
    hub.add("acme/quants", {"toy.gguf": content, "other.gguf": other})
    assert "several models" in refused("acme/quants")
    hub.log.clear()
    checkpoint = open_model("hf://acme/quants/toy.gguf", Access(way))  # type: ignore[arg-type]
    assert hub.bytes_sent(".gguf") <= FIRST_READ < len(content)
    wanted: dict[str, Any] = {"metrics": "norms,stats,encoding", "threads": 1}
    far = weightscope.analyze(checkpoint, **wanted)
    assert far.rows == weightscope.analyze(tmp_path / "toy.gguf", **wanted).rows
    assert [row["encoding"] for row in far.rows] == ["gguf-q4-0"] * 9 + [None]
    if way == "stream":
        hub.log.clear()
        weightscope.analyze(checkpoint, include=("*exps*",), **wanted)
        assert hub.bytes_sent(".gguf") == 3 * 32 * 64 // 32 * 18
    assert not temporary_files(tmp_path)


# --- pipelines and variants --------------------------------------------------------------------


def pipeline_of(folder: Path, pickles: bool) -> dict[str, bytes]:
    write_sharded(folder / "unet", small_model(), shards=2)
    (folder / "unet" / "config.json").write_text("{}")
    (folder / "vae").mkdir()
    weights = {"decoder.conv_in.weight": gaussian(8, 4, 3, 3), "mid.to_q.weight": gaussian(16, 16)}
    if pickles:
        (folder / "vae" / "diffusion_pytorch_model.bin").write_bytes(saved(weights))
    else:
        write_file(folder / "vae" / "model-00001-of-00001.safetensors", weights)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    parts = {name: ["diffusers", name] for name in ("unet", "vae", "scheduler", "nothing")}
    index = {"_class_name": "ToyPipeline", "safety_checker": [None, None], **parts}
    (folder / "model_index.json").write_text(json.dumps(index))
    write_file(folder / "all-in-one.safetensors", {"w": gaussian(4, 4)})
    return files_of(folder)


@pytest.mark.parametrize("pickles", [False, True], ids=["safetensors", "pickles"])
@pytest.mark.parametrize("way", WAYS)
def test_the_models_of_a_pipeline_are_one(
    hub: FakeHub, tmp_path: Path, way: str, pickles: bool
) -> None:
    hub.add("acme/draw", pipeline_of(tmp_path / "near", pickles))
    if pickles and way == "stream":
        with pytest.raises(OptionError, match=r"diffusion_pytorch_model\.bin"):
            open_model("acme/draw", Access("stream"))
        return
    wanted: dict[str, Any] = {"metrics": "norms,stats", "threads": 1}
    far = weightscope.analyze("acme/draw", fetch=way, **wanted)
    assert far.rows == weightscope.analyze(tmp_path / "near", **wanted).rows
    assert {str(row["name"]).partition(".")[0] for row in far.rows} == {"unet", "vae"}
    assert "all-in-one.safetensors" not in hub.fetched()
    assert any("all-in-one" in note for note in open_model("acme/draw").notes)
    gc.collect()
    assert not temporary_files(tmp_path)


def test_a_pipeline_never_leads_out_of_its_folder(hub: FakeHub, tmp_path: Path) -> None:
    names = ("..", ".", "a/../..", "a\\b", "/etc")
    index = {"_class_name": "Evil", **{key: ["diffusers", "x"] for key in names}}
    files = {f"{name}/evil.bin": saved({"w": gaussian(4, 4)}) for name in names}
    hub.add("acme/evil", {"model_index.json": json.dumps(index).encode(), **files})
    for way in ("shard", "cache"):
        refused("acme/evil", Access(way))  # type: ignore[arg-type]
    assert not [path for path in hub.fetched() if "evil.bin" in path]
    assert not list(tmp_path.rglob("*evil*.bin"))


def test_variants_on_the_hub_are_counted_once(hub: FakeHub, tmp_path: Path) -> None:
    content = write_file(tmp_path / "x", small_model()).read_bytes()
    names = ("model.safetensors", "model.fp16.safetensors", "consolidated.safetensors")
    hub.add("acme/twice", {**dict.fromkeys(names, content), "original/consolidated.00.pth": b""})
    checkpoint = open_model("acme/twice", Access("stream"))
    assert len(checkpoint.tensors) == len(small_model())
    [note] = [note for note in checkpoint.notes if "not read" in note]
    assert note.startswith("read: model.safetensors; ")
    assert all(name in note for name in (*names[1:], "original/"))
    assert len(open_model("hf://acme/twice/model.fp16.safetensors", Access("stream")).notes) == 1


def test_a_distributed_checkpoint_is_fetched_whole(hub: FakeHub, tmp_path: Path) -> None:
    import torch.distributed.checkpoint as dcp

    state = {"model": {"layers.0.weight": gaussian(24, 16)}}
    dcp.save(state, checkpoint_id=tmp_path / "near", no_dist=True)
    hub.add("acme/shards", files_of(tmp_path / "near"))
    for way in ("shard", "cache"):
        run = weightscope.analyze("acme/shards", fetch=way, metrics="norms", threads=1)
        assert run.rows == weightscope.analyze(tmp_path / "near", metrics="norms", threads=1).rows
    with pytest.raises(CheckpointError, match="name its folder"):
        open_model("hf://acme/shards/__0_0.distcp")
