"""Two runs side by side: figures, words, refusals, and every form in which they are printed."""

from __future__ import annotations

import csv
import io
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import ODD_NAMES, environment, gaussian, run_each, small_model, write_file
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import wasserstein_distance

import weightscope
from weightscope import analysis
from weightscope.analysis import Saving
from weightscope.comparing import Comparing, compare_many, compare_models
from weightscope.comparison import (
    Comparison,
    alpha_moved,
    check_comparable,
    compare_runs,
    comparison_columns,
    grouped,
    metric_columns,
    pair_runs,
)
from weightscope.distances import log_wasserstein, spectrum_distance
from weightscope.errors import IncomparableRunsError, OptionError
from weightscope.evaluate import Row, all_columns
from weightscope.folders.storage import load_run
from weightscope.run import Run
from weightscope.settings import Settings
from weightscope.sinks.csv import unescape
from weightscope.spectrum import Spectrum

# --- distance of spectra ---------------------------------------------------------------------

SAMPLES = st.lists(st.floats(1e-30, 1e30), min_size=1, max_size=40).map(np.array)


@given(SAMPLES, SAMPLES)
def test_the_distance_is_scipys_of_the_logarithms(a: Any, b: Any) -> None:
    expected = wasserstein_distance(np.log(a), np.log(b))
    assert log_wasserstein(a, b) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert log_wasserstein(b, a) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize(("n", "m"), [(500, 500), (500, 499), (512, 384), (1000, 7), (1, 300)])
def test_the_distance_of_samples_of_any_sizes(n: int, m: int) -> None:
    generator = np.random.default_rng(n + m)
    a, b = generator.pareto(2, n) + 0.1, generator.pareto(3, m) + 0.2
    expected = wasserstein_distance(np.log(a), np.log(b))
    assert log_wasserstein(a, b) == pytest.approx(expected, rel=1e-12)


def test_the_distance_in_closed_form() -> None:
    a = np.array([1.0, 2.0, 4.0])
    assert log_wasserstein(a, 8 * a[::-1]) == pytest.approx(np.log(8), rel=1e-14)
    assert log_wasserstein(a, a[::-1]) == 0
    # quantiles in sixths: 0 0 | 0 1 | 1 1 against 0 0 0 | 2 2 2, in units of log 2
    found = log_wasserstein(np.array([1.0, 2.0]), np.array([1.0, 1.0, 4.0]))
    assert found == pytest.approx(np.log(2) * (0 + 1 / 6 * 1 + 2 / 6 * 1), rel=1e-14)


def spectrum(*values: float) -> Spectrum:
    return Spectrum(np.array(values), len(values), len(values))


def test_values_below_the_floor_are_left_out_on_both_sides() -> None:
    a, b = spectrum(8.0, 4.0, 1e-9, 0.0), spectrum(4.0, 2.0, 1.0, 1e-12)
    assert spectrum_distance(a, b, 1e-6) == pytest.approx(
        wasserstein_distance(np.log([64.0, 16.0]), np.log([16.0, 4.0, 1.0])), rel=1e-12
    )
    assert spectrum_distance(a, b, 1.0) == pytest.approx(2 * np.log(2), rel=1e-12)
    assert spectrum_distance(a, b, 4.0) is None and spectrum_distance(a, b, 9.0) is None


# --- figures of two runs ---------------------------------------------------------------------

EMPTY: Row = dict.fromkeys(column.name for column in all_columns())


def fitted(alpha: float | None, stderr: float | None = None, **cells: Any) -> Row:
    return {**EMPTY, "alpha": alpha, "alpha_stderr": stderr, **cells}


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (fitted(3.0, 0.3), fitted(3.99, 0.4), "no"),
        (fitted(3.0, 0.3), fitted(4.01, 0.4), "yes"),
        (fitted(3.0, 0.3), fitted(2.01, 0.4), "no"),
        (fitted(3.0, 0.3), fitted(1.99, 0.4), "yes"),
        (fitted(3.0, 0.3), fitted(4.0, 0.4), "no"),
        (fitted(3.0, 0.0), fitted(3.0, 0.0), "no"),
        (fitted(3.0, 0.0), fitted(3.0 + 1e-9, 0.0), "yes"),
        (fitted(None), fitted(3.0, 0.1), None),
        (fitted(3.0, 0.1), fitted(None), None),
        (fitted(3.0, None), fitted(9.0, 0.1), None),
    ],
)
def test_an_exponent_moved_by_more_than_two_combined_errors(
    a: Row, b: Row, expected: str | None
) -> None:
    assert alpha_moved(a, b) == expected


def interval(alpha: float, low: float | None, high: float | None, stderr: float = 9.0) -> Row:
    return fitted(alpha, stderr, alpha_lo=low, alpha_hi=high)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (interval(3.0, 2.9, 3.1), interval(3.3, 3.2, 3.4), "yes"),
        (interval(3.3, 3.2, 3.4), interval(3.0, 2.9, 3.1), "yes"),
        (interval(3.0, 2.0, 4.0, 0.01), interval(3.3, 3.2, 3.4, 0.01), "no"),
        (interval(3.3, 3.2, 3.4, 0.01), interval(3.0, 2.0, 4.0, 0.01), "no"),
        (interval(3.0, 2.5, 3.5, 0.01), interval(4.0, 3.5, 4.5, 0.01), "no"),
        # without the intervals of both, standard errors decide
        (interval(3.0, 2.9, 3.1), fitted(3.3, 9.0), "no"),
        (fitted(3.0, 0.01), interval(3.3, 2.0, 4.0, 0.01), "yes"),
        (interval(3.0, 2.9, None, 0.01), interval(3.3, 2.0, 4.0, 0.01), "yes"),
    ],
)
def test_bootstrap_intervals_decide_where_both_have_them(a: Row, b: Row, expected: str) -> None:
    assert alpha_moved(a, b) == expected


def model_a() -> dict[str, torch.Tensor]:
    """A small model, and tensors of hostile names."""
    odd = {name: gaussian(12, 10, seed=n) for n, name in enumerate(ODD_NAMES)}
    gone = {"model.gone.weight": gaussian(40, 30, seed=5), "model.sized.weight": gaussian(9, 30)}
    return {**small_model(), **odd, **gone, "old.name.weight": gaussian(26, 18, seed=7)}


def model_b() -> dict[str, torch.Tensor]:
    """The same, later: scaled, noisy, heavy-tailed, grown, renamed, added, broken."""
    tensors = {name: tensor.clone() for name, tensor in model_a().items()}
    tensors["model.layers.0.self_attn.q_proj.weight"] *= 3
    tensors["model.embed_tokens.weight"] += gaussian(96, 32, seed=8)
    heavy = np.random.default_rng(1).standard_t(2, (64, 32)) * 0.02
    tensors["model.layers.1.mlp.up_proj.weight"] = torch.from_numpy(heavy).float()
    tensors["model.layers.1.mlp.down_proj.weight"][3, 4] = float("inf")
    tensors["model.sized.weight"] = gaussian(11, 30)
    tensors["new.name.weight"] = tensors.pop("old.name.weight")
    tensors["model.added.weight"] = gaussian(20, 30, seed=6)
    del tensors["model.gone.weight"]
    return tensors


@dataclass(frozen=True)
class Work:
    """A folder with checkpoints and their saved runs, and what the command said there.

    Attributes:
        folder: Holds ``a.safetensors``, ``b.safetensors``, and the runs of a, b, c and other.
        ends: Exit code, standard output and standard error, by the words of the command.
    """

    folder: Path
    ends: dict[str, tuple[int, str, str]] = field(default_factory=dict)

    def run(self, name: str) -> Run:
        return load_run(self.folder / f"{name}.weightscope")

    def compared(self) -> Comparison:
        return both(self.run("a"), self.run("b"))


def both(a: Run, b: Run) -> Comparison:
    return compare_runs(a, b, pair_runs(a, b))


RUNS = "a.weightscope b.weightscope"
THREE = f"{RUNS} c.weightscope"
COMMANDS = [
    f"{RUNS} --format csv",
    f"{RUNS} --format json --quiet",
    f"{RUNS} --format markdown --sort spectrum_w1 --top 3",
    f"{RUNS} --format table --sort=-alpha_delta",
    f"{RUNS} --format csv --by module",
    f"{RUNS} --format json --by block",
    f"{RUNS} --csv out.csv --json out.json",
    f"{RUNS} --map model.=other.",
    f"{THREE} --format csv",
    f"{THREE} --format table --sort present",
    "a.weightscope other.weightscope",
    "a.weightscope other.weightscope --force",
    "a.weightscope b.weightscope other.weightscope",
    "a.safetensors b.safetensors --format csv",
    "a.safetensors b.safetensors --no-weights",
    "a.weightscope b.safetensors",
    f"{RUNS} --weights",
    "a.weightscope nowhere.safetensors --weights",
    "a.weightscope",
    "a.weightscope nowhere.safetensors",
    f"{RUNS} --sort alpha",
    f"{RUNS} --map model",
    f"{RUNS} --csv taken.csv",
    f"{THREE} --csv taken.csv --quiet",
    f"{RUNS} --by module --top 3",
    f"{THREE} --weights",
    f"{THREE} --by module",
    "vectors.weightscope vectors.weightscope --by module --format csv",
]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    found = Work(tmp_path_factory.mktemp("compare"))
    models = {"a": model_a(), "b": model_b()}
    settings = Settings(threads=1, device="cpu")
    for name, tensors in models.items():
        path = write_file(found.folder / f"{name}.safetensors", tensors)
        analysis.analyze(path, settings, Saving(True, found.folder / f"{name}.weightscope"))
    shutil.copytree(found.folder / "b.weightscope", found.folder / "c.weightscope")
    weightscope.analyze(models["a"], out=found.folder / "other.weightscope", xmin="mid", threads=1)
    weightscope.analyze({"norm": torch.ones(9)}, out=found.folder / "vectors.weightscope")
    (found.folder / "taken.csv").write_text("mine")
    # what analyze would find again must have been made as it would make it
    words = [[*command.split(), "--threads", "1", "--device", "cpu"] for command in COMMANDS]
    ends = run_each([["compare", *command] for command in words], found.folder)
    found.ends.update(
        (command, (end.returncode, end.stdout, end.stderr))
        for command, end in zip(COMMANDS, ends, strict=True)
    )
    return found


def test_every_metric_has_both_values_and_their_difference(work: Work) -> None:
    found = work.compared()
    rows = [{str(row["name"]): row for row in work.run(name).rows} for name in ("a", "b")]
    assert len(found.rows) == len(rows[0]) + 1
    numbers = [column.name for column in all_columns()[16:] if column.kind != "text"]
    for row in found.rows:
        before = rows[0].get(str(row["name"]), {})
        after = rows[1].get(str(row["name_b"] or row["name"]), {})
        for name in numbers:
            x, y = before.get(name), after.get(name)
            assert (row[f"{name}_a"], row[f"{name}_b"]) == (x, y)
            step = None if x is None or y is None else y - x  # type: ignore[operator]
            assert row[f"{name}_delta"] == step, (row["name"], name)


def test_scaling_moves_what_has_a_unit_and_nothing_else(work: Work) -> None:
    row = by_name(work.compared())["model.layers.0.self_attn.q_proj.weight"]
    assert row["spectral_norm_b"] == pytest.approx(3 * row["spectral_norm_a"], rel=1e-6)
    assert row["alpha_delta"] == pytest.approx(0, abs=1e-4) and row["alpha_moved"] == "no"
    assert row["stable_rank_delta"] == pytest.approx(0, abs=1e-4)
    assert row["spectrum_w1"] == pytest.approx(2 * np.log(3), rel=1e-5)


def by_name(found: Comparison) -> dict[str, Any]:
    return {str(row["name"]): row for row in found.rows}


def test_the_distance_of_two_rows_is_that_of_their_weights(work: Work) -> None:
    rows, models = by_name(work.compared()), (model_a(), model_b())
    for name in ("model.embed_tokens.weight", "model.layers.1.mlp.up_proj.weight"):
        evals = [np.linalg.svd(m[name].double().numpy(), compute_uv=False) ** 2 for m in models]
        assert min(e.min() for e in evals) > 1e-8  # far above the storage floor
        expected = wasserstein_distance(*map(np.log, evals))
        assert rows[name]["spectrum_w1"] == pytest.approx(expected, rel=1e-7)
    assert rows["model.sized.weight"]["spectrum_w1"] > 0
    assert rows["model.layers.1.mlp.down_proj.weight"]["spectrum_w1"] is None


def test_rows_of_either_run_are_kept_and_told(work: Work) -> None:
    rows = by_name(work.compared())
    assert {n: r["change"] for n, r in rows.items() if r["change"] != "common"} == {
        "model.gone.weight": "removed",
        "model.added.weight": "added",
        "model.sized.weight": "resized",
    }
    assert {n: r["reading"] for n, r in rows.items() if r["reading"]} == {
        "old.name.weight": "renamed"
    }
    assert rows["old.name.weight"]["name_b"] == "new.name.weight"
    broken = rows["model.layers.1.mlp.down_proj.weight"]
    assert (broken["status_a"], broken["status_b"]) == ("ok", "nonfinite")
    assert list(rows)[-1] == "model.added.weight"
    assert list(rows)[:-1] == [row["name"] for row in work.run("a").rows]


def test_a_run_compared_with_itself_has_not_changed(work: Work) -> None:
    run = work.run("a")
    found = both(run, run)
    assert found.summary["change"] == {"common": len(run.rows)}
    assert found.summary["alpha_moved"] == 0 and found.summary["moved_most"] == []
    assert not found.summary["band_changes"] and not found.summary["class_changes"]
    deltas = {row[f"{c.name}_delta"] for row in found.rows for c in metric_columns()}
    assert deltas <= {0, None} and {row["spectrum_w1"] for row in found.rows} <= {0, None}


def given_run(*rows: Mapping[str, Any]) -> Run:
    return Run({"model": "m", "settings": {}}, tuple({**EMPTY, **row} for row in rows), {})


def test_changes_of_band_and_class_are_arrows() -> None:
    cells = {"alpha_band": "heavy", "welore_class": "FRC"}
    a = given_run(*({"name": n, **cells} for n in "wxyz"))
    b = given_run(
        {"name": "w", "alpha_band": "weak", "welore_class": "LRC"},
        {"name": "x", **cells},
        {"name": "y", "alpha_band": None, "welore_class": None},
        {"name": "z", "alpha_band": "weak", "welore_class": "FRC"},
    )
    found = both(a, b)
    assert [row["band_change"] for row in found.rows] == [
        "heavy -> weak",
        None,
        None,
        "heavy -> weak",
    ]
    assert [row["class_change"] for row in found.rows] == ["FRC -> LRC", None, None, None]
    assert found.summary["band_changes"] == {"heavy -> weak": 2}
    assert found.summary["class_changes"] == {"FRC -> LRC": 1}


def moved_row(name: str, block: int | None, alpha: float | None, delta: float) -> dict[str, Any]:
    module = name.rstrip("0123456789")
    return {
        "name": name, "module": module, "block": block, "alpha": alpha,
        "alpha_stderr": 0.1, "stable_rank": delta,
    }  # fmt: skip


def test_groups_hold_medians_counts_and_who_moved() -> None:
    a = given_run(*(moved_row(f"up{i}", i % 2, 3.0 + i, 1.0) for i in range(4)),
                  moved_row("head", None, None, 5.0))  # fmt: skip
    b = given_run(*(moved_row(f"up{i}", i % 2, 3.0 + 2 * i, 1.0 + i * i) for i in range(4)),
                  moved_row("head", None, None, 7.0))  # fmt: skip
    rows = both(a, b).rows
    modules = grouped(rows, "module")
    assert [(g["module"], g["matrices"], g["moved"]) for g in modules] == [
        ("up", 4, 3),
        ("head", 1, 0),
    ]
    assert modules[0]["alpha_a"] == statistics.median([3, 4, 5, 6])
    assert modules[0]["alpha_delta"] == statistics.median([0, 1, 2, 3])
    assert modules[0]["stable_rank_delta"] == statistics.median([0, 1, 4, 9])
    assert modules[0]["rel_change"] is None
    assert modules[1]["alpha_a"] is None and modules[1]["stable_rank_delta"] == 2
    blocks = {g["block"]: (g["matrices"], g["moved"]) for g in grouped(rows, "block")}
    assert blocks == {0: (2, 1), 1: (2, 2), None: (1, 0)}


def test_the_summary_names_the_rows_that_moved_most(work: Work) -> None:
    found = work.compared()
    ranked = [row for row in found.rows if row["spectrum_w1"]]
    ranked.sort(key=lambda row: -row["spectrum_w1"])  # type: ignore[operator]
    assert found.summary["moved_by"] == "spectrum_w1"
    assert found.summary["moved_most"] == [row["name"] for row in ranked[:5]]
    assert found.summary["matrices"] == len(found.rows)
    modules = {g["module"]: g["matrices"] for g in found.summary["modules"]}
    assert modules["model.layers.#.mlp.up_proj"] == 2 and sum(modules.values()) == len(found.rows)


# --- refusals --------------------------------------------------------------------------------

DIFFERENT: dict[str, Any] = {
    "--metrics": {"metrics": "alpha,norms"}, "--xmin": {"xmin": "mid"},
    "--farms": {"farms": "paper-cnn"}, "--farms-embeddings": {"farms_embeddings": True},
    "--conv": {"conv": "flatten"}, "--welore-target": {"welore_target": 0.4},
    "--eval-floor": {"eval_floor": "abs:1e-5"}, "--seed": {"seed": 1},
}  # fmt: skip


@pytest.mark.parametrize("option", DIFFERENT)
def test_runs_of_different_settings_are_refused_by_name(option: str) -> None:
    tensors = {"w": gaussian(12, 10)}
    plain = weightscope.analyze(tensors, threads=1)
    other = weightscope.analyze(tensors, threads=1, **DIFFERENT[option])
    with pytest.raises(IncomparableRunsError, match=rf"{option} is .*--force") as refused:
        check_comparable(plain, other)
    assert refused.value.exit_code == 5
    check_comparable(other, other)


def test_what_does_not_change_a_figure_does_not_matter() -> None:
    tensors = {"w": gaussian(12, 10), "v": gaussian(12, 11)}
    plain = weightscope.analyze(tensors, threads=1)
    check_comparable(plain, weightscope.analyze(tensors, threads=2, device="cpu"))
    check_comparable(plain, weightscope.analyze(tensors, threads=1, include=("w",)))


def test_the_command_ends_with_5_and_names_option_and_remedy(work: Work) -> None:
    for command in ("a.weightscope other.weightscope", f"{RUNS} other.weightscope"):
        code, stdout, talk = work.ends[command]
        assert code == 5 and not stdout
        assert talk.startswith("Error:") and "--xmin is 'ks' in a and 'mid'" in talk
        assert "--force" in talk
    code, stdout, _ = work.ends["a.weightscope other.weightscope --force"]
    assert code == 0 and len(read_csv(stdout)) == len(work.run("a").rows)


@pytest.mark.parametrize(
    ("command", "code", "sentence"),
    [
        (f"{RUNS} --weights", 2, "--weights needs two checkpoints"),
        ("a.weightscope nowhere.safetensors --weights", 2, "--weights needs two checkpoints"),
        ("a.weightscope", 2, "compare needs at least two"),
        ("a.weightscope nowhere.safetensors", 1, "nowhere.safetensors"),
        (f"{RUNS} --sort alpha", 2, "--sort 'alpha': no such column"),
        (f"{RUNS} --map model", 2, "--map 'model': write FROM=TO"),
        (f"{RUNS} --csv taken.csv", 1, "taken.csv: exists already"),
        (f"{THREE} --csv taken.csv --quiet", 1, "taken.csv: exists already"),
        (f"{RUNS} --by module --top 3", 2, "--top"),
        (f"{THREE} --weights", 2, "--weights"),
        (f"{THREE} --by module", 2, "--by"),
    ],
)
def test_what_makes_no_sense_is_refused_in_a_sentence(
    work: Work, command: str, code: int, sentence: str
) -> None:
    found, stdout, talk = work.ends[command]
    assert (found, stdout) == (code, "") and sentence in talk
    assert talk.startswith("Error:") and len(talk.splitlines()) == 1
    assert (work.folder / "taken.csv").read_text() == "mine"


# --- runs alone and checkpoints --------------------------------------------------------------

WEIGHTS = ["rel_change", "cosine", "delta_stable_rank", "delta_rank_90", "delta_rank_95",
           "delta_rank_99", "delta_alpha", "delta_top_share", "subspace_left", "subspace_right",
           "intruders"]  # fmt: skip


@pytest.mark.parametrize("command", [f"{RUNS} --format csv", "a.weightscope b.safetensors"])
def test_runs_alone_leave_the_weights_out_and_say_so(work: Work, command: str) -> None:
    code, stdout, talk = work.ends[command]
    assert code == 0 and "name two checkpoints" in talk
    rows = read_csv(stdout)
    assert {row[name] for row in rows for name in WEIGHTS} == {""}
    assert {row["reading"] for row in rows} == {"", "renamed"}


def test_two_checkpoints_are_compared_by_their_weights(work: Work) -> None:
    code, stdout, talk = work.ends["a.safetensors b.safetensors --format csv"]
    assert code == 0 and "name two checkpoints" not in talk
    assert "a.weightscope holds this very run" in talk and "b.weightscope holds" in talk
    rows = {row["name"]: row for row in read_csv(stdout)}
    assert rows["model.layers.0.self_attn.q_proj.weight"]["reading"] == "scaled"
    assert float(rows["model.layers.0.self_attn.q_proj.weight"]["rel_change"]) == pytest.approx(2)
    assert rows["model.layers.1.mlp.up_proj.weight"]["reading"] == "re-initialised"
    assert rows["model.layers.0.mlp.up_proj.weight"]["reading"] == "identical"
    assert rows["model.layers.1.mlp.down_proj.weight"]["rel_change"] == ""
    alone = {row["name"]: row for row in read_csv(work.ends[f"{RUNS} --format csv"][1])}
    for name, row in rows.items():
        same = row.keys() - {*WEIGHTS, "reading"}
        assert {k: row[k] for k in same} == {k: alone[name][k] for k in same}


def test_no_weights_compares_the_runs_of_checkpoints_without_a_hint(work: Work) -> None:
    code, stdout, talk = work.ends["a.safetensors b.safetensors --no-weights"]
    assert code == 0 and "name two checkpoints" not in talk
    assert stdout == work.ends[f"{RUNS} --format csv"][1]


def test_nothing_is_kept_where_nothing_is_to_be_saved(
    work: Work, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    models = [str(work.folder / f"{name}.safetensors") for name in "ab"]
    settings = Settings(metrics=("alpha",), threads=1, device="cpu")
    found, hint = compare_models(models, Comparing(save=False, settings=settings))
    assert found.weights and not hint and not list(tmp_path.iterdir())
    assert found.summary["moved_by"] == "rel_change"
    with pytest.raises(OptionError, match="--weights"):
        compare_models([models[0], str(work.folder / "b.weightscope")], Comparing(weights=True))


def test_a_comparison_of_saved_runs_does_not_import_torch(work: Work) -> None:
    code = """
import sys
from weightscope.cli.main import main
for words in (sys.argv[1:3], sys.argv[1:]):
    sys.argv = ["weightscope", "compare", *words]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
heavy = ("torch", "transformers", "pandas", "scipy", "matplotlib", "huggingface_hub")
print("LOADED", *(name for name in heavy if name in sys.modules))
"""
    runs = [str(work.folder / f"{name}.weightscope") for name in "abc"]
    done = subprocess.run(
        [sys.executable, "-c", code, *runs], capture_output=True, text=True, env=environment()
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "LOADED"


# --- output ----------------------------------------------------------------------------------


def read_csv(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


IDENTITY = ["name", "name_b", "block", "module", "role", "change", "reading", "rows_a", "cols_a",
            "rows_b", "cols_b", "dtype_a", "dtype_b", "status_a", "status_b", "alpha_moved",
            "band_change", "class_change", "spectrum_w1"]  # fmt: skip


def test_csv_has_the_name_first_and_every_figure(work: Work) -> None:
    code, stdout, _ = work.ends[f"{RUNS} --format csv"]
    rows, found = read_csv(stdout), work.compared()
    header = list(rows[0])
    assert code == 0 and header == list(comparison_columns())
    assert header[: len(IDENTITY) + len(WEIGHTS)] == IDENTITY + WEIGHTS
    assert header[len(IDENTITY) + len(WEIGHTS) :][:3] == ["alpha_a", "alpha_b", "alpha_delta"]
    for row, expected in zip(rows, found.rows, strict=True):
        assert unescape(row["name"]) == expected["name"]
        for name in header[5:]:
            cell = expected[name]
            text = "" if cell is None else cell if isinstance(cell, str) else repr(cell)
            assert row[name] == text, (row["name"], name)


def test_json_has_raw_names_numbers_and_both_provenances(work: Work) -> None:
    code, stdout, talk = work.ends[f"{RUNS} --format json --quiet"]
    assert code == 0 and not talk
    found, expected = json.loads(stdout), work.compared()
    assert found["rows"] == [dict(row) for row in expected.rows]
    assert list(found["rows"][0]) == list(comparison_columns())
    assert [found[side]["model"] for side in "ab"] == ["a", "b"]
    assert found["a"]["settings"]["xmin"] == "ks"
    assert found["summary"] == json.loads(json.dumps(expected.summary))
    assert {row["name"] for row in found["rows"]} >= set(ODD_NAMES)


def test_markdown_is_sorted_and_cut(work: Work) -> None:
    code, stdout, _ = work.ends[f"{RUNS} --format markdown --sort spectrum_w1 --top 3"]
    found = work.compared()
    lines = stdout.splitlines()
    assert code == 0 and lines[0] == f"# a -> b: {len(found.rows)} matrices"
    table = lines[2 : lines.index("", 2)]
    names = [line.split("|")[1].strip() for line in table[2:]]
    most = [str(name).removesuffix(".weight") for name in found.summary["moved_most"][:3]]
    assert [name.replace("\\", "") for name in names] == most
    assert f"{len(found.rows) - 3} of {len(found.rows)} rows not shown." in stdout
    assert "Medians per module" in stdout and "1 renamed" in stdout and "1 removed" in stdout


def test_the_table_is_sorted_from_the_smallest_with_empty_cells_last(work: Work) -> None:
    code, stdout, _ = work.ends[f"{RUNS} --format table --sort=-alpha_delta"]
    assert code == 0
    rows = [row for row in work.compared().rows if row["alpha_delta"] is not None]
    smallest = min(rows, key=lambda row: row["alpha_delta"])  # type: ignore[arg-type,return-value]
    start = next(i for i, line in enumerate(stdout.splitlines()) if "───" in line)
    first = stdout.splitlines()[start + 1]
    assert first.split()[0] == str(smallest["name"]).removesuffix(".weight")
    assert stdout.splitlines()[start + len(work.compared().rows)].strip()


def test_nothing_that_is_printed_can_steer_a_terminal(work: Work) -> None:
    for command in COMMANDS:
        _, stdout, talk = work.ends[command]
        shown = talk + (stdout if "table" in command or "markdown" in command else "")
        assert all(line.isprintable() for line in shown.split("\n")), command
        assert "Traceback" not in talk and "unexpected" not in talk


def test_groups_have_the_module_or_block_first(work: Work) -> None:
    code, stdout, _ = work.ends[f"{RUNS} --format csv --by module"]
    expected = grouped(work.compared().rows, "module")
    rows = read_csv(stdout)
    assert code == 0 and list(rows[0])[:3] == ["module", "matrices", "moved"]
    assert [unescape(row["module"]) for row in rows] == [g["module"] for g in expected]
    assert [row["alpha_delta"] for row in rows] == [
        "" if g["alpha_delta"] is None else repr(g["alpha_delta"]) for g in expected
    ]
    found = json.loads(work.ends[f"{RUNS} --format json --by block"][1])
    assert found["rows"] == grouped(work.compared().rows, "block")
    assert {row["block"] for row in found["rows"]} == {None, 0, 1}


def test_groups_of_nothing_are_a_header(work: Work) -> None:
    command = "vectors.weightscope vectors.weightscope --by module --format csv"
    code, stdout, _ = work.ends[command]
    assert code == 0 and stdout.startswith("module,matrices,moved,") and stdout.count("\n") == 1


def test_files_hold_what_standard_output_would(work: Work) -> None:
    command = f"{RUNS} --csv out.csv --json out.json"
    assert work.ends[command][0] == 0
    plain = work.ends[f"{RUNS} --format csv"][1]
    assert (work.folder / "out.csv").read_bytes().decode() == plain == work.ends[command][1]
    assert (work.folder / "out.json").read_text("utf-8") == work.ends[
        f"{RUNS} --format json --quiet"
    ][1]
    facts = json.loads((work.folder / "out.csv.run.json").read_text("utf-8"))
    assert facts["a"]["model"] == "a" and facts["summary"]["change"]["added"] == 1


def test_a_map_that_fits_neither_side_changes_nothing_that_is_common(work: Work) -> None:
    """It is applied to both sides alike."""
    mapped = read_csv(work.ends[f"{RUNS} --map model.=other."][1])
    assert mapped == read_csv(work.ends[f"{RUNS} --format csv"][1])


# --- more than two ---------------------------------------------------------------------------


def test_several_runs_stand_beside_the_first(work: Work) -> None:
    code, stdout, _ = work.ends[f"{THREE} --format csv"]
    rows = read_csv(stdout)
    a, b = ({str(r["name"]): r for r in work.run(name).rows} for name in "ab")
    assert code == 0 and list(rows[0])[:5] == ["name", "block", "module", "role", "present"]
    assert list(rows[0])[5:8] == ["alpha_a", "alpha_b", "alpha_c"]
    assert len(rows) == len(a.keys() | b.keys())
    for row in rows:
        name = unescape(row["name"])
        in_a, in_b = name in a, name in b
        assert row["present"] == "a" * in_a + "bc" * in_b
        for column in metric_columns():
            cells = [row[f"{column.name}_{x}"] for x in "abc"]
            found = [r.get(name, {}).get(column.name) for r in (a, b, b)]
            assert cells == ["" if value is None else repr(value) for value in found]


def test_several_runs_are_sorted_by_text_without_losing_rows(work: Work) -> None:
    code, stdout, _ = work.ends[f"{THREE} --format table --sort present"]
    assert code == 0 and "a = a, b = b, c = b" in stdout
    lines = stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if "───" in line)
    names = [line.split()[0] for line in lines[start + 1 :] if line.split()]
    assert names[0] == "model.gone" and len(names) >= len(work.run("a").rows) + 2


def test_thirty_runs_are_compared(work: Work) -> None:
    models = [str(work.folder / "a.weightscope"), *[str(work.folder / "b.weightscope")] * 29]
    found = compare_many(models, Comparing())
    row = next(row for row in found.rows if row["name"] == "model.embed_tokens.weight")
    ends = {name.rpartition("_")[2] for name in found.columns if name.startswith("alpha_ks_")}
    assert len(ends) == 30 and list(row) == list(found.columns)
    assert [row[f"alpha_{end}"] for end in ends].count(row["alpha_b"]) == 29


def test_a_matrix_that_only_later_runs_have_is_one_row(tmp_path: Path) -> None:
    a, b = gaussian(12, 10), gaussian(12, 10, seed=1)
    models = [{"w": a}, {"w": a, "module.new": b}, {"new": b, "_orig_mod.w": a}]
    for name, tensors in zip("xyz", models, strict=True):
        weightscope.analyze(tensors, metrics="norms", threads=1, out=tmp_path / name)
    found = compare_many([str(tmp_path / name) for name in "xyz"], Comparing())
    assert {row["name"]: row["present"] for row in found.rows} == {"w": "abc", "module.new": "bc"}
    assert [row["nuclear_norm_a"] is None for row in found.rows] == [False, True]
