"""Comparing and following training from Python: what goes in, what comes out, what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from checkpoints import environment, gaussian, run_weightscope, small_model, write_file

import weightscope
from weightscope import keywords
from weightscope.checkpoint import Access
from weightscope.comparing import Wide
from weightscope.comparison import comparison_columns
from weightscope.errors import (
    CheckpointError,
    IncomparableRunsError,
    OptionError,
    RunFolderError,
)
from weightscope.integrations import notebook
from weightscope.integrations.torch import Observer
from weightscope.placement import Placement
from weightscope.run import Run
from weightscope.settings import Settings, parse_floor

QUICK: dict[str, Any] = {"metrics": "alpha norms", "device": "cpu", "threads": 1}
Q_PROJ, UP_PROJ = "model.layers.0.self_attn.q_proj.weight", "model.layers.1.mlp.up_proj.weight"
STEPS = (20, 100, 1000)


def tuned() -> dict[str, torch.Tensor]:
    """The small model with an update of rank 3, a matrix three times as large, and one new."""
    tensors = {name: tensor.clone() for name, tensor in small_model().items()}
    tensors[Q_PROJ] += gaussian(32, 3, seed=1) @ gaussian(3, 32, seed=2)
    tensors[UP_PROJ] *= 3
    tensors["model.new.weight"] = gaussian(20, 30, seed=4)
    return tensors


class Network(torch.nn.Module):
    """A module whose state dict is that of a small model."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self.tensors = dict(tensors)

    def state_dict(self, *arguments: Any, **options: Any) -> Any:
        return self.tensors


@dataclass(frozen=True)
class Work:
    """A folder with two checkpoints, their saved runs, and a training."""

    folder: Path

    def at(self, name: str) -> Path:
        return self.folder / name

    def run(self, name: str) -> Run:
        return weightscope.load_run(self.at(f"{name}.weightscope"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    found = Work(tmp_path_factory.mktemp("api"))
    for name, tensors in (("a", small_model()), ("b", tuned())):
        path = write_file(found.at(f"{name}.safetensors"), tensors)
        weightscope.analyze(path, out=found.at(f"{name}.weightscope"), **QUICK)
    for step in STEPS:
        grown = {
            name: tensor * (1 + step / 100) if name == Q_PROJ else tensor
            for name, tensor in small_model().items()
        }
        write_file(found.at("training") / f"checkpoint-{step}" / "model.safetensors", grown)
    return found


def by_name(found: Any) -> dict[str, Any]:
    return {str(row["name"]): row for row in found.rows}


# --- compare ---------------------------------------------------------------------------------


def test_two_models_are_compared_by_their_weights(work: Work) -> None:
    found = weightscope.compare(small_model(), tuned(), **QUICK)
    rows, change = by_name(found), (tuned()[Q_PROJ] - small_model()[Q_PROJ]).double().numpy()
    before = np.linalg.norm(small_model()[Q_PROJ].double().numpy())
    assert rows[Q_PROJ]["rel_change"] == pytest.approx(np.linalg.norm(change) / before, rel=1e-6)
    assert rows[Q_PROJ]["reading"] == "low-rank-update" and rows[Q_PROJ]["delta_rank_99"] <= 3
    assert rows[UP_PROJ]["reading"] == "scaled"
    assert rows[UP_PROJ]["rel_change"] == pytest.approx(2, rel=1e-6)
    assert rows["model.new.weight"]["change"] == "added"
    assert found.summary["moved_most"] == [UP_PROJ, Q_PROJ]
    assert found.sentences == (
        f"1 added; 9 common; 7 identical; 1 low-rank-update; 1 scaled; alpha moved in "
        f"{found.summary['alpha_moved']}",
        f"Moved most (by rel_change): {UP_PROJ}, {Q_PROJ}",
    )
    assert repr(found) == "Comparison('state_dict' -> 'state_dict', 10 matrices)"


@pytest.mark.parametrize("kind", ["path", "text", "module", "mixed"])
def test_every_kind_of_model_is_the_same_model(work: Work, kind: str) -> None:
    expected = weightscope.compare(small_model(), tuned(), **QUICK)
    a: Any = work.at("a.safetensors")
    b: Any = work.at("b.safetensors")
    if kind == "text":
        a, b = str(a), str(b)
    elif kind == "module":
        a, b = Network(small_model()), Network(tuned())
    elif kind == "mixed":
        b = Network(tuned())
    assert weightscope.compare(a, b, **QUICK).rows == expected.rows


def test_runs_are_compared_in_memory_and_on_disk(work: Work) -> None:
    a, b = work.run("a"), work.run("b")
    found = weightscope.compare(a, b)
    assert not found.weights and found.runs == (a, b)
    assert {row["rel_change"] for row in found.rows} == {None}
    on_disk = weightscope.compare(work.at("a.weightscope"), str(work.at("b.weightscope")))
    with_weights = weightscope.compare(work.at("a.safetensors"), b, **QUICK)
    without = weightscope.compare(small_model(), tuned(), weights=False, **QUICK)
    assert on_disk.rows == with_weights.rows == without.rows == found.rows


def test_the_command_says_the_same(work: Work) -> None:
    words = ["compare", "a.safetensors", "b.safetensors", "--no-save", "--format", "json"]
    options = ["--device", "cpu", "--threads", "1"]
    done = run_weightscope(*words, *options, cwd=work.folder)
    found = weightscope.compare(
        work.at("a.safetensors"), work.at("b.safetensors"), device="cpu", threads=1
    )
    told = json.loads(done.stdout)
    assert told["rows"] == json.loads(json.dumps(list(found.rows)))
    assert told["summary"] == json.loads(json.dumps(found.summary))


def test_several_are_compared_with_the_first(work: Work) -> None:
    a, b = work.run("a"), work.run("b")
    found = weightscope.compare(a, b, small_model(), **QUICK)
    assert isinstance(found, Wide) and found.names == ("a", "b", "state_dict")
    row = by_name(found)[UP_PROJ]
    assert row["spectral_norm_delta_b"] == pytest.approx(2 * row["spectral_norm_a"], rel=1e-6)
    assert row["spectral_norm_delta_c"] == 0
    frame = found.to_dataframe()
    assert list(frame.columns) == list(found.columns) and len(frame) == len(found.rows)
    assert frame["alpha_n_tail_delta_b"].dtype == "Int64"
    assert repr(found) == "Wide('a', 'b', 'state_dict', 10 matrices)"


def test_prefixes_are_mapped(work: Work) -> None:
    other = {name.replace("model.", "other.", 1): t for name, t in small_model().items()}
    for prefixes in ("other.=model.", ["other.=model.", "x=y"]):
        found = weightscope.compare(work.run("a"), other, map=prefixes, weights=False, **QUICK)
        assert found.summary["change"] == {"common": 9} and "reading" not in found.sentences[0]


def test_a_comparison_becomes_a_frame_with_types(work: Work) -> None:
    found = weightscope.compare(small_model(), tuned(), **QUICK)
    frame = found.to_dataframe().set_index("name")
    assert ["name", *frame.columns] == list(comparison_columns())
    kinds = {"reading": "string", "alpha_delta": "float64", "alpha_n_tail_delta": "Int64",
             "rows_b": "Int64", "dtype_a": "string", "intruders": "Int64", "rel_change": "float64",
             "block": "Int64", "spectrum_w1": "float64"}  # fmt: skip
    assert {name: str(frame.dtypes[name]) for name in kinds} == kinds
    assert frame.loc[UP_PROJ, "rel_change"] == pytest.approx(2, rel=1e-6)
    assert frame.loc["model.new.weight", "rows_a"] is pd.NA
    assert int(frame["rel_change"].isna().sum()) == 1


def test_what_is_saved_is_used_again(work: Work, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    sides = work.at("a.safetensors"), work.at("b.safetensors")
    weightscope.compare(*sides, weights=False, **QUICK)
    assert not list(tmp_path.iterdir())
    for again in (False, True):
        found = weightscope.compare(*sides, save=True, weights=False, **QUICK)
        assert [run.reused for run in found.runs] == [again, again]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.weightscope", "b.weightscope"]


# --- track -----------------------------------------------------------------------------------


def test_a_training_is_followed_from_its_folder(work: Work) -> None:
    found = weightscope.track(work.at("training"), metric="spectral_norm", **QUICK)
    assert found.steps == STEPS and repr(found) == "Trajectory(9 matrices at steps 20, 100, 1000)"
    norm = float(np.linalg.norm(small_model()[Q_PROJ].double().numpy(), 2))
    expected = [norm * (1 + step / 100) for step in STEPS]
    assert found.values(Q_PROJ, "spectral_norm") == pytest.approx(expected, rel=1e-6)
    assert found.summary["spectral_norm_growth"][0]["ratio"] == pytest.approx(11 / 1.2, rel=1e-6)
    assert f"{Q_PROJ} x9.17" in found.sentences[1]
    frame = found.to_dataframe()
    assert [str(kind) for kind in frame.dtypes] == ["Int64", "string", "string", "float64"]
    assert set(frame["metric"]) == {"spectral_norm"} and len(frame) == 27
    of_q = frame[frame["name"] == Q_PROJ]
    assert list(of_q["step"]) == list(STEPS)
    assert list(of_q["value"]) == found.values(Q_PROJ, "spectral_norm")


def test_every_kind_of_training_is_the_same_training(work: Work) -> None:
    expected = weightscope.track(work.at("training"), **QUICK)
    runs = list(expected.runs)
    folders = [work.at("training") / f"checkpoint-{step}" for step in STEPS]
    states = [
        {name: t * (1 + s / 100) if name == Q_PROJ else t for name, t in small_model().items()}
        for s in STEPS
    ]
    given: list[Any] = [
        str(work.at("training")),
        f"{work.at('training')}/checkpoint-*",
        runs[::-1],
        (run for run in runs),
        [runs[1], folders[2], str(folders[0])],
        dict(zip(STEPS, runs, strict=True)),
        dict(zip(reversed(STEPS), map(Network, reversed(states)), strict=True)),
        {np.int64(step): state for step, state in zip(STEPS, states, strict=True)},
    ]
    for one in given:
        found = weightscope.track(one, **QUICK)
        assert (found.steps, found.rows, found.names) == (STEPS, expected.rows, expected.names)
    assert {"alpha", "spectral_norm"} < set(expected.to_dataframe()["metric"])


def test_the_command_tracks_the_same(work: Work) -> None:
    options = ["--no-save", "--device", "cpu", "--threads", "1", "--metric", "alpha"]
    done = run_weightscope("track", "training", "--format", "json", *options, cwd=work.folder)
    found = weightscope.track(work.at("training"), metric="alpha", device="cpu", threads=1)
    told = json.loads(done.stdout)
    assert told["summary"] == json.loads(json.dumps(found.summary))
    records = found.to_dataframe().to_dict("records")
    assert told["rows"] == records


def test_the_step_of_a_run_is_in_the_name_of_its_model_or_folder(work: Work) -> None:
    run, folder = work.run("a"), Path("numbered-3.weightscope")
    named = replace(run, folder=None, provenance={**run.provenance, "model": "step-0070"})
    assert weightscope.track([named, replace(run, folder=folder)]).steps == (3, 70)


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "name", "hint"),
    [
        (lambda **o: weightscope.analyze({}, **o), "metric", "did you mean metrics?"),
        (lambda **o: weightscope.analyze({}, **o), "max_time", "it takes include, exclude"),
        (lambda **o: weightscope.analyze({}, **o), "elsewhere", "weightscope.analyze"),
        (lambda **o: weightscope.compare({}, {}, **o), "weigths", "did you mean weights?"),
        (lambda **o: weightscope.compare({}, {}, **o), "no_save", "did you mean save?"),
        (lambda **o: weightscope.compare({}, {}, **o), "base", "weightscope.compare"),
        (lambda **o: weightscope.compare({}, {}, **o), "metric", "did you mean metrics?"),
        (lambda **o: weightscope.track([], **o), "weights", "weightscope.track"),
        (lambda **o: weightscope.track([], **o), "treads", "did you mean threads?"),
    ],
)
def test_unknown_options_are_refused_by_the_nearest_name(
    call: Callable[..., Any], name: str, hint: str
) -> None:
    with pytest.raises(OptionError, match=f"has no option '{name}'") as refused:
        call(**{name: True})
    assert hint in str(refused.value) and refused.value.exit_code == 2


def test_every_setting_is_an_option() -> None:
    """What the type checker is told is what there is."""
    ours = set(keywords.AnalyzeOptions.__annotations__)
    kinds = {f.name for kind in (Settings, Access, Placement) for f in fields(kind)}
    assert ours == kinds - {"elsewhere"}
    shared = set(keywords.MeasuringOptions.__annotations__)
    of_one = {f.name for f in fields(Placement)} | {"base", "merged", "shard"}
    assert ours - shared == of_one
    both = (keywords.CompareOptions.__annotations__, keywords.TrackOptions.__annotations__)
    assert [set(options) - shared for options in both] == [
        {"weights", "map", "force", "save"},
        {"metric", "map", "force", "save"},
    ]


def test_options_may_be_given_as_they_are_typed() -> None:
    typed: dict[str, Any] = {
        "metrics": "alpha, norms", "include": "*q_proj*", "exclude": ["a", "b"], "shard": "2/3",
        "eval_floor": "abs:1e-5", "shuffled": "auto", "quant_error": "4,8", "revision": "main",
    }  # fmt: skip
    settings, access, placement = keywords.analysis_from(typed)
    assert settings.metrics == ("alpha", "norms", "shuffled", "quant")
    assert (settings.include, settings.exclude) == (("*q_proj*",), ("a", "b"))
    assert settings.eval_floor == parse_floor("abs:1e-5") and str(settings.shard) == "2/3"
    assert (settings.shuffled, settings.quant_error) == (0, (8, 4))
    assert access.revision == "main" and placement == Placement()
    assert keywords.analysis_from({"quant_error": [4, 3]})[0].quant_error == (4, 3)


def optimizer_state() -> dict[str, Any]:
    """The state of an optimizer that has made a step."""
    layer = torch.nn.Linear(6, 5)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(6)).sum().backward()
    optimizer.step()
    return optimizer.state_dict()


TRAINING = {"model": small_model(), "optimizer": optimizer_state(), "epoch": 3}
NOT_MODELS: list[tuple[Any, str]] = [
    (TRAINING, r"training dictionary .* \['model'\]"),
    ({"state": 1, "checkpoint": 2, "module": {"state_dict": small_model()}},
     r"under \['module'\]\['state_dict'\]"),
    (optimizer_state(), r"state of an optimizer.*model\.state_dict\(\)"),
    ({"epoch": 3, "w": gaussian(9, 8)}, "'epoch' is a int, not a tensor"),
    ({}, "holds no tensors"),
    (3, "type int is no path, no module and no state dict"),
    ("nowhere/at/all", "nowhere"),
]  # fmt: skip


@pytest.mark.parametrize(("model", "sentence"), NOT_MODELS)
def test_what_is_no_model_is_told_by_what_it_is(work: Work, model: Any, sentence: str) -> None:
    calls: tuple[Callable[[], Any], ...] = (
        lambda: weightscope.analyze(model),
        lambda: weightscope.compare(work.run("a"), model),
        lambda: weightscope.track({0: work.run("a"), 1: model}),
    )
    for call in calls:
        with pytest.raises(CheckpointError, match=sentence):
            call()


def test_models_with_nothing_in_common_are_refused_unless_forced(work: Work) -> None:
    run, other = work.run("a"), weightscope.analyze({"w": gaussian(9, 8, seed=3)}, **QUICK)
    both: dict[int, Any] = {0: run, 1: other}
    calls: tuple[Callable[..., Any], ...] = (
        lambda **o: weightscope.compare(run, other, **o),
        lambda **o: weightscope.compare(run, run, other, **o),
        lambda **o: weightscope.track(both, **o),
    )
    for call in calls:
        with pytest.raises(IncomparableRunsError, match=r"a has 'model\.embed.*'w'.*--map") as no:
            call()
        assert no.value.exit_code == 5
        assert call(force=True)
    assert weightscope.compare(run, other, force=True).summary["change"] == {
        "removed": 9, "added": 1,
    }  # fmt: skip


def test_runs_of_different_settings_are_refused_unless_forced(work: Work) -> None:
    run = work.run("a")
    other = weightscope.analyze(small_model(), **{**QUICK, "xmin": "mid"})
    with pytest.raises(IncomparableRunsError, match="--xmin is 'ks' in a and 'mid' in state_dict"):
        weightscope.compare(run, other)
    with pytest.raises(IncomparableRunsError, match="--xmin"):
        weightscope.track({0: run, 1: other})
    assert weightscope.track({0: run, 1: other}, force=True).steps == (0, 1)


@pytest.mark.parametrize("given", [[], {}, "a.weightscope", small_model(), Network({})])
def test_one_run_is_no_training(work: Work, given: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(work.folder)
    with pytest.raises(OptionError, match="track needs at least two"):
        weightscope.track(given)
    with pytest.raises(OptionError, match="track needs at least two"):
        weightscope.track(work.run("a"))


def test_what_makes_no_sense_is_refused(work: Work) -> None:
    run, state = work.run("a"), small_model()
    twin = replace(run, provenance={**run.provenance, "model": "checkpoint-100"})
    refusals: list[tuple[Callable[[], Any], str]] = [
        (lambda: weightscope.compare(run, state, weights=True), "--weights needs two checkpoints"),
        (lambda: weightscope.compare(state, state, state, weights=True), "two models, not more"),
        (lambda: weightscope.compare(run, run, map="model."), "write FROM=TO"),
        (lambda: weightscope.compare(run, run, metrics="alhpa"), "--metrics 'alhpa'"),
        (lambda: weightscope.compare(run, run, revision="v2"), "--revision v2"),
        (lambda: weightscope.track([run, state]), r"Run\('a', 9 matrices.*nothing tells its"),
        (lambda: weightscope.track([state, state]), "dict: nothing tells its training step"),
        (lambda: weightscope.track(3), "not a int"),
        (lambda: weightscope.track([], metric="alhpa"), "--metric 'alhpa'.*did you mean alpha"),
        (lambda: weightscope.track(["nothing-*"]), "matches nothing"),
        (lambda: weightscope.track([work.at("training"), twin]), "two of the runs are of step 100"),
    ]  # fmt: skip
    for call, sentence in refusals:
        with pytest.raises(OptionError, match=sentence):
            call()


def test_a_missing_spectrum_is_told_or_left_empty(work: Work, tmp_path: Path) -> None:
    saved = tmp_path / "a.weightscope"
    weightscope.analyze(small_model(), out=saved, **QUICK)
    (saved / "spectra.safetensors").unlink()
    with pytest.raises(RunFolderError, match=r"spectra\.safetensors: cannot be read.*again"):
        weightscope.compare(saved, work.run("b"))
    slim = replace(work.run("a"), load_spectra=dict)
    found = by_name(weightscope.compare(slim, work.run("b")))[UP_PROJ]
    assert found["spectrum_w1"] is None
    assert found["spectral_norm_b"] == pytest.approx(3 * found["spectral_norm_a"], rel=1e-6)


# --- notebooks -------------------------------------------------------------------------------


def test_tables_show_themselves(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    hostile = {"<img src=x onerror=alert(1)>": gaussian(9, 8), "\x1b[31m": gaussian(9, 8, seed=1)}
    compared = weightscope.compare(small_model() | hostile, tuned() | hostile, **QUICK)
    wide = weightscope.compare(*compared.runs, compared.runs[0])
    tracked = weightscope.track(dict(enumerate(compared.runs)), metric="spectral_norm")
    for found in (compared, wide, tracked):
        text = found._repr_html_()
        assert text.count("<tr>") > len(compared.rows) and "q_proj" in text
        assert "&lt;img src=x" in text and "<img" not in text and "\x1b" not in text
        assert "not shown" not in text
    assert "low-rank-update" in compared._repr_html_() and "Moved most" in compared._repr_html_()
    assert "spectral_norm over 2 steps" in tracked._repr_html_()
    assert "a = state_dict" in wide._repr_html_()
    monkeypatch.setattr(notebook, "MOST_ROWS", 2)
    for found in (compared, wide, tracked):
        assert "10 of 12 rows not shown" in found._repr_html_()


def test_saved_runs_are_compared_and_shown_without_torch(work: Work) -> None:
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'matplotlib', 'transformers', 'pandas')))\n"
        "import weightscope\n"
        "found = weightscope.compare('a.weightscope', 'b.weightscope')\n"
        "print(found.sentences[0], '<table>' in found._repr_html_())\n"
        "found = weightscope.track({0: 'a.weightscope', 9: 'b.weightscope'})\n"
        "print(found.steps, '<table>' in found._repr_html_())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=work.folder,
        env=environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first.startswith("1 added; 9 common; ") and first.endswith("True")
    assert second == "(0, 9) True"


def test_what_an_observer_saw_is_followed() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(24, 20), torch.nn.Linear(20, 12))
    norms = []
    with Observer(model, every=10, metrics=("alpha", "norms"), threads=1) as observer:
        for step in range(1, 31):
            with torch.no_grad():
                model[0].weight.mul_(1.1)
            observer.step(step)
            if step % 10 == 0:
                weight = model[0].weight.detach().double()
                norms.append(float(torch.linalg.matrix_norm(weight, 2)))
    found = weightscope.track(dict(observer.history))
    assert found.steps == (10, 20, 30)
    assert found.values("0.weight", "spectral_norm") == pytest.approx(norms, rel=1e-6)
