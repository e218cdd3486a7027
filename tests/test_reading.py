"""The reading and the advice of a row follow from its figures, and never call noise trained."""

import numpy as np
import pytest
import torch
from zoo import gaussian, power_law, with_singular_values

import weightscope
from weightscope.metrics import reading
from weightscope.outcome import Failure
from weightscope.run import Run
from weightscope.settings import THRESHOLDS, Settings

WORDS = {
    "random-like",
    "dead",
    "very-heavy-tailed",
    "heavy-tailed",
    "weakly-heavy-tailed",
    "unresolved",
}


def read(matrix: np.ndarray, **settings: object) -> tuple[object, object]:
    tensors = {"w.weight": torch.from_numpy(np.asarray(matrix, np.float32))}
    row = weightscope.analyze(tensors, device="cpu", farms="auto", **settings).rows[0]
    return row["reading"], row["advice"]


@pytest.mark.parametrize(
    ("exponent", "word"),
    [(1.7, "very-heavy-tailed"), (3.0, "heavy-tailed"), (8.0, "weakly-heavy-tailed")],
)
def test_planted_exponents_read_as_their_band(exponent: float, word: str) -> None:
    found, advice = read(power_law(exponent))
    assert found == word
    assert advice


@pytest.mark.parametrize("shape", [(200, 200), (300, 120)])
def test_noise_reads_as_random_and_not_as_trained(shape: tuple[int, int]) -> None:
    words = [read(gaussian(*shape, seed))[0] for seed in range(10)]
    assert words.count("random-like") >= 8
    assert "heavy-tailed" not in words


def test_a_dead_layer_reads_as_dead_and_has_no_band() -> None:
    word, advice = read(np.zeros((64, 64)))
    assert word == "dead"
    assert "remove" in str(advice)


def test_equal_singular_values_are_unresolved() -> None:
    word, advice = read(with_singular_values(np.ones(64), 64, 64))
    assert word == "unresolved"
    assert "no exponent" in str(advice)


def test_thresholds_belong_to_the_ks_fit_alone() -> None:
    word, advice = read(power_law(3.0), xmin="mid")
    assert word == "unresolved"
    assert "mid" in str(advice)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_scale_of_the_weights_does_not_change_the_reading(scale: float) -> None:
    assert read(power_law(3.0) * scale) == read(power_law(3.0))


def test_a_poor_fit_and_a_short_tail_are_unresolved() -> None:
    good = {"alpha": 3.0, "alpha_band": "heavy", "alpha_ks": 0.03, "alpha_n_tail": 80}
    assert reading._unresolved(good) == ""
    assert "no power law" in reading._unresolved({**good, "alpha_ks": 0.11})
    assert "19 points" in reading._unresolved({**good, "alpha_n_tail": 19})
    assert "no exponent" in reading._unresolved({**good, "alpha": Failure("too few")})


def test_words_are_those_of_the_explanation(minilm_run: Run) -> None:
    column = next(c for c in reading.COLUMNS if c.name == "reading")
    assert set(column.range.split(" | ")) == WORDS
    found = {str(row["reading"]) for row in minilm_run.rows}
    assert found <= WORDS
    assert all(row["advice"] for row in minilm_run.rows)


def test_over_and_under_trained_appear_only_as_what_htsr_says() -> None:
    for column in reading.COLUMNS:
        for line in column.reading.splitlines():
            if "trained" in line and "over-" in line + "under-" in line:
                assert "HTSR" in line


def test_thresholds_are_recorded_with_the_run() -> None:
    run = weightscope.analyze({"w.weight": torch.randn(40, 40)}, device="cpu")
    assert run.provenance["thresholds"] == dict(THRESHOLDS)
    assert Settings().fit == "pl"


def test_a_direction_that_stands_out_of_noise_is_no_noise() -> None:
    """It moves the whole spectrum too little to be told, but noise has no such eigenvalue."""
    noise = gaussian(512, 512, 3)
    rng = np.random.default_rng(4)
    left, right = rng.standard_normal(512), rng.standard_normal(512)
    spike = np.outer(left / np.linalg.norm(left), right / np.linalg.norm(right))
    found, advice = read(noise + 2 * np.sqrt(512) * spike)
    assert found != "random-like" and "No trace" not in str(advice)


@pytest.mark.parametrize(
    ("known", "said"),
    [
        ({"alpha": 5.0, "alpha_null_lo": 4.0}, "Noise of this shape"),
        ({"alpha": 3.0, "alpha_null_lo": 4.0, "tail_best": "exponential"}, "(exponential)"),
        ({"alpha": 3.0, "tail_best": "truncated_power_law"}, ""),
        ({"alpha": 3.0, "alpha_second": 1.5}, "with alpha 1.50"),
        ({"alpha": 3.0, "alpha_second": 2.5}, ""),
        ({"alpha": 3.0, "alpha_lo": 1.9, "alpha_hi": 3.5}, "crosses a threshold"),
        ({"alpha": 3.0, "alpha_lo": 2.1, "alpha_hi": 3.5}, ""),
    ],
)
def test_what_speaks_against_an_exponent_is_said(known: dict[str, object], said: str) -> None:
    found = " ".join(reading._doubts(known))  # type: ignore[arg-type]
    assert said in found if said else not found


def test_what_is_asked_for_is_computed_whatever_the_families() -> None:
    asked = {"metrics": ("alpha",), "bootstrap": 20, "shuffled": 1, "quant_error": (8,)}
    tensors = {"w.weight": torch.from_numpy(power_law(3.0))}
    row = weightscope.analyze(tensors, device="cpu", **asked).rows[0]
    assert None not in {row[key] for key in ("alpha_lo", "alpha_p", "traps", "quant_error_8")}
    assert row["rank"] is None


def test_noise_is_not_recommended_and_only_fitted_matrices_are_compressed() -> None:
    """Twenty matrices outside any block, of noise, beside one layer that has structure."""
    noise = {f"head.{x}.weight": gaussian(96, 96, seed=i) for i, x in enumerate("abcdefgh")}
    low_rank = gaussian(96, 4, seed=50) @ gaussian(4, 96, seed=51)
    model = noise | {
        "layers.0.mlp.up_proj.weight": gaussian(96, 96, seed=60) * 0.02 + low_rank,
        "layers.0.mlp.down_proj.weight": gaussian(96, 96, seed=61),
    }
    tensors = {name: torch.from_numpy(w) for name, w in model.items()}
    run = weightscope.analyze(tensors, welore_target=0.75)
    assert sum(row["welore_class"] == "LRC" for row in run.rows) > 2  # by their rank alone
    assert {row["reading"] for row in run.rows if row["name"] in noise} == {"random-like"}
    topics = {entry["topic"]: entry for entry in run.summary["worth_a_look"]}
    assert topics["compress first"]["names"] == ["layers.0.mlp.up_proj.weight"]
    assert topics["compress first"]["count"] == 1
    assert topics["fine-tune first"]["names"] == ["layers.0.mlp.up_proj.weight"]
