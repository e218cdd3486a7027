"""What the figures of one matrix say, in words: one reading, one piece of advice."""

from __future__ import annotations

from weightscope.columns import Column
from weightscope.laws.marchenko_pastur import largest_eval_cut
from weightscope.matrix import Matrix
from weightscope.measurement import Measurement
from weightscope.metrics.alpha import band_of
from weightscope.outcome import Failure, Values
from weightscope.settings import THRESHOLDS, Settings
from weightscope.spectrum import Spectrum

NEEDS = ("alpha", "noise", "rank", "null", "tails", "second", "bootstrap")
RANDOM_LIKE = THRESHOLDS["random_like_p"]
"""Share of noise draws at least as far from noise, from which a matrix reads as random."""
POOR_FIT = THRESHOLDS["poor_fit_ks"]
"""KS distance above which the tail is no power law: pure noise has 0.12 to 0.13."""
SPIKE_LEVEL = 0.9999
"""Share of noise draws whose largest eigenvalue lies below the cut that a direction must pass."""
COARSE = 4
"""Bits per entry up to which a quantiser moves the median singular value by several per cent."""
SHORT_TAIL = int(THRESHOLDS["tail_unresolved"])
"""Tail points below which the exponent's own error is a quarter of it."""
_READINGS = {
    "random-like": "neither the spectrum nor its largest eigenvalue can be told from those of "
    "Gaussian noise of the same shape",
    "dead": "all weights are zero",
    "very-heavy-tailed": "alpha below 2; HTSR would call it over-trained",
    "heavy-tailed": "alpha from 2 to 6; HTSR would call it well trained",
    "weakly-heavy-tailed": "alpha above 6; HTSR would call it under-trained",
    "unresolved": f"no exponent, a fit with ks above {POOR_FIT}, fewer than {SHORT_TAIL} tail "
    "points, or a fit other than ks, to which the thresholds do not apply",
}
_OF_BAND = {"very-heavy": "very-heavy-tailed", "heavy": "heavy-tailed"}
_ADVICE = {
    "random-like": "No trace of training in its spectrum: check that it is used, and neither "
    "frozen nor newly initialised; its exponent says nothing.",
    "dead": "It contributes nothing: remove it, or find out why it was never written.",
    "very-heavy-tailed": "A few directions dominate: look for giant weights (--shuffled) and "
    "compare with an earlier checkpoint before training it further.",
    "heavy-tailed": "The exponent stands out neither way; compare with layers of the same shape.",
    "weakly-heavy-tailed": "Little structure for its shape: see alpha_null, and whether it still "
    "moves between checkpoints (weightscope track); it may bear more training.",
}
COLUMNS = (
    Column(
        "reading",
        "text",
        "the matrix in a word: " + " ".join(_READINGS),
        formula="the first that applies: dead, random-like (noise_p at least "
        f"{RANDOM_LIKE}, and no eigenvalue above the Tracy-Widom cut that {1 - SPIKE_LEVEL:.2%} of "
        "noise draws pass), unresolved, else by the band of alpha",
        range=" | ".join(_READINGS),
        reading="\n".join(f"{word}: {meaning}" for word, meaning in _READINGS.items()),
        caution="The field disagrees: the thresholds are HTSR's heuristics; SETOL's gap is not "
        "monotone in alpha on the authors' own tables of LLaMA-13B and Falcon-7B (rank "
        "correlation +0.12 and -0.28); and a model of better alpha can have worse benchmarks.",
        noise="random-like in 95 of 100 cases",
        source="weightscope; thresholds from Martin & Mahoney, JMLR 22 (2021)",
    ),
    Column(
        "advice",
        "text",
        "a sentence: what to do about the matrix",
        formula="follows from reading; then what speaks against its exponent: the range of noise, "
        "a rival law (tail_best), a second tail (alpha_second), the bootstrap interval, "
        f"a quantiser of at most {COARSE} bits",
        range="text",
        reading="A place to start looking; weights alone cannot tell what a model is good at.",
        caution="No data were seen: check by evaluation before acting on it.",
        noise=_ADVICE["random-like"],
        source="weightscope",
    ),
)


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """Put the figures into words; nothing is said of what could not be read."""
    spectrum = measured.spectrum
    if spectrum is None:
        return {}
    if spectrum.largest == 0:
        if measured.matrix.base is not None:
            return {}  # equal to its base, which is no defect
        return {"reading": "dead", "advice": _ADVICE["dead"]}
    noise_p = known.get("noise_p")
    if isinstance(noise_p, float) and noise_p >= RANDOM_LIKE and not _has_spike(spectrum):
        return {"reading": "random-like", "advice": _ADVICE["random-like"]}
    why = _unresolved(known)
    if why:
        advice = [_unresolved_advice(why), *_quantiser(measured.matrix)]
        return {"reading": "unresolved", "advice": " ".join(advice)}
    reading = _OF_BAND.get(str(known["alpha_band"]), "weakly-heavy-tailed")
    said = [_ADVICE[reading], *_doubts(known), *_quantiser(measured.matrix)]
    return {"reading": reading, "advice": " ".join(said)}


def _has_spike(spectrum: Spectrum) -> bool:
    """Whether a direction stands out of noise of the same energy: too few to move the whole."""
    variance = float(spectrum.relative_evals.mean()) / spectrum.N
    cut = largest_eval_cut(spectrum.N, spectrum.M, spectrum.slices, SPIKE_LEVEL)
    return 1.0 / (spectrum.N * variance) > cut


def _doubts(known: Values) -> list[str]:
    """What speaks against the exponent, a sentence each."""
    alpha, low = known["alpha"], known.get("alpha_null_lo")
    second, best = known.get("alpha_second"), known.get("tail_best")
    interval = known.get("alpha_lo"), known.get("alpha_hi")
    assert isinstance(alpha, float)
    said = []
    if isinstance(low, float) and alpha >= low:
        said.append("Noise of this shape has exponents like it (alpha_null).")
    if isinstance(best, str) and "power_law" not in best:
        said.append(f"Its tail is closer to another law ({best.replace('_', ' ')}).")
    if isinstance(second, float) and band_of(second) != band_of(alpha):
        said.append(f"Another tail fits as well, with alpha {second:.2f}.")
    if len({band_of(end) for end in interval if isinstance(end, float)}) > 1:
        said.append("Its bootstrap interval crosses a threshold.")
    return said


def _quantiser(matrix: Matrix) -> list[str]:
    """What a coarse quantiser has to do with the tail, in a sentence."""
    encoded = matrix.encoded
    if encoded is None or encoded.bits > COARSE:
        return []
    return [f"At {encoded.bits} bits the tail metrics partly measure the quantiser (encoding)."]


def _unresolved(known: Values) -> str:
    """Why the exponent says nothing; empty where it does."""
    alpha, ks, n_tail = (known.get(key) for key in ("alpha", "alpha_ks", "alpha_n_tail"))
    if alpha is None or isinstance(alpha, Failure):
        return "there is no exponent"
    if known.get("alpha_band") is None:
        return f"HTSR's thresholds do not belong to the fit {known['alpha_method']}"
    if isinstance(ks, float) and ks > POOR_FIT:
        return f"the tail is no power law (ks {ks:.2f})"
    if isinstance(n_tail, int) and n_tail < SHORT_TAIL:
        return f"the tail has {n_tail} points only"
    return ""


def _unresolved_advice(why: str) -> str:
    return f"{why[0].upper()}{why[1:]}: read stable_rank and effective_rank instead of alpha."
