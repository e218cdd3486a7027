"""Lists of parameters to train, read as axolotl and scripts around TRL read them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from behaviour import build, dump
from planning import layers, row, run_of
from torch import nn

import weightscope
from weightscope.errors import OptionError
from weightscope.plans import axolotl, trl
from weightscope.present.plan import plan_text
from weightscope.run import Run

Read = Callable[[str, nn.Module], set[str]]
LLAMA = {
    "hidden_size": 48,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 64,
}


def read_by_axolotl(text: str, model: nn.Module) -> set[str]:
    """Patterns from a YAML key; every period is one, brackets at the end are a range of rows."""
    found = set()
    for pattern in yaml.safe_load(text)["unfrozen_parameters"]:
        assert "\\" not in pattern, "axolotl would escape its escapes"
        assert not pattern.endswith("]")
        regex = re.compile(re.sub(r"\.(?!\+)", r"\\.", pattern))
        found |= {name for name, _ in model.named_parameters() if regex.match(name)}
    return found


def read_by_trl(text: str, model: nn.Module) -> set[str]:
    """Lines that begin with a dash, each a regular expression for the beginning of a name."""
    patterns = [line.split("- ")[1] for line in text.splitlines() if line.startswith("- ")]
    assert patterns == yaml.safe_load(text)
    names = [name for name, _ in model.named_parameters()]
    return {name for name in names if any(re.match(pattern, name) for pattern in patterns)}


TOOLS = [
    pytest.param(axolotl, read_by_axolotl, id="axolotl"),
    pytest.param(trl, read_by_trl, id="trl"),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[nn.Module, Run]:
    model = build("llama", attention_bias=True, **LLAMA)
    folder = tmp_path_factory.mktemp("llama")
    dump(model, folder)
    return model, weightscope.analyze(folder, device="cpu", threads=1)


def text_of(tool: ModuleType, run: Run, **options: Any) -> str:
    return plan_text(tool.propose(run, tool.Options(**options)), run, "weightscope plan")


def best(run: Run, column: str, share: float) -> set[str]:
    """Names of the highest values of each module type, by sorting them."""
    found: set[str] = set()
    kinds = {r["module"] for r in run.rows if r["block"] is not None}
    for kind in kinds:
        rows = [r for r in run.rows if r["module"] == kind]
        rows.sort(key=lambda r: -float(r[column] or 0))
        found |= {str(r["name"]) for r in rows[: int(len(rows) * share)]}
    return found


def with_biases(names: set[str], model: nn.Module) -> set[str]:
    known = {name for name, _ in model.named_parameters()}
    return names | ({n.removesuffix("weight") + "bias" for n in names} & known)


@pytest.mark.parametrize(("tool", "read"), TOOLS)
@pytest.mark.parametrize("top", [25.0, 50.0])
def test_the_best_of_each_type_are_trained_with_their_biases(
    llama: tuple[nn.Module, Run], tool: ModuleType, read: Read, top: float
) -> None:
    model, run = llama
    expected = with_biases(best(run, "snr_mp", top / 100), model)
    assert any(name.endswith("bias") for name in expected)
    assert read(text_of(tool, run, top=top), model) == expected
    if top == 25.0:
        assert read(text_of(tool, run), model) == expected


@pytest.mark.parametrize(("tool", "read"), TOOLS)
def test_embeddings_and_head_are_trained_when_asked(
    llama: tuple[nn.Module, Run], tool: ModuleType, read: Read
) -> None:
    model, run = llama
    without = read(text_of(tool, run), model)
    found = read(text_of(tool, run, include_embeddings=True), model)
    assert found - without == {"model.embed_tokens.weight", "lm_head.weight"}


@pytest.mark.parametrize(("tool", "read"), TOOLS)
def test_names_of_the_file_and_of_the_model_may_differ_by_a_prefix(
    tool: ModuleType, read: Read, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4}
    sizes |= {"num_attention_heads": 4, "vocab_size": 64}
    dump(build("bert", "AutoModel", **sizes), tmp_path)
    run = weightscope.analyze(tmp_path, metrics=["snr"], device="cpu", threads=1)
    headed = build("bert", "BertForMaskedLM", **sizes)
    assert read(text_of(tool, run), headed) == set()
    found = read(text_of(tool, run, prefix="bert."), headed)
    expected = with_biases({f"bert.{n}" for n in best(run, "snr_mp", 0.25)}, headed)
    assert found == expected
    assert len(found) == 12


@pytest.mark.parametrize(("tool", "read"), TOOLS)
def test_a_pattern_fits_its_own_name_alone(tool: ModuleType, read: Read) -> None:
    near = [
        "model.layers.1.mlp.up_proj.weight",
        "model.layers.11.mlp.up_proj.weight",
        "model.layers.1.mlp.up_proj.weight_scale",
        "modelxlayers.1.mlp.up_proj.weight",
        "tower.model.layers.1.mlp.up_proj.weight",
    ]

    class Names:
        def named_parameters(self) -> list[tuple[str, None]]:
            return [(name, None) for name in near]

    run = run_of([row(near[0], snr_mp=1.0), row("model.layers.2.mlp.up_proj.weight", snr_mp=0.0)])
    text = text_of(tool, run, modules=1)
    assert read(text, Names()) == {near[0]}  # type: ignore[arg-type]


@pytest.mark.parametrize(("tool", "read"), TOOLS)
def test_names_that_a_plain_line_cannot_carry_are_left_out(tool: ModuleType, read: Read) -> None:
    hostile = [
        "a: b.up_proj.weight",
        "x\n- .*.up_proj.weight",
        "layers.0.#x.up_proj.weight",
        "w[0:3]",
        "(a+)+$.up_proj.weight",
    ]
    good = "layers.0.mlp.up_proj.weight"
    run = run_of([*(row(name, snr_mp=9.0) for name in hostile), row(good, snr_mp=1.0)])
    proposal = tool.propose(run, tool.Options(modules=9))
    text = plan_text(proposal, run, "command\n- .*")

    class Names:
        def named_parameters(self) -> list[tuple[str, None]]:
            return [(name, None) for name in (*hostile, good)]

    assert read(text, Names()) == {good}  # type: ignore[arg-type]
    assert any("names that no plain pattern can carry: 5" in r for r in proposal.remarks)


@pytest.mark.parametrize("tool", [axolotl, trl])
def test_what_is_not_as_published_stands_in_the_file(tool: ModuleType) -> None:
    run = run_of(layers("snr_mp", [1.0, 2.0, 3.0, 4.0]))
    text = text_of(tool, run)
    assert "# Not as published: norms are never listed" in text
    assert "# Not as published: embeddings and head stay frozen" in text
    assert "# Not as published: snr is snr_mp" in text
    assert "Spectrum-25" not in text
    assert "another limit than Spectrum-25's 25 %" in text_of(tool, run, top=50.0)
    assert "alpha instead of a signal" in text_of(
        tool, run_of(layers("alpha", [1.0, 2.0, 3.0, 4.0])), by="alpha"
    )
    assert "the program never does" in text_of(tool, run, across=True)
    assert "#   snr_mp 4, noise 0\n- ^model" in text


# defect S1: noise counted as signal, a score that shrinks as the weights grow, ranked norms


def trained(block: int, rows: int = 96, cols: int = 48) -> torch.Tensor:
    """Noise with directions that stand out of it, the more the higher the block."""
    generator = torch.Generator().manual_seed(block)
    noise = torch.randn(rows, cols, generator=generator)
    left = torch.linalg.qr(torch.randn(rows, 4, generator=generator))[0]
    right = torch.linalg.qr(torch.randn(cols, 4, generator=generator))[0]
    return noise + (20.0 + 4.0 * block) * left @ right.T


def analysed(scales: dict[int, float]) -> Run:
    generator = torch.Generator().manual_seed(99)
    tensors: dict[str, torch.Tensor] = {
        f"model.layers.{b}.mlp.up_proj.weight": trained(b) * scales.get(b, 1.0) for b in range(6)
    }
    tensors["model.layers.6.mlp.up_proj.weight"] = torch.randn(96, 48, generator=generator)
    tensors |= {f"model.layers.{b}.input_layernorm.weight": torch.ones(48) for b in range(6)}
    return weightscope.analyze(tensors, metrics=["snr", "norms"], device="cpu", threads=1)


def test_noise_comes_last_and_the_scale_of_a_matrix_does_not_matter() -> None:
    plain, scaled = analysed({}), analysed({5: 100.0, 0: 0.01, 3: 10.0})
    order = [r["name"] for r in trl.propose(plain, trl.Options(modules=7)).records]
    assert order[0] == "model.layers.5.mlp.up_proj.weight"
    assert order[-1] == "model.layers.6.mlp.up_proj.weight"
    assert order == [r["name"] for r in trl.propose(scaled, trl.Options(modules=7)).records]
    assert trl.propose(plain, trl.Options(modules=7)).records[-1]["snr_mp"] == 0.0
    assert not any("layernorm" in str(name) for name in order)
    # the program's own score, which can be asked for, has both faults
    published = trl.Options(modules=7, by="snr-spectrum")
    theirs = [r["name"] for r in trl.propose(scaled, published).records]
    assert theirs.index("model.layers.5.mlp.up_proj.weight") == 6
    assert float(trl.propose(plain, published).records[-1]["snr"] or 0) > 0.01


def test_nothing_without_the_ratio() -> None:
    with pytest.raises(OptionError, match="--metrics alpha,snr"):
        axolotl.propose(run_of(layers("alpha", [1.0]), metrics=("alpha",)), axolotl.Options())
