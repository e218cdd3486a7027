"""Run folders that are damaged, edited, of another version or hostile: read, or refused by name."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import gaussian, run_weightscope, write_file
from damage import changed, damages, readers, said
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from test_run_folder import contents, interrupted, same_results

from weightscope import analysis, plan
from weightscope.analysis import Saving
from weightscope.errors import RunFolderError, WeightscopeError
from weightscope.evaluate import all_columns
from weightscope.folders.schema import SETTINGS, check_row
from weightscope.folders.storage import load_run
from weightscope.json_types import MisfitError
from weightscope.merging import Merging, merge
from weightscope.run import Run
from weightscope.settings import Settings
from weightscope.share import parse_share

NAME = "model.layers.0.mlp.up_proj.weight"
_TWO = ("up", "down")
JSON = ("run.json", "table.jsonl", "rows.jsonl")
CHOSEN = Settings(shuffled=1, quant_error=(8, 4, 3, 2), threads=1)


def model(folder: Path, seed: int) -> Path:
    """Two blocks of two matrices."""
    names = [f"model.layers.{block}.mlp.{which}_proj.weight" for block in (0, 1) for which in _TWO]
    tensors = {name: gaussian(24, 20, seed=10 * seed + i) for i, name in enumerate(names)}
    return write_file(folder / f"step-{seed}.safetensors", tensors)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two whole runs, both parts of the first, and a place for outputs."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (1, 2):
        path = model(folder, seed)
        analysed(path, folder / f"whole-{seed}")
    for part in (1, 2):
        shared = Settings(threads=1, shard=parse_share(f"{part}/2"))
        analysed(folder / "step-1.safetensors", folder / f"part-{part}", shared)
    (folder / "out").mkdir()
    return folder


def analysed(path: Path, out: Path, chosen: Settings = CHOSEN, resume: bool = False) -> Run:
    return analysis.analyze(path, chosen, Saving(True, out, resume=resume))


def files_of(folder: Path, names: tuple[str, ...] = JSON) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in names}


def copy_of(folder: Path, file: str, data: bytes | None) -> Path:
    """The run beside itself, one file replaced or, for None, deleted."""
    bad = folder.with_name("bad")
    shutil.rmtree(bad, ignore_errors=True)
    shutil.copytree(folder, bad)
    (bad / file).unlink()
    if data is not None:
        (bad / file).write_bytes(data)
    return bad


def refusal(attempt: Callable[[], Any], path: Path) -> str:
    """What is said where a folder is refused: one line that names it and is not endless."""
    with pytest.raises(WeightscopeError) as caught:
        attempt()
    text = str(caught.value)
    assert str(path) in text and "\n" not in text and len(text) < 1500, text
    return text


def everything(folder: Path) -> None:
    load_run(folder).spectra()


def check_readers(bad: Path, runs: Path, refused: bool) -> None:
    """No verb ends in a surprise; where the folder is refused, none prints data."""
    before = contents(bad)
    for words in readers(bad, runs / "whole-2", "layers.0.mlp.up_proj", runs / "out"):
        code, out, err = said(*words)
        assert "unexpected" not in err and "Traceback" not in err, (words, err)
        if refused:
            assert (code, out) == (1, ""), (words, err)
            assert err.startswith(f"Error: {bad}"), (words, err)
            assert err.count("\n") == 1 or words[0] != "report"
    assert contents(bad) == before


def check_damage(runs: Path, file: str, data: bytes, thorough: bool) -> None:
    bad = copy_of(runs / "whole-1", file, data)
    try:
        everything(bad)
    except RunFolderError:
        assert file in refusal(lambda: everything(bad), bad) or file == "run.json"
        if thorough and file != "rows.jsonl":
            check_readers(bad, runs, refused=True)
    else:
        quick = (["report", str(bad), "--format", f] for f in ("table", "json"))
        for words in quick if not thorough else ():
            code, out, err = said(*words)
            assert (code, err) == (0, "") and out
        if thorough:
            check_readers(bad, runs, refused=False)


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_run_is_read_or_refused_by_name(runs: Path, data: st.DataObject) -> None:
    file, raw = data.draw(damages(files_of(runs / "whole-1")))
    check_damage(runs, file, raw, thorough=False)


@pytest.mark.slow
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_every_verb_reads_a_damaged_run_or_refuses_it(runs: Path, data: st.DataObject) -> None:
    file, raw = data.draw(damages(files_of(runs / "whole-1")))
    check_damage(runs, file, raw, thorough=True)


def edited(folder: Path, file: str, line: int, at: str, value: Any) -> bytes:
    """A file in which one value of one line, from 1, is another; ``at`` is dotted."""
    raw = (folder / file).read_bytes()
    lines = raw.splitlines(keepends=True) if file.endswith("l") else [raw]
    keys = tuple(int(key) if key.isdecimal() else key for key in at.split("."))
    change = "delete" if value is ... else "replace"
    lines[line - 1] = json.dumps(changed(json.loads(lines[line - 1]), keys, change, value)).encode()
    return b"\n".join(part.rstrip(b"\n") for part in lines) + b"\n"


CASES = [
    ("run.json", 1, "settings.threads", "two", "settings.threads is 'two', where a whole number"),
    ("run.json", 1, "settings.eval_floor", [], "settings.eval_floor is a list, where a text"),
    ("run.json", 1, "settings.eval_floor", "abs:x", "settings make no sense (--eval-floor 'abs:x'"),
    ("run.json", 1, "settings.metrics", ["beta"], "settings make no sense (--metrics 'beta'"),
    ("run.json", 1, "settings.shard", "1/2", "nothing says of what ('whole')"),
    ("run.json", 1, "settings", ..., "it has no 'settings'"),
    ("run.json", 1, "source.files.0.size", None, "source.files[0].size is null, where a whole"),
    ("run.json", 1, "source.files.0.size", 1.5, "source.files[0].size is 1.5, where a whole"),
    ("run.json", 1, "model", None, "model is null, where a text belongs"),
    ("run.json", 1, "thresholds.alpha_over", True, "thresholds.alpha_over is true, where a number"),
    ("run.json", 1, "summary.matrices", "4", "summary.matrices is '4', where a whole number"),
    ("run.json", 1, "summary.matrices", 5, "has 4 rows of 5"),
    ("run.json", 1, "summary", ..., "it has no 'summary'"),
    ("run.json", 1, "schema", 99, "version 99, this version reads 2; update weightscope, or"),
    ("run.json", 1, "schema", True, "version True, this version reads 2; analyze"),
    ("run.json", 1, "later", [[[]]] and json.loads("[" * 40 + "]" * 40), "later is nested more"),
    ("table.jsonl", 2, "name", None, "line 2: name is null, where a text belongs"),
    ("table.jsonl", 2, "name", "model.layers.0.mlp.down_proj.weight", "line 2: is a second one"),
    ("table.jsonl", 3, "N", "24", "line 3: N is '24', where a whole number of at least 0 belongs"),
    (
        "table.jsonl",
        3,
        "alpha",
        [2.5],
        "line 3: alpha is a list, where a number",
    ),
    ("table.jsonl", 3, "alpha", 0.5, "line 3: alpha is 0.5, where a number of at least 1 belongs"),
    ("table.jsonl", 3, "alpha", ..., "line 3: it has no 'alpha'"),
    ("table.jsonl", 1, "mp_spikes", 21, "line 1: mp_spikes is 21, where a number of no more than"),
    ("table.jsonl", 1, "status", "fine", "line 1: status is 'fine', where one of ok, empty"),
    (
        "table.jsonl",
        1,
        "params",
        10**30,
        "line 1: params is 10000000000000000000000000",
    ),
    ("table.jsonl", 1, "details.shuffled.ranks", [2, 1], "details.shuffled has other numbers"),
]


@pytest.mark.parametrize(("file", "line", "at", "value", "why"), CASES)
def test_what_is_wrong_is_said(
    runs: Path, file: str, line: int, at: str, value: Any, why: str
) -> None:
    bad = copy_of(runs / "whole-1", file, edited(runs / "whole-1", file, line, at, value))
    text = refusal(lambda: everything(bad), bad)
    assert why in text and "analyze the model again" in text


@pytest.mark.parametrize(
    ("file", "line", "at", "value"),
    [("run.json", 1, "settings.seed", {}), ("table.jsonl", 2, "M", -1)],
)
def test_no_verb_prints_anything_of_a_broken_run(
    runs: Path, file: str, line: int, at: str, value: Any
) -> None:
    bad = copy_of(runs / "whole-1", file, edited(runs / "whole-1", file, line, at, value))
    check_readers(bad, runs, refused=True)


def test_words_that_are_no_json_are_refused(runs: Path) -> None:
    raw = (runs / "whole-1" / "table.jsonl").read_bytes()
    for word in (b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"[" * 9000):
        bad = copy_of(runs / "whole-1", "table.jsonl", raw.replace(b'"N": 24', b'"N": ' + word, 1))
        assert "line 1 cannot be read" in refusal(
            lambda bad=bad: load_run(bad), bad / "table.jsonl"
        )


def test_the_real_command_explains_itself(runs: Path) -> None:
    bad = copy_of(
        runs / "whole-1", "run.json", edited(runs / "whole-1", "run.json", 1, "model", [])
    )
    said_of = f"Error: {bad / 'run.json'}: model is a list, where a text belongs; "
    for words in (
        ["report", str(bad), "--html", "-"],
        ["compare", str(bad), str(runs / "whole-2")],
        ["merge", str(bad), "--out", str(runs / "out" / "merged")],
    ):
        done = run_weightscope(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == f"{said_of}analyze the model again (--force replaces it)\n"


def test_a_finished_table_is_not_printed_before_spectra_are_known(runs: Path) -> None:
    bad = copy_of(runs / "whole-1", "spectra.safetensors", b"")
    page = runs / "out" / "late.html"
    code, out, err = said("report", str(bad), "--json", "-", "--html", str(page))
    assert (code, out) == (1, "") and str(bad / "spectra.safetensors") in err
    assert not page.exists()


def test_an_absurd_name_is_no_training_step(runs: Path) -> None:
    for name, code in (("1" * 5000, 1), ("step-7-" + "1" * 5000, 0)):
        bad = copy_of(
            runs / "whole-1", "run.json", edited(runs / "whole-1", "run.json", 1, "model", name)
        )
        found = said("track", str(bad), str(runs / "whole-2"), "--csv", "-")
        assert found[0] == code and ("its training step" in found[2]) == bool(code)
        assert found[1].startswith("" if code else "step,") and "unexpected" not in found[2]


# ----------------------------------------------------------------------------------- spectra


def test_spectra_that_are_none_are_refused(runs: Path) -> None:
    whole = load_run(runs / "whole-1").spectra()
    good = {name: spectrum.singular_values for name, spectrum in whole.items()}
    values = good[NAME]
    wrong = {
        "is F32 of shape": values.astype(np.float32),
        "is F64 of shape [4, 5]": values.reshape(4, 5),
        "is F64 of shape [0]": values[:0],
        "has 19 singular values, of which": values[:-1],
        "holds no singular values": values[::-1].copy(),
        "holds no singular": np.where(np.arange(20) == 3, np.nan, values),
        "holds no": values - 1e3,
    }
    cases = [(said_of, {**good, NAME: array}) for said_of, array in wrong.items()]
    cases += [
        (
            "has 0 singular values, of which rows.jsonl says 20",
            {n: v for n, v in good.items() if n != NAME},
        )
    ]
    cases += [("has 20 singular values, of which rows.jsonl says 0", {**good, "other": values})]
    for said_of, arrays in cases:
        bad = copy_of(runs / "whole-1", "spectra.safetensors", b"")
        save_file(arrays, bad / "spectra.safetensors")
        assert said_of in refusal(lambda bad=bad: everything(bad), bad / "spectra.safetensors")
        for words in (
            ["report", str(bad), "--html", "-"],
            ["plot", str(bad), NAME],
            ["compare", str(bad), str(runs / "whole-2"), "--html", "-"],
            ["plan", str(bad), "--for", "welore"],
        ):
            code, out, err = said(*words)
            assert (code, out) == (1, "") and str(bad / "spectra.safetensors") in err, words


# ------------------------------------------------------------------------------- other files


def test_what_is_no_regular_file_is_never_waited_for(runs: Path) -> None:
    for file in (*JSON, "spectra.safetensors"):
        for make in (os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")):
            bad = copy_of(runs / "whole-1", file, None)
            make(bad / file)
            refusal(lambda bad=bad: everything(bad), bad)
        bad = copy_of(runs / "whole-1", file, None)
        (bad / file).symlink_to(runs / "whole-1" / file)
        everything(bad)  # where the bytes lie does not matter


def test_files_of_absurd_size_are_not_read(runs: Path) -> None:
    for file in JSON:
        bad = copy_of(runs / "whole-1", file, b"")
        os.truncate(bad / file, 100 << 20)
        text = refusal(lambda bad=bad: everything(bad), bad / file)
        assert "larger than 64 MiB" in text or "line 1 is longer than 16 MiB" in text
    bad = copy_of(runs / "whole-1", "run.json", b'{"schema": [' + b"[]," * (1 << 20) + b"[]]}")
    assert "hardly more than brackets" in refusal(lambda: everything(bad), bad / "run.json")


# ------------------------------------------------------------------------------------- merge


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_a_damaged_part_is_joined_or_refused(runs: Path, data: st.DataObject) -> None:
    file, raw = data.draw(damages(files_of(runs / "part-2", (*JSON, "part.json"))))
    bad = copy_of(runs / "part-2", file, raw)
    out = runs / "out" / "joined"
    shutil.rmtree(out, ignore_errors=True)
    before = contents(bad)
    try:
        merge([runs / "part-1", bad], Merging(out))
    except WeightscopeError as error:
        assert "bad" in str(error) or "missing" in str(error)
        assert not out.exists()
    else:
        everything(out)
    assert contents(bad) == before


# ------------------------------------------------------------------------------------ resume


@pytest.fixture
def killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A model whose run was killed after two of four batches, and that run."""
    monkeypatch.setattr(plan, "BATCH_MATRICES", 1)
    path = model(tmp_path, 1)
    interrupted(path, tmp_path / "run", 2, CHOSEN)
    return path, tmp_path / "run"


def test_resuming_measures_again_what_is_damaged(killed: tuple[Path, Path]) -> None:
    path, run = killed
    whole = analysed(path, run.with_name("whole")).folder
    assert whole is not None
    for at, value in (
        ("stats", []),
        ("stats.nonfinite", "0"),
        ("stats.later", 1),
        ("spectrum.N", 25),
        ("spectrum.M", None),
        ("spectrum", None),
        ("farms", {"fit": 1}),
        ("shuffled.ranks", [1]),
        ("quant", {"failure": {}}),
        ("failure", {"reason": 3}),
        ("name", ["a"]),
    ):
        bad = run.with_name("bad")
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(run, bad)
        (bad / "rows.jsonl").write_bytes(edited(run, "rows.jsonl", 1, at, value))
        analysed(path, bad, resume=True)
        assert same_results(bad, whole), at


@settings(
    max_examples=30,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_resuming_leaves_a_damaged_record_as_it_is(
    killed: tuple[Path, Path], data: st.DataObject
) -> None:
    path, run = killed
    _, raw = data.draw(damages(files_of(run, ("run.json",))))
    bad = copy_of(run, "run.json", raw)
    before = contents(bad)
    try:
        analysed(path, bad, resume=True)
    except WeightscopeError as error:
        assert str(bad) in str(error)
        assert contents(bad) == before
    else:
        everything(bad)


def test_resuming_writes_through_no_link(killed: tuple[Path, Path], tmp_path: Path) -> None:
    path, run = killed
    mine = tmp_path / "mine"
    mine.mkdir()
    for name, target in ((".lock", mine / "made"), ("parts", mine)):
        bad = run.with_name("bad")
        shutil.rmtree(bad, ignore_errors=True)
        shutil.copytree(run, bad)
        shutil.rmtree(bad / name) if (bad / name).is_dir() else (bad / name).unlink()
        (bad / name).symlink_to(target)
        refusal(lambda bad=bad: analysed(path, bad, resume=True), bad)
        assert not list(mine.iterdir())
    link = tmp_path / "link"
    link.symlink_to(run)
    with pytest.raises(RunFolderError, match="is a link, which is not deleted"):
        analysis.analyze(path, CHOSEN, Saving(True, link, force=True))
    assert (run / "run.json").exists()


def test_a_damaged_run_of_the_default_name_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = model(tmp_path, 1)
    first = analysis.analyze(path, CHOSEN, Saving(True)).folder
    assert first is not None
    for file, damaged in (("table.jsonl", b"{}\n"), ("run.json", b"{}")):
        (first / file).write_bytes(damaged)
        before = contents(first)
        again = analysis.analyze(path, CHOSEN, Saving(True)).folder
        assert again == Path("step-1-2.weightscope")
        assert contents(first) == before
        shutil.rmtree(again)


# ------------------------------------------------------------------------------------ tables


def test_the_table_of_settings_is_that_of_the_settings() -> None:
    assert {*SETTINGS, "shard"} == {field.name for field in fields(Settings)}


def test_rows_of_every_kind_of_matrix_pass(zoo_run: Run) -> None:
    for row in zoo_run.rows:
        check_row(row)


def test_every_range_is_held() -> None:
    """A value far beyond the documented range of each numeric column is refused."""
    row: dict[str, Any] = dict.fromkeys(column.name for column in all_columns())
    row |= {"name": "w", "module": "w", "role": "other", "dtype": "F32", "status": "ok"}
    row |= {"rows": 9, "cols": 8, "N": 9, "M": 8, "slices": 1, "params": 72}
    check_row(row)
    for column in all_columns():
        if column.kind == "text" or column.range in {"", "(-inf, inf)"}:
            continue
        with pytest.raises(MisfitError, match=f"^{column.name} is -1000"):
            check_row({**row, column.name: -1000})
