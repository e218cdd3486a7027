"""Hub models through the real client, against a hub on loopback; each run in its own process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from checkpoints import environment, run_weightscope, small_model, write_file, write_sharded
from fake_hub import FakeHub, files_of

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
    first = machine.opened("acme/toy")
    assert hub.fetched() == sorted([*SHARDS, INDEX, "config.json"])
    assert first[1:] == SHARDS
    hub.requests.clear()
    assert machine.opened("acme/toy") == first
    assert not hub.fetched()
    assert all("/api/models/" in request for request in hub.requests)


def test_only_the_shards_of_the_index_and_json_files_are_downloaded(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    hub.add("acme/toy", files)
    machine.opened("acme/toy")
    assert machine.cached() == sorted([*SHARDS, INDEX, "config.json"])


def test_without_an_index_every_safetensors_file_of_the_root_is_downloaded(
    hub: FakeHub, machine: Machine, files: dict[str, bytes]
) -> None:
    single = write_file(machine.work / "x", small_model()).read_bytes()
    wanted = {"config.json": CONFIG, "model.safetensors": single, "tokenizer.json": b"{}"}
    others = {name: files[name] for name in ("pytorch_model.bin", "unet/model.safetensors")}
    hub.add("acme/toy", {**wanted, **others})
    machine.opened("acme/toy")
    assert hub.fetched() == machine.cached() == list(wanted)


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
    machine.opened("acme/toy")
    assert machine.cached() == sorted([INDEX, "model[1-3]*.safetensors"])


def test_the_cache_works_offline(hub: FakeHub, machine: Machine, files: dict[str, bytes]) -> None:
    hub.add("acme/toy", files)
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
    machine.opened("acme/toy")
    [shard] = machine.home.glob(f"hub/models--acme--toy/snapshots/*/{SHARDS[1]}")
    shard.unlink()
    sentence = machine.refused("acme/toy", HF_HUB_OFFLINE="1")
    assert "acme/toy" in sentence or SHARDS[1] in sentence


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


def test_a_repository_without_safetensors_is_explained(hub: FakeHub, machine: Machine) -> None:
    hub.add("acme/old", {"pytorch_model.bin": b"\x80\x02}.", "config.json": CONFIG})
    assert "safetensors" in machine.refused("acme/old")
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
