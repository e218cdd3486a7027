"""Several runs of one training become trajectories: every metric of every matrix over the steps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from glob import glob
from operator import index, itemgetter
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from weightscope import plugins
from weightscope.alignment import PrefixMap, by_plain_name
from weightscope.checkpoint import Checkpoint
from weightscope.columns import IDENTITY
from weightscope.comparing import Comparing, comparable_runs
from weightscope.comparison import alpha_moved, metric_columns
from weightscope.errors import CheckpointError, OptionError
from weightscope.evaluate import Row, left_out
from weightscope.folders.storage import is_run, read_record
from weightscope.observer import Observer, Silent
from weightscope.run import Run
from weightscope.settings import settings_from
from weightscope.summary import numbers
from weightscope.text import count_of, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

LONG_COLUMNS = ("step", "name", "metric", "value")
CHANGE_COLUMNS = ("name", "first", "last", "change")
_STATE = "trainer_state.json"
_LONGEST_STEP = 18
"""Digits."""


@dataclass(frozen=True, repr=False)
class Trajectory:
    """Runs in the order of their steps.

    Attributes:
        steps: Training steps, ascending.
        runs: One run per step.
        names: Matrices of any run, in the order of the first that has them.
        rows: For each step, the row of each matrix by plain name.
        metrics: Columns that its tables show, in lines the first; all numeric ones where empty.
    """

    steps: tuple[int, ...]
    runs: tuple[Run, ...]
    names: tuple[str, ...]
    rows: tuple[dict[str, Row], ...]
    metrics: tuple[str, ...] = ()

    @cached_property
    def summary(self) -> dict[str, Any]:
        """What happened as a whole; see ``summarise``."""
        return summarise(self)

    @property
    def sentences(self) -> tuple[str, ...]:
        """What happened, in reading order."""
        return tuple(sentences_of(self.summary))

    def __repr__(self) -> str:
        steps = ", ".join(map(str, self.steps))
        return f"Trajectory({count_of(len(self.names), 'matrix')} at steps {steps})"

    def _repr_html_(self) -> str:
        """The first metric of every matrix over the steps, as notebooks show it."""
        return str(plugins.load("integrations", "notebook").trajectory_html(self))

    def to_dataframe(self) -> pd.DataFrame:
        """Long form: a row per step, matrix and metric that has a value."""
        from weightscope.frames import frame
        from weightscope.glossary import TRACKED

        metrics = self.metrics or metric_names(())
        return frame(LONG_COLUMNS, long_rows(self, metrics), (*TRACKED, *IDENTITY))

    def values(self, name: str, metric: str) -> list[float | None]:
        """One metric of one matrix over the steps."""
        found = (rows.get(name, {}).get(metric) for rows in self.rows)
        return [float(v) if isinstance(v, int | float) else None for v in found]


def listed(given: Any) -> Mapping[int, Any] | list[Any]:
    """What ``track`` takes, from anything that a user may call a training.

    A mapping of steps to models stays one; all else becomes a list, in which one model stands
    alone, and paths are expanded.

    Raises:
        OptionError: It is nothing of the kind, or a glob matches nothing.
    """
    if isinstance(given, Mapping):
        steps = [hasattr(key, "__index__") for key in given]
        return {index(k): v for k, v in given.items()} if steps and all(steps) else [given]
    if isinstance(given, str | Path | Run | Checkpoint) or hasattr(given, "state_dict"):
        return expand([given])
    if not isinstance(given, Iterable):
        raise OptionError(f"track follows runs or checkpoints, not a {type(given).__name__}")
    return expand(given)


def expand(arguments: Iterable[Any]) -> list[Any]:
    """Paths behind arguments: globs, and training folders that hold ``checkpoint-*`` folders.

    What is no path, such as a run, stays as it is.

    Raises:
        OptionError: A glob matches nothing.
    """
    found: list[str] = []
    others: list[Any] = []
    for argument in arguments:
        if not isinstance(argument, str | Path):
            others.append(argument)
            continue
        path = Path(argument)
        if path.is_dir() and (inside := sorted(map(str, path.glob("checkpoint-*")))):
            found += [p for p in inside if Path(p).is_dir()]
        elif not path.exists() and re.search(r"[*?\[]", str(argument)):
            matches = sorted(glob(str(argument), recursive=True))  # noqa: PTH207 - the user's own pattern
            if not matches:
                raise OptionError(f"{str(argument)!r} matches nothing")
            found += matches
        else:
            found.append(str(argument))
    return [*_without_own_runs(list(dict.fromkeys(found))), *others]


def _without_own_runs(models: list[str]) -> list[str]:
    """Leave out run folders that lie beside their checkpoints: analyze finds those again."""
    checkpoints = {
        name
        for model in models
        if not is_run(Path(model))
        for name in (Path(model).name, Path(model).stem)
    }
    return [
        model
        for model in models
        if not is_run(Path(model)) or str(read_record(Path(model)).get("model")) not in checkpoints
    ]


def step_of(model: Any) -> int:
    """Training step of a checkpoint or run: the trainer's record, else the last number of its name.

    Raises:
        CheckpointError: Neither says.
        OptionError: Nothing says, of a run or a model in memory.
    """
    if not isinstance(model, str | Path):
        return _step_of_object(model)
    path = Path(model)
    state = path / _STATE
    if state.is_file() and state.stat().st_size < 1 << 28:
        try:
            step = json.loads(state.read_bytes()).get("global_step")
        except (ValueError, AttributeError, OSError, RecursionError):
            step = None
        if isinstance(step, int) and not isinstance(step, bool) and step >= 0:
            return step
    # the folder of a run may carry a number of its own, which keeps runs apart
    of_model = str(read_record(path).get("model")) if is_run(path) else path.name
    step = _last_number(of_model, path.name)
    if step is None:
        raise CheckpointError(f"{model}: neither a {_STATE} nor its name tells its training step")
    return step


def _step_of_object(model: Any) -> int:
    step, label = None, type(model).__name__
    if isinstance(model, Run):
        step, label = (
            _last_number(model.name, model.folder.name if model.folder else ""),
            str(model),
        )
    if step is None:
        raise OptionError(
            f"{label}: nothing tells its training step; give a mapping of steps to models"
        )
    return step


def _last_number(of_model: str, of_folder: str) -> int | None:
    for name in (of_model, of_folder.partition(".shard-")[0]):
        # a longer one is a hash, or a joke
        found = [digits for digits in re.findall(r"\d+", name) if len(digits) <= _LONGEST_STEP]
        if found:
            return int(found[-1])
    return None


def track(
    models: Mapping[int, Any] | Sequence[Any],
    how: Comparing,
    observer: Observer | None = None,
    metrics: Sequence[str] = (),
) -> Trajectory:
    """Analyse what is not yet analysed, and order everything by training step.

    Args:
        models: Runs, paths of runs, or whatever else ``analyze`` takes, by step; or a sequence of
            those that tell their steps themselves.
        how: In which way.
        observer: Who is told about progress.
        metrics: Numeric columns that the tables show; all of them where none is named.

    Raises:
        OptionError: Fewer than two models, two of one step, one without, or no such metric.
        IncomparableRunsError: The runs were made with different settings, or are of models that
            have no matrix in common.
        WeightscopeError: One of them cannot be read.
    """
    shown = tuple(metric_names(metrics))
    if len(models) < 2:
        raise OptionError("track needs at least two runs or checkpoints")
    if isinstance(models, Mapping):
        by_step = list(models.items())
    else:
        by_step = [(step_of(model), model) for model in models]
    by_step.sort(key=itemgetter(0))
    steps = tuple(step for step, _ in by_step)
    if len(set(steps)) < len(steps):
        twice = next(step for step in steps if steps.count(step) > 1)
        raise OptionError(f"two of the runs are of step {twice}; name one of them")
    runs = comparable_runs([model for _, model in by_step], how, observer or Silent())
    return replace(trajectory_of(steps, runs, how.maps), metrics=shown)


def trajectory_of(
    steps: Sequence[int], runs: Sequence[Run], maps: Iterable[PrefixMap] = ()
) -> Trajectory:
    """Match the rows of runs by plain name."""
    maps = tuple(maps)
    rows = tuple(by_plain_name(run.rows, maps) for run in runs)
    names = dict.fromkeys(name for by_name in rows for name in by_name)
    return Trajectory(tuple(steps), tuple(runs), tuple(names), rows)


def long_rows(found: Trajectory, metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Long form: one row per step, matrix and metric that has a value."""
    return [
        {"step": step, "name": name, "metric": metric, "value": by_name[name][metric]}
        for step, by_name in zip(found.steps, found.rows, strict=True)
        for name in found.names
        if name in by_name
        for metric in metrics
        if by_name[name][metric] is not None
    ]


def change_rows(found: Trajectory, metric: str) -> list[Row]:
    """First and last value of one metric that each matrix has, and last minus first."""
    rows: list[Row] = []
    for name in found.names:
        known = [value for value in found.values(name, metric) if value is not None]
        first, last = (known[0], known[-1]) if known else (None, None)
        change = known[-1] - known[0] if known else None
        rows.append({"name": name, "first": first, "last": last, "change": change})
    return rows


def never_tracked(found: Trajectory, metric: str) -> dict[str, str]:
    """The columns of ``change_rows`` that nothing fills in any run, and what to do about it."""
    of_runs = [left_out(settings_from(run.provenance["settings"])) for run in found.runs]
    if any(metric not in missing for missing in of_runs):
        return {}
    return dict.fromkeys(CHANGE_COLUMNS[1:], f"{metric} is missing, {of_runs[0][metric]}")


def metric_names(wanted: Sequence[str]) -> list[str]:
    """Metrics by name; all of them where none is named.

    Raises:
        OptionError: One is no numeric column.
    """
    known = [column.name for column in metric_columns()]
    for name in wanted:
        if name not in known:
            hint = did_you_mean(name, known) or "; see weightscope explain"
            raise OptionError(f"--metric {name!r}: no such numeric column{hint}")
    return list(wanted) or known


def summarise(found: Trajectory) -> dict[str, Any]:
    """First matrices to move, growth of norms, medians over time, bands left."""
    return {
        "steps": list(found.steps),
        "first_to_move": _first_to_move(found),
        "spectral_norm_growth": _growth(found),
        "alpha_median": _medians(found),
        "left_their_band": _bands(found),
    }


def _first_to_move(found: Trajectory) -> dict[str, Any] | None:
    """The first step at which an exponent left its uncertainty, and whose."""
    start = found.rows[0]
    for step, rows in zip(found.steps[1:], found.rows[1:], strict=True):
        moved = [
            name
            for name in found.names
            if name in start and name in rows and alpha_moved(start[name], rows[name]) == "yes"
        ]
        if moved:
            return {"step": step, "count": len(moved), "names": moved[:5]}
    return None


def _growth(found: Trajectory) -> list[dict[str, Any]]:
    """Largest growth of the spectral norm from the first step to the last."""
    ratios = []
    for name in found.names:
        values = found.values(name, "spectral_norm")
        if values[0] and values[-1] is not None:
            ratios.append((values[-1] / values[0], name))
    return [{"name": name, "ratio": ratio} for ratio, name in sorted(ratios, reverse=True)[:5]]


def _medians(found: Trajectory) -> dict[str, list[float | None]]:
    """Median exponent per role at every step."""
    roles = dict.fromkeys(str(row["role"]) for rows in found.rows for row in rows.values())
    medians: dict[str, list[float | None]] = {}
    for role in roles:
        columns = [
            numbers([row for row in rows.values() if row["role"] == role], "alpha")
            for rows in found.rows
        ]
        medians[role] = [median(column) if column else None for column in columns]
    return medians


def _bands(found: Trajectory) -> list[dict[str, Any]]:
    """Matrices that end in another band than they began in, and when they left."""
    changes = []
    for name in found.names:
        bands = [(step, rows[name]["alpha_band"])
                 for step, rows in zip(found.steps, found.rows, strict=True)
                 if name in rows and rows[name]["alpha_band"]]  # fmt: skip
        if len(bands) > 1 and bands[0][1] != bands[-1][1]:
            left = next(step for step, band in bands if band != bands[0][1])
            changes.append({"name": name, "step": left, "from": bands[0][1], "to": bands[-1][1]})
    return changes


def sentences_of(summary: Mapping[str, Any]) -> list[str]:
    """What happened, in words: what moved first, whose norm grew, what left its band."""
    first = summary["first_to_move"]
    texts = ["No exponent moved by more than its uncertainty."]
    if first:
        texts = [
            f"First to move, at step {first['step']}: {', '.join(first['names'])}"
            + (f" and {first['count'] - 5} more." if first["count"] > 5 else ".")
        ]
    growth = summary["spectral_norm_growth"]
    if growth:
        largest = ", ".join(f"{g['name']} x{g['ratio']:.2f}" for g in growth[:3])
        texts.append(f"Spectral norms grew most in {largest}.")
    left = summary["left_their_band"]
    if left:
        moves = [f"{b['name']} ({b['from']} to {b['to']} at {b['step']})" for b in left[:5]]
        more = f" and {len(left) - 5} more" if len(left) > 5 else ""
        texts.append(f"Left their band: {', '.join(moves)}{more}.")
    return texts
