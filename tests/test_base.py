"""A model beside its base: differences, and adapters in the weights that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import gaussian, small_model, write_file, write_sharded
from test_adapters import (
    KOHYA,
    PREFIX,
    assert_spectrum,
    columns_of,
    factors,
    measured,
    svdvals,
    values_of,
    write_adapter,
)

from weightscope.analysis import analyze
from weightscope.bases import select_against
from weightscope.errors import CheckpointError, OptionError
from weightscope.evaluate import Row
from weightscope.select import Selection
from weightscope.settings import Settings
from weightscope.sources import open_model

Tensors = Mapping[str, torch.Tensor]


def moved(tensors: Tensors, seed: int = 50, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Every weight moved by a little, integers as they are."""
    return {
        name: (t + gaussian(*t.shape, seed=seed + i, scale=1e-3)).to(dtype)
        if t.is_floating_point()
        else t
        for i, (name, t) in enumerate(tensors.items())
    }


def against(model: Tensors, base: Tensors, merged: bool = False, **settings: Any) -> Selection:
    return select_against(open_model(model), open_model(base), Settings(**settings), merged)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(torch.float32, torch.float32), (torch.bfloat16, torch.float32),
     (torch.float32, torch.float16), (torch.float64, torch.bfloat16)],
)  # fmt: skip
def test_differences_are_found_across_shards_and_data_types(
    tmp_path: Path, ours: torch.dtype, theirs: torch.dtype
) -> None:
    base = {n: t.to(theirs) if t.is_floating_point() else t for n, t in small_model().items()}
    model = moved(base, dtype=ours)
    write_sharded(tmp_path / "model", model, shards=3)
    write_file(tmp_path / "base" / "model.safetensors", base)
    found = measured(tmp_path / "model", tmp_path / "base")
    assert len(found) == 9
    for name, one in found.items():
        difference = model[name].double() - base[name].double()
        assert_spectrum(one, svdvals(difference))
        energy = np.cumsum(svdvals(difference) ** 2)
        wanted = int(np.sum(energy < 0.9 * energy[-1])) + 1
        assert columns_of(one)["delta_rank_90"] == wanted


def test_kernels_and_experts_are_subtracted_slice_by_slice(tmp_path: Path) -> None:
    base = {"conv1.weight": gaussian(12, 8, 3, 3, seed=1), "mlp.experts.up": gaussian(3, 16, 20)}
    model = moved(base)
    paths = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for path, tensors in zip(paths, (model, base), strict=True):
        write_file(path, tensors)
    found = measured(*paths)
    change = {name: (model[name].double() - base[name].double()) for name in base}
    kernel = [svdvals(change["conv1.weight"][:, :, i, j]) for i in range(3) for j in range(3)]
    assert_spectrum(found["conv1.weight"], -np.sort(-np.concatenate(kernel)))
    for expert in range(3):
        one = found[f"mlp.experts.up[{expert}]"]
        assert_spectrum(one, svdvals(change["mlp.experts.up"][expert]))


def test_wrappers_do_not_hide_a_weight(tmp_path: Path) -> None:
    base = {"layers.0.q_proj.weight": gaussian(20, 20, seed=1)}
    model = {"module._orig_mod.layers.0.q_proj.weight": gaussian(20, 20, seed=2)}
    selection = against(model, base)
    (matrix,) = selection.matrices
    assert matrix.base is not None
    assert matrix.base.name == "layers.0.q_proj.weight"


def test_a_weight_that_the_base_lacks_gets_a_row_with_the_reason() -> None:
    base = {"a.weight": gaussian(8, 8), "b.weight": gaussian(8, 8)}
    model = {"a.weight": gaussian(8, 8), "b.weight": gaussian(8, 9), "c.weight": gaussian(8, 8)}
    selection = against(model, base)
    assert [matrix.name for matrix in selection.matrices] == ["a.weight"]
    reasons = {e.matrix.name: e.reason for e in selection.exclusions}
    assert "no weight of this name" in reasons["c.weight"]
    assert "[8, 8, 1], not [8, 9, 1]" in reasons["b.weight"]


def test_rounding_of_both_sides_is_in_the_floor(tmp_path: Path) -> None:
    exact = gaussian(96, 64, seed=3, scale=1.0).double()
    for seed, (name, dtype) in enumerate((("a", torch.bfloat16), ("b", torch.float16))):
        weights = exact * (1 + seed * 2**-5)
        write_file(tmp_path / f"{name}.safetensors", {"w": weights.to(dtype)})
    (found,) = measured(tmp_path / "a.safetensors", tmp_path / "b.safetensors").values()
    assert found.stats is not None
    assert found.stats.sv_floor is not None
    moved_by = np.abs(values_of(found) - svdvals(exact * 2**-5)).max()
    assert found.stats.sv_floor / 20 < moved_by < found.stats.sv_floor


def test_nothing_in_common_is_an_error() -> None:
    with pytest.raises(CheckpointError, match="none of the 1 weights"):
        against({"a.weight": gaussian(8, 8)}, {"b.weight": gaussian(8, 8)})


def test_a_base_that_is_an_adapter_is_refused() -> None:
    with pytest.raises(CheckpointError, match="an adapter itself"):
        against({"a.weight": gaussian(8, 8)}, factors("a", 8, 8))


def test_only_adapters_can_be_merged() -> None:
    with pytest.raises(OptionError, match="--merged is for adapters"):
        against({"a.weight": gaussian(8, 8)}, {"a.weight": gaussian(8, 8)}, merged=True)


def test_an_adapter_of_any_style_is_put_into_its_base(tmp_path: Path) -> None:
    weight = "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q.weight"
    W = gaussian(20, 30, seed=1)
    A, B = gaussian(4, 30, seed=2), gaussian(20, 4, seed=3)
    write_file(tmp_path / "base.safetensors", {weight.removeprefix("unet."): W})
    write_file(
        tmp_path / "lora.safetensors",
        {f"{KOHYA}.lora_down.weight": A, f"{KOHYA}.lora_up.weight": B,
         f"{KOHYA}.alpha": torch.tensor(2.0)},
    )  # fmt: skip
    paths = tmp_path / "lora.safetensors", tmp_path / "base.safetensors"
    (merged,) = measured(*paths, merged=True).values()
    assert_spectrum(merged, svdvals(W.double() + 0.5 * B.double() @ A.double()))
    assert "delta_rank_90" not in columns_of(merged)
    assert columns_of(merged)["adapter_scale"] == 0.5
    (update,) = measured(*paths).values()
    assert_spectrum(update, svdvals(0.5 * B.double() @ A.double()))


def test_an_update_is_turned_as_the_base_stores_the_weight(tmp_path: Path) -> None:
    W = gaussian(30, 20, seed=1)  # (in, out), though the adapter does not say so
    tensors = factors("h.0.c_fc", 20, 30)
    write_file(tmp_path / "base" / "model.safetensors", {"h.0.c_fc.weight": W})
    folder = write_adapter(tmp_path / "adapter", tensors)
    (found,) = measured(folder, tmp_path / "base", merged=True).values()
    A, B = (t.double() for t in tensors.values())
    assert_spectrum(found, svdvals(W.double() + 2 * (B @ A).T))


def test_experts_stored_the_other_way_round_are_turned_too(tmp_path: Path) -> None:
    W = gaussian(3, 16, 40, seed=1)
    A, B = gaussian(12, 16, seed=2), gaussian(40, 12, seed=3)
    names = [f"{PREFIX}layers.0.mlp.experts.lora_{side}.weight" for side in "AB"]
    folder = write_adapter(
        tmp_path / "adapter",
        dict(zip(names, (A, B), strict=True)),
        target_parameters=["experts.gate_up_proj"],
    )
    base = {"layers.0.mlp.experts.gate_up_proj": W}
    write_file(tmp_path / "base" / "model.safetensors", base)
    found = measured(folder, tmp_path / "base", merged=True, fused=True)
    stack = torch.einsum("ore,eri->eio", B.double().reshape(40, 4, 3), A.double().reshape(3, 4, 16))
    for expert in range(3):
        one = found[f"layers.0.mlp.experts.gate_up_proj[{expert}]"]
        assert_spectrum(one, svdvals(W[expert].double() + 2 * stack[expert]))


def test_kinds_without_their_first_factors_can_only_be_merged(tmp_path: Path) -> None:
    tensors = factors("q_proj", 20, 12)
    folder = write_adapter(tmp_path / "adapter", tensors, init_lora_weights="loftq")
    W = gaussian(20, 12, seed=9)
    write_file(tmp_path / "base.safetensors", {"q_proj.weight": W})
    base = tmp_path / "base.safetensors"
    selection = select_against(open_model(folder), open_model(base), Settings())
    assert not selection.matrices
    assert "LoftQ" in selection.exclusions[0].reason
    (found,) = measured(folder, base, merged=True).values()
    A, B = (t.double() for t in tensors.values())
    assert_spectrum(found, svdvals(W.double() + 2 * B @ A))


# whole runs


def rows_of(model: Path, **settings: Any) -> dict[str, Row]:
    run = analyze(str(model), Settings(threads=1, **settings))
    return {str(row["name"]): row for row in run.rows}


def test_a_run_of_an_adapter_names_what_it_leaves_out(tmp_path: Path) -> None:
    tensors = {**factors("a.q_proj", 60, 40, r=12), **factors("a.k_proj", 60, 40, r=12, seed=4)}
    tensors[f"{PREFIX}a.k_proj.lora_B.weight"].zero_()
    rows = rows_of(write_adapter(tmp_path, tensors, r=12))
    row, dead = rows["a.q_proj.weight"], rows["a.k_proj.weight"]
    A, B = list(tensors.values())[:2]
    s = svdvals(8 / 12 * B.double() @ A.double())
    assert row["status"] == "ok"
    assert row["rank"] == 12
    assert row["stable_rank"] == pytest.approx(np.sum(s**2) / s[0] ** 2, rel=1e-10)
    assert "rank_deficient" not in str(row["warnings"])
    assert "below_floor" not in str(row["warnings"])
    for column in ("condition_number", "alpha_null", "noise_p", "mp_sigma", "weight_abs_max"):
        assert row[column] is None, column
        assert f"{column}: " in str(row["reason"]), column
    assert (dead["status"], dead["delta_rank_99"]) == ("zero", 0)
    assert "never trained" in str(dead["reason"])


def test_a_run_against_a_base_records_it_and_resumes_as_itself(tmp_path: Path) -> None:
    base = small_model()
    model = moved(base)
    model["model.layers.1.mlp.up_proj.weight"] = base["model.layers.1.mlp.up_proj.weight"]
    write_file(tmp_path / "model.safetensors", model)
    write_file(tmp_path / "base.safetensors", base)
    settings = Settings(threads=1, base=str(tmp_path / "base.safetensors"))
    run = analyze(str(tmp_path / "model.safetensors"), settings)
    rows = {row["name"]: row for row in run.rows}
    same = rows["model.layers.1.mlp.up_proj.weight"]
    assert (same["status"], same["reason"]) == ("zero", "It equals the base.")
    assert run.provenance["base"]["files"][0]["name"] == "base.safetensors"
    assert run.label == "model minus base"
    name = "model.layers.0.mlp.up_proj.weight"
    wanted = svdvals(model[name].double() - base[name].double())
    assert rows[name]["spectral_norm"] == pytest.approx(wanted[0], rel=1e-11)


def test_merging_without_a_base_is_refused() -> None:
    with pytest.raises(OptionError, match="--base"):
        Settings(merged=True)
