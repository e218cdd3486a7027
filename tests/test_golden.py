"""A real model against figures that others made: float64 truth and the peers' own programs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import Records
from safetensors.torch import load_file

from weightscope.decompositions.farms import window_spectra, windows_for
from weightscope.laws.power_law import PowerLaw, fit_power_law
from weightscope.metrics.welore import pruned_rank
from weightscope.recipe import EvalFloor, Farms, FitMethod
from weightscope.run import Run

Golden = Callable[[str], Records]
Array = npt.NDArray[np.float64]

WELORE_THRESHOLDS = ("0.0225", "0.084", "0.115", "0.145", "0.175", "0.215", "0.26")
FITS: dict[str, FitMethod] = {"xmin_mid": "mid", "xmin_peak": "peak", "None": "ks"}


def column(run: Run, name: str, names: list[str]) -> list[object]:
    rows = {row["name"]: row for row in run.rows}
    return [rows[tensor][name] for tensor in names]


def numbers(records: Records, name: str) -> Array:
    return np.array([float(record[name]) for record in records])


def check(run: Run, records: Records, ours: str, theirs: Array, rtol: float) -> None:
    names = [record["tensor"] for record in records]
    np.testing.assert_allclose(
        np.array(column(run, ours, names), dtype=float), theirs, rtol=rtol, atol=0, err_msg=ours
    )


@pytest.fixture(scope="module")
def truth(golden: Golden) -> Records:
    return golden("minilm_truth.csv")


@pytest.fixture(scope="module")
def fitted(truth: Records) -> Records:
    """Every tensor that a power law can be fitted to."""
    return [record for record in truth if int(record["n_sv"]) >= 8]


@pytest.fixture(scope="module")
def weights(minilm: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(minilm / "model.safetensors"))


def test_the_rows_are_the_float_tensors_of_two_dimensions(minilm_run: Run, truth: Records) -> None:
    assert [row["name"] for row in minilm_run.rows] == [record["tensor"] for record in truth]
    assert len(truth) == 40
    assert minilm_run.summary["integer_tensors"] == 1
    for row, record in zip(minilm_run.rows, truth, strict=True):
        assert (row["rows"], row["cols"]) == (int(record["rows"]), int(record["cols"]))


@pytest.mark.parametrize(
    ("ours", "theirs", "rtol"),
    [
        ("frobenius_norm", "fro_norm", 1e-9),
        ("spectral_norm", "sv_max", 1e-9),
        ("nuclear_norm", "nuclear_norm", 1e-9),
        ("stable_rank", "stable_rank", 1e-9),
        ("effective_rank", "erank_p1", 1e-7),
        ("effective_rank_vn", "erank_p2", 1e-7),
        ("entropy", "entropy_p2_over_ln_n", 1e-7),
        ("condition_number", "cond", 1e-4),
    ],
)
def test_norms_ranks_and_condition_numbers_equal_the_truth(
    minilm_run: Run, truth: Records, ours: str, theirs: str, rtol: float
) -> None:
    check(minilm_run, truth, ours, numbers(truth, theirs), rtol)


def test_log_norms_equal_the_truth(minilm_run: Run, truth: Records) -> None:
    check(minilm_run, truth, "log_norm", np.log10(numbers(truth, "evals_sum")), 1e-9)
    check(minilm_run, truth, "log_spectral_norm", np.log10(numbers(truth, "lambda_max")), 1e-9)


def test_the_numerical_rank_equals_the_truth(minilm_run: Run, truth: Records) -> None:
    names = [record["tensor"] for record in truth]
    assert column(minilm_run, "rank", names) == [int(record["rank_tol32"]) for record in truth]


def test_the_truth_is_that_of_another_singular_value_decomposition(
    minilm_run: Run, truth: Records, weights: dict[str, torch.Tensor]
) -> None:
    """The spectra themselves, against float64 LAPACK; a Gram matrix loses digits only below."""
    for record in truth:
        spectrum = minilm_run.spectrum(record["tensor"])
        expected = np.linalg.svd(weights[record["tensor"]].double().numpy(), compute_uv=False)
        assert len(spectrum.singular_values) == int(record["n_sv"])
        np.testing.assert_allclose(
            spectrum.singular_values, expected, rtol=1e-9, atol=1e-11 * expected[0]
        )
        np.testing.assert_allclose(
            spectrum.smallest, float(record["sv_min"]), rtol=max(1e-9, spectrum.relative_error)
        )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("alpha", "pl_alpha"),
        ("alpha_xmin", "pl_xmin"),
        ("alpha_ks", "pl_D"),
        ("alpha_stderr", "pl_sigma"),
        ("alpha_hat", "pl_alpha_weighted"),
        ("log_alpha_norm", "pl_log_alpha_norm"),
    ],
)
def test_the_power_law_equals_the_truth(
    minilm_run: Run, fitted: Records, ours: str, theirs: str
) -> None:
    assert len(fitted) == 39
    check(minilm_run, fitted, ours, numbers(fitted, theirs), 1e-6)


def test_the_tail_sizes_equal_the_truth(minilm_run: Run, fitted: Records) -> None:
    names = [record["tensor"] for record in fitted]
    expected = [int(record["pl_ntail"]) for record in fitted]
    assert column(minilm_run, "alpha_n_tail", names) == expected
    assert min(float(record["pl_D_gap"]) for record in fitted) > 1e-6


def test_the_erg_cut_equals_the_truth(minilm_run: Run, truth: Records) -> None:
    names = [record["tensor"] for record in truth]
    expected = [int(record["detX_num"]) for record in truth]
    assert column(minilm_run, "erg_n_tail", names) == expected
    check(minilm_run, truth, "erg_xmin", numbers(truth, "detX_val"), 1e-6)


def test_the_erg_distances_follow_from_the_truth(minilm_run: Run, fitted: Records) -> None:
    xmin, cut = numbers(fitted, "pl_xmin"), numbers(fitted, "detX_val")
    scale = numbers(fitted, "n_sv") / numbers(fitted, "evals_sum")
    gap = numbers(fitted, "detX_num") - numbers(fitted, "pl_ntail")
    check(minilm_run, fitted, "erg_gap", gap, 0)
    check(minilm_run, fitted, "erg_delta", scale * (xmin - cut), 1e-6)
    check(minilm_run, fitted, "erg_log_ratio", np.log(xmin / cut), 1e-6)


@pytest.mark.parametrize("threshold", WELORE_THRESHOLDS)
def test_welore_prunes_as_many_ranks_as_the_peer(
    minilm_run: Run, golden: Golden, threshold: str
) -> None:
    records = golden("minilm_welore.csv")
    ours = [pruned_rank(minilm_run.spectrum(r["param"]), float(threshold)) for r in records]
    assert ours == [int(float(r[f"pruned_{threshold}_f64"])) for r in records]
    peer = [r for r in records if r[f"pruned_{threshold}"]]
    assert len(peer) >= 36
    for record in peer:
        assert pruned_rank(minilm_run.spectrum(record["param"]), float(threshold)) == int(
            float(record[f"pruned_{threshold}"])
        )


def test_kappatune_agrees_as_far_as_float32_carries(minilm_run: Run, golden: Golden) -> None:
    records = golden("minilm_kappatune.csv")
    rows = {row["name"]: row for row in minilm_run.rows}
    ours = np.array([rows[r["param"]]["condition_number"] for r in records], dtype=float)
    np.testing.assert_allclose(ours, numbers(records, "cond_f64"), rtol=1e-4)
    np.testing.assert_allclose(ours, numbers(records, "kappatune"), rtol=1e-3)


@pytest.mark.parametrize(
    ("ours", "theirs", "power", "rtol"),
    [
        ("alpha", "alpha", 1, 1e-9),
        ("alpha_ks", "D", 1, 1e-9),
        ("alpha_xmin", "xmin", 1, 1e-9),
        ("alpha_stderr", "sigma", 1, 1e-9),
        ("alpha_n_tail", "num_pl_spikes", 1, 0),
        ("alpha_hat", "alpha_weighted", 1, 1e-9),
        ("log_alpha_norm", "log_alpha_norm", 1, 1e-9),
        ("erg_n_tail", "detX_num", 1, 0),
        ("erg_xmin", "detX_val", 1, 1e-6),
        ("erg_gap", "ERG_gap", 1, 0),
        ("frobenius_norm", "norm", 2, 1e-9),
        ("spectral_norm", "spectral_norm", 2, 1e-9),
        ("spectral_norm", "sv_max", 1, 1e-9),
        ("log_norm", "log_norm", 1, 1e-9),
        ("log_spectral_norm", "log_spectral_norm", 1, 1e-9),
        ("stable_rank", "stable_rank", 1, 1e-9),
        # theirs adds a small constant to every share
        ("entropy", "entropy", 1, 1e-6),
    ],
)
def test_weightwatcher_agrees_from_20_eigenvalues_on(
    minilm_run: Run, golden: Golden, ours: str, theirs: str, power: int, rtol: float
) -> None:
    records = [r for r in golden("minilm_weightwatcher.csv") if int(r["num_evals"]) >= 20]
    rows = {row["name"]: row for row in minilm_run.rows}
    found = np.array([rows[f"{r['longname']}.weight"][ours] for r in records], dtype=float)
    assert len(records) == 39
    np.testing.assert_allclose(found**power, numbers(records, theirs), rtol=rtol, atol=0)


def farms_fits(
    records: Records, weights: dict[str, torch.Tensor]
) -> Iterator[tuple[dict[str, str], int, PowerLaw]]:
    """Our fit at the peer's geometry for each of its rows; windows are solved once."""
    spectra: dict[tuple[str, str, str], Array] = {}
    for record in records:
        name, q, rows = record["longname"], record["Q_ratio"], record["num_row_samples"]
        method = FITS[record["fix_fingers"]]
        recipe = Farms("paper", int(rows), float(q), 10, method, EvalFloor("abs", 0.0))
        if (name, q, rows) not in spectra:
            weight = weights[f"{name}.weight"]
            windows = windows_for(*weight.shape, recipe)
            assert windows is not None
            spectra[name, q, rows] = window_spectra([weight], windows).ravel()
        evals = spectra[name, q, rows]
        fit = fit_power_law(evals, recipe.fit, recipe.floor.value)
        assert isinstance(fit, PowerLaw)
        yield record, len(evals), fit


def same_windows(records: Records) -> Records:
    """Rows whose windows fit: elsewhere the peer takes a negative start and inverts the ratio."""
    return [r for r in records if not (r["num_row_samples"] == "256" and r["n_eigs"] == "1280")]


def check_farms(records: Records, weights: dict[str, torch.Tensor]) -> None:
    for record, n_evals, fit in farms_fits(records, weights):
        assert n_evals == int(record["n_eigs"]) == int(float(record["n_f64"]))
        place = (record["longname"], record["fix_fingers"], record["Q_ratio"])
        assert fit.alpha == pytest.approx(float(record["alpha_f64"]), rel=1e-6), place
        assert fit.ks == pytest.approx(float(record["D_f64"]), rel=1e-6), place


def test_farms_exponents_equal_the_float64_ones(
    golden: Golden, weights: dict[str, torch.Tensor]
) -> None:
    """Every shape, window and fit of the reference, in the first block and the pooler."""
    records = same_windows(golden("minilm_farms.csv"))
    chosen = [
        r
        for r in records
        if r["longname"] in {"pooler.dense", "encoder.layer.0.attention.self.query"}
        or (
            r["longname"].startswith("encoder.layer.0.")
            and (r["num_row_samples"] == "100" or r["longname"].endswith("intermediate.dense"))
        )
    ]
    assert len(chosen) == 69
    check_farms(chosen, weights)


@pytest.mark.slow
def test_every_farms_exponent_equals_the_float64_one(
    golden: Golden, weights: dict[str, torch.Tensor]
) -> None:
    records = same_windows(golden("minilm_farms.csv"))
    assert len(records) == 413
    check_farms(records, weights)
