"""How a run shows itself in a notebook, and several together: as tables, and a run as figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from weightscope import gallery
from weightscope.drawings.pictures import Picture
from weightscope.errors import OptionError
from weightscope.evaluate import Row
from weightscope.outcome import Failure
from weightscope.present.comparison import comparison_report, wide_report
from weightscope.present.run import BAND_STYLES, grouped_table, summary_blocks
from weightscope.present.trajectory import trajectory_report
from weightscope.report import Block, Cell, Paragraph, Report, Table
from weightscope.run import Run
from weightscope.sinks import folder, notebook
from weightscope.text import count_of

if TYPE_CHECKING:
    from weightscope.comparing import Wide
    from weightscope.comparison import Comparison
    from weightscope.sinks.figures import Drawing
    from weightscope.trajectory import Trajectory

MOST_ROWS = 500
"""A page of more rows serves nobody; the DataFrame has them all."""


def html_of(run: Run) -> str:
    """The table of a run with the band of every exponent, and the summary."""
    shown = run.rows[:MOST_ROWS]
    blocks: list[Block] = [grouped_table(shown, (("band", _band),))]
    if len(shown) < len(run.rows):
        text = f"{len(run.rows) - len(shown)} of {len(run.rows)} rows are not shown; "
        blocks.append(Paragraph(text + "run.to_dataframe() has them all.", "dim"))
    blocks += [block for block in summary_blocks(run) if not isinstance(block, Table)]
    title = f"{run.name}: {count_of(len(run.rows), 'matrix')}"
    return notebook.render(Report(title, tuple(blocks)))


def comparison_html(found: Comparison) -> str:
    """The table of a comparison, and what changed as a whole."""
    return notebook.render(comparison_report(found, None, MOST_ROWS))


def wide_html(found: Wide) -> str:
    """Alpha of several runs side by side."""
    return notebook.render(wide_report(found, None, MOST_ROWS))


def trajectory_html(found: Trajectory) -> str:
    """The first metric of a trajectory over its steps, and what happened as a whole."""
    metric = (*found.metrics, "alpha")[0]
    return notebook.render(trajectory_report(found, found.summary, metric, top=MOST_ROWS))


def _band(row: Row) -> Cell:
    word = str(row["alpha_band"] or "")
    return Cell(word, BAND_STYLES.get(word, ""))


class Plots:
    """The pictures of a run, as matplotlib figures that a notebook shows by itself."""

    def __init__(self, run: Run) -> None:
        """Draw nothing yet."""
        self._run = run

    def __repr__(self) -> str:
        return f"Plots({self._run.name!r}): esd, ks (name); heatmap, distribution, depth (column)"

    def esd(self, name: str) -> Drawing:
        """Spectrum of one matrix with the laws beside it.

        Raises:
            OptionError: No such matrix, nothing to draw, or matplotlib is not installed.
        """
        return self._matrix(name, "esd")

    def ks(self, name: str) -> Drawing:
        """Distance and exponent of one matrix over every start of its tail.

        Raises:
            OptionError: No such matrix, nothing to draw, or matplotlib is not installed.
        """
        return self._matrix(name, "ks")

    def heatmap(self, column: str = "alpha") -> Drawing:
        """One column over block and module.

        Raises:
            OptionError: No such column, it is empty, or matplotlib is not installed.
        """
        return _figure(gallery.column_picture(self._run, column, "heatmap"))

    def distribution(self, column: str = "alpha") -> Drawing:
        """One column, module by module.

        Raises:
            OptionError: No such column, it is empty, or matplotlib is not installed.
        """
        return _figure(gallery.column_picture(self._run, column, "distribution"))

    def depth(self, column: str = "alpha") -> Drawing:
        """One column along the blocks, a panel per module.

        Raises:
            OptionError: No such column, it is empty, or matplotlib is not installed.
        """
        return _figure(gallery.column_picture(self._run, column, "depth"))

    def _matrix(self, name: str, kind: str) -> Drawing:
        picture = gallery.matrix_picture(self._run, self._run.row(name), kind)
        if isinstance(picture, Failure):
            raise OptionError(f"{name}: cannot be drawn: {picture}")
        return _figure(picture)


def _figure(picture: Picture) -> Drawing:
    folder.check_installed()
    from weightscope.sinks.figures import figure

    return figure(picture)
