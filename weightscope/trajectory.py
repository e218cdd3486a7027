"""Several runs of one training become trajectories: every metric of every matrix over the steps."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from statistics import median
from typing import Any

from weightscope.alignment import PrefixMap, by_plain_name
from weightscope.comparing import Comparing, open_sides
from weightscope.comparison import alpha_moved, check_comparable, metric_columns
from weightscope.errors import CheckpointError, OptionError
from weightscope.evaluate import Row, left_out
from weightscope.folders.storage import is_run, read_record
from weightscope.observer import Observer, Silent
from weightscope.run import Run
from weightscope.settings import settings_from
from weightscope.summary import numbers

LONG_COLUMNS = ("step", "name", "metric", "value")
CHANGE_COLUMNS = ("name", "first", "last", "change")
_STATE = "trainer_state.json"


@dataclass(frozen=True)
class Trajectory:
    """Runs in the order of their steps.

    Attributes:
        steps: Training steps, ascending.
        runs: One run per step.
        names: Matrices of any run, in the order of the first that has them.
        rows: For each step, the row of each matrix by plain name.
    """

    steps: tuple[int, ...]
    runs: tuple[Run, ...]
    names: tuple[str, ...]
    rows: tuple[dict[str, Row], ...]

    def values(self, name: str, metric: str) -> list[float | None]:
        """One metric of one matrix over the steps."""
        found = (rows.get(name, {}).get(metric) for rows in self.rows)
        return [float(v) if isinstance(v, int | float) else None for v in found]


def expand(arguments: Iterable[str]) -> list[str]:
    """Paths behind arguments: globs, and training folders that hold ``checkpoint-*`` folders.

    Raises:
        OptionError: A glob matches nothing.
    """
    found: list[str] = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir() and (inside := sorted(map(str, path.glob("checkpoint-*")))):
            found += [p for p in inside if Path(p).is_dir()]
        elif not path.exists() and re.search(r"[*?\[]", argument):
            matches = sorted(glob(argument, recursive=True))  # noqa: PTH207 - the user's own pattern
            if not matches:
                raise OptionError(f"{argument!r} matches nothing")
            found += matches
        else:
            found.append(argument)
    return _without_own_runs(list(dict.fromkeys(found)))


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


def step_of(model: str) -> int:
    """Training step of a checkpoint or run: the trainer's record, else the last number of its name.

    Raises:
        CheckpointError: Neither says.
    """
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
    digits = re.findall(r"\d+", of_model) or re.findall(r"\d+", path.name.partition(".shard-")[0])
    if not digits:
        raise CheckpointError(f"{model}: neither a {_STATE} nor its name tells its training step")
    return int(digits[-1])


def track(models: Sequence[str], how: Comparing, observer: Observer | None = None) -> Trajectory:
    """Analyse what is not yet analysed, and order everything by training step.

    Raises:
        OptionError: Fewer than two models, or two of one step.
        IncomparableRunsError: The runs were made with different settings.
        WeightscopeError: One of them cannot be read.
    """
    observer = observer or Silent()
    if len(models) < 2:
        raise OptionError("track needs at least two runs or checkpoints")
    ordered = sorted((step_of(model), model) for model in models)
    steps = tuple(step for step, _ in ordered)
    if len(set(steps)) < len(steps):
        twice = next(step for step in steps if steps.count(step) > 1)
        raise OptionError(f"two of the runs are of step {twice}; name one of them")
    sides = open_sides([model for _, model in ordered], how, observer)
    runs = tuple(side.run for side in sides)
    if not how.force:
        for run in runs[1:]:
            check_comparable(runs[0], run)
    return trajectory_of(steps, runs, how.maps)


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
            raise OptionError(f"--metric {name!r}: no such numeric column; see weightscope explain")
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
