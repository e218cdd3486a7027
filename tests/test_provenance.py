"""Every output but CSV says what produced it."""

import json
from pathlib import Path

import pytest
import torch
from checkpoints import run_weightscope, small_model, write_file

from weightscope.folders.storage import load_run
from weightscope.version import SCHEMA_VERSION, __version__

NEEDED = ("weightscope analyze", "seed 7", "CPU float64", "2 threads", "schema", "gram-eigvalsh")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("provenance")
    write_file(folder / "model.safetensors", small_model())
    options = ("--seed", "7", "--threads", "2", "--out", "run", "--json", "run.json")
    done = run_weightscope("analyze", "model.safetensors", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("kind", ["table", "markdown"])
def test_what_people_read_ends_with_what_produced_it(folder: Path, kind: str) -> None:
    done = run_weightscope("report", "run", "--format", kind, cwd=folder)
    text = " ".join(done.stdout.replace("\\", "").split())
    for words in (*NEEDED, __version__, "alpha_over 2", "model.safetensors", "sha256"):
        assert words in text, words


def test_a_comparison_names_its_own_command_and_whose_run_is_which(folder: Path) -> None:
    done = run_weightscope("compare", "run", "run", "--format", "markdown", cwd=folder)
    text = " ".join(done.stdout.replace("\\", "").split())
    assert "Made by: weightscope compare run run --format markdown" in text
    assert text.count("Run of model, made by: weightscope analyze model.safetensors") == 2
    assert text.count("Files of model (hashes of the header and of some of the bytes)") == 2


def test_json_has_command_files_thresholds_and_solvers(folder: Path) -> None:
    record = json.loads((folder / "run.json").read_text())["provenance"]
    assert record["command"].startswith("weightscope analyze model.safetensors --seed 7")
    assert record["schema"] == SCHEMA_VERSION
    assert record["environment"]["blas"] != "unknown"
    assert record["settings"]["seed"] == 7
    (file,) = record["source"]["files"]
    assert file["size"] == (folder / "model.safetensors").stat().st_size
    assert len(file["header_sha256"]) == len(file["sample_sha256"]) == 64
    assert sum(record["solvers"].values()) == len(load_run(folder / "run").spectra())


def test_csv_has_rows_and_nothing_else(folder: Path) -> None:
    done = run_weightscope("report", "run", "--format", "csv", cwd=folder)
    assert done.stdout.startswith("name,block,")
    assert "weightscope" not in done.stdout


def test_a_run_of_an_older_schema_is_refused_by_name(folder: Path, tmp_path: Path) -> None:
    record = json.loads((folder / "run" / "run.json").read_text())
    old = tmp_path / "old"
    old.mkdir()
    (old / "run.json").write_text(json.dumps({**record, "schema": 1}))
    done = run_weightscope("report", "old", cwd=tmp_path)
    assert done.returncode == 1
    assert "schema version 1" in done.stderr and str(SCHEMA_VERSION) in done.stderr


def test_the_library_names_the_program_that_called_it() -> None:
    import weightscope

    run = weightscope.analyze({"w.weight": torch.randn(40, 40)}, device="cpu")
    assert run.provenance["command"]
    assert not run.provenance["source"]["files"]
