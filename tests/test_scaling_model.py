"""The README's forecast is what its model prints, and the model counts what it should."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from weightscope.plan import SOLVE_FLOPS, flops
from weightscope.recipe import Farms

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "tests" / "benchmarks" / "scaling_model.py"


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    sys.path.insert(0, str(SCRIPT.parent))
    try:
        spec = importlib.util.spec_from_file_location("scaling_model", SCRIPT)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(SCRIPT.parent))
    return module


def test_the_tables_are_those_of_the_readme(
    scaling: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    scaling.tables()
    readme = (ROOT / "README.md").read_text()
    shown = readme.partition("<!-- scaling -->\n")[2].partition("<!-- /scaling -->")[0]
    assert shown == capsys.readouterr().out


def test_models_have_their_published_sizes(scaling: ModuleType) -> None:
    """Parameters of the matrices: Llama 2 7B, Llama 3 70B, and 671 billion of DeepSeek-V3."""
    found = {name: make() for name, make in scaling.MODELS.items()}
    params = {name: sum(m.params for m in matrices) for name, matrices in found.items()}
    assert params["7B"] == 6_738_415_616 - 65 * 4096  # less the norms
    assert params["70B"] == 70_553_706_496 - 161 * 8192
    assert 670e9 < params["671B"] < 672e9
    assert len(found["671B"]) == 61 * 5 + 3 * 3 + 58 * (1 + 257 * 3) + 2 == 45_092
    assert sum(m.role.startswith("expert") for m in found["671B"]) >= 58 * 256 * 3
    one = next(m for m in found["671B"] if m.name.endswith("experts.7.up_proj.weight"))
    assert (one.N, one.M, one.nbytes) == (7168, 2048, 7168 * 2048)
    assert flops(one, None) == 7168 * 2048**2 + SOLVE_FLOPS * 2048**3


def test_a_forecast_by_hand(scaling: ModuleType) -> None:
    """Eight equal matrices: the slowest of three parts has three of them."""
    rates = scaling.Rates({64: 1e9, 4096: 1e9}, {64: 2e9, 4096: 2e9}, {32: 0.0}, 0.25, 1e-9, 3.0)
    shapes = [(f"model.layers.{i}.mlp.up_proj.weight", 1000, 500) for i in range(8)]
    work = scaling.Work.of(scaling.model(shapes), None)
    each = 1000 * 500**2 / 1e9 + 4 / 3 * 500**3 / 2e9 + 0.25 + 1000 * 500 * 1e-9
    for parts, most in ((1, 8), (3, 3), (8, 1), (20, 1)):
        found = scaling.forecast(work, rates, parts, 2)
        assert found.wall == pytest.approx(3.0 + most * each / 2, rel=1e-12)
        assert found.busy == pytest.approx(8 * each, rel=1e-12)
        assert found.reading == pytest.approx(2 * 1000 * 500 / (each / 2), rel=1e-12)
    gpu = scaling.Gpu(1e12, 1e-5, 1e12, 1e10, rates)
    on_gpu = 1000 * 500**2 / 1e12 + 500e-5 + 8 / 3 * 500**3 / 1e12 + 0.25 + 1e6 / 1e10
    assert scaling.forecast(work, gpu, 1, 1).busy == pytest.approx(8 * on_gpu, rel=1e-12)
    assert scaling.between({64: 1.0, 256: 4.0}, 128) == pytest.approx(2.0)
    assert scaling.between({64: 1.0, 256: 4.0}, 9999) == pytest.approx(4.0)


def test_windows_are_those_that_a_plan_counts(scaling: ModuleType) -> None:
    """Three each way of 500 in 1000 x 1000."""
    [one] = scaling.model([("model.layers.0.mlp.up_proj.weight", 1000, 1000)])
    rates = scaling.Rates(
        {64: 1e9, 4096: 1e9}, {64: 2e9, 4096: 2e9}, {64: 0.5, 512: 0.5}, 0.0, 0.0, 0.0
    )
    assert rates.seconds(one, Farms()) - rates.seconds(one, None) == pytest.approx(9 * 0.5)
