"""The example scripts that act on a plan run to their end, and do what they print."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import environment

import weightscope

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(script: str, folder: Path, *arguments: str, without: str = "") -> str:
    """Output of an example, in a folder of its own; one package can be made missing."""
    (folder / "sitecustomize.py").write_text(
        "import importlib.util as u\nfind = u.find_spec\n"
        f"u.find_spec = lambda name, *a: None if name == {without!r} else find(name, *a)\n"
    )
    env = environment()
    env["PYTHONPATH"] = f"{folder}:{env['PYTHONPATH']}"
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / script), *arguments],
        cwd=folder,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def lora(folder: Path, without: str) -> str:
    output = run("lora_by_kappa.py", folder, "--budget", "40000", without=without)
    config = json.loads((folder / "lora.json").read_text())
    assert len(config["target_modules"]) == 12
    listed = dict(re.findall(r"^(\S+)\.weight: kappa \S+, rank (\d+)$", output, re.MULTILINE))
    assert list(listed) == config["target_modules"]
    ranks = {re.sub(r"\\(.)", r"\1", key): r for key, r in config["rank_pattern"].items()}
    assert {name: int(rank) for name, rank in listed.items()} == ranks
    assert "adapter parameters used (--budget)" in output
    return output


def test_lora_by_kappa_without_peft(tmp_path: Path) -> None:
    assert "pip install peft" in lora(tmp_path, without="peft")


@pytest.mark.oracle
def test_lora_by_kappa_with_peft(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="pip install '.[oracle]'")
    output = lora(tmp_path, without="")
    (trained,) = re.findall(r"peft trains ([\d,]+) parameters", output)
    assert 39_000 < int(trained.replace(",", "")) <= 40_000


def test_prune_by_alpha(tmp_path: Path) -> None:
    output = run("prune_by_alpha.py", tmp_path, "--targets", "0.3,0.7", "--bytes", "3000")
    (untouched,) = map(float, re.findall(r"loss ([\d.]+) nats before", output))
    planned, equal = (
        list(map(float, re.findall(rf"{word} ([\d.]+)", output)))
        for word in ("planned", "one sparsity for all")
    )
    assert len(planned) == len(equal) == 2
    for losses in (planned, equal):
        assert untouched < losses[0] < losses[1]
    assert planned != equal


def test_planned_rates(tmp_path: Path) -> None:
    output = run("planned_rates.py", tmp_path, "--steps", "4", "--bytes", "1000")
    planned, equal = map(float, re.findall(r"held-out loss ([\d.]+) nats after 4 steps", output))
    assert planned != equal
    assert 1.5 < planned < 3.5
    assert 1.5 < equal < 3.5
    assert "Multiplier by alpha: alpha mapped linearly to 0.5 .. 1.5" in output


def test_a_plan_from_python_is_that_of_the_command_line() -> None:
    run_of_tiny = weightscope.analyze(
        EXAMPLES / "tiny-llama" / "checkpoint-100", metrics="condition", device="cpu", threads=1
    )
    plan = weightscope.propose(run_of_tiny, "peft", modules=3)
    assert len(json.loads(plan.body)["target_modules"]) == 3
    with pytest.raises(weightscope.errors.OptionError, match="--modules: means nothing for"):
        weightscope.propose(run_of_tiny, "lr", modules=3)
