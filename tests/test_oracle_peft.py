"""peft itself adapts exactly what a plan says (pip install '.[oracle]')."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from behaviour import build, dump
from checkpoints import run_weightscope
from torch import nn

import weightscope
from weightscope.plans import peft as plan
from weightscope.run import Run

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(
        importlib.util.find_spec("peft") is None,
        reason="peft is not installed: pip install '.[oracle]'",
    ),
]

LLAMA = {
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}
BERT = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 64,
}
GPT2 = {"n_embd": 48, "n_layer": 2, "n_head": 4, "vocab_size": 64}


def analysed(model: nn.Module, folder: Path) -> Run:
    dump(model, folder)
    return weightscope.analyze(folder, device="cpu", threads=1)


def adapted(model: nn.Module, config: dict[str, Any]) -> dict[str, tuple[int, float, float]]:
    """Rank, alpha and scaling of every module that peft has put an adapter on."""
    import peft

    wrapped = peft.get_peft_model(model, peft.LoraConfig(**config))
    found = {}
    for name, module in wrapped.named_modules():
        embedding = getattr(module, "lora_embedding_A", {})
        if "default" in getattr(module, "lora_A", {}) or "default" in embedding:
            rank = (embedding if embedding else module.lora_A)["default"]
            rank = (rank if embedding else rank.weight).shape[0]
            assert module.r["default"] == rank
            found[name.removeprefix("base_model.model.")] = (
                rank,
                module.lora_alpha["default"],
                module.scaling["default"],
            )
    return found


def expected(proposal: Any) -> dict[str, tuple[int, float, float]]:
    return {
        str(r["name"]).removesuffix(".weight"): (r["rank"], r["lora_alpha"], 2.0)
        for r in proposal.records
        if r["chosen"] == "yes"
    }


@pytest.mark.parametrize(
    "options",
    [
        {"modules": 5},
        {"top": 34.0, "by": "alpha", "rank": "4"},
        {"modules": 9, "rank": "effective", "budget": 6000},
        {"modules": 25, "rank": "effective"},  # peft then looks for shorter endings itself
        {"across": True, "budget": 9000, "rank": "8"},
        {"rank": "3", "include_embeddings": True},
    ],
    ids=str,
)
def test_exactly_the_planned_modules_of_llama_are_adapted(
    options: dict[str, Any], tmp_path: Path
) -> None:
    model = build("llama", **LLAMA)
    proposal = plan.propose(analysed(model, tmp_path / "model"), plan.Options(**options))
    found = adapted(model, json.loads(proposal.body))
    assert found == expected(proposal)
    assert len(found) == len(json.loads(proposal.body)["target_modules"])
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == proposal.facts["adapter_parameters"]


def test_names_of_a_bare_model_fit_the_model_with_a_head(tmp_path: Path) -> None:
    bare = build("bert", "AutoModel", **BERT)
    proposal = plan.propose(
        analysed(bare, tmp_path / "model"), plan.Options(modules=4, rank="effective", budget=3000)
    )
    headed = build("bert", "BertForMaskedLM", **BERT)
    found = adapted(headed, json.loads(proposal.body))
    assert found == {f"bert.{name}": figures for name, figures in expected(proposal).items()}


def test_fused_weights_of_gpt2_are_adapted_whole(tmp_path: Path) -> None:
    model = build("gpt2", **GPT2)
    run = analysed(model, tmp_path / "model")
    assert any(str(r["name"]).endswith("c_attn.weight[q]") for r in run.rows)
    proposal = plan.propose(run, plan.Options(rank="effective", budget=20_000))
    found = adapted(model, {**json.loads(proposal.body), "fan_in_fan_out": True})
    assert found == expected(proposal)
    assert "transformer.h.0.attn.c_attn" in found
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == proposal.facts["adapter_parameters"] <= 20_000


class Towers(nn.Module):
    """Two towers whose layers end alike, and a convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.ModuleDict({"up_proj": nn.Linear(16, 24)}) for _ in range(3))
        self.vision = nn.ModuleDict(
            {
                "layers": nn.ModuleList(
                    nn.ModuleDict({"up_proj": nn.Linear(12, 32)}) for _ in range(2)
                ),
                "patch": nn.Conv2d(8, 16, 3),
            }
        )


@pytest.mark.parametrize("modules", range(1, 7))
def test_endings_that_fit_two_modules_adapt_one(modules: int) -> None:
    model = Towers()
    run = weightscope.analyze(model, device="cpu", threads=1)
    options = plan.Options(modules=modules, across=True, rank="effective", budget=1500)
    proposal = plan.propose(run, options)
    assert adapted(model, json.loads(proposal.body)) == expected(proposal)


def test_the_file_is_a_configuration_that_peft_loads_from_its_folder(tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "model"
    dump(build("llama", **LLAMA).float(), folder)
    assert run_weightscope("analyze", folder, "--out", "run", cwd=tmp_path).returncode == 0
    done = run_weightscope(
        *("plan", "run", "--for", "peft", "--modules", 6, "--rank", "effective"),
        *("--out", "adapter_config.json"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    config = peft.LoraConfig.from_pretrained(tmp_path)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(folder), config)
    record = json.loads((tmp_path / "adapter_config.json.run.json").read_text())
    wanted = {
        f"base_model.model.{r['name']}".removesuffix(".weight"): r["rank"]
        for r in record["records"]
        if r["chosen"] == "yes"
    }
    found = {
        name: module.r["default"]
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
    }
    assert found == wanted and len(found) == 6
