"""Shares of a plan: what is asked for, what schedulers say, and a cut that is fair and the same."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from checkpoints import environment, many_matrices, run_each, run_weightscope, write_file
from hypothesis import given
from hypothesis import strategies as st

from weightscope.errors import OptionError
from weightscope.folders.partition import cost, cut, portion
from weightscope.matrix import Exclusion, Matrix
from weightscope.plan import make_plan
from weightscope.recipe import Farms
from weightscope.select import Selection
from weightscope.share import Share, parse_share, share_around
from weightscope.tensor import TensorRef

# --- what is asked for -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "indices", "count", "label", "suffix"),
    [
        ("1/1", (1,), 1, "part 1 of 1", "shard-1-of-1"),
        ("3/8", (3,), 8, "part 3 of 8", "shard-3-of-8"),
        ("2+5/8", (2, 5), 8, "parts 2 and 5 of 8", "shard-2+5-of-8"),
        ("1+2+9/64", (1, 2, 9), 64, "parts 1, 2 and 9 of 64", "shard-1+2+9-of-64"),
        ("1+2+3+4+5+6/9", (1, 2, 3, 4, 5, 6), 9, "6 of 9 parts", "shard-1+2+3+4+5+more-of-9"),
    ],
)
def test_shares_are_read_and_written(
    text: str, indices: tuple[int, ...], count: int, label: str, suffix: str
) -> None:
    share = parse_share(text)
    assert (share.indices, share.count) == (indices, count)
    assert (str(share), share.label, share.suffix) == (text, label, suffix)


@pytest.mark.parametrize(
    "text",
    ["", "3", "/8", "3/", "0/8", "9/8", "-1/8", "1/0", "0/0", "3 / 8", "a/b", "2+2/8", "5+2/8",
     "+2/8", "1+/8", "1.5/8", "3/8/9", "1/12345678", "3of8", "AUTO", "3/8\n"],
)  # fmt: skip
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match="--shard"):
        parse_share(text)


def test_a_share_of_no_parts_says_what_to_give() -> None:
    with pytest.raises(OptionError, match=r"1/0: a model has at least one part; give .*3/8"):
        parse_share("1/0")
    with pytest.raises(OptionError, match="9/8: parts are counted from 1/8 to 8/8"):
        parse_share("9/8")


# --- what schedulers say ---------------------------------------------------------------------


def array(
    task: int, count: int, first: int = 0, last: int | None = None, step: int = 1
) -> dict[str, str]:
    """What Slurm tells a task of an array."""
    last = first + (count - 1) * step if last is None else last
    named = {"ID": task, "COUNT": count, "MIN": first, "MAX": last, "STEP": step}
    return {f"SLURM_ARRAY_TASK_{name}": str(value) for name, value in named.items()}


@pytest.mark.parametrize(
    ("variables", "share"),
    [
        (array(0, 8), "1/8"),
        (array(7, 8), "8/8"),
        (array(1, 8, first=1), "1/8"),
        (array(8, 8, first=1), "8/8"),
        (array(6, 4, step=2), "4/4"),
        ({"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "4"}, "3/4"),
        ({"RANK": "0", "WORLD_SIZE": "4"}, "1/4"),
        ({"RANK": "3", "WORLD_SIZE": "4"}, "4/4"),
        ({"RANK": "0", "WORLD_SIZE": "1"}, "1/1"),
    ],
)
def test_auto_takes_what_a_scheduler_says(variables: dict[str, str], share: str) -> None:
    found, said = share_around(variables)
    assert str(found) == share
    assert said.startswith(next("=".join(item) for item in variables.items()))


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({}, "neither"),
        ({**array(1, 4), "RANK": "0", "WORLD_SIZE": "4"}, "both"),
        (array(3, 1, first=3), "run again"),  # one task of an array, alone
        (array(3, 2, first=3), "run again"),  # two neighbours
        (array(1, 1, first=1), "run again"),
        (array(3, 3, first=0, last=5), "run again"),  # tasks 0, 3 and 5
        (array(3, 3, step=2), "run again"),
        (array(9, 4), "part 10 of 4"),
        ({"SLURM_ARRAY_TASK_ID": "3"}, "SLURM_ARRAY_TASK_COUNT"),
        ({"RANK": "3"}, "WORLD_SIZE"),
        ({"RANK": "x", "WORLD_SIZE": "4"}, "RANK is 'x'"),
        ({"RANK": "4", "WORLD_SIZE": "4"}, "part 5 of 4"),
        ({"RANK": "0", "WORLD_SIZE": "0"}, "part 1 of 0"),
        ({"RANK": "-1", "WORLD_SIZE": "4"}, "RANK"),
    ],
)
def test_auto_refuses_what_is_not_clear(variables: dict[str, str], why: str) -> None:
    with pytest.raises(OptionError, match=rf"--shard auto.*{why}.*PART/PARTS"):
        share_around(variables)


# --- the cut ---------------------------------------------------------------------------------

COSTS = st.lists(
    st.one_of(st.integers(1, 20), st.integers(1, 10**15), st.just(10**6)), min_size=1, max_size=60
)


@given(COSTS, st.integers(1, 200))
def test_no_part_is_further_from_the_mean_than_the_largest_cost(
    costs: list[int], parts: int
) -> None:
    owners = cut(costs, parts)
    loads = Counter[int]()
    for owner, one in zip(owners, costs, strict=True):
        loads[owner] += one
    assert len(owners) == len(costs) and owners == sorted(owners)
    assert set(owners) <= set(range(parts))
    # in integers: exact at any size
    assert all(abs(parts * loads[i] - sum(costs)) <= parts * max(costs) for i in range(parts))


def test_equal_costs_are_dealt_evenly() -> None:
    assert [cut([7] * 12, parts) for parts in (1, 3, 4)] == [
        [0] * 12,
        [0] * 4 + [1] * 4 + [2] * 4,
        [0] * 3 + [1] * 3 + [2] * 3 + [3] * 3,
    ]
    assert sorted(Counter(cut([7] * 10, 4)).values()) == [2, 2, 3, 3]
    assert len(set(cut([7] * 5, 9))) == 5  # one each, four parts empty
    assert cut([1, 1, 1, 9], 2) == [0, 0, 0, 1]


SHAPES = st.sampled_from([(64, 64), (4096, 4096), (11008, 4096), (300, 7), (32000, 4096), (1, 9)])


@st.composite
def selections(draw: st.DrawFn) -> Selection:
    """Matrices in a few files, names in natural order as a selection has them."""
    shapes = draw(st.lists(SHAPES, min_size=1, max_size=40))
    files = draw(st.integers(1, 4))
    matrices = tuple(
        Matrix(
            f"layers.{i:03}.w",
            TensorRef(f"layers.{i:03}.w", shape, "BF16", f"f{i % files}", 10 * i, 10 * i + 1),
            "whole",
            "linear",
            "layers.#.w",
            i,
        )
        for i, shape in enumerate(shapes)
    )
    left = Matrix("left", TensorRef("left", (0, 3), "F32", "f0"), "whole", "linear", "left")
    return Selection(matrices, (Exclusion(left, "empty", "no entries"),), 5, 2, 1, 10**6)


def names_of(found: Any) -> set[str]:
    return {matrix.name for matrix in found.selection.matrices}


@given(selections(), st.integers(1, 50), st.sampled_from([None, Farms()]), st.randoms())
def test_parts_cover_a_selection_once_and_keep_files_together(
    selection: Selection, parts: int, farms: Farms | None, chance: random.Random
) -> None:
    found = [portion(selection, Share((i,), parts), farms) for i in range(1, parts + 1)]
    names = [m.name for one in found for m in one.selection.matrices]
    assert sorted(names) == [m.name for m in selection.matrices]
    assert [len(one.selection.exclusions) for one in found] == [1] + [0] * (parts - 1)
    planned = list(make_plan(selection.matrices, farms).matrices)
    assert all(one.names == tuple(m.name for m in planned) for one in found)
    # each part is one stretch of the plan, so that parts share the files at the cuts alone
    order = [m.name for one in found for m in make_plan(one.selection.matrices, farms).matrices]
    assert order == [m.name for m in planned]
    pairs = {(i, m.tensor.file) for i, one in enumerate(found) for m in one.selection.matrices}
    assert len(pairs) <= len({m.tensor.file for m in planned}) + parts - 1
    loads = [sum(cost(m, farms) for m in one.selection.matrices) for one in found]
    most = max(cost(m, farms) for m in planned)
    assert all(abs(parts * load - sum(loads)) <= parts * most for load in loads)
    # the same whatever order the matrices are found in, and several parts are theirs together
    mixed = list(selection.matrices)
    chance.shuffle(mixed)
    again = portion(Selection(tuple(mixed), (), 0, 0, 0, 0), Share((parts,), parts), farms)
    assert names_of(again) == names_of(found[-1])
    both = portion(selection, Share(tuple({1: 0, parts: 0}), parts), farms)
    assert names_of(both) == names_of(found[0]) | names_of(found[-1])


def test_experts_of_one_tensor_may_be_cut() -> None:
    ref = TensorRef("experts", (8, 64, 64), "BF16", "f", 0, 8 * 64 * 64 * 2)
    experts = tuple(
        Matrix(f"experts[{e}]", ref, "expert", "expert_up", "experts", 0, e) for e in range(8)
    )
    selection = Selection(experts, (), 0, 0, 0, 1)
    for index, wanted in ((1, {"experts[0]", "experts[1]"}), (4, {"experts[6]", "experts[7]"})):
        assert names_of(portion(selection, Share((index,), 4), None)) == wanted


# --- the command line ------------------------------------------------------------------------


def test_a_part_is_only_taken_where_it_is_asked_for(tmp_path: Path) -> None:
    """A variable that happens to be set shards nothing, but is mentioned."""
    model = write_file(tmp_path / "toy.safetensors", many_matrices(4, 10, 9))
    command = ("analyze", model, "--metrics", "norms", "--threads", "1")
    env = environment(**array(3, 4))
    plain = run_weightscope(*command, cwd=tmp_path, env=env)
    assert plain.stdout.count("\n") == 5
    assert "The whole model, although SLURM_ARRAY_TASK_ID=3 of 4 tasks" in plain.stderr
    auto = run_weightscope(*command, "--shard", "auto", cwd=tmp_path, env=env)
    assert auto.stdout.count("\n") == 2 and "layers.3." in auto.stdout
    assert "--shard auto is 4/4: SLURM_ARRAY_TASK_ID=3 of 4 tasks" in auto.stderr
    assert "part 4 of 4: 1 of 4 matrices" in auto.stderr
    assert (tmp_path / "toy.shard-4-of-4.weightscope" / "part.json").is_file()
    assert (tmp_path / "toy.weightscope" / "run.json").is_file()


def test_inspect_tells_what_a_part_costs(tmp_path: Path) -> None:
    model = write_file(tmp_path / "toy.safetensors", many_matrices(4, 10, 9))
    whole, part, why, bad = run_each(
        [
            ("inspect", model, "--format", "markdown"),
            ("inspect", model, "--format", "markdown", "--shard", "2/4"),
            ("inspect", model, "--shard", "2/4", "--why"),
            ("inspect", model, "--shard", "5/4"),
        ],
        tmp_path,
    )
    assert "4 matrices will be analysed: 100.0%" in whole.stdout
    assert "toy, part 2 of 4" in part.stdout
    assert "1 matrix will be analysed: 25.0%" in part.stdout
    assert why.returncode == bad.returncode == 2 and "--shard" in why.stderr + bad.stderr
