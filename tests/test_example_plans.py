"""The example scripts that act on a plan run to their end, and do what they print."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checkpoints import environment

import weightscope

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
RUNNER = """
import contextlib, importlib.util, json, runpy, sys
scripts, hidden = json.load(sys.stdin)
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == hidden else find(name, *more)
for script, *words in scripts:
    sys.argv = [script, *words]
    sys.path[0] = script.rpartition("/")[0]
    with open(script.rpartition("/")[2] + ".txt", "w") as out, contextlib.redirect_stdout(out):
        runpy.run_path(script, run_name="__main__")
"""


def run(folder: Path, *scripts: tuple[str, ...], without: str = "") -> list[str]:
    """Outputs of examples that share their imports; one package can be made missing."""
    paths = [(str(EXAMPLES / name), *words) for name, *words in scripts]
    done = subprocess.run(
        [sys.executable, "-c", RUNNER],
        input=json.dumps([paths, without]),
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [(folder / f"{name}.txt").read_text() for name, *_ in scripts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("examples")


@pytest.fixture(scope="module")
def outputs(folder: Path) -> list[str]:
    return run(
        folder,
        ("lora_by_kappa.py", "--budget", "40000"),
        ("prune_by_alpha.py", "--targets", "0.3,0.7", "--bytes", "1000"),
        ("planned_rates.py", "--steps", "4", "--bytes", "1000"),
        without="peft",
    )


def check_lora(output: str, config: dict[str, Any]) -> None:
    assert len(config["target_modules"]) == 12
    listed = dict(re.findall(r"^(\S+)\.weight: kappa \S+, rank (\d+)$", output, re.MULTILINE))
    assert list(listed) == config["target_modules"]
    ranks = {re.sub(r"\\(.)", r"\1", key): r for key, r in config["rank_pattern"].items()}
    assert {name: int(rank) for name, rank in listed.items()} == ranks
    assert "adapter parameters used (--budget)" in output


def test_lora_by_kappa_without_peft(outputs: list[str], folder: Path) -> None:
    check_lora(outputs[0], json.loads((folder / "lora.json").read_text()))
    assert "pip install peft" in outputs[0]


@pytest.mark.oracle
def test_lora_by_kappa_with_peft(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="pip install '.[oracle]'")
    (output,) = run(tmp_path, ("lora_by_kappa.py", "--budget", "40000"))
    check_lora(output, json.loads((tmp_path / "lora.json").read_text()))
    (trained,) = re.findall(r"peft trains ([\d,]+) parameters", output)
    assert 39_000 < int(trained.replace(",", "")) <= 40_000


def test_prune_by_alpha(outputs: list[str]) -> None:
    (untouched,) = map(float, re.findall(r"loss ([\d.]+) nats before", outputs[1]))
    planned, equal = (
        list(map(float, re.findall(rf"{word} ([\d.]+)", outputs[1])))
        for word in ("planned", "one sparsity for all")
    )
    assert len(planned) == len(equal) == 2
    for losses in (planned, equal):
        assert untouched < losses[0] < losses[1]
    assert planned != equal


def test_planned_rates(outputs: list[str]) -> None:
    found = re.findall(r"held-out loss ([\d.]+) nats after 4 steps", outputs[2])
    planned, equal = map(float, found)
    assert planned != equal
    assert 1.5 < planned < 3.5
    assert 1.5 < equal < 3.5
    assert "Multiplier by alpha: alpha mapped linearly to 0.5 .. 1.5" in outputs[2]


def test_a_plan_from_python_is_that_of_the_command_line() -> None:
    run_of_tiny = weightscope.analyze(
        EXAMPLES / "tiny-llama" / "checkpoint-100", metrics="condition", device="cpu", threads=1
    )
    plan = weightscope.propose(run_of_tiny, "peft", modules=3)
    assert len(json.loads(plan.body)["target_modules"]) == 3
    with pytest.raises(weightscope.errors.OptionError, match="--modules: means nothing for"):
        weightscope.propose(run_of_tiny, "lr", modules=3)
