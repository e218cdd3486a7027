"""CUDA against CPU, where there is a device: alpha to 1e-3, counts within 1, kappa to 1e-2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import weightscope
from weightscope.evaluate import Row

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]

COUNTS = ("alpha_n_tail", "alpha_farms_n_tail", "erg_n_tail", "rank", "welore_rank", "mp_spikes")
NORMS = ("frobenius_norm", "spectral_norm", "nuclear_norm", "stable_rank", "effective_rank")


def _model() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    heavy = matrix(512, 384) / matrix(512, 384).square().add(matrix(512, 384).square()).sqrt()
    return {
        "layers.0.mlp.up_proj.weight": heavy,
        "layers.0.self_attn.q_proj.weight": matrix(384, 384),
        "layers.0.self_attn.o_proj.weight": matrix(384, 384).bfloat16(),
        "layers.0.mlp.down_proj.weight": matrix(384, 512).half(),
        "layers.0.conv.weight": matrix(64, 48, 3, 3),
        "layers.0.mlp.experts.w1": matrix(3, 96, 128),
    }


@pytest.fixture(scope="module")
def pairs() -> list[tuple[Row, Row]]:
    """Rows of the same model on the CPU and on the device."""
    model = _model()
    cpu = weightscope.analyze(model, device="cpu").rows
    gpu = weightscope.analyze(model, device="cuda").rows
    return list(zip(cpu, gpu, strict=True))


def test_exponents_agree(pairs: list[tuple[Row, Row]]) -> None:
    for cpu, gpu in pairs:
        assert gpu["alpha"] == pytest.approx(cpu["alpha"], rel=1e-3), cpu["name"]
        if cpu["alpha_farms"] is not None:
            assert gpu["alpha_farms"] == pytest.approx(cpu["alpha_farms"], rel=1e-3), cpu["name"]


def test_counts_agree_within_one(pairs: list[tuple[Row, Row]]) -> None:
    for cpu, gpu in pairs:
        for column in COUNTS:
            if cpu[column] is not None:
                assert abs(int(gpu[column]) - int(cpu[column])) <= 1, (cpu["name"], column)  # type: ignore[arg-type]


def test_norms_and_condition_numbers_agree(pairs: list[tuple[Row, Row]]) -> None:
    for cpu, gpu in pairs:
        assert gpu["condition_number"] == pytest.approx(cpu["condition_number"], rel=1e-2)
        for column in NORMS:
            assert gpu[column] == pytest.approx(cpu[column], rel=1e-9), (cpu["name"], column)


def test_the_device_is_recorded() -> None:
    run = weightscope.analyze({"a.weight": torch.randn(64, 64)}, device="cuda:0")
    assert run.provenance["settings"]["device"] == "cuda"
    assert run.provenance["environment"]["device_name"] == torch.cuda.get_device_name(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_factors_have_the_errors_of_those_from_the_cpu(dtype: torch.dtype) -> None:
    from weightscope.decompositions.truncated import truncated

    matrix = torch.randn(300, 200, generator=torch.Generator().manual_seed(1)).to(dtype)
    cpu, gpu = truncated(matrix, 50), truncated(matrix.cuda(), 50)
    assert gpu.left.is_cuda
    for figure in ("frobenius_norm", "relative_error", "stored_error"):
        assert getattr(gpu, figure) == pytest.approx(getattr(cpu, figure), rel=1e-6), figure


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="fewer than two CUDA devices here")
def test_several_devices_write_what_one_writes(tmp_path: Path) -> None:
    from checkpoints import write_file

    model = write_file(tmp_path / "model.safetensors", _model())
    for device, out in (("cuda:0", "one"), ("cuda", "all"), ("cuda:1,cuda:0", "two")):
        weightscope.analyze(model, out=tmp_path / out, device=device, shuffled=0)
    for name in ("table.jsonl", "rows.jsonl", "spectra.safetensors"):
        expected = (tmp_path / "one" / name).read_bytes()
        assert (tmp_path / "all" / name).read_bytes() == expected
        assert (tmp_path / "two" / name).read_bytes() == expected
