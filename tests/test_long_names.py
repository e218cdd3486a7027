"""Names that are longer than the page: one line each on a terminal, whole in CSV and JSON."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from checkpoints import environment, gaussian, run_weightscope, write_file
from hypothesis import given
from hypothesis import strategies as st

from weightscope.text import cut, fitted

SHARED = "base_model.model.vision_language_wrapper.language_model."
BLOCKS = [
    f"{SHARED}decoder_stack.layers.{i}.{part}.weight"
    for i in (0, 11)
    for part in (
        "self_attention_block.query_projection_matrix",
        "feed_forward_network_block.gate_up_combined_projection",
    )
]
NAMES = [*BLOCKS, f"{SHARED}final_output_projection_head.weight"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    work = tmp_path_factory.mktemp("long")
    tensors = {name: gaussian(24, 20, seed=seed) for seed, name in enumerate(NAMES)}
    write_file(work / "long.safetensors", tensors)
    done = run_weightscope("analyze", "long.safetensors", "--threads", "1", cwd=work)
    assert done.returncode == 0
    return work / "long.weightscope"


def report(run: Path, width: int, *options: str) -> str:
    wide = environment(COLUMNS=str(width))
    done = run_weightscope("report", run, *options, env=wide)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("width", [80, 120])
def test_groups_are_headed_in_one_line_and_matrices_take_one(run: Path, width: int) -> None:
    text = report(run, width, "--format", "table")
    table = text[: text.index("alpha mean")].rstrip().splitlines()
    assert max(map(len, table)) <= width
    assert table[5].rstrip() == " other  feed_forward_network_block.gate_up_combined_projection"
    starts = [line.split()[0] for line in table[5:]]
    assert starts[:-1] == ["other", "0", "11"] * 2 + ["other"] and len(starts) == 8


def test_a_list_of_names_is_shortened_and_says_so(run: Path) -> None:
    text = report(run, 120, "--format", "table", "--sort", "name")
    table = text[: text.index("alpha mean")].rstrip().splitlines()
    lines = [line for line in table if line.startswith(" ….")]
    assert max(map(len, table)) <= 120 and len(lines) == len(NAMES)
    assert sum(".layers.11." in line for line in lines) == 2
    said = " ".join(text.split())
    assert f"… at the beginning of a name stands for {SHARED} Names are shortened" in said
    wide = report(run, 400, "--format", "table", "--sort", "name")
    assert all(name in wide for name in NAMES) and "…" not in wide


def test_data_has_them_whole_at_any_width(run: Path) -> None:
    rows = csv.DictReader(io.StringIO(report(run, 40, "--format", "csv")))
    assert {row["name"] for row in rows} == set(NAMES)
    text = report(run, 40, "--format", "json")
    assert all(f'"{name}"' in text for name in NAMES) and "…" not in text


def test_the_middle_of_a_text_is_cut() -> None:
    assert cut("abcdefghij", 10) == "abcdefghij"
    assert cut("abcdefghijk", 10) == "abcde…hijk" and cut("abcdefghijk", 9) == "abcd…hijk"


PART = st.text("ab_", min_size=1, max_size=60) | st.integers(0, 10**12).map(str)
NAME = st.lists(PART, min_size=1, max_size=6).map(".".join)


@given(st.lists(NAME, min_size=1, max_size=8, unique=True), st.integers(1, 60))
def test_shortened_names_stay_apart_and_keep_their_numbers(names: list[str], width: int) -> None:
    short, shared = fitted(names, width)
    assert len(set(short)) == len(names) and all(name.startswith(shared) for name in names)
    for name, less in zip(names, short, strict=True):
        rest = name.removeprefix(shared)
        parts = less.removeprefix("….").split(".") if shared else less.split(".")
        assert len(parts) == rest.count(".") + 1
        for part, whole in zip(parts, rest.split("."), strict=True):
            start, dots, end = part.partition("…")
            assert part == whole or (
                dots and not whole.isdecimal() and len(part) < len(whole)
                and whole.startswith(start) and whole.endswith(end)
            )  # fmt: skip
    if max(map(len, names)) - len(shared) + 2 * bool(shared) <= width:
        assert "…" not in "".join(short).replace("….", "")
