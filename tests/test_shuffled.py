"""The empirical null: entries in a random order, distances from it, and correlation traps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import permutations as orders
from math import log
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from measuring import Array, figures, measure, singular_values
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance
from zoo import gaussian, low_rank, spiked, stored

from weightscope.decompositions.shuffled import permutations, shuffling_generator
from weightscope.folders.records import RECORD_KEYS, measurement_from, measurement_record
from weightscope.measurement import Measurement, Shuffled
from weightscope.metrics.shuffled import COLUMNS, log_divergence
from weightscope.outcome import Failure

TW99 = 2.0234
NAMES = [column.name for column in COLUMNS]


def shuffled(weight: torch.Tensor | Array, replicas: int = 1, **options: Any) -> dict[str, Any]:
    """The columns of the family."""
    return figures(measure(weight, shuffled=replicas, **options), "shuffled")


def naive_replicas(
    weight: torch.Tensor, count: int, name: str = "w.weight", seed: int = 0
) -> Iterator[torch.Tensor]:
    """Every replica, by index arithmetic."""
    generator = shuffling_generator(seed, name)
    order = np.arange(weight.numel())
    for _ in range(count):
        generator.shuffle(order)
        yield weight.flatten()[torch.from_numpy(order)].reshape(weight.shape)


def naive_cut(weight: torch.Tensor) -> float:
    """Largest eigenvalue that 99 of 100 matrices of this variance stay below (one slice)."""
    N, M = max(weight.shape[:2]), min(weight.shape[:2])
    root = (M / N) ** 0.5
    v = float(np.var(weight.double().numpy()))
    return N * v * ((1 + root) ** 2 + TW99 * root * M ** (-2 / 3) * (1 + root) ** (4 / 3))


MATRICES = {
    "student": lambda: np.random.default_rng(0).standard_t(3, (60, 44)),
    "spiked": lambda: spiked(40, 90, 4, 1),
    "mean": lambda: gaussian(50, 50, 2) + 0.4,
    "convolution": lambda: np.random.default_rng(3).standard_normal((24, 16, 2, 3)),
}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", MATRICES)
def test_every_figure_follows_its_formula(name: str, dtype: str) -> None:
    """Against the same permutations applied as indices, and textbook arithmetic."""
    weight = stored(MATRICES[name](), dtype)
    found = shuffled(weight, 3, name=name, seed=11)
    s = singular_values(weight)
    tops, w1, jsd, traps = [], [], [], []
    for r in map(singular_values, naive_replicas(weight, 3, name, 11)):
        tops.append(r[0] ** 2)
        traps.append(sum(value**2 > naive_cut(weight) for value in r))
        if dtype in {"float64", "float32"}:  # every value is above the floor
            logs = 2 * np.log(s), 2 * np.log(r)
            w1.append(sum(abs(a - b) for a, b in zip(*logs, strict=True)) / len(s))
            edges = np.linspace(min(map(min, logs)), max(map(max, logs)), 101)
            p, q = (np.histogram(x, edges)[0] for x in logs)
            jsd.append(jensenshannon(p, q, 2) ** 2)
    assert found["shuffled_lambda_max"] == pytest.approx(np.mean(tops), rel=1e-9)
    if name != "convolution":
        assert found["traps"] == pytest.approx(np.mean(traps))
    if w1:
        assert found["shuffled_w1"] == pytest.approx(np.mean(w1), rel=1e-6)
        assert found["shuffled_jsd"] == pytest.approx(np.mean(jsd), rel=1e-6)


def test_values_below_the_floor_are_left_out_on_both_sides() -> None:
    """Rank 4 in bf16 has four values to compare, its shuffled entries have nearly all."""
    weight = stored(low_rank(96, 4, 5), "bfloat16")
    found = shuffled(weight, 2)
    s, distances = singular_values(weight)[:4], []
    for replica in naive_replicas(weight, 2):
        variance = (np.spacing(replica.float().abs().numpy()).astype(float) * 2**16) ** 2 / 12
        floor = variance.sum(0).max() ** 0.5 + variance.sum(1).max() ** 0.5
        values = singular_values(replica)
        kept = values[values > floor]
        assert 90 < len(kept) < 96
        distances.append(2 * wasserstein_distance(np.log(s), np.log(kept)))
    assert found["shuffled_w1"] == pytest.approx(np.mean(distances), rel=1e-6)


# ------------------------------------------------------------------------------ permutations


@given(
    st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
    st.lists(st.integers(1, 7), min_size=2, max_size=4),
    st.integers(1, 3),
)
def test_a_permutation_keeps_every_entry_and_the_source(
    dtype: torch.dtype, shape: list[int], count: int
) -> None:
    weight = torch.from_numpy(gaussian(1, int(np.prod(shape)), 1)).to(dtype).reshape(shape)
    turned = weight.movedim(0, -1)  # not contiguous
    before = turned.clone()
    for order in permutations(turned, count, np.random.default_rng(0)):
        assert order.shape == turned.shape
        assert torch.equal(order.flatten().sort().values, weight.flatten().sort().values)
    assert torch.equal(turned, before)


def test_every_order_is_equally_likely() -> None:
    """All 24 of four entries, each in 100 of 2400 draws, also as the second replica."""
    weight = torch.arange(4, dtype=torch.float32).reshape(2, 2)
    counts = [dict.fromkeys(orders(range(4)), 0) for _ in range(2)]
    for seed in range(2400):
        drawn = permutations(weight, 2, shuffling_generator(seed, "w"))
        for count, order in zip(counts, drawn, strict=True):
            count[tuple(order.flatten().int().tolist())] += 1
    for count in counts:
        chi_squared = sum((n - 100) ** 2 / 100 for n in count.values())
        assert 5.0 < chi_squared < 49.7  # 23 degrees of freedom, 1e-5 and 1 - 1e-3


def test_the_draw_hangs_on_seed_and_name_alone() -> None:
    weight = torch.from_numpy(gaussian(30, 40, 3))
    first = shuffled(weight, 2)
    assert shuffled(weight, 2) == first
    assert shuffled(weight.float().double(), 2, name="w.weight", seed=0).keys() == first.keys()
    for other in ({"name": "v.weight"}, {"seed": 1}, {"seed": -1}, {"name": "w\udcff\n"}):
        again = shuffled(weight, 2, **other)
        assert again["shuffled_lambda_max"] != first["shuffled_lambda_max"]
        assert again == shuffled(weight, 2, **other)


def test_the_number_of_threads_does_not_matter() -> None:
    weight = torch.from_numpy(gaussian(120, 100, 4) + 0.5)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(shuffled(weight, 2))
    torch.set_num_threads(before)
    for name in NAMES[:3]:
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-6)
    assert found[1]["traps"] == found[0]["traps"] == 1


@pytest.mark.parametrize(("shape", "replicas"), [((512, 512), 1), ((511, 600), 5), ((8, 900), 5)])
def test_the_number_of_replicas_follows_the_size(shape: tuple[int, int], replicas: int) -> None:
    measured = measure(gaussian(*shape, 1), shuffled=0)
    assert isinstance(measured.shuffled, Shuffled)
    assert measured.shuffled.replicas == replicas
    assert figures(measured, "shuffled")["shuffled"]["replicas"] == replicas


# ------------------------------------------------------------------------------------- traps


def with_entry(value: float, rows: int = 80, cols: int = 90, seed: int = 0) -> Array:
    matrix = gaussian(rows, cols, seed)
    matrix[17, 31] = value
    return matrix


@pytest.mark.parametrize("replicas", [0, 1, 2, 3, 5, 8])
@pytest.mark.parametrize("value", [40.0, -100.0, 1e6])
def test_one_giant_entry_is_one_trap_for_any_number_of_replicas(
    replicas: int, value: float
) -> None:
    found = shuffled(with_entry(value), replicas)
    assert found["traps"] == 1 and isinstance(found["traps"], int)
    assert found["trap_cause"] == "giant entries"
    assert found["shuffled_lambda_max"] == pytest.approx(value**2, rel=0.25 if value == 40 else 0.1)


def test_three_giant_entries_are_three_traps() -> None:
    matrix = gaussian(80, 90, 1)
    matrix[[3, 40, 71], [5, 8, 60]] = [300, -310, 320]
    found = shuffled(matrix, 5)
    assert 2.5 < found["traps"] <= 3  # two of them in one row or column count once
    assert found["trap_cause"] == "giant entries"


@pytest.mark.parametrize("mean", [0.3, -0.3, 5.0])
@pytest.mark.parametrize("replicas", [1, 5])
def test_a_mean_is_one_trap(mean: float, replicas: int) -> None:
    found = shuffled(gaussian(80, 90, 5) + mean, replicas)
    assert found["traps"] == 1
    assert found["trap_cause"] == "mean"


def test_a_mean_and_a_giant_entry_are_two_traps() -> None:
    found = shuffled(with_entry(80.0) + 1.0, 3)
    assert found["traps"] == 2
    assert found["trap_cause"] == "mean; giant entries"


def test_a_mean_that_makes_a_trap_only_together_with_the_noise_is_named() -> None:
    """N M mu^2 is three quarters of the cut; with the noise its direction lies beyond it."""
    weight = gaussian(200, 200, 6)
    weight += (0.75 * naive_cut(torch.from_numpy(weight)) / 40_000) ** 0.5 - weight.mean()
    found = shuffled(weight, 5)
    assert 40_000 * weight.mean() ** 2 < naive_cut(torch.from_numpy(weight))
    assert found["traps"] == 1
    assert found["trap_cause"] == "mean"


def test_a_convolution_with_a_mean_has_a_trap_for_each_position() -> None:
    kernel = np.random.default_rng(7).standard_normal((40, 30, 3, 2)) + 1
    found = shuffled(kernel, 2)
    assert found["traps"] == 6
    assert found["trap_cause"] == "mean"


def test_equal_entries_are_a_trap_of_the_mean_and_their_own_null() -> None:
    found = shuffled(np.full((48, 32), -0.3), 5)
    assert (found["traps"], found["trap_cause"]) == (1, "mean")
    assert found["shuffled_lambda_max"] == pytest.approx(48 * 32 * 0.09, rel=1e-12)
    assert found["shuffled_w1"] == pytest.approx(0, abs=1e-9)
    assert found["shuffled_jsd"] == 0


def test_entries_with_heavy_tails_are_told_from_chance() -> None:
    """No mean, and no single entry large enough: the first draws in which a trap shows."""
    rng = np.random.default_rng(8)
    heavy = (shuffled(rng.standard_t(6, (60, 60)), 5, seed=n) for n in range(60))
    causes = [found["trap_cause"] for found in heavy if found["traps"]]
    assert len(causes) > 5
    assert set(causes) <= {"heavy-tailed entries", "giant entries"}
    assert "heavy-tailed entries" in causes


def test_pure_noise_has_a_trap_in_at_most_one_case_of_a_hundred() -> None:
    """1000 draws; Tracy-Widom is reached from below, at this size 0.6 %."""
    rng = np.random.default_rng(9)
    causes = []
    for seed in range(1000):
        found = shuffled(rng.standard_normal((80, 90)), 1, seed=seed)
        if found["traps"]:
            causes.append(found["trap_cause"])
            assert found["traps"] == 1
    assert 1 <= len(causes) <= 15
    assert causes.count("chance") >= len(causes) - 1


# --------------------------------------------------------------------------------- distances


positive = st.lists(st.floats(1e-8, 1e8), min_size=1, max_size=40).map(np.array)


@given(positive, positive)
def test_the_divergence_is_that_of_scipy(a: Array, b: Array) -> None:
    logs = np.log10(a), np.log10(b)
    low, high = min(map(min, logs)), max(map(max, logs))
    found = log_divergence(a, b)
    assert found == log_divergence(b, a)
    if high - low < 1e-9:
        assert found == 0
        return
    p, q = (np.histogram(x, np.linspace(low, high, 101))[0] for x in logs)
    assert found == pytest.approx(jensenshannon(p, q, 2) ** 2, abs=1e-9)
    assert 0 <= found <= 1 + 1e-12
    assert log_divergence(a, a) == 0


def test_densities_that_do_not_meet_are_one_bit_apart() -> None:
    assert log_divergence(np.linspace(1, 2, 30), np.linspace(5, 9, 70)) == pytest.approx(1)


def test_order_is_what_the_distance_measures() -> None:
    """Independent entries of any distribution are near their own null, a power law is not."""
    rng = np.random.default_rng(10)
    independent = shuffled(rng.laplace(size=(256, 384)), 3)
    learned = spiked(256, 384, 20, 3)
    correlated = shuffled(learned, 3)
    assert independent["shuffled_w1"] < 0.02 < 10 * 0.02 < correlated["shuffled_w1"]
    assert independent["shuffled_jsd"] < 0.1 < 0.2 < correlated["shuffled_jsd"]
    edge = 384 * np.var(learned) * (1 + (256 / 384) ** 0.5) ** 2
    assert correlated["shuffled_lambda_max"] == pytest.approx(edge, rel=0.04)
    assert correlated["traps"] < 1 and correlated["trap_cause"] in {None, "chance"}


def test_noise_is_as_far_from_its_null_as_the_columns_say() -> None:
    square, tall = (shuffled(gaussian(*shape, 11), 2) for shape in ((512, 512), (1024, 512)))
    assert square["shuffled_w1"] == pytest.approx(16 / 512, rel=0.5)
    assert tall["shuffled_w1"] == pytest.approx(2.5 / 512, rel=0.5)
    assert square["shuffled_jsd"] == pytest.approx(9 / 512, rel=0.5)


@pytest.mark.parametrize("power", [-40, 7, 400, 900, -600, -900])
def test_a_power_of_two_changes_the_largest_eigenvalue_alone(power: int) -> None:
    weight = gaussian(40, 30, 12) + 0.3
    here, there = shuffled(weight, 2), shuffled(weight * 2.0**power, 2)
    assert there["shuffled_w1"] == pytest.approx(here["shuffled_w1"], rel=1e-9)
    for name in ("shuffled_jsd", "traps"):
        assert there[name] == pytest.approx(here[name], rel=1e-9)
    assert there["trap_cause"] == here["trap_cause"] == "mean"
    top = log(here["shuffled_lambda_max"]) + 2 * power * log(2)
    if abs(top) < 700:
        assert log(there["shuffled_lambda_max"]) == pytest.approx(top, abs=1e-9)
    else:
        assert isinstance(there["shuffled_lambda_max"], Failure)


# ------------------------------------------------------------------------------ bookkeeping


def test_nothing_is_shuffled_unless_asked_for_or_for_zeros() -> None:
    assert measure(gaussian(20, 20)).shuffled is None
    assert measure(np.zeros((20, 20)), shuffled=3).shuffled is None
    assert figures(measure(gaussian(20, 20)), "shuffled") == {}


def kept(measured: Measurement) -> Measurement:
    """Through JSON and back, as a run folder keeps it."""
    record = json.loads(json.dumps(measurement_record(measured), allow_nan=False))
    assert record.keys() == RECORD_KEYS
    spectrum = measured.spectrum
    values = spectrum.singular_values if spectrum else None
    return measurement_from(record, measured.matrix, values)


@pytest.mark.parametrize("replicas", [None, 1, 5])
def test_a_record_gives_the_same_figures_again(replicas: int | None) -> None:
    measured = measure(gaussian(30, 40) + 0.5, shuffled=replicas)
    again = kept(measured)
    assert again.shuffled == measured.shuffled
    assert figures(again, "shuffled") == figures(measured, "shuffled")


def test_a_failure_is_kept_and_told() -> None:
    measured = Measurement(measure(gaussian(9, 9)).matrix, shuffled=Failure("why", "what to do"))
    assert kept(measured).shuffled == Failure("why", "what to do")
    assert figures(measured, "shuffled") == {"shuffled_lambda_max": Failure("why", "what to do")}


def test_every_column_is_filled_and_explains_itself() -> None:
    found = shuffled(gaussian(40, 30) + 1, 2)
    assert [name for name in found if name != "shuffled"] == NAMES
    for column in COLUMNS:
        for part in ("meaning", "formula", "range", "reading", "caution", "noise", "source"):
            assert getattr(column, part), (column.name, part)
