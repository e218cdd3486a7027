"""Maps of exponents: AlphaPruning's sparsities with a cap, TempBalance's learning rates."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from planning import layers, row, run_of
from torch import nn

import weightscope
from weightscope.errors import OptionError
from weightscope.integrations.rates import parameter_groups, read_multipliers
from weightscope.plans import lr, sparsity
from weightscope.proposal import Proposal
from weightscope.run import Run

SIZES = st.lists(st.integers(1, 10**8).map(float), min_size=1, max_size=12)


def ratios(run: Run, **options: Any) -> dict[str, float]:
    found = json.loads(sparsity.propose(run, sparsity.Options(**options)).body)
    assert found["format"] == "weightscope-sparsity" and found["version"] == 1
    return dict(found["sparsity"])


def multipliers(run: Run, **options: Any) -> dict[str, float]:
    return dict(json.loads(lr.propose(run, lr.Options(**options)).body)["multipliers"])


def llama_blocks() -> list[float]:
    """32 block means with those that are published for LLaMA-7B, and the others such that the mean
    share is the published one.

    Published (AlphaPruning's alpha_peak cache, S = 0.7, eps = 0.2): block means 2.622 2.890 2.969
    ... 4.160 3.537 with sparsities .5704 .6176 .6315 ... .8414 .7317, from .5680 to .8521. Smallest
    and largest mean follow from the map, as does the mean of all: eta = 0.5680 / 0.8 = S / share.
    """
    slope = (0.8414 - 0.5704) / (4.160 - 2.622)
    smallest = 2.622 - (0.5704 - 0.5680) / slope
    largest = smallest + (0.8521 - 0.5680) / slope
    mean = smallest + (0.7 - 0.5680) / slope
    known = [2.622, 2.890, 2.969, smallest, largest, 4.160, 3.537]
    rest = (32 * mean - sum(known)) / 25
    assert smallest < rest < largest
    return [*known[:3], smallest, largest, *[rest] * 25, *known[5:]]


def test_published_sparsities_of_llama_7b() -> None:
    means = llama_blocks()
    shapes = {"self_attn.q_proj": 16, "mlp.up_proj": 43, "mlp.down_proj": 43}
    rows = [
        # three layers whose mean is the block's
        row(f"model.layers.{b}.{module}.weight", (size, 16), alpha=mean + offset)
        for b, mean in enumerate(means)
        for offset, (module, size) in zip((0.6, -0.2, -0.4), shapes.items(), strict=True)
    ]
    found = ratios(run_of(rows), target=0.7, spread=0.2)
    of_blocks = [found[f"model.layers.{b}.mlp.up_proj.weight"] for b in range(32)]
    assert of_blocks == [found[f"model.layers.{b}.self_attn.q_proj.weight"] for b in range(32)]
    assert of_blocks[:3] == pytest.approx([0.5704, 0.6176, 0.6315], abs=2e-4)
    assert of_blocks[-2:] == pytest.approx([0.8414, 0.7317], abs=2e-4)
    assert (min(of_blocks), max(of_blocks)) == pytest.approx((0.5680, 0.8521), abs=2e-4)


def test_the_map_in_closed_form() -> None:
    """Two blocks of equal size: shares 0.7 and 1.3 of the target exactly."""
    run = run_of(layers("alpha", [2.0, 4.0]))
    assert list(ratios(run, target=0.5).values()) == pytest.approx([0.35, 0.65], abs=1e-15)
    farms = run_of(layers("alpha_farms", [2.0, 4.0]))
    assert list(ratios(farms, by="farms", target=0.5).values()) == pytest.approx([0.4, 0.6])


def test_equal_exponents_are_pruned_alike() -> None:
    """Defect A1, first half: 0/0 in the program."""
    assert set(ratios(run_of(layers("alpha", [3.0] * 5))).values()) == {0.7}


def test_no_sparsity_passes_the_cap_and_the_target_is_met() -> None:
    """Defect A1, second half: at S = .8, eps = .3 the program prunes up to 1.06 of a block, and the
    one that clamps misses the target."""
    means = llama_blocks()
    run = run_of(layers("alpha", means))
    found = np.array(list(ratios(run, target=0.8, spread=0.3, cap=0.99).values()))
    shares = sparsity.scaled_between(np.array(means), 0.7, 1.3)
    uncapped = 0.8 * shares / shares.mean()
    assert uncapped.max() > 1.0
    assert found.max() == 0.99
    assert found.mean() == pytest.approx(0.8, abs=1e-12)
    assert np.minimum(uncapped, 0.99).mean() < 0.799
    free = found < 0.99
    assert found[free] / uncapped[free] == pytest.approx(found[0] / uncapped[0], abs=1e-12)
    proposal = sparsity.propose(run, sparsity.Options(target=0.8))
    assert f"{int((found == 0.99).sum())} at the cap of 0.99" in proposal.budget


@given(st.data())
@settings(max_examples=150)
def test_properties_of_the_map(data: st.DataObject) -> None:
    sizes = data.draw(SIZES)
    n = len(sizes)
    alphas = np.array(data.draw(st.lists(st.floats(1.0, 20.0), min_size=n, max_size=n)))
    cap = data.draw(st.floats(0.3, 1.0))
    target = cap * data.draw(st.floats(0.01, 1.0))
    spread = data.draw(st.floats(0.0, 0.95))
    how = sparsity.Options(target=target, spread=spread, cap=cap)
    found = sparsity.sparsities(alphas, np.array(sizes), how)
    assert np.average(found, weights=sizes) == pytest.approx(target, rel=1e-12)
    assert found.max() <= cap
    assert found.min() >= 0
    order = np.argsort(alphas, kind="stable")
    assert np.all(np.diff(found[order]) >= 0)
    if np.ptp(alphas) == 0:
        assert found == pytest.approx(np.full(n, target), rel=1e-12)


def test_sparsities_go_by_name_whatever_the_order_of_tensors() -> None:
    """Defect A2: lists by position, whose up and down projections change places."""
    rows = [
        row(f"model.layers.{b}.mlp.{m}_proj.weight", alpha=2.0 + b + 0.1 * i)
        for b in range(4)
        for i, m in enumerate(("gate", "up", "down"))
    ]
    expected = ratios(run_of(rows), per="layer")
    for seed in range(5):
        shuffled = list(rows)
        random.Random(seed).shuffle(shuffled)
        found = ratios(run_of(shuffled), per="layer")
        assert found == pytest.approx(expected, abs=1e-15)
    assert len(set(expected.values())) == 12


def test_embeddings_routers_and_what_is_outside_the_blocks_are_not_pruned() -> None:
    rows = [
        *layers("alpha", [2.0, 3.0]),
        row("model.embed_tokens.weight", alpha=2.0),
        row("model.layers.0.mlp.gate.weight", alpha=2.0),
        row("pooler.dense.weight", alpha=9.0),
    ]
    proposal = sparsity.propose(run_of(rows), sparsity.Options())
    assert set(json.loads(proposal.body)["sparsity"]) == {str(r["name"]) for r in rows[:2]}
    told = " ".join(proposal.remarks)
    assert "embeddings and heads" in told and "routers" in told and "outside the blocks: 1" in told
    # without blocks every layer is one
    flat = run_of([row("fc1.weight", alpha=2.0), row("fc2.weight", alpha=4.0)])
    assert list(ratios(flat, target=0.5).values()) == pytest.approx([0.35, 0.65])


def test_blocks_of_two_towers_are_not_mixed() -> None:
    rows = [
        row(f"{tower}.layers.{b}.up_proj.weight", alpha=alpha + b)
        for tower, alpha in (("encoder", 2.0), ("decoder", 5.0))
        for b in range(2)
    ]
    assert len(set(ratios(run_of(rows)).values())) == 4


def test_fused_parts_and_experts_share_one_figure() -> None:
    parts = [
        {
            **row("h.0.attn.c_attn.weight", (16, 8 * (i + 1)), alpha=float(i + 2)),
            "name": f"h.0.attn.c_attn.weight[{part}]",
            "module": f"h.#.attn.c_attn[{part}]",
            "role": f"attn_{part}",
        }
        for i, part in enumerate("qkv")
    ]
    run = run_of([*parts, row("h.1.mlp.c_fc.weight", alpha=2.0)])
    assert list(ratios(run)) == ["h.0.attn.c_attn.weight", "h.1.mlp.c_fc.weight"]
    proposal = sparsity.propose(run, sparsity.Options())
    assert "1 weight of several rows" in " ".join(proposal.remarks)
    (record, _) = proposal.records
    # weighted by entries: (1 2 + 2 3 + 3 4) / 6
    assert record["alpha"] == pytest.approx(20 / 6)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"target": 0.0}, "--target 0"),
        ({"target": 0.995}, "up to the cap 0.99"),
        ({"cap": 1.5}, "--cap 1.5"),
        ({"spread": 1.0}, "--spread 1"),
        ({"per": "module"}, "choose block or layer"),
        ({"by": "kappa"}, "choose alpha or farms"),
    ],
)
def test_senseless_options_of_sparsity_are_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        sparsity.Options(**options)


def deviations(proposal: Proposal) -> str:
    return " ".join(proposal.deviations)


def test_another_fit_than_the_papers_is_named() -> None:
    rows = layers("alpha", [2.0, 3.0], "self_attn.q_proj")
    rows = [{**r, "M": 64, "N": 64} for r in rows]
    assert "--xmin peak" in deviations(sparsity.propose(run_of(rows), sparsity.Options()))
    peak = sparsity.propose(run_of(rows, xmin="peak"), sparsity.Options())
    assert "--xmin" not in deviations(peak)
    assert "--xmin mid" in deviations(lr.propose(run_of(rows), lr.Options()))
    assert "--xmin" not in deviations(lr.propose(run_of(rows, xmin="mid"), lr.Options()))


def test_a_plan_that_follows_shape_says_so() -> None:
    rows = [
        row(f"fc{i}.weight", (64, 64 * (i + 1)), alpha=null + 0.01 * i, alpha_null=null)
        for i, null in enumerate((4.0, 6.0, 8.0, 11.0, 12.0))
    ]
    told = sparsity.propose(run_of(rows), sparsity.Options()).noise
    assert told.endswith("rank correlation 1.00: the plan follows shapes.")
    same = [{**r, "alpha_null": 7.0} for r in rows]
    assert "equal sparsities" in sparsity.propose(run_of(same), sparsity.Options()).noise
    equal = [{**r, "alpha": 7.0} for r in rows]
    for plan in (
        sparsity.propose(run_of(equal), sparsity.Options()),
        lr.propose(run_of([{**r, "M": 64, "N": 64} for r in equal]), lr.Options()),
    ):
        assert plan.noise.startswith("Noise: no comparison, as the plan gives equal ")
    none = [{**r, "alpha_null": None} for r in rows]
    assert "no comparison" in sparsity.propose(run_of(none), sparsity.Options()).noise


# learning rates


def sized(values: list[float], count: int = 64) -> list[dict[str, Any]]:
    return [
        row(f"model.layers.{b}.mlp.up_proj.weight", (count, 2 * count), alpha=value)
        for b, value in enumerate(values)
    ]


def test_published_multipliers() -> None:
    found = list(multipliers(run_of(sized([1.5, 3.0, 6.0]))).values())
    assert found == pytest.approx([0.5, 0.5 + 1.5 / 4.5, 1.5], abs=1e-15)
    assert found[1] == pytest.approx(0.8333, abs=5e-5)


def test_equal_exponents_keep_the_learning_rate() -> None:
    """Defect T1: the program gives every layer 1.5 times the rate."""
    assert set(multipliers(run_of(sized([3.0, 3.0, 3.0]))).values()) == {1.0}
    assert set(multipliers(run_of(sized([3.0, 3.0])), low=0.2, high=4.0).values()) == {1.0}
    assert set(multipliers(run_of(sized([3.0]))).values()) == {1.0}


def test_layers_with_few_eigenvalues_and_embeddings_are_left_out() -> None:
    rows = [*sized([2.0, 4.0], 50), *sized([9.0], 49), row("lm_head.weight", (64, 64), alpha=20.0)]
    rows[2] = {**rows[2], "name": "model.layers.7.mlp.up_proj.weight"}
    assert list(multipliers(run_of(rows)).values()) == [0.5, 1.5]
    found = multipliers(run_of(rows), include_embeddings=True)
    assert found["lm_head.weight"] == 1.5
    assert len(found) == 3


@pytest.mark.parametrize("options", [{"low": 0.0}, {"low": 2.0, "high": 1.0}, {"low": -1.0}])
def test_senseless_multipliers_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="--low"):
        lr.Options(**options)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(3))
        self.norm = nn.LayerNorm(64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.relu(layer(x))
        return self.norm(x)


PLAN = {"layers.0.weight": 0.5, "layers.1.weight": 0.8, "layers.2.weight": 1.5}


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_optimizer_moves_each_layer_by_its_multiple(wrapped: bool) -> None:
    """SGD on the same gradients: the step of each parameter is its multiple of the plain one."""
    model = Net()
    before = copy.deepcopy(model.state_dict())
    outer = nn.DataParallel(model) if wrapped else model
    groups = parameter_groups(outer, PLAN, lr=0.1, weight_decay=0.0)
    assert [g["lr"] for g in groups] == pytest.approx([0.15, 0.1, 0.08, 0.05])
    assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))
    optimizer = torch.optim.SGD(groups, lr=123.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 if step == 0 else 0.5)
    model(torch.randn(8, 64)).square().mean().backward()
    expected = {**{f"layers.{i}": m for i, m in enumerate(PLAN.values())}, "norm": 1.0}
    optimizer.step()
    for name, parameter in model.named_parameters():
        step = before[name] - parameter.detach()
        rate = 0.1 * expected[name.rpartition(".")[0]]
        assert parameter.grad is not None
        assert step == pytest.approx(rate * parameter.grad, rel=1e-4, abs=1e-8)
    scheduler.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.075, 0.05, 0.04, 0.025])


@pytest.mark.parametrize("kind", ["AdamW", "Adagrad", "RMSprop"])
def test_any_optimizer_of_torch_takes_the_groups(kind: str) -> None:
    model = Net()
    model.norm.requires_grad_(False)
    groups = parameter_groups(model, PLAN, lr=0.01)
    assert [g["lr_multiplier"] for g in groups] == [1.5, 0.8, 0.5]
    assert groups[0]["names"] == ["layers.2.weight", "layers.2.bias"]
    optimizer = getattr(torch.optim, kind)(groups, lr=1.0)
    model(torch.randn(4, 64)).sum().backward()
    optimizer.step()


def test_a_plan_from_a_run_to_an_optimizer(tmp_path: Path) -> None:
    model = Net()
    run = weightscope.analyze(model, device="cpu", threads=1, xmin="mid")
    proposal = lr.propose(run, lr.Options())
    file = tmp_path / "rates.json"
    file.write_text(proposal.body)
    alphas = {
        str(r["name"]): float(r["alpha"] or 0) for r in run.rows if "layers" in str(r["name"])
    }
    low, high = min(alphas.values()), max(alphas.values())
    expected = {name: 0.5 + (a - low) / (high - low) for name, a in alphas.items()}
    assert read_multipliers(file) == pytest.approx(expected, abs=1e-12)
    found = {
        name: group["lr"]
        for group in parameter_groups(nn.Sequential(model), file, lr=2.0)
        for name in group["names"]
    }
    for name, multiplier in expected.items():
        assert found[f"0.{name}"] == pytest.approx(2 * multiplier)
        assert found[f"0.{name.replace('weight', 'bias')}"] == pytest.approx(2 * multiplier)
    assert found["0.norm.weight"] == 2.0


def test_a_plan_for_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="the model has no such parameter"):
        parameter_groups(Net(), {"layers.9.weight": 1.0}, lr=0.1)
    two = nn.ModuleDict({"a": Net(), "b": Net()})
    with pytest.raises(OptionError, match="2 parameters end in it"):
        parameter_groups(two, {"layers.0.weight": 1.0}, lr=0.1)
    other = tmp_path / "plan.json"
    other.write_text("{}")
    with pytest.raises(OptionError, match="is no plan"):
        parameter_groups(Net(), other, lr=0.1)
    with pytest.raises(OptionError, match="cannot be read"):
        parameter_groups(Net(), tmp_path / "none.json", lr=0.1)
    for multipliers in ("", ', "multipliers": [1]', ', "multipliers": {"layers.0.weight": "fast"}'):
        other.write_text(f'{{"format": "weightscope-lr"{multipliers}}}')
        with pytest.raises(OptionError, match="no table of numbers"):
            parameter_groups(Net(), other, lr=0.1)
