"""A run that stops in time keeps what it has, says so, and is continued to the same bytes."""

from pathlib import Path

import pytest
from checkpoints import many_matrices, run_weightscope, write_file

from weightscope.analysis import Saving, analyze
from weightscope.errors import OptionError, RunFolderError
from weightscope.folders.storage import load_run
from weightscope.settings import Settings, parse_duration

QUICK = Settings(metrics=("norms", "rank"), device="cpu", threads=1)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_file(tmp_path / "many.safetensors", many_matrices(150, 10, 9))


def test_it_stops_after_a_batch_and_resumes_to_the_same_rows(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = analyze(model, QUICK, Saving(save=True, out=out, max_time=1e-6))
    assert 0 < len(first.rows) < 150
    assert first.summary["stopped"] == len(first.rows) and first.summary["planned"] == 150
    with pytest.raises(RunFolderError, match="interrupted"):
        load_run(out)
    whole = analyze(model, QUICK, Saving(save=True, out=tmp_path / "whole"))
    again = analyze(model, QUICK, Saving(save=True, out=out, resume=True))
    assert again.rows == whole.rows and again.summary["stopped"] is None
    assert (out / "table.jsonl").read_bytes() == (tmp_path / "whole/table.jsonl").read_bytes()


def test_the_command_says_what_is_missing_and_ends_with_zero(model: Path, tmp_path: Path) -> None:
    options = ("--max-time", "0.000001s", "--threads", "1", "--metrics", "norms", "--out", "run")
    done = run_weightscope("analyze", model, *options, "--format", "table", cwd=tmp_path)
    assert done.returncode == 0
    assert "of 150 matrices" in done.stderr and "--resume" in done.stderr
    assert "Stopped after" in done.stdout and "saved" not in done.stderr


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("1.5m", 90), ("2h", 7200), ("7", 7), (None, None)]
)
def test_durations(text: str | None, seconds: float | None) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "s", "-1m", "0s", "1d", "1e3", "nan"])
def test_durations_that_are_none(text: str) -> None:
    with pytest.raises(OptionError, match="--max-time"):
        parse_duration(text)


def test_a_sample_is_stated_and_nested(model: Path, tmp_path: Path) -> None:
    small = analyze(model, Settings(metrics=("norms",), device="cpu", sample=2))
    large = analyze(model, Settings(metrics=("norms",), device="cpu", sample=5))
    names = [{row["name"] for row in run.rows} for run in (small, large)]
    assert len(names[0]) == 2 and len(names[1]) == 5 and names[0] < names[1]
    assert small.summary["undrawn"] == 148
    done = run_weightscope("analyze", model, "--sample", "2", "--no-save", "--format", "table")
    text = " ".join(done.stdout.split())
    assert "A sample: at most 2 of every module type, 2 of 150 matrices" in text
