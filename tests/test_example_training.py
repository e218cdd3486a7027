"""The example's training script trains, repeats itself exactly, and made what is committed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import LlamaForCausalLM

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPT = EXAMPLES / "train_tiny_llama.py"
COMMITTED = [EXAMPLES / "tiny-llama" / f"checkpoint-{step}" for step in (100, 500, 2000)]
SHARDS = [f"model-{number:05d}-of-00003.safetensors" for number in (1, 2, 3)]
SHORT_RUN = (
    "--steps 12 --save-at 6,12 --log-every 3 --batch-size 4 --sequence-length 64"
    " --learning-rate 2e-3 --seed 7 --threads 1"
)


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def logged(folder: Path, key: str) -> list[float]:
    history = read_json(folder / "trainer_state.json")["log_history"]
    return [entry[key] for entry in history if key in entry]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The training script, imported from its path."""
    spec = importlib.util.spec_from_file_location("train_tiny_llama", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up by name
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Path, str, str]]:
    """Two runs of the same short training: where each wrote, its output and its log."""
    folders = [tmp_path_factory.mktemp(name) for name in ("first", "second")]
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), *SHORT_RUN.split(), "--out", str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        for folder in folders
    ]
    outputs = [process.communicate() for process in processes]
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors
    return [(folder, *output) for folder, output in zip(folders, outputs, strict=True)]


def test_the_loss_falls(runs: list[tuple[Path, str, str]]) -> None:
    folder, output, log = runs[0]
    losses = logged(folder / "checkpoint-12", "loss")
    assert len(losses) == 4
    assert losses[0] < math.log(256) + 0.5  # an untrained model guesses all bytes alike
    assert losses[-1] < losses[0] - 0.5
    before, after = logged(folder / "checkpoint-12", "eval_loss")
    assert after < before
    assert len(re.findall(r"^step +\d+  loss [\d.]+  learning_rate [\d.e-]+$", log, re.M)) == 4
    final = re.fullmatch(
        r"step 12  held-out loss ([\d.]+) nats  ([\d.]+) bits per byte", output.strip()
    )
    assert final is not None
    nats, bits = map(float, final.groups())
    assert nats == pytest.approx(after, abs=1e-4)
    assert bits == pytest.approx(after / math.log(2), abs=1e-4)


@pytest.mark.parametrize("step", [6, 12])
def test_a_run_writes_sharded_checkpoints(runs: list[tuple[Path, str, str]], step: int) -> None:
    folder = runs[0][0] / f"checkpoint-{step}"
    assert read_json(folder / "trainer_state.json")["global_step"] == step
    check_layout(folder)


def test_the_same_seed_gives_the_same_bytes(runs: list[tuple[Path, str, str]]) -> None:
    first, second = (run[0] for run in runs)
    names = sorted(path.relative_to(first) for path in first.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(second) for path in second.rglob("*") if path.is_file())
    assert sum(name.suffix == ".safetensors" for name in names) == 6
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def check_layout(folder: Path) -> None:
    """Assert that ``folder`` holds a whole bfloat16 checkpoint in three shards."""
    index = read_json(folder / "model.safetensors.index.json")
    assert sorted(path.name for path in folder.glob("*.safetensors")) == SHARDS
    assert sorted(set(index["weight_map"].values())) == SHARDS
    stored = 0
    for shard in SHARDS:
        with safe_open(folder / shard, framework="pt") as tensors:
            assert set(tensors.keys()) == {
                name for name, file in index["weight_map"].items() if file == shard
            }
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                tensor = tensors.get_tensor(name)
                assert tensor.dtype == torch.bfloat16
                assert tensor.isfinite().all()
                stored += tensor.nbytes
    assert stored == index["metadata"]["total_size"]
    config = read_json(folder / "config.json")
    assert config["model_type"] == "llama"
    assert config["dtype"] == "bfloat16"
    assert config["hidden_size"] >= 192
    assert config["tie_word_embeddings"] is False
    assert "_name_or_path" not in config
    assert not any(isinstance(value, str) and "/" in value for value in config.values())


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_the_committed_checkpoints_are_whole(folder: Path) -> None:
    check_layout(folder)
    step = read_json(folder / "trainer_state.json")["global_step"]
    assert folder.name == f"checkpoint-{step}"


def test_the_committed_checkpoints_are_small() -> None:
    sizes = [path.stat().st_size for folder in COMMITTED for path in folder.iterdir()]
    assert sum(sizes) < 10_000_000
    assert max(sizes) < 5_000_000


def test_the_committed_training_generalises(script: ModuleType) -> None:
    held_out = script.load_text()[1][:8_000]
    bits = []
    for folder in (COMMITTED[0], COMMITTED[-1]):
        model, report = LlamaForCausalLM.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, output_loading_info=True
        )
        assert not any(report.values())
        bits.append(script.held_out_loss(model, held_out) / math.log(2))
    assert bits[1] < bits[0] - 0.5
    assert bits[1] < 2.4


def test_the_readme_states_the_recorded_losses() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for folder in COMMITTED:
        loss = logged(folder, "eval_loss")[-1]
        step = read_json(folder / "trainer_state.json")["global_step"]
        assert re.search(rf"\| {step} \| .*\| {loss:.3f} \| {loss / math.log(2):.3f} \|", readme)


def test_no_text_is_both_trained_on_and_held_out(script: ModuleType) -> None:
    found = script.documents()
    assert found.keys() >= script.HELD_OUT
    kept_out = {part for name in script.HELD_OUT for part in found[name].split("\n\n")}
    trained = {
        part
        for name, text in found.items()
        if name not in script.HELD_OUT
        for part in text.split("\n\n")
    }
    assert not kept_out & trained


def test_the_script_holds_the_command_that_made_the_checkpoints(script: ModuleType) -> None:
    assert script.__doc__ is not None
    command = re.search(r"python examples/train_tiny_llama\.py (.*?)\n\n", script.__doc__, re.S)
    assert command is not None
    settings = script.parse_arguments(command[1].split())
    assert sorted(settings.save_at) == [100, 500, 2000]
    assert settings.out == Path("examples/tiny-llama")


@pytest.mark.parametrize(
    "wrong",
    [["--save-at", "10,x"], ["--save-at", "30", "--steps", "20"], ["--sequence-length", "257"]],
)
def test_wrong_arguments_are_refused(script: ModuleType, wrong: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        script.parse_arguments(["--out", "unused", *wrong])
    assert error.value.code == 2
