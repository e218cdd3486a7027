"""Where checkpoints come from: files, folders, indexes, live models; and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    environment,
    gaussian,
    malicious_pickles,
    run_each,
    run_weightscope,
    small_model,
    write_file,
    write_in_order,
    write_index,
    write_sharded,
)
from torch import nn

import weightscope
from weightscope.checkpoint import Access, Checkpoint
from weightscope.errors import CheckpointError
from weightscope.formats.memory import read_tensor as read_live
from weightscope.formats.safetensors import map_tensor, read_tensor
from weightscope.select import select
from weightscope.sources import open_model
from weightscope.sources.shards import MAX_JSON

INDEX = "model.safetensors.index.json"


def refused(model: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_model(model)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    return message


def holds_all_of(checkpoint: Checkpoint, tensors: dict[str, torch.Tensor]) -> bool:
    """Whether a checkpoint lists these tensors, each once, and reads every one as it is."""
    refs = {ref.name: ref for ref in checkpoint.tensors}
    assert len(refs) == len(checkpoint.tensors) and set(refs) == set(tensors)
    floats = [name for name, tensor in tensors.items() if tensor.is_floating_point()]
    return all(torch.equal(read_tensor(refs[name]), tensors[name]) for name in floats)


# --- files and folders -----------------------------------------------------------------------


def test_a_file(tmp_path: Path) -> None:
    model = small_model()
    checkpoint = open_model(str(write_file(tmp_path / "my model.safetensors", model)))
    assert checkpoint.name == "my model"
    assert [file.name for file in checkpoint.files] == ["my model.safetensors"]
    assert holds_all_of(checkpoint, model) and not checkpoint.notes


def test_a_file_may_have_any_suffix(tmp_path: Path) -> None:
    model = small_model()
    assert holds_all_of(open_model(write_file(tmp_path / "weights.dat", model)), model)


def test_a_folder_with_an_index(tmp_path: Path) -> None:
    model = small_model()
    checkpoint = open_model(write_sharded(tmp_path / "toy", model))
    assert checkpoint.name == "toy" and len(checkpoint.files) == 3
    assert holds_all_of(checkpoint, model) and not checkpoint.notes


def test_a_folder_without_an_index(tmp_path: Path) -> None:
    model = small_model()
    folder = write_sharded(tmp_path / "toy", model, index=False)
    assert holds_all_of(open_model(folder), model)


def test_some_of_the_shards_that_their_names_count_are_no_model(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "toy", small_model(), index=False)
    names = sorted(path.name for path in folder.glob("*.safetensors"))
    (folder / names[1]).unlink()
    says = rf"toy: 1 of {len(names)} shards are missing, first '{names[1]}'.*name one file"
    with pytest.raises(CheckpointError, match=says):
        open_model(folder)
    assert len(open_model(folder / names[0]).files) == 1


def test_the_index_file_itself(tmp_path: Path) -> None:
    model = small_model()
    folder = write_sharded(tmp_path / "toy", model)
    checkpoint = open_model(folder / INDEX)
    assert checkpoint.name == "toy" and holds_all_of(checkpoint, model)
    assert checkpoint == open_model(folder)


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    model = small_model()
    write_file(tmp_path / "toy" / "model.safetensors", model)
    checkpoint = open_model(tmp_path / "toy")
    assert checkpoint.name == "toy" and holds_all_of(checkpoint, model)


def test_an_index_of_another_stem_is_found(tmp_path: Path) -> None:
    model = small_model()
    folder = write_sharded(tmp_path / "toy", model)
    (folder / INDEX).rename(folder / "diffusion_pytorch_model.safetensors.index.json")
    assert holds_all_of(open_model(folder), model)


def test_links_are_followed(tmp_path: Path) -> None:
    """A hub cache is a folder of links into its blobs."""
    model = small_model()
    blobs = write_sharded(tmp_path / "blobs", model)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for blob in blobs.iterdir():
        (snapshot / blob.name).symlink_to(blob)
    assert holds_all_of(open_model(snapshot), model)


def test_the_current_folder_is_named_after_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_file(tmp_path / "toy" / "model.safetensors", small_model())
    monkeypatch.chdir(tmp_path / "toy")
    assert open_model(".").name == "toy"


@pytest.mark.parametrize("folder", ["[a-z]*", "with space", "\u00fcml\u00e4ut", "line\nbreak"])
def test_a_folder_may_have_any_name(tmp_path: Path, folder: str) -> None:
    model = small_model()
    assert holds_all_of(open_model(write_sharded(tmp_path / folder, model)), model)


def test_stray_files_are_noted_and_not_read(tmp_path: Path) -> None:
    model = small_model()
    folder = write_sharded(tmp_path / "toy", model)
    write_file(folder / "consolidated.safetensors", model)
    (folder / "broken.safetensors").write_bytes(b"")
    (folder / "._model.safetensors").write_bytes(b"")
    checkpoint = open_model(folder)
    assert holds_all_of(checkpoint, model)
    [note] = checkpoint.notes
    assert "broken.safetensors, consolidated.safetensors" in note and INDEX in note
    assert open_model(folder / INDEX).notes == checkpoint.notes


def test_hidden_files_of_a_folder_without_an_index_are_not_weights(tmp_path: Path) -> None:
    model = small_model()
    folder = write_sharded(tmp_path / "toy", model, index=False)
    (folder / "._model-00001-of-00003.safetensors").write_bytes(b"\0" * 10)
    assert holds_all_of(open_model(folder), model)


def test_a_tensor_in_two_files_is_refused_with_both_named(tmp_path: Path) -> None:
    write_file(tmp_path / "a.safetensors", {"w": gaussian(2, 2), "x": gaussian(2, 2)})
    write_file(tmp_path / "b.safetensors", {"w": gaussian(2, 2)})
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path / 'b.safetensors'}: ")
    assert "'w'" in message and "a.safetensors" in message


def test_a_tensor_in_two_shards_of_an_index_is_refused(tmp_path: Path) -> None:
    write_file(tmp_path / "a.safetensors", {"w": gaussian(2, 2)})
    write_file(tmp_path / "b.safetensors", {"w": gaussian(2, 2), "x": gaussian(2, 2)})
    write_index(tmp_path, {"w": "a.safetensors", "x": "b.safetensors"})
    assert "'w'" in refused(tmp_path)


# --- what is missing or broken ---------------------------------------------------------------


def test_a_missing_path_is_named(tmp_path: Path) -> None:
    for name in ("nothing", "nothing.safetensors", "a/b/c", INDEX):
        assert refused(tmp_path / name).startswith(f"{tmp_path / name}: ")


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "toy", small_model())
    (folder / "model-00002-of-00003.safetensors").unlink()
    for model in (folder, folder / INDEX):
        message = refused(model)
        assert str(folder / INDEX) in message
        assert "1 of 3 shards" in message and "'model-00002-of-00003.safetensors'" in message


def test_a_dangling_link_is_a_missing_shard(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "toy", small_model())
    shard = folder / "model-00002-of-00003.safetensors"
    shard.unlink()
    shard.symlink_to(tmp_path / "nowhere")
    assert "model-00002-of-00003.safetensors" in refused(folder)


def test_a_broken_shard_is_named(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "toy", small_model())
    shard = folder / "model-00003-of-00003.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    message = refused(folder)
    assert message.startswith(f"{shard}: ") and "truncated" in message


def test_a_shard_that_is_a_folder_is_refused(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "toy", small_model())
    shard = folder / "model-00001-of-00003.safetensors"
    shard.unlink()
    shard.mkdir()
    assert str(shard) in refused(folder)


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "sub/inside.safetensors",
        "/etc/passwd",
        "./model.safetensors",
        "..\\outside.safetensors",
        "C:\\outside.safetensors",
        "..",
        ".",
        "",
        "sub/",
        "a\0b",
        7,
        None,
        ["model.safetensors"],
        {"file": "model.safetensors"},
        "x" * 100_000 + "/",
    ],
    ids=lambda name: repr(name)[:20],
)
def test_an_index_that_points_outside_its_folder_is_refused(tmp_path: Path, name: Any) -> None:
    folder = tmp_path / "toy"
    for place in (tmp_path / "outside", folder / "model", folder / "sub" / "inside"):
        write_file(place.with_suffix(".safetensors"), {"w": gaussian(2, 2)})
    index = write_index(folder, {"w": name, "v": "model.safetensors"})
    for model in (folder, index):
        message = refused(model)
        assert message.startswith(f"{index}: ") and "plain file name" in message


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"text"',
        "null",
        "{}",
        '{"weight_map": null}',
        '{"weight_map": {}}',
        '{"weight_map": ["model.safetensors"]}',
        "[" * 100_000,
        '{"weight_map": ' * 100_000,
        "\ufeff{}",
        '{"weight_map": {"w": "\\ud800.safetensors"}}',
    ],
    ids=lambda text: repr(text)[:24],
)
def test_what_is_no_index_is_refused(tmp_path: Path, text: str) -> None:
    write_file(tmp_path / "model.safetensors", {"w": gaussian(2, 2)})
    index = tmp_path / INDEX
    index.write_text(text, encoding="utf-8")
    for model in (tmp_path, index):
        assert refused(model).startswith(f"{index}: ")


def test_a_binary_or_huge_index_is_refused(tmp_path: Path) -> None:
    index = tmp_path / INDEX
    index.write_bytes(b"\xff\xfe\xfd")
    assert "not valid JSON" in refused(tmp_path)
    with index.open("wb") as file:
        file.truncate(MAX_JSON + 1)
    assert "larger than" in refused(tmp_path)


def test_another_json_file_is_no_model(tmp_path: Path) -> None:
    write_file(tmp_path / "model.safetensors", {"w": gaussian(2, 2)})
    (tmp_path / "config.json").write_text("{}")
    assert "name the folder" in refused(tmp_path / "config.json")


def test_folders_without_weights_say_what_they_hold(tmp_path: Path) -> None:
    assert "no weights" in refused(tmp_path)
    (tmp_path / "README.md").write_text("hello")
    assert "no weights" in refused(tmp_path)
    write_file(tmp_path / "unet" / "model.safetensors", {"w": gaussian(2, 2)})
    assert "'unet'" in refused(tmp_path)


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    write_file(tmp_path / "model.safetensors", {})
    assert "no tensors" in refused(tmp_path)


def test_special_files_do_not_hang(tmp_path: Path) -> None:
    """In a process of its own, with a limit: a pipe without a writer blocks for ever."""
    for name in (INDEX, "config.json", "model.safetensors"):
        folder = tmp_path / name.partition(".")[0] / name.replace(".", "_")
        write_file(folder / "weights.safetensors", {"w": gaussian(2, 2)})
        os.mkfifo(folder / name)
        code = "import sys, weightscope.sources as s\ntry: s.open_model(sys.argv[1])\n"
        code += "except s.CheckpointError as error: print(error)"
        done = subprocess.run(
            [sys.executable, "-c", code, folder],
            capture_output=True,
            text=True,
            timeout=60,
            env=environment(),
        )
        assert done.returncode == 0, done.stderr
        assert (str(folder) in done.stdout) == (name != "config.json")


@pytest.mark.parametrize("name", ["~no-such-user/model", "x" * 5000, "a\0b", ""])
def test_what_cannot_be_a_path_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(name)


@pytest.mark.parametrize("model", [7, None, [1, 2], object(), b"model"])
def test_what_is_no_model_is_refused(model: Any) -> None:
    assert type(model).__name__ in refused(model)


def test_a_file_or_folder_without_permission_is_refused_for_that_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may read everything, so that the kernel's answer comes from here."""
    write_sharded(tmp_path / "toy", small_model())

    def denied(*args: Any, **options: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    for calls in (("open",), ("scandir", "listdir"), ("stat",)):
        with monkeypatch.context() as patch:
            for call in calls:
                patch.setattr(os, call, denied)
            message = refused(tmp_path / "toy")
        assert "ermission" in message and str(tmp_path / "toy") in message


# --- pickles never run -----------------------------------------------------------------------


def test_malicious_pickles_in_a_folder_are_refused_by_name_and_none_runs(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    for kind, content in malicious_pickles(marker).items():
        folder = tmp_path / kind
        folder.mkdir()
        for name in ("pytorch_model.bin", "optimizer.pt", "training_args.bin", "model.pth"):
            (folder / name).write_bytes(content)
        message = refused(folder)
        assert message.startswith(f"{folder / 'pytorch_model.bin'}: ") and "pathlib" in message
    assert not marker.exists()


def test_a_pickle_under_a_safetensors_name_is_not_opened(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    for kind, content in malicious_pickles(marker).items():
        path = tmp_path / kind / "model.safetensors"
        path.parent.mkdir()
        path.write_bytes(content)
        for model in (path, path.parent):
            assert refused(model).startswith(f"{path}: ")
        write_index(path.parent, {"w": path.name})
        refused(path.parent)
    assert not marker.exists()


def test_a_pickle_beside_the_weights_is_left_alone(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    model = small_model()
    folder = write_sharded(tmp_path / "toy", model)
    for number, content in enumerate(malicious_pickles(marker).values()):
        (folder / f"optimizer-{number}.pt").write_bytes(content)
        (folder / f"model-{number}.bin").write_bytes(content)
    assert holds_all_of(open_model(folder), model)
    assert len(weightscope.analyze(folder, metrics=("norms",)).rows) == 9
    assert not marker.exists()


def test_a_pickle_named_alone_is_not_opened(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    for kind, content in malicious_pickles(marker).items():
        path = tmp_path / f"{kind}.bin"
        path.write_bytes(content)
        assert refused(path).startswith(f"{path}: ")
    assert not marker.exists()


def test_code_beside_the_weights_is_not_run(tmp_path: Path) -> None:
    """A config may name Python files of its own; they are never imported."""
    marker = tmp_path / "executed"
    folder = write_sharded(tmp_path / "toy", small_model())
    config = {
        "model_type": "evil",
        "architectures": ["Evil"],
        "auto_map": {"AutoConfig": "evil.Config", "AutoModel": "evil.Evil"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Config: pass\n")
    done = run_weightscope("inspect", folder, "--format", "json", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert not marker.exists()


# --- the config beside the weights -----------------------------------------------------------


def test_the_config_is_read(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "toy", small_model())
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for model in (folder, folder / INDEX, folder / "model-00001-of-00003.safetensors"):
        assert open_model(model).config == {"model_type": "llama"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff\xfe\xfd",
        b'{"a":' * 100_000,
        b"[" * 1_000_000,
        b'{"n": ' + b"9" * 10_000 + b"}",
        b"\0" * (MAX_JSON + 1),
    ],
    ids=["empty", "cut", "list", "binary", "deep", "deeper", "digits", "huge"],
)
def test_a_broken_config_is_ignored_with_a_note(tmp_path: Path, content: bytes) -> None:
    model = small_model()
    folder = write_sharded(tmp_path / "toy", model)
    (folder / "config.json").write_bytes(content)
    checkpoint = open_model(folder)
    assert holds_all_of(checkpoint, model) and checkpoint.config == {}
    [note] = checkpoint.notes
    assert "config.json" in note and "\n" not in note and len(note) < 1000


def test_a_config_that_is_a_folder_is_none(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "toy", small_model())
    (folder / "config.json").mkdir()
    assert open_model(folder).config == {}


LYING_CONFIGS: tuple[dict[str, Any], ...] = (
    {"model_type": ["llama"], "num_attention_heads": "many", "num_hidden_layers": -1},
    {"model_type": "llama", "num_hidden_layers": 200_000, "num_attention_heads": 0},
    {"model_type": "llama", "hidden_size": 10**30, "vocab_size": None},
    {"model_type": "no-such-model", "num_attention_heads": 1e400},
    {"model_type": "llama", "num_attention_heads": [1], "rope_scaling": "yes"},
    {"model_type": "bert", "num_hidden_layers": {"a": 1}, "architectures": {"a": [[[]]]}},
    {"model_type": None, "text_config": {"text_config": {"model_type": 3}}},
    {"text_config": [], "quantization_config": 4, "architectures": [7]},
)
FACTS = """
import json, sys
from weightscope.layouts.config import model_facts
for config in json.loads(sys.argv[1]):
    model_facts(config).as_text()
    print("done")
"""


def test_a_config_that_lies_does_no_harm() -> None:
    """A config of 200,000 layers must not build them: the limit is no stopwatch."""
    done = subprocess.run(
        [sys.executable, "-c", FACTS, json.dumps(LYING_CONFIGS)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment(),
    )
    assert done.stdout.split() == ["done"] * len(LYING_CONFIGS), done.stderr


def test_a_config_that_steers_terminals_is_shown_harmless(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "toy", small_model())
    config = {
        "model_type": "llama\x1b[31m\nfamily",
        "architectures": ["\x1b]0;title\x07"],
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "num_attention_heads": 4,
        "quantization_config": {"quant_method": "\x1b[2J"},
    }
    (folder / "config.json").write_text(json.dumps(config))
    styles = ("table", "markdown", "csv", "json")
    for done in run_each([("inspect", folder, "--format", s) for s in styles], tmp_path):
        assert done.returncode == 0, done.stderr
        assert not set(done.stdout + done.stderr) & {"\x1b", "\x07"}


# --- live models -----------------------------------------------------------------------------


class Tied(nn.Module):
    """Embedding and head share one parameter."""

    def __init__(self) -> None:
        """Build the two layers and tie them."""
        super().__init__()
        self.embed = nn.Embedding(20, 16)
        self.middle = nn.Linear(16, 16)
        self.head = nn.Linear(16, 20, bias=False)
        self.head.weight = self.embed.weight


def test_a_state_dict(tmp_path: Path) -> None:
    model = small_model()
    checkpoint = open_model(model)
    assert checkpoint.format == "memory" and {r.name for r in checkpoint.tensors} == set(model)
    for ref in checkpoint.tensors:
        assert torch.equal(read_live(checkpoint.memory, ref), model[ref.name])
        assert ref.shape == tuple(model[ref.name].shape)


def test_a_state_dict_gives_the_rows_its_file_gives(tmp_path: Path) -> None:
    model = small_model() | {
        "experts.gate_up_proj": gaussian(3, 24, 16, seed=5),
        "conv1.weight": gaussian(16, 12, 3, 3, seed=6),
        "half.weight": gaussian(20, 24, seed=7, dtype=torch.bfloat16),
        "transposed.weight": gaussian(24, 20, seed=8).T,
    }
    from_file = weightscope.analyze(write_file(tmp_path / "m.safetensors", model))
    assert weightscope.analyze(model).rows == from_file.rows
    assert len(from_file.rows) == 9 + 3 + 1 + 1 + 1


def test_a_tied_weight_is_listed_once() -> None:
    module = Tied()
    names = {ref.name for ref in open_model(module).tensors}
    assert names == {"embed.weight", "middle.weight", "middle.bias"}
    assert {ref.name for ref in open_model(module.state_dict()).tensors} == names


def test_views_of_one_storage_that_differ_are_all_listed() -> None:
    fused = gaussian(48, 16)
    parts = {"q": fused[:16], "k": fused[16:32], "v": fused[32:], "all": fused, "t": fused.T}
    assert {ref.name for ref in open_model(parts).tensors} == set(parts)


def test_empty_tensors_are_not_taken_for_tied_ones() -> None:
    tensors = {"a": torch.zeros(0, 4), "b": torch.zeros(0, 4)}
    assert len(open_model(tensors).tensors) == 2


def test_convolutions_of_a_module_are_known_by_type() -> None:
    """Of any dimension, transposed too, under names that say nothing."""
    module = nn.ModuleDict(
        {
            "one": nn.Conv1d(8, 12, 3),
            "two": nn.Conv2d(8, 12, (3, 2)),
            "three": nn.Conv3d(8, 12, 2),
            "back": nn.ConvTranspose1d(8, 12, 3),
            "linear": nn.Linear(8, 12),
        }
    )
    matrices = {m.name: m for m in select(open_model(module)).matrices}
    assert {name: (m.role == "conv", m.slices) for name, m in matrices.items()} == {
        "one.weight": (True, 3),
        "two.weight": (True, 6),
        "three.weight": (True, 8),
        "back.weight": (True, 3),
        "linear.weight": (False, 1),
    }


def test_a_bare_convolution_is_known_too() -> None:
    [matrix] = select(open_model(nn.Conv1d(8, 12, 3))).matrices
    assert (matrix.name, matrix.role, matrix.slices) == ("weight", "conv", 3)


def test_the_conv1d_of_transformers_is_a_linear_layer() -> None:
    from transformers.pytorch_utils import Conv1D

    module = nn.ModuleDict({"c_attn": Conv1D(48, 16), "c_fc": Conv1D(64, 16)})
    checkpoint = open_model(module)
    assert not checkpoint.conv
    for matrix in select(checkpoint).matrices:
        assert matrix.view == "whole" and matrix.role != "conv"


def test_a_live_model_is_not_changed_by_reading_it() -> None:
    module = Tied().train()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    run = weightscope.analyze(module)
    assert len(run.rows) == 2 and module.training
    assert all(torch.equal(module.state_dict()[name], before[name]) for name in before)
    assert all(p.requires_grad and p.grad is None for p in module.parameters())


def test_state_dicts_of_other_things_are_refused() -> None:
    assert "'w' is a list" in refused({"w": [[1.0, 2.0]]})
    assert "'step' is a int" in refused({"w": gaussian(2, 2), "step": 3})
    assert "meta device" in refused({"w": torch.zeros(2, 2, device="meta")})
    assert "no tensors" in refused({})
    assert "no tensors" in refused(nn.ReLU())


# --- mapping instead of reading --------------------------------------------------------------


def odd_file(folder: Path) -> tuple[Path, dict[str, torch.Tensor]]:
    """Tensors of every width that begin at odd bytes, and one without entries."""
    dtypes = (torch.float32, torch.bfloat16, torch.float64, torch.float16)
    tensors = {
        f"layers.{i}.weight": gaussian(7, 5 + i, seed=i, dtype=dtypes[i % 4]) for i in range(12)
    }
    tensors |= {"experts": gaussian(3, 4, 6, seed=99), "nothing": torch.zeros(0, 3)}
    for padding in range(8):
        names = {
            f"{name}{'x' * (padding if name == 'experts' else 0)}": t for name, t in tensors.items()
        }
        path = write_in_order(folder / f"{padding}.safetensors", names, list(names))
        if (8 + int.from_bytes(path.read_bytes()[:8], "little")) % 2:
            return path, names
    raise AssertionError


def test_mapped_tensors_are_those_that_are_read(tmp_path: Path) -> None:
    path, tensors = odd_file(tmp_path)
    for ref in open_model(path, Access(mmap=True)).tensors:
        mapped = map_tensor(ref)
        assert mapped.dtype == tensors[ref.name].dtype and torch.equal(mapped, tensors[ref.name])
        for part in range(ref.shape[0]):
            assert torch.equal(map_tensor(ref, part), tensors[ref.name][part])


def test_mapping_gives_the_same_rows(tmp_path: Path) -> None:
    folder = write_sharded(tmp_path / "toy", small_model() | {"experts": gaussian(3, 24, 16)})
    read = weightscope.analyze(folder, metrics="alpha,norms,stats")
    assert weightscope.analyze(folder, metrics="alpha,norms,stats", mmap=True).rows == read.rows


def test_mapped_tensors_can_be_written_without_touching_the_file(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.safetensors", {"w": gaussian(50, 50)})
    before = path.read_bytes()
    [ref] = open_model(path).tensors
    mapped = map_tensor(ref)
    mapped.zero_()
    assert path.read_bytes() == before and torch.equal(map_tensor(ref), gaussian(50, 50))


def test_a_file_that_is_gone_or_has_shrunk_cannot_be_mapped(tmp_path: Path) -> None:
    path = write_file(tmp_path / "a.safetensors", {"w": gaussian(50, 50)})
    [ref] = open_model(path).tensors
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="shrunk") as caught:
        map_tensor(ref)
    assert str(path) in str(caught.value)
    path.unlink()
    with pytest.raises(CheckpointError, match="no such file"):
        map_tensor(ref)


def test_a_file_that_shrinks_while_it_is_read_ends_in_a_sentence(tmp_path: Path) -> None:
    """And not in a signal, which is why reading is the default."""
    path = write_file(tmp_path / "a.safetensors", small_model(width=128))
    checkpoint = open_model(path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="shrunk"):
        weightscope.analyze(checkpoint, metrics="stats")


def test_what_writers_add_to_headers_is_kept(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name in ("a", "b"):
        save_file(
            {name: gaussian(2, 2)}, tmp_path / f"{name}.safetensors", {name: "x", "format": "pt"}
        )
    assert open_model(tmp_path).metadata == {"a": "x", "b": "x", "format": "pt"}
