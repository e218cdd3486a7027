"""The run folder: reuse, refusal, locks, and kills at every moment of its life."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import (
    ODD_NAMES,
    environment,
    gaussian,
    many_matrices,
    run_weightscope,
    weightscope_command,
    write_file,
    write_sharded,
)

import weightscope
from weightscope import analysis, plan
from weightscope.analysis import Saving
from weightscope.errors import CheckpointError, IncomparableRunsError, RunFolderError
from weightscope.folders import storage
from weightscope.folders.locks import locked
from weightscope.folders.storage import RunWriter, load_run
from weightscope.run import Run
from weightscope.settings import Settings
from weightscope.sinks import csv

QUICK = Settings(metrics=("alpha", "norms", "welore"), threads=1)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small model, analysed in four batches; the working folder is an empty one beside it."""
    monkeypatch.setattr(plan, "BATCH_MATRICES", 3)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return write_file(tmp_path / "toy.safetensors", many_matrices(10, 24, 20))


def run(
    model: Any,
    out: Path | str | None = None,
    settings: Settings = QUICK,
    force: bool = False,
    resume: bool = False,
) -> Run:
    saving = Saving(True, Path(out) if out is not None else None, force, resume)
    return analysis.analyze(model, settings, saving)


def as_csv(found: Run) -> str:
    return csv.render(list(found.rows[0]), found.rows)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a run folder, by its relative path, but for the lock and the command."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != storage.LOCK)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}
    if storage.RUN in found:
        lines = found[storage.RUN].split(b"\n")
        kept = [line for line in lines if not line.startswith(b' "command": ')]
        found[storage.RUN] = b"\n".join(kept)
    return found


def same_results(folder: Path, other: Path) -> bool:
    """Whether table, spectra and record are the same bytes; measurements may be in any order."""
    found, wanted = contents(folder), contents(other)
    lines = [sorted(files.pop("rows.jsonl").split(b"\n")) for files in (found, wanted)]
    return found == wanted and lines[0] == lines[1]


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def interrupted(model: Any, out: Path, batches: int, settings: Settings = QUICK) -> list[bytes]:
    """Leave a run that was killed after so many batches; returns the lines it wrote."""
    left = batches

    class Killed(BaseException):
        """Stands for the end of the process."""

    def append(writer: RunWriter, *args: Any) -> None:
        nonlocal left
        if not left:
            raise Killed
        left -= 1
        original(writer, *args)

    original = RunWriter.append
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        patch.setattr(RunWriter, "append", append)
        run(model, out, settings, resume=True)
    return (out / "rows.jsonl").read_bytes().splitlines(keepends=True)


# --- a finished run --------------------------------------------------------------------------


def test_a_run_is_read_again_as_it_was(model: Path, tmp_path: Path) -> None:
    settings = Settings(threads=1)
    made = run(model, tmp_path / "run", settings)
    read = load_run(tmp_path / "run")
    assert read.rows == made.rows
    assert read.summary == json.loads(json.dumps(made.summary))
    assert read.provenance["settings"] == settings_as_run(settings)
    assert set(read.spectra()) == set(made.spectra()) == {str(row["name"]) for row in made.rows}
    for name, spectrum in made.spectra().items():
        for field in fields(spectrum):
            assert np.array_equal(
                getattr(read.spectrum(name), field.name), getattr(spectrum, field.name)
            )


def settings_as_run(settings: Settings) -> dict[str, Any]:
    return replace(settings, device="cpu").as_record()


def test_saved_spectra_are_the_singular_values(tmp_path: Path) -> None:
    tensors = {"w": gaussian(40, 30), "experts": gaussian(3, 20, 24, seed=1)}
    weightscope.analyze(tensors, out=tmp_path / "run", metrics=("norms",))
    spectra = load_run(tmp_path / "run").spectra()
    matrices = {"w": tensors["w"]} | {f"experts[{e}]": tensors["experts"][e] for e in range(3)}
    assert set(spectra) == set(matrices)
    for name, matrix in matrices.items():
        expected = np.linalg.svd(matrix.double().numpy(), compute_uv=False)
        np.testing.assert_allclose(spectra[name].singular_values, expected, rtol=1e-11)


def test_a_finished_folder_holds_what_is_documented_and_no_more(
    model: Path, tmp_path: Path
) -> None:
    run(model, tmp_path / "run")
    assert set(contents(tmp_path / "run")) == {
        "run.json",
        "rows.jsonl",
        "spectra.safetensors",
        "table.jsonl",
    }
    assert not (tmp_path / "run" / "parts").exists()


def test_hostile_names_survive_the_run_folder(tmp_path: Path) -> None:
    """Line separators of Unicode above all: the rows are lines."""
    tensors = {name or "empty": gaussian(10, 9, seed=n) for n, name in enumerate(ODD_NAMES)}
    path = write_file(tmp_path / "toy.safetensors", tensors)
    made = run(path, tmp_path / "run")
    assert {row["name"] for row in made.rows} == set(tensors)
    assert load_run(tmp_path / "run").rows == made.rows
    assert set(load_run(tmp_path / "run").spectra()) == set(tensors)
    assert not [p for p in tmp_path.rglob("*") if p.name not in known_names(tmp_path)]


def known_names(tmp_path: Path) -> set[str]:
    return {"toy.safetensors", "run", ".lock", *(name for name in contents(tmp_path / "run"))}


def test_hostile_names_survive_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "BATCH_MATRICES", 3)
    tensors = {name or "empty": gaussian(10, 9, seed=n) for n, name in enumerate(ODD_NAMES)}
    path = write_file(tmp_path / "toy.safetensors", tensors)
    lines = interrupted(path, tmp_path / "run", 4)
    assert len(lines) == 12
    whole = run(path, tmp_path / "whole")
    assert as_csv(run(path, tmp_path / "run", resume=True)) == as_csv(whole)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_matrices_of_one_name_are_refused(model: Path, tmp_path: Path) -> None:
    """A tensor may be called what an expert of a stack is called; figures go by name."""
    alone = gaussian(14, 13, seed=1)
    tensors = {"experts.w": gaussian(2, 16, 12), "experts.w[0]": alone}
    path = write_file(tmp_path / "twice.safetensors", tensors)
    with pytest.raises(CheckpointError, match=r"'experts\.w\[0\]'.*--exclude"):
        run(path, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    [row] = run(path, tmp_path / "run", replace(QUICK, exclude=("experts.w",))).rows
    assert row["name"] == "experts.w[0]"
    assert row["frobenius_norm"] == pytest.approx(float(alone.double().norm()), rel=1e-12)


# --- reuse and refusal -----------------------------------------------------------------------


def test_an_identical_run_is_used_again(model: Path) -> None:
    first = run(model)
    assert first.folder == Path("toy.weightscope") and not first.reused
    before = contents(Path("toy.weightscope"))
    again = run(model)
    assert again.reused and again.folder == first.folder and again.rows == first.rows
    assert names_in(Path()) == ["toy.weightscope"] and contents(Path("toy.weightscope")) == before


def test_a_different_run_gets_a_numbered_name(model: Path) -> None:
    run(model)
    before = contents(Path("toy.weightscope"))
    other = run(model, settings=replace(QUICK, xmin="mid"))
    third = run(model, settings=replace(QUICK, xmin="peak"))
    assert (other.folder, third.folder) == (
        Path("toy-2.weightscope"),
        Path("toy-3.weightscope"),
    )
    assert run(model, settings=replace(QUICK, xmin="mid")).folder == other.folder
    assert run(model).reused
    assert contents(Path("toy.weightscope")) == before


def test_changed_weights_are_another_run(model: Path) -> None:
    first = run(model)
    write_file(model, many_matrices(10, 24, 20, seed=99))
    second = run(model)
    assert second.folder != first.folder and second.rows != first.rows


def test_whatever_else_has_the_default_name_is_left_alone(model: Path) -> None:
    Path("toy.weightscope").write_text("mine")
    Path("toy-2.weightscope").mkdir()
    Path("toy-2.weightscope/notes.txt").write_text("mine too")
    assert run(model).folder == Path("toy-3.weightscope")
    assert Path("toy.weightscope").read_text() == "mine"
    assert names_in(Path("toy-2.weightscope")) == ["notes.txt"]


def test_live_models_are_told_apart() -> None:
    """Nothing in the provenance does: their figures must not be taken for each other's."""
    for out in (None, Path("live")):
        for seed in (1, 2):
            tensors = {"w": gaussian(20, 16, seed=seed)}
            try:
                found = run(tensors, out)
            except RunFolderError as error:
                assert seed == 2 and "live" in str(error)
            else:
                assert found.rows[0]["frobenius_norm"] == pytest.approx(float(tensors["w"].norm()))
    shutil.rmtree("live")
    for folder in Path().glob("state_dict*.weightscope"):
        shutil.rmtree(folder)


def test_an_explicit_folder_of_another_run_needs_force(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(model, out)
    before = contents(out)
    other = replace(QUICK, xmin="mid")
    with pytest.raises(RunFolderError, match=r"exists already.*--force"):
        run(model, out, other)
    with pytest.raises(IncomparableRunsError, match=r"settings\.xmin is 'ks' there and 'mid' here"):
        run(model, out, other, resume=True)
    assert contents(out) == before
    assert run(model, out).reused
    replaced = run(model, out, other, force=True)
    assert not replaced.reused and load_run(out).provenance["settings"]["xmin"] == "mid"


def test_force_is_offered_only_where_it_would_replace(model: Path, tmp_path: Path) -> None:
    run(model, tmp_path / "mixed")
    (tmp_path / "mixed" / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "thesis.tex").write_text("mine")
    (tmp_path / "file").write_text("mine")
    other = replace(QUICK, xmin="mid")
    for name in ("mixed", "folder", "file"):
        with pytest.raises(RunFolderError, match=r"exists already.*--out$"):
            run(model, tmp_path / name, other)
        with pytest.raises(RunFolderError):
            run(model, tmp_path / name, other, force=True)


def test_resuming_another_model_names_what_differs(model: Path, tmp_path: Path) -> None:
    interrupted(model, tmp_path / "run", 2)
    other = write_file(tmp_path / "other.safetensors", many_matrices(11, 24, 20))
    with pytest.raises(IncomparableRunsError, match=r"source\.files"):
        run(other, tmp_path / "run", resume=True)
    # and the folder is neither changed nor locked
    assert not run(model, tmp_path / "run", resume=True).reused


def test_an_interrupted_run_in_an_explicit_folder_asks_for_resume(
    model: Path, tmp_path: Path
) -> None:
    interrupted(model, tmp_path / "run", 2)
    with pytest.raises(RunFolderError, match=r"interrupted; continue it with --resume"):
        run(model, tmp_path / "run")
    with pytest.raises(RunFolderError, match=r"interrupted.*--resume"):
        load_run(tmp_path / "run")


def test_resume_of_nothing_starts_and_of_everything_reuses(model: Path, tmp_path: Path) -> None:
    assert not run(model, tmp_path / "run", resume=True).reused
    assert run(model, tmp_path / "run", resume=True).reused
    assert run(model, resume=True).folder == Path("toy.weightscope")


def test_resume_that_continues_nothing_says_in_one_line_what_differs(
    model: Path, tmp_path: Path
) -> None:
    command = ("analyze", model, "--resume", "--metrics", "alpha,norms,welore", "--threads", "1")

    def remark(*more: object) -> list[str]:
        done = run_weightscope(*command, *more)
        assert done.returncode == 0, done.stderr
        return [line for line in done.stderr.splitlines() if "--resume" in line]

    nothing = "--resume found nothing to continue: "
    assert remark("--out", tmp_path / "new") == [
        f"{nothing}there is no run in {tmp_path / 'new'}; beginning anew in {tmp_path / 'new'}"
    ]
    run(model)
    interrupted(model, Path("toy-2.weightscope"), 2, replace(QUICK, xmin="mid"))
    # of two other runs, the one that was interrupted is the one that is meant
    assert remark("--xmin", "peak") == [
        f"{nothing}settings.xmin is 'mid' in toy-2.weightscope and 'peak' here; beginning anew in "
        "toy-3.weightscope"
    ]
    assert remark("--xmin", "peak") == []  # now that run is there, and used again
    assert remark("--xmin", "peak-fixed", "--quiet") == []


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_run_folder_is_never_touched(model: Path, tmp_path: Path, force: bool) -> None:
    mine = {
        "notes": {"notes.txt": "mine"},
        "other json": {"run.json": '{"name": "mine"}'},
        "broken json": {"run.json": "mine"},
        "parts": {"parts/car.txt": "mine"},
        "temporary": {"thesis.tmp": "mine"},
        "lines": {"rows.jsonl": "mine", "keep.me": "mine"},
    }
    for name, files in mine.items():
        for file, text in files.items():
            (tmp_path / name / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / file).write_text(text)
        for resume in (False, True):
            with pytest.raises(RunFolderError):
                run(model, tmp_path / name, force=force, resume=resume)
        assert {n: b.decode() for n, b in contents(tmp_path / name).items()} == files
    (tmp_path / "file").write_text("mine")
    with pytest.raises(RunFolderError):
        run(model, tmp_path / "file", force=force)
    assert (tmp_path / "file").read_text() == "mine"


def test_force_keeps_files_that_no_run_wrote(model: Path, tmp_path: Path) -> None:
    """Someone's notes beside the results; losing them would be worse than refusing."""
    run(model, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    try:
        run(model, tmp_path / "run", replace(QUICK, xmin="mid"), force=True)
    except RunFolderError as error:
        assert "notes.txt" in str(error)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_an_empty_folder_is_as_good_as_none_with_force(model: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert not run(model, tmp_path / "run", force=True).reused


def test_a_folder_inside_missing_folders_is_made(model: Path, tmp_path: Path) -> None:
    run(model, tmp_path / "a" / "b" / "run")
    assert load_run(tmp_path / "a" / "b" / "run").rows


@pytest.mark.parametrize("schema", [0, 99, None, "1", [1]])
def test_another_schema_is_refused_by_name(model: Path, tmp_path: Path, schema: Any) -> None:
    out = tmp_path / "run"
    run(model, out)
    record = json.loads((out / "run.json").read_text())
    (out / "run.json").write_text(json.dumps({**record, "schema": schema}))
    for attempt in (lambda: load_run(out), lambda: run(model, out, resume=True)):
        with pytest.raises(RunFolderError) as caught:
            attempt()
        assert str(caught.value).startswith(f"{out}: ") and f"version {schema!r}" in str(
            caught.value
        )
    assert not run(model, out, force=True).reused


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "3", "{}", "\xff", '{"schema": 1}'])
def test_a_broken_record_is_refused(model: Path, tmp_path: Path, text: str) -> None:
    out = tmp_path / "run"
    run(model, out)
    (out / "run.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunFolderError) as caught:
        load_run(out)
    assert str(out) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["{", "3\n", "null\n", '{"name": "w"}\n', "\xff\n"])
def test_a_broken_table_is_refused(model: Path, tmp_path: Path, text: str) -> None:
    out = tmp_path / "run"
    run(model, out)
    (out / "table.jsonl").write_bytes(text.encode("latin-1"))
    with pytest.raises(RunFolderError) as caught:
        load_run(out)
    assert str(out) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_table_or_broken_spectra_are_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    run(model, out)
    (out / "spectra.safetensors").write_bytes(b"")
    with pytest.raises(RunFolderError, match=r"spectra\.safetensors"):
        load_run(out).spectra()
    (out / "table.jsonl").unlink()
    with pytest.raises(RunFolderError, match=r"table\.jsonl"):
        load_run(out)


def test_a_shortened_table_and_missing_spectra_are_no_smaller_model(
    model: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run(model, out)
    (out / "spectra.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"spectra\.safetensors: cannot be read"):
        load_run(out).spectra()
    table = (out / "table.jsonl").read_bytes().splitlines(keepends=True)
    cases = [(table[:4], "has 4 rows of 10"), ([], "has 0 rows of 10")]
    for kept, said in (*cases, ([*table, table[0]], r"line 11: is a second one of '")):
        (out / "table.jsonl").write_bytes(b"".join(kept))
        with pytest.raises(RunFolderError, match=said):
            load_run(out)


def test_other_weights_of_the_same_shapes_name_and_time_are_another_run(
    model: Path, tmp_path: Path
) -> None:
    """A step of training leaves header and size alone, and some tools set all times to one."""
    os.utime(model, ns=(0, 0))
    first = run(model)
    other = write_file(
        tmp_path / "elsewhere" / "toy.safetensors",
        {name: tensor + 1e-3 for name, tensor in many_matrices(10, 24, 20).items()},
    )
    assert other.stat().st_size == model.stat().st_size
    os.utime(other, ns=(0, 0))
    second = run(other)
    assert not second.reused and second.folder != first.folder
    assert [row["alpha"] for row in first.rows] != [row["alpha"] for row in second.rows]
    assert run(model).reused and run(other).reused


@pytest.mark.parametrize("place", ["file/run", "/proc/run"])
def test_a_place_that_cannot_be_written_is_refused(
    model: Path, tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Places that are closed to root as well."""
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    with pytest.raises(RunFolderError, match=r"cannot be written.*--out.*--no-save"):
        run(model, place)


# --- one writer at a time --------------------------------------------------------------------


def test_a_second_process_is_refused(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(model, out, 2)
    before = contents(out)
    held = locked(out / storage.LOCK)
    try:
        done = run_weightscope(
            "analyze", model, "--out", out, "--resume", "--threads", "1",
            "--metrics", "alpha,norms,welore",
        )  # fmt: skip
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.startswith(f"Error: {out}: another process is writing this run")
        with pytest.raises(RunFolderError, match="another process is writing this run"):
            run(model, out, force=True)
        assert contents(out) == before
    finally:
        os.close(held)
    assert len(run(model, out, resume=True).rows) == 10


def test_the_lock_ends_with_the_run_however_it_ends(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(model, out, 1)
    with pytest.raises(IncomparableRunsError):
        run(model, out, replace(QUICK, xmin="mid"), resume=True)
    run(model, out, resume=True)
    os.close(locked(out / storage.LOCK))


# --- interruptions ---------------------------------------------------------------------------


@pytest.mark.parametrize("batches", [0, 1, 3])
def test_a_resumed_run_ends_as_an_uninterrupted_one(
    model: Path, tmp_path: Path, batches: int
) -> None:
    whole = run(model, tmp_path / "whole")
    lines = interrupted(model, tmp_path / "run", batches)
    assert len(lines) == 3 * batches
    resumed = run(model, tmp_path / "run", resume=True)
    assert as_csv(resumed) == as_csv(whole)
    assert contents(tmp_path / "run") == contents(tmp_path / "whole")


def test_the_default_folder_is_continued_where_asked(model: Path) -> None:
    whole = run(model, "whole")
    interrupted(model, Path("toy.weightscope"), 2)
    resumed = run(model, resume=True)
    assert resumed.folder == Path("toy.weightscope") and as_csv(resumed) == as_csv(whole)


def test_without_resume_the_interrupted_run_is_kept(model: Path) -> None:
    interrupted(model, Path("toy.weightscope"), 2)
    before = contents(Path("toy.weightscope"))
    assert run(model).folder == Path("toy-2.weightscope")
    assert contents(Path("toy.weightscope")) == before


def test_finished_measurements_are_not_computed_again(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A figure that was changed on disk is found in the result; and the count agrees."""
    from weightscope.measure import Measure

    out = tmp_path / "run"
    settings = replace(QUICK, metrics=("stats",))
    lines = interrupted(model, out, 2, settings)
    record = json.loads(lines[0])
    record["stats"]["mean"] = 1234.5
    (out / "rows.jsonl").write_bytes(json.dumps(record).encode() + b"\n" + b"".join(lines[1:]))
    measured = []
    original = Measure.__call__
    monkeypatch.setattr(
        Measure,
        "__call__",
        lambda self, m, *rest: measured.append(m.name) or original(self, m, *rest),
    )
    resumed = run(model, out, settings, resume=True)
    means = {row["name"]: row["weight_mean"] for row in resumed.rows}
    assert means[record["name"]] == 1234.5
    done = {json.loads(line)["name"] for line in lines}
    assert len(done) == 6 and set(measured) == set(means) - done and len(measured) == 4


def test_a_torn_last_line_costs_one_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Torn at every byte of a name that takes several bytes a character, and at some others."""
    monkeypatch.setattr(plan, "BATCH_MATRICES", 2)
    tensors = {f"layers.{n}.\u6743\u91cd\U0001f600.w": gaussian(10, 9, seed=n) for n in range(6)}
    path = write_file(tmp_path / "toy.safetensors", tensors)
    settings = Settings(metrics=("norms",), threads=1)
    whole = run(path, tmp_path / "whole", settings)
    lines = interrupted(path, tmp_path / "run", 2, settings)
    text = b"".join(lines)
    first = len(text) - len(lines[-1])
    for end in [*range(first, first + 45), *range(first + 45, len(text), 37)]:
        shutil.rmtree(tmp_path / "torn", ignore_errors=True)
        shutil.copytree(tmp_path / "run", tmp_path / "torn")
        (tmp_path / "torn" / "rows.jsonl").write_bytes(text[:end])
        assert as_csv(run(path, tmp_path / "torn", settings, resume=True)) == as_csv(whole)
        assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_lines_that_are_no_measurements_cost_their_batch(model: Path, tmp_path: Path) -> None:
    """What a power cut leaves behind: zeros, halves, other values."""
    whole = run(model, tmp_path / "whole")
    lines = interrupted(model, tmp_path / "run", 3)
    for line in (
        b"\0" * 300 + b"\n",
        b"\n",
        b"17\n",
        b"null\n",
        b"[]\n",
        b"{}\n",
        b'{"name": 1}\n',
    ):
        shutil.rmtree(tmp_path / "torn", ignore_errors=True)
        shutil.copytree(tmp_path / "run", tmp_path / "torn")
        (tmp_path / "torn" / "rows.jsonl").write_bytes(b"".join([*lines[:4], line, *lines[5:]]))
        resumed = run(model, tmp_path / "torn", resume=True)
        assert as_csv(resumed) == as_csv(whole)
        assert same_results(tmp_path / "torn", tmp_path / "whole")


def test_a_missing_or_broken_part_costs_one_batch(model: Path, tmp_path: Path) -> None:
    whole = run(model, tmp_path / "whole")
    interrupted(model, tmp_path / "run", 3)
    for damage in (b"", b"\0" * 100, None):
        shutil.rmtree(tmp_path / "torn", ignore_errors=True)
        shutil.copytree(tmp_path / "run", tmp_path / "torn")
        part = sorted((tmp_path / "torn" / "parts").iterdir())[1]
        if damage is None:
            part.unlink()
        else:
            part.write_bytes(damage)
        assert as_csv(run(model, tmp_path / "torn", resume=True)) == as_csv(whole)
        assert same_results(tmp_path / "torn", tmp_path / "whole")


def test_left_over_temporary_files_do_no_harm(model: Path, tmp_path: Path) -> None:
    whole = run(model, tmp_path / "whole")
    out = tmp_path / "run"
    interrupted(model, out, 2)
    for name in ("run.json", "rows.jsonl", "table.jsonl", "spectra.safetensors"):
        (out / f"{name}.tmp").write_bytes(b"half")
    for number in range(4):
        (out / "parts" / f"{number:06d}.safetensors.tmp").write_bytes(b"half")
    assert as_csv(run(model, out, resume=True)) == as_csv(whole)
    assert load_run(out).rows == whole.rows


def test_a_full_disk_is_explained_and_what_was_finished_is_kept(
    model: Path, tmp_path: Path
) -> None:
    """A limit on the size of files stands for it; in its own process."""
    code = (
        "import resource, sys; from weightscope import plan; plan.BATCH_MATRICES = 3\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        "from weightscope.cli.main import main; sys.argv[0] = 'weightscope'; main()"
    )
    arguments = ["analyze", model, "--out", tmp_path / "run", "--threads", "1"]
    arguments += ["--metrics", "alpha,norms,welore"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"Error: {tmp_path / 'run'}: cannot be written")
    assert done.stderr.count("\n") == 1 and "--resume" in done.stderr
    kept = (tmp_path / "run" / "rows.jsonl").read_bytes()
    assert kept.count(b"\n") >= 3
    resumed = run(model, tmp_path / "run", resume=True)
    assert as_csv(resumed) == as_csv(run(model, tmp_path / "whole"))


# --- kills of the real process ---------------------------------------------------------------

EVERY_STEP = '''
"""Kill an analysis before each of its changes of the run folder, again on resume; compare."""
import os, signal, sys
from pathlib import Path
from weightscope import analysis, plan
from weightscope.analysis import Saving
from weightscope.settings import FAMILIES, Settings

# imported before the forks, so that a child only works
from weightscope import measure, plugins
from weightscope.executors import local
import safetensors.numpy
for family in FAMILIES:
    plugins.load("metrics", family)

model, work = sys.argv[1], Path(sys.argv[2])
plan.BATCH_MATRICES = 3
SETTINGS = Settings(metrics=("alpha", "norms", "welore"), threads=1)
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def analyze(out, before=0):
    """Exit status of a child that dies before its so-manieth change of the folder."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = before

    def watch(event, args):
        nonlocal left
        written = event == "open" and str(out) in str(args[0]) and args[2] & os.O_ACCMODE
        if event in CHANGES or written:
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    status = 1
    try:
        if before:
            sys.addaudithook(watch)
        analysis.analyze(model, SETTINGS, Saving(True, out, resume=True))
        status = 0
    finally:
        os._exit(status)


def contents(folder):
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


assert analyze(work / "whole") == 0
whole = contents(work / "whole")
step = 0
while True:
    step += 1
    out = work / f"run-{step}"
    died = analyze(out, step)
    if died == 0:
        break
    assert died == -signal.SIGKILL, (step, died)
    again = analyze(out, step)
    assert again in (0, -signal.SIGKILL), (step, again)
    assert analyze(out) == 0, step
    found = contents(out)
    for name in ("run.json", "rows.jsonl", "table.jsonl", "spectra.safetensors"):
        assert found[name] == whole[name], (step, name)
print(step - 1)
'''


def test_a_kill_before_any_change_of_the_folder_is_survived(model: Path, tmp_path: Path) -> None:
    """Real kills: before every file that is opened, renamed or removed, the finish included."""
    done = subprocess.run(
        [sys.executable, "-c", EVERY_STEP, model, tmp_path],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 4 * 3 + 10


def killed(command: list[str], rows: Path, lines: int, with_signal: signal.Signals) -> Any:
    """Start a command, kill it once so many rows are on disk; its status and standard error."""
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment()
    )
    while process.poll() is None:
        if rows.exists() and rows.read_bytes().count(b"\n") >= lines:
            process.send_signal(with_signal)
            break
        time.sleep(0.001)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err.decode()


def test_a_killed_terminated_and_interrupted_analysis_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    """The command line, on 260 matrices in three shards, hit three times on its way."""
    model = write_sharded(tmp_path / "toy", many_matrices(260, 112, 80))
    arguments = ["analyze", model, "--threads", "2", "--metrics", "alpha,farms,welore,norms"]
    whole = run_weightscope(*arguments, "--out", tmp_path / "whole")
    assert whole.returncode == 0, whole.stderr
    rows = tmp_path / "run" / "rows.jsonl"
    command = weightscope_command(*arguments, "--out", tmp_path / "run", "--resume")
    before = b""
    ends = ((signal.SIGKILL, 0, -9), (signal.SIGTERM, 64, 130), (signal.SIGINT, 128, 130))
    for with_signal, lines, expected in ends:
        status, out, err = killed(command, rows, lines, with_signal)
        assert status == expected and out == b"", err
        assert "Traceback" not in err
        if expected == 130:
            assert "Interrupted." in err and "--resume" in err
        after = rows.read_bytes()
        assert after.startswith(before) and lines <= after.count(b"\n") < 260
        before = after
    done = subprocess.run(command, capture_output=True, env=environment())
    assert done.returncode == 0, done.stderr
    assert done.stdout == whole.stdout.encode()
    assert rows.read_bytes().startswith(before)
    found, wanted = contents(tmp_path / "run"), contents(tmp_path / "whole")
    assert found == wanted


def test_tensors_are_left_as_they_were(model: Path, tmp_path: Path) -> None:
    before = model.read_bytes()
    run(model, tmp_path / "run")
    assert model.read_bytes() == before
    assert torch.is_grad_enabled()
