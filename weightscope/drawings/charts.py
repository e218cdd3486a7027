"""Charts as data: what is drawn of rows, for any renderer, and nothing of how it looks.

Three shapes serve every metric: a heat map over block and module, the distribution per module, and
small multiples of lines, one panel per module. The spectrum of a single matrix is in ``esd``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from weightscope.columns import Column

Scale = Literal["linear", "log", "diverging"]
"""How values map to a length or a colour; ``diverging`` has its middle at zero."""
LOG_FROM = 10.0
"""Positive values that span a larger ratio are told apart on a logarithmic scale only."""
Values = tuple[float | None, ...]


@dataclass(frozen=True)
class Grid:
    """Where each row of a table lies in the network.

    Attributes:
        blocks: Block indices, ascending; None, for what lies outside the blocks, comes last.
        modules: Modules, by role and then by name.
        labels: The same without what leads to their block, each still unique.
        cells: For each module and block the indices of its rows: none, one, or its experts.
    """

    blocks: tuple[int | None, ...]
    modules: tuple[str, ...]
    labels: tuple[str, ...]
    cells: tuple[tuple[tuple[int, ...], ...], ...]


@dataclass(frozen=True)
class HeatMap:
    """One column over block and module.

    Attributes:
        column: What is shown.
        grid: Where its rows lie.
        values: For each module and block the median of its rows; None where none has a value.
        scale: How values are told apart.
    """

    column: Column
    grid: Grid
    values: tuple[Values, ...]
    scale: Scale


@dataclass(frozen=True)
class Group:
    """The values of one module.

    Attributes:
        module: Module.
        label: Its short name.
        names: Matrices that have a value, in the order of the rows.
        values: Their values.
        quartiles: Minimum, lower quartile, median, upper quartile, maximum.
    """

    module: str
    label: str
    names: tuple[str, ...]
    values: tuple[float, ...]
    quartiles: tuple[float, float, float, float, float]


@dataclass(frozen=True)
class Distribution:
    """One column, module by module; modules without a value are left out.

    Attributes:
        column: What is shown.
        groups: The modules.
        scale: Of its values.
        marks: Values that deserve a line, and what they stand for.
    """

    column: Column
    groups: tuple[Group, ...]
    scale: Scale
    marks: tuple[tuple[float, str], ...] = ()


@dataclass(frozen=True)
class Line:
    """Values over block or step.

    Attributes:
        label: What the line stands for.
        x: Block indices or training steps, ascending.
        y: Values; None where there is a gap.
    """

    label: str
    x: tuple[int, ...]
    y: Values


@dataclass(frozen=True)
class Noise:
    """What Gaussian noise of the same shapes gives at each point of a panel.

    Attributes:
        x: Block indices or training steps, ascending.
        low: Lower end of the 95 % range, or the typical value where only that is known.
        high: Its upper end.
    """

    x: tuple[int, ...]
    low: Values
    high: Values


@dataclass(frozen=True)
class Panel:
    """The lines of one module and, where it is known, the range of noise."""

    module: str
    label: str
    lines: tuple[Line, ...]
    noise: Noise | None = None


@dataclass(frozen=True)
class Panels:
    """Small multiples with common axes.

    Attributes:
        column: What is shown.
        axis: What runs along x.
        panels: One per module that has a value.
        scale: How values are told apart.
        marks: Values that deserve a line, and what they stand for.
    """

    column: Column
    axis: Literal["block", "step"]
    panels: tuple[Panel, ...]
    scale: Scale
    marks: tuple[tuple[float, str], ...] = ()


def scale_of(values: Iterable[float | None]) -> Scale:
    """The scale on which these values can be told apart.

    Around zero where there are both signs, logarithmic where all are positive and the largest
    is more than ten times the smallest, else linear.
    """
    known = [value for value in values if value is not None]
    if not known:
        return "linear"
    low, high = min(known), max(known)
    if low < 0 < high:
        return "diverging"
    return "log" if low > 0 and high > LOG_FROM * low else "linear"
