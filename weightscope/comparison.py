"""Two runs, or more, become one table: what changed, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from statistics import median
from typing import TYPE_CHECKING, Any

from weightscope import plugins
from weightscope.alignment import Pair, PrefixMap, align
from weightscope.columns import Column
from weightscope.difference import COLUMNS as WEIGHT_COLUMNS
from weightscope.difference import Difference, difference_columns, reading_of
from weightscope.distances import same_spectrum, spectrum_distance
from weightscope.errors import IncomparableRunsError
from weightscope.evaluate import Row, all_columns, columns_of
from weightscope.glossary import COMPARED
from weightscope.run import Run
from weightscope.settings import FAMILIES
from weightscope.spectrum import Spectrum
from weightscope.summary import counts
from weightscope.text import count_of, shortened

if TYPE_CHECKING:
    import pandas as pd

MUST_AGREE = (
    "metrics",
    "xmin",
    "farms",
    "farms_embeddings",
    "conv",
    "welore_target",
    "eval_floor",
    "fit",
    "compat",
    "fused",
    "sample",
    "base",
    "merged",
    "seed",
    "shard",
)
"""Settings that change what a column means."""
MOVED = 2.0
"""An exponent moved where it changed by more than so many combined standard errors."""
IDENTITY = (
    "name",
    "name_b",
    "block",
    "module",
    "role",
    "change",
    "reading",
    "rows_a",
    "cols_a",
    "rows_b",
    "cols_b",
    "dtype_a",
    "dtype_b",
    "status_a",
    "status_b",
    "alpha_moved",
    "band_change",
    "class_change",
    "spectrum_w1",
)


@dataclass(frozen=True, repr=False)
class Comparison:
    """What changed from one run to another.

    Attributes:
        names: Names of the two models.
        provenance: Provenance of both runs.
        rows: One row per matrix of either, in natural order.
        summary: Figures about the whole change.
        weights: Whether the checkpoints themselves were compared.
        runs: Both runs, for whoever draws their spectra.
    """

    names: tuple[str, str]
    provenance: tuple[Mapping[str, Any], Mapping[str, Any]]
    rows: tuple[Row, ...]
    summary: Mapping[str, Any] = field(default_factory=dict)
    weights: bool = False
    runs: tuple[Run, ...] = field(default=(), repr=False, compare=False)

    def __repr__(self) -> str:
        before, after = self.names
        return f"Comparison({before!r} -> {after!r}, {count_of(len(self.rows), 'matrix')})"

    def _repr_html_(self) -> str:
        """What changed in every matrix, and the summary, as notebooks show it."""
        return str(plugins.load("integrations", "notebook").comparison_html(self))

    def to_dataframe(self) -> pd.DataFrame:
        """The rows as a tidy DataFrame: ``reading``, ``alpha_a``, ``alpha_b``, ..."""
        from weightscope.frames import frame

        return frame(comparison_columns(), self.rows, (*COMPARED, *all_columns()))

    @property
    def sentences(self) -> tuple[str, ...]:
        """What changed as a whole, in reading order."""
        return tuple(_sentences(self.summary))


@cache
def metric_columns() -> tuple[Column, ...]:
    """Numeric columns that are compared."""
    return tuple(c for c in columns_of(FAMILIES) if c.kind != "text")


@cache
def comparison_columns() -> tuple[str, ...]:
    """Every column of a comparison, in order."""
    metrics = [f"{c.name}_{x}" for c in metric_columns() for x in ("a", "b", "delta")]
    return (*IDENTITY, *WEIGHT_COLUMNS, *metrics)


def check_comparable(a: Run, b: Run) -> None:
    """Make sure that two runs mean the same by their columns.

    Raises:
        IncomparableRunsError: Naming the setting that differs.
    """
    for name in MUST_AGREE:
        there, here = (run.provenance["settings"].get(name) for run in (a, b))
        if there != here:
            raise IncomparableRunsError(
                f"the runs were made with different settings: --{name.replace('_', '-')} is "
                f"{there!r} in {a.label} and {here!r} in {b.label}; analyze one of them again, or "
                "compare all the same with --force"
            )


def check_related(a: Run, b: Run, pairs: Sequence[Pair]) -> None:
    """Make sure that two runs are of models with something in common.

    Raises:
        IncomparableRunsError: No matrix of one is in the other.
    """
    if pairs and not any(pair.a and pair.b for pair in pairs):
        first, second = (
            f"{run.label} has {shortened(run.rows[0]['name']) if run.rows else 'none'}"
            for run in (a, b)
        )
        raise IncomparableRunsError(
            f"the models have no matrix in common: {first}, {second}, ...; read names of one as "
            "those of the other with --map FROM=TO, or compare all the same with --force"
        )


def pair_runs(a: Run, b: Run, maps: Iterable[PrefixMap] = ()) -> list[Pair]:
    """Rows of two runs by name, and by spectrum where only the name changed."""
    pairs = align(a.rows, b.rows, maps)
    lost = [pair.a for pair in pairs if pair.a is not None and pair.b is None]
    new = [pair.b for pair in pairs if pair.b is not None and pair.a is None]
    if not lost or not new:
        return pairs
    renamed = _renamed(lost, new, a.spectra(), b.spectra())
    used = set(renamed.values())
    by_name = {str(row["name"]): row for row in new}
    joined = []
    for pair in pairs:
        name = str(pair.either["name"])
        if pair.b is None and name in renamed:
            joined.append(Pair(pair.a, by_name[renamed[name]], renamed=True))
        elif pair.a is not None or name not in used:
            joined.append(pair)
    return joined


def _renamed(
    lost: Sequence[Row],
    new: Sequence[Row],
    a: Mapping[str, Spectrum],
    b: Mapping[str, Spectrum],
) -> dict[str, str]:
    """Old name to new name, for matrices of one shape whose spectra are equal and unique."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for row in lost:
        name = str(row["name"])
        matches = [
            str(other["name"])
            for other in new
            if (other["rows"], other["cols"]) == (row["rows"], row["cols"])
            and str(other["name"]) not in taken
            and name in a
            and str(other["name"]) in b
            and a[name].largest > 0
            and same_spectrum(a[name], b[str(other["name"])])
        ]
        if len(matches) == 1:
            found[name] = matches[0]
            taken.add(matches[0])
    return found


def compare_runs(
    a: Run,
    b: Run,
    pairs: Sequence[Pair],
    changes: Mapping[str, Difference] | None = None,
) -> Comparison:
    """Compare two runs that ``check_comparable`` accepts.

    Args:
        a: The first run.
        b: The second.
        pairs: Their rows, from ``pair_runs``.
        changes: Differences of the weights by name in the first run, where they were measured.
    """
    spectra = a.spectra(), b.spectra()
    rows = tuple(_row(pair, spectra, changes or {}) for pair in pairs)
    provenance = (a.provenance, b.provenance)
    summary = summarise(rows)
    weights = changes is not None
    return Comparison((a.label, b.label), provenance, rows, summary, weights, (a, b))


def _row(
    pair: Pair,
    spectra: tuple[Mapping[str, Spectrum], Mapping[str, Spectrum]],
    changes: Mapping[str, Difference],
) -> Row:
    a, b, either = pair.a or {}, pair.b or {}, pair.either
    row: Row = dict.fromkeys(comparison_columns())
    row.update({key: either[key] for key in ("name", "block", "module", "role")})
    row["change"] = change_of(pair)
    for key in ("rows", "cols", "dtype", "status"):
        row[f"{key}_a"], row[f"{key}_b"] = a.get(key), b.get(key)
    for column in metric_columns():
        before, after = a.get(column.name), b.get(column.name)
        row[f"{column.name}_a"], row[f"{column.name}_b"] = before, after
        if isinstance(before, int | float) and isinstance(after, int | float):
            row[f"{column.name}_delta"] = after - before
    if pair.a is not None and pair.b is not None:
        row["reading"] = "renamed" if pair.renamed else None
        _add_relations(row, pair.a, pair.b, spectra)
        change = changes.get(str(pair.a["name"]))
        if change is not None:
            row.update(difference_columns(change))
            row["reading"] = row["reading"] or reading_of(change)
    return row


def _add_relations(
    row: Row,
    a: Row,
    b: Row,
    spectra: tuple[Mapping[str, Spectrum], Mapping[str, Spectrum]],
) -> None:
    """What both rows together say without the weights."""
    row["name_b"] = b["name"] if b["name"] != a["name"] else None
    row["alpha_moved"] = alpha_moved(a, b)
    row["band_change"] = _arrow(a["alpha_band"], b["alpha_band"])
    row["class_change"] = _arrow(a["welore_class"], b["welore_class"])
    x, y = spectra[0].get(str(a["name"])), spectra[1].get(str(b["name"]))
    if x is None or y is None or not x.largest or not y.largest:
        return
    floors = [float(v) for r in (a, b) if isinstance(v := r["sv_floor"], int | float)]
    floor = max([*floors, x.resolution, y.resolution])
    row["spectrum_w1"] = spectrum_distance(x, y, floor)


def change_of(pair: Pair) -> str:
    """``common``, ``added``, ``removed`` or ``resized``."""
    if pair.a is None:
        return "added"
    if pair.b is None:
        return "removed"
    shapes = [(row["rows"], row["cols"], row["slices"]) for row in (pair.a, pair.b)]
    return "common" if shapes[0] == shapes[1] else "resized"


def alpha_moved(a: Row, b: Row) -> str | None:
    """Whether the exponent changed by more than its uncertainty: ``yes``, ``no`` or nothing.

    Bootstrap intervals count where both rows have them, else twice the combined standard error.
    """
    before, after = a["alpha"], b["alpha"]
    if not isinstance(before, float) or not isinstance(after, float):
        return None
    bounds = [row.get(key) for row in (a, b) for key in ("alpha_lo", "alpha_hi")]
    if all(isinstance(bound, int | float) for bound in bounds):
        low_a, high_a, low_b, high_b = (float(bound or 0) for bound in bounds)
        return "yes" if high_a < low_b or high_b < low_a else "no"
    errors = [row["alpha_stderr"] for row in (a, b)]
    if not all(isinstance(error, int | float) for error in errors):
        return None
    combined = sum(float(error or 0) ** 2 for error in errors) ** 0.5
    return "yes" if abs(after - before) > MOVED * combined else "no"


def _arrow(before: Any, after: Any) -> str | None:
    return f"{before} -> {after}" if before and after and before != after else None


GROUPS = {"module": "module", "block": "block"}


def grouped(rows: Sequence[Row], by: str) -> list[dict[str, Any]]:
    """Medians per module or block.

    Args:
        rows: Rows of a comparison.
        by: ``module`` or ``block``.
    """
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(row[GROUPS[by]], []).append(row)
    return [_aggregate(by, key, members) for key, members in groups.items()]


AGGREGATED = (
    "alpha_a",
    "alpha_b",
    "alpha_delta",
    "spectrum_w1",
    "rel_change",
    "cosine",
    "delta_rank_99",
    "subspace_left",
    "stable_rank_delta",
    "spectral_norm_delta",
)


def group_columns(by: str) -> list[str]:
    """Columns of ``grouped``."""
    return [by, "matrices", "moved", *AGGREGATED]


def _aggregate(by: str, key: Any, rows: Sequence[Row]) -> dict[str, Any]:
    cells: dict[str, Any] = {by: key, "matrices": len(rows)}
    cells["moved"] = sum(row["alpha_moved"] == "yes" for row in rows)
    for name in AGGREGATED:
        values = [float(v) for row in rows if isinstance(v := row[name], int | float)]
        cells[name] = median(values) if values else None
    return cells


def summarise(rows: Sequence[Row]) -> dict[str, Any]:
    """Counts, medians per module, and the rows that moved most."""
    by = "rel_change" if any(row["rel_change"] is not None for row in rows) else "spectrum_w1"
    moved = [row for row in rows if isinstance(row[by], int | float)]
    moved.sort(key=lambda row: -float(row[by] or 0))
    return {
        "matrices": len(rows),
        "change": counts(rows, "change"),
        "reading": counts([row for row in rows if row["reading"]], "reading"),
        "alpha_moved": sum(row["alpha_moved"] == "yes" for row in rows),
        "band_changes": counts([row for row in rows if row["band_change"]], "band_change"),
        "class_changes": counts([row for row in rows if row["class_change"]], "class_change"),
        "modules": grouped(rows, "module"),
        "moved_by": by,
        "moved_most": [str(row["name"]) for row in moved[:5] if float(row[by] or 0) > 0],
    }


def _sentences(summary: Mapping[str, Any]) -> Iterator[str]:
    parts = [f"{n} {word}" for word, n in summary["change"].items()]
    parts += [f"{n} {word}" for word, n in summary["reading"].items()]
    parts.append(f"alpha moved in {summary['alpha_moved']}")
    for key, what in (("band_changes", "band"), ("class_changes", "class")):
        parts += [f"{what} {arrow}: {n}" for arrow, n in summary[key].items()]
    yield "; ".join(parts)
    moved = summary["moved_most"]
    if moved:
        yield f"Moved most (by {summary['moved_by']}): {', '.join(moved)}"
