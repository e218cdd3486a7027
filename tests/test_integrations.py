"""A training that is observed is the same training, and what is logged is what the weights are."""

from __future__ import annotations

import csv
import importlib.util
import logging
import re
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from time import sleep
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import weightscope
from weightscope import analysis
from weightscope.errors import OptionError, OutputError
from weightscope.integrations.lightning import LightningCallback
from weightscope.integrations.observe import figures_of
from weightscope.integrations.torch import Observer
from weightscope.integrations.transformers import WeightscopeCallback
from weightscope.layouts.roles import place_of, role_of

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SCRIPT = EXAMPLES / "train_tiny_llama.py"
TRAJECTORY = EXAMPLES / "tiny-llama" / "alpha_over_steps.csv"
Weights = dict[str, torch.Tensor]
OBSERVED = {"none": None, "sync": {}, "background": {"background": True}}


def long_form_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def tiny_llama() -> LlamaForCausalLM:
    """A Llama whose dropout draws random numbers at every step."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, attention_dropout=0.1,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def spectral_norms(weights: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest singular value of every matrix inside the blocks, by numpy in float64."""
    return {
        name: float(np.linalg.norm(array.astype(np.float64), 2))
        for name, array in weights.items()
        if array.ndim == 2 and "layers." in name
    }


# the Trainer


class Recorder(TrainerCallback):
    """A logger like TensorBoard's: before the callbacks of users, and closed at the end."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, float, dict[str, float]]] = []
        self.closed = False

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        assert not self.closed
        self.logged.append((state.global_step, state.epoch, dict(logs)))

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.closed = True

    def figures(self) -> list[tuple[int, float, dict[str, float]]]:
        return [
            (step, epoch, {k: v for k, v in logs.items() if k.startswith("weightscope/")})
            for step, epoch, logs in self.logged
            if any(key.startswith("weightscope/") for key in logs)
        ]


def trainer_for(folder: Path, **changes: Any) -> Trainer:
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(64, (40, 16), generator=generator)
    arguments: dict[str, Any] = {
        "max_steps": 10, "save_steps": 5, "logging_steps": 1, "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2, "report_to": "none", "use_cpu": True, "seed": 3,
        "disable_tqdm": True, "learning_rate": 1e-2,
    }  # fmt: skip
    return Trainer(
        tiny_llama(),
        TrainingArguments(str(folder), **{**arguments, **changes}),
        train_dataset=[{"input_ids": row, "labels": row} for row in tokens],
        callbacks=[Recorder()],
    )


def recorder_of(trainer: Trainer) -> Recorder:
    return next(c for c in trainer.callback_handler.callbacks if isinstance(c, Recorder))


def trained(folder: Path, options: dict[str, Any] | None) -> tuple[Trainer, Any]:
    trainer = trainer_for(folder)
    callback = None
    if options is not None:
        callback = WeightscopeCallback(every=2, **options).attach(trainer)
    trainer.train()
    return trainer, callback


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Trainer, Any]]:
    """The same training: not observed, observed, and observed in the background."""
    return {
        name: trained(tmp_path_factory.mktemp(name), options) for name, options in OBSERVED.items()
    }


@pytest.mark.parametrize("how", ["sync", "background"])
def test_the_trainer_trains_alike_to_the_last_bit(
    trainings: dict[str, tuple[Trainer, Any]], how: str
) -> None:
    alone, observed = trainings["none"][0], trainings[how][0]
    keys = ("loss", "grad_norm", "learning_rate")
    for key in keys:
        histories = [
            [(entry["step"], entry[key]) for entry in trainer.state.log_history if key in entry]
            for trainer in (alone, observed)
        ]
        assert len(histories[0]) == 10
        assert histories[0] == histories[1]
    weights = observed.model.state_dict()
    for name, tensor in alone.model.state_dict().items():
        assert torch.equal(tensor, weights[name]), name


def test_figures_reach_the_loggers_and_the_history_at_their_step(
    trainings: dict[str, tuple[Trainer, Any]],
) -> None:
    trainer, callback = trainings["sync"]
    found = recorder_of(trainer).figures()
    assert [step for step, _, _ in found] == [2, 4, 5, 6, 8, 10]  # every 2, and at saves
    assert [epoch for _, epoch, _ in found] == [0.4, 0.8, 1.0, 1.2, 1.6, 2.0]
    history = [e for e in trainer.state.log_history if "weightscope/alpha/mean" in e]
    assert [entry["step"] for entry in history] == [2, 4, 5, 6, 8, 10]
    for (_, epoch, figures), entry in zip(found, history, strict=True):
        assert entry == {**figures, "epoch": epoch, "step": entry["step"]}
    assert [step for step, _ in callback.observer.history] == [2, 4, 5, 6, 8, 10]


def test_logged_figures_are_those_of_the_saved_weights(
    trainings: dict[str, tuple[Trainer, Any]],
) -> None:
    trainer, _ = trainings["sync"]
    found = {step: figures for step, _, figures in recorder_of(trainer).figures()}
    for step in (5, 10):
        folder = Path(trainer.args.output_dir) / f"checkpoint-{step}"
        norms = spectral_norms(load_file(folder / "model.safetensors"))
        assert len(norms) == 21
        values = list(norms.values())
        queries = [v for name, v in norms.items() if "q_proj" in name]
        key = "weightscope/spectral_norm"
        assert found[step][f"{key}/mean"] == pytest.approx(np.mean(values), rel=1e-9)
        assert found[step][f"{key}/median"] == pytest.approx(np.median(values), rel=1e-9)
        module = "model.layers.self_attn.q_proj"
        assert found[step][f"{key}/{module}"] == pytest.approx(np.median(queries), rel=1e-9)


def test_background_figures_are_those_of_the_moment_of_the_copy(
    trainings: dict[str, tuple[Trainer, Any]],
) -> None:
    expected = {step: rest for step, *rest in recorder_of(trainings["sync"][0]).figures()}
    trainer, callback = trainings["background"]
    found = {step: rest for step, *rest in recorder_of(trainer).figures()}
    assert found
    assert found.keys() | callback.observer.missed.keys() == expected.keys()
    for step, rest in found.items():
        assert rest == expected[step]


def held(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Make every analysis wait for an event."""
    gate, analyze = threading.Event(), analysis.analyze

    def waiting(*args: Any) -> Any:
        assert gate.wait(30)
        return analyze(*args)

    monkeypatch.setattr(analysis, "analyze", waiting)
    return gate


class Opener(TrainerCallback):
    """Opens the gate at one step."""

    def __init__(self, gate: threading.Event, step: int) -> None:
        self.gate, self.step = gate, step

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.step:
            self.gate.set()


def test_a_late_result_is_logged_as_of_its_step_before_the_loggers_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = held(monkeypatch)
    trainer = trainer_for(tmp_path)
    trainer.add_callback(Opener(gate, 9))
    callback = WeightscopeCallback(every=2, background=True, metrics="norms").attach(trainer)
    trainer.train()
    found = recorder_of(trainer).figures()
    assert found[0][:2] == (2, 0.4)
    assert set(callback.observer.missed) >= {4, 5, 6, 8}
    assert trainer.state.global_step == 10
    assert [e["step"] for e in trainer.state.log_history if "loss" in e] == list(range(1, 11))
    assert sum("has not finished" in message for message in caplog.messages) == 1


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make every analysis outlast several steps."""
    analyze = analysis.analyze

    def sleeping(*args: Any) -> Any:
        sleep(0.5)
        return analyze(*args)

    monkeypatch.setattr(analysis, "analyze", sleeping)


@pytest.mark.parametrize(("every", "expected"), [(5, [5, 10]), (8, [8])])
def test_the_end_of_the_training_waits_for_the_last_analyses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int, expected: list[int]
) -> None:
    """Whether the last step is to be analysed or an earlier one still is."""
    slow(monkeypatch)
    trainer = trainer_for(tmp_path, save_strategy="no")
    callback = WeightscopeCallback(every, at_save=False, background=True, metrics="norms")
    callback.attach(trainer)
    trainer.train()
    assert [step for step, _, _ in recorder_of(trainer).figures()] == expected
    assert callback.observer.missed == {}


def test_without_attach_the_history_alone_gets_the_figures(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = trainer_for(tmp_path, max_steps=2, save_steps=2)
    trainer.add_callback(WeightscopeCallback(metrics=["norms"]))
    trainer.train()
    assert recorder_of(trainer).figures() == []
    entries = [e for e in trainer.state.log_history if "weightscope/spectral_norm/mean" in e]
    assert [entry["step"] for entry in entries] == [2]
    assert "call attach(trainer)" in caplog.text


def test_attaching_twice_adds_one_callback(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path)
    callback = WeightscopeCallback(every=1)
    assert callback.attach(trainer) is callback
    callback.attach(trainer)
    assert trainer.callback_handler.callbacks.count(callback) == 1


# a loop of one's own


def small_model() -> torch.nn.Module:
    """Linear, embedding and convolution weights, dropout, batch normalisation, a tied weight."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        torch.nn.Embedding(48, 40),
        torch.nn.Conv1d(24, 32, 3),
        torch.nn.BatchNorm1d(32),
        torch.nn.Flatten(),
        torch.nn.Dropout(0.3),
        torch.nn.Linear(32 * 38, 40),
        torch.nn.Linear(40, 48),
    )
    model[6].weight = model[0].weight
    return model


def loop(observe: Callable[[torch.nn.Module], Observer] | None) -> tuple[list[float], Weights]:
    model = small_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    observer = observe(model) if observe else None
    losses = []
    for step in range(1, 13):
        tokens = torch.randint(48, (8, 24))
        loss = torch.nn.functional.cross_entropy(model(tokens), tokens[:, 0])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        if observer:
            observer.step(step)
    if observer:
        observer.close()
    return losses, model.state_dict()


@pytest.mark.parametrize("options", [{}, {"background": True}, {"threads": 2}])
def test_a_loop_trains_alike_to_the_last_bit(options: dict[str, Any]) -> None:
    observers: list[Observer] = []

    def observe(model: torch.nn.Module) -> Observer:
        observers.append(Observer(model, every=3, **options))
        return observers[0]

    losses, weights = loop(None)
    observed_losses, observed_weights = loop(observe)
    assert observed_losses == losses
    assert all(torch.equal(weights[name], observed_weights[name]) for name in weights)
    steps = {step for step, _ in observers[0].history}
    assert steps | observers[0].missed.keys() == {3, 6, 9, 12}
    assert 3 in steps


def random_state() -> list[Any]:
    import random

    return [torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()]


def threads_of_a_new_thread() -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


@pytest.mark.parametrize("background", [False, True])
def test_nothing_of_the_training_is_touched(background: bool) -> None:
    before_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        model = small_model()
        model[4].eval()
        model(torch.randint(48, (8, 24))).sum().backward()
        model[1].requires_grad_(False)
        buffers = {k: (v.clone(), v.data_ptr(), v._version) for k, v in model.state_dict().items()}
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        needs = [p.requires_grad for p in model.parameters()]
        modes = [module.training for module in model.modules()]
        random_before = random_state()
        with Observer(model, background=background, threads=1, metrics="alpha") as observer:
            observer.observe(1)
        assert len(observer.history) == 1
        assert random_state() == random_before
        assert torch.get_num_threads() == 2
        assert threads_of_a_new_thread() == 2
        assert torch.get_default_dtype() == torch.float32
        assert torch.is_grad_enabled()
        assert [module.training for module in model.modules()] == modes
        assert [p.requires_grad for p in model.parameters()] == needs
        after = [p.grad for p in model.parameters() if p.grad is not None]
        assert all(torch.equal(a, b) for a, b in zip(grads, after, strict=True))
        for name, tensor in model.state_dict().items():
            values, place, version = buffers[name]
            assert torch.equal(tensor, values)
            assert (tensor.data_ptr(), tensor._version) == (place, version)
    finally:
        torch.set_num_threads(before_threads)


def test_a_copy_is_analysed_as_the_model_itself() -> None:
    """Tied weights once, convolutions known by their type, whatever their name."""
    model = small_model()
    runs = []
    for background in (False, True):
        with Observer(model, background=background) as observer:
            observer.observe(0)
        runs.append(observer.history[0][1])
    assert runs[0].rows == runs[1].rows
    assert runs[0].summary == runs[1].summary
    assert all(row["alpha"] is not None and row["alpha_farms"] is None for row in runs[0].rows)
    assert runs[0].name == runs[1].name == "Sequential"
    assert [(row["name"], row["role"]) for row in runs[1].rows] == [
        ("0.weight", "other"),
        ("1.weight", "conv"),
        ("5.weight", "other"),
    ]
    figures = figures_of(runs[1], ("frobenius_norm",))
    rows = [model[i].weight.detach().double().norm().item() for i in (0, 1, 5)]
    assert figures["weightscope/frobenius_norm/median"] == pytest.approx(np.median(rows), rel=1e-9)


def test_figures_of_the_moment_although_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = held(monkeypatch)
    model = torch.nn.Linear(40, 30)
    norm = torch.linalg.matrix_norm(model.weight.detach().double(), 2).item()
    logged: list[tuple[dict[str, float], int]] = []
    observer = Observer(
        model, 1, lambda figures, step: logged.append((figures, step)), background=True
    )
    observer.step(1)
    with torch.no_grad():
        model.weight.mul_(3)
    observer.step(2)
    assert observer.missed == {2: "the analysis before has not finished"}
    assert logged == []
    gate.set()
    observer.close()
    assert [step for _, step in logged] == [1]
    figures = logged[0][0]
    assert figures["weightscope/spectral_norm/weight"] == pytest.approx(norm, rel=1e-9)


def test_a_copy_beyond_its_bound_is_not_made(caplog: pytest.LogCaptureFixture) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 48))
    size = sum(4 * p.numel() for p in model.parameters())
    with Observer(model, every=1, background=True, max_copy_bytes=size) as fits:
        fits.step(1)
    with Observer(model, every=1, background=True, max_copy_bytes=size - 1) as larger:
        for step in (1, 2, 3):
            larger.step(step)
    with Observer(
        model, every=1, background=True, max_copy_bytes=size - 1, exclude="1.weight"
    ) as less:
        less.step(1)
    assert [len(o.history) for o in (fits, larger, less)] == [1, 0, 1]
    assert list(larger.missed) == [1, 2, 3]
    assert f"{size:,} bytes, more than max_copy_bytes={size - 1:,}" in larger.missed[1]
    assert sum("max_copy_bytes" in message for message in caplog.messages) == 1


@pytest.mark.parametrize("background", [False, True])
def test_an_error_in_the_analysis_is_said_once_and_stops_nothing(
    background: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*args: Any) -> Any:
        raise RuntimeError("no memory left")

    model = torch.nn.Linear(40, 30)
    with Observer(model, every=1, background=background) as observer:
        observer.step(1)
        observer.wait()
        with monkeypatch.context() as patch:
            patch.setattr(analysis, "analyze", broken)
            for step in (2, 3):
                observer.step(step)
                observer.wait()
        observer.step(4)
    assert observer.missed == {2: "no memory left", 3: "no memory left"}
    assert [step for step, _ in observer.history] == [1, 4]
    warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert [r.getMessage() for r in warnings] == [
        "step 2 is not analysed: no memory left (said once)"
    ]


def test_patterns_that_leave_nothing_stop_nothing(caplog: pytest.LogCaptureFixture) -> None:
    with Observer(torch.nn.Linear(40, 30), every=1, include="no.such*") as observer:
        observer.step(1)
    assert observer.history == []
    assert "leave none of 1 tensors" in caplog.text


def test_what_the_own_log_raises_is_raised() -> None:
    def log(figures: dict[str, float], step: int) -> None:
        raise KeyError("disk")

    observer = Observer(torch.nn.Linear(40, 30), 1, log)
    with pytest.raises(KeyError, match="disk"):
        observer.step(1)


def test_only_the_families_asked_for_are_computed() -> None:
    with Observer(torch.nn.Linear(40, 30), metrics=("rank", "norms")) as observer:
        observer.observe(1)
    row = observer.history[0][1].rows[0]
    assert row["stable_rank"] is not None
    assert row["spectral_norm"] is not None
    unasked = ("alpha", "alpha_farms", "erg_gap", "condition_number", "mp_softrank", "weight_std")
    assert all(row[name] is None for name in unasked)
    columns = ("stable_rank", "effective_rank", "frobenius_norm", "spectral_norm")
    assert observer.options.columns == columns
    assert observer.history[0][1].provenance["settings"]["device"] == "cpu"


def test_undefined_figures_are_not_logged() -> None:
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(40, 30), "b": torch.nn.Linear(40, 30)})
    with torch.no_grad():
        model["b"].weight.zero_()
    with Observer(model) as observer:
        observer.observe(1)
    figures = figures_of(observer.history[0][1], ("alpha",))
    assert figures.keys() == {
        "weightscope/alpha/mean", "weightscope/alpha/median", "weightscope/alpha/a"
    }  # fmt: skip


def test_wrappers_do_not_show_in_names() -> None:
    model = small_model()
    for wrapper in (torch.nn.DataParallel(model), torch.compile(model)):
        with Observer(wrapper) as observer:
            observer.observe(1)
        run = observer.history[0][1]
        assert [row["name"] for row in run.rows] == ["0.weight", "1.weight", "5.weight"]


def test_sharded_weights_are_not_taken_for_whole_ones() -> None:
    model = torch.nn.Linear(40, 30)
    model.weight.ds_id = 7  # what DeepSpeed marks its partitioned parameters with
    with Observer(model) as observer:
        observer.observe(1)
    assert observer.history == []
    assert "sharded over several processes" in observer.missed[1]


def test_the_long_form_holds_every_cell_in_order_of_steps(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(64, 48), torch.nn.Linear(48, 40))
    columns = ("spectral_norm", "alpha")
    expected = {}
    with Observer(model, every=5, columns=columns) as observer:
        for step in (0, 5, 10):
            for i in (0, 1):
                weight = model[i].weight.detach().double().numpy()
                expected[str(step), f"{i}.weight"] = np.linalg.norm(weight, 2)
            observer.step(step)
            with torch.no_grad():
                model[1].weight.mul_(2)
    observer.history.reverse()
    path = tmp_path / "over_steps.csv"
    observer.write_csv(path)
    records = long_form_of(path)
    assert list(records[0]) == ["step", "name", "metric", "value"]
    norms = [r for r in records if r["metric"] == "spectral_norm"]
    assert [(r["step"], r["name"]) for r in norms] == list(expected)
    for record in norms:
        place = record["step"], record["name"]
        assert float(record["value"]) == pytest.approx(expected[place], rel=1e-9)
    assert sum(r["metric"] == "alpha" for r in records) == 6
    with pytest.raises(OutputError, match="exists already"):
        observer.write_csv(path)
    observer.write_csv(path, force=True)


@pytest.mark.parametrize("background", [False, True])
def test_runs_are_kept_and_never_replaced_unasked(
    tmp_path: Path, background: bool, caplog: pytest.LogCaptureFixture
) -> None:
    model = torch.nn.Linear(64, 48)
    with Observer(model, every=2, background=background, out=tmp_path / "runs") as observer:
        for step in range(1, 5):
            observer.step(step)
            observer.wait()
    assert sorted(p.name for p in (tmp_path / "runs").iterdir()) == ["step-2", "step-4"]
    kept = weightscope.load_run(tmp_path / "runs" / "step-4")
    assert kept.rows == observer.history[1][1].rows
    values = np.linalg.svd(model.weight.detach().double().numpy(), compute_uv=False)
    found = observer.history[1][1].spectrum("weight").singular_values
    np.testing.assert_allclose(found, values, rtol=1e-9)

    torch.nn.init.ones_(model.bias)
    with torch.no_grad():
        model.weight.mul_(2)
    options: dict[str, Any] = {"background": background, "out": tmp_path / "runs"}
    with Observer(model, **options) as second:
        second.observe(4)
    assert "step-4 exists already and is kept" in caplog.text
    assert len(second.history) == 1
    assert weightscope.load_run(tmp_path / "runs" / "step-4").rows == kept.rows
    with Observer(model, overwrite=True, **options) as third:
        third.observe(4)
    assert weightscope.load_run(tmp_path / "runs" / "step-4").rows == third.history[0][1].rows


def test_spectra_that_are_not_kept_do_not_add_up() -> None:
    with Observer(torch.nn.Linear(64, 48)) as observer:
        observer.observe(1)
    assert observer.history[0][1].spectra() == {}


def test_the_cost_is_stated(capsys: pytest.CaptureFixture[str]) -> None:
    with Observer(torch.nn.Linear(64, 48), every=1) as observer:
        observer.step(1)
        observer.step(2)
    assert 0 < observer.analysis_seconds <= observer.seconds <= observer.elapsed
    assert observer.share == observer.seconds / observer.elapsed
    line = (
        rf"weightscope: 2 analyses, training waited {observer.seconds:.2f} s, [\d.]+% of [\d.]+ s\n"
    )
    assert re.fullmatch(line, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"metrics": ("alfa",)}, "--metrics 'alfa'"),
        ({"columns": ("stable_rank",), "metrics": ("alpha",)}, "columns 'stable_rank'"),
        ({"columns": "alpha_band"}, "columns 'alpha_band'"),
        ({"every": -1}, "every=-1"),
        ({"eval_floor": "low"}, "--eval-floor 'low'"),
    ],
)
def test_options_without_sense_are_refused_before_training(
    options: dict[str, Any], what: str
) -> None:
    for make in (
        lambda: Observer(torch.nn.Linear(4, 4), **options),
        lambda: WeightscopeCallback(**options),
        lambda: LightningCallback(**options),
    ):
        with pytest.raises(OptionError, match=what):
            make()


def test_callbacks_that_would_never_act_are_refused() -> None:
    for kind in (WeightscopeCallback, LightningCallback):
        with pytest.raises(OptionError, match="nothing would ever be analysed"):
            kind(at_save=False)
    with pytest.raises(TypeError, match="evry"):
        WeightscopeCallback(evry=3)


# Lightning, which the test environment does not have: its documented hooks, called as it does


class FakeLogger:
    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.logged.append((step, dict(metrics)))


def fake_lightning(callback: LightningCallback, saves: set[int]) -> tuple[Any, torch.nn.Module]:
    """Eight batches, an optimizer step after every second one, a checkpoint after some steps."""
    module = torch.nn.Linear(64, 48)
    loggers = [FakeLogger(), FakeLogger()]
    trainer = SimpleNamespace(global_step=0, is_global_zero=True, loggers=loggers)
    callback.on_train_start(trainer, module)
    for batch_idx in range(8):
        if batch_idx % 2:
            with torch.no_grad():
                module.weight.mul_(1.5)
            trainer.global_step += 1
        callback.on_train_batch_end(trainer, module, {"loss": 0.0}, None, batch_idx)
        if batch_idx % 2 and trainer.global_step in saves:
            callback.on_save_checkpoint(trainer, module, {})
    callback.on_train_end(trainer, module)
    if 0 in saves:  # a last checkpoint, written when training has ended
        callback.on_save_checkpoint(trainer, module, {})
    callback.teardown(trainer, module, stage="fit")
    return trainer, module


def steps_logged(trainer: Any) -> Iterator[list[int]]:
    for logger in trainer.loggers:
        yield [step for step, _ in logger.logged]


def test_lightning_steps_are_optimizer_steps(capsys: pytest.CaptureFixture[str]) -> None:
    callback = LightningCallback(every=2, metrics=("norms",))
    trainer, module = fake_lightning(callback, saves={1, 2})
    assert list(steps_logged(trainer)) == [[1, 2, 4]] * 2
    norms = [
        figures["weightscope/spectral_norm/weight"] for _, figures in trainer.loggers[0].logged
    ]
    last = torch.linalg.matrix_norm(module.weight.detach().double(), 2).item()
    assert norms == pytest.approx([last / 1.5**3, last / 1.5**2, last], rel=1e-6)
    assert "weightscope: 3 analyses" in capsys.readouterr().err


def test_lightning_logs_what_is_late_before_the_loggers_close() -> None:
    callback = LightningCallback(background=True, metrics=("norms",))
    trainer, _ = fake_lightning(callback, saves={0})
    assert list(steps_logged(trainer)) == [[4]] * 2


def test_lightning_analyses_a_last_checkpoint_too(monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch)
    callback = LightningCallback(every=3, background=True, metrics=("norms",))
    trainer, _ = fake_lightning(callback, saves={0})
    assert list(steps_logged(trainer)) == [[3, 4]] * 2


def test_lightning_processes_beside_the_first_do_nothing() -> None:
    callback = LightningCallback(every=1)
    trainer = SimpleNamespace(global_step=1, is_global_zero=False, loggers=[])
    module = torch.nn.Linear(64, 48)
    callback.on_train_start(trainer, module)
    callback.on_train_batch_end(trainer, module, None, None, 0)
    callback.on_save_checkpoint(trainer, module, {})
    assert callback.observer.history == []


# the example


@pytest.fixture
def script() -> Iterator[ModuleType]:
    """The training script, imported from its path; what it sets for the process is set back."""
    spec = importlib.util.spec_from_file_location("train_tiny_llama", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    threads = torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up by name
        spec.loader.exec_module(module)
        try:
            yield module
        finally:
            torch.use_deterministic_algorithms(mode=False)
            torch.set_num_threads(threads)


def test_the_example_is_trained_alike_whether_observed_or_not(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    training, held_out = script.load_text()
    monkeypatch.setattr(script, "load_text", lambda: (training, held_out[:500]))
    short = "--steps 6 --save-at 6 --batch-size 2 --sequence-length 32 --seed 7 --out"
    for name, extra in (("alone", []), ("observed", ["--observe-every", "3"])):
        script.train(script.parse_arguments([*short.split(), str(tmp_path / name), *extra]))
    written = sorted((tmp_path / "alone" / "checkpoint-6").iterdir())
    assert sum(path.suffix == ".safetensors" for path in written) == 3
    for path in written:
        other = tmp_path / "observed" / "checkpoint-6" / path.name
        assert path.read_bytes() == other.read_bytes(), path.name
    records = long_form_of(tmp_path / "observed" / "alpha_over_steps.csv")
    assert list(dict.fromkeys(r["step"] for r in records)) == ["0", "3", "6"]
    assert {r["metric"] for r in records} == {"alpha", "alpha_ks", "stable_rank", "spectral_norm"}
    assert len(records) == 3 * 30 * 4


def test_the_committed_trajectory_is_that_of_the_committed_checkpoints() -> None:
    """They are bfloat16 copies of what was observed in float32."""
    observed = {
        (record["step"], record["name"]): float(record["value"])
        for record in long_form_of(TRAJECTORY)
        if record["metric"] == "spectral_norm"
    }
    assert len(observed) == 21 * 30
    for step in ("100", "500", "2000"):
        for shard in (TRAJECTORY.parent / f"checkpoint-{step}").glob("*.safetensors"):
            for name, tensor in load_torch(shard).items():
                if tensor.ndim == 2:
                    gram = tensor.double().T @ tensor.double()
                    norm = torch.linalg.eigvalsh(gram)[-1].sqrt().item()
                    assert observed.pop((step, name)) == pytest.approx(norm, rel=1e-3), name
    assert len(observed) == 18 * 30


def test_the_readme_states_the_committed_trajectory() -> None:
    records = long_form_of(TRAJECTORY)
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", text, re.MULTILINE)
    assert len(rows) == 9
    for role, cells in rows:
        for step, cell in zip((0, 100, 200, 500, 1000, 2000), cells.split("|"), strict=True):
            alphas = [
                float(record["value"])
                for record in records
                if record["metric"] == "alpha"
                and record["step"] == str(step)
                and role_of(place_of(record["name"]).module) == role
            ]
            assert f"{np.median(alphas):.2f}" == cell.strip(), (role, step)
