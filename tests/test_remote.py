"""Models read over HTTP from a hub on loopback, by the real client: what is asked for, and faults.

The hub answers on one host and sends the bytes of large files from another, as the real one does.
"""

from __future__ import annotations

import json
import mmap
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from checkpoints import (
    gaussian,
    hostile_files,
    malicious_pickles,
    raw_safetensors,
    small_model,
    write_file,
    write_in_order,
    write_sharded,
)
from fake_hub import FakeHub, Fault, Repository, Request, files_of
from hypothesis import given
from hypothesis import strategies as st

import weightscope
from weightscope import ties
from weightscope.checkpoint import Access, Checkpoint
from weightscope.errors import CheckpointError, OptionError
from weightscope.formats.safetensors import fill_from_disk, read_header, read_tensor, span
from weightscope.sources import background, open_model, ranges, remote, stream
from weightscope.sources import hub as hub_source
from weightscope.sources.client import asked_wait
from weightscope.sources.headers import FIRST_READ
from weightscope.sources.ranges import TRIES
from weightscope.sources.remote import fetching
from weightscope.sources.stream import Span, plan_pieces
from weightscope.tensor import TensorRef

INDEX = "model.safetensors.index.json"
ONE = "model.safetensors"
TOKEN = "hf_secretsecretsecret"
WAYS = ("stream", "shard", "cache")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub that this process's client takes for the real one, with an empty cache and no login."""
    import huggingface_hub
    from huggingface_hub import constants

    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "temporary").mkdir()
    with FakeHub() as running:
        template = running.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        huggingface_hub.close_session()
        yield running
        huggingface_hub.close_session()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No pause between attempts, but for those that a server asks for."""
    monkeypatch.setattr(ranges, "backoff", lambda failures: 0.0)


def model_of(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    return {
        f"layers.{i}.weight": gaussian(*shape, seed=i, dtype=dtype)
        for i, shape in enumerate(shapes)
    }


def offer(
    hub: FakeHub, folder: Path, tensors: dict[str, torch.Tensor], shards: int = 0
) -> Repository:
    """Push a model as ``acme/toy``: one file, or shards with their index."""
    if shards:
        write_sharded(folder, tensors, shards=shards)
    else:
        write_file(folder / ONE, tensors)
    (folder / "config.json").write_text('{"model_type": "toy"}')
    return hub.add("acme/toy", files_of(folder))


def read_all(
    checkpoint: Checkpoint, names: Sequence[str] | None = None, threads: int = 1
) -> dict[str, torch.Tensor]:
    """Tensors in file order, announced beforehand, as an analysis reads them."""
    refs = [ref for ref in in_file_order(checkpoint) if names is None or ref.name in names]
    if checkpoint.remote is None:
        return {ref.name: read_tensor(ref) for ref in refs}
    expected = [(ref.file, *span(ref)) for ref in refs]
    with fetching(checkpoint.remote, expected) as fill, ThreadPoolExecutor(threads) as pool:
        found = pool.map(partial(read_tensor, fill=fill), refs)
        return dict(zip([ref.name for ref in refs], found, strict=True))


def in_file_order(checkpoint: Checkpoint) -> list[TensorRef]:
    return sorted(checkpoint.tensors, key=lambda ref: (ref.file, ref.start))


def same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> bool:
    """Whether these are the same tensors bit for bit."""
    assert set(found) == set(expected)
    return all(
        found[name].dtype == tensor.dtype and torch.equal(found[name], tensor)
        for name, tensor in expected.items()
    )


def refused(model: str, access: Access | None = None) -> str:
    with pytest.raises(CheckpointError) as caught:
        open_model(model, access)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000
    return message


def failed(checkpoint: Checkpoint) -> str:
    """The sentence that reading it ends in."""
    with pytest.raises(CheckpointError) as caught:
        read_all(checkpoint)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 1000 and TOKEN not in message
    return message


def of_bytes(hub: FakeHub) -> list[Request]:
    """Requests for bytes of stored files."""
    return [one for one in hub.log if one.host == "storage" and one.method == "GET"]


def wait_for_threads() -> None:
    """Until everything in the background has come to its end."""
    for thread in threading.enumerate():
        if thread.name.startswith("weightscope-"):
            thread.join(20)
            assert not thread.is_alive()


def temporary_files(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "temporary").rglob("*") if path.is_file())


# --- what a model may be called ----------------------------------------------------------------


def test_every_way_to_name_a_revision_opens_its_commit(hub: FakeHub, tmp_path: Path) -> None:
    repository = offer(hub, tmp_path / "a", model_of((8, 8)))
    first = repository.branches["main"]
    changed = {**files_of(tmp_path / "a"), "README.md": b"changed"}
    other = {repository.push(changed, branch) for branch in ("v2", "refs/pr/1", "feature/x")}
    assert len(other) == 3
    page = f"{hub.endpoint}/acme/toy"
    named = {
        "": ["acme/toy", "hf://acme/toy", "hf://models/acme/toy", page, f"{page}/tree/main"],
        "v2": ["acme/toy@v2", "hf://acme/toy@v2", f"{page}/tree/v2"],
        "refs/pr/1": [
            "acme/toy@refs/pr/1",
            "hf://acme/toy@refs/pr/1",
            f"{page}/tree/refs%2Fpr%2F1",
        ],
        "feature/x": ["acme/toy@feature/x", "hf://acme/toy@feature%2Fx"],
        first: [f"acme/toy@{first}"],
    }
    for revision, texts in named.items():
        commit = repository.branches.get(revision or "main", revision)
        accesses = [(text, Access()) for text in texts]
        if revision:
            accesses += [(text, Access(revision=revision)) for text in named[""][:4]]
        for text, access in accesses:
            checkpoint = open_model(text, access)
            assert checkpoint.revision == f"acme/toy@{commit}", text
            assert checkpoint.name == "toy" and checkpoint.config == {"model_type": "toy"}


def test_addresses_of_the_public_site_lead_to_the_hub_in_use(hub: FakeHub, tmp_path: Path) -> None:
    offer(hub, tmp_path / "a", model_of((8, 8)))
    for site in ("https://huggingface.co", "https://hf.co", "HTTPS://huggingface.co"):
        assert open_model(f"{site}/acme/toy/tree/main").revision.startswith("acme/toy@")


@pytest.mark.parametrize(
    "text",
    [
        "https://example.com/acme/toy",
        "http://127.0.0.1:1/acme/toy",
        "http://localhost/acme/toy",
        "https://huggingface.co.example.com/acme/toy",
        "https://huggingface.co/acme",
        "https://huggingface.co/acme/toy/discussions/1",
        "https://huggingface.co:99999/acme/toy",
        "https://[::1/acme/toy",
        "hf://toy",
        "hf://",
        "hf://datasets/acme/toy",
        "https://huggingface.co/spaces/acme/toy",
        "hf://acme/toy/../../etc",
        "hf://acme/toy@../../x",
        "acme/toy@../../x",
        "acme/toy@a//b",
        "hf://acme/toy@",
        "hf://acme/to y",
        "hf://-acme/toy",
    ],
)
def test_other_addresses_are_refused_without_a_request(
    hub: FakeHub, tmp_path: Path, text: str
) -> None:
    offer(hub, tmp_path / "a", model_of((8, 8)))
    refused(text)
    assert not hub.requests


def test_one_file_or_folder_of_a_repository_can_be_named(hub: FakeHub, tmp_path: Path) -> None:
    models = {name: model_of((8, 8 + i)) for i, name in enumerate(("unet", "text_encoder", "two"))}
    for name, tensors in models.items():
        write_file(tmp_path / "a" / name / "weights.safetensors", tensors)
        (tmp_path / "a" / name / "config.json").write_text(json.dumps({"model_type": name}))
    write_sharded(tmp_path / "a" / "two" / "deep", model_of((4, 4), (5, 5)), shards=2)
    commit = hub.add("acme/toy", files_of(tmp_path / "a")).branches["main"]
    page = f"{hub.endpoint}/acme/toy"
    for text, name, tensors in [
        ("hf://acme/toy/unet", "toy-unet", models["unet"]),
        (f"{page}/tree/main/text_encoder", "toy-text_encoder", models["text_encoder"]),
        (f"{page}/blob/{commit}/two/weights.safetensors", "toy-weights", models["two"]),
        (f"hf://acme/toy@{commit}/two/deep", "toy-deep", model_of((4, 4), (5, 5))),
        (f"hf://acme/toy/two/deep/{INDEX}", "toy", model_of((4, 4), (5, 5))),
    ]:
        checkpoint = open_model(text, Access("stream"))
        assert checkpoint.name == name and same(read_all(checkpoint), tensors)
        assert checkpoint.revision == f"acme/toy@{commit}"
    assert open_model("hf://acme/toy/unet").config == {"model_type": "unet"}
    assert "'text_encoder'" in refused("acme/toy") and "hf://acme/toy/" in refused("acme/toy")
    assert "no such file" in refused("hf://acme/toy/unet/other.safetensors")
    assert "no weights" in refused("hf://acme/toy/nothing")


def test_a_revision_may_be_named_once_and_only_for_the_hub(hub: FakeHub, tmp_path: Path) -> None:
    offer(hub, tmp_path / "a", model_of((8, 8)))
    for model in ("acme/toy@main", "hf://acme/toy@main", tmp_path / "a", str(tmp_path / "a")):
        with pytest.raises(OptionError, match="--revision v1"):
            open_model(model, Access(revision="v1"))
    assert not hub.requests


def test_an_address_means_the_hub_even_where_a_folder_has_that_name(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(hub, tmp_path / "a", model_of((8, 8)))
    for place in (tmp_path / "acme", tmp_path / "hf:" / "acme"):
        write_file(place / "toy" / "other.safetensors", model_of((4, 4)))
    monkeypatch.chdir(tmp_path)
    assert open_model("acme/toy").revision == ""
    assert open_model("hf://acme/toy").revision.startswith("acme/toy@")


def test_senseless_access_is_refused_without_repeating_a_token() -> None:
    with pytest.raises(OptionError, match="--fetch 'rsync'"):
        Access("rsync")  # type: ignore[arg-type]
    for token in ("", "hf_secret\nX-Evil: 1", "hf_sécret"):
        with pytest.raises(OptionError, match="--token") as caught:
            Access(token=token)
        assert "cret" not in str(caught.value)
    assert TOKEN not in repr(Access(token=TOKEN))


# --- what indexing costs -----------------------------------------------------------------------


@pytest.mark.parametrize("way", ["auto", *WAYS])
def test_indexing_reads_headers_only(hub: FakeHub, tmp_path: Path, way: str) -> None:
    offer(hub, tmp_path / "a", model_of(*[(512, 512)] * 6), shards=3)
    assert sum(path.stat().st_size for path in (tmp_path / "a").iterdir()) > 6 << 20
    checkpoint = open_model("acme/toy", Access(way))  # type: ignore[arg-type]
    assert len(checkpoint.tensors) == 6
    asked = of_bytes(hub)
    assert sorted(one.path.rpartition("/")[2] for one in asked) == sorted(
        path.name for path in (tmp_path / "a").glob("*.safetensors")
    )
    assert all(one.range == (0, FIRST_READ) for one in asked)
    assert hub.bytes_sent(".safetensors") < 4 * FIRST_READ
    # one request to the hub for each file, beside those for the commit, its files, and JSON
    assert sum(one.method == "HEAD" and ".safetensors" in one.path for one in hub.log) == 3 + 1


def test_the_index_is_the_same_as_from_disk(hub: FakeHub, tmp_path: Path) -> None:
    offer(hub, tmp_path / "toy", small_model(), shards=3)
    near, far = open_model(tmp_path / "toy"), open_model("acme/toy", Access("stream"))
    assert [(t.name, t.shape, t.dtype, t.start, t.stop) for t in near.tensors] == [
        (t.name, t.shape, t.dtype, t.start, t.stop) for t in far.tensors
    ]
    assert [(f.name, f.size, f.header_sha256) for f in near.files] == [
        (f.name, f.size, f.header_sha256) for f in far.files
    ]
    assert (near.name, near.config) == (far.name, far.config)
    assert all(file.modified_ns == 0 for file in far.files)


def test_a_header_longer_than_the_first_read_is_read_to_its_end_and_no_further(
    hub: FakeHub, tmp_path: Path
) -> None:
    tensors = {f"layers.{i}.a.rather.long.name.weight": gaussian(2, 3, seed=i) for i in range(2500)}
    repository = offer(hub, tmp_path / "a", tensors | {"big": gaussian(300, 300)})
    length = 8 + int.from_bytes(repository.commits[repository.branches["main"]][ONE][:8], "little")
    assert length > 3 * FIRST_READ
    checkpoint = open_model("acme/toy", Access("stream"))
    assert len(checkpoint.tensors) == 2501
    first, second = (one.range for one in of_bytes(hub))
    assert first == (0, FIRST_READ) and second == (FIRST_READ, length)


def test_tokenizers_and_other_formats_are_left_where_they_are(hub: FakeHub, tmp_path: Path) -> None:
    folder = tmp_path / "a"
    write_file(folder / ONE, model_of((8, 8)))
    for name in (
        "tokenizer.json",
        "vocab.json",
        "pytorch_model.bin",
        "model.gguf",
        "x/config.json",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"{}")
    (folder / "config.json").write_text('{"model_type": "toy"}')
    hub.add("acme/toy", files_of(folder))
    open_model("acme/toy", Access("stream"))
    assert hub.fetched() == ["config.json", ONE]


def test_indexing_again_asks_for_the_commit_and_headers_only(hub: FakeHub, tmp_path: Path) -> None:
    repository = offer(hub, tmp_path / "a", small_model(), shards=3)
    open_model("acme/toy", Access("stream"))
    hub.requests.clear()
    open_model("acme/toy", Access("stream"))
    assert [request for request in hub.requests if ".safetensors" not in request] == [
        "GET /api/models/acme/toy"
    ]
    hub.requests.clear()
    open_model(f"acme/toy@{repository.branches['main']}", Access("stream"))
    assert not [request for request in hub.requests if "/api/" in request]


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("threads", [1, 7])
def test_every_way_gives_the_tensors_bit_for_bit(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, threads: int
) -> None:
    monkeypatch.setattr(stream, "PIECE", 10_000)
    tensors = {
        f"{dtype}.{i}".removeprefix("torch."): gaussian(3 + 20 * i, 37, seed=i, dtype=dtype)
        for dtype in DTYPES
        for i in range(9)
    }
    offer(hub, tmp_path / "a", tensors | {"nothing": torch.zeros(0, 4)}, shards=4)
    checkpoint = open_model("acme/toy", Access(way))  # type: ignore[arg-type]
    assert checkpoint.remote is not None and checkpoint.remote.fetch == way
    found = read_all(checkpoint, threads=threads)
    assert same(found, tensors | {"nothing": torch.zeros(0, 4)})


@pytest.mark.parametrize("way", WAYS)
def test_every_way_gives_the_rows_of_the_folder(hub: FakeHub, tmp_path: Path, way: str) -> None:
    model = small_model(blocks=3) | {
        "experts.gate_up_proj": gaussian(3, 24, 16, seed=5),
        "conv1.weight": gaussian(16, 12, 3, 3, seed=6),
        "half.weight": gaussian(20, 24, seed=7, dtype=torch.bfloat16),
    }
    offer(hub, tmp_path / "a", model, shards=3)
    wanted = {"metrics": "alpha,norms,rank,stats", "threads": 2}
    near = weightscope.analyze(tmp_path / "a", **wanted)
    far = weightscope.analyze("acme/toy", fetch=way, **wanted)
    assert far.rows == near.rows and len(far.rows) > 15
    part = weightscope.analyze("acme/toy", fetch=way, include=("*experts*",), **wanted)
    assert part.rows == tuple(row for row in near.rows if "experts" in str(row["name"]))


@pytest.mark.parametrize("way", WAYS)
def test_reads_that_nobody_announced_work_too(hub: FakeHub, tmp_path: Path, way: str) -> None:
    tensors = model_of((3, 20), (8, 8), (4, 5, 6))
    offer(hub, tmp_path / "a", tensors)
    checkpoint = open_model("acme/toy", Access(way))  # type: ignore[arg-type]
    assert checkpoint.remote is not None
    with fetching(checkpoint.remote, []) as fill:
        for _ in range(2):
            for ref in checkpoint.tensors:
                assert torch.equal(read_tensor(ref, None, fill), tensors[ref.name])
                for part in range(ref.shape[0]):
                    assert torch.equal(read_tensor(ref, part, fill), tensors[ref.name][part])


def test_neighbours_come_in_one_request_and_nothing_comes_twice(
    hub: FakeHub, tmp_path: Path
) -> None:
    offer(hub, tmp_path / "a", model_of(*[(16, 16)] * 300), shards=2)
    checkpoint = open_model("acme/toy", Access("stream"))
    before = len(of_bytes(hub))
    read_all(checkpoint)
    asked = of_bytes(hub)[before:]
    sizes = [path.stat().st_size for path in sorted((tmp_path / "a").glob("*.safetensors"))]
    assert len(asked) == 2
    assert sum(one.sent for one in asked) == 300 * 16 * 16 * 4 < sum(sizes)


def test_only_what_is_wanted_is_read(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "GAP", 1000)
    tensors = model_of(*[(64, 64)] * 20)
    names = list(tensors)
    write_in_order(tmp_path / "a" / ONE, tensors, names)
    hub.add("acme/toy", files_of(tmp_path / "a"))
    checkpoint = open_model("acme/toy", Access("stream"))
    before = len(of_bytes(hub))
    wanted = [names[i] for i in (2, 3, 9, 17)]
    assert same(read_all(checkpoint, wanted), {name: tensors[name] for name in wanted})
    asked = [one.range for one in of_bytes(hub)[before:]]
    places = {ref.name: ref for ref in checkpoint.tensors}
    assert sorted(asked, key=str) == sorted(
        [
            (places[names[2]].start, places[names[3]].stop),
            (places[names[9]].start, places[names[9]].stop),
            (places[names[17]].start, places[names[17]].stop),
        ],
        key=str,
    )


def test_reading_ahead_is_bounded(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PIECE", 20_000)
    offer(hub, tmp_path / "a", model_of(*[(100, 100)] * 60))
    checkpoint = open_model("acme/toy", Access("stream"))
    refs = in_file_order(checkpoint)
    assert checkpoint.remote is not None
    with fetching(checkpoint.remote, [(ref.file, *span(ref)) for ref in refs]) as fill:
        for count in (1, 10):
            before = len(of_bytes(hub))
            for ref in refs[:count]:
                read_tensor(ref, None, fill)
            quiet_since = time.monotonic()
            while time.monotonic() < quiet_since + 0.3:
                seen = len(hub.log)
                time.sleep(0.02)
                if len(hub.log) > seen:
                    quiet_since = time.monotonic()
            furthest = max(one.range[1] for one in of_bytes(hub)[before:] if one.range)
            assert furthest <= refs[count - 1].stop + stream.AHEAD * 20_000
    assert hub.bytes_sent(ONE) < 60 * 40_000  # and what was not asked for is never read


spans = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 400), st.integers(1, 90)), max_size=40
)


def small_pieces(patch: pytest.MonkeyPatch) -> None:
    for name, value in (("PIECE", 16), ("GAP", 5), ("AHEAD", 3), ("KEPT", 2)):
        patch.setattr(stream, name, value)


@given(spans)
def test_pieces_cover_every_span(expected: list[Span]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch)
        pieces, routes = plan_pieces(expected)
    assert all(0 < piece.stop - piece.start <= 16 for piece in pieces)
    for file, start, count in expected:
        mine = [pieces[index] for index in routes[file, start, count]]
        assert all(piece.file == file for piece in mine)
        assert mine[0].start <= start < mine[0].stop
        assert mine[-1].start < start + count <= mine[-1].stop
        assert all(a.stop == b.start for a, b in pairwise(mine))


@given(spans)
def test_pieces_in_order_overlap_nowhere_and_span_no_wide_gap(expected: list[Span]) -> None:
    in_order = sorted(set(expected))
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch)
        pieces, _ = plan_pieces(in_order)
    asked = [(piece.file, at) for piece in pieces for at in range(piece.start, piece.stop)]
    wanted = {(file, at) for file, start, count in in_order for at in range(start, start + count)}
    assert len(asked) == len(set(asked))
    extra = set(asked) - wanted
    assert not any({(file, at + k) for k in range(6)} <= extra for file, at in extra)


CONTENT = {file: bytes((i * 7 + ord(file)) % 251 for i in range(500)) for file in "ab"}


class Disk(ranges.Ranges):
    """Ranges of bytes that are here."""

    def __init__(self) -> None:
        super().__init__("a/b", "c")

    def fill(self, path: str, start: int, view: memoryview) -> None:
        view[:] = CONTENT[path][start : start + len(view)]


@given(spans, st.randoms(use_true_random=False))
def test_a_stream_hands_out_the_right_bytes_in_any_order(
    expected: list[Span], random: object
) -> None:
    order = list(expected)
    random.shuffle(order)  # type: ignore[attr-defined]
    with pytest.MonkeyPatch.context() as patch:
        small_pieces(patch)
        found = stream.Stream(Disk(), expected)
        try:
            for file, start, count in order + order[:3]:
                view = bytearray(count)
                found.fill(file, start, memoryview(view))
                assert view == CONTENT[file][start : start + count]
        finally:
            found.close()


def test_what_is_passed_over_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    alive: set[int] = set()

    class Counted(mmap.mmap):
        """Memory that is counted."""

        def __init__(self, *_: object) -> None:
            alive.add(id(self))

        def __del__(self) -> None:
            alive.discard(id(self))

    monkeypatch.setattr(stream, "mmap", Counted)
    small_pieces(monkeypatch)
    expected = [("a", 16 * k, 16) for k in range(30)]
    found = stream.Stream(Disk(), expected)
    most = 0
    for name, start, count in expected[::3] + expected[1::3]:
        found.fill(name, start, memoryview(bytearray(count)))
        most = max(most, len(alive))
    assert stream.AHEAD <= most <= stream.AHEAD + stream.KEPT + 1
    for name, start, count in expected[2::3]:
        found.fill(name, start, memoryview(bytearray(count)))
    assert not alive
    found.close()


def test_leaving_ends_the_requests(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PIECE", 20_000)
    offer(hub, tmp_path / "a", model_of(*[(100, 100)] * 60))
    checkpoint = open_model("acme/toy", Access("stream"))
    assert checkpoint.remote is not None
    refs = in_file_order(checkpoint)
    with fetching(checkpoint.remote, [(ref.file, *span(ref)) for ref in refs]) as fill:
        read_tensor(refs[0], None, fill)
    wait_for_threads()
    seen = len(hub.log)
    time.sleep(0.1)
    assert len(hub.log) == seen < 60


@pytest.mark.parametrize("way", ["stream", "shard"])
@pytest.mark.parametrize("trouble", ["a limit", "silence"])
def test_leaving_ends_every_wait(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, trouble: str
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 60)
    checkpoint, _ = big(hub, tmp_path, way)
    asked, go_on = threading.Event(), threading.Event()

    def answer(request: str) -> None:
        if "/stored/" in request:
            asked.set()
            go_on.wait(60 if trouble == "silence" else 0)

    hub.before = answer
    hub.faults = [Fault("storage GET", times=-1, status=429, headers={"Retry-After": "600"})]
    assert checkpoint.remote is not None
    with fetching(checkpoint.remote, [(r.file, *span(r)) for r in checkpoint.tensors]) as fill:
        reader = background.start(partial(read_tensor, checkpoint.tensors[0], None, fill))
        assert asked.wait(30)
    with pytest.raises(CheckpointError, match="stopped"):
        reader.result(20)
    go_on.set()
    wait_for_threads()


# --- files on the way ----------------------------------------------------------------------------


def test_shards_pass_through_a_temporary_folder_one_by_one(hub: FakeHub, tmp_path: Path) -> None:
    tensors = model_of(*[(40, 40)] * 12)
    offer(hub, tmp_path / "a", tensors, shards=6)
    checkpoint = open_model("acme/toy", Access("shard"))
    assert checkpoint.remote is not None
    refs = in_file_order(checkpoint)
    most = 0
    with fetching(checkpoint.remote, [(ref.file, *span(ref)) for ref in refs]) as fill:
        for ref in refs:
            assert torch.equal(read_tensor(ref, None, fill), tensors[ref.name])
            there = temporary_files(tmp_path)
            most = max(most, len(there))
            position = sorted({r.file for r in refs}).index(ref.file)
            assert all(int(name[6:11]) in {position + 1, position + 2} for name in there)
    assert most == 2
    assert not list((tmp_path / "temporary").iterdir())
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    fetched = [one.path for one in of_bytes(hub) if one.range and one.range[1] > 65536]
    assert len(fetched) == len(set(fetched)), "each shard comes once"


def test_the_temporary_folder_is_deleted_after_an_error_too(
    hub: FakeHub, tmp_path: Path, quick: None
) -> None:
    offer(hub, tmp_path / "a", model_of(*[(200, 200)] * 4), shards=4)
    checkpoint = open_model("acme/toy", Access("shard"))
    hub.faults = [Fault("storage GET .*00003-of", times=-1, cut=1000)]
    message = failed(checkpoint)
    assert "model-00003-of-00004.safetensors" in message and "--resume" in message
    assert not list((tmp_path / "temporary").iterdir())


def test_a_shard_that_does_not_fit_is_refused_before_it_is_fetched(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(hub, tmp_path / "a", model_of((100, 100)))
    checkpoint = open_model("acme/toy", Access("shard"))
    usage = remote.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    before = len(of_bytes(hub))
    message = failed(checkpoint)
    assert "TMPDIR" in message and "1000 B" in message and len(of_bytes(hub)) == before


def test_without_room_for_the_next_shard_it_is_not_fetched_ahead(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = model_of(*[(40, 40)] * 8)
    offer(hub, tmp_path / "a", tensors, shards=4)
    size = (tmp_path / "a" / "model-00001-of-00004.safetensors").stat().st_size
    usage = remote.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(remote.shutil, "disk_usage", lambda path: usage._replace(free=2 * size))
    checkpoint = open_model("acme/toy", Access("shard"))
    assert checkpoint.remote is not None
    refs = in_file_order(checkpoint)
    with fetching(checkpoint.remote, [(ref.file, *span(ref)) for ref in refs]) as fill:
        for ref in refs:
            assert torch.equal(read_tensor(ref, None, fill), tensors[ref.name])
            assert len(temporary_files(tmp_path)) <= 1


def test_what_went_into_the_cache_is_read_from_there_ever_after(
    hub: FakeHub, tmp_path: Path
) -> None:
    tensors = small_model()
    offer(hub, tmp_path / "a", tensors, shards=3)
    wanted = {name: t for name, t in tensors.items() if t.is_floating_point()}
    assert same(read_all(open_model("acme/toy", Access("cache")), list(wanted)), wanted)
    assert len(list((tmp_path / "cache").glob("*/snapshots/*/*.safetensors"))) == 3
    for way in ("auto", *WAYS):
        hub.requests.clear()
        checkpoint = open_model("acme/toy", Access(way))  # type: ignore[arg-type]
        assert checkpoint.remote is None and "cache" in checkpoint.notes[0]
        assert same(read_all(checkpoint, list(wanted)), wanted)
        assert hub.requests == ["GET /api/models/acme/toy"]


@pytest.mark.parametrize("way", WAYS)
def test_files_that_the_cache_holds_are_not_fetched(hub: FakeHub, tmp_path: Path, way: str) -> None:
    from huggingface_hub import hf_hub_download

    tensors = model_of(*[(60, 60)] * 6)
    offer(hub, tmp_path / "a", tensors, shards=3)
    hf_hub_download("acme/toy", "model-00002-of-00003.safetensors")
    hub.log.clear()
    checkpoint = open_model("acme/toy", Access(way))  # type: ignore[arg-type]
    assert all(ref.file.startswith("hf://acme/toy@") for ref in checkpoint.tensors)
    assert same(read_all(checkpoint), tensors)
    assert {one.path[-22:-12] for one in of_bytes(hub)} == {"1-of-00003", "3-of-00003"}


def test_the_way_follows_size_and_room(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def way() -> str:
        checkpoint = open_model("acme/toy")
        assert checkpoint.remote is not None
        return checkpoint.remote.fetch

    offer(hub, tmp_path / "a", model_of((100, 100)))
    size = (tmp_path / "a" / ONE).stat().st_size
    assert way() == "cache"
    monkeypatch.setattr(hub_source, "CACHE_AT_MOST", size - 1)
    assert way() == "stream"
    monkeypatch.setattr(hub_source, "CACHE_AT_MOST", size)
    assert way() == "cache"
    usage = hub_source.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(
        hub_source.shutil, "disk_usage", lambda path: usage._replace(free=2 * size - 1)
    )
    assert way() == "stream"


def test_the_remark_says_how_much_comes_and_how(hub: FakeHub, tmp_path: Path) -> None:
    commit = offer(hub, tmp_path / "a", model_of((512, 512))).branches["main"]
    for way, words in zip(WAYS, ("byte ranges", "temporary folder", "local cache"), strict=True):
        note = open_model("acme/toy", Access(way)).notes[0]  # type: ignore[arg-type]
        assert f"acme/toy at commit {commit}" in note and "1.0 MiB" in note and words in note


# --- the token -----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("by_environment", [True, False])
def test_the_token_never_leaves_the_hub(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: str,
    by_environment: bool,
) -> None:
    tensors = model_of((64, 64), (300, 300))
    write_file(tmp_path / "a" / ONE, tensors)
    hub.add("acme/toy", files_of(tmp_path / "a"), gated=True)
    assert "gated" in refused("acme/toy", Access(way))  # type: ignore[arg-type]
    if by_environment:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
    token = None if by_environment else TOKEN
    hub.log.clear()
    checkpoint = open_model("acme/toy", Access(way, token=token))  # type: ignore[arg-type]
    hub.signature += 1  # so that the hub is asked again in between
    assert same(read_all(checkpoint), tensors)
    assert of_bytes(hub) and not any(one.token for one in hub.log if one.host == "storage")
    assert all(one.token for one in hub.log if one.host == "hub" and "resolve" in one.path)
    assert TOKEN not in repr(checkpoint)


def test_a_hub_that_keeps_its_files_itself_gets_the_token(hub: FakeHub, tmp_path: Path) -> None:
    hub.stores = False
    tensors = model_of((64, 64), (300, 300))
    write_file(tmp_path / "a" / ONE, tensors)
    hub.add("acme/toy", files_of(tmp_path / "a"), gated=True)
    for way in ("stream", "shard"):
        checkpoint = open_model("acme/toy", Access(way, token=TOKEN))  # type: ignore[arg-type]
        assert same(read_all(checkpoint), tensors)
    assert {one.host for one in hub.log} == {"hub"} and all(one.token for one in hub.log)


# --- what goes wrong -----------------------------------------------------------------------------


def big(
    hub: FakeHub, tmp_path: Path, way: str = "stream"
) -> tuple[Checkpoint, dict[str, torch.Tensor]]:
    """A model of one tensor that takes many packets, indexed; the log begins after that."""
    tensors = {"layers.0.weight": gaussian(700, 700)}
    offer(hub, tmp_path / "a", tensors)
    checkpoint = open_model("acme/toy", Access(way))  # type: ignore[arg-type]
    hub.log.clear()
    hub.requests.clear()
    return checkpoint, tensors


@pytest.mark.parametrize("way", ["stream", "shard"])
def test_a_cut_connection_goes_on_at_the_byte_reached(
    hub: FakeHub, tmp_path: Path, quick: None, way: str
) -> None:
    checkpoint, tensors = big(hub, tmp_path, way)
    [ref] = checkpoint.tensors
    hub.faults = [Fault("storage GET", cut=300_000), Fault("storage GET", cut=500_000)]
    assert same(read_all(checkpoint), tensors)
    first, second, third = of_bytes(hub)
    begin = ref.start if way == "stream" else 0
    assert first.range and second.range and third.range
    assert first.range == (begin, ref.stop)
    assert second.range == (begin + 300_000, ref.stop)
    assert third.range == (begin + 800_000, ref.stop)
    assert first.sent + second.sent + third.sent == ref.stop - begin


def test_as_many_cuts_as_there_are_do_no_harm_while_bytes_arrive(
    hub: FakeHub, tmp_path: Path, quick: None
) -> None:
    checkpoint, tensors = big(hub, tmp_path)
    hub.faults = [Fault("storage GET", times=-1, cut=100_000)]
    assert same(read_all(checkpoint), tensors)
    assert len(of_bytes(hub)) > 2 * TRIES


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
@pytest.mark.parametrize("host", ["storage GET", "hub HEAD"])
def test_a_busy_server_is_asked_again(
    hub: FakeHub, tmp_path: Path, quick: None, status: int, host: str
) -> None:
    checkpoint, tensors = big(hub, tmp_path)
    hub.faults = [Fault(host, times=TRIES - 1, status=status)]
    assert same(read_all(checkpoint), tensors)
    assert sum(one.status == status for one in hub.log) == TRIES - 1


def test_indexing_survives_a_busy_hub(
    hub: FakeHub, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightscope.sources.client.backoff", lambda failures: 0.0)
    offer(hub, tmp_path / "a", small_model(), shards=2)
    hub.faults = [
        Fault("hub GET /api/models/acme/toy$", times=2, status=503),
        Fault("hub GET /api/models/acme/toy$", status=429, headers={"Retry-After": "0"}),
        Fault("hub GET .*/tree/", times=2, status=500),
        Fault("hub HEAD .*safetensors$", times=2, status=502),
        Fault("storage GET", times=3, status=503),
    ]
    assert len(open_model("acme/toy", Access("stream")).tensors) == len(small_model())
    assert all(fault.times == 0 for fault in hub.faults)


def test_a_hub_that_never_answers_is_not_waited_for_without_end(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(hub, tmp_path / "a", model_of((8, 8)))
    go_on = threading.Event()
    hub.before = lambda request: go_on.wait(30)
    for limit in ("ANSWER_WITHIN", "FILES_WITHIN"):
        monkeypatch.setattr(hub_source, limit, 0.2)
        assert "no answer in" in refused("acme/toy")
        monkeypatch.setattr(hub_source, "ANSWER_WITHIN", 30.0)
        hub.before = lambda request: go_on.wait(30) if "tree" in request else None
    go_on.set()
    wait_for_threads()


def test_a_session_that_somebody_closes_is_opened_again(
    hub: FakeHub, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client does so itself after some errors, for all threads."""
    import huggingface_hub

    monkeypatch.setattr(stream, "PIECE", 200_000)
    checkpoint, tensors = big(hub, tmp_path)

    def close(request: str) -> None:
        if sum("/stored/" in one for one in hub.requests) in {3, 5}:
            huggingface_hub.close_session()

    hub.before = close
    assert same(read_all(checkpoint), tensors)


def test_a_rate_limit_is_waited_out(hub: FakeHub, tmp_path: Path, quick: None) -> None:
    checkpoint, tensors = big(hub, tmp_path)
    limits = ({"Retry-After": "1"}, {"RateLimit": '"resolvers";r=0;t=0'})
    hub.faults = [Fault("storage GET", status=429, headers=headers) for headers in limits]
    begin = time.monotonic()
    assert same(read_all(checkpoint), tensors)
    assert time.monotonic() - begin >= 2.0  # a limit that ends in 0 seconds gets one for rounding


def test_a_rate_limit_beyond_reason_is_an_error(hub: FakeHub, tmp_path: Path) -> None:
    checkpoint, _ = big(hub, tmp_path)
    hub.faults = [Fault("storage GET", times=-1, status=429, headers={"Retry-After": "86400"})]
    assert "429" in failed(checkpoint) and len(of_bytes(hub)) == 1


def test_waits_are_read_from_every_form_of_header() -> None:
    assert asked_wait({"Retry-After": "17"}) == 17.0
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(time.time() + 40))
    found = asked_wait({"Retry-After": date})
    assert found is not None and 30 < found <= 40
    assert asked_wait({"RateLimit": '"api";r=0;t=55'}) == 56.0
    for headers in ({}, {"Retry-After": "soon"}, {"Retry-After": ""}, {"RateLimit": "x"}):
        assert asked_wait(headers) is None


@pytest.mark.parametrize("way", WAYS)
def test_an_expired_address_is_asked_for_again(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setattr(stream, "PIECE", 500_000)
    monkeypatch.setattr(stream, "AHEAD", 1)
    checkpoint, tensors = big(hub, tmp_path, way)

    def expire(request: str) -> None:
        """When the first bytes are asked for: the address of the moment is worth nothing."""
        if request.startswith("GET") and "/stored/" in request and hub.signature == 1:
            hub.signature = 2

    hub.before = expire
    assert same(read_all(checkpoint), tensors)
    statuses = [one.status for one in of_bytes(hub)]
    assert statuses[0] == 403 and set(statuses[1:]) <= {200, 206}
    assert sum(one.method == "HEAD" for one in hub.log) == 2


def test_an_address_may_expire_many_times(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "PIECE", 100_000)
    monkeypatch.setattr(stream, "AHEAD", 2)
    checkpoint, tensors = big(hub, tmp_path)
    served = []

    def expire(request: str) -> None:
        if "/stored/" in request:
            served.append(request)
            hub.signature = 1 + len(served) // 4

    hub.before = expire
    assert same(read_all(checkpoint), tensors)
    assert hub.signature > 4


def test_a_storage_that_refuses_for_good_is_an_error(
    hub: FakeHub, tmp_path: Path, quick: None
) -> None:
    for status in (401, 403, 404):
        hub.faults = []
        checkpoint, _ = big(hub, tmp_path / str(status))
        hub.faults = [Fault("storage GET", times=-1, status=status)]
        message = failed(checkpoint)
        assert f"HTTP {status}" in message and "'layers.0.weight'" in message
        assert "signature" not in message, "an address that is signed is not shown"


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (Fault("storage GET", times=-1, cut=1000), "connection"),
        (Fault("storage GET", times=-1, status=500), "HTTP 500"),
        (Fault("storage GET", times=-1, status=418), "HTTP 418"),
        (Fault("storage GET", times=-1, status=416), "HTTP 416"),
        (Fault("storage GET", times=-1, shift=64), "another range"),
        (Fault("storage GET", times=-1, grown=64), "another range"),
        (Fault("storage GET", times=-1, gzip=True), "compresses"),
        (Fault("hub HEAD", times=-1, status=500), "500"),
        (Fault("hub HEAD", times=-1, status=404), "404"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("way", ["stream", "shard"])
def test_what_does_not_pass_names_file_and_tensor(
    hub: FakeHub, tmp_path: Path, quick: None, way: str, fault: Fault, words: str
) -> None:
    checkpoint, _ = big(hub, tmp_path, way)
    hub.faults = [fault]
    message = failed(checkpoint)
    assert words in message or "peer closed" in message
    assert message.startswith(f"hf://{checkpoint.revision}/{ONE}: ") and "--resume" in message
    assert way == "shard" or "'layers.0.weight'" in message
    assert len(of_bytes(hub)) <= TRIES


def test_bytes_that_never_arrive_are_waited_for_only_so_long(
    hub: FakeHub, tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    checkpoint, tensors = big(hub, tmp_path)
    stuck = iter([1.0, 1.0])
    hub.before = lambda request: time.sleep(next(stuck, 0.0)) if "/stored/" in request else None
    assert same(read_all(checkpoint), tensors)


def test_a_download_into_the_cache_that_fails_names_its_file(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("weightscope.sources.client.backoff", lambda failures: 0.0)
    checkpoint, _ = big(hub, tmp_path, "cache")
    hub.faults = [Fault("storage GET", times=-1, status=500)]
    message = failed(checkpoint)
    assert message.startswith(f"hf://{checkpoint.revision}/{ONE}: ")
    assert "HTTP 500" in message and "--resume" in message
    assert len(of_bytes(hub)) == TRIES


def test_a_server_that_ignores_ranges_is_noticed_and_its_files_come_one_by_one(
    hub: FakeHub, tmp_path: Path
) -> None:
    tensors = model_of(*[(2000, 1000)] * 3)
    offer(hub, tmp_path / "a", tensors, shards=3)
    hub.faults = [Fault("storage GET", times=-1, whole=True)]
    for way in ("stream", "auto"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hub_source, "CACHE_AT_MOST", 0)
            checkpoint = open_model("acme/toy", Access(way))  # type: ignore[arg-type]
        assert checkpoint.remote is not None and checkpoint.remote.fetch == "shard"
        assert "ignores byte ranges" in checkpoint.notes[0]
    assert same(read_all(checkpoint), tensors)
    assert not list((tmp_path / "temporary").iterdir())


def test_a_server_that_ignores_ranges_later_is_not_read_for_nothing(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ranges, "SKIP_AT_MOST", 100_000)
    tensors = model_of((100, 100), (3000, 3000), (50, 50))
    write_in_order(tmp_path / "a" / ONE, tensors, list(tensors))
    hub.add("acme/toy", files_of(tmp_path / "a"))
    checkpoint = open_model("acme/toy", Access("stream"))
    hub.faults = [Fault("storage GET", times=-1, whole=True)]
    before = hub.bytes_sent(ONE)
    assert same(read_all(checkpoint, ["layers.0.weight"]), model_of((100, 100)))
    # what had been on its way when the connection was closed
    assert hub.bytes_sent(ONE) - before < 20_000_000 < 3000 * 3000 * 4
    with pytest.raises(CheckpointError, match="ignores byte ranges; use --fetch shard"):
        read_all(checkpoint, ["layers.2.weight"])


def test_a_whole_file_is_fetched_from_a_server_without_ranges_though_it_is_cut(
    hub: FakeHub, tmp_path: Path, quick: None
) -> None:
    checkpoint, tensors = big(hub, tmp_path, "shard")
    hub.faults = [
        Fault("storage GET", whole=True, cut=900_000),
        Fault("storage GET", whole=True, cut=1_500_000),
        Fault("storage GET", times=-1, whole=True),
    ]
    assert same(read_all(checkpoint), tensors)


def test_files_that_are_no_safetensors_are_recognised_as_on_disk(
    hub: FakeHub, tmp_path: Path
) -> None:
    marker = tmp_path / "executed"
    contents = {**dict(hostile_files()), **malicious_pickles(marker)}
    files = {f"{place:03d}.safetensors": data for place, data in enumerate(contents.values())}
    commit = hub.add("acme/toy", files).branches["main"]
    for name, data in files.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(CheckpointError) as caught:
            open_model(path)
        near = str(caught.value).removeprefix(f"{path}: ")
        far = refused(f"hf://acme/toy/{name}")
        assert far == f"hf://acme/toy@{commit}/{name}: {near}"
    assert not marker.exists()


def test_a_header_that_claims_more_than_there_is_costs_nothing(
    hub: FakeHub, tmp_path: Path
) -> None:
    data = raw_safetensors({}, b"\0" * 200_000, length=90_000_000)
    hub.add("acme/toy", {ONE: data})
    assert "truncated" in refused("acme/toy")
    assert hub.bytes_sent(ONE) == FIRST_READ


def test_hostile_file_names_stay_in_their_folders(hub: FakeHub, tmp_path: Path) -> None:
    good = write_file(tmp_path / "x.safetensors", model_of((8, 8))).read_bytes()
    names = ("../../evil.safetensors", "..\\evil.safetensors", "/evil.safetensors")
    for place, name in enumerate(names):
        hub.add(f"acme/toy{place}", {name: good})
        for way in WAYS:
            try:
                read_all(open_model(f"acme/toy{place}", Access(way)))  # type: ignore[arg-type]
            except CheckpointError:
                continue
    inside = (tmp_path / "cache", tmp_path / "temporary")
    evil = [path for path in tmp_path.rglob("*evil*") if path.is_file()]
    assert all(any(place in path.parents for place in inside) for path in evil)


def test_an_index_that_names_a_missing_shard_is_refused_before_headers(
    hub: FakeHub, tmp_path: Path
) -> None:
    write_sharded(tmp_path / "a", small_model())
    (tmp_path / "a" / "model-00002-of-00003.safetensors").unlink()
    hub.add("acme/toy", files_of(tmp_path / "a"))
    message = refused("acme/toy")
    assert "1 of 3 shards" in message and "model-00002-of-00003.safetensors" in message
    assert not of_bytes(hub)


def test_weights_that_an_index_leaves_out_are_noted(hub: FakeHub, tmp_path: Path) -> None:
    write_sharded(tmp_path / "a", small_model())
    write_file(tmp_path / "a" / "consolidated.safetensors", small_model())
    hub.add("acme/toy", files_of(tmp_path / "a"))
    checkpoint = open_model("acme/toy", Access("stream"))
    assert len(checkpoint.tensors) == len(small_model())
    assert any("consolidated.safetensors" in note for note in checkpoint.notes)


# --- nothing of this is needed on disk -----------------------------------------------------------


def test_streaming_leaves_no_weights_on_disk(hub: FakeHub, tmp_path: Path) -> None:
    tensors = model_of((100, 100), (200, 200))
    offer(hub, tmp_path / "a", tensors)
    assert same(read_all(open_model("acme/toy", Access("stream"))), tensors)
    assert not list((tmp_path / "temporary").iterdir())
    kept = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in kept) < 5000


def test_the_readers_of_disk_and_hub_are_the_same_function(tmp_path: Path) -> None:
    """So that what is tested of one holds for the other."""
    path = write_file(tmp_path / ONE, model_of((5, 7)))
    [ref] = read_header(path).tensors
    calls: list[tuple[int, int]] = []

    def fill(ref: TensorRef, start: int, view: memoryview) -> None:
        calls.append((start, len(view)))
        fill_from_disk(ref, start, view)

    assert torch.equal(read_tensor(ref, None, fill), read_tensor(ref))
    assert torch.equal(read_tensor(ref, 3, fill), read_tensor(ref, 3))
    assert calls == [span(ref), span(ref, 3)] == [(ref.start, 140), (ref.start + 84, 28)]


# --- small looks before the work begins --------------------------------------------------------


@pytest.mark.parametrize("fault", [False, True], ids=["ranges", "ranges ignored"])
@pytest.mark.parametrize("way", WAYS)
def test_looking_for_tied_weights_costs_no_second_download(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, fault: bool
) -> None:
    monkeypatch.setattr(ties, "_BLOCK_BYTES", 1 << 18)
    table = gaussian(6000, 64)
    model = {"model.embed_tokens.weight": table, "lm_head.weight": table.clone(), "w": table[:64]}
    offer(hub, tmp_path / "a", model, shards=3)
    if fault:
        hub.faults = [Fault("storage GET", times=-1, whole=True)]
    run = weightscope.analyze("acme/toy", fetch=way, metrics="stats")
    assert [row["status"] for row in run.rows] == ["skipped", "ok", "ok"]
    size = sum(len(content) for content in files_of(tmp_path / "a").values())
    assert len(of_bytes(hub)) <= 26
    assert fault or hub.bytes_sent(".safetensors") < 2.2 * size
    assert not temporary_files(tmp_path)
