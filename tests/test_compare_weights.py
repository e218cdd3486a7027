"""What changed between two weights: figures against plain numpy, words against known changes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from checkpoints import gaussian, write_file, write_sharded
from safetensors.torch import load_file
from zoo import orthogonal, with_singular_values

from weightscope.comparing import Comparing, compare_models
from weightscope.comparison import Comparison
from weightscope.decompositions.difference import compare_matrices
from weightscope.difference import COLUMNS, Difference, delta_rank, difference_columns, reading_of
from weightscope.evaluate import Row
from weightscope.laws.power_law import fit_power_law
from weightscope.outcome import Failure
from weightscope.present.comparison import comparison_report
from weightscope.report import Table
from weightscope.settings import Settings
from weightscope.tensor import DTYPES

Array = npt.NDArray[np.float64]
CODES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
BF16 = torch.bfloat16
BITS = {"F64": 53, "F32": 24, "F16": 11, "BF16": 8}


def compare(a: torch.Tensor, b: torch.Tensor) -> Difference:
    return compare_matrices(a, b, (DTYPES[CODES[a.dtype]], DTYPES[CODES[b.dtype]]))


def word(a: torch.Tensor, b: torch.Tensor) -> str:
    return reading_of(compare(a, b))


def tensor(values: Array, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.from_numpy(values).to(dtype)


def close(found: Mapping[str, Any], expected: Mapping[str, Any], rel: float = 1e-9) -> None:
    """Assert that the cells are those expected, empty ones included."""
    assert {k for k in expected if found[k] is None} == {
        k for k, v in expected.items() if v is None
    }
    numbers = {k: v for k, v in expected.items() if v is not None}
    assert {k: found[k] for k in numbers} == pytest.approx(numbers, rel=rel, abs=1e-12)


def low_rank(rows: int, cols: int, rank: int, seed: int, scale: float = 0.01) -> torch.Tensor:
    left, right = gaussian(rows, rank, seed=seed, scale=1), gaussian(rank, cols, seed=seed + 1)
    return scale / 0.02 * left @ right


# --- figures against numpy -------------------------------------------------------------------


def storage_noise(values: Array, bits: int) -> float:
    """Spectral norm that rounding adds: ulp/sqrt(12) per entry, rows and columns at their worst."""
    ulp = 2.0 ** (np.floor(np.log2(np.abs(values))) + 1 - bits)
    variance = ulp**2 / 12
    return float(np.sqrt(variance.sum(0).max()) + np.sqrt(variance.sum(1).max()))


def naive(a: torch.Tensor, b: torch.Tensor) -> dict[str, float | int | None]:
    """Every figure from full singular value decompositions in float64."""
    x, y = a.double().numpy(), b.double().numpy()
    step = y - x
    s = np.linalg.svd(step, compute_uv=False)
    shares = np.cumsum(s**2) / np.sum(s**2)
    k = min(16, max(1, min(x.shape) // 8))
    (left_a, _, right_a), (left_b, _, right_b) = (np.linalg.svd(m) for m in (x, y))
    left = left_a[:, :k].T @ left_b[:, :k]
    right = right_a[:k] @ right_b[:k].T
    noise = np.hypot(*(storage_noise(m.double().numpy(), BITS[CODES[m.dtype]]) for m in (a, b)))
    floor = max((max(x.shape) * 2.0**-23) ** 2, (noise / s[0]) ** 2)
    fit = fit_power_law((s / s[0]) ** 2, "ks", floor)
    return {
        "rel_change": float(np.linalg.norm(step) / np.linalg.norm(x)),
        "cosine": float(np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y)),
        "delta_stable_rank": float(np.sum(s**2) / s[0] ** 2),
        "delta_rank_90": int(np.sum(shares < 0.90)) + 1,
        "delta_rank_95": int(np.sum(shares < 0.95)) + 1,
        "delta_rank_99": int(np.sum(shares < 0.99)) + 1,
        "delta_alpha": None if isinstance(fit, Failure) else fit.alpha,
        "delta_top_share": float(s[0] ** 2 / np.sum(s**2)),
        "subspace_left": float(np.sum(left**2)) / k,
        "subspace_right": float(np.sum(right**2)) / k,
        "intruders": int(np.sum(np.linalg.norm(left, axis=0) < 0.6)),
    }


def spiked(rows: int, cols: int, seed: int) -> torch.Tensor:
    """Noise with a few strong directions, as trained weights have."""
    return gaussian(rows, cols, seed=seed) + low_rank(rows, cols, 3, seed + 50, 0.02)


CHANGES: dict[str, Callable[[torch.Tensor, int], torch.Tensor]] = {
    "noise": lambda a, seed: a + 0.2 * gaussian(*a.shape, seed=seed, dtype=a.dtype),
    "low rank": lambda a, seed: a + low_rank(*a.shape, 4, seed).to(a.dtype),
    "new directions": lambda a, seed: a + low_rank(*a.shape, 6, seed, 0.2).to(a.dtype),
    "another": lambda a, seed: spiked(*a.shape, seed=seed + 9).to(a.dtype),
}
SHAPES = [(160, 40), (40, 160), (72, 72), (129, 128), (9, 300), (16, 7)]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_figures_are_those_of_plain_numpy(shape: tuple[int, int], change: str) -> None:
    a = spiked(*shape, seed=1)
    b = CHANGES[change](a, 2)
    found, expected = difference_columns(compare(a, b)), naive(a, b)
    assert list(found) == list(COLUMNS) == list(expected)
    close(found, expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("rank", [10, 30])
@pytest.mark.parametrize("shape", [(96, 60), (60, 96)], ids=str)
def test_figures_of_other_data_types(shape: tuple[int, int], rank: int, dtype: torch.dtype) -> None:
    """The stored values count, and what their rounding added stays out of the exponent."""
    a = spiked(*shape, seed=1).to(dtype)
    b = (a.float() + low_rank(*shape, rank, 2)).to(dtype)
    found, expected = difference_columns(compare(a, b)), naive(a, b)
    close(found, expected)


def test_figures_of_different_data_types() -> None:
    a = spiked(96, 60, seed=1).to(torch.bfloat16)
    b = a.float() + low_rank(96, 60, 30, 2)
    close(difference_columns(compare(a, b)), naive(a, b))


def test_directions_that_turned_are_intruders_one_by_one() -> None:
    """The top five of B: three of A's, and two that A does not have among its own."""
    left, right = orthogonal(40, 1), orthogonal(48, 2)
    values = np.r_[50:45:-1, np.linspace(1, 0.5, 35)].astype(float)
    a = (left * values) @ right[:, :40].T
    turned = left[:, [0, 1, 2, 30, 31, *range(5, 30), 3, 4, *range(32, 40)]]
    b = (turned * values) @ right[:, :40].T
    found = compare(tensor(a), tensor(b))
    assert found.intruders == 2
    assert found.subspace_left == pytest.approx(3 / 5, abs=1e-6)
    assert found.subspace_right == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(("cosine", "intruders"), [(0.59, 1), (0.61, 0)])
def test_an_intruder_is_below_a_cosine_of_six_tenths(cosine: float, intruders: int) -> None:
    left, right = orthogonal(40, 1), orthogonal(48, 2)
    values = np.r_[50:45:-1, np.linspace(1, 0.5, 35)].astype(float)
    turned = left.copy()
    sine = (1 - cosine**2) ** 0.5
    turned[:, 4] = cosine * left[:, 4] + sine * left[:, 39]
    turned[:, 39] = -sine * left[:, 4] + cosine * left[:, 39]
    a, b = ((u * values) @ right[:, :40].T for u in (left, turned))
    found = compare(tensor(a), tensor(b))
    assert found.intruders == intruders
    assert found.subspace_left == pytest.approx((4 + cosine**2) / 5, abs=1e-6)


def test_ranks_of_a_spectrum_in_closed_form() -> None:
    """Shares of the energy: 0.8, 0.1, 0.06, 0.03, and 0.01 in the next."""
    evals = np.array([0.8, 0.1001, 0.0599, 0.0301, 0.0099])
    a = np.zeros((30, 20))
    b = with_singular_values(np.sqrt(evals), 30, 20)
    found = difference_columns(compare(tensor(a + 1, torch.float64), tensor(b + 1, torch.float64)))
    ranks = [found[f"delta_rank_{percent}"] for percent in (90, 95, 99)]
    assert ranks == [2, 3, 4]
    assert found["delta_top_share"] == pytest.approx(0.8, rel=1e-9)
    assert found["delta_stable_rank"] == pytest.approx(1 / 0.8, rel=1e-9)
    assert found["delta_alpha"] is None


@pytest.mark.parametrize("power", [-300, -160, -60, 60, 160, 300])
def test_scale_changes_no_figure(power: int) -> None:
    a = spiked(50, 40, seed=1).double()
    b = a + low_rank(50, 40, 10, 2).double()
    scale = 2.0**power
    plain, scaled = compare(a, b), compare(a * scale, b * scale)
    close(difference_columns(scaled), difference_columns(plain))
    assert reading_of(scaled) == reading_of(plain) == "low-rank-update"
    assert word(a * scale, a * scale) == "identical"


@pytest.mark.parametrize("power", [-1000, -600, 600, 990])
def test_numbers_whose_squares_overflow_are_compared(power: int) -> None:
    a = spiked(50, 40, seed=1).double()
    b = a + low_rank(50, 40, 10, 2).double()
    scale = 2.0**power
    found = difference_columns(compare(a * scale, b * scale))
    close(found, difference_columns(compare(a, b)))
    assert word(a * scale, b * scale) == "low-rank-update"


def test_a_matrix_that_was_zero_has_no_relative_change() -> None:
    zero, b = torch.zeros(40, 30), gaussian(40, 30)
    found = difference_columns(compare(zero, b))
    s = np.linalg.svd(b.double().numpy(), compute_uv=False)
    assert found["rel_change"] is None and found["cosine"] is None
    assert found["delta_stable_rank"] == pytest.approx(np.sum(s**2) / s[0] ** 2, rel=1e-9)
    found = difference_columns(compare(b, zero))
    assert found["rel_change"] == pytest.approx(1) and found["cosine"] is None
    assert word(zero, b) == word(b, zero) == "full-rank-update"
    assert word(zero, low_rank(40, 30, 4, 1)) == "low-rank-update"


def test_nothing_changed_is_told_by_figures_too() -> None:
    a = gaussian(40, 30)
    found = difference_columns(compare(a, a.clone()))
    assert found["rel_change"] == 0 and found["cosine"] == pytest.approx(1, rel=1e-12)
    assert (found["subspace_left"], found["subspace_right"], found["intruders"]) == (1, 1, 0)
    assert found["delta_stable_rank"] is None and found["delta_rank_99"] is None


def test_a_resized_matrix_is_compared_where_both_have_entries() -> None:
    a, b = gaussian(40, 30), gaussian(44, 26, seed=1)
    b[:40] += a[:, :26]
    found = difference_columns(compare(a, b))
    x, y = a[:, :26].double().numpy(), b[:40].double().numpy()
    cosine = np.sum(x * y) / np.linalg.norm(x) / np.linalg.norm(y)
    assert found["rel_change"] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-9)
    assert found["cosine"] == pytest.approx(cosine, rel=1e-9)
    assert {found[name] for name in COLUMNS if name not in {"rel_change", "cosine"}} == {None}


# --- words -----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(64, 48), (48, 64), (56, 56)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rank", "expected"), [(1, "low"), (4, "low"), (12, "low"), (20, "full")])
def test_an_update_of_at_most_a_quarter_of_the_directions_is_low_rank(
    shape: tuple[int, int], dtype: torch.dtype, rank: int, expected: str
) -> None:
    """Rounding the sum to the stored data type makes it full-rank to the letter."""
    a = gaussian(*shape).to(dtype)
    b = (a.float() + low_rank(*shape, rank, 3, 0.05)).to(dtype)
    found = compare(a, b)
    assert reading_of(found) == f"{expected}-rank-update"
    assert delta_rank(found) == rank


@pytest.mark.parametrize("rank", [25, 26])
def test_the_quarter_is_exact(rank: int) -> None:
    a = gaussian(110, 100)
    expected = "low-rank-update" if rank <= 25 else "full-rank-update"
    assert word(a, a + low_rank(110, 100, rank, 3, 0.05)) == expected


@pytest.mark.parametrize("size", [2, 3, 4, 5, 8])
def test_a_tiny_matrix_that_hardly_changed_is_not_called_new(size: int) -> None:
    a = gaussian(size, size, seed=4, scale=1)
    assert word(a, a + low_rank(size, size, 1, 3, 1e-3)) in {"low-rank-update", "full-rank-update"}


@pytest.mark.parametrize("factor", [1.5, -1.0, 0.1, -3.0, 1e-6])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_multiple_is_scaled_up_to_rounding(factor: float, dtype: torch.dtype) -> None:
    a = gaussian(60, 48).to(dtype)
    assert word(a, (a.double() * factor).to(dtype)) == "scaled"


def test_a_slightly_larger_matrix_is_scaled_where_its_bits_show_it() -> None:
    a = gaussian(60, 48)
    assert word(a, a * 1.0001) == "scaled"
    assert word(a.to(BF16), (a.to(BF16) * 1.05).to(BF16)) == "scaled"
    assert word(a, (a * 1.5).to(BF16)) == word(a.to(BF16), (a * 1.5)) == "scaled"
    noisy = 1.05 * a + 0.02 * gaussian(60, 48, seed=1)
    assert word(a, noisy) == word(a.to(BF16), noisy.to(BF16)) == "full-rank-update"


def test_rows_scaled_one_by_one_are_not_scaled() -> None:
    a = gaussian(60, 48)
    factors = torch.linspace(1.4, 1.6, 60)[:, None]
    assert word(a, a * factors) == "full-rank-update"


def test_an_independent_matrix_is_new_and_a_mixture_is_not() -> None:
    for seed in range(20):
        a, new = gaussian(60, 48, seed=seed), gaussian(60, 48, seed=seed + 100)
        assert word(a, new) == "re-initialised"
        assert word(a, 0.9 * new + 0.4 * a) == "full-rank-update"


@pytest.mark.parametrize(
    ("size", "cosine", "expected"),
    [
        (300, 0.019, "re-initialised"), (300, 0.021, "full-rank-update"),
        (300, -0.019, "re-initialised"), (300, -0.021, "full-rank-update"),
        (40, 0.09, "re-initialised"), (40, 0.11, "full-rank-update"),
    ],
)  # fmt: skip
def test_new_means_a_cosine_that_chance_would_give(size: int, cosine: float, expected: str) -> None:
    """Two hundredths, or four standard deviations for a small matrix."""
    a, new = gaussian(size, size).double(), gaussian(size, size, seed=1).double()
    new -= a * (a * new).sum() / (a * a).sum()
    b = cosine * a / a.norm() + (1 - cosine**2) ** 0.5 * new / new.norm()
    assert compare(a, b).cosine == pytest.approx(cosine, rel=1e-9)
    assert word(a, b) == expected


def truncated(a: torch.Tensor) -> torch.Tensor:
    """The upper half of every float, as some converters cut it."""
    return (a.view(torch.int32) & -65536).view(torch.float32)


def up_and_down(a: torch.Tensor) -> torch.Tensor:
    """Either neighbour, by chance: stochastic rounding."""
    low = truncated(a)
    high = (low.view(torch.int32) + 65536).view(torch.float32)
    chance = torch.from_numpy(np.random.default_rng(5).random(a.shape)) < 0.5
    return torch.where(chance & (low != a), high, low)


@pytest.mark.parametrize("scale", [1e-40, 1e-38, 0.02, 1.0, 1e30])
@pytest.mark.parametrize(
    "rounding", [lambda a: a.to(BF16), lambda a: a.to(BF16).float(), truncated, up_and_down]
)
def test_rounding_to_bfloat16_is_recognised(
    rounding: Callable[[torch.Tensor], torch.Tensor], scale: float
) -> None:
    a = gaussian(40, 30, scale=1) * scale
    a[0, :3] = torch.tensor([0.0, -0.0, scale])
    assert word(a, rounding(a)) == "bf16-rounding"
    assert word(rounding(a), a) == "bf16-rounding"


def test_an_entry_one_step_beyond_rounding_is_no_rounding() -> None:
    a = gaussian(40, 30)
    rounded = a.to(BF16)
    for step in (-2, -1, 1, 2):
        b = rounded.clone()
        b.view(torch.int16)[7, 8] += step
        beyond = abs(float(b[7, 8]) - float(a[7, 8])) >= float(
            2.0 ** (np.floor(np.log2(abs(float(a[7, 8])))) - 7)
        )
        assert (word(a, b) != "bf16-rounding") == beyond


def test_a_changed_bfloat16_number_is_no_rounding() -> None:
    """Such a number rounds to itself, also across a power of two and from zero."""
    a = gaussian(40, 30).to(BF16)
    for before, after in ((1.0, 0.99609375), (0.0, 0.001), (0.5, 0.50390625), (0.001, 0.0)):
        b = a.clone()
        a[3, 4], b[3, 4] = before, after
        assert word(a, b) != "bf16-rounding" and word(a.float(), b) == "low-rank-update"


def test_weights_that_grew_from_zero_are_no_rounding() -> None:
    small = (gaussian(40, 30) * 0.02).to(BF16)
    assert word(torch.zeros(40, 30), small) == "full-rank-update"
    assert word(torch.zeros(40, 30, dtype=BF16), small) == "full-rank-update"


def test_half_precision_is_no_bfloat16_rounding() -> None:
    a = gaussian(40, 30)
    assert word(a, a.half()) != "bf16-rounding"
    assert word(a.half(), a.half().to(BF16)) == "bf16-rounding"


def test_the_same_numbers_in_another_data_type_are_identical() -> None:
    a = gaussian(40, 30).to(BF16)
    assert word(a, a.float()) == word(a.double(), a) == "identical"


@pytest.mark.parametrize("shape", [(48, 30), (30, 48), (40, 40)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_permutations_are_recognised(shape: tuple[int, int], dtype: torch.dtype) -> None:
    a = gaussian(*shape, dtype=dtype)
    rows, cols = (torch.from_numpy(np.random.default_rng(1).permutation(n)) for n in shape)
    for b in (a[rows], a[:, cols], a[rows][:, cols]):
        assert word(a, b) == "permuted"
    swapped = a.clone()
    swapped[[0, 1]] = a[[1, 0]]
    assert word(a, swapped) == "permuted"


def test_entries_shuffled_within_their_rows_are_no_permutation() -> None:
    a = gaussian(40, 30)
    generator = np.random.default_rng(1)
    within = tensor(generator.permuted(a.numpy(), axis=1))
    anywhere = tensor(generator.permutation(a.numpy().ravel()).reshape(a.shape))
    assert word(a, within) == word(a, anywhere) == "re-initialised"


def test_a_permutation_with_one_changed_entry_is_none() -> None:
    a = gaussian(40, 30)
    b = a.flip(0).clone()
    b[0, 0] *= 1.001
    assert word(a, b) != "permuted"


@pytest.mark.parametrize("shape", [(40, 40), (48, 30), (30, 48)], ids=str)
def test_a_transpose_is_recognised(shape: tuple[int, int]) -> None:
    a = gaussian(*shape)
    assert word(a, a.T.contiguous()) == word(a, a.T) == "transposed"
    b = a.T.contiguous()
    b[0, 0] += 1
    assert word(a, b) != "transposed"


def test_a_symmetric_matrix_is_its_own_transpose() -> None:
    a = gaussian(30, 30)
    symmetric = a + a.T
    assert word(symmetric, symmetric.T.contiguous()) == "identical"


def test_other_shapes_are_resized() -> None:
    a = gaussian(40, 30)
    for rows, cols in ((41, 30), (40, 29), (30, 41), (1, 1)):
        assert word(a, gaussian(rows, cols, seed=1)) == "resized"


# --- a real model against itself ------------------------------------------------------------

LAYER = "encoder.layer.{}.{}.weight"
QUERY, KEY = "attention.self.query", "attention.self.key"
UP, DOWN = "intermediate.dense", "output.dense"
VOCABULARY = "embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def weights(minilm: Path) -> dict[str, torch.Tensor]:
    """The real model, with the first two thousand words of its vocabulary."""
    tensors = load_file(minilm / "model.safetensors")
    tensors[VOCABULARY] = tensors[VOCABULARY][:2000].clone()
    return tensors


@pytest.fixture(scope="module")
def base(weights: Mapping[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("minilm") / "base.safetensors", weights)


def changed(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Everything that a matrix can go through, each in a matrix of its own."""
    t = {name: tensor.clone() for name, tensor in tensors.items()}
    generator = torch.Generator().manual_seed(0)

    def at(layer: int, part: str) -> str:
        return LAYER.format(layer, part)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    def order(n: int) -> torch.Tensor:
        return torch.randperm(n, generator=generator)

    t[at(0, QUERY)] *= 1.5
    t[at(0, KEY)] = normal(384, 384) * t[at(0, KEY)].std()
    t[at(1, QUERY)] += 0.05 * normal(384, 4) @ normal(4, 384)
    t[at(1, KEY)] = t[at(1, KEY)].to(BF16).float()
    t[at(1, UP)] = truncated(t[at(1, UP)])
    t[at(1, DOWN)] = t[at(1, DOWN)].to(BF16)
    t[at(2, QUERY)] = t[at(2, QUERY)][order(384)]
    t[at(2, DOWN)] = t[at(2, DOWN)][:, order(1536)]
    t[at(2, KEY)] = t[at(2, KEY)].T.contiguous()
    t[at(2, UP)] = t[at(2, UP)].T.contiguous()
    t[VOCABULARY] = torch.cat([t[VOCABULARY], 0.02 * normal(10, 384)])
    t["encoder.layer.3.attention.self.q_new.weight"] = t.pop(at(3, QUERY))
    t[at(3, KEY)] += 0.01 * normal(384, 384)
    t[at(3, UP)][5, 6] = float("nan")
    del t[at(4, KEY)]
    t["encoder.layer.4.adapter.weight"] = normal(16, 384)
    return t


EXPECTED = {
    LAYER.format(0, QUERY): "scaled",
    LAYER.format(0, KEY): "re-initialised",
    LAYER.format(1, QUERY): "low-rank-update",
    LAYER.format(1, KEY): "bf16-rounding",
    LAYER.format(1, UP): "bf16-rounding",
    LAYER.format(1, DOWN): "bf16-rounding",
    LAYER.format(2, QUERY): "permuted",
    LAYER.format(2, DOWN): "permuted",
    LAYER.format(2, KEY): "transposed",
    LAYER.format(2, UP): "transposed",
    VOCABULARY: "resized",
    LAYER.format(3, QUERY): "renamed",
    LAYER.format(3, KEY): "full-rank-update",
    LAYER.format(3, UP): None,
    LAYER.format(4, KEY): None,
    "encoder.layer.4.adapter.weight": None,
}
CHANGED_SHAPE = {
    VOCABULARY: "resized",
    LAYER.format(2, UP): "resized",
    LAYER.format(4, KEY): "removed",
    "encoder.layer.4.adapter.weight": "added",
}


def compared(a: Path, b: Path, **how: Any) -> Comparison:
    settings = Settings(metrics=("alpha",), threads=2, device="cpu")
    return compare_models([str(a), str(b)], Comparing(save=False, settings=settings, **how))[0]


def by_name(found: Comparison) -> dict[str, Row]:
    return {str(row["name"]): row for row in found.rows}


@pytest.fixture(scope="module")
def found(
    weights: Mapping[str, torch.Tensor], base: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Row]:
    """Rows of the comparison with a copy in which most things happened."""
    path = write_file(tmp_path_factory.mktemp("b") / "changed.safetensors", changed(weights))
    return by_name(compared(base, path))


def matrices(tensors: Mapping[str, torch.Tensor]) -> set[str]:
    return {name for name, t in tensors.items() if t.ndim == 2 and t.is_floating_point()}


def test_every_change_is_recognised(
    found: dict[str, Row], weights: Mapping[str, torch.Tensor]
) -> None:
    names = matrices(weights) | {"encoder.layer.4.adapter.weight"}
    expected = {name: EXPECTED.get(name, "identical") for name in names}
    assert {name: row["reading"] for name, row in found.items()} == expected


def test_added_removed_and_resized_rows_are_never_dropped(
    found: dict[str, Row], weights: Mapping[str, torch.Tensor]
) -> None:
    names = matrices(weights) | {"encoder.layer.4.adapter.weight"}
    expected = {name: CHANGED_SHAPE.get(name, "common") for name in names}
    assert {name: row["change"] for name, row in found.items()} == expected
    grown = found[VOCABULARY]
    assert [grown[k] for k in ("rows_a", "cols_a", "rows_b", "cols_b")] == [2000, 384, 2010, 384]
    assert grown["rel_change"] == 0
    added, removed = found["encoder.layer.4.adapter.weight"], found[LAYER.format(4, KEY)]
    assert added["rows_a"] is None and added["rows_b"] == 16
    assert removed["status_a"] == "ok" and removed["status_b"] is None


def test_the_new_name_and_data_type_are_told(found: dict[str, Row]) -> None:
    assert found[LAYER.format(3, QUERY)]["name_b"] == "encoder.layer.3.attention.self.q_new.weight"
    assert [row["name"] for row in found.values() if row["name_b"]] == [LAYER.format(3, QUERY)]
    dtypes = {(row["dtype_a"], row["dtype_b"]) for row in found.values() if row["dtype_b"]}
    assert found[LAYER.format(1, DOWN)]["dtype_b"] == "BF16"
    assert dtypes == {("F32", "F32"), ("F32", "BF16"), (None, "F32")}


def test_a_matrix_with_nan_keeps_its_row_without_figures(found: dict[str, Row]) -> None:
    row = found[LAYER.format(3, UP)]
    assert (row["change"], row["status_a"], row["status_b"]) == ("common", "ok", "nonfinite")
    assert {row[name] for name in COLUMNS} == {None} and row["alpha_b"] is None


def test_figures_of_real_changes_are_those_of_numpy(
    found: dict[str, Row], weights: Mapping[str, torch.Tensor]
) -> None:
    now = changed(weights)
    for name in (LAYER.format(1, QUERY), LAYER.format(3, KEY), LAYER.format(1, KEY)):
        expected = naive(weights[name], now[name])
        close(found[name], expected, 1e-8)
    update = found[LAYER.format(1, QUERY)]
    assert update["delta_rank_99"] == 4 and update["intruders"] == 4
    assert found[LAYER.format(0, QUERY)]["rel_change"] == pytest.approx(0.5, rel=1e-6)


def test_moved_exponents_are_those_of_new_spectra(found: dict[str, Row]) -> None:
    moved = {name for name, row in found.items() if row["alpha_moved"] == "yes"}
    assert {LAYER.format(0, KEY), LAYER.format(1, QUERY)} <= moved
    same = {"identical", "scaled", "bf16-rounding", "permuted", "transposed", "renamed"}
    assert not {name for name in moved if found[name]["reading"] in same}
    for name in (LAYER.format(2, KEY), LAYER.format(2, QUERY), LAYER.format(3, QUERY)):
        assert found[name]["spectrum_w1"] == pytest.approx(0, abs=1e-6)
    assert found[LAYER.format(0, QUERY)]["spectrum_w1"] == pytest.approx(2 * np.log(1.5), rel=1e-3)


@pytest.fixture(scope="module")
def small(weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One block of the real model."""
    return {name: tensor for name, tensor in weights.items() if ".layer.5." in name}


@pytest.fixture(scope="module")
def block(small: Mapping[str, torch.Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("block") / "block.safetensors", small)


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "base_model.model.", "module._orig_mod."]
)
def test_a_wrapped_model_is_the_same_model(
    prefix: str, small: Mapping[str, torch.Tensor], block: Path, tmp_path: Path
) -> None:
    wrapped = {prefix + name: tensor for name, tensor in small.items()}
    found = compared(block, write_file(tmp_path / "wrapped.safetensors", wrapped))
    assert found.summary["change"] == {"common": 6} and found.summary["reading"] == {"identical": 6}
    assert {row["name"]: row["name_b"] for row in found.rows} == {
        name: prefix + name for name in matrices(small)
    }


def test_a_resharded_model_is_the_same_model(
    small: Mapping[str, torch.Tensor], block: Path, tmp_path: Path
) -> None:
    found = compared(block, write_sharded(tmp_path / "resharded", small, shards=4))
    assert found.summary["reading"] == {"identical": 6}


def test_a_model_stored_in_bfloat16_is_a_rounding_of_itself(
    small: Mapping[str, torch.Tensor], block: Path, tmp_path: Path
) -> None:
    stored = {name: tensor.to(BF16) for name, tensor in small.items()}
    found = compared(block, write_file(tmp_path / "half.safetensors", stored))
    assert found.summary["reading"] == {"bf16-rounding": 6}
    assert found.summary["alpha_moved"] == 0


def test_a_renamed_model_is_found_with_a_map_and_without(
    small: Mapping[str, torch.Tensor], block: Path, tmp_path: Path
) -> None:
    from weightscope.alignment import parse_prefix_map

    named = {name.replace("encoder.", "bert.encoder."): t for name, t in small.items()}
    other = write_file(tmp_path / "renamed.safetensors", named)
    assert compared(block, other).summary["reading"] == {"renamed": 6}
    maps = (parse_prefix_map("bert.encoder.=encoder."),)
    assert compared(block, other, maps=maps).summary["reading"] == {"identical": 6}


def test_convolutions_and_experts_are_compared_as_wholes(tmp_path: Path) -> None:
    a = {"conv.weight": gaussian(16, 12, 3, 3), "mlp.experts.up": gaussian(3, 24, 20, seed=1)}
    b = {name: tensor.clone() for name, tensor in a.items()}
    b["conv.weight"] += 0.01 * gaussian(16, 12, 3, 3, seed=2, scale=1)
    b["mlp.experts.up"][1] += low_rank(24, 20, 2, 3)
    paths = [write_file(tmp_path / f"{n}.safetensors", t) for n, t in (("a", a), ("b", b))]
    found = by_name(compared(paths[0], paths[1]))
    assert {name: row["reading"] for name, row in found.items()} == {
        "conv.weight": "full-rank-update",
        "mlp.experts.up[0]": "identical",
        "mlp.experts.up[1]": "low-rank-update",
        "mlp.experts.up[2]": "identical",
    }
    flat = [t["conv.weight"].reshape(16, -1) for t in (a, b)]
    expected = naive(flat[0], flat[1])
    close(found["conv.weight"], expected)


def test_extreme_and_degenerate_matrices_do_not_end_a_comparison(tmp_path: Path) -> None:
    huge = gaussian(20, 16, dtype=torch.float64, seed=1) * 1e200
    a = {
        "huge": huge, "tiny": huge * 1e-300 * 1e-90, "zero": torch.zeros(20, 16),
        "row": gaussian(1, 30), "one": gaussian(1, 1), "empty": torch.zeros(0, 8),
        "inf": torch.full((9, 9), float("inf")), "eye": torch.eye(16),
        "packed": torch.zeros(8, 8).to(torch.float8_e4m3fn),
    }  # fmt: skip
    b = {name: t * 1.25 if t.dtype.itemsize > 1 else t for name, t in a.items()}
    b["eye"] = torch.eye(16).flip(0)
    paths = [write_file(tmp_path / f"{n}.safetensors", t) for n, t in (("a", a), ("b", b))]
    found = by_name(compared(paths[0], paths[1]))
    assert {name: (row["reading"], row["rel_change"]) for name, row in found.items()} == {
        "huge": ("scaled", pytest.approx(0.25)),
        "tiny": ("scaled", pytest.approx(0.25)),
        "zero": ("identical", None),
        "row": ("scaled", pytest.approx(0.25)),
        "one": ("scaled", pytest.approx(0.25)),
        "empty": (None, None),
        "inf": (None, None),
        "eye": ("permuted", pytest.approx(2**0.5)),
        "packed": (None, None),
    }


# --- the example's training ------------------------------------------------------------------

EXAMPLE = Path(__file__).parent.parent / "examples" / "tiny-llama"


def example_weights(step: int) -> dict[str, torch.Tensor]:
    shards = sorted((EXAMPLE / f"checkpoint-{step}").glob("*.safetensors"))
    return {name: tensor for shard in shards for name, tensor in load_file(shard).items()}


@pytest.mark.parametrize(("first", "second"), [(100, 500), (500, 2000), (100, 2000)])
def test_training_is_read_as_a_full_rank_update(first: int, second: int) -> None:
    a, b = (EXAMPLE / f"checkpoint-{step}" for step in (first, second))
    found = compared(a, b)
    before, after = example_weights(first), example_weights(second)
    assert found.names == (a.name, b.name) and found.weights
    assert found.summary["change"] == {"common": len(found.rows)}
    table = comparison_report(found, None, None).blocks[0]
    assert isinstance(table, Table) and table.headers[:2] == ("name", "reading")
    assert {line[1].text for line in table.rows} == {"full-rank-update"}
    assert {row["name"] for row in found.rows} == matrices(before)
    for row in found.rows:
        name = str(row["name"])
        x, y = (t[name].double().numpy() for t in (before, after))
        assert row["reading"] == "full-rank-update", name
        assert row["rel_change"] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x))
        s = np.linalg.svd(y - x, compute_uv=False)
        assert row["delta_stable_rank"] == pytest.approx(np.sum(s**2) / s[0] ** 2, rel=1e-9)
    moved = sorted(found.rows, key=lambda row: -float(row["rel_change"] or 0))
    assert found.summary["moved_by"] == "rel_change"
    assert found.summary["moved_most"] == [row["name"] for row in moved[:5]]
