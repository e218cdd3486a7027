"""FARMS over a grid of settings: the same figures as one at a time, and what they add up to."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from checkpoints import run_weightscope, write_file
from conftest import Records
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr
from test_compat import heavy, naive_fit

import weightscope
from weightscope import farms_settings as f
from weightscope.analysis import with_resources
from weightscope.errors import OptionError
from weightscope.laws.power_law import PowerLaw
from weightscope.measurement import FarmsFit
from weightscope.outcome import Failure
from weightscope.settings import Settings
from weightscope.sources import open_model

Golden = Callable[[str], Records]
Array = npt.NDArray[np.float64]
MODEL = {
    "model.layers.0.mlp.up_proj.weight": heavy(96, 64, seed=1),
    "model.layers.1.mlp.up_proj.weight": heavy(96, 64, seed=2),
    "model.layers.0.self_attn.q_proj.weight": heavy(64, 64, seed=3),
    "model.layers.0.mlp.gate_proj.weight": heavy(40, 20, seed=4),  # too small for a window
    "model.embed_tokens.weight": heavy(128, 64, seed=5),
}


def study(model: Any, *grid: Any, **settings: Any) -> f.Study:
    """A study on the CPU, of a live model or a folder."""
    resolved, _ = with_resources(Settings(metrics=("farms",), device="cpu", **settings))
    return f.study(open_model(model), f.settings_grid(*grid), resolved)


def alpha_of(found: f.Study, name: str, label: str) -> float:
    rows = [r for r in f.tidy_rows(found) if (r["name"], r["setting"]) == (name, label)]
    (row,) = rows
    assert isinstance(row["alpha_farms"], float), row["reason"]
    return row["alpha_farms"]


@pytest.fixture(scope="module")
def small() -> f.Study:
    return study(MODEL, (32, 48, 500), (1, 3))


def test_the_first_setting_is_that_of_an_analysis(small: f.Study) -> None:
    run = weightscope.analyze(MODEL, metrics="farms", device="cpu")
    for row in run.rows:
        mine = [r for r in f.tidy_rows(small) if (r["name"], r["setting"]) == (row["name"], "auto")]
        if row["alpha_farms"] is None:
            assert not mine or mine[0]["alpha_farms"] is None
            continue
        for ours, theirs in (("alpha_farms", "alpha_farms"), ("alpha_farms_sd", "alpha_farms_sd"),
                             ("ks", "alpha_farms_ks"), ("n_tail", "alpha_farms_n_tail"),
                             ("coverage", "farms_coverage"), ("windows", "farms_windows"),
                             ("window_rows", "farms_window_rows")):  # fmt: skip
            assert mine[0][ours] == row[theirs], (row["name"], ours)


def test_every_setting_equals_windows_cut_and_pooled_by_hand(small: f.Study) -> None:
    for name in ("model.layers.0.mlp.up_proj.weight", "model.layers.0.self_attn.q_proj.weight"):
        entries = MODEL[name].double().numpy()
        for rows in (32, 48, 500):
            for most in (1, 3):
                size = min(rows, *entries.shape)
                places = [
                    np.round(np.linspace(0, side - size, count)).astype(int)
                    for side in entries.shape
                    for count in [min(most, -int(-(side - size) // (size / 2)) + 1)]
                ]
                pooled = [
                    np.linalg.svd(entries[r : r + size, c : c + size], compute_uv=False) ** 2
                    for r in places[0]
                    for c in places[1]
                ]
                evals = np.sort(np.concatenate(pooled))
                alpha = naive_fit(evals[evals > evals[-1] * (size * 2.0**-23) ** 2])[0]
                assert alpha_of(small, name, f"{rows}/{most}") == pytest.approx(alpha, rel=1e-8)


def test_windows_are_clipped_to_the_matrix_and_counted_so(small: f.Study) -> None:
    rows = [r for r in f.tidy_rows(small) if r["setting"] == "500/3"]
    assert {r["window_rows"] for r in rows if r["alpha_farms"]} == {64}
    entry = next(e for e in f.summarise(small) if e["setting"] == "500/3")
    assert (entry["clipped"], entry["matrices"]) == (3, 3)
    assert next(e for e in f.summarise(small) if e["setting"] == "32/3")["clipped"] == 0


def test_the_table_has_a_row_for_every_matrix_and_setting(small: f.Study) -> None:
    rows = f.tidy_rows(small)
    assert len(rows) == 4 * 7
    assert all(tuple(row) == f.COLUMNS for row in rows)
    for row in rows:
        too_small = row["name"] == "model.layers.0.mlp.gate_proj.weight"
        assert (row["alpha_farms"] is None) == too_small
        assert ("too small" in str(row["reason"])) == too_small
    assert {row["setting"] for row in rows} == {"auto", "32/1", "32/3", "48/1", "48/3", "500/1",
                                                "500/3"}  # fmt: skip


def test_embeddings_are_cut_only_on_request(small: f.Study) -> None:
    assert "model.embed_tokens.weight" not in {m.name for m in small.matrices}
    found = study(MODEL, (32,), (1,), farms_embeddings=True)
    assert len(found.matrices) == 5
    with pytest.raises(OptionError, match="--farms-embeddings"):
        study(MODEL, (32,), (1,), include=("*embed*",))


def test_the_summary_follows_from_the_table(small: f.Study) -> None:
    rows = f.tidy_rows(small)
    names = list(dict.fromkeys(row["name"] for row in rows))
    table = {(r["name"], r["setting"]): r["alpha_farms"] for r in rows}
    kept = [name for name in names if table[name, "auto"] is not None]
    for entry in f.summarise(small):
        a = np.array([table[name, "auto"] for name in kept], dtype=float)
        b = np.array([table[name, entry["setting"]] for name in kept], dtype=float)
        assert entry["alpha"] == pytest.approx(np.median(b), rel=1e-12)
        assert entry["rank_correlation"] == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)
        worst = int(np.argmax(np.abs(b - a)))
        assert entry["largest_change"] == pytest.approx(b[worst] - a[worst], rel=1e-12)
        assert entry["largest_change_of"] == kept[worst]


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=3, max_size=30))
def test_rank_correlation_is_scipys_ties_included(pairs: list[tuple[int, int]]) -> None:
    a, b = [float(x) for x, _ in pairs], [float(y) for _, y in pairs]
    found = f.spearman(a, b)
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert found is None
    else:
        assert found == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_too_few_layers_have_no_rank_correlation() -> None:
    assert f.spearman([1.0, 2.0], [2.0, 1.0]) is None


def test_the_same_whatever_the_threads(small: f.Study) -> None:
    assert f.tidy_rows(study(MODEL, (32, 48, 500), (1, 3), threads=3)) == f.tidy_rows(small)


def test_failures_have_a_reason_and_end_nothing() -> None:
    model = dict(MODEL)
    model["model.layers.2.mlp.up_proj.weight"] = heavy(64, 64, seed=1) * float("nan")
    model["model.layers.3.mlp.up_proj.weight"] = heavy(64, 64, seed=1) * 0
    model["model.layers.4.mlp.up_proj.weight"] = heavy(64, 64, seed=1) * 0 + 1
    rows = {r["name"]: r for r in f.tidy_rows(study(model, (32,), (1,))) if r["setting"] == "32/1"}
    assert "not finite" in str(rows["model.layers.2.mlp.up_proj.weight"]["reason"])
    assert "zero" in str(rows["model.layers.3.mlp.up_proj.weight"]["reason"])
    assert rows["model.layers.4.mlp.up_proj.weight"]["alpha_farms"] is None
    assert rows["model.layers.0.mlp.up_proj.weight"]["alpha_farms"] is not None


@pytest.mark.parametrize(
    ("grid", "words"),
    [
        (((), (1,)), "positive"),
        (((32,), (0,)), "positive"),
        (((32,), (1,), 0.0), "positive"),
        (((32,), (1,), float("inf")), "positive"),
        (((32,), (1,), 1.0, "median"), "--xmin"),
        (((32,), (1,), 1.0, None, "welore"), "farms only"),
    ],
)
def test_settings_that_make_no_sense_are_refused(grid: tuple[Any, ...], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        f.settings_grid(*grid)


@pytest.mark.parametrize("text", ["", ",", "128,x", "0", "-1", "1.5"])
def test_lists_of_numbers_are_read_or_refused(text: str) -> None:
    assert f.parse_numbers("--windows", "128, 64,128") == (128, 64)
    with pytest.raises(OptionError, match="--windows"):
        f.parse_numbers("--windows", text)


# the authors' own figures


def fit_of(found: f.Study, name: str, label: str) -> PowerLaw:
    index = [s.label for s in found.settings].index(label)
    place = [m.name for m in found.matrices].index(name)
    fit = found.fits[place][index]
    assert isinstance(fit, FarmsFit) and isinstance(fit.fit, PowerLaw), fit
    return fit.fit


def check_peak(found: f.Study, records: Records) -> None:
    for record in records:
        fit = fit_of(found, f"{record['longname']}.weight", "100/10")
        place = (record["longname"], record["Q_ratio"])
        assert fit.alpha == pytest.approx(float(record["alpha_f64"]), rel=1e-6), place
        assert fit.ks == pytest.approx(float(record["D_f64"]), rel=1e-6), place
        assert fit.alpha == pytest.approx(float(record["alpha_peer"]), rel=5e-3), place


@pytest.mark.parametrize("q", ["0.5", "1", "2"])
def test_the_authors_geometry_and_peak_give_their_exponents(
    minilm: Path, golden: Golden, q: str
) -> None:
    """Every linear layer of the first block and the pooler, window 100, at most 10 a side."""
    records = [
        r
        for r in golden("minilm_farms.csv")
        if (r["fix_fingers"], r["Q_ratio"], r["num_row_samples"]) == ("xmin_peak", q, "100")
        and ("layer.0." in r["longname"] or "pooler" in r["longname"])
    ]
    assert len(records) == 7
    include = ("*layer.0.*", "pooler*")
    found = study(str(minilm), (100,), (10,), float(q), None, "farms", include=include)
    check_peak(found, records)


@pytest.mark.slow
def test_every_layer_has_the_authors_exponents(minilm: Path, golden: Golden) -> None:
    wanted = ("xmin_peak", "1", "100")
    records = [
        r
        for r in golden("minilm_farms.csv")
        if (r["fix_fingers"], r["Q_ratio"], r["num_row_samples"]) == wanted
    ]
    assert len(records) == 37
    check_peak(study(str(minilm), (100,), (10,), 1.0, None, "farms"), records)


@pytest.mark.slow
def test_layers_of_many_windows_have_the_authors_exponents_where_float32_resolves_them(
    minilm: Path, golden: Golden
) -> None:
    """43,200 eigenvalues each; the smallest is rounding in their float32, and moves their bins."""
    found = study(str(minilm), (192,), (15,), 1.0, None, "farms")
    errors = []
    for record in golden("minilm_farms_192.csv"):
        fit = fit_of(found, f"{record['longname']}.weight", "192/15")
        errors.append(abs(fit.alpha / float(record["alpha"]) - 1))
    assert len(errors) == 37
    assert np.median(errors) < 1e-5
    assert sum(error < 1e-2 for error in errors) >= 36


def test_the_papers_own_setting_comes_first_under_its_name(minilm: Path) -> None:
    found = study(str(minilm), (192,), (4,), 1.0, "mid", "farms", include=("pooler*",))
    assert [s.label for s in found.settings] == ["paper", "192/4"]
    first, second = (setting.recipe for setting in found.settings)
    assert first == replace(second, rows=2000, per_dimension=15)
    assert first.geometry == "paper"
    (fits,) = found.fits
    assert not isinstance(fits[0], Failure) and (fits[0].rows, fits[0].windows) == (384, 1)
    assert not isinstance(fits[1], Failure) and fits[1].windows == 16


@pytest.mark.parametrize("peer", ["farms", None])
def test_the_peak_window_hangs_on_the_unit_as_the_authors_does(peer: str | None) -> None:
    """Its lower bound is a logarithm: where the peak is above one it cuts the best xmin off."""
    best = {}
    for scale in (1.0, 2.0**-20):
        weight = heavy(64, 64, seed=51, scale=1.0) * scale
        evals = np.sort(np.linalg.svd(weight.double().numpy(), compute_uv=False) ** 2)
        best[scale] = peak_alpha(evals)
        found = study({"q.weight": weight}, (64,), (1,), 1.0, "peak", peer)
        fit = fit_of(found, "q.weight", "64/1")
        assert fit.alpha == pytest.approx(best[scale], rel=1e-8), scale
        assert 0 < fit.xmin < 1
    assert abs(best[1.0] - best[2.0**-20]) > 0.5


def peak_alpha(evals: Array) -> float:
    """The fit of the authors' peak window, by trying everything in it."""
    counts, edges = np.histogram(np.log10(evals), bins=100)
    peak = 10 ** edges[int(counts.argmax())]
    window = (np.log10(0.95 * peak), 1.5 * peak)
    inside = [k for k, x in enumerate(evals[:-1]) if window[0] <= x <= window[1]]
    return min(naive_at(evals, k) for k in inside)[1]


def naive_at(evals: Array, start: int) -> tuple[float, float]:
    """KS distance and alpha of one tail."""
    tail = evals[start:]
    alpha = 1 + len(tail) / float(np.sum(np.log(tail / tail[0])))
    model = 1 - (tail / tail[0]) ** (1 - alpha)
    return float(np.max(np.abs(model - np.arange(len(tail)) / len(tail)))), alpha


# the command


def test_the_command_prints_and_writes_what_the_library_finds(
    small: f.Study, tmp_path: Path
) -> None:
    model = write_file(tmp_path / "model.safetensors", MODEL)
    target, facts = tmp_path / "out.csv", tmp_path / "out.json"
    arguments = ("farms", model, "--windows", "32,48,500", "--grids", "1,3", "--device", "cpu")
    result = run_weightscope(
        *arguments, "--csv", target, "--json", facts, "--format", "table", cwd=tmp_path
    )
    assert result.returncode == 0, result.stderr
    with target.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    expected = f.tidy_rows(small)
    assert [row["alpha_farms"] for row in rows] == [
        "" if row["alpha_farms"] is None else repr(row["alpha_farms"]) for row in expected
    ]
    record = json.loads(facts.read_text())
    assert record["summary"] == json.loads(json.dumps(f.summarise(small)))
    assert record["provenance"]["source"]["files"]
    for text in ("auto", "32/1", "rank correlation", "compare layers within one"):
        assert text in " ".join(result.stdout.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--windows", "x"), "--windows 'x'"),
        (("--compat", "spectrum"), "farms only"),
        (("--include", "nothing"), "--include and --exclude"),
    ],
)
def test_a_wrong_option_is_a_sentence_and_exit_code_2(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    model = write_file(tmp_path / "model.safetensors", MODEL)
    result = run_weightscope("farms", model, *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert words in result.stderr and "Traceback" not in result.stderr
