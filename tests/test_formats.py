"""Formats other than safetensors, from real bytes on disk: what is read, and what is refused."""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoints import (
    environment,
    gaussian,
    malicious_pickles,
    many_matrices,
    run_weightscope,
    small_model,
    write_file,
    write_index,
    write_sharded,
)
from hostile.gguf import LYING_GGUF, gguf_header, gguf_pair, gguf_tensor
from hostile.pickles import archive, no_pytorch_files, rezipped

from weightscope import analysis, plan
from weightscope.analysis import Saving
from weightscope.checkpoint import Checkpoint
from weightscope.cli.main import main
from weightscope.comparing import Comparing
from weightscope.errors import CheckpointError, RunFolderError
from weightscope.expressions import read_matrix
from weightscope.folders.storage import RunWriter, load_run
from weightscope.formats import distributed, inert, pytorch
from weightscope.formats.depth import nests_too_deep
from weightscope.formats.nested import weights_in
from weightscope.matrix import Matrix
from weightscope.measure import reading
from weightscope.run import Run
from weightscope.settings import Settings
from weightscope.sources import open_model
from weightscope.tensor import DTYPES, TensorRef
from weightscope.trajectory import expand, track

Tensors = dict[str, torch.Tensor]
QUICK = Settings(metrics=("alpha", "norms"), threads=1)
BIN_INDEX = "pytorch_model.bin.index.json"


def refused(model: Any) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_model(model)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    return message


def values_of(checkpoint: Checkpoint) -> Tensors:
    """Every float of a checkpoint as an analysis reads it."""
    floats = (ref for ref in checkpoint.tensors if DTYPES[ref.dtype].kind == "float")
    with reading(checkpoint) as read:
        return {
            ref.name: read_matrix(read, packed(ref, checkpoint))
            if ref.name in checkpoint.encoded
            else read(ref, None)
            for ref in floats
        }


def packed(ref: TensorRef, checkpoint: Checkpoint) -> Matrix:
    return Matrix(ref.name, ref, "whole", "", "", encoded=checkpoint.encoded[ref.name])


def holds_all_of(checkpoint: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether a checkpoint lists these tensors, each once, and reads every float as it is."""
    listed = {ref.name: ref for ref in checkpoint.tensors}
    assert len(listed) == len(checkpoint.tensors)
    assert {name: ref.shape for name, ref in listed.items()} == {
        name: tuple(tensor.shape) for name, tensor in tensors.items()
    }
    found = values_of(checkpoint)
    assert set(found) == {name for name, t in tensors.items() if t.is_floating_point()}
    return all(torch.equal(value, tensors[name]) for name, value in found.items())


def saved(value: Any, path: Path, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(value, path, **options)
    return path


def write_shards(folder: Path, tensors: Tensors, shards: int = 3, index: bool = True) -> Path:
    """A folder of PyTorch shards as transformers wrote them."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number in range(shards):
        name = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        mine = dict(list(tensors.items())[number::shards])
        saved(mine, folder / name)
        weight_map |= dict.fromkeys(mine, name)
    if index:
        write_index(folder, weight_map).rename(folder / BIN_INDEX)
    return folder


# --- PyTorch files ---------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth", ".ckpt"])
def test_a_pytorch_file(tmp_path: Path, suffix: str) -> None:
    model = small_model()
    path = saved(model, tmp_path / f"toy{suffix}")
    checkpoint = open_model(path)
    assert (checkpoint.name, checkpoint.format, checkpoint.notes) == ("toy", "pytorch", ())
    [file] = checkpoint.files
    assert (file.name, file.size) == (path.name, path.stat().st_size)
    assert holds_all_of(checkpoint, model)


def test_a_pytorch_file_under_another_name_is_told_by_its_bytes(tmp_path: Path) -> None:
    model = small_model()
    assert holds_all_of(open_model(saved(model, tmp_path / "model.weights")), model)


def test_safetensors_under_a_pytorch_name_are_read_alone_and_named_in_a_folder(
    tmp_path: Path,
) -> None:
    model = small_model()
    path = write_file(tmp_path / "model.bin", model)
    assert holds_all_of(open_model(path), model)
    assert ".safetensors" in refused(tmp_path)
    path.write_bytes(b"GGUF\x03\0\0\0" + b"\0" * 64)
    assert ".gguf" in refused(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_a_pytorch_file_is_mapped_and_not_read(tmp_path: Path) -> None:
    path = saved({"w": torch.zeros(64, 64)}, tmp_path / "mapped-and-not-read.bin")
    checkpoint = open_model(path)
    assert str(path) in Path("/proc/self/maps").read_text()
    assert checkpoint.tensors[0].file == str(path)


def test_every_dtype_and_stride_of_a_pytorch_file(tmp_path: Path) -> None:
    base = gaussian(24, 16)
    model = {
        **{str(t): base.to(t) for t in (torch.float64, torch.float16, torch.bfloat16)},
        "transposed": base.T,
        "a slice of a larger storage": base[3:9, 2:11],
        "every second": base[::2],
        "experts": gaussian(3, 8, 6, seed=1),
        "scalar": torch.tensor(2.5),
        "integers": torch.arange(10),
        "flags": torch.ones(4, dtype=torch.bool),
        "parameter": torch.nn.Parameter(gaussian(4, 5, seed=2)),
    }
    checkpoint = open_model(saved(model, tmp_path / "model.pt"))
    assert holds_all_of(checkpoint, model)
    [ref] = [ref for ref in checkpoint.tensors if ref.name == "experts"]
    with reading(checkpoint) as read:
        assert torch.equal(read(ref, 2), model["experts"][2])
        assert not any(read(ref, None).requires_grad for ref in checkpoint.tensors)


def test_a_pytorch_file_of_before_1_6_is_read_whole_and_says_so(tmp_path: Path) -> None:
    model = small_model()
    path = saved(model, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert not zipfile.is_zipfile(path)
    checkpoint = open_model(path)
    assert holds_all_of(checkpoint, model)
    [note] = checkpoint.notes
    assert "into memory" in note


def test_a_pytorch_file_without_checksums_is_read(tmp_path: Path) -> None:
    model = small_model()
    torch.serialization.set_crc32_options(False)
    try:
        path = saved(model, tmp_path / "unchecked.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert holds_all_of(open_model(path), model)


def test_pytorch_shards_with_their_index(tmp_path: Path) -> None:
    model = small_model()
    folder = write_shards(tmp_path / "toy", model)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    for place in (folder, folder / BIN_INDEX):
        checkpoint = open_model(place)
        assert checkpoint.name == "toy" and len(checkpoint.files) == 3
        assert checkpoint.config == {"model_type": "llama"}
        assert holds_all_of(checkpoint, model) and not checkpoint.notes


def test_pytorch_shards_without_an_index(tmp_path: Path) -> None:
    model = small_model()
    assert holds_all_of(open_model(write_shards(tmp_path, model, index=False)), model)


def test_slices_for_several_processes_are_told_from_shards(tmp_path: Path) -> None:
    """Makers publish every tensor in pieces over consolidated.00.pth, consolidated.01.pth, ..."""
    for number in (0, 1):
        saved({"layers.0.attention.wq.weight": gaussian(8, 16, seed=number)},
              tmp_path / f"consolidated.0{number}.pth")  # fmt: skip
    message = refused(tmp_path)
    assert "slices of the tensors" in message and "consolidated.01.pth" in message


def test_a_missing_pytorch_shard_is_named(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "toy", small_model())
    (folder / "pytorch_model-00002-of-00003.bin").unlink()
    message = refused(folder)
    assert "1 of 3 shards" in message and "'pytorch_model-00002-of-00003.bin'" in message


def test_a_tensor_in_two_pytorch_files_is_refused_with_both_named(tmp_path: Path) -> None:
    saved({"w": gaussian(2, 2)}, tmp_path / "model-00001-of-00002.bin")
    saved({"w": gaussian(2, 2)}, tmp_path / "model-00002-of-00002.bin")
    message = refused(tmp_path)
    assert "'w'" in message and "00001-of" in message and "00002-of" in message


def test_an_index_of_pytorch_shards_never_leads_out_of_its_folder(tmp_path: Path) -> None:
    saved({"w": gaussian(2, 2)}, tmp_path / "outside.bin")
    (tmp_path / "toy").mkdir()
    index = write_index(tmp_path / "toy", {"w": "../outside.bin"}).rename(
        tmp_path / "toy" / BIN_INDEX
    )
    assert "plain file name" in refused(index) and "plain file name" in refused(tmp_path / "toy")


def test_safetensors_win_over_pytorch_files_and_it_is_said(tmp_path: Path) -> None:
    model = small_model()
    write_file(tmp_path / "model.safetensors", model)
    saved(model, tmp_path / "pytorch_model.bin")
    saved(model, tmp_path / "optimizer.pt")
    checkpoint = open_model(tmp_path)
    assert checkpoint.format == "safetensors" and holds_all_of(checkpoint, model)
    [note] = checkpoint.notes
    assert "pytorch_model.bin" in note and "model.safetensors" in note and "optimizer" not in note


def test_several_pytorch_models_in_a_folder_must_be_chosen_from(tmp_path: Path) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        saved(small_model(), tmp_path / name)
    message = refused(tmp_path)
    assert "best.ckpt, last.ckpt" in message and "name one" in message
    assert open_model(tmp_path / "last.ckpt").name == "last"


def test_pytorch_model_wins_over_files_of_other_names(tmp_path: Path) -> None:
    model = small_model()
    saved(model, tmp_path / "pytorch_model.bin")
    saved(small_model(seed=1), tmp_path / "ema.pt")
    checkpoint = open_model(tmp_path)
    assert holds_all_of(checkpoint, model) and "ema.pt" in checkpoint.notes[0]


def test_tied_tensors_of_a_pytorch_file_are_listed_once(tmp_path: Path) -> None:
    head = gaussian(40, 8)
    model = {"embed.weight": head, "lm_head.weight": head, "same shape": gaussian(40, 8, seed=1)}
    names = [ref.name for ref in open_model(saved(model, tmp_path / "m.bin")).tensors]
    assert names == ["embed.weight", "same shape"]


# --- training dictionaries -------------------------------------------------------------------


def adam_state(model: Tensors) -> dict[str, Any]:
    """What ``torch.optim.AdamW.state_dict`` returns."""
    moments = {
        number: {"step": torch.tensor(1.0), "exp_avg": tensor + 1, "exp_avg_sq": tensor + 2}
        for number, tensor in enumerate(model.values())
    }
    return {"state": moments, "param_groups": [{"lr": 1e-3, "params": list(moments)}]}


@pytest.mark.parametrize(
    "wrap",
    [
        lambda model: {"model": model, "epoch": 3},
        lambda model: {"state_dict": model, "optimizer_states": [adam_state(model)], "loops": {}},
        lambda model: {"model_state_dict": model, "optimizer_state_dict": adam_state(model)},
        lambda model: {"module": model, "lr_scheduler": {"last_lr": [torch.tensor(0.1)]}},
        lambda model: {"model": {"state_dict": model}, "optimizer": adam_state(model)},
        lambda model: {"optimizer": adam_state(model), "state_dict": model, "ema": {"x": 1}},
        lambda model: {**model, "optimizer": adam_state(model)},
        lambda model: {**model, "Adam": adam_state(model)},
    ],
)
def test_training_dictionaries_are_unwrapped(
    tmp_path: Path, wrap: Callable[[Tensors], dict[str, Any]]
) -> None:
    model = small_model()
    assert holds_all_of(open_model(saved(wrap(model), tmp_path / "last.ckpt")), model)


def test_what_was_unwrapped_and_left_out_is_said(tmp_path: Path) -> None:
    model = small_model()
    whole = {"model": model, "ema": small_model(seed=1), "optimizer": adam_state(model)}
    [note] = open_model(saved(whole, tmp_path / "last.ckpt")).notes
    assert "'model'" in note and "'ema'" in note and "'optimizer'" in note


def test_several_networks_of_one_dictionary_keep_their_names(tmp_path: Path) -> None:
    both = {"generator": {"w": gaussian(4, 4)}, "critic": {"w": gaussian(4, 4, seed=1)}}
    flat = {"generator.w": both["generator"]["w"], "critic.w": both["critic"]["w"]}
    assert holds_all_of(open_model(saved(both, tmp_path / "gan.pt")), flat)


def test_a_file_of_one_tensor_is_named_after_it(tmp_path: Path) -> None:
    tensor = gaussian(6, 4)
    assert holds_all_of(open_model(saved(tensor, tmp_path / "probe.pt")), {"probe": tensor})


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([torch.zeros(2, 2)], "list"),
        ({}, "state_dict"),
        ({"epoch": 3, "loss": [0.1]}, "'epoch', 'loss'"),
        ({"state": {0: {"exp_avg": torch.zeros(4, 4)}}, "param_groups": []}, "no weights"),
        ({"a.b": torch.zeros(2, 2), "a": {"b": torch.ones(2, 2)}}, "two of its tensors"),
        ({"x" * 20_000: torch.zeros(2, 2)}, "too long"),
        ({"\ud800": torch.zeros(2, 2)}, "Unicode"),
        ({"w": torch.zeros(1, 1).expand(2**30, 2**30)}, "claims"),
        ({"w": torch.eye(3).to_sparse()}, "sparse"),
    ],
)  # fmt: skip
def test_a_pytorch_file_without_readable_weights_says_why(
    tmp_path: Path, value: Any, says: str
) -> None:
    path = saved(value, tmp_path / "model.pt")
    message = refused(path)
    assert message.startswith(f"{path}: ") and says in message


def test_dictionaries_that_hold_themselves_are_read_once() -> None:
    """What 16 levels of 30 references to one dictionary, or a ring of them, would cost."""
    inside: dict[str, Any] = {"w": torch.zeros(2)}
    for level in range(16):
        inside = {f"{level}-{number}": inside for number in range(30)}
    ring: dict[str, Any] = {"w": torch.zeros(2)}
    ring["model"] = {"model": ring}
    for loaded in (inside, ring):
        found = weights_in(loaded, lambda value: isinstance(value, torch.Tensor))
        assert len(found.tensors) == 1


# --- PyTorch files that are none -------------------------------------------------------------


NO_PYTORCH = list(no_pytorch_files())


@pytest.mark.parametrize(
    ("content", "says"), [x[1:] for x in NO_PYTORCH], ids=[x[0] for x in NO_PYTORCH]
)
def test_what_is_no_pytorch_file_is_named(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(content)
    for model in (path, tmp_path):
        message = refused(model)
        assert message.startswith(f"{path}: ") and says in message


def test_a_bomb_of_zeros_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pytorch, "MAX_LISTING", 1000)
    path = tmp_path / "model.bin"
    with zipfile.ZipFile(path, "w") as bomb:
        bomb.writestr("archive/data.pkl", bytes(1001))
    assert "its list of tensors" in refused(path)


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    good = archive(many_matrices(2, 8, 8))
    path = tmp_path / "model.bin"
    for length in range(0, len(good), 97):
        path.write_bytes(good[:length])
        assert refused(path).startswith(f"{path}: ")


def test_mutated_archives_raise_no_other_error(tmp_path: Path) -> None:
    good = archive({"model": many_matrices(2, 8, 8), "step": 3})
    path = tmp_path / "model.bin"
    dice = random.Random(0)
    for _ in range(200):
        raw = bytearray(good)
        for _ in range(dice.choice((1, 3, 20))):
            raw[dice.randrange(len(raw))] = dice.randrange(256)
        path.write_bytes(raw)
        try:
            checkpoint = open_model(path)
        except CheckpointError as error:
            assert "\n" not in str(error)
        else:
            values_of(checkpoint)


def opened_in_a_child(path: Path) -> int:
    """How a process ends that opens a model; negative for one that a signal killed."""
    child = os.fork()
    if not child:
        ended = 1
        try:
            open_model(path)
        except CheckpointError:
            ended = 0
        finally:
            os._exit(ended)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("kind", ["zip", "bare", "distributed"])
def test_tuples_nested_too_deep_to_be_hashed_do_not_kill_the_process(
    tmp_path: Path, kind: str
) -> None:
    """A dictionary whose key is a tuple in a tuple in a tuple..., 300,000 times."""
    listing = b"\x80\x02}(N" + b"\x85" * 300_000 + b"K\x01u."
    path = tmp_path / ("model.bin" if kind != "distributed" else ".metadata")
    path.write_bytes(listing)
    if kind == "zip":
        with zipfile.ZipFile(path, "w") as whole:
            whole.writestr("archive/data.pkl", listing)
            whole.writestr("archive/version", "3\n")
    if kind == "distributed":
        (tmp_path / "__0_0.distcp").write_bytes(b"")
    assert opened_in_a_child(tmp_path) == 0
    assert refused(tmp_path).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("tuples", "deep"),
    [
        (b"\x85" * 60_000, True),
        (b"K\x01\x86" * 60_000, True),
        (b"K\x01K\x01\x87" * 60_000, True),
        (b"q\x00(h\x00t" * 60_000, True),
        (b"2\x85" * 60_000, True),
        (b"0N\x85" * 60_000, False),
        (b"0N\x85\x85\x85" * 60_000, False),
        (b"0(K\x01t" * 60_000, False),
        (b"\x85" * 9_000, False),
    ],
)
def test_the_depth_of_tuples_is_told_from_the_text_of_a_pickle(tuples: bytes, deep: bool) -> None:
    assert nests_too_deep(b"\x80\x02N" + tuples + b".") == deep


@pytest.mark.parametrize(
    "name", ["model.bin", "model.gguf", ".metadata", "pytorch_model.bin.index.json"]
)
def test_special_files_of_other_formats_do_not_hang(tmp_path: Path, name: str) -> None:
    """In a thread that is left behind if it waits for ever for a writer of the pipe."""
    os.mkfifo(tmp_path / name)
    (tmp_path / "__0_0.distcp").write_bytes(b"")
    if name == "model.bin":
        (tmp_path / "__0_0.distcp").unlink()
    messages: list[str] = []
    thread = threading.Thread(target=lambda: messages.append(refused(tmp_path)), daemon=True)
    thread.start()
    thread.join(timeout=60)
    assert messages and messages[0].startswith(str(tmp_path / name)) and "a file" in messages[0]


# --- no code of a checkpoint is run ----------------------------------------------------------


def places_of_a_pickle(folder: Path, content: bytes) -> dict[str, Path]:
    """What a user may name to make a program open a pickle."""
    for name in ("file.bin", "file.pt", "file.pth", "file.ckpt", "file.dat", "file.safetensors",
                 "file.gguf", "optimizer.pt"):  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    for inside, name in (
        ("alone", "pytorch_model.bin"),
        ("renamed", "model.safetensors"),
        ("as gguf", "model.gguf"),
        ("training/checkpoint-5", "pytorch_model.bin"),
        ("training/checkpoint-6", "pytorch_model.bin"),
        ("distributed", ".metadata"),
        ("pipeline/unet", "diffusion_pytorch_model.bin"),
    ):
        (folder / inside).mkdir(parents=True)
        (folder / inside / name).write_bytes(content)
    (folder / "distributed" / "__0_0.distcp").write_bytes(content)
    (folder / "pipeline" / "model_index.json").write_text('{"unet": ["diffusers", "X"]}')
    sharded = write_shards(folder / "sharded", small_model())
    (sharded / "pytorch_model-00002-of-00003.bin").write_bytes(content)
    named = [*folder.glob("file.*"), folder / "optimizer.pt", sharded / BIN_INDEX]
    folders = ("alone", "renamed", "as gguf", "training", "distributed", "pipeline", "sharded")
    return {path.name: path for path in (*named, *(folder / name for name in folders))}


def test_a_malicious_pickle_is_refused_by_name_wherever_it_is(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    for number, content in enumerate(malicious_pickles(marker).values()):
        places = places_of_a_pickle(tmp_path / str(number), content)
        assert len(places) == 16
        for path in places.values():
            message = refused(path)
            assert message.startswith(str(path.parent)), message
        for name in ("file.bin", "alone", "sharded", "training", "pipeline"):
            assert "pathlib" in refused(places[name]), "it names what it would have imported"
    assert not marker.exists()
    pickle.loads(content) if content[:2] != b"PK" else torch.load(
        io.BytesIO(content), weights_only=False
    )
    assert marker.exists(), "the same bytes do run elsewhere"


def test_training_state_beside_weights_is_never_opened(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    model = small_model()
    [*_, content] = malicious_pickles(marker).values()
    names = ("optimizer.pt", "scheduler.pt", "rng_state.pth", "rng_state_3.pth", "scaler.pt",
             "training_args.bin", "optimizer_1.bin", "scheduler.bin", "random_states_0.pt",
             "zero_pp_rank_0_mp_rank_00_optim_states.pt")  # fmt: skip
    for kind, write in (("bin", write_shards), ("safetensors", write_sharded)):
        folder = write(tmp_path / kind, model)
        for name in names:
            (folder / name).write_bytes(content)
        checkpoint = open_model(folder)
        assert holds_all_of(checkpoint, model) and not checkpoint.notes
    for name in names:
        assert "state of a training" in refused(folder / name)
    assert not marker.exists()


def test_the_command_runs_no_code_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "executed"
    contents = malicious_pickles(marker)
    bare = places_of_a_pickle(tmp_path / "bare", contents["protocol 4"])
    zipped = places_of_a_pickle(tmp_path / "zipped", contents["torch.save"])
    for command in (
        ("analyze", bare["file.bin"]),
        ("analyze", bare["distributed"]),
        ("analyze", zipped["sharded"]),
        ("inspect", zipped["pipeline"]),
        ("compare", zipped["file.pt"], zipped["alone"]),
        ("track", zipped["training"]),
    ):
        monkeypatch.setattr(sys, "argv", ["weightscope", *map(str, command)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == 1
        out, err = capsys.readouterr()
        assert not out and len(err.splitlines()) == 1 and "pathlib" in err
    assert not marker.exists()


# --- runs of other formats -------------------------------------------------------------------


def run(model: Any, out: Path, resume: bool = False) -> Run:
    return analysis.analyze(model, QUICK, Saving(True, out, False, resume))


def test_the_figures_are_those_of_the_same_weights_in_safetensors(tmp_path: Path) -> None:
    """Through the command, in a process of its own."""
    model = {name: t.to(torch.bfloat16) for name, t in small_model().items()}
    whole = {"model": model, "optimizer": adam_state(model)}
    path = saved(whole, tmp_path / "toy.pt")
    done = run_weightscope("analyze", path, "--out", "run", "--threads", "1", cwd=tmp_path)
    assert done.returncode == 0 and "'model'" in done.stderr
    safetensors = write_file(tmp_path / "toy.safetensors", model)
    expected = analysis.analyze(safetensors, Settings(threads=1, device="cpu"))
    assert load_run(tmp_path / "run").rows == expected.rows and len(expected.rows) == 9


@pytest.fixture
def model_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes a model that is analysed in four batches, in a format."""
    monkeypatch.setattr(plan, "BATCH_MATRICES", 3)
    tensors = many_matrices(10, 24, 20)

    def write(kind: str) -> Path:
        if kind == "pytorch":
            return saved(tensors, tmp_path / "toy.bin")
        if kind == "shards":
            return write_shards(tmp_path / "toy", tensors)
        if kind == "old pytorch":
            return saved(tensors, tmp_path / "o.pt", _use_new_zipfile_serialization=False)
        return write_distributed(tmp_path / "toy", {"model": tensors})

    return write


@pytest.mark.parametrize("kind", ["pytorch", "shards", "old pytorch", "distributed"])
def test_runs_of_other_formats_are_reused_and_resumed(
    tmp_path: Path, model_of: Callable[[str], Path], kind: str
) -> None:
    path = model_of(kind)
    first = run(path, tmp_path / "run")
    assert not first.reused and run(path, tmp_path / "run").reused
    written: list[int] = []
    original = RunWriter.append

    def append(writer: RunWriter, *args: Any) -> None:
        if len(written) == 2:
            raise KeyboardInterrupt
        written.append(1)
        original(writer, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunWriter, "append", append)
        with pytest.raises(KeyboardInterrupt):
            run(path, tmp_path / "cut")
        written.clear()
        assert run(path, tmp_path / "cut", resume=True).rows == first.rows
    assert len(written) == 2, "two of the four batches were measured before"


def test_other_weights_in_a_file_of_the_same_size_and_time_are_another_run(tmp_path: Path) -> None:
    path = saved(many_matrices(2, 8, 8, seed=1), tmp_path / "toy.bin")
    facts = path.stat()
    run(path, tmp_path / "run")
    saved(many_matrices(2, 8, 8, seed=2), path)
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert path.stat().st_size == facts.st_size
    with pytest.raises(RunFolderError):
        run(path, tmp_path / "run")


# --- distributed checkpoints -----------------------------------------------------------------


def write_distributed(folder: Path, state: Mapping[str, Any]) -> Path:
    """A distributed checkpoint of one process, by the library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(dict(state), checkpoint_id=folder)
    return folder


RANK = """
import sys, torch
import torch.distributed as dist, torch.distributed.checkpoint as dcp
from torch.distributed.tensor import DeviceMesh, Replicate, Shard, distribute_tensor
rank, folder, store = int(sys.argv[1]), sys.argv[2], sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
mesh = DeviceMesh("cpu", [0, 1])
whole = torch.load(sys.argv[4], weights_only=True)
places = {"rows": Shard(0), "cols": Shard(1), "both": Replicate()}
state = {
    name: distribute_tensor(tensor, mesh, [places.get(name, Shard(0))])
    for name, tensor in whole.items()
}
dcp.save({"model": state, "step": torch.tensor(7)}, checkpoint_id=folder)
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_chunks_of_several_processes_are_put_together(tmp_path: Path) -> None:
    tensors = {
        "rows": gaussian(8, 6),
        "cols": gaussian(6, 10, seed=1).to(torch.bfloat16),
        "both": gaussian(5, 5, seed=2),
        "experts": gaussian(4, 6, 3, seed=3),
        "odd": gaussian(7, 3, seed=4),
    }
    path = saved(tensors, tmp_path / "whole.pt")
    folder = tmp_path / "run"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(rank), folder, tmp_path / "store", path],
            env=environment(GLOO_SOCKET_IFNAME="lo"),
            stderr=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    assert len(list(folder.glob("*.distcp"))) == 2
    checkpoint = open_model(folder)
    assert len(checkpoint.files) == 3
    scalar = {"step": torch.tensor(7)}
    assert holds_all_of(checkpoint, tensors) or holds_all_of(checkpoint, tensors | scalar)
    assert len(checkpoint.memory["rows"].pieces) == 2
    [ref] = [ref for ref in checkpoint.tensors if ref.name == "experts"]
    with reading(checkpoint) as read:
        for expert in range(4):
            assert torch.equal(read(ref, expert), tensors["experts"][expert])


def test_a_distributed_checkpoint(tmp_path: Path) -> None:
    model = {**small_model(), "experts": gaussian(3, 8, 6), "bf16": gaussian(8, 4).bfloat16()}
    checkpoint = open_model(write_distributed(tmp_path / "toy", model))
    assert (checkpoint.name, checkpoint.format, checkpoint.notes) == ("toy", "distributed", ())
    assert [file.name for file in checkpoint.files] == [".metadata", "__0_0.distcp"]
    assert holds_all_of(checkpoint, model)
    [ref] = [ref for ref in checkpoint.tensors if ref.name == "experts"]
    with reading(checkpoint) as read:
        assert torch.equal(read(ref, 1), model["experts"][1])


def test_the_optimiser_of_a_distributed_checkpoint_is_left_out(tmp_path: Path) -> None:
    model = small_model()
    state = {"model": model, "optim": adam_state(model), "step": torch.tensor(3)}
    checkpoint = open_model(write_distributed(tmp_path / "toy", state))
    assert holds_all_of(checkpoint, model)
    [note] = checkpoint.notes
    assert "'model'" in note and "'optim'" in note


def test_a_distributed_checkpoint_inside_one_of_the_trainer(tmp_path: Path) -> None:
    model = small_model()
    write_distributed(tmp_path / "checkpoint-5" / "pytorch_model_fsdp_0", {"model": model})
    write_distributed(tmp_path / "checkpoint-5" / "optimizer_0", {"optimizer": adam_state(model)})
    checkpoint = open_model(tmp_path / "checkpoint-5")
    assert checkpoint.name == "checkpoint-5" and holds_all_of(checkpoint, model)


def rewritten(folder: Path, change: Callable[[Any], Any]) -> Path:
    """A distributed checkpoint whose metadata was changed."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps(change(metadata) or metadata))
    return folder


def _place(metadata: Any) -> Any:
    return next(iter(metadata.storage_data.values()))


def _tensor(metadata: Any) -> Any:
    return next(iter(metadata.state_dict_metadata.values()))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: {"a": 1}, "damaged"),
        (lambda m: m.state_dict_metadata.clear(), "no weights"),
        (lambda m: m.storage_data.clear(), "damaged"),
        (lambda m: setattr(m, "storage_data", None), "damaged"),
        (lambda m: setattr(_place(m), "relative_path", "../x.distcp"), "plain file name"),
        (lambda m: setattr(_place(m), "relative_path", "/etc/passwd"), "plain file name"),
        (lambda m: setattr(_place(m), "relative_path", "..\\x"), "plain file name"),
        (lambda m: setattr(_place(m), "relative_path", ""), "plain file name"),
        (lambda m: setattr(_place(m), "relative_path", "__1_0.distcp"), "'__1_0.distcp'"),
        (lambda m: setattr(_place(m), "offset", -1), "no counts"),
        (lambda m: setattr(_place(m), "length", 2**70), "no counts"),
        (lambda m: setattr(_place(m), "length", 10**9), "truncated"),
        (lambda m: setattr(_place(m), "length", 3), "does not fit"),
        (lambda m: setattr(_place(m), "transform_descriptors", ["zstd"]), "zstd"),
        (lambda m: setattr(_tensor(m), "size", torch.Size((2**20, 2**20))), "do not make it up"),
        (lambda m: setattr(_tensor(m), "size", [4, 4]), "no counts"),
        (lambda m: setattr(_tensor(m), "chunks", []), "do not make it up"),
        (lambda m: setattr(_tensor(m).chunks[0], "offsets", torch.Size((1, 0))), "damaged"),
        (lambda m: setattr(_tensor(m).chunks[0], "sizes", torch.Size((3, 3))), "do not make it up"),
        (lambda m: setattr(_tensor(m).properties, "dtype", torch.qint8), "qint8"),
        (lambda m: setattr(m, "planner_data", argparse.Namespace(a=1)), "argparse.Namespace"),
        (lambda m: setattr(m, "planner_data", {"a": ("w",), "b": ("w", "v")}), "below a tensor"),
    ],
)
def test_a_distributed_checkpoint_that_lies_is_refused(
    tmp_path: Path, change: Callable[[Any], Any], says: str
) -> None:
    folder = write_distributed(tmp_path / "toy", {"a": gaussian(4, 4), "b": gaussian(4, 4)})
    message = refused(rewritten(folder, change))
    assert message.startswith(str(folder)) and says in message


def test_a_distributed_checkpoint_without_some_of_its_files(tmp_path: Path) -> None:
    folder = write_distributed(tmp_path / "toy", {"w": gaussian(4, 4)})
    chunks = folder / "__0_0.distcp"
    for path in (chunks, folder / ".metadata"):
        assert "name its folder" in refused(path)
    raw = chunks.read_bytes()
    chunks.write_bytes(raw[:-1])
    assert refused(folder).startswith(f"{chunks}: ") and "truncated" in refused(folder)
    chunks.unlink()
    assert ".distcp" in refused(folder)
    (folder / "__9_9.distcp").write_bytes(raw)
    assert "'__0_0.distcp'" in refused(folder)
    (folder / ".metadata").unlink()
    assert ".metadata" in refused(folder)


def test_metadata_cut_anywhere_is_refused(tmp_path: Path) -> None:
    folder = write_distributed(tmp_path / "toy", {"w": gaussian(4, 4)})
    path = folder / ".metadata"
    raw = path.read_bytes()
    for length in range(0, len(raw), 11):
        path.write_bytes(raw[:length])
        assert refused(folder).startswith(f"{path}: ")


def test_mutated_metadata_raises_no_other_error_and_imports_nothing(tmp_path: Path) -> None:
    folder = write_distributed(tmp_path / "toy", {"model": many_matrices(2, 4, 4)})
    path = folder / ".metadata"
    raw = path.read_bytes()
    dice = random.Random(0)
    modules = set(sys.modules)
    for _ in range(500):
        mutated = bytearray(raw)
        for _ in range(dice.choice((1, 3, 20))):
            mutated[dice.randrange(len(mutated))] = dice.randrange(256)
        path.write_bytes(mutated)
        try:
            values_of(open_model(folder))
        except CheckpointError as error:
            assert "\n" not in str(error)
    assert set(sys.modules) == modules


def test_a_chunk_that_is_another_or_holds_code_is_refused_when_it_is_read(tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    for kind, chunk in {
        "malicious": malicious_pickles(marker)["torch.save"],
        "another shape": archive(torch.zeros(2, 2)),
        "another dtype": archive(torch.zeros(4, 4).double()),
        "no tensor": archive({"w": torch.zeros(4, 4)}),
        "compressed": rezipped(archive(torch.zeros(4, 4)), zipfile.ZIP_DEFLATED),
        "noise": np.random.default_rng(0).bytes(2000),
    }.items():
        folder = write_distributed(tmp_path / kind, {"w": gaussian(4, 4)})

        def change(metadata: Any, length: int = len(chunk)) -> None:
            _place(metadata).offset, _place(metadata).length = 0, length

        (folder / "__0_0.distcp").write_bytes(chunk)
        checkpoint = open_model(rewritten(folder, change))
        with pytest.raises(CheckpointError) as caught:
            values_of(checkpoint)
        message = str(caught.value)
        assert message.startswith(str(folder / "__0_0.distcp")) and "'w'" in message
        assert ("pathlib" in message) == (kind == "malicious")
    assert not marker.exists()


def test_an_enumeration_pickled_by_getattr_reaches_nothing() -> None:
    """getattr is on the list for the sake of some Pythons, as something that does nothing."""
    hostile = b"cbuiltins\ngetattr\n(cpathlib\nPosixPath\nVtouch\ntR."
    assert inert.load(hostile, distributed._ALLOWED) is None
    for raw in (b"cos\nsystem\n(Vtrue\ntR.", b"cbuiltins\neval\n.", b"\x80\x04\x82\x01."):
        with pytest.raises(ValueError):
            inert.load(raw, distributed._ALLOWED)


def test_metadata_claims_no_memory(tmp_path: Path) -> None:
    """Seven bytes that make the C unpickler reserve 64 GB for its memo, and lying lengths."""
    for raw in (b"\x80\x02Nr\xff\xff\xff\xff.", b"\x80\x05\x96" + b"\xff" * 6 + b"\0\0.",
                b"\x80\x04\x8e" + b"\xff" * 7 + b"\x7f."):  # fmt: skip
        with contextlib.suppress(ValueError):
            inert.load(raw, {})


# --- GGUF ------------------------------------------------------------------------------------

LLAMA = {
    "llama.block_count": 2,
    "llama.embedding_length": 256,
    "llama.attention.head_count": 8,
    "llama.attention.head_count_kv": 2,
    "llama.expert_count": 3,
}


def write_gguf(path: Path, tensors: Mapping[str, Any], family: str = "llama") -> Path:
    """A GGUF file by the library; bytes of a quantised tensor come as (type, array)."""
    gguf = pytest.importorskip("gguf", reason="pip install 'weightscope[gguf]'")
    writer = gguf.GGUFWriter(path, family)
    for key, value in LLAMA.items():
        writer.add_uint32(key, value)
    writer.add_token_list([f"token {i}" for i in range(500)])
    writer.add_token_scores([0.5] * 500)
    for name, tensor in tensors.items():
        if isinstance(tensor, tuple):
            writer.add_tensor(name, tensor[1], raw_dtype=tensor[0])
        else:
            writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks_of(kind: Any, *shape: int, seed: int = 0) -> tuple[Any, np.ndarray]:
    """Random blocks of a quantised type, whose scales are harmless numbers."""
    from gguf.constants import GGML_QUANT_SIZES

    block, nbytes = GGML_QUANT_SIZES[kind]
    *above, cols = shape
    raw = np.random.default_rng(seed).integers(0, 256, (*above, cols // block * nbytes), np.uint8)
    return kind, raw & 0x3B  # no exponent of infinity, wherever the scale of the block is


def test_gguf_files_are_decoded_as_the_library_decodes_them(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="pip install 'weightscope[gguf]'")
    from gguf.quants import _type_traits

    tensors: dict[str, Any] = {
        f"blk.{number}.ffn_up.weight": blocks_of(kind, 6, 512, seed=number)
        for number, kind in enumerate(kind for kind in _type_traits if kind.name != "BF16")
    }
    plain = gaussian(5, 64)
    tensors |= {"f32": plain.numpy(), "f16": plain.half().numpy(), "f64": plain.double().numpy()}
    bits = plain.bfloat16().view(torch.uint8).numpy()
    tensors["bf16"] = (gguf.GGMLQuantizationType.BF16, bits)
    path = write_gguf(tmp_path / "all.gguf", tensors)
    checkpoint = open_model(path)
    found = values_of(checkpoint)
    listed = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    assert set(found) == set(listed) and len(found) > 24
    for name, value in found.items():
        if name in {"f64", "bf16"}:
            assert torch.equal(value, plain.to(value.dtype))
            continue
        expected = gguf.quants.dequantize(listed[name].data, listed[name].tensor_type)
        np.testing.assert_array_equal(value.float().numpy(), expected)
    dtypes = {ref.name: ref.dtype for ref in checkpoint.tensors}
    assert [dtypes[name] for name in ("f32", "f16", "bf16", "f64")] == ["F32", "F16", "BF16", "F64"]
    kinds = {one.facts["kind"]: one for one in checkpoint.encoded.values()}
    assert kinds["Q4_K"].encoding == "gguf-q4-k" and kinds["IQ4_XS"].encoding == "gguf-iq4-xs"
    assert [kinds[kind].bits for kind in ("Q4_K", "Q8_0", "Q6_K", "IQ2_XXS")] == [4, 8, 6, 2]
    assert [8 * kinds[kind].nbytes / 6 / 512 for kind in ("Q4_K", "Q8_0")] == [4.5, 8.5]


def test_a_gguf_file_says_what_it_is(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="pip install 'weightscope[gguf]'")
    weights = gaussian(3, 24, 256, seed=1)
    packed = gguf.quants.quantize(weights.numpy(), gguf.GGMLQuantizationType.Q8_0)
    tensors = {
        "blk.0.attn_q.weight": gaussian(96, 256).half().numpy(),
        "blk.0.ffn_gate_exps.weight": (gguf.GGMLQuantizationType.Q8_0, packed),
    }
    path = write_gguf(tmp_path / "toy.gguf", tensors)
    checkpoint = open_model(path)
    shapes = {ref.name: ref.shape for ref in checkpoint.tensors}
    assert shapes == {"blk.0.attn_q.weight": (96, 256), "blk.0.ffn_gate_exps.weight": (3, 24, 256)}
    assert checkpoint.config == {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "hidden_size": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "num_local_experts": 3,
    }
    assert any("Q8_0" in note for note in checkpoint.notes)
    found = analysis.analyze(checkpoint, Settings(metrics=("norms",), threads=1))
    rows = {row["name"]: row for row in found.rows}
    assert set(rows) == {"blk.0.attn_q.weight"} | {
        f"blk.0.ffn_gate_exps.weight[{expert}]" for expert in range(3)
    }
    for expert in range(3):
        norm = float(torch.linalg.matrix_norm(weights[expert].double(), 2))
        assert rows[f"blk.0.ffn_gate_exps.weight[{expert}]"]["spectral_norm"] == pytest.approx(
            norm, rel=0.005
        )


def test_gguf_needs_its_package_and_says_so(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "toy.gguf", {"w": gaussian(4, 32).numpy()})
    with pytest.MonkeyPatch.context() as patch:
        for module in [name for name in sys.modules if name.partition(".")[0] == "gguf"]:
            patch.delitem(sys.modules, module)
        patch.setitem(sys.modules, "gguf", None)
        assert "pip install 'weightscope[gguf]'" in refused(path)


def test_parts_of_a_gguf_model_are_one_and_several_models_are_not(tmp_path: Path) -> None:
    for number in (1, 2):
        tensors = {f"blk.{number}.attn_q.weight": gaussian(4, 32, seed=number).numpy()}
        write_gguf(tmp_path / "parts" / f"toy-0000{number}-of-00002.gguf", tensors) if (
            (tmp_path / "parts").mkdir(exist_ok=True) is None
        ) else None
    assert len(open_model(tmp_path / "parts").tensors) == 2
    (tmp_path / "several").mkdir()
    for quality in ("Q4_K_M", "Q8_0"):
        write_gguf(tmp_path / "several" / f"toy.{quality}.gguf", {"w": gaussian(4, 32).numpy()})
    message = refused(tmp_path / "several")
    assert "toy.Q4_K_M.gguf, toy.Q8_0.gguf" in message and "name one" in message


@pytest.mark.parametrize(("content", "says"), LYING_GGUF.values(), ids=LYING_GGUF)
def test_a_gguf_file_that_lies_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    pytest.importorskip("gguf", reason="pip install 'weightscope[gguf]'")
    path = tmp_path / "toy.gguf"
    path.write_bytes(content)
    message = refused(path)
    assert message.startswith(f"{path}: ") and says in message


def test_a_gguf_file_written_by_hand_is_read(tmp_path: Path) -> None:
    """So that the lies above are lies for the reason given."""
    pytest.importorskip("gguf", reason="pip install 'weightscope[gguf]'")
    path = tmp_path / "toy.gguf"
    words = gguf_pair(b"k", 9, struct.pack("<IQQ", 8, 2, 1) + b"a" + struct.pack("<Q", 0))
    for version in (2, 3):
        path.write_bytes(gguf_header(version, gguf_tensor(), 1, words, 1))
        assert torch.equal(values_of(open_model(path))["w"], torch.zeros(4, 32))


def test_a_gguf_file_cut_anywhere_or_mutated_raises_no_other_error(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="pip install 'weightscope[gguf]'")
    tensors = {"a": gaussian(4, 32).numpy(), "b": blocks_of(gguf.GGMLQuantizationType.Q4_0, 4, 64)}
    path = write_gguf(tmp_path / "toy.gguf", tensors)
    raw = path.read_bytes()
    for length in range(0, len(raw) - 32, 203):
        path.write_bytes(raw[:length])
        assert refused(path).startswith(f"{path}: ")
    dice = random.Random(0)
    ends = [300, len(raw)]
    for _ in range(300):
        mutated = bytearray(raw)
        for _ in range(dice.choice((1, 3, 20))):
            mutated[dice.randrange(dice.choice(ends))] = dice.randrange(256)
        path.write_bytes(mutated)
        try:
            values_of(open_model(path))
        except CheckpointError as error:
            assert "\n" not in str(error)


def test_a_long_vocabulary_is_passed_by(tmp_path: Path) -> None:
    """Its words reach over the blocks in which the header is read."""
    pytest.importorskip("gguf", reason="pip install 'weightscope[gguf]'")
    lengths = [0, 1, 7, 100, 5000, 3_000_000, 2, 1 << 20]
    dice = random.Random(0)
    lengths += [dice.randrange(2000) for _ in range(3000)]
    words = b"".join(struct.pack("<Q", n) + bytes(n) for n in lengths)
    pair = gguf_pair(b"tokens", 9, struct.pack("<IQ", 8, len(lengths)) + words)
    fact = gguf_pair(b"general.architecture", 8, struct.pack("<Q", 4) + b"bert")
    path = tmp_path / "toy.gguf"
    path.write_bytes(gguf_header(3, gguf_tensor(), 1, pair + fact, 2))
    checkpoint = open_model(path)
    assert [ref.name for ref in checkpoint.tensors] == ["w"]
    assert checkpoint.config == {"model_type": "bert"}


# --- folders ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "read", "left"),
    [
        (("model", "consolidated"), "model", ["consolidated"]),
        (("model", "model.fp16"), "model", ["model.fp16"]),
        (("diffusion_pytorch_model", "diffusion_pytorch_model.non_ema"), "diffusion_pytorch_model",
         ["diffusion_pytorch_model.non_ema"]),
        (("consolidated",), "consolidated", []),
        (("model.fp16",), "model.fp16", []),
    ],
)  # fmt: skip
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_variants_side_by_side_are_counted_once(
    tmp_path: Path, files: tuple[str, ...], read: str, left: list[str], suffix: str
) -> None:
    models = {name: small_model(seed=7 * number) for number, name in enumerate(files)}
    for name, model in models.items():
        renamed = {f"{name}.{key}": tensor for key, tensor in model.items()}
        write = write_file if suffix == ".safetensors" else lambda path, model: saved(model, path)
        write(tmp_path / f"{name}{suffix}", renamed)  # type: ignore[operator]
    checkpoint = open_model(tmp_path)
    expected = {f"{read}.{key}": tensor for key, tensor in models[read].items()}
    assert holds_all_of(checkpoint, expected)
    assert len(checkpoint.notes) == bool(left)
    assert all(f"{name}{suffix}" in checkpoint.notes[0] for name in left)


@pytest.mark.parametrize(
    "twin", ["model-00001-of-00002.fp16.safetensors", "model.fp16-00001-of-00002.safetensors"]
)
def test_shards_of_a_variant_are_counted_once(tmp_path: Path, twin: str) -> None:
    model = small_model()
    for number in (1, 2):
        names = list(model)[number - 1 :: 2]
        part = {name: model[name] for name in names}
        write_file(tmp_path / f"model-0000{number}-of-00002.safetensors", part)
        other = twin.replace("00001", f"0000{number}")
        write_file(tmp_path / other, {name: tensor.half() for name, tensor in part.items()})
    checkpoint = open_model(tmp_path)
    assert holds_all_of(checkpoint, model) and twin in checkpoint.notes[0]


def test_an_index_chooses_and_the_rest_is_said(tmp_path: Path) -> None:
    model = small_model()
    folder = write_sharded(tmp_path / "toy", model)
    write_file(folder / "consolidated.safetensors", {"layers.0.wq": gaussian(4, 4)})
    write_file(folder / "original" / "consolidated.00.pth", {"w": gaussian(4, 4)})
    write_shards(folder, small_model(seed=3))
    (folder / "model.gguf").write_bytes(b"")
    checkpoint = open_model(folder)
    assert holds_all_of(checkpoint, model)
    [note] = checkpoint.notes
    for name in ("consolidated.safetensors", "original/", "pytorch_model-00001", "model.gguf"):
        assert name in note


def test_the_original_of_a_model_can_be_named(tmp_path: Path) -> None:
    model = small_model()
    write_sharded(tmp_path / "toy", small_model(seed=3))
    saved(model, tmp_path / "toy" / "original" / "consolidated.00.pth")
    assert holds_all_of(open_model(tmp_path / "toy" / "original"), model)


def training(
    folder: Path, steps: tuple[int, ...] = (5, 10, 100), kind: str = "safetensors"
) -> Path:
    """A folder as the Trainer leaves it."""
    for step in steps:
        inside = folder / f"checkpoint-{step}"
        model = small_model(seed=step)
        if kind == "safetensors":
            write_file(inside / "model.safetensors", model)
        else:
            saved(model, inside / "pytorch_model.bin")
        saved(adam_state(model), inside / "optimizer.pt")
        # another number than that of the name, to see which is taken
        (inside / "trainer_state.json").write_text(json.dumps({"global_step": 2 * step}))
    return folder


@pytest.mark.parametrize("kind", ["safetensors", "pytorch"])
def test_of_a_training_the_last_checkpoint_is_taken_and_the_choice_is_said(
    tmp_path: Path, kind: str
) -> None:
    folder = training(tmp_path / "run", kind=kind)
    (folder / "checkpoint-200").write_text("a file")
    checkpoint = open_model(folder)
    assert checkpoint.name == "checkpoint-100"
    assert holds_all_of(checkpoint, small_model(seed=100))
    [note] = checkpoint.notes
    assert "checkpoint-100" in note and f"weightscope track {folder}" in note
    assert holds_all_of(open_model(folder / "checkpoint-5"), small_model(seed=5))


def test_the_final_model_of_a_training_is_its_own(tmp_path: Path) -> None:
    folder = training(tmp_path / "run")
    final = small_model(seed=1)
    write_file(folder / "model.safetensors", final)
    checkpoint = open_model(folder)
    assert checkpoint.name == "run" and holds_all_of(checkpoint, final)
    assert "track" in checkpoint.notes[0]


def test_a_training_whose_last_checkpoint_is_empty_says_which(tmp_path: Path) -> None:
    folder = training(tmp_path / "run")
    (folder / "checkpoint-100" / "model.safetensors").unlink()
    assert refused(folder).startswith(f"{folder / 'checkpoint-100'}: ")


def test_track_takes_all_checkpoints_of_a_training(tmp_path: Path) -> None:
    folder = training(tmp_path / "run", (5, 10), "pytorch")
    found = track(expand([str(folder)]), Comparing(save=False, settings=QUICK))
    assert found.steps == (10, 20)
    assert found.rows[0] != found.rows[1] and len(found.names) == 9


def pipeline(folder: Path) -> tuple[Path, Tensors]:
    """A diffusers pipeline of three models in three forms, and its tensors by component."""
    models = {"unet": small_model(seed=1), "text_encoder": small_model(seed=2),
              "safety_checker": small_model(seed=3)}  # fmt: skip
    write_sharded(folder / "unet", models["unet"])
    write_file(folder / "unet" / "diffusion_pytorch_model.fp16.safetensors", models["unet"])
    write_file(folder / "text_encoder" / "model.safetensors", models["text_encoder"])
    saved(models["text_encoder"], folder / "text_encoder" / "pytorch_model.bin")
    saved(models["safety_checker"], folder / "safety_checker" / "pytorch_model.bin")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text("{}")
    listed: dict[str, Any] = {name: ["diffusers", "Model"] for name in (*models, "scheduler")}
    listed |= {"_class_name": "StableDiffusionPipeline", "vae": [None, None], "../x": ["a", "b"]}
    (folder / "model_index.json").write_text(json.dumps(listed))
    write_file(folder / "v1-5-pruned.safetensors", {"model.diffusion_model.w": gaussian(4, 4)})
    flat = {f"{part}.{name}": t for part, model in models.items() for name, t in model.items()}
    return folder, flat


def test_the_models_of_a_pipeline_are_one_with_their_names_in_front(tmp_path: Path) -> None:
    folder, tensors = pipeline(tmp_path / "sd")
    checkpoint = open_model(folder)
    assert checkpoint.name == "sd" and holds_all_of(checkpoint, tensors)
    names = [file.name for file in checkpoint.files]
    assert len(names) == 5 and len(set(names)) == 5 and "text_encoder/model.safetensors" in names
    notes = " ".join(checkpoint.notes)
    for left in ("fp16", "text_encoder: ", "pytorch_model.bin", "v1-5-pruned.safetensors"):
        assert left in notes
    rows = analysis.analyze(checkpoint, QUICK).rows
    assert {str(row["name"]).partition(".")[0] for row in rows} == {
        "unet", "text_encoder", "safety_checker",
    }  # fmt: skip


def test_a_pipeline_without_models_is_read_as_a_folder(tmp_path: Path) -> None:
    model = small_model()
    write_file(tmp_path / "model.safetensors", model)
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "X"]}')
    assert holds_all_of(open_model(tmp_path), model)


def test_folders_that_hold_themselves_end(tmp_path: Path) -> None:
    for name in ("checkpoint-1", "unet", "original", "pytorch_model_fsdp_0"):
        (tmp_path / name).symlink_to(tmp_path, target_is_directory=True)
    assert refused(tmp_path).startswith(str(tmp_path))
    (tmp_path / "model_index.json").write_text('{"unet": ["diffusers", "X"]}')
    assert refused(tmp_path).startswith(str(tmp_path))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert refused(tmp_path / "loop").startswith(str(tmp_path / "loop"))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (("model.onnx",), "'model.onnx'; convert"),
        (("flax_model.msgpack", "config.json"), "convert"),
        (("optimizer.pt", "training_args.bin"), "only the state of a training"),
        (("inside/pytorch_model.bin",), "its folder 'inside'"),
        (("inside/model.gguf",), "its folder 'inside'"),
        (("README.md",), "no weights"),
    ],
)
def test_a_folder_without_weights_says_what_it_holds(
    tmp_path: Path, files: tuple[str, ...], says: str
) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path}: ") and says in message
