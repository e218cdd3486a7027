"""Where the work is done: the choice, what nodes have, and what of a job travels. No Ray needed."""

from __future__ import annotations

import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoints import gaussian, run_weightscope, small_model, write_file, write_sharded
from jobs import Names, batches

import weightscope
from weightscope.analysis import farms_recipe
from weightscope.assignment import Assignment, anywhere
from weightscope.checkpoint import Checkpoint, Remote
from weightscope.errors import CheckpointError, ExecutorError, OptionError
from weightscope.executors import executor_for
from weightscope.executors.nodes import Node, Request, is_loopback, nodes_of, request_for
from weightscope.executors.ray import Cluster
from weightscope.executors.task import check_versions, versions
from weightscope.placement import Placement
from weightscope.plan import make_plan
from weightscope.select import select_for
from weightscope.settings import Settings
from weightscope.sources import open_model

ERRORS = SimpleNamespace(RayError=RuntimeError)
SETTINGS = Settings(device="cpu", threads=1)
PLAIN = Node("10.0.0.1", 8, 0, 16 << 30)
GPUS = Node("10.0.0.2", 16, 4, 64 << 30, "H200")
OLD = Node("10.0.0.3", 16, 2, 64 << 30, "A10")


# the choice


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"executor": "dask"}, "--executor 'dask': choose from local, ray"),
        ({"executor": "ray", "ray_gpus_per_task": 2}, "--ray-gpus-per-task 2"),
        ({"executor": "ray", "ray_gpus_per_task": -0.5}, "--ray-gpus-per-task -0.5"),
        ({"ray_address": "local"}, "--ray-address is for --executor ray"),
        ({"ray_gpus_per_task": 0.5}, "--ray-gpus-per-task is for --executor ray"),
        ({"ray_unprotected": True}, "--ray-unprotected is for --executor ray"),
    ],
)
def test_a_choice_that_makes_no_sense(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(OptionError, match=complaint):
        Placement(**given)
    with pytest.raises(OptionError, match=complaint):
        weightscope.analyze({"w": torch.eye(4)}, **given)


def test_the_command_says_the_same(tmp_path: Path) -> None:
    path = write_file(tmp_path / "model.safetensors", small_model())
    done = run_weightscope("analyze", path, "--no-save", "--ray-address", "local")
    assert done.returncode == 2
    assert "--ray-address is for --executor ray" in done.stderr


def test_where_ray_is_missing_it_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_file(tmp_path / "model.safetensors", small_model())
    monkeypatch.setitem(sys.modules, "ray", None)  # an import of it fails
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with pytest.raises(OptionError, match=r"pip install 'weightscope\[ray\]'"):
        weightscope.analyze(path, executor="ray")


# what nodes have


def test_nodes_are_read_from_how_the_cluster_describes_them() -> None:
    records = [
        {
            "Alive": True,
            "NodeManagerAddress": "10.0.0.2",
            "Resources": {
                "CPU": 16.0, "GPU": 4.0, "memory": 5e9, "accelerator_type:H200": 1.0, "node:x": 1.0,
            },
        },
        {"Alive": True, "NodeManagerAddress": "10.0.0.1", "Resources": {"CPU": 2.0}},
        {"Alive": False, "NodeManagerAddress": "10.0.0.9", "Resources": {"CPU": 64.0}},
    ]  # fmt: skip
    assert nodes_of(records) == (
        Node("10.0.0.2", 16, 4, 5_000_000_000, "H200"),
        Node("10.0.0.1", 2, 0, 0),
    )


@pytest.mark.parametrize(
    ("request_", "node", "tasks"),
    [
        (Request(1), PLAIN, 8),
        (Request(3), PLAIN, 2),
        (Request(9), PLAIN, 0),
        (Request(1, 1.0), PLAIN, 0),
        (Request(1, 1.0), GPUS, 4),
        (Request(1, 0.25), GPUS, 16),
        (Request(2, 0.25), GPUS, 8),
        (Request(1, 0.4), GPUS, 8),
        (Request(1, 1.0, "A10"), GPUS, 0),
        (Request(1, 1.0, "A10"), OLD, 2),
    ],
)
def test_how_many_tasks_fit(request_: Request, node: Node, tasks: int) -> None:
    assert request_.fits(node) == tasks


def test_a_gpu_is_taken_where_there_are_any_and_the_device_allows() -> None:
    assert request_for([PLAIN], "auto", None, 1) == Request(1)
    assert request_for([PLAIN, GPUS], "auto", None, 2) == Request(2, 1.0, "H200")
    assert request_for([PLAIN, GPUS], "cpu", None, 1) == Request(1)
    assert request_for([PLAIN, GPUS], "auto", 0, 1) == Request(1)
    assert request_for([GPUS], "cuda", 0.25, 1) == Request(1, 0.25, "H200")


def test_of_several_models_the_most_frequent_computes_alone() -> None:
    """Otherwise the figures would depend on which task went where."""
    assert request_for([OLD, GPUS], "cuda", None, 1).kind == "H200"
    assert request_for([OLD, OLD, OLD, GPUS], "cuda", None, 1).kind == "A10"
    options = Request(1, 1.0, "A10").options(1, [OLD])
    assert options["resources"] == {"accelerator_type:A10": 0.001}


@pytest.mark.parametrize(
    ("nodes", "device", "share", "threads", "complaint"),
    [
        ([PLAIN], "cuda", None, 1, "1 GPU and 1 CPU .*the largest has 0 GPUs and 8 CPUs"),
        ([PLAIN], "auto", 0.25, 1, "0.25 GPU and 1 CPU"),
        ([PLAIN, GPUS], "auto", 0, 32, "no node .* has 32 CPU .*4 GPUs and 16 CPUs"),
        ([PLAIN, GPUS], "auto", 1, 32, "1 GPU and 32 CPU"),
        ([], "auto", None, 1, "it has no node"),
        ([GPUS], "cpu", 0.5, 1, "--device cpu contradicts"),
        ([GPUS], "cuda", 0.0, 1, "--device cuda contradicts"),
        ([GPUS], "cuda:1", None, 1, "on a cluster choose auto, cpu or cuda"),
        ([GPUS], "mps", None, 1, "on a cluster choose auto, cpu or cuda"),
    ],
)
def test_what_no_node_has_is_said_at_once(
    nodes: list[Node], device: str, share: float | None, threads: int, complaint: str
) -> None:
    with pytest.raises(OptionError, match=complaint):
        request_for(nodes, device, share, threads)


def test_a_task_reserves_the_memory_it_needs_or_all_of_a_node() -> None:
    assert Request(1).options(1 << 30, [PLAIN, GPUS])["memory"] == 1 << 30
    assert Request(1).options(1 << 40, [PLAIN, GPUS])["memory"] == GPUS.memory
    assert Request(1, 1.0).options(1 << 40, [PLAIN, OLD])["memory"] == OLD.memory
    assert Request(1).options(1 << 40, [replace(PLAIN, memory=0)])["memory"] is None


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("127.0.0.1", True), ("127.3.2.1", True), ("::1", True), ("[::1]", True),
        ("localhost", True), ("10.0.0.1", False), ("0.0.0.0", False), ("head.example", False),
        ("::", False), ("", False),
    ],
)  # fmt: skip
def test_what_only_this_machine_can_reach(address: str, inside: bool) -> None:
    assert is_loopback(address) is inside


def test_other_versions_are_refused_by_naming_both() -> None:
    expected = versions()
    check_versions(expected)
    with pytest.raises(ExecutorError, match=r"torch .* but .* torch 0\.1; install the same"):
        check_versions({**expected, "torch": "0.1"})


@pytest.mark.parametrize("address", ["192.0.2.7:6379", "ray://192.0.2.7:10001", "ray://head:10001"])
def test_a_cluster_that_asks_for_no_token_is_refused_before_it_is_reached(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even a connection is made: ray is no package here but a thing that cannot do anything."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=bool, exceptions=ERRORS))
    with (
        pytest.raises(OptionError, match=r"RAY_AUTH_MODE=token .* --ray-unprotected"),
        executor_for(Placement("ray", address), "cpu", 1),
    ):
        pass


@pytest.mark.parametrize("address", ["head", "head:", ":6379", "ray://head", "http://head/"])
def test_what_is_no_address_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=bool, exceptions=ERRORS))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    with (
        pytest.raises(OptionError, match="give auto, local, HOST:PORT or ray://HOST:PORT"),
        executor_for(Placement("ray", address), "cpu", 1),
    ):
        pass


@pytest.mark.parametrize("left", [[], [replace(PLAIN, memory=1)], [replace(PLAIN, cpus=1)]])
def test_waiting_ends_when_no_node_is_left_for_the_work(left: list[Node]) -> None:
    """A cluster that never answers, and whose nodes are gone, or too small for what is left."""
    records = [
        {
            "Alive": True,
            "NodeManagerAddress": node.address,
            "Resources": {"CPU": node.cpus, "memory": node.memory},
        }
        for node in left
    ]
    handed, cancelled = list[int](), list[Any]()

    def options(**given: Any) -> Any:
        return SimpleNamespace(remote=lambda *args: handed.append(given["memory"]) or len(handed))

    silent = SimpleNamespace(
        wait=lambda refs, **_: ([], refs),
        nodes=lambda: records,
        cancel=lambda ref, force: cancelled.append(ref),
    )
    task = SimpleNamespace(options=options)
    cluster = Cluster(silent, task, (PLAIN,), Request(4), "CPU")
    with pytest.raises(ExecutorError, match=r"no node is left .*'layers\.19\.w'; .*--resume"):
        next(cluster.run(Names(), batches(20)))
    assert len(handed) == cluster.window == 4 and cancelled == [1, 2, 3, 4]
    assert 0 < min(handed) <= max(handed) < PLAIN.memory


# what of a job travels


def assignment_of(model: Any, **settings: Any) -> Assignment:
    chosen = replace(SETTINGS, **settings)
    base = anywhere(open_model(chosen.base)) if chosen.base else None
    return Assignment(anywhere(open_model(model)), base, chosen, farms_recipe(chosen))


def travelled(assignment: Assignment) -> Assignment:
    there: Assignment = pickle.loads(pickle.dumps(assignment.sent()))
    return there.arrived()


def figures(assignment: Assignment, matrices: Any) -> list[Any]:
    with assignment.opened(matrices) as work_on:
        work = work_on("cpu")
        return [work(m, work.fetch(m))[1].row for m in matrices]


def test_references_travel_and_tensors_do_not(tmp_path: Path) -> None:
    """Whatever the size of the model: a batch of 64 matrices and the job are a few kilobytes."""
    tensors = {f"layers.{i}.mlp.up_proj.weight": gaussian(300, 200, seed=i) for i in range(70)}
    path = write_file(tmp_path / "model.safetensors", tensors)
    assignment = assignment_of(path)
    plan = make_plan(select_for(assignment.checkpoint, SETTINGS).matrices, None)
    assert max(len(batch.matrices) for batch in plan.batches) == 64
    sent = [assignment.sent(), *plan.batches]
    assert max(len(pickle.dumps(one)) for one in sent) < 16_000 < path.stat().st_size / 1000


def write_gguf(path: Path) -> None:
    """Six quantised matrices, which are decoded from codes wherever they are read."""
    gguf = pytest.importorskip("gguf", reason="pip install 'weightscope[gguf]'")
    writer, kind = gguf.GGUFWriter(path, "llama"), gguf.GGMLQuantizationType.Q8_0
    for i in range(6):
        codes = gguf.quants.quantize(gaussian(24, 64, seed=i).numpy(), kind)
        writer.add_tensor(f"blk.{i}.attn_q.weight", codes, raw_dtype=kind)
    for write in (writer.write_header_to_file, writer.write_kv_data_to_file):
        write()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("kind", ["one file", "shards", "pytorch", "gguf", "base"])
def test_what_arrives_gives_the_same_figures(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a process with another working folder, of a model that was named by a relative path."""
    tensors, settings = small_model(), dict[str, Any]()
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    path = Path("model")
    if kind == "one file":
        path = write_file(Path("model.safetensors"), tensors)
    elif kind == "pytorch":
        path = Path("model.pt")
        torch.save(tensors, path)
    elif kind == "gguf":
        path = Path("model.gguf")
        write_gguf(path)
    else:
        write_sharded(path, tensors, 2)
    if kind == "base":
        settings["base"] = "base.safetensors"
        write_file(Path("base.safetensors"), small_model(seed=1))
    assignment = assignment_of(path, **settings)
    from weightscope.bases import selection_of

    matrices = selection_of(assignment.checkpoint, assignment.base, assignment.settings).matrices
    expected = figures(assignment, matrices)
    monkeypatch.chdir(tmp_path / "there")
    assert len(matrices) > 5
    assert figures(travelled(assignment), matrices) == expected


def test_a_model_in_memory_does_not_travel(tmp_path: Path) -> None:
    """Which is said before a cluster is looked for, and before anything is written."""
    model = open_model(small_model())
    with pytest.raises(OptionError, match="in the memory of this process"):
        Assignment(model, None, SETTINGS, None).sent()
    with pytest.raises(OptionError, match="in the memory of this process"):
        weightscope.analyze(model, executor="ray", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_other_weights_under_the_same_path_are_refused(tmp_path: Path) -> None:
    path = write_file(tmp_path / "model.safetensors", small_model(blocks=1))
    assignment = assignment_of(path)
    path.touch()
    travelled(assignment)  # a copy may have another date
    write_file(path, small_model(blocks=2))
    with pytest.raises(CheckpointError, match="holds other weights here"):
        travelled(assignment)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        travelled(assignment)


def test_a_hub_model_is_read_by_whoever_needs_it() -> None:
    remote = Remote("org/name", "c0ffee", "stream", {"model.safetensors": 1000})
    checkpoint = Checkpoint("name", (), remote=remote)
    assignment = Assignment(checkpoint, None, SETTINGS, None)
    assert travelled(assignment).checkpoint.remote == remote
    whole_files = replace(checkpoint, remote=replace(remote, fetch="shard"))
    with pytest.raises(OptionError, match="--fetch shard"):
        Assignment(whole_files, None, SETTINGS, None).sent()
