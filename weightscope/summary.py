"""Figures about the whole model, from its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from statistics import fmean, median
from typing import TYPE_CHECKING, Any

from weightscope.evaluate import UNCHANGED, Row, in_welore_fit
from weightscope.layouts.roles import OUTSIDE_BLOCKS, ROLES
from weightscope.metrics.welore import WeloreFit
from weightscope.spectrum import Spectrum

if TYPE_CHECKING:
    from weightscope.select import Selection

MEDIANS = (
    "alpha",
    "alpha_farms",
    "alpha_ks",
    "erg_gap",
    "condition_number",
    "stable_rank",
    "effective_rank",
    "welore_rank_ratio",
    "mp_softrank",
)
ANALYSED = frozenset({"ok", "fused", "constant", "rank_one", "too_few", "zero"})
_WORTH = 5


def numbers(rows: Iterable[Row], column: str) -> list[float]:
    """The numeric cells of a column."""
    return [float(v) for row in rows if isinstance(v := row[column], int | float)]


def headline_rows(rows: Iterable[Row]) -> list[Row]:
    """Rows that count in model averages: no embeddings, positions and heads."""
    return [row for row in rows if row["role"] not in OUTSIDE_BLOCKS]


def summarise(
    rows: Sequence[Row], selection: Selection, fitted: WeloreFit | None
) -> dict[str, Any]:
    """Plain values for ``run.json``, the table's footer and Python."""
    headline = headline_rows(rows)
    alphas = numbers(headline, "alpha")
    hats = numbers(headline, "alpha_hat")
    analysed = [row for row in rows if row["status"] in ANALYSED]
    params = sum(int(n) for row in analysed if isinstance(n := row["params"], int))
    return {
        "matrices": len(rows),
        "analysed": len(analysed),
        "status": counts(rows, "status"),
        "readings": counts([row for row in headline if row["reading"]], "reading"),
        "bands": counts([row for row in headline if row["alpha_band"]], "alpha_band"),
        "alpha_mean": fmean(alphas) if alphas else None,
        "alpha_median": median(alphas) if alphas else None,
        "alpha_hat_mean": fmean(hats) if hats else None,
        "params_analysed": params,
        "params_total": selection.params,
        "vectors": selection.vectors,
        "integer_tensors": selection.integers,
        "filtered": selection.filtered,
        "undrawn": selection.undrawn,
        "welore": _welore(rows, fitted),
        "medians": _medians(rows),
        "worth_a_look": worth_a_look(rows),
    }


def solver_counts(spectra: Iterable[Spectrum]) -> dict[str, int]:
    """How many spectra each solver produced."""
    return dict(sorted(Counter(spectrum.solver for spectrum in spectra).items()))


def counts(rows: Iterable[Row], column: str) -> dict[str, int]:
    """How often each value of a column occurs."""
    found = Counter(str(row[column]) for row in rows)
    return dict(sorted(found.items()))


def _medians(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry per role, in the order of the roles."""
    entries = []
    for role in ROLES:
        members = [row for row in rows if row["role"] == role]
        if members:
            found = {name: numbers(members, name) for name in MEDIANS}
            cells = {name: median(v) if v else None for name, v in found.items()}
            entries.append({"role": role, "matrices": len(members), **cells})
    return entries


def _welore(rows: Sequence[Row], fitted: WeloreFit | None) -> dict[str, Any] | None:
    """What the threshold does to the matrices it was fitted on."""
    if fitted is None:
        return None
    names = set(in_welore_fit(rows))
    members = [row for row in rows if row["name"] in names and row["welore_class"]]
    ranks = pruned = entries = kept_entries = 0
    for row in members:
        n, rank = int(row["M"] or 0) * int(row["slices"] or 1), int(row["welore_rank"] or 0)
        whole = int(row["params"] or 0)
        low = row["welore_class"] == "LRC"
        ranks += n
        pruned += n - rank if low else 0
        entries += whole
        kept_entries += rank * (int(row["rows"] or 0) + int(row["cols"] or 0)) if low else whole
    low_rank = sum(row["welore_class"] == "LRC" for row in members)
    return {
        "target": fitted.target,
        "threshold": fitted.k,
        "attempted": fitted.attempted,
        "effective": pruned / ranks if ranks else None,
        "parameter_ratio": kept_entries / entries if entries else None,
        "matrices": len(members),
        "lrc": low_rank,
    }


def worth_a_look(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows that deserve attention and why, a few of each kind.

    Each entry has a ``topic``, a ``why`` for people, and the ``names`` concerned.
    """
    inside = headline_rows(rows)
    topics: list[tuple[str, str, list[Row]]] = [
        ("broken", "NaN or infinite weights, or no solver converged", _with_status(rows, _BROKEN)),
        ("dead", "all weights are zero, or an adapter's update is", _dead(rows)),
        ("unchanged", "equal to the base", _unchanged(rows)),
        (
            "random-like",
            "cannot be told from noise of their shape: training left no trace",
            [row for row in rows if row["reading"] == "random-like"],
        ),
        (
            "low-rank",
            "far fewer directions than the shape allows",
            [r for r in rows if "rank_deficient" in str(r["warnings"] or "").split(";")],
        ),
        (
            "very heavy-tailed",
            "alpha below 2, what HTSR would call over-trained",
            _ranked(_reading(inside, "very-heavy"), "alpha", reverse=False),
        ),
        (
            "weakly heavy-tailed",
            "alpha above 6, what HTSR would call under-trained",
            _ranked(_reading(inside, "weak"), "alpha", reverse=True),
        ),
        ("compress first", "lowest WeLore rank ratio among the LRC matrices", _low_rank(rows)),
        (
            "fine-tune first",
            "lowest condition number (KappaTune's choice; square matrices have large ones)",
            _ranked(_tunable(inside), "condition_number", reverse=False),
        ),
    ]
    return [
        {
            "topic": topic,
            "why": why,
            # a ranking of everything has no count of its own
            "count": len(found) if topic != "fine-tune first" else None,
            "names": [str(row["name"]) for row in found[:_WORTH]],
        }
        for topic, why, found in topics
        if found
    ]


_OF_BAND = {"very-heavy": ("very-heavy-tailed",), "weak": ("weakly-heavy-tailed",)}
_BROKEN = frozenset({"nonfinite", "failed"})


def _with_status(rows: Iterable[Row], statuses: Iterable[str]) -> list[Row]:
    return [row for row in rows if row["status"] in set(statuses)]


def _reading(rows: Iterable[Row], band: str) -> list[Row]:
    """Rows of a band whose exponent can be believed, as far as that was asked."""
    found = [row for row in rows if row["alpha_band"] == band]
    return [row for row in found if row["reading"] in {None, *_OF_BAND[band]}]


def _unchanged(rows: Iterable[Row]) -> list[Row]:
    return [row for row in _with_status(rows, {"zero"}) if row["reason"] == UNCHANGED]


def _dead(rows: Iterable[Row]) -> list[Row]:
    return [row for row in _with_status(rows, {"zero"}) if row["reason"] != UNCHANGED]


def _tunable(rows: Iterable[Row]) -> list[Row]:
    """Full weight matrices, not the vectors and routers whose shape alone gives them low ones.

    Nor those that look untrained: what their training would do is not known from them.
    """
    return [
        row
        for row in rows
        if row["status"] == "ok"
        and int(row["M"] or 0) >= 32
        and row["role"] != "router"
        and row["reading"] != "random-like"
    ]


def _ranked(rows: Iterable[Row], column: str, reverse: bool) -> list[Row]:
    found = [row for row in rows if isinstance(row[column], int | float)]
    return sorted(found, key=lambda row: float(row[column] or 0), reverse=reverse)


def _low_rank(rows: Sequence[Row]) -> list[Row]:
    """Low-rank matrices among those that WeLore was fitted on; noise is no low rank."""
    fitted = set(in_welore_fit(rows))
    low = [
        row
        for row in rows
        if row["name"] in fitted
        and row["welore_class"] == "LRC"
        and row["reading"] != "random-like"
    ]
    return sorted(low, key=lambda row: float(row["welore_rank_ratio"] or 0))
