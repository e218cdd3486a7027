"""``weightscope plan`` as users meet it: streams, files, refusals, and the same bytes again."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from checkpoints import ODD_NAMES, environment, gaussian, run_each, run_weightscope, write_file

import weightscope
from weightscope.folders.storage import load_run
from weightscope.plans import TARGETS

TINY = Path(__file__).parents[1] / "examples" / "tiny-llama" / "checkpoint-2000"
BASE = ("plan", "tiny", "--for", "peft", "--modules", "4")
TO_FILE = ("plan", "tiny", "--for", "peft", "--modules", "3", "--out", "lora.json")
REFUSED = {
    ("--for", "lora"): (2, "choose from peft, axolotl"),
    ("--for", "lr", "--modules", "3"): (2, "--modules: means nothing for --for lr, which takes"),
    ("--for", "peft", "--target", "50%"): (2, "--target: means nothing for --for peft"),
    ("--for", "peft", "--top", "some"): (2, "--top 'some': give a share, such as 25%"),
    ("--for", "peft", "--top", "0.25"): (2, "--top 0.25: is 0.25 per cent; did you mean 25%?"),
    ("--for", "peft", "--budget", "lots"): (2, "--budget 'lots'"),
    ("--for", "peft", "--budget", "3"): (2, "--budget 3: the first choice"),
    ("--for", "peft", "--rank", "0"): (2, "--rank '0'"),
    ("--for", "peft", "--by", "luck"): (2, "--by 'luck': choose from kappa"),
    ("--for", "sparsity", "--target", "x"): (2, "--target 'x': give a ratio"),
    ("--for", "sparsity", "--target", "120%"): (2, "--target 1.2"),
    ("--for", "bits", "--bits", "2"): (2, "below the lowest measured width, 3"),
    ("--for", "peft", "--out", "no/such/folder.json"): (1, "its folder does not exist"),
}
LIMITS = [
    ("--budget", "50000"), ("--budget", "50k"), ("--budget", "0.05M"),
    ("--top", "25%"), ("--top", "25"), ("--modules", "7"),
]  # fmt: skip
Words = tuple[str, ...]
Answers = dict[Words, subprocess.CompletedProcess[str]]


def target_command(run: str, target: str, *more: str) -> Words:
    limit = ("--modules", "6") if target == "peft" else ()
    return ("plan", run, "--for", target, *limit, *more)


def limited(limit: Words) -> Words:
    return ("plan", "tiny", "--for", "peft", "--across", *limit)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs of the example and of a model with hostile names."""
    work = tmp_path_factory.mktemp("plans")
    odd = {f"layers.{i}.{n}.weight": gaussian(96, 64) for i, n in enumerate(ODD_NAMES) if n}
    write_file(work / "odd.safetensors", odd)
    for model, run in ((TINY, "tiny"), (work / "odd.safetensors", "odd")):
        weightscope.analyze(model, out=work / run, quant_error=(8, 4, 3), device="cpu", threads=1)
    return work


@pytest.fixture(scope="module")
def answers(work: Path) -> Answers:
    """What every command of this file says."""
    commands: list[Words] = [target_command("tiny", target) for target in TARGETS]
    commands += [target_command("odd", target, "--explain") for target in TARGETS]
    commands += [BASE, (*BASE, "--quiet"), (*BASE, "--explain"), TO_FILE, (*TO_FILE, "--force")]
    commands += [("plan", "tiny", *words) for words in REFUSED]
    commands += [limited(limit) for limit in LIMITS]
    commands += [("plan", "tiny", "--for", "axolotl", "--out", "spectrum.yaml")]
    commands += [("plan", "nowhere", "--for", "peft"), (*TO_FILE, "--quiet")]
    return dict(zip(commands, run_each(commands, work), strict=True))


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_plans_the_example(answers: Answers, target: str) -> None:
    done = answers[target_command("tiny", target)]
    assert done.returncode == 0, done.stderr
    listed = target in {"axolotl", "trl"}
    assert yaml.safe_load(done.stdout) if listed else json.loads(done.stdout)
    lines = done.stderr.splitlines()
    assert len(lines) >= 4
    assert re.search(r"budget|limit|target", done.stderr, re.IGNORECASE)
    assert any("oise" in line for line in lines)


def test_the_same_run_gives_the_same_bytes_whatever_the_hash_seed(work: Path) -> None:
    """Defect K2: which modules survived depended on PYTHONHASHSEED."""
    words = ("plan", "tiny", "--for", "peft", "--modules", 9, "--across", "--explain")
    found = {
        (done.stdout, done.stderr)
        for seed in ("0", "1")
        for done in [run_weightscope(*words, cwd=work, env=environment(PYTHONHASHSEED=seed))]
    }
    ((text, _),) = found
    rows = [row for row in load_run(work / "tiny").rows if row["block"] is not None]
    rows.sort(key=lambda row: float(row["condition_number"] or 0))
    expected = [str(row["name"]).removesuffix(".weight") for row in rows[:9]]
    assert json.loads(text)["target_modules"] == expected


def test_no_weights_and_no_torch(work: Path) -> None:
    code = (
        "import contextlib, sys\n"
        "for heavy in ('torch', 'transformers', 'pandas', 'peft', 'yaml'):\n"
        "    sys.modules[heavy] = None\n"
        "from weightscope.cli.main import main\n"
        f"for target in {TARGETS!r}:\n"
        "    sys.argv = ['weightscope', 'plan', 'tiny', '--for', target]\n"
        "    try: main()\n"
        "    except SystemExit as end: assert not end.code, target\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=work,
        env=environment(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_out_writes_the_file_and_what_it_cannot_hold_beside_it(
    work: Path, answers: Answers
) -> None:
    done = answers[TO_FILE]
    assert (done.returncode, done.stdout) == (0, "")
    assert len(json.loads((work / "lora.json").read_text())["target_modules"]) == 3
    record = json.loads((work / "lora.json.run.json").read_text())
    assert record["command"].startswith("weightscope plan")
    assert record["run"]["model"] == "checkpoint-2000"
    assert record["run"]["source"]["files"][0]["header_sha256"]
    assert [r["chosen"] for r in record["records"]].count("yes") == 3
    assert record["criterion"].startswith("3 of 28 weights chosen by kappa")
    # comments hold it where the format has them
    assert not (work / "spectrum.yaml.run.json").exists()
    text = (work / "spectrum.yaml").read_text()
    assert "# run: Made by: " in text
    assert "sha256" in text
    assert len(yaml.safe_load(text)["unfrozen_parameters"]) == 7


def test_files_are_replaced_with_force_alone(answers: Answers) -> None:
    refused = answers[(*TO_FILE, "--quiet")]
    assert refused.returncode == 1
    assert "exists already" in refused.stderr
    assert answers[(*TO_FILE, "--force")].returncode == 0


def test_explanations_go_to_standard_error_and_can_be_left_out(answers: Answers) -> None:
    plain, quiet, told = (answers[(*BASE, *more)] for more in ((), ("--quiet",), ("--explain",)))
    assert plain.stdout == quiet.stdout == told.stdout
    assert quiet.stderr == ""
    assert "4 of 28 weights chosen by kappa" in plain.stderr
    assert "condition_number_null" in told.stderr
    assert told.stderr.count("model.layers.") >= 28


@pytest.mark.parametrize("words", REFUSED, ids=" ".join)
def test_refusals_say_what_to_do(answers: Answers, words: Words) -> None:
    code, told = REFUSED[words]
    done = answers[("plan", "tiny", *words)]
    assert done.returncode == code, done.stderr
    assert told in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_a_folder_without_a_run_is_refused(answers: Answers) -> None:
    done = answers[("plan", "nowhere", "--for", "peft")]
    assert done.returncode == 1
    assert "not a run folder" in done.stderr


def test_units_of_budgets_and_shares(answers: Answers) -> None:
    found = [answers[limited(limit)].stdout for limit in LIMITS]
    assert found[0] == found[1] == found[2]
    assert found[3] == found[4] == found[5]
    assert len(json.loads(found[3])["target_modules"]) == 7


@pytest.mark.parametrize("target", TARGETS)
def test_hostile_names_neither_break_a_file_nor_steer_a_terminal(
    answers: Answers, target: str
) -> None:
    done = answers[target_command("odd", target, "--explain")]
    if target in {"axolotl", "trl"}:  # of each name there is one, and a quarter of one is none
        assert done.returncode == 2
        assert "is none" in done.stderr
    else:
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)
    for text in (done.stdout, done.stderr):
        assert not {"\x1b", "\u202e", "\x00", "\r"} & set(text)


def test_sparsity_of_minilm(minilm: Path, tmp_path: Path) -> None:
    """The real model end to end, with the paper's fit; checked against the report's own figures."""
    metrics = ["alpha", "null"]
    run = weightscope.analyze(
        minilm, out=tmp_path / "run", metrics=metrics, xmin="peak", device="cpu", threads=1
    )
    done = run_weightscope("plan", "run", "--for", "sparsity", "--target", "70%", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "--xmin" not in done.stderr
    assert "no comparison" in done.stderr
    found = json.loads(done.stdout)["sparsity"]
    rows = [row for row in run.rows if row["block"] is not None]
    assert set(found) == {r["name"] for r in rows}
    means = {}
    for block in range(6):
        inside = [float(r["alpha"] or 0) for r in rows if r["block"] == block]
        means[block] = sum(inside) / len(inside)
    low, high = min(means.values()), max(means.values())
    shares = {b: 0.7 + 0.6 * (m - low) / (high - low) for b, m in means.items()}
    eta = 0.7 * 6 / sum(shares.values())
    for r in rows:
        assert found[str(r["name"])] == pytest.approx(eta * shares[int(r["block"] or 0)], rel=1e-9)
