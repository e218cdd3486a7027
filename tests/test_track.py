"""Trajectories over a training: order of steps, what is analysed, what is told."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import environment, gaussian, run_each, run_weightscope, small_model, write_file

import weightscope
from weightscope import analysis
from weightscope.analysis import Saving
from weightscope.comparing import Comparing
from weightscope.errors import CheckpointError, OptionError
from weightscope.evaluate import Row, all_columns
from weightscope.folders.storage import load_run
from weightscope.present.trajectory import sparkline, trajectory_report
from weightscope.run import Run
from weightscope.settings import Settings
from weightscope.trajectory import (
    Trajectory,
    expand,
    long_rows,
    metric_names,
    step_of,
    summarise,
    track,
    trajectory_of,
)

QUICK = Comparing(
    weights=False, settings=Settings(metrics=("alpha", "norms"), threads=1, device="cpu")
)
STEPS = (100, 500, 2000)


def at_step(step: int) -> dict[str, torch.Tensor]:
    """A model in training: its matrices grow, each from another start."""
    tensors = small_model(blocks=1, seed=3)
    growth = 1 + step / 1000
    return {
        name: tensor * growth if tensor.ndim == 2 and "q_proj" in name else tensor
        for name, tensor in tensors.items()
    }


def write_checkpoint(folder: Path, step: int, state: Any = None) -> Path:
    """A checkpoint as a trainer leaves it."""
    write_file(folder / "model.safetensors", at_step(step))
    text = json.dumps({"global_step": step, "epoch": 1.0} if state is None else state)
    (folder / "trainer_state.json").write_text(text)
    return folder


# --- steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500), ("checkpoint-500.weightscope", 500), ("step_0010", 10),
        ("run2-step100", 100), ("model-7b.safetensors", 7), ("1000", 1000), ("epoch-0", 0),
        ("a/b/checkpoint-12", 12), ("checkpoint-20/", 20),
    ],
)  # fmt: skip
def test_the_step_is_the_last_number_of_the_name(name: str, step: int) -> None:
    assert step_of(name) == step


def test_the_trainers_record_goes_before_the_name(tmp_path: Path) -> None:
    assert step_of(str(write_checkpoint(tmp_path / "best-99", 700))) == 700


def test_a_run_that_was_numbered_has_the_step_of_its_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another training's checkpoint-500 had been analysed here before."""
    monkeypatch.chdir(tmp_path)
    for training in ("first", "second"):
        folder = tmp_path / training / "checkpoint-500"
        write_file(folder / "model.safetensors", {"w": gaussian(9, 8, seed=len(training))})
        analysis.analyze(folder, QUICK.settings, Saving(True))
    assert step_of("checkpoint-500-2.weightscope") == 500


@pytest.mark.parametrize("name", ["final", "checkpoint-last.weightscope", "model.safetensors"])
def test_a_name_without_a_number_is_refused(name: str) -> None:
    with pytest.raises(CheckpointError, match=r"trainer_state\.json"):
        step_of(name)


HOSTILE = {
    "no JSON": b"{", "empty": b"", "bytes": b"\xff\xfe\x00", "a list": b"[1, 2]", "a number": b"7",
    "null": b"null", "text": b'{"global_step": "900"}', "float": b'{"global_step": 9.5}',
    "boolean": b'{"global_step": true}', "negative": b'{"global_step": -5}',
    "list": b'{"global_step": [900]}', "huge": b'{"global_step": ' + b"9" * 5000 + b"}",
    "infinite": b'{"global_step": 1e999}', "deep": b"[" * 200_000, "other": b'{"step": 900}',
    "deep object": b'{"a":' * 100_000, "code": b'__import__("os").system("true")',
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_record_that_makes_no_sense_leaves_the_name(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-300"
    folder.mkdir()
    (folder / "trainer_state.json").write_bytes(HOSTILE[kind])
    assert step_of(str(folder)) == 300


def test_a_record_that_is_no_file_leaves_the_name(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-300" / "trainer_state.json").mkdir(parents=True)
    assert step_of(str(tmp_path / "checkpoint-300")) == 300
    (tmp_path / "checkpoint-400").mkdir()
    (tmp_path / "checkpoint-400" / "trainer_state.json").symlink_to("/nowhere")
    assert step_of(str(tmp_path / "checkpoint-400")) == 400


def test_arguments_are_runs_globs_and_training_folders(tmp_path: Path) -> None:
    training = tmp_path / "training"
    folders = [str(training / f"checkpoint-{step}") for step in STEPS]
    for folder in folders:
        Path(folder).mkdir(parents=True)
    (training / "checkpoint-notes.txt").write_text("no folder")
    assert sorted(expand([str(training)])) == sorted(folders)
    assert sorted(expand([f"{training}/checkpoint-*0"])) == sorted(folders)
    assert expand([folders[1], str(training / "checkpoint-5*"), folders[1]]) == [folders[1]]
    assert expand(["nowhere", folders[0]]) == ["nowhere", folders[0]]
    assert sorted(expand([f"{tmp_path}/**/checkpoint-[12]*"])) == sorted([folders[0], folders[2]])
    with pytest.raises(OptionError, match="matches nothing"):
        expand([f"{training}/step-*"])


def test_a_folder_whose_name_looks_like_a_glob_is_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run[1]-10"
    folder.mkdir()
    assert expand([str(folder)]) == [str(folder)]


# --- a training ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Work:
    """A folder with a training, the runs of its checkpoints, and what the command said.

    Attributes:
        folder: Working folder; the runs are saved there.
        ends: Exit code, standard output and standard error, by the words of the command.
        before: Files of the runs and their times, after the first command.
    """

    folder: Path
    ends: dict[str, tuple[int, str, str]] = field(default_factory=dict)
    before: dict[str, tuple[int, bytes]] = field(default_factory=dict)

    def files(self) -> dict[str, tuple[int, bytes]]:
        """Every file of every run: when it was written, and what it holds."""
        paths = (p for run in self.folder.glob("*.weightscope") for p in run.rglob("*"))
        files = [path for path in paths if path.is_file()]
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}

    def runs(self) -> list[Run]:
        return [load_run(self.folder / f"checkpoint-{step}.weightscope") for step in STEPS]


RUNS = " ".join(f"checkpoint-{step}.weightscope" for step in reversed(STEPS))
COMMANDS = [
    "training --format csv",
    f"{RUNS} --format csv",
    f"{RUNS} --format table",
    f"{RUNS} --format json --metric spectral_norm --metric alpha",
    f"{RUNS} --format table --metric spectral_norm --top 2",
    f"{RUNS} --csv out.csv --metric alpha",
    "checkpoint-*.weightscope --format markdown",
    "training/checkpoint-100 checkpoint-500.weightscope --metric alpha",
    "checkpoint-100.weightscope",
    "checkpoint-100.weightscope checkpoint-100.weightscope",
    "checkpoint-100.weightscope twin-100.weightscope",
    "checkpoint-100.weightscope other-500.weightscope",
    "checkpoint-100.weightscope other-500.weightscope --force --metric alpha",
    f"{RUNS} --metric spectral_norm --sort change --format table",
    f"{RUNS} --metric spectral_norm --sort=-change --top 1 --format table",
    f"{RUNS} --metric alpha_band",
    f"{RUNS} --metric alhpa",
    f"{RUNS} --csv taken.csv",
    f"{RUNS} --sort alpha",
    "checkpoint-100.weightscope final",
    "'nothing-*'",
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    found = Work(tmp_path_factory.mktemp("track"))
    for step in STEPS:
        write_checkpoint(found.folder / "training" / f"checkpoint-{step}", step)
    cpu = ["--threads", "1", "--device", "cpu"]
    first = ["track", "training", "--format", "csv", *cpu]
    done = run_weightscope(*first, cwd=found.folder)
    found.ends["first"] = (done.returncode, done.stdout, done.stderr)
    found.before.update(found.files())
    run = found.folder / "checkpoint-100.weightscope"
    shutil.copytree(run, found.folder / "twin-100.weightscope")
    other = found.folder / "other-500.weightscope"
    weightscope.analyze(at_step(500), out=other, xmin="mid", threads=1)
    (found.folder / "taken.csv").write_text("mine")
    words = [["track", *command.replace("'", "").split(), *cpu] for command in COMMANDS]
    ends = run_each(words, found.folder)
    found.ends.update(
        (command, (end.returncode, end.stdout, end.stderr))
        for command, end in zip(COMMANDS, ends, strict=True)
    )
    return found


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_a_training_folder_is_tracked_in_the_order_of_its_steps(work: Work) -> None:
    """By number, not by letters: 2000 comes last."""
    code, stdout, talk = work.ends["first"]
    steps = [int(row["step"]) for row in read_csv(stdout)]
    assert code == 0 and "used again" not in talk and "Error" not in talk
    assert steps == sorted(steps) and set(steps) == set(STEPS)
    assert all((work.folder / f"checkpoint-{step}.weightscope").is_dir() for step in STEPS)


def test_what_is_analysed_is_not_analysed_again(work: Work) -> None:
    after = {path: was for path, was in work.files().items() if path in work.before}
    assert after == work.before
    code, stdout, talk = work.ends["training --format csv"]
    assert code == 0 and stdout == work.ends["first"][1]
    for step in STEPS:
        assert f"checkpoint-{step}.weightscope holds this very run" in talk


def test_saved_runs_are_tracked_like_their_checkpoints(work: Work) -> None:
    code, stdout, talk = work.ends[f"{RUNS} --format csv"]
    assert code == 0 and not talk and stdout == work.ends["first"][1]
    mixed = "training/checkpoint-100 checkpoint-500.weightscope --metric alpha"
    code, stdout, talk = work.ends[mixed]
    assert code == 0 and {row["step"] for row in read_csv(stdout)} == {"100", "500"}


def test_a_training_is_tracked_again_from_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs are kept in the working folder, here beside the checkpoints."""
    monkeypatch.chdir(tmp_path)
    for step in (5, 10):
        write_file(tmp_path / f"checkpoint-{step}" / "m.safetensors", {"w": gaussian(9, 8)})
    first = track(expand(["."]), QUICK)
    assert first.steps == (5, 10) and not any(run.reused for run in first.runs)
    named = ["checkpoint-5", "checkpoint-5.weightscope", "checkpoint-10"]
    for arguments in (["."], ["checkpoint-*"], named):
        again = track(expand(arguments), QUICK)
        assert (again.steps, again.rows) == (first.steps, first.rows)
        assert all(run.reused for run in again.runs)
    runs = sorted(path.name for path in tmp_path.glob("*.weightscope"))
    assert runs == ["checkpoint-10.weightscope", "checkpoint-5.weightscope"]


def test_single_files_are_tracked_again_beside_their_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for step in (5, 10):
        write_file(tmp_path / f"step-{step}.safetensors", {"w": gaussian(9, 8, seed=step)})
    first = track(expand(["step-*"]), QUICK)
    again = track(expand(["step-*"]), QUICK)
    assert first.steps == again.steps == (5, 10)
    assert first.rows == again.rows and all(run.reused for run in again.runs)


def test_csv_is_long(work: Work) -> None:
    rows = read_csv(work.ends["first"][1])
    assert list(rows[0]) == ["step", "name", "metric", "value"]
    expected = [
        (str(step), row["name"], column.name, repr(row[column.name]))
        for step, run in zip(STEPS, work.runs(), strict=True)
        for row in run.rows
        for column in all_columns()[16:]
        if column.kind != "text" and row[column.name] is not None
    ]
    assert sorted(tuple(row.values()) for row in rows) == sorted(expected)
    only = work.folder / "out.csv"
    metrics = {row["metric"] for row in read_csv(only.read_text("utf-8"))}
    assert metrics == {"alpha"} and (work.folder / "out.csv.run.json").exists()


def test_json_has_every_provenance_and_the_summary(work: Work) -> None:
    _, stdout, talk = work.ends[f"{RUNS} --format json --metric spectral_norm --metric alpha"]
    found = json.loads(stdout)
    assert not talk and [p["model"] for p in found["runs"]] == [f"checkpoint-{s}" for s in STEPS]
    assert found["summary"]["steps"] == list(STEPS)
    assert {row["metric"] for row in found["rows"]} == {"spectral_norm", "alpha"}
    growth = found["summary"]["spectral_norm_growth"][0]
    assert growth["name"] == "model.layers.0.self_attn.q_proj.weight"
    assert growth["ratio"] == pytest.approx(3 / 1.1, rel=1e-5)


def test_the_table_shows_the_first_metric_as_sparklines(work: Work) -> None:
    code, stdout, _ = work.ends[f"{RUNS} --format table"]
    lines = stdout.splitlines()
    assert code == 0 and "alpha over 3 steps: 100, 500, 2000" in lines[0]
    assert "Spectral norms grew most in" in stdout and "q_proj.weight x2.73" in stdout
    code, stdout, _ = work.ends[f"{RUNS} --format table --metric spectral_norm --top 2"]
    assert code == 0 and stdout.startswith("spectral_norm over 3 steps")
    shown = stdout[: stdout.index("Median alpha")]
    assert sum("model." in line for line in shown.splitlines()) == 2
    _, stdout, _ = work.ends["checkpoint-*.weightscope --format markdown"]
    row = next(line for line in stdout.splitlines() if "q_proj" in line and "|" in line)
    assert stdout.startswith("# alpha over 3 steps: 100, 500, 2000") and row.count("|") == 6


def test_the_table_is_sorted_by_its_own_columns(work: Work) -> None:
    norms = [{r["name"]: r["spectral_norm"] for r in run.rows} for run in work.runs()]
    grown = {name: norms[-1][name] - norms[0][name] for name in norms[0]}
    expected = [name.removesuffix(".weight") for name in sorted(grown, key=lambda n: -grown[n])]
    code, stdout, talk = work.ends[f"{RUNS} --metric spectral_norm --sort change --format table"]
    lines = stdout[: stdout.index("Median alpha")].splitlines()
    assert code == 0 and not talk and len(expected) > 2
    assert [words[0] for line in lines if (words := line.split()) and words[0] in expected] == (
        expected
    )
    last = f"{RUNS} --metric spectral_norm --sort=-change --top 1 --format table"
    table = work.ends[last][1][: work.ends[last][1].index("Median alpha")]
    least = min(grown, key=lambda name: grown[name]).removesuffix(".weight")
    assert [name for name in expected if name in table] == [least] != expected[:1]


def test_rules_are_on_the_columns_of_the_table(work: Work) -> None:
    norms = [{r["name"]: r["spectral_norm"] for r in run.rows} for run in work.runs()]
    change = {name: norms[-1][name] - norms[0][name] for name in norms[0]}
    most = max(change, key=lambda name: change[name])
    below, above = change[most] * 0.995, change[most] * 1.005
    runs, norm = RUNS.split(), ["--metric", "spectral_norm"]
    cases = [
        ([*runs, *norm, "--format", "csv", "--fail-on", f"change > {below!r}"], 4),
        ([*runs, *norm, "--fail-on", f"change > {above!r}"], 0),
        ([*runs, *norm, "--fail-on", f"last > 0 and name == '{most}'"], 4),
        ([*runs, "--csv", "bad.csv", "--fail-on", "alpha > 6"], 2),
        ([*runs, "--csv", "bad.csv", "--metric", "traps", "--fail-on", "last > 0"], 2),
    ]
    ends = run_each([["track", *words] for words, _ in cases], work.folder)
    assert [end.returncode for end in ends] == [code for _, code in cases]
    rule = cases[0][0][-1]
    assert f"Rule hit by 1 of {len(change)} rows: {rule}\n  {most}: change " in ends[0].stderr
    assert {row["metric"] for row in read_csv(ends[0].stdout)} == {"spectral_norm"}
    assert "Rule hit" not in ends[1].stderr
    assert "there is no column 'alpha'" in ends[3].stderr
    assert "last is not computed here; traps is missing, analyze with --shuffled" in ends[4].stderr
    assert not (work.folder / "bad.csv").exists()


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        ("checkpoint-100.weightscope", 2, "at least two"),
        ("checkpoint-100.weightscope checkpoint-100.weightscope", 2, "at least two"),
        ("checkpoint-100.weightscope twin-100.weightscope", 2, "two of the runs are of step 100"),
        ("checkpoint-100.weightscope other-500.weightscope", 5, "--xmin"),
        (f"{RUNS} --metric alpha_band", 2, "--metric 'alpha_band': no such numeric column"),
        (f"{RUNS} --metric alhpa", 2, "--metric 'alhpa': no such numeric column"),
        (f"{RUNS} --sort alpha", 2, "--sort 'alpha': no such column"),
        (f"{RUNS} --csv taken.csv", 1, "taken.csv: exists already"),
        ("checkpoint-100.weightscope final", 1, "final"),
        ("'nothing-*'", 2, "'nothing-*' matches nothing"),
    ],
)
def test_what_cannot_be_tracked_is_refused_in_a_sentence(
    work: Work, command: str, code: int, sentence: str
) -> None:
    found, stdout, talk = work.ends[command]
    assert (found, stdout) == (code, "") and sentence in talk
    assert talk.startswith("Error:") and len(talk.splitlines()) == 1


def test_force_tracks_runs_of_different_settings(work: Work) -> None:
    code, stdout, _ = work.ends[
        "checkpoint-100.weightscope other-500.weightscope --force --metric alpha"
    ]
    assert code == 0 and {row["step"] for row in read_csv(stdout)} == {"100", "500"}


def test_tracking_saved_runs_does_not_import_torch(work: Work) -> None:
    code = """
import sys
from weightscope.cli.main import main
sys.argv = ["weightscope", "track", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
heavy = ("torch", "transformers", "pandas", "scipy", "matplotlib", "huggingface_hub")
print("LOADED", *(name for name in heavy if name in sys.modules))
"""
    runs = [str(work.folder / f"checkpoint-{step}.weightscope") for step in STEPS]
    done = subprocess.run(
        [sys.executable, "-c", code, *runs], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_the_examples_training_is_tracked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps 100, 500 and 2000 of a real training: norms grow, and every matrix is followed."""
    monkeypatch.chdir(tmp_path)
    example = Path(__file__).parent.parent / "examples" / "tiny-llama"
    found = track(expand([str(example)]), QUICK)
    assert found.steps == STEPS
    summary = summarise(found)
    assert [g["ratio"] > 1 for g in summary["spectral_norm_growth"]] == [True] * 5
    ratios = [g["ratio"] for g in summary["spectral_norm_growth"]]
    assert ratios == sorted(ratios, reverse=True)
    for name in found.names:
        assert None not in found.values(name, "spectral_norm")
    moved = summary["first_to_move"]
    assert moved is None or moved["step"] in STEPS[1:]


# --- the summary, from figures given -------------------------------------------------------

EMPTY: Row = dict.fromkeys(column.name for column in all_columns())


def given(*steps: Mapping[str, Mapping[str, Any]], at: tuple[int, ...] = STEPS) -> Trajectory:
    runs = [
        Run(
            {"model": "m", "settings": {}},
            tuple({**EMPTY, "name": n, "role": "mlp", **c} for n, c in s.items()),
            {},
        )
        for s in steps
    ]
    return trajectory_of(at[: len(runs)], runs)


def exponent(alpha: float, stderr: float = 0.1, **cells: Any) -> dict[str, Any]:
    return {"alpha": alpha, "alpha_stderr": stderr, **cells}


def test_the_first_to_move_are_those_of_the_first_step_at_which_any_did() -> None:
    found = given(
        {"a": exponent(3.0), "b": exponent(4.0), "c": exponent(5.0)},
        {"a": exponent(3.2), "b": exponent(4.0), "c": exponent(4.5)},
        {"a": exponent(9.0), "b": exponent(9.0), "c": exponent(5.0)},
    )
    assert summarise(found)["first_to_move"] == {"step": 500, "count": 1, "names": ["c"]}


def test_nobody_moved() -> None:
    found = given({"a": exponent(3.0)}, {"a": exponent(3.28)})
    summary = summarise(found)
    assert summary["first_to_move"] is None
    texts = [getattr(b, "text", "") for b in trajectory_report(found, summary, "alpha").blocks]
    assert "No exponent moved by more than its uncertainty." in texts


def test_norms_grow_from_the_first_step_to_the_last() -> None:
    def norms(*values: float | None) -> dict[str, dict[str, Any]]:
        return {n: {"spectral_norm": v} for n, v in zip("abcdefg", values, strict=False)}

    found = given(
        norms(1.0, 2.0, 4.0, 0.0, None, 1.0, 1.0),
        norms(9.0, 9.0, 9.0, 9.0, 9.0, 9.0, 9.0),
        norms(3.0, 3.0, 2.0, 5.0, 5.0, None),
    )
    assert summarise(found)["spectral_norm_growth"] == [
        {"name": "a", "ratio": 3.0},
        {"name": "b", "ratio": 1.5},
        {"name": "c", "ratio": 0.5},
    ]


def test_medians_per_role_at_every_step() -> None:
    found = given(
        {n: exponent(a, role=r) for n, a, r in (("x", 2.0, "q"), ("y", 4.0, "q"), ("z", 7.0, "k"))},
        {n: exponent(a, role=r) for n, a, r in (("x", 3.0, "q"), ("y", 9.0, "q"), ("w", 1.0, "q"))},
    )
    assert summarise(found)["alpha_median"] == {"q": [3.0, 3.0], "k": [7.0, None]}


def test_leaving_a_band_is_told_with_the_step_and_both_bands() -> None:
    def bands(*values: str | None) -> dict[str, dict[str, Any]]:
        return {n: {"alpha_band": v} for n, v in zip("abcde", values, strict=True)}

    found = given(
        bands("heavy", "heavy", "weak", None, "heavy"),
        bands("weak", "heavy", "heavy", "weak", "weak"),
        bands("weak", "very-heavy", "weak", "heavy", None),
    )
    assert summarise(found)["left_their_band"] == [
        {"name": "a", "step": 500, "from": "heavy", "to": "weak"},
        {"name": "b", "step": 2000, "from": "heavy", "to": "very-heavy"},
        {"name": "d", "step": 2000, "from": "weak", "to": "heavy"},
        {"name": "e", "step": 500, "from": "heavy", "to": "weak"},
    ]


def test_a_matrix_that_is_missing_at_some_steps_leaves_gaps() -> None:
    found = given(
        {"a": exponent(3.0)}, {"a": exponent(4.0), "b": exponent(5.0)}, {"b": exponent(6.0)}
    )
    assert found.names == ("a", "b")
    assert found.values("a", "alpha") == [3.0, 4.0, None]
    assert found.values("b", "alpha") == [None, 5.0, 6.0]
    assert long_rows(found, ["alpha"]) == [
        {"step": 100, "name": "a", "metric": "alpha", "value": 3.0},
        {"step": 500, "name": "a", "metric": "alpha", "value": 4.0},
        {"step": 500, "name": "b", "metric": "alpha", "value": 5.0},
        {"step": 2000, "name": "b", "metric": "alpha", "value": 6.0},
    ]
    table = trajectory_report(found, summarise(found), "alpha").blocks[0]
    assert [[cell.text for cell in row] for row in table.rows] == [  # type: ignore[union-attr]
        ["a", "▁█ ", "3", "4", "+1"],
        ["b", " ▁█", "5", "6", "+1"],
    ]


def test_wrapped_names_are_one_trajectory() -> None:
    found = given({"w": exponent(3.0)}, {"module.w": exponent(4.0)}, {"_orig_mod.w": exponent(5.0)})
    assert found.names == ("w",) and found.values("w", "alpha") == [3.0, 4.0, 5.0]


# --- sparklines ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], ""),
        ([None, None], ""),
        ([1.0], "▁"),
        ([2.0, 2.0, 2.0], "▁▁▁"),
        ([0.0, 1.0], "▁█"),
        ([1.0, None, 0.0], "█ ▁"),
        ([float(i) for i in range(8)], "▁▂▃▄▅▆▇█"),
        ([-7.0, 0.0, 7.0], "▁▅█"),
        ([1e300, -1e300], "█▁"),
        ([5e-324, 0.0], "█▁"),
    ],
)
def test_a_sparkline_runs_from_the_lowest_to_the_highest(
    values: list[float | None], expected: str
) -> None:
    assert sparkline(values) == expected


def test_a_sparkline_keeps_the_order_of_its_values() -> None:
    values = np.random.default_rng(0).normal(size=200).tolist()
    levels = [ord(bar) for bar in sparkline(values)]
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(np.array(levels)[order]) >= 0)
    assert {min(levels), max(levels)} == {ord("▁"), ord("█")}


def test_metrics_are_numeric_columns() -> None:
    assert metric_names([])[0] == "alpha" and "spectral_norm" in metric_names([])
    assert metric_names(["rank", "alpha"]) == ["rank", "alpha"]
    for name in ("status", "name", "alpha_band", "", "Alpha"):
        with pytest.raises(OptionError, match="--metric"):
            metric_names([name])
