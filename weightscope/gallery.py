"""A run becomes pictures: the charts of its columns, and the spectrum of every matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from weightscope.charting import (
    column_named,
    distribution,
    esds,
    figure,
    heat_map,
    numeric_columns,
    over_depth,
)
from weightscope.columns import IDENTITY, Column
from weightscope.drawings.charts import Panels
from weightscope.drawings.esd import Esd, esd_of
from weightscope.drawings.ks_curve import ks_curve_of
from weightscope.drawings.page import Page
from weightscope.drawings.pictures import Overlay, Picture
from weightscope.errors import OptionError
from weightscope.evaluate import Row, all_columns
from weightscope.outcome import Failure
from weightscope.run import Run
from weightscope.settings import parse_floor
from weightscope.text import did_you_mean, short

CHARTED = (
    "alpha", "alpha_ks", "alpha_farms", "erg_gap", "condition_number", "welore_rank_ratio",
    "effective_rank", "stable_rank", "mp_softrank", "spectral_norm", "noise_w1", "shuffled_w1",
    "traps", "quant_error_8", "quant_error_4", "quant_error_3",
)  # fmt: skip
"""Columns whose charts are written to a folder; of the others one asks for by name."""
KINDS = ("heatmap", "distribution", "depth")


def pictures(run: Run) -> Iterator[Picture]:
    """Every picture of a run, in a fixed order: the columns, then the spectra.

    Columns without a number and matrices without a spectrum to draw are left out.
    """
    filled = {column.name for column in numeric_columns(all_columns(), run.rows)}
    for name in CHARTED:
        if name in filled:
            for kind in KINDS:
                picture = _column_picture(run, column_named(name), kind)
                if not _is_blank(picture):
                    yield picture
    rows = {str(row["name"]): row for row in run.rows}
    for name, density in esds(run).items():
        yield _esd_picture(rows[name], density)


def _is_blank(picture: Picture) -> bool:
    """Whether nothing of a column lies inside the blocks, so that there is no depth to follow."""
    return isinstance(picture.chart, Panels) and not picture.chart.panels


def page_pictures(page: Page) -> Iterator[Picture]:
    """Every picture of a comparison or a training: its columns, its panels, its spectra.

    Args:
        page: As it is shown to explore; of its columns those that it shows before all are asked
            for.
    """
    names = [figures.column.name for figures in page.figures]
    values = zip(*(figures.values for figures in page.figures), strict=True)
    rows = [dict(zip(names, cells, strict=True)) for cells in values]
    wanted = {page.first, *page.main} - {column.name for column in IDENTITY}
    for column in numeric_columns((figures.column for figures in page.figures), rows):
        if column.name in wanted:
            caption = f"{page.title}: {column.meaning}"
            yield Picture("heatmap", column.name, caption, heat_map(rows, column, page.grid))
            yield Picture("distribution", column.name, caption, distribution(rows, column))
    for panels in page.panels:
        kind = "steps" if panels.axis == "step" else "depth"
        caption = f"{page.title}: {panels.column.meaning}"
        yield Picture(kind, panels.column.name, caption, panels)
    for row, drawn in zip(rows, page.spectra, strict=True):
        if drawn:
            lines = tuple((page.series[one.series], one.esd) for one in drawn)
            caption = " · ".join(one.caption for one in drawn if one.caption)
            yield Picture("esd", str(row["name"]), caption, Overlay(lines))


def column_picture(run: Run, name: str, kind: str) -> Picture:
    """One chart of one column.

    Args:
        run: What to draw.
        name: A numeric column.
        kind: One of ``KINDS``.

    Raises:
        OptionError: There is no such column, it holds words, it is empty, or it is so inside the
            blocks whose depth is asked for.
    """
    picture = _column_picture(run, _numeric(run.rows, name), kind)
    if _is_blank(picture):
        raise OptionError(f"{name}: none of its values lies inside a block, so there is no depth")
    return picture


def _column_picture(run: Run, column: Column, kind: str) -> Picture:
    caption = f"{run.name}: {column.meaning}"
    if kind == "heatmap":
        return Picture(kind, column.name, caption, heat_map(run.rows, column))
    if kind == "distribution":
        return Picture(kind, column.name, caption, distribution(run.rows, column))
    return Picture(kind, column.name, caption, over_depth({run.name: run.rows}, column))


def _numeric(rows: Sequence[Row], name: str) -> Column:
    known = {column.name: column for column in all_columns() if column.kind != "text"}
    if name not in known:
        raise OptionError(f"{name!r} is no numeric column{did_you_mean(name, known)}")
    if all(figure(row, name) is None for row in rows):
        raise OptionError(f"{name}: is empty in this run, so there is nothing to draw")
    return column_named(name)


def matrix_picture(run: Run, row: Row, kind: str) -> Picture | Failure:
    """The spectrum of one matrix (``esd``), or the search for its tail (``ks``).

    Returns:
        The picture, or why there is none.
    """
    name = str(row["name"])
    spectrum = run.spectra().get(name)
    if spectrum is None or not spectrum.largest:
        return Failure("it has no spectrum", str(row["reason"] or ""))
    if kind == "ks":
        floor = parse_floor(str(run.provenance["settings"]["eval_floor"]))
        curve = ks_curve_of(spectrum, row, floor)
        return curve if isinstance(curve, Failure) else Picture(kind, name, _facts(row), curve)
    density = esd_of(spectrum, row, run.details.get(name, {}).get("shuffled"))
    if density is None:
        return Failure("its singular values are all equal, or all but one are zero")
    return _esd_picture(row, density)


def _esd_picture(row: Row, density: Esd) -> Picture:
    gap = "" if row["erg_gap"] is None else f" · ERG gap {short(row['erg_gap'])}"
    return Picture("esd", str(row["name"]), _facts(row) + gap, density)


def _shape(row: Row) -> str:
    slices = f" × {row['slices']}" if row["slices"] != 1 else ""
    return f"{row['rows']} × {row['cols']}{slices} {row['dtype']}"


def _facts(row: Row) -> str:
    """What a reader of a spectrum asks first."""
    parts = [_shape(row)]
    if row["alpha"] is not None:
        parts.append(f"alpha {short(row['alpha'])} ± {short(row['alpha_stderr'], 2)}")
        parts.append(f"KS {short(row['alpha_ks'], 2)}, {row['alpha_n_tail']} in the tail")
    if row["reading"] is not None:
        parts.append(str(row["reading"]))
    elif row["status"] != "ok":
        parts.append(str(row["status"]))
    return " · ".join(parts)
