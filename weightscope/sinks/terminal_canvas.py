"""A chart made of characters: bars in eighths of a line, curves in Braille dots, rules and axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from rich.text import Text

from weightscope.drawings.ticks import Ticks
from weightscope.spectrum import FloatArray

_EIGHTHS = " ▁▂▃▄▅▆▇█"
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""Bits of a Braille pattern, by row and column of its dots."""
GUTTER = 8
"""Characters left of the axis, for its labels."""


class Canvas:
    """A grid of characters with coordinates; what is drawn later covers what is below.

    Attributes:
        columns: Characters across.
        lines: Characters down.
    """

    def __init__(
        self, size: tuple[int, int], x: tuple[float, float], y: tuple[float, float]
    ) -> None:
        """Make an empty canvas.

        Args:
            size: Characters across and down.
            x: Coordinates of the left and right edge.
            y: Coordinates of the bottom and top.
        """
        self.columns, self.lines = size
        self._x, self._y = x, y
        self._cells: dict[tuple[int, int], tuple[str, str]] = {}
        self._filled: dict[tuple[int, int], str] = {}

    def _across(self, x: float, steps: int) -> int:
        """Step of a horizontal position, which may lie outside the canvas."""
        low, high = self._x
        return int(np.floor((x - low) / (high - low) * steps))

    def _down(self, y: float, steps: int) -> int:
        low, high = self._y
        return int(np.floor((high - y) / (high - low) * steps))

    def bars(self, edges: FloatArray, tops: FloatArray, style: str) -> None:
        """A histogram that stands on the lower edge; -inf is an empty bin."""
        middles = self._x[0] + (np.arange(self.columns) + 0.5) / self.columns * (
            self._x[1] - self._x[0]
        )
        for column, middle in enumerate(middles):
            index = int(np.searchsorted(edges, middle, "right")) - 1
            if not 0 <= index < len(tops) or not np.isfinite(tops[index]):
                continue
            share = (tops[index] - self._y[0]) / (self._y[1] - self._y[0])
            eighths = round(float(np.clip(share, 0, 1)) * self.lines * 8)
            for line in range(self.lines):
                height = min(8, eighths - 8 * line)
                if height > 0:
                    place = (self.lines - 1 - line, column)
                    self._cells[place] = (_EIGHTHS[height], style)
                    if height == 8:
                        self._filled[place] = style

    def rule(self, x: float, character: str, style: str) -> None:
        """A vertical line."""
        column = self._across(x, self.columns)
        if 0 <= column < self.columns:
            for line in range(self.lines):
                self._cells[line, column] = (character, style)

    def curve(self, x: FloatArray, y: FloatArray, style: str, dashes: tuple[int, int]) -> None:
        """A line through points that ascend in x.

        Args:
            x: Coordinates.
            y: Coordinates; NaN is a gap.
            style: Colour.
            dashes: Dots drawn and left out, in turn.
        """
        wide, tall = 2 * self.columns, 4 * self.lines
        low, high = self._x
        at = low + (np.arange(wide) + 0.5) / wide * (high - low)
        inside = np.flatnonzero((at >= x[0]) & (at <= x[-1]))
        if not len(inside):  # narrower than a dot
            inside, heights = np.array([self._across(float(x[0]), wide)]), y[:1]
        else:
            heights = np.interp(at[inside], x, y)
        dots: dict[tuple[int, int], int] = {}
        before, count = None, 0
        for column, height in zip(inside, heights, strict=True):
            row = self._down(float(height), tall) if np.isfinite(height) else None
            for dot in _between(before, row):
                count += 1
                if 0 <= dot < tall and 0 <= column < wide and count % sum(dashes) < dashes[0]:
                    place = (dot // 4, int(column) // 2)
                    dots[place] = dots.get(place, 0) | _DOTS[dot % 4][int(column) % 2]
            before = row
        for place, bits in dots.items():
            self._cells[place] = (chr(0x2800 + bits), style)

    def mark(self, x: float, y: float, character: str, style: str) -> None:
        """One character at a point, if that is on the canvas."""
        place = (self._down(y, self.lines), self._across(x, self.columns))
        if 0 <= place[0] < self.lines and 0 <= place[1] < self.columns:
            self._cells[place] = (character, style)

    def rendered(self, across: Ticks, down: Ticks, labelled: bool = True) -> Text:
        """The canvas with its axes.

        Args:
            across: Marks of the lower axis.
            down: Marks of the left axis.
            labelled: Whether the lower axis says its numbers.
        """
        labels = {self._row_of(position): label for position, label in down}
        text = Text()
        for line in range(self.lines):
            edge = "┤" if line in labels else "│"
            text.append(f"{labels.get(line, '')[:GUTTER]:>{GUTTER}}{edge}", "dim")
            for column in range(self.columns):
                place = (line, column)
                character, style = self._cells.get(place, (" ", ""))
                below = self._filled.get(place)
                if below is not None and character != "█":
                    style = f"{style} on {below}"
                text.append(character, style)
            text.append("\n")
        text.append(self._axis(across, labelled), "dim")
        return text

    def _row_of(self, y: float) -> int:
        return min(self.lines - 1, max(0, self._down(y, self.lines)))

    def _axis(self, ticks: Ticks, labelled: bool) -> str:
        places = {
            min(self.columns - 1, max(0, self._across(x, self.columns))): label
            for x, label in ticks
        }
        line = "".join("┬" if column in places else "─" for column in range(self.columns))
        names = [" "] * (self.columns + GUTTER + 12)
        free = 0
        for column, label in places.items():
            start = max(0, column + GUTTER + 1 - len(label) // 2)
            if start >= free:
                names[start : start + len(label)] = label
                free = start + len(label) + 1
        numbers = "".join(names).rstrip() + "\n" if labelled else ""
        return f"{'':>{GUTTER}}└{line}\n{numbers}"


def _between(before: int | None, row: int | None) -> Sequence[int]:
    """Rows of dots that lead from the one before to this one."""
    if row is None:
        return ()
    if before is None or before == row:
        return (row,)
    return range(before + 1, row + 1) if row > before else range(before - 1, row - 1, -1)
