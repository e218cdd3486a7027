"""The selftest: what it plants is what it says, it passes here, and a broken solver fails it."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import typer
from checkpoints import run_weightscope
from scipy import integrate

from weightscope import measure, planted, selftest
from weightscope.cli.selftest import selftest as verb
from weightscope.decompositions.full import full_spectrum
from weightscope.errors import OptionError
from weightscope.present import selftest as present_selftest
from weightscope.selftest import FAMILIES, Check, Limits, Selftest
from weightscope.settings import Settings
from weightscope.spectrum import Spectrum

Array = npt.NDArray[np.float64]
HERE = Settings(device="cpu", threads=1)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# what is planted


@pytest.mark.parametrize(("N", "M"), [(90, 40), (64, 64)])
def test_a_planted_spectrum_is_the_matrix_s(N: int, M: int) -> None:
    evals = planted.heavy_tail(2.5, M, M // 2)
    matrix = planted.with_spectrum(evals, planted.bases(N, M, rng()))
    assert matrix.shape == (N, M)
    found = np.linalg.svd(matrix, compute_uv=False) ** 2
    np.testing.assert_allclose(found[::-1], evals, rtol=1e-11)
    left = planted.orthonormal(N, M, rng(1))
    np.testing.assert_allclose(left.T @ left, np.eye(M), atol=1e-13)
    assert planted.stored(matrix, "bfloat16").dtype == torch.bfloat16


def test_directions_are_uniform() -> None:
    """Without the signs of R the first entries would all be negative (Mezzadri 2007)."""
    corners = [planted.orthonormal(3, 3, rng(seed))[0, 0] for seed in range(400)]
    assert abs(np.mean(corners)) < 0.12  # a coordinate of a unit vector: variance 1/3
    assert np.var(corners) == pytest.approx(1 / 3, rel=0.2)


@pytest.mark.parametrize("exponent", [1.5, 3.0, 6.0])
def test_quantiles_and_draws_follow_the_power_law(exponent: float) -> None:
    quantiles = planted.pareto_evals(exponent, 1000)
    np.testing.assert_allclose(
        quantiles ** (1 - exponent), 1 - (np.arange(1000) + 0.5) / 1000, rtol=1e-12
    )
    draws = planted.pareto_sample(exponent, 4000, rng(2))
    assert (np.diff(draws) >= 0).all() and draws[0] > 1
    assert 1 / np.mean(np.log(draws)) == pytest.approx(exponent - 1, rel=0.06)
    tail = planted.heavy_tail(exponent, 100, 40)
    assert (tail[60:] > 1).all() and (tail[:60] < 1).all() and len(tail) == 100


@pytest.mark.parametrize("Q", [1.0, 2.0, 7.8])
def test_the_noise_spectrum_has_the_law_s_quantiles(Q: float) -> None:
    M = 40
    low, high = (1 - Q**-0.5) ** 2, (1 + Q**-0.5) ** 2

    def density(t: float) -> float:
        """With x = mid - half cos t, whose derivative takes the edges' square roots away."""
        x = (low + high) / 2 - (high - low) / 2 * np.cos(t)
        return float(Q / (2 * np.pi * x) * ((high - low) / 2 * np.sin(t)) ** 2)

    for k, x in enumerate(planted.marchenko_pastur_evals(M, Q)):
        t = np.arccos(((low + high) / 2 - x) / ((high - low) / 2))
        share, _ = integrate.quad(density, 0, t)
        assert share == pytest.approx((k + 0.5) / M, abs=1e-8)


def test_spikes_leave_the_noise_where_theory_says() -> None:
    """Half the limit: the edge; twice the limit: the formula. Mean of five matrices."""
    N, M = 800, 400
    limit = planted.detection_limit(N, M)
    assert limit == pytest.approx(0.5**0.25)
    edge = (1 + 0.5**0.5) ** 2
    for factor, expected in ((0.5, edge), (2.0, planted.spike_position(N, M, 2 * limit))):
        matrices = [planted.spiked(N, M, factor * limit, rng(seed)) for seed in range(5)]
        largest = [np.linalg.norm(W, 2) ** 2 / N for W in matrices]
        assert np.mean(largest) == pytest.approx(expected, rel=0.03)
    assert planted.spike_position(N, M, limit) == pytest.approx(edge, rel=1e-12)


def test_noise_s_largest_eigenvalue_scatters_on_the_scale_of_its_edge() -> None:
    """Tracy-Widom: mean -1.2065 and standard deviation 1.268 scales from the edge."""
    N, M = 200, 100
    edge, scale = (1 + 0.5**0.5) ** 2, planted.edge_scale(N, M)
    largest = [np.linalg.norm(planted.noise(N, M, rng(k)), 2) ** 2 / N for k in range(300)]
    scores = (np.array(largest) - edge) / scale
    assert np.mean(scores) == pytest.approx(selftest.TRACY_WIDOM_MEAN, abs=0.35)
    assert np.std(scores) == pytest.approx(1.268, rel=0.15)


def test_low_ranks_and_kappas_are_exact() -> None:
    s = np.linalg.svd(planted.low_rank(60, 50, 7, rng()), compute_uv=False)
    assert s[6] > 1 and s[7] < 1e-12
    g = planted.geometric(1e4, 9)
    np.testing.assert_allclose(g[:-1] / g[1:], 10**0.5)
    assert g[0] / g[-1] == pytest.approx(1e4)


# verdicts


def check_of(**changes: Any) -> Check:
    fields: dict[str, Any] = {
        "family": "ranks", "planted": "a", "cases": 4, "bias": -0.1, "spread": 0.2, "share": 0.9,
        "counts": "exact", "limits": Limits(0.1, 0.2, (0.9, 0.95)),
    }  # fmt: skip
    return Check(**{**fields, **changes})


def test_a_check_passes_up_to_its_limits_and_not_beyond() -> None:
    assert check_of().passed
    for wrong in (
        {"bias": 0.1001}, {"bias": -0.1001}, {"spread": 0.2001}, {"share": 0.8999},
        {"share": 0.9501}, {"bias": float("nan")}, {"spread": float("nan")},
    ):  # fmt: skip
        assert not check_of(**wrong).passed, wrong
    assert check_of(bias=9.0, spread=9.0, limits=Limits(share=(0.9, 1))).passed


def test_errors_are_condensed_to_mean_deviation_and_share() -> None:
    errors = np.array([0.1, -0.1, 0.3, 0.1])
    found = selftest.check(
        ("f", "w"), errors, ("near", [True, True, False, True]), Limits(0.1, 0.2)
    )
    assert (found.cases, found.share) == (4, 0.75)
    assert found.bias == pytest.approx(0.1)
    assert found.spread == pytest.approx(0.02**0.5)


def test_a_family_fails_with_any_of_its_checks() -> None:
    good, bad = check_of(), check_of(bias=1.0)
    other = check_of(family="erg")
    found = Selftest((good, bad, other), HERE, "CPU", (), 1.0)
    assert found.failed == ["ranks"]
    text = str(present_selftest.selftest_report(found))
    assert "FAIL: ranks" in text
    assert "PASS: 2 families" in str(
        present_selftest.selftest_report(Selftest((good, other), HERE, "CPU", (), 1.0))
    )


def test_undefined_figures_are_shown_as_such() -> None:
    found = Selftest((check_of(bias=float("nan")),), HERE, "CPU", (), 1.0)
    assert present_selftest.selftest_rows(found)[0]["bias"] is None
    assert "undefined" in str(present_selftest.selftest_report(found))


# the truth of the references


def test_the_erg_references_are_first_negative_sums() -> None:
    for what, evals, expected in selftest.ERG_REFERENCES:
        values = np.sort(evals())[::-1].astype(np.longdouble)
        sums = np.cumsum(np.log(values * (len(values) / values.sum())))
        assert int(np.argmax(sums < 0)) + 1 == expected, what


# running it


def run(*families: str) -> Selftest:
    return selftest.selftest(HERE, families)


def exit_code(*families: str) -> int:
    try:
        verb(list(families), device="cpu", threads=1, quiet=True)
    except typer.Exit as found:
        return found.exit_code
    return 0


@pytest.mark.parametrize("family", ["spikes", "kappas"])
def test_a_family_passes(family: str) -> None:
    found = run(family)
    assert not found.failed, [c for c in found.checks if not c.passed]
    assert {check.family for check in found.checks} == {family}


def test_the_seed_decides_the_figures() -> None:
    def biases(seed: int) -> list[float]:
        settings = Settings(device="cpu", threads=1, seed=seed)
        return [check.bias for check in selftest.selftest(settings, ("kappas",)).checks]

    assert biases(0) == biases(0) != biases(1)


def _distorted(change: Callable[[Array], Array]) -> Callable[[pytest.MonkeyPatch], None]:
    """A solver whose singular values are changed, behind every check that it makes itself."""

    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        def solve(slices: Any, stats: Any) -> Spectrum:
            found = full_spectrum(slices, stats)
            return replace(found, singular_values=change(found.singular_values))

        monkeypatch.setattr(measure, "full_spectrum", solve)

    return patch


def _larger(s: Array) -> Array:
    return 1.02 * s


def _wider(s: Array) -> Array:
    return np.asarray(s**1.02)


def _smallest_off(s: Array) -> Array:
    return np.r_[s[:-1], 1.0001 * s[-1]]


def _without_storage_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    from weightscope.decompositions import entries

    monkeypatch.setattr(entries, "storage_floor", lambda *_: 0.0)


def _by_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ERG walk as a growing product, smallest eigenvalue first: it underflows."""
    from weightscope.metrics import erg

    def crossing(evals: Array) -> erg.Crossing:
        found = true_crossing(evals)
        scaled = evals * found.scale
        with np.errstate(under="ignore", over="ignore"):
            n = next(k for k in range(1, len(evals) + 1) if np.prod(scaled[:k][::-1]) < 1)
        return erg.Crossing(n, float(evals[n - 1]), found.sums, found.scale)

    true_crossing = erg.crossing
    monkeypatch.setattr(erg, "crossing", crossing)


def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    from weightscope.laws.power_law import PowerLaw, fit_power_law

    def interval(evals: Array, *_: object) -> tuple[float, float]:
        fit = fit_power_law(evals)
        assert isinstance(fit, PowerLaw)
        return fit.alpha - fit.stderr, fit.alpha + fit.stderr

    monkeypatch.setattr(selftest, "alpha_interval", interval)


@pytest.mark.parametrize(
    ("family", "defect"),
    [
        pytest.param("exponents", _distorted(_wider), marks=pytest.mark.slow),
        pytest.param("spikes", _distorted(_larger), marks=pytest.mark.slow),
        ("ranks", _without_storage_floor),
        ("kappas", _distorted(_smallest_off)),
        ("erg", _by_product),
        ("intervals", _narrow),
    ],
)
def test_a_defect_ends_with_exit_code_3(
    family: str,
    defect: Callable[[pytest.MonkeyPatch], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    defect(monkeypatch)
    assert exit_code(family) == 3
    shown = capsys.readouterr().out
    assert f"FAIL: {family}." in shown


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_everything_passes_for_any_seed(seed: int) -> None:
    found = selftest.selftest(Settings(device="cpu", threads=1, seed=seed))
    assert not found.failed, [c for c in found.checks if not c.passed]
    assert {check.family for check in found.checks} == set(FAMILIES)


def test_the_command_prints_a_table_and_a_verdict() -> None:
    result = run_weightscope("selftest", "--only", "erg,ranks", "--threads", 1, "--device", "cpu")
    assert result.returncode == 0, result.stderr
    assert "PASS: 2 families." in result.stdout
    assert re.search(
        r"erg\s+Marchenko-Pastur, Q 1, n 8192: 5989\s+1\s+0\s+0\s+100% exact", result.stdout
    )
    assert result.stderr.splitlines()[0].startswith("ranks: ")


def test_the_command_writes_json_and_csv() -> None:
    arguments = ("selftest", "--only", "erg", "-q", "--seed", 5, "--device", "cpu", "--format")
    result = run_weightscope(*arguments, "json")
    assert (result.returncode, result.stderr) == (0, "")
    record = json.loads(result.stdout)
    assert record["failed"] == [] and record["seed"] == 5 and record["weightscope"]
    assert {check["verdict"] for check in record["checks"]} == {"PASS"}
    rows = list(csv.DictReader(io.StringIO(run_weightscope(*arguments, "csv").stdout)))
    assert [row["planted"] for row in rows] == [check["planted"] for check in record["checks"]]


def test_an_unknown_family_or_device_is_a_usage_error() -> None:
    with pytest.raises(OptionError, match="--only 'ergs': choose from exponents, spikes"):
        run("ergs")
    assert exit_code("ergs") == 2
    with pytest.raises(OptionError, match="--device abacus"):
        selftest.selftest(Settings(device="abacus"), ("erg",))
