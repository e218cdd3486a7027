"""Peers' conventions: their own figures come out, and nothing else changes."""

from __future__ import annotations

from collections.abc import Callable
from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from conftest import Records

import weightscope
from weightscope import compat
from weightscope.errors import OptionError
from weightscope.evaluate import Row
from weightscope.metrics import welore
from weightscope.recipe import EvalFloor
from weightscope.run import Run
from weightscope.settings import Settings
from weightscope.sinks import weightwatcher

Golden = Callable[[str], Records]
Array = npt.NDArray[np.float64]
FAMILIES = "alpha erg condition rank norms"
TARGETS = {"0.0225": 0.1, "0.084": 0.2, "0.115": 0.3, "0.145": 0.4, "0.175": 0.5, "0.215": 0.6,
           "0.26": 0.7}  # fmt: skip


def heavy(*shape: int, seed: int, scale: float = 0.1) -> torch.Tensor:
    """Float32 weights with a heavy tail and a spread of scales."""
    rng = np.random.default_rng(seed)
    rows = rng.random((shape[0], *(1,) * (len(shape) - 1))) ** 2
    return torch.from_numpy((rng.standard_normal(shape) * rows * scale).astype(np.float32))


CONV = {
    "features.0.weight": heavy(48, 32, 3, 3, seed=1),
    "features.1.weight": heavy(64, 48, 1, 1, seed=2),
    "features.2.weight": heavy(20, 30, 1, 1, seed=3, scale=0.003),  # half below the floor
    "features.3.weight": heavy(24, 40, 2, 2, seed=4),
    "classifier.weight": heavy(30, 64, seed=5),
}


def spectrum_of(weight: torch.Tensor, scale: float = 1.0) -> Array:
    """Pooled eigenvalues, ascending, by another decomposition."""
    entries = weight.double().numpy() * scale
    slices = entries.reshape(*entries.shape[:2], -1)
    values = [np.linalg.svd(slices[:, :, j], compute_uv=False) for j in range(slices.shape[2])]
    return np.asarray(np.sort(np.concatenate(values) ** 2))


def naive_fit(evals: Array) -> tuple[float, float, float, int]:
    """Alpha, xmin, KS distance and tail size by trying everything (alpha by n - 1 below 20)."""
    n = len(evals)
    small = n < 20
    fits = []
    for start in range(n - 7 if small else n - 1):
        tail = evals[start:]
        alpha = 1 + (len(tail) - small) / np.sum(np.log(tail / tail[0]))
        model = 1 - (tail / tail[0]) ** (1 - alpha)
        ks = float(np.max(np.abs(model - np.arange(len(tail)) / len(tail))))
        fits.append((ks, float(alpha), float(tail[0]), len(tail)))
    ks, alpha, xmin, n_tail = min(fits)
    return alpha, xmin, ks, n_tail


def naive_erg(evals: Array) -> tuple[int, float]:
    """Tail size and eigenvalue where the log-determinant of the tail turns negative."""
    total = 0.0
    for k, value in enumerate(evals[::-1], 1):
        with np.errstate(divide="ignore"):
            total += float(np.log(value * len(evals) / evals.sum()))
        if total < 0:
            return k, float(value)
    raise AssertionError("no crossing")


def row_of(run: Run, name: str) -> Row:
    return next(row for row in run.rows if row["name"] == name)


@pytest.fixture(scope="module")
def ww_run() -> Run:
    return weightscope.analyze(CONV, compat="weightwatcher", metrics=FAMILIES, device="cpu")


@pytest.fixture(scope="module")
def plain_run() -> Run:
    return weightscope.analyze(CONV, metrics=FAMILIES, device="cpu")


@pytest.mark.parametrize("name", compat.PEERS)
def test_a_peer_names_columns_that_exist_and_says_what_it_changes(name: str) -> None:
    from weightscope.evaluate import all_columns

    record = compat.record(name)
    assert set(record["columns"]) <= {column.name for column in all_columns()}
    assert record["peer"] and record["left_out"]
    assert set(record["settings"]) <= set(Settings.__dataclass_fields__)


def test_our_own_conventions_are_those_of_no_peer() -> None:
    assert compat.conventions(None) == compat.Conventions()
    assert Settings().compat is None
    assert compat.conventions(None).welore_threshold(0.55) is None


@pytest.mark.parametrize(
    ("name", "given", "words"),
    [
        ("weightwatcher", {"eval_floor": EvalFloor()}, "--eval-floor rank contradicts --compat"),
        ("weightwatcher", {"xmin": "mid"}, "--xmin ks"),
        ("weightwatcher", {"conv": "flatten"}, "--conv slices"),
        ("farms", {"farms": "auto"}, "--farms paper-llm or paper-cnn"),
        ("kappatune", {"conv": "slices"}, "--conv flatten"),
        ("welore", {"welore_target": 0.55}, "0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7"),
    ],
)
def test_what_contradicts_a_peer_is_refused_by_name(
    name: str, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(OptionError, match=words):
        compat.check(name, given)


def test_settings_take_what_a_peer_fixes_and_refuse_what_it_does_not_allow() -> None:
    assert Settings(compat="weightwatcher").eval_floor == EvalFloor("abs", 1e-5)
    assert Settings(compat="kappatune").conv == "flatten"
    assert Settings(compat="farms").farms == "paper-llm"
    assert Settings(compat="farms", farms="paper-cnn").farms == "paper-cnn"
    with pytest.raises(OptionError, match="--xmin"):
        Settings(compat="weightwatcher", xmin="mid")
    with pytest.raises(OptionError, match="weightwatcher, farms"):
        Settings(compat="powerlaw")


# WeightWatcher


@pytest.mark.parametrize("name", CONV)
def test_weightwatcher_scales_convolutions_and_floors_at_an_absolute_value(
    ww_run: Run, name: str
) -> None:
    row = row_of(ww_run, name)
    evals = spectrum_of(CONV[name], sqrt(0.5) if CONV[name].ndim == 4 else 1.0)
    alpha, xmin, ks, n_tail = naive_fit(evals[evals > 1e-5])
    assert row["alpha"] == pytest.approx(alpha, rel=1e-8)
    assert row["alpha_xmin"] == pytest.approx(xmin, rel=1e-8)
    assert row["alpha_ks"] == pytest.approx(ks, rel=1e-8)
    assert row["alpha_n_tail"] == n_tail
    assert row["alpha_hat"] == pytest.approx(alpha * np.log10(evals[-1]), rel=1e-8)
    assert row["frobenius_norm"] == pytest.approx(sqrt(evals.sum()), rel=1e-12)
    assert row["spectral_norm"] == pytest.approx(sqrt(evals[-1]), rel=1e-12)
    count, cut = naive_erg(evals)
    assert row["erg_n_tail"] == count
    assert row["erg_xmin"] == pytest.approx(cut, rel=1e-8)


def test_the_absolute_floor_left_a_small_sample() -> None:
    evals = spectrum_of(CONV["features.2.weight"], sqrt(0.5))
    assert 8 <= np.count_nonzero(evals > 1e-5) < 20 <= len(evals)


def test_only_the_columns_of_a_scaled_convolution_move(ww_run: Run, plain_run: Run) -> None:
    for row in ww_run.rows:
        ours = row_of(plain_run, str(row["name"]))
        factor = sqrt(0.5) if row["role"] == "conv" else 1.0
        for column in ("stable_rank", "effective_rank", "participation_ratio", "condition_number",
                       "erg_n_tail", "condition_number_resolvable"):  # fmt: skip
            assert row[column] == pytest.approx(ours[column], rel=1e-12), column
        for column in ("spectral_norm", "frobenius_norm", "nuclear_norm", "sv_floor"):
            assert row[column] == pytest.approx(factor * float(ours[column] or 0), rel=1e-12)


def test_saved_spectra_are_those_of_the_stored_weights(ww_run: Run, plain_run: Run) -> None:
    for name in CONV:
        found, expected = ww_run.spectrum(name), plain_run.spectrum(name)
        np.testing.assert_array_equal(found.singular_values, expected.singular_values)


def test_shuffled_convolutions_are_scaled_alike() -> None:
    settings = {"metrics": "shuffled", "shuffled": 2, "device": "cpu"}
    plain = weightscope.analyze(CONV, **settings)
    theirs = weightscope.analyze(CONV, compat="weightwatcher", **settings)
    for a, b in zip(plain.rows, theirs.rows, strict=True):
        factor = 0.5 if a["role"] == "conv" else 1.0
        expected = factor * float(a["shuffled_lambda_max"] or 0)
        assert b["shuffled_lambda_max"] == pytest.approx(expected, rel=1e-12)
        assert a["traps"] == b["traps"]


def test_weightwatchers_names_carry_its_scale_whatever_the_run_followed(
    ww_run: Run, plain_run: Run
) -> None:
    """Above the floor both runs have the same fits; scaled columns must meet, 1 x 1 ones too."""
    theirs = weightwatcher.rows(ww_run.rows, "weightwatcher")
    ours = weightwatcher.rows(plain_run.rows)
    compared = 0
    for a, b in zip(theirs, ours, strict=True):
        for column in ("norm", "spectral_norm", "lambda_max", "sv_max", "sv_min", "log_norm",
                       "log_spectral_norm", "detX_val", "detX_val_unrescaled"):  # fmt: skip
            assert a[column] == pytest.approx(b[column], rel=1e-9), (a["name"], column)
        if a["name"] != "features.2":
            for column in ("alpha", "xmin", "alpha_weighted", "log_alpha_norm"):
                assert a[column] == pytest.approx(b[column], rel=1e-9), (a["name"], column)
            compared += 1
    assert compared == 4


def test_weightwatchers_rank_is_that_of_double_precision() -> None:
    """Rank 4 rounded to bf16: the rounding counts for WeightWatcher, not for us."""
    rng = np.random.default_rng(7)
    exact = rng.standard_normal((96, 4)) @ rng.standard_normal((4, 64))
    stored = torch.from_numpy(exact).to(torch.bfloat16)
    model = {"a.weight": stored, "b.weight": torch.from_numpy(exact)}
    (ours, _), (theirs, double) = (
        weightscope.analyze(model, device="cpu", metrics="alpha erg rank", compat=peer).rows
        for peer in (None, "weightwatcher")
    )
    assert (ours["rank"], theirs["rank"]) == (4, np.linalg.matrix_rank(stored.double().numpy()))
    assert theirs["rank"] == 64
    assert double["rank"] == 4
    count, cut = naive_erg(spectrum_of(stored))
    assert (theirs["erg_n_tail"], ours["erg_n_tail"]) != (count, count)
    assert theirs["erg_n_tail"] == count
    assert theirs["erg_xmin"] == pytest.approx(cut, rel=1e-6)
    evals = spectrum_of(stored)
    shares = evals / evals.sum() + 1e-10
    entropy = -np.sum(shares * np.log(shares)) / log(64 + 1e-10)
    assert theirs["entropy"] == pytest.approx(entropy, rel=1e-9)


def test_weightwatchers_erg_cut_is_sought_among_exact_zeros_too() -> None:
    """Twenty zero columns: they make the mean eigenvalue smaller, and the cut another."""
    weight = torch.nn.functional.pad(heavy(90, 40, seed=8), (0, 20))
    ours, theirs = (
        weightscope.analyze({"a.weight": weight}, device="cpu", metrics="erg rank", compat=peer)
        for peer in (None, "weightwatcher")
    )
    count, cut = naive_erg(spectrum_of(weight))
    assert theirs.rows[0]["rank"] == ours.rows[0]["rank"] == 40
    assert theirs.rows[0]["erg_n_tail"] == count
    assert theirs.rows[0]["erg_xmin"] == pytest.approx(cut, rel=1e-9)
    count, cut = naive_erg(spectrum_of(weight)[20:])
    assert ours.rows[0]["erg_n_tail"] == count
    assert ours.rows[0]["erg_xmin"] == pytest.approx(cut, rel=1e-9)


@pytest.mark.parametrize(
    ("ours", "theirs", "power"),
    [
        ("alpha", "alpha", 1),
        ("alpha_ks", "D", 1),
        ("alpha_xmin", "xmin", 1),
        ("alpha_stderr", "sigma", 1),
        ("alpha_hat", "alpha_weighted", 1),
        ("log_alpha_norm", "log_alpha_norm", 1),
        ("erg_xmin", "detX_val", 1),
        ("frobenius_norm", "norm", 2),
        ("spectral_norm", "spectral_norm", 2),
        ("log_norm", "log_norm", 1),
        ("log_spectral_norm", "log_spectral_norm", 1),
        ("stable_rank", "stable_rank", 1),
        ("entropy", "entropy", 1),  # 1e-7 away without its offset
        ("alpha_n_tail", "num_pl_spikes", 0),
        ("erg_n_tail", "detX_num", 0),
        ("erg_gap", "ERG_gap", 0),
        ("rank", "matrix_rank", 0),
    ],
)
def test_weightwatchers_columns_equal_its_own_on_a_real_model(
    minilm_ww: Run, golden: Golden, ours: str, theirs: str, power: int
) -> None:
    """Counts exactly, everything else to 1e-9."""
    records = golden("minilm_weightwatcher.csv")
    assert len(records) == 39
    for record in records:
        found, expected = row_of(minilm_ww, f"{record['longname']}.weight")[ours], record[theirs]
        if power:
            assert float(found or 0) ** power == pytest.approx(float(expected), rel=1e-9)
        else:
            assert found == int(expected)


@pytest.mark.parametrize(
    "column",
    [
        *("norm", "spectral_norm", "log_norm", "stable_rank", "entropy"),
        *("detX_num", "matrix_rank", "rank_loss", "sv_max", "sv_min"),
    ],
)
def test_two_eigenvalues_agree_but_for_the_fit_that_they_do_not_carry(
    minilm_ww: Run, golden: Golden, column: str
) -> None:
    """With min_evals=1 the peer fits a line through two points; its detX_val is the other one."""
    (record,) = golden("minilm_weightwatcher_minevals1.csv")
    rows = weightwatcher.rows(minilm_ww.rows, "weightwatcher")
    row = next(row for row in rows if row["longname"] == record["longname"])
    assert row[column] == pytest.approx(float(record[column]), rel=1e-8)
    assert (row["alpha"], record["num_evals"]) == (None, "2")


@pytest.fixture(scope="module")
def minilm_ww(minilm: Path) -> Run:
    return weightscope.analyze(minilm, compat="weightwatcher", metrics=FAMILIES, device="cpu")


# the others


@pytest.mark.parametrize("threshold", TARGETS)
def test_welore_prunes_by_its_table(minilm_ww: Run, golden: Golden, threshold: str) -> None:
    settings = Settings(compat="welore", welore_target=TARGETS[threshold])
    records = golden("minilm_welore.csv")
    spectra = [minilm_ww.spectrum(record["param"]) for record in records]
    fitted = welore.fit_under(spectra, settings)
    assert fitted is not None and fitted.k == float(threshold)
    pruned = [int(float(record[f"pruned_{threshold}_f64"])) for record in records]
    sizes = [int(record["n_sv"]) for record in records]
    assert fitted.attempted == pytest.approx(sum(pruned) / sum(sizes), rel=1e-12)
    for spectrum, count, n in zip(spectra, pruned, sizes, strict=True):
        found = welore.evaluate(spectrum, n, fitted)
        assert found["welore_rank"] == n - count
        assert found["welore_class"] == ("LRC" if count / n > 0.4999 else "N-LRC")


def test_welores_class_counts_pruned_values_and_not_rank() -> None:
    """Half pruned is low-rank for the program, and not for the paper's rule."""
    fitted = welore.WeloreFit(0.5, 0.5, 0.5)
    theirs = welore.WeloreFit(0.5, 0.5, 0.5, compat.conventions("welore").welore_pruned)
    assert [fitted.is_low_rank(k, 100, 100) for k in (49, 50, 51)] == [True, False, False]
    assert [theirs.is_low_rank(k, 100, 100) for k in (49, 50, 51)] == [True, True, False]
    assert fitted.is_low_rank(45, 100, 80) is False
    assert theirs.is_low_rank(45, 100, 80) is True


def test_a_run_follows_welores_table(minilm: Path, golden: Golden) -> None:
    run = weightscope.analyze(minilm, compat="welore", metrics="welore", device="cpu")
    assert run.summary["welore"]["threshold"] == 0.175
    records = [r for r in golden("minilm_welore.csv") if r["pruned_0.175"]]
    assert len(records) >= 36
    for record in records:
        expected = int(record["n_sv"]) - int(float(record["pruned_0.175"]))
        assert row_of(run, record["param"])["welore_rank"] == expected


def test_kappatune_flattens_convolutions(minilm: Path, golden: Golden) -> None:
    run = weightscope.analyze(CONV, compat="kappatune", metrics="condition", device="cpu")
    for name, weight in CONV.items():
        s = np.linalg.svd(weight.double().flatten(1).numpy(), compute_uv=False)
        assert row_of(run, name)["condition_number"] == pytest.approx(s[0] / s[-1], rel=1e-6)
    real = weightscope.analyze(minilm, compat="kappatune", metrics="condition", device="cpu")
    for record in golden("minilm_kappatune.csv"):
        found = row_of(real, record["param"])["condition_number"]
        assert found == pytest.approx(float(record["cond_f64"]), rel=1e-4)
        assert found == pytest.approx(float(record["kappatune"]), rel=1e-3)  # float32


def test_spectrums_score_is_its_programs(minilm: Path, golden: Golden) -> None:
    run = weightscope.analyze(minilm, compat="spectrum", metrics="snr", device="cpu")
    records = golden("minilm_spectrum.csv")
    assert len(records) == 40
    for record in records:
        found = row_of(run, f"{record['module']}.weight")["snr"]
        assert found == pytest.approx(float(record["f64_snr"]), rel=1e-9), record["module"]
        assert found == pytest.approx(float(record["spectrum_snr"]), rel=2e-6)


def test_farms_are_the_papers_windows_and_peak(minilm: Path) -> None:
    """A square matrix is one window of the paper's size; a long one fifteen."""
    run = weightscope.analyze(
        minilm, compat="farms", metrics="farms", include=["*layer.0.*"], device="cpu"
    )
    for row in run.rows:
        assert row["farms_method"] == "peak"
        assert (row["farms_window_rows"], row["farms_window_cols"]) == (384, 384)
        assert row["farms_windows"] == (15 if row["Q"] != 1 else 1)
