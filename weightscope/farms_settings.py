"""What window and grid do to FARMS: the exponents of every matrix over a grid of settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from weightscope.checkpoint import Checkpoint
from weightscope.errors import OptionError
from weightscope.evaluate import Row
from weightscope.laws.power_law import PowerLaw
from weightscope.layouts.roles import OUTSIDE_BLOCKS
from weightscope.matrix import Matrix
from weightscope.measurement import FarmsFit
from weightscope.observer import Observer, Silent
from weightscope.outcome import Failure
from weightscope.plan import Plan, flops
from weightscope.recipe import FIT_METHODS, EvalFloor, Farms, FitMethod, farms_preset
from weightscope.report import Block, Cell, Paragraph, Report, Table
from weightscope.select import select_for
from weightscope.settings import Settings
from weightscope.text import count_of, short

COLUMNS = (
    *("name", "setting", "window_rows", "window_cols", "q", "per_dimension", "windows"),
    *("coverage", "alpha_farms", "alpha_farms_sd", "n_tail", "ks", "reason"),
)
"""Columns of the tidy table."""
WINDOWS = (128, 256, 512, 1024)
GRIDS = (1, 4, 6, 15)
FEWEST_TO_RANK = 3
_CAVEAT = (
    "Noise has an exponent of its own under every setting (with square windows 2.12 under mid, "
    "above 6 under ks), and overlapping windows repeat each other: compare layers within one "
    "setting, not exponents between settings, and believe a difference that keeps its sign over "
    "the settings."
)
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Setting:
    """One way to cut and fit windows.

    Attributes:
        label: ``auto``, ``paper``, or window rows and windows a side, such as ``256/4``.
        recipe: The same for the solver.
    """

    label: str
    recipe: Farms


@dataclass(frozen=True)
class Study:
    """Fits of every matrix under every setting.

    Attributes:
        model: Its name.
        settings: The first is the one that the others are compared with.
        matrices: In natural order of names.
        fits: One row per matrix, one entry per setting.
    """

    model: str
    settings: tuple[Setting, ...]
    matrices: tuple[Matrix, ...]
    fits: tuple[tuple[FarmsFit | Failure, ...], ...]

    def alphas(self, index: int) -> list[float | None]:
        """Exponents under one setting, None where there is none."""
        found = (fits[index] for fits in self.fits)
        return [
            f.fit.alpha if isinstance(f, FarmsFit) and isinstance(f.fit, PowerLaw) else None
            for f in found
        ]


def settings_grid(
    windows: Sequence[int] = WINDOWS,
    grids: Sequence[int] = GRIDS,
    q: float = 1.0,
    fit: FitMethod | None = None,
    compat: str | None = None,
) -> tuple[Setting, ...]:
    """Every combination of window and grid, after the setting to compare with.

    Args:
        windows: Rows of a window.
        grids: Most windows along one side.
        q: Window columns over window rows.
        fit: How pooled eigenvalues are fitted; None: ``ks``, or the peer's.
        compat: ``farms`` for the authors' geometry and floor; their fit is ``peak``.

    Raises:
        OptionError: A value makes no sense.
    """
    if compat not in {None, "farms"}:
        raise OptionError(f"--compat {compat}: this command knows the conventions of farms only")
    if fit is not None and fit not in FIT_METHODS:
        raise OptionError(f"--xmin {fit!r}: choose from {', '.join(FIT_METHODS)}")
    if not windows or not grids or min(*windows, *grids, 1) < 1 or not 0 < q < float("inf"):
        raise OptionError("--windows, --grids and --q take positive numbers")
    auto = farms_preset("paper-llm" if compat else "auto", EvalFloor())
    first = replace(auto, q=q, fit=fit or auto.fit)
    grid = [
        Setting(f"{rows}/{count}", replace(first, rows=rows, per_dimension=count))
        for rows in windows
        for count in grids
    ]
    return (Setting("paper" if compat else "auto", first), *grid)


def parse_numbers(option: str, text: str) -> tuple[int, ...]:
    """Read ``128,256``.

    Raises:
        OptionError: Something else than positive whole numbers.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) for part in parts):
        raise OptionError(f"{option} {text!r}: give whole numbers, such as 128,256")
    return tuple(dict.fromkeys(int(part) for part in parts))


def study(
    checkpoint: Checkpoint,
    grid: tuple[Setting, ...],
    settings: Settings,
    observer: Observer | None = None,
) -> Study:
    """Fit every selected matrix under every setting; each is read once.

    Args:
        checkpoint: What to read.
        grid: Settings, the one to compare with first.
        settings: Selection, device and threads, resolved.
        observer: Who is told about progress.

    Raises:
        OptionError: No matrix is left.
        CheckpointError: The weights cannot be read.
    """
    from weightscope.executors import local
    from weightscope.expressions import Fetcher
    from weightscope.measure import farms_fits, reading

    observer = observer or Silent()
    selection = select_for(checkpoint, settings)
    matrices = tuple(
        m for m in selection.matrices if settings.farms_embeddings or m.role not in OUTSIDE_BLOCKS
    )
    if not matrices:
        raise OptionError("no matrix is left to cut windows from (see --farms-embeddings)")
    recipes = [setting.recipe for setting in grid]
    costs = {m.name: sum(flops(m, recipe) for recipe in recipes) for m in matrices}
    observer.start(Plan((), sum(costs.values()), sum(m.nbytes for m in matrices), 0), 0)
    workers = settings.threads if settings.device == "cpu" else 1
    fits = []
    with reading(checkpoint, matrices) as read:
        fetch = Fetcher(read, expected=matrices)

        def work(matrix: Matrix) -> tuple[FarmsFit | Failure, ...]:
            return tuple(farms_fits(fetch, matrix, recipes, settings.device))

        results = local.in_order(matrices, work, workers, 1)
        for matrix, found in zip(matrices, results, strict=True):
            fits.append(found)
            observer.advance(matrix.name, costs[matrix.name])
    return Study(checkpoint.name, grid, matrices, tuple(fits))


def tidy_rows(found: Study) -> list[Row]:
    """One row per matrix and setting, undefined cells None."""
    return [
        {
            **dict.fromkeys(COLUMNS),
            "name": matrix.name,
            "setting": setting.label,
            "per_dimension": setting.recipe.per_dimension,
            **_cells(fit),
        }
        for matrix, fits in zip(found.matrices, found.fits, strict=True)
        for setting, fit in zip(found.settings, fits, strict=True)
    ]


def _cells(found: FarmsFit | Failure) -> Row:
    if isinstance(found, Failure):
        return {"reason": str(found)}
    cells: Row = {
        "window_rows": found.rows,
        "window_cols": found.cols,
        "q": found.q,
        "windows": found.windows,
        "coverage": found.coverage,
    }
    if isinstance(found.fit, Failure):
        return {**cells, "reason": str(found.fit)}
    return {
        **cells,
        "alpha_farms": found.fit.alpha,
        "alpha_farms_sd": found.sd,
        "n_tail": found.fit.n_tail,
        "ks": found.fit.ks,
    }


def summarise(found: Study) -> list[dict[str, Any]]:
    """For every setting: what it cut, and how it changes values and order of the layers."""
    first = found.alphas(0)
    return [
        {
            "setting": setting.label,
            "recipe": {**asdict(setting.recipe), "floor": str(setting.recipe.floor)},
            **_windows_of(found, index),
            **_against(first, found.alphas(index), [m.name for m in found.matrices]),
        }
        for index, setting in enumerate(found.settings)
    ]


def _windows_of(found: Study, index: int) -> dict[str, Any]:
    cut = [fits[index] for fits in found.fits]
    known = [fit for fit in cut if isinstance(fit, FarmsFit)]
    wanted = found.settings[index].recipe.rows
    return {
        "matrices": len(known),
        "clipped": sum(fit.rows < wanted for fit in known),
        "windows": median(fit.windows for fit in known) if known else None,
        "coverage": median(fit.coverage for fit in known) if known else None,
        "sd": _median([fit.sd for fit in known]),
    }


def _against(
    first: Sequence[float | None], other: Sequence[float | None], names: Sequence[str]
) -> dict[str, Any]:
    """Median, rank correlation with the first setting, and the largest change from it."""
    both = [
        (a, b, name)
        for a, b, name in zip(first, other, names, strict=True)
        if a is not None and b is not None
    ]
    largest = max(both, key=lambda pair: abs(pair[1] - pair[0]), default=None)
    return {
        "alpha": _median(other),
        "rank_correlation": spearman([a for a, _, _ in both], [b for _, b, _ in both]),
        "largest_change": largest[1] - largest[0] if largest else None,
        "largest_change_of": largest[2] if largest else None,
    }


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None


def spearman(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Spearman's rank correlation, equal values sharing their mean rank.

    Returns:
        In [-1, 1]; None for fewer than three pairs, or where one side does not vary.
    """
    if len(a) < FEWEST_TO_RANK:
        return None
    x, y = (ranks - ranks.mean() for ranks in (_ranks(a), _ranks(b)))
    norm = float(np.sqrt(np.sum(x * x) * np.sum(y * y)))
    return float(np.sum(x * y)) / norm if norm else None


def _ranks(values: Sequence[float]) -> Floats:
    """Twice the rank of every value; a correlation does not mind."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    below, above = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
    return (below + above).astype(np.float64)


def farms_report(found: Study, top: int | None = None) -> Report:
    """Exponents of matrices by settings, then what the settings do."""
    shown = tuple(_distinct(found))
    blocks: list[Block] = [_matrices(found, shown, top), _settings(summarise(found), shown)]
    left = len(found.settings) - len(shown)
    if left:
        labels = [s.label for k, s in enumerate(found.settings) if k not in shown]
        blocks.append(
            Paragraph(
                f"{count_of(left, 'setting')} cut the very windows of another, because the "
                f"matrices are small: {', '.join(labels)}.",
                "dim",
            )
        )
    blocks.append(Paragraph(_CAVEAT))
    title = f"{found.model}: FARMS alpha, window rows / most windows a side"
    return Report(title, tuple(blocks))


def _distinct(found: Study) -> Iterator[int]:
    """Settings that differ in at least one matrix from every one before."""
    seen: set[str] = set()
    for index in range(len(found.settings)):
        same = repr([fits[index] for fits in found.fits])
        if same not in seen:
            seen.add(same)
            yield index


def _matrices(found: Study, shown: tuple[int, ...], top: int | None) -> Table:
    columns = [found.alphas(index) for index in shown]
    rows = []
    for k, matrix in enumerate(found.matrices[:top]):
        values = [column[k] for column in columns]
        known = [value for value in values if value is not None]
        rows.append(
            (
                Cell(matrix.name.removesuffix(".weight")),
                Cell(f"{matrix.rows}x{matrix.cols}"),
                Cell(f"{short(min(known))} - {short(max(known))}" if known else ""),
                *(Cell("" if value is None else short(value)) for value in values),
            )
        )
    labels = [found.settings[index].label for index in shown]
    headers = ("name", "shape", "range", *labels)
    numeric = (False, False, *(True,) * (1 + len(labels)))
    return Table("", headers, tuple(rows), numeric, ("shape", *reversed(labels[1:])))


def _settings(summary: Sequence[Mapping[str, Any]], shown: tuple[int, ...]) -> Table:
    rows = tuple(
        (
            Cell(entry["setting"], "strong"),
            Cell(short(entry["windows"])),
            Cell(short(entry["coverage"], 2)),
            Cell(short(entry["alpha"])),
            Cell(short(entry["sd"], 2)),
            *(_changes(entry) if index else (Cell(""),) * 3),
        )
        for index, entry in ((index, summary[index]) for index in shown)
    )
    headers = (
        *("setting", "windows", "coverage", "alpha", "sd", "rank correlation"),
        *("largest change", "of"),
    )
    numeric = (False, *(True,) * 6, False)
    title = f"Medians over the matrices, and the order of layers against {summary[0]['setting']}"
    return Table(title, headers, rows, numeric, ("of", "windows", "coverage"))


def _changes(entry: Mapping[str, Any]) -> tuple[Cell, Cell, Cell]:
    change = entry["largest_change"]
    return (
        Cell(short(entry["rank_correlation"], 2)),
        Cell("" if change is None else ("+" if change > 0 else "") + short(change)),
        Cell((entry["largest_change_of"] or "").removesuffix(".weight")),
    )
