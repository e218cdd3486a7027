"""Hub models through the command line and the real client, against a hub on loopback.

Each run is a process of its own; test_remote.py holds what can be seen from inside one process.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest
import torch
from checkpoints import (
    environment,
    gaussian,
    run_weightscope,
    small_model,
    weightscope_command,
    write_file,
    write_sharded,
)
from fake_hub import FakeHub, Fault, files_of

from weightscope.sources.stream import AHEAD, KEPT, PIECE

SHARDS = [f"model-{n:05d}-of-00003.safetensors" for n in (1, 2, 3)]
INDEX = "model.safetensors.index.json"
CONFIG = b'{"model_type": "toy"}'
TOKEN = "hf_secretsecretsecret"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with FakeHub() as running:
        yield running


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    """A sharded model as repositories have it: with other formats, subfolders and strays."""
    strays = ("consolidated.safetensors", "pytorch_model.bin", "model.gguf", "README.md")
    nested = ("unet/model.safetensors", "original/params.json", "onnx/model.onnx")
    return {
        **files_of(write_sharded(tmp_path / "source", small_model())),
        "config.json": CONFIG,
        **dict.fromkeys((*strays, *nested), b"not to be downloaded"),
    }


OPEN = """
import sys
from weightscope.errors import CheckpointError
from weightscope.sources import open_model
for text in sys.argv[1:]:
    try:
        found = open_model(text)
        print("opened:", found.revision, *(file.name for file in found.files))
    except CheckpointError as error:
        print("refused:", error)
"""


class Machine:
    """A machine with an empty cache that knows the hub's address."""

    def __init__(self, folder: Path, endpoint: str) -> None:
        """Make its home and its working folder."""
        self.home, self.work = folder / "home", folder / "work"
        self.work.mkdir(parents=True)
        self.env = environment(
            HF_ENDPOINT=endpoint,
            HF_HOME=str(self.home),
            HF_HUB_DISABLE_TELEMETRY="1",
            HF_HUB_DISABLE_XET="1",
            HF_HUB_ETAG_TIMEOUT="5",
            HF_HUB_DOWNLOAD_TIMEOUT="5",
            NO_PROXY="*",
        )
        for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
            self.env.pop(name, None)

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run the command line on it."""
        done = run_weightscope(*arguments, cwd=self.work, env=self.env | env)
        assert "Traceback" not in done.stderr
        return done

    def answers(self, *models: str, **env: str) -> list[str]:
        """What indexing each of these models gives: revision and files, or the refusal."""
        done = subprocess.run(
            [sys.executable, "-c", OPEN, *models],
            capture_output=True,
            text=True,
            cwd=self.work,
            env=self.env | env,
        )
        assert done.returncode == 0, done.stderr
        lines = done.stdout.splitlines()
        assert len(lines) == len(models)
        return lines

    def opened(self, model: str, **env: str) -> list[str]:
        """Names of the files of a model that can be indexed, after its revision."""
        [answer] = self.answers(model, **env)
        assert answer.startswith("opened: ")
        return answer.split()[1:]

    def refused(self, model: str, **env: str) -> str:
        """The sentence that says why a model cannot be indexed."""
        [answer] = self.answers(model, **env)
        assert answer.startswith("refused: ")
        return answer

    def analyze(self, model: str, *options: str, **env: str) -> str:
        """CSV of an analysis that keeps nothing."""
        wanted = ("--metrics", "stats", "--no-save", "--format", "csv")
        done = self.run("analyze", model, *wanted, *options, **env)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def cached(self) -> list[str]:
        """Paths of all snapshot files in its cache, sorted."""
        snapshots = self.home.glob("hub/models--*/snapshots/*")
        return sorted(
            path.relative_to(snapshot).as_posix()
            for snapshot in snapshots
            for path in snapshot.rglob("*")
            if not path.is_dir()
        )


@pytest.fixture
def machine(tmp_path: Path, hub: FakeHub) -> Machine:
    return Machine(tmp_path / "machine", hub.endpoint)


def test_a_model_is_downloaded_once_and_then_read_from_the_cache(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    hub.add("acme/toy", files)
    first = machine.analyze("acme/toy")
    assert first.count("\n") == 1 + 9
    assert hub.fetched() == sorted([*SHARDS, INDEX, "config.json"])
    hub.requests.clear()
    assert machine.analyze("acme/toy") == first
    assert not hub.fetched()
    assert all("/api/models/" in request for request in hub.requests)


def test_only_the_shards_of_the_index_and_json_files_are_downloaded(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    hub.add("acme/toy", files)
    machine.analyze("acme/toy")
    assert machine.cached() == sorted([*SHARDS, INDEX, "config.json"])


def test_without_an_index_every_safetensors_file_of_the_root_is_downloaded(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    single = write_file(machine.work / "x", small_model()).read_bytes()
    other = write_file(machine.work / "y", {"other": small_model().popitem()[1]}).read_bytes()
    wanted = {"config.json": CONFIG, "model.safetensors": single, "more.safetensors": other}
    others = {name: files[name] for name in ("pytorch_model.bin", "unet/model.safetensors")}
    hub.add("acme/toy", {**wanted, **others, "tokenizer.json": b"{}"})
    names = machine.opened("acme/toy")[1:]
    assert names == ["model.safetensors", "more.safetensors"]
    assert not machine.cached() or machine.cached() == ["config.json"]
    assert hub.fetched() == sorted(wanted)


def test_file_names_of_an_index_are_no_patterns(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    index = {"metadata": {}, "weight_map": {"w": "model[1-3]*.safetensors"}}
    content = files[SHARDS[0]]
    hub.add(
        "acme/toy",
        {
            INDEX: json.dumps(index).encode(),
            "model[1-3]*.safetensors": content,
            "model1.safetensors": content,
        },
    )
    machine.analyze("acme/toy")
    assert machine.cached() == sorted([INDEX, "model[1-3]*.safetensors"])


def test_the_cache_works_offline(hub: FakeHub, machine: Machine, files: dict[str, bytes]) -> None:
    hub.add("acme/toy", files)
    machine.analyze("acme/toy")
    first = machine.opened("acme/toy")
    hub.requests.clear()
    for switch in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        assert machine.opened("acme/toy", **{switch: "1"}) == first
    assert not hub.requests
    # nor does a hub that is down stand in the way
    assert machine.opened("acme/toy", HF_ENDPOINT="http://127.0.0.1:9") == first


def test_offline_without_a_cache_is_explained(hub: FakeHub, machine: Machine) -> None:
    for env in ({"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}):
        sentence = machine.refused("acme/toy", **env)
        assert "acme/toy" in sentence and "cache" in sentence and "offline" in sentence
    assert not hub.requests


def test_offline_with_half_a_cache_is_explained(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    hub.add("acme/toy", files)
    machine.analyze("acme/toy")
    [shard] = machine.home.glob(f"hub/models--acme--toy/snapshots/*/{SHARDS[1]}")
    shard.unlink()
    sentence = machine.refused("acme/toy", HF_HUB_OFFLINE="1")
    assert SHARDS[1] in sentence and "cache" in sentence and "offline" in sentence


def test_a_missing_or_private_repository_is_explained(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    hub.add("acme/hidden", files, hidden=True)
    for name in ("acme/nothing", "acme/hidden"):
        sentence = machine.refused(name)
        assert name in sentence and "private" in sentence and "hf auth login" in sentence


def test_a_gated_repository_is_explained_and_opens_with_a_token(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    hub.add("acme/gated", files, gated=True)
    sentence = machine.refused("acme/gated")
    assert "acme/gated" in sentence and "gated" in sentence and "conditions" in sentence
    done = machine.run("inspect", "acme/gated", "--debug", HF_TOKEN=TOKEN)
    assert done.returncode == 0
    assert TOKEN not in done.stdout + done.stderr


def test_a_bad_revision_is_explained(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    hub.add("acme/toy", files)
    sentence = machine.refused("acme/toy@v9")
    assert "acme/toy" in sentence and "'v9'" in sentence


def test_a_revision_may_be_a_branch_or_a_commit(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    repository = hub.add("acme/toy", files)
    single = write_file(machine.work / "x", {"w": small_model()["model.embed_tokens.weight"]})
    repository.push({"model.safetensors": single.read_bytes()}, branch="small")
    commits = list(repository.commits)
    assert machine.opened("acme/toy") == [f"acme/toy@{commits[0]}", *SHARDS]
    for revision in ("small", commits[1]):
        small = machine.opened(f"acme/toy@{revision}")
        assert small == [f"acme/toy@{commits[1]}", "model.safetensors"]


def test_a_shard_that_the_repository_lacks_is_named(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    hub.add("acme/toy", {name: data for name, data in files.items() if name != SHARDS[1]})
    assert SHARDS[1] in machine.refused("acme/toy")


def test_a_repository_without_weights_is_explained(hub: FakeHub, machine: Machine) -> None:
    hub.add("acme/old", {"model.onnx": b"x", "config.json": CONFIG})
    assert "only 'model.onnx'" in machine.refused("acme/old")
    assert hub.fetched() == ["config.json"]


def test_an_index_on_the_hub_that_points_outside_is_refused(hub: FakeHub, machine: Machine) -> None:
    index = json.dumps({"weight_map": {"w": "../../../../secret.safetensors"}})
    hub.add("acme/evil", {INDEX: index.encode(), "model.safetensors": b""})
    assert "plain file name" in machine.refused("acme/evil")
    assert hub.fetched() == [INDEX]


def test_a_commit_between_two_requests_does_not_mix_two_versions(
    hub: FakeHub, machine: Machine, files: dict[str, bytes], tmp_path: Path
) -> None:
    other = files_of(write_sharded(tmp_path / "other", small_model(blocks=3), shards=2))
    repository = hub.add("acme/toy", files)
    commits = list(repository.commits)

    def push_after_the_index(request: str) -> None:
        if len(repository.commits) == 1 and request.startswith("GET") and INDEX in request:
            commits.append(repository.push({**other, "config.json": CONFIG}))

    hub.before = push_after_the_index
    revision, *found = machine.opened("acme/toy")
    assert len(commits) == 2
    used = {r.split("/resolve/")[1].split("/")[0] for r in hub.requests if "/resolve/" in r}
    assert used == {commits[0]} and revision == f"acme/toy@{commits[0]}" and found == SHARDS


def test_the_commit_is_recorded_and_tells_runs_apart(
    hub: FakeHub, machine: Machine, files: dict[str, bytes], tmp_path: Path
) -> None:
    def record(name: str) -> dict[str, object]:
        found = json.loads((machine.work / f"{name}.weightscope" / "run.json").read_text())
        source: dict[str, object] = found["source"]
        return source

    repository = hub.add("acme/toy", files)
    first = machine.run("analyze", "acme/toy", "--metrics", "norms", HF_TOKEN=TOKEN)
    assert first.returncode == 0 and first.stdout.count("\n") == 10
    assert record("toy")["revision"] == f"acme/toy@{repository.branches['main']}"
    # a cache that was thrown away and filled again holds the same weights
    shutil.rmtree(machine.home)
    again = machine.run("analyze", "acme/toy", "--metrics", "norms")
    assert again.stdout == first.stdout and "used again" in again.stderr
    # the same files under another commit are another version
    repository.push({**files, "README.md": b"changed"})
    assert machine.run("analyze", "acme/toy", "--metrics", "norms").stdout == first.stdout
    assert record("toy-2")["revision"] == f"acme/toy@{repository.branches['main']}"
    assert record("toy")["revision"] != record("toy-2")["revision"]
    for path in machine.work.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()


def test_a_local_path_comes_before_the_hub(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    hub.add("acme/toy", files)
    write_file(
        machine.work / "acme" / "toy" / "model.safetensors", {"w": small_model().popitem()[1]}
    )
    assert machine.opened("acme/toy") == ["model.safetensors"]
    assert not hub.requests


def test_what_looks_like_a_path_never_goes_to_the_network(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    for name in ("acme/toy", "b/c", "acme/toy.safetensors", "acme/model.bin", "acme/toy.gguf"):
        hub.add(name, files)
    texts = [
        "./acme/toy",
        "../acme/toy",
        str(machine.work / "acme" / "toy"),
        "/acme/toy",
        "~/acme/toy",
        "acme/toy/",
        "acme//toy",
        "a/b/c",
        "acme/toy.safetensors",
        "acme/model.safetensors.index.json",
        "acme/model.bin",
        "acme/toy.gguf",
        "acme/toy.pt",
        "acme/toy.pth",
        "acme/toy.ckpt",
        "acme/toy.weightscope",
        "acme/..",
        "acme/.",
        "../toy",
        ".hidden/toy",
        "acme\\toy",
        "toy",
        "acme/to y",
        "https://127.0.0.1/acme/toy",
        "",
    ]
    assert all(answer.startswith("refused: ") for answer in machine.answers(*texts))
    assert not hub.requests


def test_quiet_is_quiet_while_downloading(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    hub.add("acme/toy", files)
    done = machine.run("inspect", "acme/toy", "--quiet")
    assert done.returncode == 0 and done.stderr == ""


def test_the_command_line_keeps_the_hub_off_standard_output(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    hub.add("acme/toy", files)
    done = machine.run("inspect", "acme/toy", "--format", "json")
    assert done.returncode == 0 and json.loads(done.stdout)
    assert f"acme/toy at commit {hub.repositories['acme/toy'].branches['main']}" in done.stderr
    done = machine.run("inspect", "acme/nothing")
    assert done.returncode == 1 and not done.stdout
    assert done.stderr.startswith("Error: acme/nothing: ") and done.stderr.count("\n") == 1


# --- ways to read ------------------------------------------------------------------------------


def test_every_way_prints_what_the_folder_prints(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    local = write_sharded(machine.work / "toy", small_model())
    (local / "config.json").write_bytes(CONFIG)
    hub.add("acme/toy", files)
    near = machine.analyze(str(local))
    for way in ("stream", "shard", "auto"):
        assert machine.analyze("acme/toy", "--fetch", way) == near
        weights = [name for name in machine.cached() if name.endswith(".safetensors")]
        assert weights == (SHARDS if way == "auto" else [])


def test_pickles_come_whole_through_a_folder_that_is_gone_at_the_end(
    hub: FakeHub, machine: Machine
) -> None:
    temporary = machine.work / "temporary"
    temporary.mkdir()
    torch.save(small_model(), machine.work / "toy.bin")
    hub.add("acme/old", {"pytorch_model.bin": (machine.work / "toy.bin").read_bytes()})
    near = machine.analyze("toy.bin")
    assert machine.analyze("acme/old", "--fetch", "shard", TMPDIR=str(temporary)) == near
    assert not list(temporary.iterdir()) and machine.cached() == []
    done = machine.run("analyze", "acme/old", "--fetch", "stream")
    assert done.returncode == 2 and "shard or cache" in done.stderr


def test_inspecting_downloads_nothing_but_headers(hub: FakeHub, machine: Machine) -> None:
    tensors = {f"layers.{i}.weight": gaussian(512, 512, seed=i) for i in range(8)}
    content = write_file(machine.work / "x", tensors).read_bytes()
    hub.add("acme/big", {"model.safetensors": content})
    done = machine.run("inspect", "acme/big", "--format", "json")
    assert done.returncode == 0 and json.loads(done.stdout)["matrices"] == 8
    assert hub.bytes_sent(".safetensors") <= 65536 < len(content) // 100


def test_a_run_that_the_network_ended_goes_on_later_and_another_way(
    hub: FakeHub, machine: Machine
) -> None:
    many = write_sharded(machine.work / "many", small_model(blocks=50))
    hub.add("acme/many", files_of(many))
    options = ("--metrics", "norms", "--threads", "1", "--format", "csv")
    whole = machine.run("analyze", "acme/many", "--no-save", "--fetch", "stream", *options)
    hub.faults = [Fault(f"storage GET .*{SHARDS[2]}", times=-1, after=1, status=416)]
    done = machine.run("analyze", "acme/many", "--fetch", "shard", "--out", "run", *options)
    assert done.returncode == 1 and not done.stdout
    assert SHARDS[2] in done.stderr and "--resume" in done.stderr
    hub.faults = []
    hub.requests.clear()
    done = machine.run(
        "analyze", "acme/many", "--fetch", "stream", "--out", "run", "--resume", *options
    )
    assert done.returncode == 0 and done.stdout == whole.stdout
    # what was finished is not read again: of the first shard only its header
    reads = [request for request in hub.requests if "stored" in request]
    assert sum(SHARDS[0] in request for request in reads) == 1
    assert sum(SHARDS[2] in request for request in reads) == 2


@pytest.mark.parametrize("way", ["stream", "shard", "cache"])
def test_an_interrupt_ends_the_program_at_once(
    hub: FakeHub, machine: Machine, files: dict[str, bytes], way: str
) -> None:
    hub.add("acme/toy", files)
    temporary = machine.work / "temporary"
    temporary.mkdir()
    waiting, go_on = Event(), Event()

    def stall(request: str) -> None:
        if sum("/stored/" in one for one in hub.requests) > len(SHARDS):  # the headers are there
            waiting.set()
            go_on.wait(60)

    hub.before = stall
    process = subprocess.Popen(
        weightscope_command("analyze", "acme/toy", "--fetch", way, "--out", "run"),
        cwd=machine.work,
        env=machine.env | {"TMPDIR": str(temporary), "HF_HUB_DOWNLOAD_TIMEOUT": "60"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert waiting.wait(60)
    process.send_signal(signal.SIGINT)
    try:
        _, error = process.communicate(timeout=30)
    finally:
        go_on.set()
        process.kill()
    assert process.returncode == 130 and "Traceback" not in error
    assert not list(temporary.iterdir())


def test_revision_and_token_are_options(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    repository = hub.add("acme/gated", files, gated=True)
    single = write_file(machine.work / "x", {"w": small_model()["model.embed_tokens.weight"]})
    commit = repository.push({"model.safetensors": single.read_bytes()}, branch="v2")
    options = ("--revision", "v2", "--token", TOKEN)
    done = machine.run("inspect", "acme/gated", *options, "--format", "json")
    assert done.returncode == 0 and json.loads(done.stdout)["matrices"] == 1
    done = machine.run("analyze", "acme/gated", *options, "--metrics", "stats", "--debug")
    assert done.returncode == 0 and commit in done.stderr
    for path in machine.work.rglob("*"):
        assert path.is_dir() or TOKEN.encode() not in path.read_bytes()
    assert TOKEN not in done.stdout + done.stderr
    assert not any(one.token for one in hub.log if one.host == "storage")
    for wrong in (("--revision", "v3"), ("--token", "a\nb"), ("--fetch", "rsync")):
        done = machine.run("analyze", "acme/gated@v2", *wrong)
        assert done.returncode == 2 and wrong[0] in done.stderr


def test_every_verb_that_takes_models_reaches_the_hub_alike(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    """Revision, token and way of reading: compare, track, farms, and the base of an analysis."""
    repository = hub.add("acme/gated", {}, gated=True)
    steps = ("step-10", "step-20")
    commits = [
        repository.push(
            {
                "model.safetensors": write_file(
                    machine.work / step, small_model(seed=i)
                ).read_bytes()
            },
            branch=step,
        )
        for i, step in enumerate(steps)
    ]
    options = ("--token", TOKEN, "--fetch", "stream")
    both = [f"acme/gated@{step}" for step in steps]
    one = ("acme/gated", "--revision", "step-20", *options)
    commands: dict[str, tuple[str, ...]] = {
        "compare": (both[0], *one, "--no-save", "--weights"),
        "track": (*both, *options, "--no-save", "--metric", "spectral_norm"),
        "farms": (*one, "--windows", "16", "--grids", "1", "--include", "*.0.mlp.*"),
        "analyze": (*one, "--base", both[0], "--metrics", "stats", "--no-save"),
    }
    for verb, arguments in commands.items():
        done = machine.run(verb, *arguments, "--format", "csv")
        assert done.returncode == 0 and done.stdout.count("\n") > 4, done.stderr
        expected = commits[1:] if verb == "farms" else commits
        assert all(commit in done.stderr for commit in expected)
        assert TOKEN not in done.stdout + done.stderr
    assert not [path for path in machine.cached() if path.endswith(".safetensors")]
    assert not any(one.token for one in hub.log if one.host == "storage")
    for verb, *models in (("compare", *both), ("track", *both), ("farms", "x.safetensors")):
        done = machine.run(verb, *models, "--revision", "v9")
        assert done.returncode == 2 and "--revision v9" in done.stderr


def test_a_proxy_is_used_for_everything(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    """Nothing resolves the hub's name here: only the proxy can reach it."""
    hub.stores = False
    hub.add("acme/toy", files)
    proxy = {"HF_ENDPOINT": "http://hub.invalid", "HTTP_PROXY": hub.endpoint, "NO_PROXY": ""}
    for way in ("stream", "cache"):
        assert machine.analyze("acme/toy", "--fetch", way, **proxy).count("\n") == 10
    assert hub.fetched() == sorted([*SHARDS, INDEX, "config.json"])


READ = """
from functools import partial
from weightscope.checkpoint import Access
from weightscope.formats.safetensors import read_tensor, span
from weightscope.sources import open_model
from weightscope.sources.remote import fetching
found = open_model("acme/big", Access("stream"))
refs = sorted(found.tensors, key=lambda ref: ref.start)
read_tensor(refs[0], None, lambda ref, start, view: None)
def peak():  # of this process alone; what getrusage tells begins with that of the parent
    status = dict(line.split(":") for line in open("/proc/self/status"))
    return 1024 * int(status["VmHWM"].split()[0])

before = peak()
with fetching(found.remote, [(ref.file, *span(ref)) for ref in refs]) as fill:
    total = sum(read_tensor(ref, None, fill).nbytes for ref in refs)
print(total, peak() - before)
"""


def test_streaming_takes_bounded_memory(hub: FakeHub, machine: Machine) -> None:
    tensors = {f"layers.{i}.weight": torch.zeros(1024, 1024) for i in range(80)}
    hub.add("acme/big", {"model.safetensors": write_file(machine.work / "x", tensors).read_bytes()})
    done = subprocess.run(
        [sys.executable, "-c", READ],
        capture_output=True,
        text=True,
        cwd=machine.work,
        env=machine.env,
    )
    assert done.returncode == 0, done.stderr
    total, grown = map(int, done.stdout.split())
    assert total == 80 << 22
    assert grown < (AHEAD + KEPT) * PIECE + (32 << 20) < total
