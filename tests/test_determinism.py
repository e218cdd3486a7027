"""The same weights give the same bytes, however they are stored and whatever else is analysed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import (
    environment,
    gaussian,
    run_weightscope,
    write_file,
    write_in_order,
    write_sharded,
)

from weightscope import analysis, plan
from weightscope.analysis import Saving
from weightscope.evaluate import Row
from weightscope.run import Run
from weightscope.settings import Settings
from weightscope.sinks import csv

SETTINGS = Settings(threads=2, farms_embeddings=True)


def varied_model() -> dict[str, torch.Tensor]:
    """Every kind of matrix: dtypes, shapes, convolutions, experts, and degenerate ones."""
    rng = np.random.default_rng(7)
    heavy = torch.from_numpy(rng.standard_t(3, (96, 64))).float()
    low_rank = gaussian(80, 20, seed=1) @ gaussian(20, 60, seed=2)
    tensors = {
        "model.embed_tokens.weight": gaussian(200, 48, seed=3),
        "lm_head.weight": gaussian(200, 48, seed=4, dtype=torch.bfloat16),
        "vision.conv.weight": gaussian(32, 16, 3, 3, seed=5),
        "model.layers.0.mlp.experts.gate_up_proj": gaussian(3, 64, 40, seed=6),
        "zero.weight": torch.zeros(20, 20),
        "identity.weight": torch.eye(24),
        "broken.weight": torch.full((10, 12), float("nan")),
        "tiny.weight": gaussian(4, 3, seed=7),
        "empty.weight": torch.zeros(0, 8),
        "norm.weight": torch.ones(48),
        "positions": torch.arange(48),
    }
    for block in range(12):
        prefix = f"model.layers.{block}"
        kind = (torch.float32, torch.bfloat16, torch.float16, torch.float64)[block % 4]
        tensors[f"{prefix}.self_attn.q_proj.weight"] = gaussian(64, 64, seed=block, dtype=kind)
        tensors[f"{prefix}.mlp.up_proj.weight"] = heavy[:, : 40 + block].contiguous()
        tensors[f"{prefix}.mlp.down_proj.weight"] = (low_rank * (1 + block)).to(kind)
    return tensors


def analysed(model: Any, **changes: Any) -> Run:
    return analysis.analyze(model, replace(SETTINGS, **changes))


def as_csv(rows: Iterable[Row]) -> str:
    rows = list(rows)
    return csv.render(list(rows[0]), rows)


def without_welore(rows: Iterable[Row]) -> list[Row]:
    return [{k: v for k, v in row.items() if not k.startswith("welore")} for row in rows]


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return varied_model()


@pytest.fixture(scope="module")
def reference(tensors: dict[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The analysis of the model in one file; about fifty rows, most of them with every figure."""
    path = write_file(tmp_path_factory.mktemp("whole") / "model.safetensors", tensors)
    run = analysed(path)
    assert len(run.rows) == 47 and sum(row["status"] == "ok" for row in run.rows) > 35
    assert all(row["welore_rank"] for row in run.rows if row["block"] == 3)
    return run


def test_two_runs_of_the_command_print_the_same_bytes(
    tensors: dict[str, torch.Tensor], reference: Run, tmp_path: Path
) -> None:
    """Whatever the environment says of threads and hash seeds; and as from Python."""
    path = write_file(tmp_path / "model.safetensors", tensors)
    arguments = ("analyze", path, "--no-save", "--threads", "2", "--farms-embeddings")
    for threads, seed in (("1", "1"), ("2", "2")):
        env = environment(OMP_NUM_THREADS=threads, MKL_NUM_THREADS=threads, PYTHONHASHSEED=seed)
        done = run_weightscope(*arguments, env=env)
        assert done.returncode == 0, done.stderr
        assert done.stdout == as_csv(reference.rows)


@pytest.mark.parametrize("shards", [2, 3, 7])
def test_sharding_does_not_matter(
    tensors: dict[str, torch.Tensor], reference: Run, tmp_path: Path, shards: int
) -> None:
    folder = write_sharded(tmp_path / "model", tensors, shards, index=shards != 2)
    assert as_csv(analysed(folder).rows) == as_csv(reference.rows)


def test_the_order_of_tensors_in_a_file_does_not_matter(
    tensors: dict[str, torch.Tensor], reference: Run, tmp_path: Path
) -> None:
    names = list(tensors)
    shuffled = [names[i] for i in np.random.default_rng(0).permutation(len(names))]
    for order in (names[::-1], shuffled):
        path = write_in_order(tmp_path / "model.safetensors", tensors, order)
        assert as_csv(analysed(path).rows) == as_csv(reference.rows)


def test_a_model_in_memory_gives_what_its_file_gives(
    tensors: dict[str, torch.Tensor], reference: Run
) -> None:
    assert as_csv(analysed(tensors).rows) == as_csv(reference.rows)


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_how_the_work_is_cut_into_batches_does_not_matter(
    tensors: dict[str, torch.Tensor],
    reference: Run,
    monkeypatch: pytest.MonkeyPatch,
    size: int,
) -> None:
    monkeypatch.setattr(plan, "BATCH_MATRICES", size)
    assert as_csv(analysed(tensors).rows) == as_csv(reference.rows)


@pytest.mark.parametrize("threads", [1, 3])
def test_the_number_of_workers_does_not_matter_for_ordinary_matrices(
    tensors: dict[str, torch.Tensor], reference: Run, threads: int
) -> None:
    assert as_csv(analysed(tensors, threads=threads).rows) == as_csv(reference.rows)


def test_saving_does_not_matter(
    tensors: dict[str, torch.Tensor], reference: Run, tmp_path: Path
) -> None:
    path = write_file(tmp_path / "model.safetensors", tensors)
    saved = analysis.analyze(path, SETTINGS, Saving(True, tmp_path / "run"))
    read = analysis.analyze(path, SETTINGS, Saving(True, tmp_path / "run"))
    assert read.reused
    assert as_csv(saved.rows) == as_csv(read.rows) == as_csv(reference.rows)


def test_a_row_does_not_depend_on_what_else_is_analysed(
    tensors: dict[str, torch.Tensor], reference: Run
) -> None:
    """But for WeLore, whose threshold is one for the whole model."""
    for patterns in (("*layers.3.*",), ("*.mlp.*", "lm_head*"), ("*conv*",), ("model.layers.1.*",)):
        part = without_welore(analysed(tensors, include=patterns).rows)
        names = {row["name"] for row in part}
        whole = without_welore(row for row in reference.rows if row["name"] in names)
        assert 0 < len(names) < len(reference.rows)
        assert as_csv(part) == as_csv(whole)
    rest = analysed(tensors, exclude=("*layers.1*", "zero*"))
    names = {row["name"] for row in rest.rows}
    whole = without_welore(row for row in reference.rows if row["name"] in names)
    assert as_csv(without_welore(rest.rows)) == as_csv(whole)


def test_welore_alone_depends_on_what_else_is_analysed(
    tensors: dict[str, torch.Tensor], reference: Run
) -> None:
    """Otherwise the test above would hold for the wrong reason."""
    part = analysed(tensors, include=("*layers.3.*",))
    whole = [row for row in reference.rows if row["block"] == 3]
    assert [row["welore_rank"] for row in part.rows] != [row["welore_rank"] for row in whole]


def test_columns_of_a_family_do_not_depend_on_the_other_families(
    tensors: dict[str, torch.Tensor], reference: Run
) -> None:
    from weightscope.columns import IDENTITY
    from weightscope.evaluate import columns_of
    from weightscope.settings import FAMILIES

    stated = [column.name for column in IDENTITY if column.name not in {"warnings", "reason"}]
    for family in FAMILIES:
        alone = analysed(tensors, metrics=(family,))
        own = [column.name for column in columns_of([family])]
        # the windows are those of the family farms, and the reading hangs on the noise of the shape
        for column in {*stated, *own} - {"alpha_farms_null"}:
            found = [row[column] for row in alone.rows]
            assert found == [row[column] for row in reference.rows], (family, column)
        others = set(reference.rows[0]) - {c.name for c in IDENTITY} - set(own)
        assert all(row[column] is None for row in alone.rows for column in others)


def test_float16_and_bfloat16_are_widened_before_any_arithmetic() -> None:
    """The figures are those of the same values stored as float64."""
    for kind in (torch.float16, torch.bfloat16):
        narrow = gaussian(60, 50, scale=3.0).to(kind)
        half, double = (analysed({"w": w}).rows[0] for w in (narrow, narrow.to(torch.float64)))
        differs = {name for name in half if half[name] != double[name]}
        assert differs <= {
            "dtype", "warnings", "sv_floor", "condition_number_resolvable", "reason",
        }  # fmt: skip
