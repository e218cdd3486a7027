"""A few matrices of every module type."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weightscope.errors import OptionError
from weightscope.layouts.roles import place_of, role_of
from weightscope.matrix import Matrix
from weightscope.sampling import sample, statement
from weightscope.tensor import TensorRef


def matrix(name: str) -> Matrix:
    place = place_of(name)
    return Matrix(name, TensorRef(name, (8, 4), "F32"), "whole", role_of(place.module), *place)


def model(layers: int, experts: int = 0) -> list[Matrix]:
    names = ["model.embed_tokens.weight"]
    for i in range(layers):
        names += [f"model.layers.{i}.self_attn.{part}_proj.weight" for part in "qkvo"]
        names += [f"model.layers.{i}.mlp.experts.{e}.w1.weight" for e in range(experts)]
    return [matrix(name) for name in names]


@given(st.integers(1, 12), st.integers(0, 3), st.integers(1, 14), st.integers(0, 5))
def test_as_many_of_every_module_as_asked_for_or_all(
    layers: int, experts: int, count: int, seed: int
) -> None:
    matrices = model(layers, experts)
    drawn = sample(matrices, count, seed)
    there, taken = (Counter(m.module for m in found) for found in (matrices, drawn))
    assert taken == {module: min(count, n) for module, n in there.items()}
    assert list(drawn) == [m for m in matrices if m in drawn]


@given(st.integers(1, 8), st.integers(0, 20))
def test_a_larger_sample_holds_the_smaller_one(count: int, seed: int) -> None:
    matrices = model(9)
    assert set(sample(matrices, count, seed)) <= set(sample(matrices, count + 1, seed))


def test_order_and_other_modules_do_not_matter() -> None:
    matrices = model(20)
    few = [m for m in matrices if m.module.endswith("q_proj")]
    chosen = set(sample(matrices, 3, 1))
    assert set(sample(matrices[::-1], 3, 1)) == chosen
    assert set(sample(few, 3, 1)) == {m for m in chosen if m in few}


def test_every_block_is_drawn_equally_often_and_modules_independently() -> None:
    """Over 400 seeds each block is drawn 120 +- 9 times; q and k are drawn alike once in 120."""
    matrices = model(10)
    blocks: Counter[int | None] = Counter()
    same = 0
    for seed in range(400):
        drawn = sample(matrices, 3, seed)
        of_part = [{m.block for m in drawn if f"{part}_proj" in m.name} for part in "qk"]
        blocks.update(of_part[0])
        same += of_part[0] == of_part[1]
    assert all(abs(blocks[i] - 120) < 5 * 9.2 for i in range(10))
    assert same < 16


@pytest.mark.parametrize("count", [0, -2])
def test_no_matrices_are_refused(count: int) -> None:
    with pytest.raises(OptionError, match="--sample"):
        sample(model(2), count, 0)


def test_the_statement_names_counts_and_seed() -> None:
    text = statement(224, 21, 3, 17)
    assert all(word in text for word in ("224", "21", "at most 3", "seed 17"))
