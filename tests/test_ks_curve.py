"""The curve behind the choice of xmin, against a loop that evaluates everything."""

from __future__ import annotations

from math import log, log10
from pathlib import Path

import numpy as np
import pytest
import zoo
from hypothesis import given, settings
from hypothesis import strategies as st

import weightscope
from weightscope.drawings.ks_curve import KsCurve, ks_curve_of
from weightscope.laws.power_law import distance_curve, fit_power_law, second_minimum
from weightscope.outcome import Failure
from weightscope.recipe import EvalFloor
from weightscope.run import Run
from weightscope.spectrum import Spectrum

FLOOR = EvalFloor()


def naive(values: list[float]) -> list[tuple[float, float, float]]:
    """xmin, ks and alpha of every distinct value but the largest, one point at a time."""
    values = sorted(values)
    found = []
    for start, xmin in enumerate(values):
        tail = values[start:]
        if xmin == values[-1] or (start and values[start - 1] == xmin):
            continue
        alpha = 1 + len(tail) / sum(log(x / xmin) for x in tail)
        ks = max(abs(1 - (x / xmin) ** (1 - alpha) - j / len(tail)) for j, x in enumerate(tail))
        found.append((xmin, ks, alpha))
    return found  # fmt: skip


@settings(max_examples=40)
@given(st.integers(20, 120), st.integers(0, 10**6), st.booleans())
def test_every_candidate_is_that_of_a_naive_loop(n: int, seed: int, ties: bool) -> None:
    values = np.random.default_rng(seed).pareto(1.5, n) + 1
    values = np.round(values, 1) if ties else values
    expected = np.array(naive(list(values)))
    found = np.array(distance_curve(values)).T
    assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("n", [8, 12, 19])
def test_small_samples_follow_their_own_rules(n: int) -> None:
    values = np.random.default_rng(n).pareto(2, n) + 1
    xmin, ks, alpha = distance_curve(values)
    fit = fit_power_law(values)
    assert not isinstance(fit, Failure) and fit.method == "ks-small-sample"
    best = int(ks.argmin())
    assert (xmin[best], ks[best], alpha[best]) == pytest.approx((fit.xmin, fit.ks, fit.alpha))
    assert len(xmin) == n - 7


def test_where_there_are_too_many_the_winners_stay() -> None:
    rng = np.random.default_rng(7)
    values = np.concatenate([rng.uniform(0, 1, 1500), rng.pareto(1.2, 500) + 1])
    fit = fit_power_law(values)
    assert not isinstance(fit, Failure)
    xmin, ks, alpha = distance_curve(values, points=200_000)
    assert 50 < len(xmin) < 250
    best = int(ks.argmin())
    assert (xmin[best], ks[best], alpha[best]) == pytest.approx((fit.xmin, fit.ks, fit.alpha))
    second = second_minimum(values)
    assert second is None or second.xmin in xmin


def test_nothing_to_search_is_an_empty_curve() -> None:
    for values in ([], [1.0], [2.0, 2.0, 2.0], [1.0, 2.0]):
        assert all(len(part) <= 1 for part in distance_curve(np.array(values)))


def rows_and_curves(run: Run) -> list[tuple[dict[str, object], KsCurve | Failure]]:
    floor = FLOOR
    return [
        (row, ks_curve_of(spectrum, row, floor))
        for row in run.rows
        if (spectrum := run.spectra().get(str(row["name"]))) is not None and spectrum.largest > 0
    ]


def check(row: dict[str, object], curve: KsCurve) -> None:
    """The lowest point of the curve is what the row says, in the row's units."""
    best = int(curve.ks.argmin())
    assert curve.ks[best] == pytest.approx(row["alpha_ks"], abs=1e-9)
    near = np.flatnonzero(curve.ks <= curve.ks[best] + 1e-7)
    assert min(abs(curve.x[near] - log10(row["alpha_xmin"]))) < 1e-9  # type: ignore[arg-type]
    assert curve.chosen.alpha == row["alpha"]
    at = int(np.abs(curve.x - curve.chosen.x).argmin())
    assert curve.alpha[at] == pytest.approx(row["alpha"], rel=1e-9)


def test_the_lowest_point_is_the_alpha_of_the_row(minilm_run: Run, zoo_run: Run) -> None:
    drawn = 0
    for run in (minilm_run, zoo_run):
        for row, curve in rows_and_curves(run):
            if row["alpha_xmin"] is None:
                assert isinstance(curve, Failure)
                continue
            assert isinstance(curve, KsCurve), row["name"]
            check(row, curve)
            drawn += 1
    assert drawn > 45


def test_second_minima_are_on_the_curve(minilm_run: Run) -> None:
    seconds = 0
    for row, curve in rows_and_curves(minilm_run):
        if row["alpha_second"] is None or isinstance(curve, Failure):
            continue
        assert curve.second is not None
        at = int(np.abs(curve.x - curve.second.x).argmin())
        assert curve.alpha[at] == pytest.approx(row["alpha_second"], rel=1e-9)
        assert 0 <= curve.second.ks - curve.chosen.ks <= 0.005 + 1e-12
        seconds += 1
    assert seconds >= 3


def test_other_fits_are_marked_where_they_chose() -> None:
    tensors = {"a.weight": zoo.tensor("gaussian_q1"), "b.weight": zoo.tensor("gaussian_q2")}
    for method in ("mid", "peak-fixed"):
        run = weightscope.analyze(tensors, device="cpu", xmin=method)
        for row, curve in rows_and_curves(run):
            assert isinstance(curve, KsCurve)
            assert curve.method == method
            assert curve.chosen.ks >= curve.ks.min() - 1e-12
            at = int(np.abs(curve.x - curve.chosen.x).argmin())
            assert curve.ks[at] == pytest.approx(row["alpha_ks"], rel=1e-9)


def test_a_truncated_law_has_no_such_curve() -> None:
    tensors = {"a.weight": zoo.tensor("gaussian_q2")}
    run = weightscope.analyze(tensors, device="cpu", fit="tpl", metrics=("alpha",))
    ((_, curve),) = rows_and_curves(run)
    assert isinstance(curve, Failure)


def test_without_the_rank_a_deficient_matrix_is_refused() -> None:
    spectrum = Spectrum(np.linspace(2, 1, 40), 50, 40)
    row = {"alpha": 2.0, "alpha_xmin": 1.0, "alpha_ks": 0.1, "alpha_method": "ks", "rank": None}
    assert isinstance(ks_curve_of(spectrum, {**row, "warnings": None}, FLOOR), KsCurve)
    assert isinstance(ks_curve_of(spectrum, {**row, "warnings": "rank_deficient"}, FLOOR), Failure)


def test_units_of_the_row_are_followed(tmp_path: Path) -> None:
    conv = {"c.weight": zoo.tensor("gaussian_q2").flatten()[: 24 * 32 * 9].reshape(24, 32, 3, 3)}
    runs = [
        weightscope.analyze(conv, device="cpu", compat=peer, metrics=("alpha", "rank", "norms"))
        for peer in (None, "weightwatcher")
    ]
    for run in runs:
        floor = EvalFloor("abs", 1e-5) if run is runs[1] else FLOOR
        row = run.rows[0]
        curve = ks_curve_of(run.spectrum("c.weight"), row, floor)
        assert isinstance(curve, KsCurve)
        check(row, curve)
    assert runs[0].rows[0]["alpha_xmin"] != runs[1].rows[0]["alpha_xmin"]
