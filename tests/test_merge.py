"""Parts of a model, joined, are the run of the whole model: the same bytes, or a refusal."""

from __future__ import annotations

import json
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import (
    environment,
    gaussian,
    many_matrices,
    run_each,
    run_weightscope,
    weightscope_command,
    write_file,
    write_sharded,
)
from test_adapters import factors, write_adapter
from test_determinism import varied_model

import weightscope
from weightscope.analysis import Saving, analyze
from weightscope.errors import (
    IncomparableRunsError,
    MissingPartsError,
    OptionError,
    RunFolderError,
)
from weightscope.folders.storage import load_run
from weightscope.merging import Merging, merge
from weightscope.settings import Settings, settings_from
from weightscope.share import Share, parse_share

QUICK = Settings(metrics=("alpha", "norms", "welore"), device="cpu", threads=1)
RESULTS = ("rows.jsonl", "table.jsonl", "spectra.safetensors")


def parts_of(model: Any, count: int, folder: Path, settings: Settings = QUICK) -> list[Path]:
    """Analyse every part into a folder of its own."""
    made = []
    for index in range(1, count + 1):
        made.append(folder / f"part-{index}-of-{count}")
        share = Share((index,), count)
        analyze(model, replace(settings, shard=share), Saving(True, made[-1]))
    return made


def whole_of(model: Any, folder: Path, settings: Settings = QUICK) -> Path:
    analyze(model, settings, Saving(True, folder / "whole"))
    return folder / "whole"


def record(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "run.json").read_text()))


def assert_same(joined: Path, whole: Path) -> None:
    """Measurements, table, spectra and summary are the same bytes; only who made it is another."""
    for name in RESULTS:
        assert (joined / name).read_bytes() == (whole / name).read_bytes(), name
    ours, theirs = record(joined), record(whole)
    assert json.dumps(ours["summary"]) == json.dumps(theirs["summary"])
    for key in ("command", "parts"):
        ours.pop(key), theirs.pop(key, None)
    assert ours == theirs and list(ours) == list(theirs)
    assert {path.name for path in joined.iterdir()} == {*RESULTS, "run.json"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_sharded(tmp_path / "toy", many_matrices(10, 24, 20))


# --- joined parts are one run ----------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"sample": 2, "seed": 3},
        {"compat": "weightwatcher"},
        {"metrics": ("welore", "norms"), "include": ("*proj*",), "welore_target": 0.3},
    ],
    ids=lambda changes: ",".join(changes) or "defaults",
)
def test_parts_of_a_varied_model_join_to_the_run_of_it(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Every kind of matrix and of failure, and rows without figures."""
    model = write_sharded(tmp_path / "model", varied_model(), 3)
    settings = replace(Settings(device="cpu", threads=2), **changes)
    joined = tmp_path / "joined"
    merge(parts_of(model, 3, tmp_path, settings), Merging(joined))
    assert_same(joined, whole_of(model, tmp_path, settings))


def test_more_parts_than_matrices(model: Path, tmp_path: Path) -> None:
    """Empty parts are finished runs without rows, in any order they join."""
    parts = parts_of(model, 23, tmp_path)
    sizes = [len(load_run(part).rows) for part in parts]
    assert sum(sizes) == 10 and max(sizes) == 1
    run, remarks = merge(parts[::-1], Merging(tmp_path / "joined"))
    assert len(run.rows) == 10 and not remarks
    assert_same(tmp_path / "joined", whole_of(model, tmp_path))
    empty = parts[sizes.index(0)]
    shown = run_weightscope("report", empty, "--format", "table")
    assert shown.returncode == 0, shown.stderr
    assert "of 23 of the model: 0 of 10 matrices" in " ".join(shown.stdout.split())


def test_tied_heads_are_found_before_the_cut(tmp_path: Path) -> None:
    tensors = many_matrices(6, 24, 20)
    tensors["model.embed_tokens.weight"] = gaussian(50, 20, seed=9)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    model = write_file(tmp_path / "tied.safetensors", tensors)
    merge(parts_of(model, 3, tmp_path), Merging(tmp_path / "joined"))
    assert_same(tmp_path / "joined", whole_of(model, tmp_path))
    rows = {row["name"]: row["status"] for row in load_run(tmp_path / "joined").rows}
    assert rows["lm_head.weight"] == "skipped" and len(rows) == 8


def test_differences_to_a_base_are_cut_too(model: Path, tmp_path: Path) -> None:
    moved = {name: w + gaussian(*w.shape, seed=99) for name, w in many_matrices(10, 24, 20).items()}
    tuned = write_file(tmp_path / "tuned.safetensors", moved)
    settings = replace(QUICK, base=str(model))
    merge(parts_of(tuned, 4, tmp_path, settings), Merging(tmp_path / "joined"))
    assert_same(tmp_path / "joined", whole_of(tuned, tmp_path, settings))


def test_adapters_and_quantised_weights_are_cut_too(tmp_path: Path) -> None:
    """Updates that are made of two tensors, and a weight that is made of codes and scales."""
    layers = range(5)
    modules = [f"model.layers.{i}.self_attn.q_proj" for i in layers]
    tensors = {k: w for i, m in enumerate(modules) for k, w in factors(m, 40, 48, 20, i).items()}
    adapter = write_adapter(tmp_path / "adapter", tensors, r=20, lora_alpha=40)
    codes = {f"layers.{i}.weight": gaussian(16, 32, seed=i).to(torch.float8_e4m3fn) for i in layers}
    scales = {f"layers.{i}.weight_scale_inv": torch.full((1, 1), 1.5 + i) for i in layers}
    encoded = tmp_path / "encoded" / "model.safetensors"
    write_file(encoded, {**codes, **scales})
    quantised = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    config = json.dumps({"quantization_config": quantised})
    (encoded.parent / "config.json").write_text(config)
    for place, model in (("a", adapter), ("q", encoded.parent)):
        folder = tmp_path / place
        merge(parts_of(model, 3, folder), Merging(folder / "joined"))
        assert_same(folder / "joined", whole_of(model, folder))
        rows = load_run(folder / "joined").rows
        assert [row["status"] for row in rows].count("ok") == 5


def mixture(layers: int = 3, experts: int = 32) -> dict[str, torch.Tensor]:
    """A mixture of experts: stacked in one layer, one by one in the others, routers, a head."""
    tensors = {"model.embed_tokens.weight": gaussian(90, 16, seed=1)}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        tensors[f"{prefix}.self_attn.q_proj.weight"] = gaussian(16, 16, seed=10 + layer)
        tensors[f"{prefix}.mlp.gate.weight"] = gaussian(experts, 16, seed=20 + layer)
        for place, part in enumerate(("gate_proj", "up_proj", "down_proj")):
            shape = (16, 24) if part == "down_proj" else (24, 16)
            seed = 1000 * layer + 300 * place
            stack = [gaussian(*shape, seed=seed + e) for e in range(experts)]
            if not layer:
                tensors[f"{prefix}.mlp.experts.{part}"] = torch.stack(stack)
                continue
            for e, weight in enumerate(stack):
                tensors[f"{prefix}.mlp.experts.{e}.{part}.weight"] = weight
    return tensors


def side_by_side(model: Path, folder: Path, *options: str) -> list[str]:
    """Four processes of one job, each a part by its rank; the folders that they leave."""
    command = weightscope_command("analyze", model, "--shard", "auto", "--quiet", *options)
    silent: dict[str, Any] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    ranks = [environment(RANK=str(i), WORLD_SIZE="4") for i in range(4)]
    running = [subprocess.Popen(command, cwd=folder, env=env, **silent) for env in ranks]
    for process in running:
        assert process.communicate(timeout=300)[1] == b"" and process.returncode == 0
    made = sorted(path.name for path in folder.glob("*.weightscope"))
    assert made == [f"{model.name}.shard-{i}-of-4.weightscope" for i in range(1, 5)]
    return made


def test_four_processes_make_parts_of_a_mixture_of_experts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_sharded(tmp_path / "moe", mixture(), 5)
    settings = Settings(metrics=("rank", "welore", "norms"), device="cpu", threads=1)
    parts = side_by_side(model, tmp_path, "--threads", "1", "--metrics", "rank,welore,norms")
    done = run_weightscope("merge", *parts, "--out", "moe.weightscope", cwd=tmp_path)
    assert done.returncode == 0 and done.stdout == ""
    assert done.stderr == "4 parts joined, 295 rows: weightscope report moe.weightscope\n"
    assert_same(tmp_path / "moe.weightscope", whole_of(model, tmp_path, settings))
    rows = load_run(tmp_path / "moe.weightscope").rows
    assert sum(row["expert"] is not None for row in rows) == 3 * 32 * 3 == len(rows) - 7
    monkeypatch.chdir(tmp_path)
    again = analyze(model, settings, Saving(True))  # and it is the run of the model from then on
    assert again.reused and str(again.folder) == "moe.weightscope"


@pytest.mark.slow
def test_four_processes_make_parts_of_a_real_model(minilm: Path, tmp_path: Path) -> None:
    """All defaults, and the summary with them."""
    parts = side_by_side(minilm, tmp_path, "--threads", "1", "--device", "cpu")
    merge([tmp_path / part for part in parts], Merging(tmp_path / "joined"))
    settings = Settings(device="cpu", threads=1)
    assert_same(tmp_path / "joined", whole_of(minilm, tmp_path, settings))


def test_a_killed_part_is_continued_and_joins(tmp_path: Path) -> None:
    """SIGKILL in mid-way; merge refuses what it left and names the command that continues it."""
    model = write_sharded(tmp_path / "toy", many_matrices(260, 112, 80), 3)
    settings = replace(QUICK, metrics=("farms", "norms", "welore"))
    options = ["--threads", "1", "--device", "cpu", "--metrics", "farms,norms,welore", "--quiet"]
    command = weightscope_command("analyze", model, *options, "--shard", "1/2")
    first, second = tmp_path / "toy.shard-1-of-2.weightscope", tmp_path / "second"
    rows = first / "rows.jsonl"
    killed = subprocess.Popen(
        command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL, stderr=None
    )
    while killed.poll() is None:
        if rows.exists() and b"\n" in rows.read_bytes():
            killed.send_signal(signal.SIGKILL)
            break
        time.sleep(0.001)
    assert killed.wait(timeout=60) == -signal.SIGKILL
    before = rows.read_bytes()
    assert 0 < before.count(b"\n") < 130
    analyze(model, replace(settings, shard=parse_share("2/2")), Saving(True, second))
    with pytest.raises(RunFolderError, match="part 1 of 2 is not finished") as caught:
        merge([first, second], Merging(tmp_path / "joined"))
    assert not (tmp_path / "joined").exists()
    advice = str(caught.value).partition("continue it with: weightscope ")[2]
    assert advice.endswith(f"--shard 1/2 --out {first} --resume")
    line = f"{shlex.join(weightscope_command())} {advice}"
    done = subprocess.run(line, shell=True, cwd=tmp_path, env=environment(), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert rows.read_bytes().startswith(before)
    merge([first, second], Merging(tmp_path / "joined"))
    assert_same(tmp_path / "joined", whole_of(model, tmp_path, settings))


def test_a_part_that_ran_out_of_time_is_not_finished(model: Path, tmp_path: Path) -> None:
    first = parts_of(model, 2, tmp_path)[0]
    late = replace(QUICK, shard=parse_share("2/2"), xmin="mid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("weightscope.plan.BATCH_MATRICES", 2)
        run = analyze(model, late, Saving(True, tmp_path / "late", max_time=1e-9))
    assert run.summary["stopped"] == 2 and run.summary["planned"] == 5
    with pytest.raises(RunFolderError, match="part 2 of 2 is not finished"):
        merge([first, tmp_path / "late"], Merging(tmp_path / "joined"))


# --- parts say that they are parts -----------------------------------------------------------


def test_a_part_says_so_wherever_it_is_shown(model: Path, tmp_path: Path) -> None:
    first, second = parts_of(model, 2, tmp_path)
    other = write_sharded(tmp_path / "toy-7", many_matrices(10, 24, 20, seed=500))
    theirs = parts_of(other, 2, tmp_path / "b")[0]
    default = shutil.copytree(first, tmp_path / "toy.shard-1-of-2.weightscope")
    run = load_run(first)
    assert run.label == "toy, part 1 of 2" and run.share == Share((1,), 2)
    assert all(row["welore_rank"] is None for row in run.rows) and run.summary["welore"] is None
    report, as_json, against, whole, tracked, planned, paged = run_each(
        [
            ["report", first, "--format", "markdown"],
            ["report", first, "--format", "json"],
            ["compare", first, theirs, "--format", "markdown"],
            ["compare", first, second],
            ["track", theirs, default],
            ["plan", first, "--for", "peft", "--modules", "2"],
            ["report", first, "--html", "page.html"],
        ],
        tmp_path,
    )
    assert "toy, part 1 of 2: 5 matrices" in report.stdout
    assert "Part 1 of 2 of the model: 5 of 10 matrices." in report.stdout
    assert ", shard 1/2, " in report.stdout
    assert json.loads(as_json.stdout)["provenance"]["settings"]["shard"] == "1/2"
    assert "toy, part 1 of 2 -> toy-7, part 1 of 2" in against.stdout
    assert f"{first}: is part 1 of 2 of toy, not all of it" in against.stderr
    assert whole.returncode == 5 and "--shard is '1/2' in toy, part 1 of 2" in whole.stderr
    assert planned.returncode == 1 and "is part 1 of 2 of toy; a plan is of" in planned.stderr
    assert paged.returncode == 0
    assert "<title>toy, part 1 of 2" in (tmp_path / "page.html").read_text()
    assert tracked.returncode == 1  # how many parts there are is no training step
    assert "neither" in tracked.stderr and "toy.shard-1-of-2" in tracked.stderr


def test_a_trajectory_of_parts_says_so(tmp_path: Path) -> None:
    runs = []
    for step in (1, 2):
        tensors = many_matrices(4, 24, 20, seed=100 * step)
        model = write_file(tmp_path / f"step-{step}.safetensors", tensors)
        runs.append(parts_of(model, 2, tmp_path / str(step))[0])
    [done] = run_each([["track", *runs, "--format", "markdown"]], tmp_path)
    assert "Step 1 is part 1 of 2 of step-1." in done.stdout
    assert "Step 2 is part 1 of 2 of step-2." in done.stdout


def test_parts_and_the_whole_get_folders_of_their_own(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shares = [None, parse_share("1/2"), parse_share("2/2"), parse_share("1/3")]
    found = [analyze(model, replace(QUICK, shard=share), Saving(True)).folder for share in shares]
    assert [str(folder) for folder in found] == [
        "toy.weightscope",
        *(f"toy.shard-{name}.weightscope" for name in ("1-of-2", "2-of-2", "1-of-3")),
    ]
    assert analyze(model, replace(QUICK, shard=shares[1]), Saving(True)).reused
    name = "n" * 240
    long = write_file(tmp_path / f"{name}.safetensors", many_matrices(2, 10, 9))
    for share in shares[1:3]:
        run = analyze(long, replace(QUICK, shard=share), Saving(True))
        assert run.folder is not None and str(share).replace("/", "-of-") in run.folder.name


def test_a_live_model_has_no_parts(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="--shard 1/2: parts are of checkpoints in files"):
        weightscope.analyze(many_matrices(4, 10, 9), shard="1/2", metrics="norms")


def test_python_takes_a_part_by_its_text(model: Path, tmp_path: Path) -> None:
    run = weightscope.analyze(model, shard="2/2", metrics="norms", device="cpu")
    assert len(run.rows) == 5 and run.label == "toy, part 2 of 2"


# --- what is refused -------------------------------------------------------------------------


def test_missing_parts_are_named_and_may_be_joined_later(model: Path, tmp_path: Path) -> None:
    parts = parts_of(model, 4, tmp_path)
    some = [parts[3], parts[0]]
    lost = sorted(str(row["name"]) for part in parts[1:3] for row in load_run(part).rows)
    with pytest.raises(MissingPartsError) as caught:
        merge(some, Merging(tmp_path / "joined"))
    assert sorted(caught.value.names) == lost and not (tmp_path / "joined").exists()
    [refused] = run_each([["merge", *some, "--out", "joined"]], tmp_path)
    assert refused.returncode == 1 and sorted(refused.stdout.split()) == lost
    assert f"missing: parts 2 and 3 of 4 with {len(lost)} matrices" in refused.stderr
    assert "--shard 2+3/4" in refused.stderr
    run, remarks = merge(some, Merging(tmp_path / "some", partial=True))
    assert run.label == "toy, parts 1 and 4 of 4" and "missing: parts 2 and 3 of 4" in remarks[0]
    assert load_run(tmp_path / "some").summary["welore"] is None
    rest = replace(QUICK, shard=parse_share("2+3/4"))
    analyze(model, rest, Saving(True, tmp_path / "rest"))
    merge([tmp_path / "rest", tmp_path / "some"], Merging(tmp_path / "joined"))
    assert_same(tmp_path / "joined", whole_of(model, tmp_path))
    assert len(record(tmp_path / "joined")["parts"]) == 3
    # what is there in part is not taken for the whole
    assert not analyze(model, QUICK, Saving(True, tmp_path / "new")).reused


def changed(folder: Path, to: Path, **changes: Any) -> Path:
    """A copy of a run folder whose record says something else, by dotted names."""
    shutil.copytree(folder, to)
    found = record(to)
    for name, value in changes.items():
        place = found
        *inner, last = name.split("__")
        for key in inner:
            place = place[int(key)] if isinstance(place, list) else place[key]
        place[last] = value
    (to / "run.json").write_text(json.dumps(found))
    return to


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settings__xmin": "mid"}, "settings.xmin is 'mid' there and 'ks' here"),
        ({"settings__welore_target": 0.4}, r"settings\.welore_target is 0.4"),
        ({"settings__seed": 1}, r"settings\.seed"),
        ({"weightscope": "9.9.9"}, "weightscope is '9.9.9'"),
        ({"thresholds__alpha_over": 1.0}, r"thresholds\.alpha_over"),
        ({"source__revision": "abc"}, r"source\.revision is 'abc'"),
        ({"source__files__1__header_sha256": "00"}, r"source\.files\[1\]\.header_sha256 is '00'"),
        ({"source__files__2__size": 1}, r"source\.files\[2\]\.size"),
        ({"source__files__0__modified_ns": 5}, r"modified_ns is 5 .*written again.*--copies"),
        ({"whole__names_sha256": "00"}, r"whole\.names_sha256"),
        ({"settings__shard": "2/3"}, "part 1 of 2 and .* is part 2 of 3: parts of different cuts"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_part_of_another_run_is_refused_by_what_differs(
    model: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    first, second = parts_of(model, 2, tmp_path)
    other = changed(second, tmp_path / "other", **changes)
    with pytest.raises(IncomparableRunsError, match=said) as caught:
        merge([first, other], Merging(tmp_path / "joined"))
    assert caught.value.exit_code == 5 and str(other) in str(caught.value)
    assert not (tmp_path / "joined").exists()


def test_machines_devices_and_copies_may_differ(model: Path, tmp_path: Path) -> None:
    first, second = parts_of(model, 2, tmp_path)
    changes = {"settings__device": "cuda:1", "environment__device_name": "Another", "command": "x"}
    elsewhere = changed(second, tmp_path / "elsewhere", **changes)
    _, remarks = merge([first, elsewhere], Merging(tmp_path / "joined"))
    assert len(remarks) == 1 and "environment.device_name is 'CPU'" in remarks[0]
    made = record(tmp_path / "joined")["parts"]
    assert [one["device"] for one in made] == ["cpu", "cuda:1"]
    copy = changed(second, tmp_path / "copy", source__files__0__modified_ns=5)
    run, remarks = merge([first, copy], Merging(tmp_path / "copies", copies=True))
    assert len(run.rows) == 10 and not remarks


def test_copies_have_the_same_contents(model: Path, tmp_path: Path) -> None:
    """Parts of two steps of a training have equal headers and sizes."""
    first, second = parts_of(model, 2, tmp_path)
    other = changed(second, tmp_path / "other", source__files__0__sample_sha256="0" * 64)
    with pytest.raises(IncomparableRunsError, match=r"files\[0\]\.sample_sha256 is '0000"):
        merge([first, other], Merging(tmp_path / "joined", copies=True))
    assert not (tmp_path / "joined").exists()


def test_what_is_no_part_or_twice_or_in_the_way_is_refused(model: Path, tmp_path: Path) -> None:
    first, second = parts_of(model, 2, tmp_path)
    whole = whole_of(model, tmp_path)
    again = shutil.copytree(second, tmp_path / "again")
    foreign = tmp_path / "notes.txt"
    foreign.write_text("mine")
    out = tmp_path / "joined"
    refusals: list[tuple[Sequence[Path], Path, str]] = [
        ([first, second, again], out, "part 2 of 2 is there twice: .*part-2.* and .*again"),
        ([first, first, second], out, "part 1 of 2 is there twice"),
        ([whole], out, "holds a whole run, not a part"),
        ([first, tmp_path], out, "not a run folder"),
        ([first, second], whole, "exists already; .*--out.*--force"),
        ([first, second], foreign, "exists already; .*--out$"),
        ([first, second], first, "is one of the parts"),
        ([], out, "needs the folders"),
    ]
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for folders, target, said in refusals:
        with pytest.raises(RunFolderError, match=said):
            merge(folders, Merging(target))
    with pytest.raises(RunFolderError, match="is one of the parts"):
        merge([first, second], Merging(second, force=True))
    assert before == {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_force_replaces_a_run_and_nothing_else(model: Path, tmp_path: Path) -> None:
    parts = parts_of(model, 2, tmp_path)
    whole = whole_of(model, tmp_path, replace(QUICK, xmin="mid"))
    (whole / "notes.txt").write_text("mine")
    with pytest.raises(RunFolderError, match=r"notes\.txt"):
        merge(parts, Merging(whole, force=True))
    assert (whole / "notes.txt").read_text() == "mine"
    (whole / "notes.txt").unlink()
    merge(parts, Merging(whole, force=True))
    assert record(whole)["settings"]["xmin"] == "ks"
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
    assert whole.stat().st_mode == parts[0].stat().st_mode


@pytest.mark.parametrize("name", ["part.json", "rows.jsonl", "table.jsonl", "spectra.safetensors"])
def test_a_broken_part_is_refused_by_name(model: Path, tmp_path: Path, name: str) -> None:
    first, second = parts_of(model, 2, tmp_path)
    (second / name).write_bytes(b'{"half": \n')
    with pytest.raises(RunFolderError, match=str(second)):
        merge([first, second], Merging(tmp_path / "joined"))
    lines = (first / "table.jsonl").read_bytes().splitlines(keepends=True)
    (first / "table.jsonl").write_bytes(b"".join(lines[1:]))
    with pytest.raises(RunFolderError, match=str(first)):
        merge([first], Merging(tmp_path / "joined", partial=True))
    assert not (tmp_path / "joined").exists()


def test_settings_are_read_back_from_a_record() -> None:
    given = Settings(
        include=("a*",),
        metrics=("alpha", "welore"),
        quant_error=(8, 3),
        shuffled=2,
        sample=3,
        compat="weightwatcher",
        shard=parse_share("2+5/8"),
    )
    assert settings_from(json.loads(json.dumps(given.as_record()))) == given
    assert settings_from(Settings().as_record()) == Settings()
