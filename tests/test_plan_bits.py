"""Mixed precision: the budget holds, and the greedy widths against trying all of them."""

from __future__ import annotations

import json
from itertools import product
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import row, run_of

import weightscope
from weightscope.errors import OptionError
from weightscope.evaluate import Row
from weightscope.plans import bits
from weightscope.plans.bits import Tradeoff, widths_within
from weightscope.run import Run

WIDTHS = (2, 3, 4, 8)


def rows_with(errors: list[dict[int, float]], shapes: list[tuple[int, int]]) -> list[Row]:
    return [
        row(
            f"model.layers.{i}.mlp.up_proj.weight",
            shape,
            **{f"quant_error_{b}": e for b, e in of.items()},
        )
        for i, (of, shape) in enumerate(zip(errors, shapes, strict=True))
    ]


def run_with(errors: list[dict[int, float]], shapes: list[tuple[int, int]]) -> Run:
    return run_of(rows_with(errors, shapes), quant_error=tuple(errors[0]))


def widths(run: Run, **options: Any) -> list[int]:
    config = json.loads(bits.propose(run, bits.Options(**options)).body)["layer_config"]
    return [entry["bits"] for entry in config.values()]


def tradeoffs(draw: Any) -> list[Tradeoff]:
    n = draw(st.integers(1, 4))
    found = []
    for _ in range(n):
        errors = draw(st.lists(st.floats(1e-6, 1.0), min_size=4, max_size=4, unique=True))
        size = draw(st.integers(1, 6))
        found.append(Tradeoff(size, dict(zip(WIDTHS, sorted(errors)[::-1], strict=True))))
    return found


def loss(these: list[Tradeoff], given_widths: Any) -> float:
    return sum(t.size * t.errors[b] for t, b in zip(these, given_widths, strict=True))


def cost(these: list[Tradeoff], given_widths: Any) -> int:
    return sum(t.size * b for t, b in zip(these, given_widths, strict=True))


@given(st.data())
@settings(max_examples=120)
def test_within_the_budget_and_within_one_step_of_the_best(data: st.DataObject) -> None:
    these = tradeoffs(data.draw)
    total = sum(t.size for t in these)
    budget = data.draw(st.floats(2.0, 9.0)) * total
    found = widths_within(these, budget)
    assert cost(these, found) <= budget
    best = min(
        loss(these, w) for w in product(WIDTHS, repeat=len(these)) if cost(these, w) <= budget
    )
    largest_step = max(
        (t.size * gain * (b - a) for t in these for gain, a, b in t.steps), default=0
    )
    assert best <= loss(these, found) + 1e-15
    if budget >= cost(these, [8] * len(these)):
        assert loss(these, found) == best
    else:
        assert loss(these, found) <= best + largest_step + 1e-12


@given(st.data())
@settings(max_examples=60)
def test_at_every_budget_that_it_uses_up_nothing_is_better(data: st.DataObject) -> None:
    """Along the steps themselves the greedy widths are those of trying all of them."""
    these = tradeoffs(data.draw)
    steps = sorted(
        (-gain, i, low, high) for i, t in enumerate(these) for gain, low, high in t.steps
    )
    budget = cost(these, [2] * len(these))
    for _, i, low, high in [(0.0, 0, 0, 0), *steps]:
        budget += these[i].size * (high - low)
        found = widths_within(these, budget)
        assert cost(these, found) == budget
        best = min(
            loss(these, w) for w in product(WIDTHS, repeat=len(these)) if cost(these, w) <= budget
        )
        assert loss(these, found) == pytest.approx(best, rel=1e-12)


def test_by_hand() -> None:
    """The second weight gains most by its third bit, then the first, then both by their fourth."""
    errors = [{2: 0.5, 3: 0.3, 4: 0.1}, {2: 0.8, 3: 0.4, 4: 0.2}]
    run = run_with(errors, [(4, 4), (4, 4)])
    assert [widths(run, bits=b) for b in (2.0, 2.5, 3.0, 3.5, 4.0, 9.0)] == [
        [2, 2], [2, 3], [3, 3], [3, 4], [4, 4], [4, 4],
    ]  # fmt: skip
    proposal = bits.propose(run, bits.Options(bits=3.5))
    assert proposal.facts["weight_error"] == pytest.approx(((0.3**2 + 0.2**2) / 2) ** 0.5)
    assert "3.5000 of 3.5 bits" in proposal.budget
    assert f"against {((0.3**2 + 0.4**2) / 2) ** 0.5:.4g} with 3 bits for all" in proposal.budget


def test_a_width_that_does_not_pay_is_passed_over() -> None:
    """Three bits gain nothing here: the hull goes from two to four at once."""
    errors = [{2: 0.5, 3: 0.5, 4: 0.1}, {2: 0.5, 3: 0.2, 4: 0.15}]
    run = run_with(errors, [(4, 4), (4, 4)])
    assert widths(run, bits=2.5) == [2, 3]
    assert widths(run, bits=3.0) == [2, 4]  # the two bits of the first do not fit any more
    assert widths(run, bits=3.5) == [4, 3]


def test_a_step_that_does_not_fit_ends_its_weights_climb() -> None:
    """The first weight cannot pay the two bits to four, so it does not get the fifth either."""
    first = Tradeoff(10, {2: 0.9, 4: 0.2, 5: 0.1})
    second = Tradeoff(1, {2: 0.1, 4: 0.02, 5: 0.01})
    assert widths_within([first, second], 2 * 11 + 12.0) == [2, 5]
    assert widths_within([first, second], 2 * 11 + 20.0) == [4, 2]


def test_it_is_weight_error_and_says_so() -> None:
    proposal = bits.propose(run_with([{4: 0.1, 8: 0.01}], [(4, 4)]), bits.Options())
    assert "rounding error of the weights, not by accuracy" in proposal.criterion
    assert "Gaussian entries have one error at each width" in proposal.noise
    assert proposal.deviations == ("no paper: the plan is weightscope's own.",)


def test_what_was_not_measured_is_asked_for() -> None:
    run = run_of([row("a.up_proj.weight")])
    with pytest.raises(OptionError, match=r"no rounding errors were measured.*--quant-error 8,6,4"):
        bits.propose(run, bits.Options())
    with pytest.raises(OptionError, match="only 4 bits were measured"):
        bits.propose(run_with([{4: 0.1}], [(4, 4)]), bits.Options())
    with pytest.raises(OptionError, match=r"--bits 3\.9: below the lowest measured width, 4"):
        bits.propose(run_with([{4: 0.1, 8: 0.01}], [(4, 4)]), bits.Options(bits=3.9))
    with pytest.raises(OptionError, match="--bits nan: below the lowest"):
        bits.propose(run_with([{4: 0.1, 8: 0.01}], [(4, 4)]), bits.Options(bits=float("nan")))


def test_the_parts_of_a_fused_weight_share_one_width() -> None:
    parts = [
        {
            **r,
            "name": f"h.0.attn.c_attn.weight[{p}]",
            "module": f"h.#.attn.c_attn[{p}]",
            "role": f"attn_{p}",
        }
        for p, r in zip(
            "qk", rows_with([{2: 0.6, 4: 0.3}, {2: 0.8, 4: 0.1}], [(4, 4), (4, 12)]), strict=True
        )
    ]
    run = run_of(parts, quant_error=(4, 2))
    proposal = bits.propose(run, bits.Options(bits=2.0))
    assert json.loads(proposal.body)["layer_config"] == {
        "h.0.attn.c_attn": {"bits": 2, "group_size": 128, "sym": True}
    }
    (record,) = proposal.records
    assert record["quant_error_2"] == pytest.approx(((0.6**2 + 3 * 0.8**2) / 4) ** 0.5)


def test_outliers_get_the_bits() -> None:
    """One matrix with giant entries in every group, five without, analysed."""
    rng = np.random.default_rng(0)
    tensors = {}
    for i in range(6):
        weight = rng.standard_normal((32, 128))
        weight[:, 0] *= 20.0 if i == 3 else 1.0
        tensors[f"model.layers.{i}.mlp.up_proj.weight"] = weight.astype("float32")
    import torch

    run = weightscope.analyze(
        {k: torch.from_numpy(v) for k, v in tensors.items()},
        quant_error=(8, 4, 2), metrics=["norms"], device="cpu", threads=1,
    )  # fmt: skip
    proposal = bits.propose(run, bits.Options(bits=2 + 2 / 6))
    given_widths = {str(r["name"]): r["bits"] for r in proposal.records}
    assert [b for b in given_widths.values() if b == 4] == [4]
    by_column = {str(r["name"]): r["quant_error_2"] for r in run.rows}
    for record in proposal.records:
        assert record["quant_error_2"] == pytest.approx(by_column[str(record["name"])], rel=1e-15)
