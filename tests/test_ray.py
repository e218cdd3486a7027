"""The executor on real Ray: two nodes on this machine (pip install '.[ray]')."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from checkpoints import (
    environment,
    gaussian,
    run_weightscope,
    write_file,
    write_sharded,
)
from fake_hub import FakeHub, files_of
from jobs import Names, batches

import weightscope
from weightscope import plan as planning
from weightscope.analysis import Saving, Silent, analyze
from weightscope.errors import CheckpointError, ExecutorError
from weightscope.executors import executor_for
from weightscope.executors import ray as executor
from weightscope.placement import Placement
from weightscope.settings import Settings

pytestmark = pytest.mark.slow

SETTINGS = Settings(device="cpu", threads=1, shuffled=0)
FILES = ("table.jsonl", "rows.jsonl", "spectra.safetensors")
SECONDS = 60


@pytest.fixture
def placement(ray_cluster: Any) -> Placement:
    return Placement("ray", ray_cluster.address)


@pytest.fixture(autouse=True)
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BATCH_MATRICES", 2)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty matrices in three shards."""
    tensors = {
        f"layers.{i}.{part}.weight": gaussian(64 + rows, 64, seed=i + rows)
        for i in range(20)
        for part, rows in (("self_attn.q_proj", 0), ("mlp.up_proj", 120), ("mlp.down_proj", 60))
    }
    return write_sharded(tmp_path_factory.mktemp("sixty") / "model", tensors, 3)


@pytest.fixture(scope="module")
def reference(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of this process alone."""
    out = tmp_path_factory.mktemp("alone") / "run"
    analyze(model, SETTINGS, Saving(True, out))
    return out


def assert_same_bytes(run: Path, reference: Path) -> None:
    for name in FILES:
        assert (run / name).read_bytes() == (reference / name).read_bytes(), name


def test_the_command_on_two_nodes_writes_what_one_process_writes(
    ray_cluster: Any, model: Path, reference: Path, tmp_path: Path
) -> None:
    command = ("analyze", model.name, "--out", tmp_path / "run", "--shuffled", "--device", "cpu")
    place = ("--executor", "ray", "--ray-address", ray_cluster.address)
    done = run_weightscope(*command, *place, cwd=model.parent, env=environment())
    assert done.returncode == 0, done.stderr
    assert "Ray cluster: 2 nodes, 2 CPUs, 0 GPUs; 2 tasks at a time, each on CPU" in done.stderr
    assert len(done.stderr.splitlines()) == 2, done.stderr  # Ray itself says nothing
    assert_same_bytes(tmp_path / "run", reference)


def test_a_cluster_is_started_for_one_run(model: Path, reference: Path, tmp_path: Path) -> None:
    """Protected by a token of its own, whatever the environment says of others."""
    env = environment()
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_ADDRESS"):
        env.pop(name, None)
    command = ("analyze", model, "--out", tmp_path / "run", "--shuffled", "--device", "cpu")
    place = ("--executor", "ray", "--ray-address", "local")
    done = run_weightscope(*command, *place, env={**env, "HOME": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert_same_bytes(tmp_path / "run", reference)
    assert not (tmp_path / ".ray").exists()


def test_from_python(ray_cluster: Any, model: Path, reference: Path) -> None:
    options = {"executor": "ray", "ray_address": ray_cluster.address, "device": "cpu"}
    run = weightscope.analyze(model, shuffled=0, **options)
    assert run.rows == weightscope.load_run(reference).rows


class Murderer(Silent):
    """Kills a node as soon as a few matrices are done."""

    def __init__(self, cluster: Any, node: Any) -> None:
        self.cluster, self.node, self.done = cluster, node, 0

    def advance(self, name: str, operations: float) -> None:
        self.done += 1
        if self.done == 6:
            self.cluster.remove_node(self.node, allow_graceful=False)


def test_a_node_that_is_killed_loses_nothing(
    ray_cluster: Any, placement: Placement, model: Path, reference: Path, tmp_path: Path
) -> None:
    node = ray_cluster.add_node(num_cpus=2, object_store_memory=100 << 20)
    killer = Murderer(ray_cluster, node)
    analyze(model, SETTINGS, Saving(True, tmp_path / "run"), killer, placement)
    assert killer.done == 60
    assert_same_bytes(tmp_path / "run", reference)
    wait_until(lambda: slots_of(placement) == 2)  # the cluster takes its time to miss a node


def slots_of(placement: Placement) -> int:
    with executor_for(placement, "cpu", 1) as cluster:
        assert isinstance(cluster, executor.Cluster)
        return cluster.slots


def counted(seen: list[int]) -> Any:
    """Handing out batches, and noting the size of the largest argument in kilobytes."""
    submit = executor.Cluster._submit

    def counting(self: executor.Cluster, sent: bytes, batch: Any) -> Any:
        seen.append((len(sent) + len(pickle.dumps(batch))) >> 10)
        return submit(self, sent, batch)

    return counting


def test_tasks_are_given_references_and_no_tensor(
    placement: Placement, minilm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """90 MB of weights: what is sent for a task stays below 8 KB."""
    sizes: list[int] = []
    monkeypatch.setattr(executor.Cluster, "_submit", counted(sizes))
    settings = Settings(device="cpu", threads=1, metrics=("norms",), include=("*layer.[0-3].*",))
    run = analyze(minilm, settings, placement=placement)
    assert len(run.rows) == 24 and len(sizes) >= 12
    assert max(sizes) < 8


def test_no_more_tasks_are_in_flight_than_the_window(placement: Placement, tmp_path: Path) -> None:
    """One result is taken and the cluster is left alone: it does what it has, and then waits."""
    with executor_for(placement, "cpu", 1) as cluster:
        assert isinstance(cluster, executor.Cluster)
        window = cluster.window
        assert window == 2 * cluster.slots == 4
        running = cluster.run(Names(tmp_path), batches(20))
        next(running)
        wait_until(lambda: len(list(tmp_path.iterdir())) == window)
        time.sleep(2)
        assert len(list(tmp_path.iterdir())) == window
        assert len(list(running)) == 19


def wait_until(condition: Any) -> None:
    until = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def test_bytes_that_come_at_the_third_attempt_are_enough(
    placement: Placement, tmp_path: Path
) -> None:
    with executor_for(placement, "cpu", 1) as cluster:
        found = list(cluster.run(Names(tmp_path, troubles=2), batches(3)))
    assert len(found) == 3 and len(list(tmp_path.glob("layers.0.w.*"))) == 3


def test_bytes_that_never_come_name_the_node(placement: Placement, tmp_path: Path) -> None:
    with (
        executor_for(placement, "cpu", 1) as cluster,
        pytest.raises(CheckpointError, match=r"^node .*: the disk hiccups$"),
    ):
        list(cluster.run(Names(tmp_path, troubles=99), batches(3)))
    assert len(list(tmp_path.glob("layers.0.w.*"))) == 1 + executor.RETRIES


def test_a_programming_error_is_not_tried_again(placement: Placement, tmp_path: Path) -> None:
    with (
        executor_for(placement, "cpu", 1) as cluster,
        pytest.raises(ZeroDivisionError),
    ):
        list(cluster.run(Names(tmp_path, broken=("layers.1.w",)), batches(2)))
    assert len(list(tmp_path.glob("layers.1.w.*"))) == 1


def test_a_process_that_dies_is_replaced(placement: Placement, tmp_path: Path) -> None:
    with executor_for(placement, "cpu", 1) as cluster:
        found = list(cluster.run(Names(tmp_path, deaths=2), batches(3)))
    assert len(found) == 3 and len(list(tmp_path.glob("layers.1.w.*"))) == 3


def test_a_matrix_that_kills_every_process_is_given_up(
    placement: Placement, tmp_path: Path
) -> None:
    with (
        executor_for(placement, "cpu", 1) as cluster,
        pytest.raises(ExecutorError, match=r"'layers\.1\.w' \(1 matrix\) was given up .*--resume"),
    ):
        list(cluster.run(Names(tmp_path, deaths=99), batches(3)))
    assert len(list(tmp_path.glob("layers.1.w.*"))) == 1 + executor.RETRIES


def test_a_file_that_only_this_process_sees(placement: Placement, tmp_path: Path) -> None:
    """It is gone once the tasks look for it."""
    path = write_file(tmp_path / "model.safetensors", {"layers.0.w.weight": gaussian(40, 30)})

    class Thief(Silent):
        def start(self, plan: Any, done: float) -> None:
            path.unlink()

    with pytest.raises(CheckpointError, match=r"^node .*model\.safetensors"):
        analyze(path, SETTINGS, observer=Thief(), placement=placement)


def test_a_request_that_no_node_can_meet_is_said_at_once(
    ray_cluster: Any, model: Path, tmp_path: Path
) -> None:
    place = ("--executor", "ray", "--ray-address", ray_cluster.address)
    command = ("analyze", model, "--out", tmp_path / "run", *place)
    done = run_weightscope(*command, "--ray-gpus-per-task", "0.5")
    assert done.returncode == 2
    assert "no node of the Ray cluster has 0.5 GPU and 1 CPU" in done.stderr
    done = run_weightscope(*command, "--threads", "99")
    assert done.returncode == 2 and "99 CPU for a task" in done.stderr
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_torch_cannot_use_is_named(
    ray_cluster: Any, placement: Placement, model: Path
) -> None:
    """A node that claims a GPU and has none."""
    import torch

    if torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    node = ray_cluster.add_node(num_cpus=1, num_gpus=1, object_store_memory=100 << 20)
    try:
        with pytest.raises(ExecutorError, match=r"^node .* torch cannot use it .*CUDA"):
            analyze(model, Settings(), placement=placement)
    finally:
        ray_cluster.remove_node(node)


def test_other_versions_are_refused(
    placement: Placement, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightscope.executors.task.__version__", "99.1")
    with pytest.raises(ExecutorError, match=rf"weightscope {weightscope.__version__}, .* 99\.1"):
        analyze(model, SETTINGS, placement=placement)


def test_a_run_that_is_interrupted_goes_on(
    ray_cluster: Any, model: Path, reference: Path, tmp_path: Path
) -> None:
    """Ctrl-C ends it at once, with the finished batches on disk."""
    out = tmp_path / "run"
    place = ("--executor", "ray", "--ray-address", ray_cluster.address)
    options = ("--shuffled", "--device", "cpu", "--out", out)
    code = (
        "import sys, weightscope.plan as plan; plan.BATCH_MATRICES = 2\n"
        "from weightscope.cli.main import main; sys.exit(main())"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, ("analyze", model, *place, *options))],
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    rows = out / "rows.jsonl"
    wait_until(lambda: rows.exists() and rows.stat().st_size)
    os.kill(process.pid, signal.SIGINT)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait(SECONDS) == 130, said
    assert "--resume" in said and "Traceback" not in said
    assert not (out / "table.jsonl").exists()
    done = run_weightscope("analyze", model, *place, *options, "--resume")
    assert done.returncode == 0, done.stderr
    assert_same_bytes(out, reference)


@pytest.fixture
def open_cluster(tmp_path: Path) -> Iterator[str]:
    """The address of a cluster that obeys anyone, beyond this machine too."""
    code = (
        "from ray.cluster_utils import Cluster; import sys; "
        "c = Cluster(True, head_node_args={'include_dashboard': False, 'num_cpus': 1, "
        "'object_store_memory': 100 << 20}); "
        "print(c.address, flush=True); sys.stdin.read(); c.shutdown()"
    )
    env = environment(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env=env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None and process.stdin is not None
    yield process.stdout.readline().strip()
    process.stdin.close()
    process.wait(SECONDS)


def test_a_cluster_that_obeys_anyone_is_refused_unless_told(open_cluster: str, model: Path) -> None:
    host = open_cluster.partition(":")[0]
    if host.startswith("127."):
        pytest.skip("Ray knows no address of this machine but the loopback")
    place = ("--executor", "ray", "--ray-address", open_cluster)
    command = ("analyze", model, "--no-save", "--metrics", "norms", "--device", "cpu", *place)
    disabled = environment(RAY_AUTH_MODE="disabled")
    done = run_weightscope(*command, env=disabled)
    assert done.returncode == 2
    assert "runs code of anyone" in done.stderr and "--ray-unprotected" in done.stderr
    done = run_weightscope(*command, "--ray-unprotected", env=disabled)
    assert done.returncode == 0, done.stderr
    # a token here does not protect a cluster that never asks for it
    done = run_weightscope(*command, env=environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="x"))
    assert done.returncode != 0


def test_where_there_is_no_cluster_it_says_so(model: Path) -> None:
    place = ("--executor", "ray", "--ray-address", "127.0.0.1:1")
    done = run_weightscope("analyze", model, "--no-save", *place, env=environment())
    assert done.returncode == 1
    assert "no Ray cluster can be used at 127.0.0.1:1" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_hub_model_is_read_by_the_tasks(
    ray_cluster: Any, model: Path, reference: Path, tmp_path: Path
) -> None:
    """A gated one, by byte ranges, with a token that only the command knows."""
    env = environment(HF_HOME=str(tmp_path / "home"), HF_HUB_DISABLE_XET="1", NO_PROXY="*")
    env = {key: value for key, value in env.items() if not key.startswith("RAY_")}
    place = ("--executor", "ray", "--ray-address", "local", "--fetch", "stream")
    options = ("--shuffled", "--device", "cpu", "--out", tmp_path / "run")
    with FakeHub() as hub:
        repository = hub.add("acme/sixty", files_of(model), gated=True)
        env["HF_ENDPOINT"] = hub.endpoint
        command = ("analyze", "acme/sixty", *place, *options, "--token", "hf_secret")
        done = run_weightscope(*command, env=env)
        assert done.returncode == 0, done.stderr
        assert hub.bytes_sent() > sum(map(len, files_of(model).values())) * 0.9
    assert repository.gated
    for name in FILES:
        found = (tmp_path / "run" / name).read_bytes()
        assert found == (reference / name).read_bytes(), name
        assert b"hf_secret" not in found
    assert not list((tmp_path / "home").rglob("*.safetensors"))


def test_a_connection_that_was_there_before_stays(ray_cluster: Any, model: Path) -> None:
    import ray

    ray.init(ray_cluster.address, log_to_driver=False)
    try:
        for _ in range(2):
            run = weightscope.analyze(model, executor="ray", metrics="norms", device="cpu")
            assert len(run.rows) == 60 and ray.is_initialized()
    finally:
        ray.shutdown()
