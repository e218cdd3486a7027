"""LoRA plans: what the file says, ranks under a budget, and names that end alike."""

from __future__ import annotations

import json
import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import layers, row, run_of

import weightscope
from weightscope.errors import OptionError
from weightscope.plans import peft
from weightscope.proposal import Proposal
from weightscope.run import Run


def plan(run: Run, **options: Any) -> tuple[dict[str, Any], Proposal]:
    proposal = peft.propose(run, peft.Options(**options))
    return json.loads(proposal.body), proposal


def ranked(sizes: list[tuple[int, int]], effective: list[float]) -> Run:
    return run_of(
        row(
            f"model.layers.{i}.mlp.up_proj.weight",
            shape,
            condition_number=float(i + 1),
            effective_rank=e,
        )
        for i, (shape, e) in enumerate(zip(sizes, effective, strict=True))
    )


def test_defaults_are_those_of_kappatunes_program() -> None:
    config, proposal = plan(run_of(layers("condition_number", map(float, range(1, 81)))))
    assert config == {
        "peft_type": "LORA",
        "r": 16,
        "lora_alpha": 32,
        "lora_dropout": 0.05,
        "target_modules": [f"model.layers.{i}.mlp.up_proj" for i in range(50)],
        "rank_pattern": {},
        "alpha_pattern": {},
    }
    (deviation,) = proposal.deviations
    assert "--across" in deviation


def test_across_with_the_defaults_nothing_deviates() -> None:
    _, proposal = plan(run_of(layers("condition_number", [1.0, 2.0])), across=True)
    assert proposal.deviations == ()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"by": "alpha"}, "alpha instead of kappa"),
        ({"rank": "8"}, "rank 8 instead of 16"),
        ({"rank": "effective"}, "ranks by effective_rank instead of 16 for all"),
        ({"modules": 1}, "another limit than its helper's 50 modules"),
        ({"by": "snr"}, "counts noise as signal"),
    ],
)
def test_every_deviation_is_named(options: dict[str, Any], told: str) -> None:
    rows = [
        {**r, "alpha": 3.0, "snr_mp": 1.0, "effective_rank": 5.0}
        for r in layers("condition_number", [1.0, 2.0])
    ]
    _, proposal = plan(run_of(rows), **options)
    assert any(told in sentence for sentence in proposal.deviations)
    assert f"Not as published: {proposal.deviations[0]}" in proposal.sentences


def test_the_budget_counts_adapter_parameters() -> None:
    run = run_of(
        row(f"model.layers.{i}.mlp.up_proj.weight", (48, 16), condition_number=float(i + 1))
        for i in range(5)
    )
    config, proposal = plan(run, rank="4", budget=800)  # 4 * 64 each
    assert len(config["target_modules"]) == 3
    assert proposal.facts["adapter_parameters"] == 768
    assert "768 of 800 adapter parameters" in proposal.budget
    assert "the next one would cost 256" in proposal.budget


def test_ranks_in_proportion_to_effective_rank() -> None:
    """By hand: c = 1/2 gives ranks 4, 10 and 2 at 16 + 32 = 48 each, 768 parameters."""
    run = ranked([(32, 16)] * 3, [8.0, 20.0, 5.0])
    config, proposal = plan(run, rank="effective", budget=768)
    # no more than 16 outputs allow: the second could have 16 at most
    assert list(config["rank_pattern"].values()) == [4, 10, 2]
    assert list(config["alpha_pattern"].values()) == [8, 20, 4]
    assert config["r"] == 10 and config["lora_alpha"] == 20
    assert "768 of 768 adapter parameters" in proposal.budget
    assert "floor(c effective_rank)" in proposal.budget
    # the next ranks come at c = 5/8, 11/20, 3/5
    assert "just below 0.55)" in proposal.budget


def test_without_a_budget_effective_ranks_cost_no_more_than_16_for_all() -> None:
    run = ranked([(320, 64), (64, 64), (64, 128)], [40.0, 50.0, 12.0])
    config, proposal = plan(run, rank="effective")
    uniform = 16 * (384 + 128 + 192)
    spent = proposal.facts["adapter_parameters"]
    assert 0.9 * uniform < spent <= uniform
    assert len(config["rank_pattern"]) == 3


def test_a_budget_below_rank_one_for_all_is_refused() -> None:
    with pytest.raises(OptionError, match=r"rank 1 for the 3 chosen modules costs 144"):
        plan(ranked([(32, 16)] * 3, [8.0, 20.0, 5.0]), rank="effective", budget=143)


@given(st.data())
@settings(max_examples=80)
def test_effective_ranks_are_the_formula_with_the_largest_factor(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 5))
    side = st.integers(1, 12)
    sizes = data.draw(st.lists(st.tuples(side, side), min_size=n, max_size=n))
    effective = [data.draw(st.floats(1.0, float(min(size)))) for size in sizes]
    least = sum(a + b for a, b in sizes)
    budget = data.draw(st.integers(least, 14 * least))
    config, _ = plan(ranked(sizes, effective), rank="effective", budget=budget)
    ranks = list(config["rank_pattern"].values()) or [config["r"]] * n

    def at(c: float) -> list[int]:
        return [
            min(max(1, math.floor(c * e + 1e-9)), *size)
            for e, size in zip(effective, sizes, strict=True)
        ]

    def cost(these: list[int]) -> int:
        return sum(r * sum(size) for r, size in zip(these, sizes, strict=True))

    steps = sorted(
        {k / e for e, size in zip(effective, sizes, strict=True) for k in range(1, min(size) + 1)}
    )
    allowed = [at(c) for c in [0.0, *steps] if cost(at(c)) <= budget]
    assert cost(ranks) <= budget
    assert ranks == max(allowed, key=cost)


def test_fused_weights_get_the_effective_ranks_of_their_parts_together() -> None:
    rows = [
        {
            **row("h.0.attn.c_attn.weight", (16, 16), condition_number=2.0, effective_rank=e),
            "name": f"h.0.attn.c_attn.weight[{part}]",
            "module": f"h.#.attn.c_attn[{part}]",
            "role": f"attn_{part}",
        }
        for part, e in zip("qkv", (4.0, 5.0, 6.0), strict=True)
    ]
    rows.append(row("h.0.mlp.c_fc.weight", (16, 16), condition_number=1.0, effective_rank=5.0))
    config, _ = plan(run_of(rows), rank="effective", budget=9 * 64 + 3 * 32)
    assert config["rank_pattern"] == {r"h\.0\.mlp\.c_fc": 3, r"h\.0\.attn\.c_attn": 9}


def test_names_that_end_alike_are_told_apart() -> None:
    """peft compares endings, so the one name would take the other module too."""
    rows = [
        row("layers.0.up_proj.weight", condition_number=1.0, effective_rank=8.0),
        row("vision.layers.0.up_proj.weight", condition_number=2.0, effective_rank=4.0),
        row("layers.1.up_proj.weight", condition_number=3.0, effective_rank=4.0),
    ]
    config, _ = plan(run_of(rows), modules=1, across=True)
    assert config["target_modules"] == ["layers.0.up_proj"]
    assert config["exclude_modules"] == ["vision.layers.0.up_proj"]
    config, _ = plan(run_of(rows), modules=2, across=True, rank="effective", budget=12 * 48)
    assert "exclude_modules" not in config
    # patterns are tried in order: what ends in another comes first
    assert list(config["rank_pattern"]) == [r"vision\.layers\.0\.up_proj", r"layers\.0\.up_proj"]


def test_patterns_are_escaped() -> None:
    rows = [
        row("a+b(c.up_proj.weight", condition_number=1.0, effective_rank=9.0),
        row("axb.up_proj.weight", condition_number=2.0, effective_rank=3.0),
    ]
    config, _ = plan(run_of(rows), rank="effective", budget=12 * 48)
    (first, second) = config["rank_pattern"]
    assert re.fullmatch(first, "a+b(c.up_proj")
    assert not re.fullmatch(second, "axbxup_proj")


def test_what_peft_cannot_take_is_said() -> None:
    stacked = [
        {
            **row("model.layers.0.mlp.experts.down_proj", condition_number=1.0),
            "name": f"model.layers.0.mlp.experts.down_proj[{e}]",
            "expert": e,
        }
        for e in range(2)
    ]
    bare = row("model.layers.0.self_attn.in_proj_weight", condition_number=1.0)
    linear = row("model.layers.0.self_attn.o_proj.weight", condition_number=1.0)
    config, proposal = plan(run_of([*stacked, bare, linear]))
    assert config["target_modules"] == ["model.layers.0.self_attn.o_proj"]
    told = " ".join(proposal.remarks)
    assert "stacks of experts" in told
    assert "parameters that are no module's weight: 1." in told


def test_single_experts_are_modules_of_some_versions_only() -> None:
    rows = [
        row(f"model.layers.0.mlp.experts.{e}.up_proj.weight", condition_number=1.0)
        for e in range(2)
    ]
    config, proposal = plan(run_of(rows))
    assert len(config["target_modules"]) == 2
    assert any("single experts" in remark for remark in proposal.remarks)


def test_condition_numbers_that_measure_rounding_are_said() -> None:
    rows = layers("condition_number", [3.0, 900.0, 2000.0])
    rows = [{**r, "condition_number_resolvable": 500.0} for r in rows]
    _, proposal = plan(run_of(rows), modules=2)
    assert any(remark.startswith("1 of the chosen have a condition") for remark in proposal.remarks)


def test_a_convolution_costs_its_whole_kernel() -> None:
    rows = [{**row("conv1.weight", (8, 4), condition_number=1.0), "slices": 9, "params": 288}]
    _, proposal = plan(run_of(rows), rank="2")
    assert proposal.facts["adapter_parameters"] == 2 * (8 + 4 * 9)


def test_records_hold_columns_of_the_run(minilm_run: Run) -> None:
    config, proposal = plan(minilm_run, modules=9, rank="effective")
    rows = {row["name"]: row for row in minilm_run.rows}
    assert [r["name"] for r in proposal.records[:9]] == [
        f"{module}.weight" for module in config["target_modules"]
    ]
    for record in proposal.records:
        source = rows[record["decided_by"]]
        for column in ("condition_number", "condition_number_null"):
            assert record[column] == source[column]
        if record["chosen"] == "yes":
            assert record["effective_rank"] == source["effective_rank"]
            assert record["rank"] >= 1


def test_kappa_across_types_never_takes_the_square_matrices_of_minilm(minilm_run: Run) -> None:
    """By an independent route: sort the spectra's condition numbers."""
    spectra = minilm_run.spectra()
    inside = [n for n in spectra if "embeddings" not in n]
    kappa = {n: float(spectra[n].largest / spectra[n].smallest) for n in inside}
    expected = sorted(inside, key=lambda n: kappa[n])[:12]
    config, proposal = plan(minilm_run, modules=12, across=True)
    assert config["target_modules"] == [n.removesuffix(".weight") for n in expected]
    assert not any("attention.self" in n for n in config["target_modules"])
    assert "share 12.0 of the 12 choices" in proposal.noise
    assert np.all(np.diff([kappa[n] for n in expected]) >= 0)


def test_convolutions_bf16_and_rounding_noise() -> None:
    """Defect K1: the program skips the first two without a word and ranks by the third."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    tensors = {
        "layers.0.conv.weight": normal(16, 32, 3, 3),
        "layers.0.up_proj.weight": normal(96, 48).to(torch.bfloat16),
        "layers.0.down_proj.weight": normal(64, 20) @ normal(20, 64),
    }
    run = weightscope.analyze(tensors, device="cpu", threads=1, metrics="condition null")
    config, proposal = plan(run, across=True)
    assert config["target_modules"][:2] == ["layers.0.up_proj", "layers.0.conv"]
    told = " ".join(proposal.remarks)
    # a rank of 20 of 64: its smallest singular value is rounding
    assert "no condition_number" in told or "order is that of rounding" in told
