"""Choosing by a criterion: order, limits, what is left out, and what noise would have chosen."""

from __future__ import annotations

import dataclasses
import math
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import layers, row, run_of
from scipy.stats import spearmanr

from weightscope import reasons
from weightscope.addresses import weights_of
from weightscope.choosing import Choice, Chosen, choose
from weightscope.criteria import CRITERIA, criterion_named, noise_values
from weightscope.errors import OptionError
from weightscope.evaluate import Row
from weightscope.run import Run

COLUMNS = {criterion.name: criterion.column for criterion in CRITERIA}


def names(chosen: Chosen) -> list[str]:
    return [c.weight.name for c in chosen.chosen]


def chosen_by(run: Run, **options: Any) -> list[str]:
    return names(choose(run, Choice(**options), lambda w: w.params))


def blocks(chosen: list[str]) -> list[int]:
    return [int(name.split(".")[2]) for name in chosen]


# order


@pytest.mark.parametrize("by", COLUMNS)
def test_the_best_come_first_and_equal_ones_by_name(by: str) -> None:
    values = [3.0, 1.0, 2.0, 2.0, 9.0, 1.0, 2.0, 2.5, 4.0, 1.0, 7.0]
    run = run_of(layers(COLUMNS[by], values))
    lowest = criterion_named(by).first == "lowest"
    expected = sorted(range(11), key=lambda i: (values[i] if lowest else -values[i], i))
    assert blocks(chosen_by(run, by=by)) == expected


def test_names_are_in_natural_order_where_values_tie() -> None:
    run = run_of(layers("condition_number", [5.0] * 12))
    assert blocks(chosen_by(run, modules=11)) == list(range(11))


def test_the_order_of_rows_in_the_run_decides_nothing_but_ties() -> None:
    rows = layers("condition_number", [float(v) for v in np.random.default_rng(0).random(20)])
    shuffled = list(rows)
    random.Random(1).shuffle(shuffled)
    assert chosen_by(run_of(rows), modules=7) == chosen_by(run_of(shuffled), modules=7)


def test_kappa_takes_the_lowest_condition_numbers_and_no_others() -> None:
    """Defect K2: twice as many tensors were chosen and a set of their names was cut by its hash."""
    rng = np.random.default_rng(2)
    rows = [
        row(f"model.layers.{block}.{module}.weight", condition_number=float(rng.random()))
        for block in range(20)
        for module in ("mlp.up_proj", "mlp.down_proj", "self_attn.q_proj")
    ]
    expected = sorted(rows, key=lambda r: float(r["condition_number"] or 0))[:10]
    found = chosen_by(run_of(rows), modules=10, across=True)
    assert found == [r["name"] for r in expected]


def test_within_types_every_type_gets_an_even_share() -> None:
    """The square matrices have condition numbers a thousand times those of the long ones."""
    rows = [
        row(f"model.layers.{b}.self_attn.q_proj.weight", condition_number=1e4 + b) for b in range(8)
    ] + [row(f"model.layers.{b}.mlp.up_proj.weight", condition_number=5.0 + b) for b in range(4)]
    found = chosen_by(run_of(rows), modules=6)
    assert sorted(n for n in found if "q_proj" in n) == [
        f"model.layers.{b}.self_attn.q_proj.weight" for b in range(4)
    ]
    assert sorted(n for n in found if "up_proj" in n) == [
        f"model.layers.{b}.mlp.up_proj.weight" for b in range(2)
    ]
    across = chosen_by(run_of(rows), modules=4, across=True)
    assert all("up_proj" in name for name in across)


def test_the_only_one_of_its_type_is_in_the_middle_of_the_order() -> None:
    rows = layers("condition_number", [float(i) for i in range(10)])
    run = run_of([*rows, row("model.layers.0.mlp.fc1.weight", condition_number=900.0)])
    order = chosen_by(run)
    assert order.index("model.layers.0.mlp.fc1.weight") == 5
    assert blocks([*order[:5], *order[6:]]) == list(range(10))


# limits


def test_top_takes_whole_per_cent_of_each_type_rounded_down() -> None:
    rows = layers("snr_mp", range(10)) + layers("snr_mp", range(7), "mlp.down_proj")
    found = chosen_by(run_of(rows), by="snr", top=29.0)
    assert sorted(blocks([n for n in found if "up_proj" in n])) == [8, 9]  # 2.9
    assert sorted(blocks([n for n in found if "down_proj" in n])) == [5, 6]  # 2.03
    assert len(chosen_by(run_of(rows), by="snr", top=29.0, across=True)) == 4  # 4.93


def test_exact_shares_are_not_lost_to_rounding() -> None:
    run = run_of(layers("snr_mp", range(100)))
    for per_cent in range(1, 101):
        assert len(chosen_by(run, by="snr", top=float(per_cent))) == per_cent


def test_a_share_of_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match="of at most 3 weights of one type that is none"):
        chosen_by(run_of(layers("condition_number", [1.0, 2.0, 3.0])), top=25.0)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.integers(1, 400))
@settings(max_examples=60)
def test_the_budget_holds_and_takes_the_longest_beginning(sizes: list[int], budget: int) -> None:
    rows = [
        row(f"model.layers.{i}.mlp.up_proj.weight", (size, 1), condition_number=float(i))
        for i, size in enumerate(sizes)
    ]
    run = run_of(rows)
    if sizes[0] > budget:
        with pytest.raises(OptionError, match="alone costs"):
            chosen_by(run, budget=budget)
        return
    found = choose(run, Choice(budget=budget), lambda w: w.params)
    assert found.cost == sum(sizes[: found.count]) <= budget
    if found.count < len(sizes):
        assert found.cost + sizes[found.count] > budget
        assert found.left == sizes[found.count]
    else:
        assert found.left is None


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"by": "kapa"}, "choose from kappa, alpha"),
        ({"modules": 0}, "--modules 0"),
        ({"top": 0.0}, "--top 0%"),
        ({"top": 101.0}, "--top 101%"),
        ({"top": 10.0, "modules": 3}, "give one of them"),
        ({"budget": 0}, "--budget 0"),
    ],
)
def test_what_makes_no_sense_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        Choice(**options)


# what is considered


def test_embeddings_only_when_asked_norms_and_routers_never() -> None:
    rows = [
        row("model.embed_tokens.weight", condition_number=1.0),
        row("lm_head.weight", condition_number=1.0),
        row("model.layers.0.mlp.gate.weight", condition_number=1.0),
        row("model.layers.0.input_layernorm.weight", condition_number=1.0),
        row("wpe.weight", condition_number=1.0),
        row("model.layers.0.mlp.up_proj.weight", condition_number=9.0),
    ]
    run = run_of(rows)
    assert chosen_by(run) == ["model.layers.0.mlp.up_proj.weight"]
    assert set(chosen_by(run, include_embeddings=True)) == {
        "model.layers.0.mlp.up_proj.weight",
        "model.embed_tokens.weight",
        "lm_head.weight",
    }
    told = " ".join(choose(run, Choice(), lambda _: 1).remarks)
    assert "embeddings and heads (--include-embeddings takes them): 2." in told
    assert "routers: 1." in told
    assert "norms and tables of positions: 2." in told


def test_wrappers_are_not_part_of_a_name_and_prefixes_are() -> None:
    run = run_of([row("module._orig_mod.layers.0.mlp.up_proj.weight", condition_number=1.0)])
    assert chosen_by(run) == ["layers.0.mlp.up_proj.weight"]
    assert chosen_by(run, prefix="model.") == ["model.layers.0.mlp.up_proj.weight"]


def test_a_missing_column_names_what_fills_it() -> None:
    rows = layers("condition_number", [1.0, 2.0])
    with pytest.raises(OptionError, match=r"no snr_mp \(family snr\).*--metrics alpha,snr"):
        chosen_by(run_of(rows, metrics=("alpha",)), by="snr")
    with pytest.raises(OptionError, match="no row of it could be computed"):
        chosen_by(run_of(rows), by="snr")


def test_a_row_without_a_value_is_left_out_and_said() -> None:
    run = run_of(layers("condition_number", [3.0, None, 1.0]))
    found = choose(run, Choice(), lambda _: 1)
    assert blocks(names(found)) == [2, 0]
    assert found.remarks[0].startswith("Left out, no condition_number")


def test_names_of_a_gguf_file_belong_to_no_model() -> None:
    run = run_of(layers("condition_number", [3.0]), source="gguf")
    with pytest.raises(OptionError, match="GGUF"):
        chosen_by(run)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"provenance": {"base": {"model": "x"}}}, "a difference to a base model"),
        ({"rows": {"adapter_rank": 4}}, "the update of an adapter"),
        ({"summary": {"undrawn": 3}}, "the run is a sample"),
    ],
)
def test_runs_of_something_else_than_weights_are_refused(
    change: dict[str, dict[str, Any]], told: str
) -> None:
    run = run_of({**r, **change.get("rows", {})} for r in layers("condition_number", [3.0, 1.0]))
    run = dataclasses.replace(
        run,
        provenance={**run.provenance, **change.get("provenance", {})},
        summary=change.get("summary", {}),
    )
    with pytest.raises(OptionError, match=told):
        chosen_by(run)


def test_an_adapter_merged_into_its_base_is_a_model() -> None:
    rows = [{**r, "adapter_rank": 4} for r in layers("condition_number", [3.0, 1.0])]
    run = run_of(rows, base="base", merged=True)
    run = dataclasses.replace(run, provenance={**run.provenance, "base": {"model": "base"}})
    assert blocks(chosen_by(run)) == [1, 0]


def fused(values: dict[str, float], tensor: str = "model.layers.0.self_attn.qkv_proj") -> list[Row]:
    return [
        {
            **row(f"{tensor}.weight", (16, 16), condition_number=value),
            "name": f"{tensor}.weight[{part}]",
            "module": f"model.layers.#.self_attn.qkv_proj[{part}]",
            "role": f"attn_{part}",
        }
        for part, value in values.items()
    ]


def test_fused_parts_are_one_weight_judged_by_the_part_that_comes_last() -> None:
    rows = [
        *fused({"q": 50.0, "k": 2.0, "v": 3.0}),
        *fused({"q": 10.0, "k": 9.0, "v": 8.0}, "model.layers.1.self_attn.qkv_proj"),
    ]
    found = choose(run_of(rows), Choice(), lambda w: w.params)
    assert names(found) == [f"model.layers.{b}.self_attn.qkv_proj.weight" for b in (1, 0)]
    assert [c.value for c in found.chosen] == [10.0, 50.0]
    assert [c.row["name"] for c in found.chosen][1] == "model.layers.0.self_attn.qkv_proj.weight[q]"
    assert found.chosen[0].weight.params == 3 * 256
    assert found.chosen[0].weight.sides == (48, 16)
    assert found.chosen[0].weight.module == "model.layers.1.self_attn.qkv_proj"


def test_experts_of_a_stack_are_one_weight_and_separate_experts_are_many() -> None:
    stacked = [
        {
            **row("model.layers.0.mlp.experts.gate_up_proj", condition_number=float(e + 1)),
            "name": f"model.layers.0.mlp.experts.gate_up_proj[{e}][up]",
            "module": "model.layers.#.mlp.experts.gate_up_proj[up]",
            "expert": e,
        }
        for e in range(3)
    ]
    (weight,) = weights_of(run_of(stacked))
    assert weight.name == "model.layers.0.mlp.experts.gate_up_proj"
    assert weight.is_stack
    assert weight.module is None
    alone = [
        row(f"model.layers.0.mlp.experts.{e}.up_proj.weight", condition_number=float(e + 1))
        for e in range(3)
    ]
    assert [w.module for w in weights_of(run_of(alone))] == [
        f"model.layers.0.mlp.experts.{e}.up_proj" for e in range(3)
    ]
    assert not any(w.is_stack for w in weights_of(run_of(alone)))


def test_brackets_of_a_stored_name_stay() -> None:
    (weight,) = weights_of(run_of([row("odd[3].weight[q]", condition_number=1.0)]))
    assert weight.name == "odd[3].weight[q]"


# noise


def test_a_criterion_that_follows_shape_is_named_as_such() -> None:
    """Condition numbers that are those of noise but for a per cent."""
    rng = np.random.default_rng(0)
    nulls = np.repeat([4.0, 30.0, 700.0, 5000.0], 10)
    rows = [
        row(
            f"model.layers.{i}.mlp.up_proj.weight",
            condition_number=float(null * rng.uniform(0.99, 1.01)),
            condition_number_null=float(null),
        )
        for i, null in enumerate(nulls)
    ]
    chosen = choose(run_of(rows), Choice(modules=20), lambda _: 1)
    told = reasons.noise_sentence(chosen)
    assert "would share 20.0 of the 20 choices (chance alone: 10.0)" in told
    assert told.endswith("the choice follows shapes.")
    unlike = [{**r, "condition_number": 5000.0 - float(r["condition_number"] or 0)} for r in rows]
    told = reasons.noise_sentence(choose(run_of(unlike), Choice(modules=20), lambda _: 1))
    assert "would share 0.0 of the 20" in told
    assert told.endswith("the choice hardly follows shapes.")


def test_equal_noise_within_a_type_says_nothing_about_a_choice() -> None:
    rows = [{**r, "alpha_null": 7.0} for r in layers("alpha", [3.0, 2.0, 5.0, 4.0])]
    told = reasons.noise_sentence(choose(run_of(rows), Choice("alpha", 2), lambda _: 1))
    assert "share 1.0 of the 2 choices (chance alone: 1.0)" in told
    assert "does not follow their shapes" in told


def test_equal_values_are_not_laid_to_the_noise() -> None:
    rows = [{**r, "alpha_null": float(i)} for i, r in enumerate(layers("alpha", [3.0] * 4))]
    told = reasons.noise_sentence(choose(run_of(rows), Choice("alpha", 2), lambda _: 1))
    assert told.endswith("the weights of a type have one value themselves, so their names decided.")


def test_missing_nulls_and_a_choice_of_everything_are_said() -> None:
    run = run_of(layers("alpha", [3.0, 2.0]))
    told = reasons.noise_sentence(choose(run, Choice("alpha", 1), lambda _: 1))
    assert told == "Noise: no comparison, as the run has no alpha_null for 2 weights."
    told = reasons.noise_sentence(choose(run, Choice("alpha"), lambda _: 1))
    assert told.startswith("Everything was chosen: alpha decided nothing")


@given(st.data())
@settings(max_examples=40)
def test_overlap_with_noise_is_the_mean_over_random_ties(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 6))
    noise = data.draw(st.lists(st.integers(0, 2).map(float), min_size=n, max_size=n))
    count = data.draw(st.integers(1, n))
    shared, chance = reasons.expected_overlap(noise, [""] * n, count)
    from itertools import permutations

    overlaps, chances = [], []
    for order in permutations(range(n)):  # ties in every order
        noisy = sorted(range(n), key=lambda i: (noise[i], order[i]))[:count]
        overlaps.append(sum(i < count for i in noisy))
        chances.append(sum(i < count for i in order[:count]))
    assert shared == pytest.approx(np.mean(overlaps), abs=1e-12)
    assert chance == pytest.approx(np.mean(chances), abs=1e-12)


def test_rank_correlation_is_spearmans_within_groups() -> None:
    rng = np.random.default_rng(3)
    x, y = rng.integers(0, 6, 40).astype(float), rng.integers(0, 6, 40).astype(float)
    assert reasons.rank_correlation(list(x), list(y), [""] * 40) == pytest.approx(
        spearmanr(x, y).statistic, abs=1e-12
    )
    # groups far apart correlate through their levels; within them nothing is left
    level = np.repeat([0.0, 1e3], 20)
    groups = ["a"] * 20 + ["b"] * 20
    both = reasons.rank_correlation(list(x + level), list(y + level), [""] * 40)
    within = reasons.rank_correlation(list(x + level), list(y + level), groups)
    assert both is not None and both > 0.7
    assert within is not None and abs(within) < 0.5
    assert reasons.rank_correlation(list(x), [1.0] * 40, [""] * 40) is None


# what noise of a shape gets where no column holds it


def test_noise_has_no_signal_and_the_programs_score_calls_much_of_it_signal() -> None:
    """Defect S1, first half: values that metrics.md gives for the program, zero for ours."""
    shapes = [(512, 512), (1024, 512), (2048, 512)]
    rows = [
        row(
            f"l.{i}.up_proj.weight",
            shape,
            snr=1.0,
            snr_mp=1.0,
            frobenius_norm=math.prod(shape) ** 0.5,
        )
        for i, shape in enumerate(shapes)
    ]
    run = run_of(rows)
    assert noise_values(criterion_named("snr"), run, rows) == [0.0] * 3
    square, long, longer = noise_values(criterion_named("snr-spectrum"), run, rows)
    # unit variance: s_1 = sqrt N + sqrt M
    assert square is not None and 0.3 < square * 2 * 512**0.5 < 1.2
    assert long is not None and 2.0 < long * (1024**0.5 + 512**0.5) < 8.0
    assert longer is not None and longer > 1.0


def test_the_score_of_spectrum_of_noise_agrees_with_noise() -> None:
    import torch
    from measuring import figures, measure

    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(768, 384, generator=generator, dtype=torch.float64) * 0.02
    values = figures(measure(weight.to(torch.float32)), "snr", "norms")
    made = row("l.0.up_proj.weight", (768, 384), snr=1.0, frobenius_norm=values["frobenius_norm"])
    (expected,) = noise_values(criterion_named("snr-spectrum"), run_of([made]), [made])
    assert expected == pytest.approx(values["snr"], rel=0.05)


def test_welore_of_noise_agrees_with_weights_of_noise() -> None:
    import torch

    import weightscope

    generator = torch.Generator().manual_seed(0)
    shapes = {"self_attn.q_proj": (256, 256), "mlp.up_proj": (1024, 256)}
    tensors = {
        f"model.layers.{b}.{module}.weight": torch.randn(shape, generator=generator)
        for b in range(2)
        for module, shape in shapes.items()
    }
    run = weightscope.analyze(tensors, metrics=["welore", "norms"], device="cpu", threads=1)
    found = noise_values(criterion_named("welore"), run, run.rows)
    for expected, r in zip(found, run.rows, strict=True):
        assert expected == pytest.approx(r["welore_rank_ratio"], abs=0.02)
