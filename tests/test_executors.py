"""What all executors promise: every matrix once, whole batches, the bytes of one device."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import gaussian, run_weightscope, write_sharded
from jobs import Names, batches, matrix

from weightscope import plan as planning
from weightscope.analysis import Saving, analyze
from weightscope.errors import CheckpointError, ExecutorError, OptionError
from weightscope.executors import devices, executor_for, local
from weightscope.executors.contract import Executor, by_cost
from weightscope.matrix import Matrix
from weightscope.placement import Placement
from weightscope.plan import Batch, memory_of
from weightscope.settings import Settings

SETTINGS = Settings(device="cpu", threads=1, farms_embeddings=True, shuffled=0)
FILES = ("table.jsonl", "rows.jsonl", "spectra.safetensors")
SECONDS = 20
"""More than any wait that ends well."""


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith("ray"):
            thread.join(SECONDS)
            assert not thread.is_alive(), thread


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """A machine with two devices, both of which are its processor."""
    names = "cpu:0", "cpu:1"
    monkeypatch.setattr(devices, "resolve_devices", lambda wanted: (names, "CPU"))
    return names


@pytest.fixture(params=["local", "devices", pytest.param("ray", marks=pytest.mark.slow)])
def executor(request: pytest.FixtureRequest) -> Iterator[Executor]:
    """Every executor of the drawer, with room for two things at a time."""
    placement = Placement()
    if request.param == "devices":
        request.getfixturevalue("two")
    if request.param == "ray":
        placement = Placement("ray", request.getfixturevalue("ray_cluster").address)
    with executor_for(placement, "cpu", 1) as chosen:
        yield chosen


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two dozen matrices of several kinds in three shards."""
    tensors: dict[str, Any] = {"model.embed_tokens.weight": gaussian(150, 48, seed=90)}
    for i in range(10):
        tensors[f"model.layers.{i}.self_attn.q_proj.weight"] = gaussian(48, 48, seed=i)
        tensors[f"model.layers.{i}.mlp.up_proj.weight"] = gaussian(96 + 8 * i, 48, seed=20 + i)
    tensors["vision.conv.weight"] = gaussian(24, 12, 3, 3, seed=70)
    tensors["model.layers.3.mlp.experts.w1"] = gaussian(3, 40, 30, seed=71)
    return write_sharded(tmp_path_factory.mktemp("several") / "model", tensors, 3)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BATCH_MATRICES", 2)


@pytest.fixture(scope="module")
def reference(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of one device."""
    out = tmp_path_factory.mktemp("one") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning, "BATCH_MATRICES", 2)
        assert len(analyze(model, SETTINGS, Saving(True, out)).rows) == 25
    return out


def assert_same_bytes(run: Path, reference: Path) -> None:
    for name in FILES:
        assert (run / name).read_bytes() == (reference / name).read_bytes(), name


def test_every_matrix_is_done_once_and_batches_come_whole(executor: Executor) -> None:
    plan = batches(9, each=3)
    found = dict(executor.run(Names(), plan))
    assert sorted(found, key=lambda batch: batch.index) == plan
    for batch, results in found.items():
        assert [r[:2] for r in results] == [(m.name, f"bytes of {m.name}") for m in batch.matrices]


def test_nothing_to_do_is_done_at_once(executor: Executor) -> None:
    assert list(executor.run(Names(), [])) == []


def test_the_bytes_are_those_of_one_device(
    executor: Executor, model: Path, reference: Path, tmp_path: Path
) -> None:
    """The real job, through the contract alone."""
    from weightscope import analysis
    from weightscope.assignment import anywhere
    from weightscope.sources import open_model

    sides = (anywhere(open_model(model)), None)
    saving = Saving(True, tmp_path / "run")
    analysis._analyze(sides, SETTINGS, saving, analysis.Silent(), executor)
    assert_same_bytes(tmp_path / "run", reference)


def test_bytes_that_are_not_there_end_the_work(executor: Executor, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="the disk hiccups"):
        list(executor.run(Names(tmp_path, troubles=99), batches(3)))


def test_a_programming_error_is_raised_as_what_it_is(executor: Executor) -> None:
    with pytest.raises(ZeroDivisionError):
        list(executor.run(Names(broken=("layers.1.w",)), batches(3)))


def test_work_that_is_left_ends(executor: Executor, tmp_path: Path) -> None:
    running = executor.run(Names(tmp_path, 0.01), batches(2000))
    next(running)
    running.close()
    assert len(list(tmp_path.iterdir())) < 2000


def test_an_interrupted_run_goes_on_elsewhere(
    executor: Executor, model: Path, reference: Path, tmp_path: Path
) -> None:
    from weightscope import analysis
    from weightscope.assignment import anywhere
    from weightscope.sources import open_model

    sides, out = (anywhere(open_model(model)), None), tmp_path / "run"
    begun = Saving(True, out, max_time=1e-6)
    run = analysis._analyze(sides, SETTINGS, begun, analysis.Silent(), executor)
    assert 0 < (run.summary["stopped"] or 0) < 25
    analyze(model, SETTINGS, Saving(True, out, resume=True))
    assert_same_bytes(out, reference)


# several devices


def test_the_costliest_batches_are_taken_first() -> None:
    square = Batch(0, (matrix(0, 8),), False)
    wide = Batch(1, (matrix(1, 9), matrix(2, 9)), False)
    long = Batch(2, (matrix(3, 40),), False)
    again = Batch(3, (matrix(4, 8),), False)
    assert by_cost([square, wide, long, again]) == [long, wide, square, again]


def test_a_device_that_is_free_takes_what_is_left(
    two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first device hangs in its first batch until the other has done all that is left."""
    rest_done = threading.Event()
    done: list[str] = []

    def check(device: str) -> None:
        if device == two[0]:
            assert rest_done.wait(SECONDS)
        else:
            done.append(device)
            if len(done) == 10:
                rest_done.set()

    monkeypatch.setattr(devices, "check", check)
    found = list(devices.Devices(two, "CPU", 1).run(Names(), batches(12)))
    by_device = [r[2] for _, results in found for r in results]
    assert by_device.count(two[0]) == 1 + devices.READ_MEANWHILE and by_device.count(two[1]) == 10


def test_a_device_that_dies_leaves_its_matrices_to_the_others(
    two: tuple[str, str],
    model: Path,
    reference: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    checks: list[str] = []

    def check(device: str) -> None:
        checks.append(device)
        if device == two[1] and checks.count(device) > 1:
            raise devices.DeadDeviceError(f"{device} has failed (fell off the bus)")

    monkeypatch.setattr(devices, "check", check)
    analyze(model, SETTINGS, Saving(True, tmp_path / "run"))
    assert_same_bytes(tmp_path / "run", reference)
    assert 1 < checks.count(two[1]) <= 2 + devices.READ_MEANWHILE


def test_an_error_names_the_device_when_none_is_left(
    two: tuple[str, str], model: Path, reference: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "check", dead_after(5))
        with pytest.raises(ExecutorError, match=r"cpu:[01] has failed .*--resume"):
            analyze(model, SETTINGS, Saving(True, out))
    assert 0 < len((out / "rows.jsonl").read_bytes().splitlines()) < 25
    analyze(model, SETTINGS, Saving(True, out, resume=True))
    assert_same_bytes(out, reference)


def dead_after(batches_done: int) -> Any:
    count = iter(range(1000))

    def check(device: str) -> None:
        if next(count) >= batches_done:
            raise devices.DeadDeviceError(f"{device} has failed (no power)")

    return check


def test_a_device_is_asked_after_every_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator errors come late; what was computed before is not to be trusted."""

    class Stream:
        def synchronize(self) -> None:
            raise RuntimeError("CUDA error: device-side assert triggered\nmore lines")

    monkeypatch.setattr("torch.cuda.current_stream", lambda device: Stream())
    with pytest.raises(devices.DeadDeviceError, match=r"cuda:1 has failed .*triggered\)$"):
        devices.check("cuda:1")
    devices.check("cpu:1")


def test_devices_have_the_threads_that_one_has(two: tuple[str, str]) -> None:
    plan = [replace(batch, alone=batch.index % 2 == 0) for batch in batches(8)]
    for batch, results in devices.Devices(two, "CPU", 3).run(Names(), plan):
        assert {r[3] for r in results} == {3 if batch.alone else 1}


@pytest.mark.parametrize("several", [False, True])
def test_a_gpu_works_on_a_few_matrices_at_a_time_as_far_as_there_is_room(
    several: bool, two: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A processor stands in for it; each matrix waits for as many beside it as there should be."""
    for there, name in ((local, "is_gpu"), (devices, "is_gpu")):
        monkeypatch.setattr(there, name, lambda device: True)
    for name in ("set_device", "set_stream", "Stream"):
        monkeypatch.setattr(torch.cuda, name, lambda device: None)
    monkeypatch.setattr(devices, "check", lambda device: None)
    executor = devices.Devices(two, "GPU", 8) if several else local.Local("cpu:0", "GPU", 8)
    plan = [Batch(i, (matrix(i),), i == 0) for i in range(12)]
    each = memory_of(matrix(0))
    for room, expected in ((9 * each, local.STREAMS), (2 * each, 2), (1, 1)):
        free = lambda device, room=room: (2 * room, 0)  # noqa: E731
        monkeypatch.setattr(torch.cuda, "mem_get_info", free)
        job = Together(expected)
        found = sorted(r for _, results in executor.run(job, plan) for r in results)
        assert found == sorted(m.name for batch in plan for m in batch.matrices)
        assert set(job.most.values()) == {expected} and job.threads == {1}


@dataclass
class Together:
    """Counts the matrices that each device works on side by side; the first ones wait for all."""

    expected: int
    most: dict[str, int] = field(default_factory=dict)
    inside: dict[str, int] = field(default_factory=dict)
    threads: set[int] = field(default_factory=set)
    lock: threading.Condition = field(default_factory=threading.Condition)

    @contextmanager
    def opened(self, wanted: Sequence[Matrix]) -> Iterator[Callable[[str], Counting]]:
        """Open nothing."""
        yield lambda device: Counting(self, device)

    def sent(self) -> Together:
        """As it is."""
        return self

    arrived = sent


@dataclass
class Counting:
    """One device of them."""

    job: Together
    device: str

    def fetch(self, matrix: Matrix) -> None:
        """Nothing."""

    def __call__(self, matrix: Matrix, fetched: None) -> str:
        job, device = self.job, self.device
        with job.lock:
            job.inside[device] = job.inside.get(device, 0) + 1
            job.most[device] = max(job.most.get(device, 0), job.inside[device])
            job.threads.add(torch.get_num_threads())
            job.lock.notify_all()
            assert job.lock.wait_for(lambda: job.most[device] >= job.expected, SECONDS)
        time.sleep(0.02)  # for one too many to come
        with job.lock:
            job.inside[device] -= 1
        return matrix.name


def test_a_model_in_memory_is_shared_by_devices(two: tuple[str, str], model: Path) -> None:
    from safetensors.torch import load_file

    tensors = {k: v for file in model.glob("*.safetensors") for k, v in load_file(file).items()}
    rows = analyze(tensors, SETTINGS).rows
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "resolve_devices", lambda wanted: (("cpu",), "CPU"))
        assert analyze(tensors, SETTINGS).rows == rows


# which devices


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine with GPUs of these models, as far as torch tells."""
    models = ["H200", "H200", "A10"]
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: len(models))
    monkeypatch.setattr("torch.cuda.get_device_name", lambda i: models[i])
    return models


@pytest.mark.parametrize("wanted", ["auto", "cuda"])
def test_all_devices_of_one_model_are_taken(gpus: list[str], wanted: str) -> None:
    assert devices.resolve_devices(wanted) == (("cuda:0", "cuda:1"), "H200")


def test_devices_can_be_chosen(gpus: list[str]) -> None:
    assert devices.resolve_devices("cuda:2") == (("cuda:2",), "A10")
    assert devices.resolve_devices("cuda:1,cuda:0,cuda:1") == (("cuda:1", "cuda:0"), "H200")
    chosen = devices.on_this_machine("cuda", 2)
    assert isinstance(chosen, devices.Devices)
    assert (chosen.device, chosen.device_name) == ("cuda", "H200")
    assert "cuda:0, cuda:1 (H200)" in chosen.note


@pytest.mark.parametrize("wanted", ["cuda:0,cuda:2", "cuda:0,cpu", "cuda:0,cuda:7", "cuda:0,"])
def test_devices_that_cannot_work_together_are_refused(gpus: list[str], wanted: str) -> None:
    with (
        pytest.raises(OptionError, match=f"--device {wanted}: "),
        executor_for(Placement(), wanted, 1),
    ):
        pass


def test_the_record_does_not_tell_which_of_several_devices_it_was() -> None:
    names = ("cuda", "cuda:1", "cuda:0,cuda:1")
    assert {str(Settings(device=name).as_record()["device"]) for name in names} == {"cuda"}


def test_the_command_refuses_devices_that_cannot_work_together(model: Path) -> None:
    done = run_weightscope("analyze", model, "--no-save", "--device", "cuda:0,cpu")
    assert done.returncode == 2 and "--device cuda:0,cpu: " in done.stderr
