"""Parts of one tensor: it is read once for all of them, decoded once, and held no longer."""

from __future__ import annotations

import gc
import json
import weakref
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import gaussian, write_file

from weightscope import analysis, expressions, measure
from weightscope.changes import measure_changes
from weightscope.checkpoint import Checkpoint
from weightscope.encodings import schemes
from weightscope.expressions import Fetcher, read_matrix
from weightscope.farms_settings import settings_grid, study
from weightscope.once import Once
from weightscope.select import select_for
from weightscope.settings import Settings
from weightscope.sources import open_model
from weightscope.tensor import TensorRef

FACTS = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4}
QUICK = Settings(metrics=("stats", "norms", "condition"), threads=2, device="cpu")


def interleaved(folder: Path, count: int = 5) -> Path:
    """Queries, keys and values head by head, so that no part is a block of rows."""
    tensors = {
        f"gpt_neox.layers.{i}.attention.query_key_value.weight": gaussian(192, 64, seed=i)
        for i in range(count)
    }
    write_file(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({"model_type": "gpt_neox", **FACTS}))
    return folder


def packed(folder: Path, count: int = 5) -> Path:
    """The same in blocks of rows of int8 codes with a scale per row."""
    tensors: dict[str, torch.Tensor] = {}
    for i in range(count):
        name = f"model.layers.{i}.self_attn.qkv_proj.weight"
        codes = torch.randint(-127, 128, (192, 64), generator=torch.Generator().manual_seed(i))
        tensors |= {name: codes.to(torch.int8), f"{name}_scale": torch.ones(192, 1) / 100}
    write_file(folder / "model.safetensors", tensors)
    weights = {"num_bits": 8, "type": "int", "strategy": "channel"}
    scheme = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": weights}}}
    config = {"model_type": "phi3", "quantization_config": scheme, **FACTS}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often every tensor is read."""
    found: Counter[str] = Counter()
    original = measure.reading

    @contextmanager
    def counting(checkpoint: Checkpoint, matrices: Any = ()) -> Iterator[Any]:
        with original(checkpoint, matrices) as read:

            def counted(ref: TensorRef, part: int | None) -> torch.Tensor:
                found[ref.name] += 1
                return read(ref, part)

            yield counted

    monkeypatch.setattr(measure, "reading", counting)
    monkeypatch.setattr("weightscope.changes.reading", counting)
    monkeypatch.setattr("weightscope.assignment.reading", counting)
    return found


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often every weight is decoded."""
    found: Counter[str] = Counter()
    original = schemes.decode

    def counted(encoded: Any, parts: Any) -> Any:
        found[encoded.name] += 1
        return original(encoded, parts)

    monkeypatch.setattr(expressions, "decode", counted)
    return found


def test_a_tensor_is_read_once_for_all_parts(tmp_path: Path, reads: Counter[str]) -> None:
    run = analysis.analyze(interleaved(tmp_path / "m"), QUICK)
    assert len(run.rows) == 15 and len(reads) == 5
    assert set(reads.values()) == {1}
    for i in range(5):
        heads = gaussian(192, 64, seed=i).double().reshape(4, 3, 16, 64)
        for k, part in enumerate("qkv"):
            name = f"gpt_neox.layers.{i}.attention.query_key_value.weight[{part}]"
            norm = float(torch.linalg.matrix_norm(heads[:, k].reshape(64, 64), 2))
            [row] = [row for row in run.rows if row["name"] == name]
            assert row["spectral_norm"] == pytest.approx(norm, rel=1e-9)


def test_a_quantised_tensor_is_read_and_decoded_once(
    tmp_path: Path, reads: Counter[str], decodes: Counter[str]
) -> None:
    path = packed(tmp_path / "m")
    run = analysis.analyze(path, replace(QUICK, shuffled=1))
    assert len(run.rows) == 15 and len(reads) == 10 and len(decodes) == 5
    assert set(reads.values()) == set(decodes.values()) == {1}
    decodes.clear()
    analysis.analyze(path, replace(QUICK, fused=True))
    assert len(decodes) == 5 and set(decodes.values()) == {1}


def test_comparing_and_trying_windows_read_once_too(
    tmp_path: Path, reads: Counter[str], decodes: Counter[str]
) -> None:
    path = packed(tmp_path / "m")
    checkpoint = open_model(path)
    names = [matrix.name for matrix in select_for(checkpoint, QUICK).matrices]
    found = list(measure_changes((checkpoint, checkpoint), [(n, n) for n in names], QUICK))
    assert len(found) == 15 and all(change and not change.rel_change for _, change in found)
    assert set(reads.values()) == {2} and set(decodes.values()) == {2}
    reads.clear()
    decodes.clear()
    grid = settings_grid((16,), (1,), 1.0, None, None)
    study(checkpoint, grid, replace(QUICK, metrics=("farms",)))
    assert set(reads.values()) == set(decodes.values()) == {1}


def test_both_sides_of_a_difference_are_read_once(
    tmp_path: Path, reads: Counter[str], decodes: Counter[str]
) -> None:
    base, model = packed(tmp_path / "a"), tmp_path / "b"
    weights = {
        f"model.layers.{i}.self_attn.qkv_proj.weight": gaussian(192, 64, seed=i) for i in range(5)
    }
    write_file(model / "model.safetensors", weights)
    (model / "config.json").write_text(json.dumps({"model_type": "phi3", **FACTS}))
    run = analysis.analyze(model, replace(QUICK, base=str(base)))
    assert {row["status"] for row in run.rows} == {"ok"} and len(run.rows) == 15
    assert set(decodes.values()) == {1}
    scales = {count for name, count in reads.items() if name.endswith("_scale")}
    assert scales == {1}, "the codes have the names of the weights beside them"


def test_what_was_read_is_held_for_siblings_only(tmp_path: Path) -> None:
    """Of a model of any depth no more than one tensor beside those that are worked on."""
    checkpoint = open_model(interleaved(tmp_path / "m", count=4))
    matrices = select_for(checkpoint, QUICK).matrices
    alive: list[weakref.ref[Any]] = []
    with measure.reading(checkpoint, matrices) as read:
        fetch = Fetcher(read)
        for number, matrix in enumerate(matrices):
            found = fetch(matrix)
            alive += [weakref.ref(found.own[0])] if number % 3 == 0 else []
            assert found.own[0] is alive[-1]()
            assert torch.equal(expressions.entries(matrix, found), read_matrix(read, matrix))
            del found
            gc.collect()
            assert sum(one() is not None for one in alive) == 1


def test_a_value_is_computed_once_by_many_threads_and_again_after_an_error() -> None:
    once, calls = Once(), Counter[str]()

    def compute() -> int:
        calls["computed"] += 1
        if calls["computed"] == 1:
            raise ValueError("not yet")
        return 7

    with pytest.raises(ValueError, match="not yet"):
        once.get("x", compute)
    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda _: once.get("x", compute), range(64))) == {7}
    assert calls["computed"] == 2
