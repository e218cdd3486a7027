"""Codes on a grid: what every scheme's bytes become before they become weights.

A weight is ``scale * (value - zero)``, where the value is the code itself or its entry in a table,
and scale and zero hold for a block of entries. The distance between neighbouring grid values tells
how far rounding to the grid may have moved a weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt
from typing import TYPE_CHECKING, NamedTuple, Protocol

from weightscope.encoded import DecodingError
from weightscope.text import shortened

if TYPE_CHECKING:
    import torch

_AT_ONCE = 1 << 22  # entries decoded together, so that intermediates stay small


class Layout(Protocol):
    """Which entries share one scale."""

    def spread(self, values: torch.Tensor, rows: slice, cols: int) -> torch.Tensor:
        """One value per entry for some rows: (rows, cols), or one column for all of them."""
        ...


@dataclass(frozen=True)
class Blocks:
    """Rectangular blocks, ragged at the right and lower edges.

    Attributes:
        height: Rows of a block.
        width: Columns of a block.
    """

    height: int
    width: int

    def spread(self, values: torch.Tensor, rows: slice, cols: int) -> torch.Tensor:
        """Values are (blocks down, blocks across)."""
        import torch

        index = torch.arange(rows.start, rows.stop, device=values.device) // self.height
        near = values[index]
        if near.shape[1] == 1 or self.width == 1:
            return near
        wide = near[:, :, None].expand(-1, -1, self.width)
        return wide.reshape(near.shape[0], -1)[:, :cols]


@dataclass(frozen=True)
class Columns:
    """One group per column, in any order (activation order).

    Attributes:
        group: (cols,) integers: the group of every column.
    """

    group: torch.Tensor

    def spread(self, values: torch.Tensor, rows: slice, cols: int) -> torch.Tensor:
        """Values are (rows, groups)."""
        return values[rows].index_select(1, self.group[:cols])


@dataclass(frozen=True)
class Runs:
    """Runs of the entries in reading order, whatever the rows.

    Attributes:
        length: Entries of a run.
    """

    length: int

    def spread(self, values: torch.Tensor, rows: slice, cols: int) -> torch.Tensor:
        """Values are (runs,)."""
        index = _entries(values, rows, cols).div_(self.length, rounding_mode="floor")
        return values.flatten()[index].reshape(-1, cols)


@dataclass(frozen=True)
class Combs:
    """Every so-manyth entry in reading order.

    Attributes:
        count: Number of combs, the distance between two entries of one.
    """

    count: int

    def spread(self, values: torch.Tensor, rows: slice, cols: int) -> torch.Tensor:
        """Values are (combs,)."""
        index = _entries(values, rows, cols).remainder_(self.count)
        return values.flatten()[index].reshape(-1, cols)


def _entries(values: torch.Tensor, rows: slice, cols: int) -> torch.Tensor:
    import torch

    return torch.arange(rows.start * cols, rows.stop * cols, device=values.device)


@dataclass(frozen=True)
class Grid:
    """A quantised matrix.

    Attributes:
        codes: (rows, cols) integers of at most 8 bits.
        scale: float32, laid out as ``layout`` says.
        layout: Which entries share a scale.
        zero: Like ``scale``; None where the grid is centred on zero.
        table: (codes,) float32: value of each code; None where the code is the value.
    """

    codes: torch.Tensor
    scale: torch.Tensor
    layout: Layout
    zero: torch.Tensor | None = None
    table: torch.Tensor | None = None


class Decoded(NamedTuple):
    """A matrix and the noise that rounding to its grid has left in it.

    Attributes:
        weights: (rows, cols) float32.
        row_sums: (rows,) float64: sum over each row of the variance of the rounding errors.
        col_sums: (cols,) float64: the same over each column.
    """

    weights: torch.Tensor
    row_sums: torch.Tensor
    col_sums: torch.Tensor

    @property
    def sv_floor(self) -> float:
        """Bound of the spectral norm of independent rounding errors.

        sqrt(largest row sum) + sqrt(largest column sum) (Bandeira & van Handel 2016, up to lower
        order).
        """
        if not self.weights.numel():
            return 0.0
        return sqrt(float(self.row_sums.max())) + sqrt(float(self.col_sums.max()))


def decode(grid: Grid) -> Decoded:
    """Weights and noise of a quantised matrix, on the device of its codes."""
    import torch

    shape, device = grid.codes.shape, grid.codes.device
    weights = torch.empty(shape, dtype=torch.float32, device=device)
    row_sums = torch.zeros(shape[0], dtype=torch.float64, device=device)
    col_sums = torch.zeros(shape[1], dtype=torch.float64, device=device)
    peak = _peak(grid)
    for rows, codes, scale, gaps in _chunks(grid):
        values = codes.to(torch.float32) if grid.table is None else _look_up(grid.table, codes)
        if grid.zero is not None:
            values -= grid.layout.spread(grid.zero, rows, shape[1])
        torch.mul(values, scale, out=weights[rows])
        # over the largest scale, so that no square leaves the range of float32
        variance = (scale / peak if gaps is None else gaps * (scale / peak)).square_()
        variance = variance.expand(codes.shape)
        row_sums[rows] = variance.sum(1).double()
        col_sums += variance.sum(0).double()
    unit = peak * peak / 12
    return Decoded(weights, row_sums * unit, col_sums * unit)


def deviations(grid: Grid) -> torch.Tensor:
    """Standard deviation of the rounding error of every entry: (rows, cols) float32.

    For parts of a matrix, whose row and column sums are not those of the whole.
    """
    import torch

    found = torch.empty(grid.codes.shape, dtype=torch.float32, device=grid.codes.device)
    for rows, _, scale, gaps in _chunks(grid):
        found[rows] = (scale if gaps is None else gaps * scale).abs() / sqrt(12)
    return found


def noise_floor(deviations: torch.Tensor) -> float:
    """``Decoded.sv_floor`` of a matrix of standard deviations, such as a part of a whole one."""
    if not deviations.numel():
        return 0.0
    peak = float(deviations.max()) or 1.0
    variance = (deviations / peak).square_()
    return peak * (sqrt(float(variance.sum(1).max())) + sqrt(float(variance.sum(0).max())))


def _chunks(
    grid: Grid,
) -> Iterator[tuple[slice, torch.Tensor, torch.Tensor, torch.Tensor | None]]:
    """Rows at a time: which, codes, scales, and distances of neighbouring values or None for 1."""
    gaps = None if grid.table is None else _gaps(grid.table)
    rows, cols = grid.codes.shape
    step = max(1, _AT_ONCE // max(cols, 1))
    for start in range(0, rows, step):
        these = slice(start, min(start + step, rows))
        codes = grid.codes[these]
        scale = grid.layout.spread(grid.scale, these, cols)
        yield these, codes, scale, None if gaps is None else _look_up(gaps, codes)


def _look_up(table: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    import torch

    return table.index_select(0, codes.flatten().to(torch.int32)).view(codes.shape)


def _peak(grid: Grid) -> float:
    """Largest magnitude among the scales; 1 where all are 0."""
    return float(grid.scale.abs().max()) or 1.0


def _gaps(table: torch.Tensor) -> torch.Tensor:
    """Larger distance of each value to a neighbour: for floats, their unit in the last place.

    Rounding errors are taken as uniform over it.
    """
    import torch

    values = table
    finite: torch.Tensor = torch.unique(values[torch.isfinite(values)])
    gaps = torch.zeros_like(values)
    if len(finite) < 2:
        return gaps
    steps = finite.diff()
    larger = torch.cat((steps[:1], torch.maximum(steps[:-1], steps[1:]), steps[-1:]))
    place = torch.searchsorted(finite, values).clamp_(max=len(finite) - 1)
    return torch.where(torch.isfinite(values), larger[place], gaps)


def finite_scales(scale: torch.Tensor, name: str) -> torch.Tensor:
    """Scales as float32; bytes are powers of two, stored as exponents (OCP MX, E8M0).

    Raises:
        DecodingError: There are none, or one is NaN or infinite.
    """
    import torch

    if scale.dtype in {torch.uint8, torch.float8_e8m0fnu}:
        powers = (torch.arange(256, dtype=torch.float64) - 127).exp2().to(torch.float32)
        powers[255] = float("nan")
        found = _look_up(powers.to(scale.device), scale.view(torch.uint8))
    else:
        found = scale.to(torch.float32)
    if not found.numel():
        raise DecodingError(f"tensor {shortened(name)} has no scales")
    if not bool(torch.isfinite(found).all()):
        raise DecodingError(f"tensor {shortened(name)} has scales that are NaN or infinite")
    return found


def group_index(order: torch.Tensor, groups: int, name: str) -> torch.Tensor:
    """The group of every column, checked.

    Raises:
        DecodingError: A column is in a group that has no scale.
    """
    import torch

    index = order.to(torch.int64)
    if index.numel() and (int(index.min()) < 0 or int(index.max()) >= groups):
        raise DecodingError(f"tensor {shortened(name)} has groups beyond the {groups} with scales")
    return index
