"""The corpus of hostile checkpoints through the command line, under limits of the kernel."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from checkpoints import environment, gaussian, run_weightscope, write_file
from confined import SECONDS, Ended, Lab
from fake_hub import FakeHub, files_of
from hostile import Case, corpus
from hostile.case import sparse

from weightscope.text import shortened

CORPUS = corpus()
FAR = [name for name, case in CORPUS.items() if case.far]
ALONE = (
    "header: overlap",
    "header: nesting of objects",
    "header: 100 MB beyond a brace, sparse",
    "names: colours and a window's title",
    "index: points to the folder above",
    "shard: is a pipe",
    "code in .pt",
    "code beside the weights",
    "archive: compressed 1000 to 1",
    "GGUF: 2^60 facts in a sparse file",
    "adapter: ranks that differ",
    "quantised: scales of NaN",
)
"""Cases that go through a process that does its own imports too."""
FIX = re.compile(
    r"; .*\b(download|copy|save|name|convert|run|give|leave|merge|unpack|check|update|correct"
    r"|analyze)\b"
    r"|no such file"
)
"""A sentence that says what to do about it."""
VERBS: dict[str, tuple[str, ...]] = {
    "inspect": (),
    "analyze": ("--out", "run", "--threads", "1", "--metrics", "alpha,norms"),
}


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeHub]:
    with FakeHub() as running:
        yield running


@pytest.fixture(scope="module")
def lab(hub: FakeHub) -> Iterator[Lab]:
    facts = {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
    kept = {k: v for k, v in environment().items() if not k.lower().endswith("_proxy")}
    with Lab({**kept, **facts, "HF_HUB_DISABLE_TELEMETRY": "1"}) as running:
        yield running


def listing(root: Path) -> dict[str, tuple[object, ...]]:
    """Everything below a folder: what it is, and what is in it as far as that is little."""
    found: dict[str, tuple[object, ...]] = {}
    for path in sorted(root.rglob("*")):
        facts = path.lstat()
        small = stat.S_ISREG(facts.st_mode) and facts.st_size < 1 << 20
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if small else ""
        found[str(path.relative_to(root))] = facts.st_mode, facts.st_size, facts.st_mtime_ns, digest
    return found


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> set[str]:
    """Paths of what was made, changed or removed."""
    return {path for path in {*before, *after} if before.get(path) != after.get(path)}


def check(case: Case, verb: str, ended: Ended, model: str) -> None:
    """No traceback, no hang, no memory beyond a bound, one sentence, the right exit code."""
    code = case.expected(verb)
    barren = verb == "analyze" and not code and is_barren(ended.out)
    if barren:  # its rows tell why, and so does the last sentence
        check_sentence(ended.err.splitlines(keepends=True)[-1], model)
        code = 1
    assert ended.status != -14, f"it had not ended after {SECONDS} seconds"
    assert ended.status == code, ended.err[-2000:]
    assert ended.peak <= case.memory
    text = ended.out + ended.err
    assert "Traceback" not in text and "unexpected" not in text and "Warning" not in ended.err
    assert all(line.isprintable() for line in ended.err.split("\n"))
    if barren or (code == case.code and (code or verb == "analyze")):
        assert case.says in text
    if code and not barren:
        assert ended.out == ""
        check_sentence(ended.err, model)


def check_sentence(text: str, model: str) -> None:
    """One line that says what is wrong and what to do about it."""
    [sentence, nothing] = text.split("\n")
    assert sentence.startswith("Error: ") and not nothing
    assert len(sentence) < 1000 + len(model)
    assert FIX.search(sentence), sentence


def is_barren(table: str) -> bool:
    """Whether no row of a table has figures, and not because all its weights are degenerate."""
    csv.field_size_limit(1 << 24)  # some names are long
    statuses = {row["status"] for row in csv.DictReader(io.StringIO(table))}
    degenerate = {"zero", "constant", "rank_one", "too_few"}
    return not statuses or not (statuses & {"ok", "fused"} or statuses <= degenerate)


def names_the_file(sentence: str, model: str, folder: Path) -> bool:
    """Whether a sentence says where: the model, or something in it or beside it."""
    places = (model, str(folder), shortened(model))
    return any(place.encode("unicode_escape").decode() in sentence for place in places)


def test_the_corpus_is_large() -> None:
    """The issue asks for 60; they are counted here and nowhere else."""
    assert len(CORPUS) >= 350
    places = {name.partition(": ")[0].partition(" in ")[0] for name in CORPUS}
    assert {"header", "names", "index", "shard", "archive", "GGUF", "config", "adapter"} <= places
    assert set(ALONE) <= set(CORPUS) and len(FAR) >= 10


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.slow if case.elsewhere else ())
        for name, case in CORPUS.items()
    ],
)
def test_a_hostile_checkpoint(name: str, lab: Lab, tmp_path: Path) -> None:
    case = CORPUS[name]
    folder = tmp_path / "above" / "toy"
    folder.mkdir(parents=True)
    model = case.build(folder)
    cut = (model, case.shrinks) if case.shrinks is not None else None
    for verb, options in VERBS.items():
        work = tmp_path / verb
        work.mkdir()
        before = listing(tmp_path)
        shrinks = cut if verb == "analyze" else None
        ended = lab.run(verb, model, *options, cwd=work, shrinks=shrinks)
        check(case, verb, ended, str(model))
        if ended.status:
            assert names_the_file(ended.err, str(model), folder)
        changed = changes(before, listing(tmp_path))
        mine = {str(model.relative_to(tmp_path))} if shrinks else set()
        run = {path for path in changed if Path(path).parts[:2] == ("analyze", "run")}
        assert changed <= {verb, *mine, *run}, changed
        assert verb == "analyze" or not run
        if not case.expected("analyze") and verb == "analyze":
            assert run, "a run of what could be read"


@pytest.mark.parametrize("name", FAR)
def test_a_hostile_checkpoint_on_a_hub(name: str, lab: Lab, hub: FakeHub, tmp_path: Path) -> None:
    case = CORPUS[name]
    folder = tmp_path / "toy"
    folder.mkdir()
    case.build(folder)
    repository = "acme/" + re.sub(r"\W+", "-", name)
    hub.add(repository, files_of(folder))
    for verb, options in VERBS.items():
        work = tmp_path / verb
        work.mkdir()
        ended = lab.run(verb, f"hf://{repository}", *options, cwd=work)
        check(case, verb, ended, repository)
        assert repository in ended.err or "/.cache/huggingface/" in ended.err
    assert not list(tmp_path.rglob("executed"))


RUN_FILES: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "an endless device": lambda path: path.symlink_to("/dev/zero"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "HTML": lambda path: path.write_text("<!DOCTYPE html>\n"),
    "nested 100,000 deep": lambda path: path.write_text('{"a":' * 100_000 + "\n"),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\x1b[31m\n"),
    "a list": lambda path: path.write_text("[]\n"),
    "a number of 10,000 digits": lambda path: path.write_text("9" * 10_000 + "\n"),
    "16 GiB, sparse": lambda path: sparse(b"{", 1 << 34, path.name)(path.parent),
}


@pytest.fixture(scope="module")
def good_run(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("good")
    write_file(work / "toy.safetensors", {"w": gaussian(12, 10)})
    assert lab.run("analyze", "toy.safetensors", *VERBS["analyze"], cwd=work).status == 0
    return work / "run"


@pytest.mark.parametrize("name", RUN_FILES)
def test_a_hostile_run_folder(name: str, lab: Lab, good_run: Path, tmp_path: Path) -> None:
    """Runs are sent about as checkpoints are."""
    for file in ("run.json", "table.jsonl"):
        bad = tmp_path / file.partition(".")[0]
        shutil.copytree(good_run, bad)
        (bad / file).unlink()
        RUN_FILES[name](bad / file)
        ended = lab.run("report", bad, cwd=tmp_path)
        check(Case(name, lambda folder: folder, str(bad / file)), "report", ended, str(bad))


@pytest.mark.parametrize("name", ALONE)
def test_a_hostile_checkpoint_in_a_process_of_its_own(name: str, tmp_path: Path) -> None:
    """With the imports and the end of an interpreter that the forks above leave out."""
    case = CORPUS[name]
    folder, work = tmp_path / "above" / "toy", tmp_path / "work"
    folder.mkdir(parents=True)
    work.mkdir()
    model = case.build(folder)
    before = listing(folder.parent)
    verb = "inspect" if case.expected("inspect") else "analyze"  # which takes the longer imports
    done = run_weightscope(verb, model, *VERBS[verb], cwd=work)
    check(case, verb, Ended(done.returncode, done.stdout, done.stderr, 0), str(model))
    assert listing(folder.parent) == before
    assert {path.name for path in work.iterdir()} <= {"run"}
