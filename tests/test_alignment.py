"""Which matrix of one run belongs to which of another: wrappers, prefixes, shapes, spectra."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import pytest
import torch
from checkpoints import gaussian
from hypothesis import given
from hypothesis import strategies as st

import weightscope
from weightscope.alignment import Pair, PrefixMap, align, parse_prefix_map, plain_name
from weightscope.comparison import change_of, pair_runs
from weightscope.errors import OptionError
from weightscope.evaluate import Row
from weightscope.run import Run
from weightscope.trajectory import trajectory_of

WRAPPERS = ("module.", "_orig_mod.", "base_model.model.", "_fsdp_wrapped_module.")


def rows(names: Sequence[str]) -> list[Row]:
    return [{"name": name} for name in names]


def names(pairs: Sequence[Pair]) -> list[tuple[object, object]]:
    return [(p.a and p.a["name"], p.b and p.b["name"]) for p in pairs]


# --- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("module.layers.0.w", "layers.0.w"),
        ("_orig_mod.layers.0.w", "layers.0.w"),
        ("base_model.model.layers.0.w", "layers.0.w"),
        ("_fsdp_wrapped_module.layers.0.w", "layers.0.w"),
        ("module._orig_mod.layers.0.w", "layers.0.w"),
        ("_orig_mod.module.layers.0.w", "layers.0.w"),
        ("module.module.base_model.model._orig_mod.layers.0.w", "layers.0.w"),
        ("base_model.model.model.layers.0.w", "model.layers.0.w"),
        ("layers.0._orig_mod.w", "layers.0.w"),
        ("layers._fsdp_wrapped_module.0._fsdp_wrapped_module.w", "layers.0.w"),
        ("layers.0._checkpoint_wrapped_module.w", "layers.0.w"),
        ("module._fsdp_wrapped_module.layers.0._orig_mod.self._fsdp_wrapped_module.w",
         "layers.0.self.w"),
    ],
)  # fmt: skip
def test_wrappers_are_no_part_of_a_name(name: str, expected: str) -> None:
    assert plain_name(name) == expected == plain_name(expected)


@pytest.mark.parametrize(
    "name",
    ["text_module.w", "vision.module.w", "modules.0.w", "my_orig_mod.w", "x_fsdp_wrapped_module.w",
     "_orig_modern.w", "model.base_model.w", "base_model.w", "module", "w", ""],
)  # fmt: skip
def test_what_only_looks_like_a_wrapper_is_kept(name: str) -> None:
    """Two modules of a model may be called alike but for such a part."""
    assert plain_name(name) == name


@given(st.lists(st.sampled_from(WRAPPERS), max_size=4), st.sampled_from(["layers.0.w", "w"]))
def test_any_stack_of_wrappers_comes_off(stack: list[str], name: str) -> None:
    assert plain_name("".join(stack) + name) == name


def test_a_map_replaces_a_prefix_once_after_the_wrappers() -> None:
    maps = (PrefixMap("model.", "transformer."), PrefixMap("transformer.", "other."))
    assert plain_name("module.model.model.w", maps) == "transformer.model.w"
    assert plain_name("transformer.w", maps) == "other.w"
    assert plain_name("a.model.w", maps) == "a.model.w"
    assert plain_name("w", (PrefixMap("", "model."),)) == "model.w"
    assert plain_name("model.w", (PrefixMap("model.", ""),)) == "w"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model.=transformer.", PrefixMap("model.", "transformer.")),
        ("=model.", PrefixMap("", "model.")),
        ("model.=", PrefixMap("model.", "")),
        ("a=b=c", PrefixMap("a", "b=c")),
    ],
)
def test_a_map_is_written_from_equals_to(text: str, expected: PrefixMap) -> None:
    assert parse_prefix_map(text) == expected


@pytest.mark.parametrize("text", ["", "=", "model."])
def test_a_map_without_both_sides_is_refused(text: str) -> None:
    with pytest.raises(OptionError, match=r"--map .*FROM=TO"):
        parse_prefix_map(text)


# --- pairs -----------------------------------------------------------------------------------


def test_rows_are_paired_by_name_in_the_order_of_the_first() -> None:
    pairs = align(rows(["b", "a", "gone"]), rows(["new", "a", "b"]))
    assert names(pairs) == [("b", "b"), ("a", "a"), ("gone", None), (None, "new")]


def test_wrapped_rows_are_paired_with_bare_ones() -> None:
    pairs = align(rows(["module.w", "v"]), rows(["w", "_orig_mod.v"]))
    assert names(pairs) == [("module.w", "w"), ("v", "_orig_mod.v")]


def test_mapped_rows_are_paired() -> None:
    maps = [parse_prefix_map("bert.=")]
    assert names(align(rows(["bert.w"]), rows(["w"]), maps)) == [("bert.w", "w")]
    assert names(align(rows(["w"]), rows(["bert.w"]), maps)) == [("w", "bert.w")]
    assert names(align(rows(["bert.w"]), rows(["w"]))) == [("bert.w", None), (None, "w")]


COLLIDING = [
    ["module.w", "w"],
    ["w", "module.w"],
    ["_orig_mod.w", "module.w"],
    ["_orig_mod.w", "module.w", "w"],
    ["base_model.model.module.w", "module.w", "w", "_orig_mod.module.w"],
]


@pytest.mark.parametrize("collide", COLLIDING)
def test_names_that_differ_only_in_wrappers_keep_their_rows(collide: list[str]) -> None:
    """A run with both is odd, but losing one of them would be wrong."""
    same = align(rows(collide), rows(collide))
    assert sorted(names(same)) == sorted((name, name) for name in collide)
    found = align(rows(collide), rows(["w"]))
    assert sorted(str(a) for a, _ in names(found) if a) == sorted(collide)
    assert Counter(b for _, b in names(found))["w"] == 1
    assert ("w", "w") in names(found) or "w" not in collide


def test_a_map_that_makes_two_names_one_drops_neither() -> None:
    maps = [parse_prefix_map("old.=new.")]
    found = names(align(rows(["new.w", "old.w"]), rows(["new.w", "old.w"]), maps))
    assert sorted(found) == [("new.w", "new.w"), ("old.w", "old.w")]


NAMES = st.lists(
    st.tuples(st.lists(st.sampled_from(WRAPPERS), max_size=2), st.sampled_from("abcd")).map(
        lambda parts: "".join(parts[0]) + parts[1]
    ),
    unique=True,
    max_size=8,
)


@given(NAMES, NAMES, st.sampled_from([(), (PrefixMap("a", "b"),), (PrefixMap("", "x."),)]))
def test_every_row_is_in_exactly_one_pair(
    a: list[str], b: list[str], maps: tuple[PrefixMap, ...]
) -> None:
    found = names(align(rows(a), rows(b), maps))
    assert [x for x, _ in found if x is not None] == a
    assert sorted(str(y) for _, y in found if y is not None) == sorted(b)
    assert (None, None) not in found


def run(tensors: Mapping[str, torch.Tensor]) -> Run:
    return weightscope.analyze(dict(tensors), metrics="norms", threads=1, device="cpu")


def test_a_trajectory_keeps_rows_whose_names_differ_only_in_wrappers() -> None:
    both = run({"module.w": gaussian(9, 9), "w": gaussian(9, 8, seed=1)})
    found = trajectory_of((1, 2), (both, both))
    assert len(found.names) == 2 and {len(by_name) for by_name in found.rows} == {2}


# --- shapes ----------------------------------------------------------------------------------


def test_added_removed_and_resized_rows_are_told() -> None:
    a = run({
        "same": gaussian(9, 8), "gone": gaussian(9, 8, seed=1), "grown": gaussian(9, 8, seed=2),
        "turned": gaussian(9, 8, seed=3), "kernel": gaussian(9, 8, 3, 3, seed=4),
    })  # fmt: skip
    b = run({
        "same": gaussian(9, 8, seed=9), "new": gaussian(7, 8, seed=5), "grown": gaussian(11, 8),
        "turned": gaussian(9, 8, seed=3).T.contiguous(), "kernel": gaussian(9, 8, 5, 3, seed=4),
    })  # fmt: skip
    pairs = pair_runs(a, b)
    assert {str(p.either["name"]): change_of(p) for p in pairs} == {
        "same": "common", "gone": "removed", "grown": "resized", "turned": "resized",
        "kernel": "resized", "new": "added",
    }  # fmt: skip


def test_a_tensor_that_became_empty_or_unreadable_keeps_its_row() -> None:
    a = run({"w": gaussian(9, 8), "v": gaussian(9, 8, seed=1)})
    b = run({"w": torch.zeros(0, 8), "v": torch.zeros(9, 8).to(torch.float8_e4m3fn)})
    found = {str(p.either["name"]): (change_of(p), p.b and p.b["status"]) for p in pair_runs(a, b)}
    assert found == {"w": ("resized", "empty"), "v": ("common", "unsupported")}


# --- spectra ---------------------------------------------------------------------------------


def renamed(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> dict[str, str]:
    pairs = pair_runs(run(a), run(b))
    assert {p.renamed for p in pairs if p.a is None or p.b is None} <= {False}
    return {str(p.a["name"]): str(p.b["name"]) for p in pairs if p.renamed and p.a and p.b}


def test_a_matrix_under_another_name_is_found_by_its_spectrum() -> None:
    tensors = {f"layers.{i}.w": gaussian(12, 10, seed=i) for i in range(4)}
    changed = {name.replace("layers.2", "blocks.7"): t for name, t in tensors.items()}
    assert renamed(tensors, changed) == {"layers.2.w": "blocks.7.w"}
    assert renamed(changed, tensors) == {"blocks.7.w": "layers.2.w"}
    everything = {name.replace("layers", "h"): t for name, t in tensors.items()}
    assert renamed(tensors, everything) == {f"layers.{i}.w": f"h.{i}.w" for i in range(4)}


def test_a_renamed_pair_replaces_its_two_halves() -> None:
    a, b = gaussian(12, 10), gaussian(12, 10, seed=1)
    pairs = pair_runs(run({"w": a, "v": b}), run({"v": b, "z": a, "new": gaussian(12, 10, seed=2)}))
    assert names(pairs) == [("v", "v"), ("w", "z"), (None, "new")]
    assert [change_of(p) for p in pairs] == ["common", "common", "added"]


def test_rounding_of_the_solver_hides_no_new_name() -> None:
    """The same singular values, computed from rows in another order."""
    a = gaussian(300, 200)
    assert renamed({"w": a}, {"z": a.flip(0)}) == {"w": "z"}


def test_a_matrix_that_also_changed_is_not_called_renamed() -> None:
    a = gaussian(12, 10)
    assert renamed({"w": a}, {"z": a * (1 + 1e-5)}) == {}
    assert renamed({"w": a}, {"z": a + 1e-4 * gaussian(12, 10, seed=1)}) == {}


def test_shape_counts_for_a_new_name() -> None:
    a = gaussian(12, 10)
    assert renamed({"w": a}, {"z": a.T.contiguous()}) == {}


def test_where_two_new_names_fit_none_is_chosen() -> None:
    a = gaussian(12, 10)
    assert renamed({"w": a}, {"x": a, "y": a.clone()}) == {}


def test_zero_matrices_are_not_matched_by_their_spectrum() -> None:
    assert renamed({"w": torch.zeros(12, 10)}, {"z": torch.zeros(12, 10)}) == {}


def test_a_name_on_both_sides_is_never_called_renamed() -> None:
    """Two matrices that swapped their contents still bear their names."""
    a, b = gaussian(12, 10), gaussian(12, 10, seed=1)
    assert renamed({"w": a, "v": b}, {"w": b, "v": a}) == {}
