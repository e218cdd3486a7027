"""From what a user names to a comparison: saved runs are read, checkpoints analysed first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightscope import plugins
from weightscope.alignment import PrefixMap, align
from weightscope.checkpoint import Access, Checkpoint
from weightscope.comparison import (
    Comparison,
    check_comparable,
    check_related,
    compare_runs,
    metric_columns,
    pair_runs,
)
from weightscope.difference import COLUMNS as WEIGHT_COLUMNS
from weightscope.difference import Difference
from weightscope.errors import OptionError
from weightscope.evaluate import Row, all_columns, left_out
from weightscope.folders.storage import is_run, load_run
from weightscope.glossary import COMPARED
from weightscope.observer import Observer, Silent
from weightscope.run import Run
from weightscope.settings import Settings, settings_from
from weightscope.text import count_of

if TYPE_CHECKING:
    import pandas as pd

HINT = (
    "Compared by their saved runs alone; name two checkpoints to compare the weights themselves "
    "(rel_change, spectrum of the difference, reading)."
)


@dataclass(frozen=True)
class Comparing:
    """How models are compared.

    Attributes:
        weights: Compare the weights too; None does where both models are checkpoints.
        maps: Prefixes that count as equal.
        force: Compare runs of different settings all the same.
        save: Keep the runs of checkpoints that are analysed for it.
        settings: Device, threads and whatever else checkpoints are analysed with.
        access: How checkpoints are reached; a revision is for those on the hub that name none.
    """

    weights: bool | None = None
    maps: tuple[PrefixMap, ...] = ()
    force: bool = False
    save: bool = True
    settings: Settings = field(default_factory=Settings)
    access: Access = field(default_factory=Access)


@dataclass(frozen=True)
class Model:
    """One side of a comparison."""

    run: Run
    checkpoint: Checkpoint | None


@dataclass(frozen=True, repr=False)
class Wide:
    """Several runs beside the first.

    Attributes:
        names: Of the models.
        letters: What the columns of each end in.
        provenance: Of their runs.
        columns: Column names.
        rows: One row per matrix of any of them.
        runs: The runs, for whoever draws their spectra.
        maps: Prefixes that count as equal.
    """

    names: tuple[str, ...]
    letters: tuple[str, ...]
    provenance: tuple[Mapping[str, Any], ...]
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    runs: tuple[Run, ...] = field(default=(), repr=False)
    maps: tuple[PrefixMap, ...] = ()

    def __repr__(self) -> str:
        return f"Wide({', '.join(map(repr, self.names))}, {count_of(len(self.rows), 'matrix')})"

    def _repr_html_(self) -> str:
        """Alpha of every matrix in each of them, as notebooks show it."""
        return str(plugins.load("integrations", "notebook").wide_html(self))

    def to_dataframe(self) -> pd.DataFrame:
        """The rows as a tidy DataFrame: ``alpha_a``, ``alpha_b``, ``alpha_delta_b``, ..."""
        from weightscope.frames import frame

        return frame(self.columns, self.rows, (*COMPARED, *all_columns()))


def open_sides(models: Sequence[Any], how: Comparing, observer: Observer) -> Iterator[Model]:
    """Runs as they are, and whatever else ``analyze`` takes with its run.

    Raises:
        OptionError: A revision that is meant for none of them.
        WeightscopeError: One is neither, or cannot be read.
    """
    runs = list(map(is_analysed, models))
    if all(runs) and not how.access.revision:
        yield from (_analysed(model, observer) for model in models)
        return
    # saved runs are compared without what reads checkpoints
    from weightscope.analysis import Saving, analyze
    from weightscope.sources import accesses, open_model

    for model, done, access in zip(models, runs, accesses(models, how.access), strict=True):
        if done:
            yield _analysed(model, observer)
        else:
            checkpoint = open_model(model, access)
            run = analyze(checkpoint, how.settings, Saving(how.save), observer)
            if run.folder is not None and not run.reused:
                observer.note(f"Run saved in {run.folder}")
            yield Model(run, checkpoint)


def is_analysed(model: Any) -> bool:
    """Whether something is a run, or the path of one."""
    return isinstance(model, Run) or (isinstance(model, str | Path) and is_run(Path(model)))


def _analysed(model: Run | str | Path, observer: Observer) -> Model:
    run = model if isinstance(model, Run) else load_run(Path(model))
    if run.share:
        where = run.folder or run.name
        observer.note(f"{where}: is {run.share.label} of {run.name}, not all of it")
    return Model(run, None)


def compare_models(
    models: Sequence[Any], how: Comparing, observer: Observer | None = None
) -> tuple[Comparison, str]:
    """Compare two models.

    Args:
        models: Two runs, paths of runs, or whatever else ``analyze`` takes.
        how: In which way.
        observer: Who is told about progress.

    Returns:
        The comparison, and a hint for the user (may be empty).

    Raises:
        IncomparableRunsError: Their runs were made with different settings, or no matrix of one
            is in the other.
        OptionError: The weights were asked for, but one side is a run.
        WeightscopeError: One of them cannot be read.
    """
    observer = observer or Silent()
    if how.weights and any(map(is_analysed, models)):
        raise OptionError("--weights needs two checkpoints, but one side is a run")
    a, b = open_sides(models, how, observer)
    if not how.force:
        check_comparable(a.run, b.run)
    both = a.checkpoint is not None and b.checkpoint is not None
    pairs = pair_runs(a.run, b.run, how.maps)
    if not how.force:
        check_related(a.run, b.run, pairs)
    changes: dict[str, Difference] | None = None
    if both and how.weights is not False:
        names = [(str(p.a["name"]), str(p.b["name"])) for p in pairs if p.a and p.b]
        changes = _changes((a, b), names, how.settings)
    hint = HINT if changes is None and how.weights is None else ""
    return compare_runs(a.run, b.run, pairs, changes), hint


def _changes(
    sides: tuple[Model, Model], names: list[tuple[str, str]], settings: Settings
) -> dict[str, Difference]:
    from weightscope.analysis import with_resources
    from weightscope.changes import measure_changes

    first, second = (side.checkpoint for side in sides)
    assert first is not None and second is not None
    settings = with_resources(settings)[0]
    found = measure_changes((first, second), names, settings)
    return {name: change for name, change in found if change is not None}


def left_empty(
    provenance: Sequence[Mapping[str, Any]], letters: Sequence[str], weights: bool
) -> dict[str, str]:
    """Columns of a comparison that nothing fills in any row, and what to do about each.

    Args:
        provenance: Of the runs.
        letters: What the columns of each run end in.
        weights: Whether the weights themselves were compared.
    """
    runs = [left_out(settings_from(record["settings"])) for record in provenance]
    found = dict.fromkeys(() if weights else WEIGHT_COLUMNS, "it needs the weights of both models")
    for letter, missing in zip(letters, runs, strict=True):
        found |= {f"{name}_{letter}": advice for name, advice in missing.items()}
        for name, advice in (runs[0] | missing).items():
            found |= {f"{name}_delta": advice, f"{name}_delta_{letter}": advice}
    for name, needed in _DERIVED.items():
        if f"{needed}_delta" in found:
            found[name] = found[f"{needed}_delta"]
    return found


_DERIVED = {"alpha_moved": "alpha", "band_change": "alpha_band", "class_change": "welore_class"}
"""Columns of a comparison that are made of a column of both runs."""


def compare_many(models: Sequence[Any], how: Comparing, observer: Observer | None = None) -> Wide:
    """Several models beside the first, metric by metric.

    Raises:
        IncomparableRunsError: Their runs were made with different settings, or one has no matrix
            that the first has.
        OptionError: The weights were asked for.
        WeightscopeError: One of them cannot be read.
    """
    if how.weights:
        raise OptionError("--weights compares two models, not more")
    runs = comparable_runs(models, how, observer or Silent())
    metrics = [column.name for column in metric_columns()]
    letters = _letters(len(runs))
    rows = _wide_rows(runs, letters, metrics, how.maps)
    return Wide(
        tuple(run.label for run in runs),
        tuple(letters),
        tuple(run.provenance for run in runs),
        tuple(wide_columns(len(runs))),
        tuple(rows),
        tuple(runs),
        how.maps,
    )


def comparable_runs(models: Sequence[Any], how: Comparing, observer: Observer) -> list[Run]:
    """The runs of several models, each of which can be compared with the first.

    Raises:
        IncomparableRunsError: One cannot.
        WeightscopeError: One of them cannot be read.
    """
    runs = [side.run for side in open_sides(models, how, observer)]
    for run in () if how.force else runs[1:]:
        check_comparable(runs[0], run)
        check_related(runs[0], run, align(runs[0].rows, run.rows, how.maps))
    return runs


def _letters(count: int) -> list[str]:
    return [chr(ord("a") + i) if i < 26 else f"r{i}" for i in range(count)]


def wide_columns(count: int) -> list[str]:
    """Columns of a comparison of so many runs: values, and changes against the first."""
    metrics = [name for c in metric_columns() for name in _of_metric(c.name, _letters(count))]
    return ["name", "block", "module", "role", "present", *metrics]


def _of_metric(metric: str, letters: Sequence[str]) -> list[str]:
    return [f"{metric}_{x}" for x in letters] + [f"{metric}_delta_{x}" for x in letters[1:]]


def _wide_rows(
    runs: Sequence[Run], letters: list[str], metrics: list[str], maps: tuple[PrefixMap, ...]
) -> list[Row]:
    blank: Row = dict.fromkeys(name for m in metrics for name in _of_metric(m, letters))
    rows: dict[str, Row] = {}
    reference: list[Row] = list(runs[0].rows)
    for letter, run in zip(letters, runs, strict=True):
        for pair in align(reference, run.rows, maps):
            if pair.b is None:
                continue
            name = str(pair.either["name"])
            if pair.a is None:
                reference.append(pair.b)  # later runs are matched with it too
            start: Row = {key: pair.either[key] for key in ("name", "block", "module", "role")}
            row = rows.setdefault(name, {**start, "present": "", **blank})
            row["present"] = f"{row['present']}{letter}"
            for metric in metrics:
                first, value = row[f"{metric}_{letters[0]}"], pair.b[metric]
                row[f"{metric}_{letter}"] = value
                if letter != letters[0] and _numbers(first, value):
                    row[f"{metric}_delta_{letter}"] = value - first  # type: ignore[operator]
    return list(rows.values())


def _numbers(*values: Any) -> bool:
    return all(isinstance(value, int | float) for value in values)
