"""A finished analysis: what produced it, one row per matrix, and the spectra on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightscope import plugins
from weightscope.errors import UnknownMatrixError
from weightscope.evaluate import Row
from weightscope.share import Share, parse_share
from weightscope.spectrum import Spectrum
from weightscope.text import count_of, did_you_mean

if TYPE_CHECKING:
    import pandas as pd

    from weightscope.integrations.notebook import Plots


@dataclass(frozen=True, repr=False)
class Run:
    """The result of ``analyze``.

    Attributes:
        provenance: What produced it: tool, settings, source, environment.
        rows: One row per matrix, in natural order of names; every column is present, an undefined
            cell is None.
        summary: Figures about the whole model.
        folder: Where it is saved; None where it is not.
        reused: Whether it was loaded instead of computed.
        details: Figures that are no cells, such as all tail likelihood ratios, by matrix name.
    """

    provenance: Mapping[str, Any]
    rows: tuple[Row, ...]
    summary: Mapping[str, Any]
    folder: Path | None = None
    reused: bool = False
    details: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    load_spectra: Callable[[], Mapping[str, Spectrum]] = field(default=dict)

    def __repr__(self) -> str:
        place = f", folder={str(self.folder)!r}" if self.folder else ""
        return f"Run({self.name!r}, {count_of(len(self.rows), 'matrix')}{place})"

    def _repr_html_(self) -> str:
        """The table of all matrices, as notebooks show it."""
        return str(plugins.load("integrations", "notebook").html_of(self))

    @property
    def plot(self) -> Plots:
        """Pictures: ``run.plot.esd(name)``, ``ks(name)``, ``heatmap(column)``, ...; matplotlib."""
        plots: Plots = plugins.load("integrations", "notebook").Plots(self)
        return plots

    @property
    def name(self) -> str:
        """Name of the model."""
        return str(self.provenance["model"])

    @property
    def share(self) -> Share | None:
        """The part of the model that it is about; None where that is all of it."""
        text = self.provenance["settings"].get("shard")
        return parse_share(text) if text else None

    @property
    def label(self) -> str:
        """Name of the model, what was taken from it, and which part of it."""
        base, merged = self.provenance.get("base"), self.provenance["settings"].get("merged")
        name = f"{self.name} minus {base['model']}" if base and not merged else self.name
        return f"{name}, {self.share.label}" if self.share else name

    def spectra(self) -> Mapping[str, Spectrum]:
        """Full spectrum of every matrix that has one, by name."""
        return self.load_spectra()

    def spectrum(self, name: str) -> Spectrum:
        """Full spectrum of one matrix.

        Args:
            name: As ``row`` takes it.

        Raises:
            UnknownMatrixError: No such matrix, or it has no spectrum; also a KeyError.
        """
        row = self.row(name)
        found = self.load_spectra().get(str(row["name"]))
        if found is None:
            why = row["reason"] or f"its status is {row['status']}"
            raise UnknownMatrixError(f"{row['name']}: has no spectrum: {why}")
        return found

    def row(self, name: str) -> Row:
        """The row of a matrix.

        Args:
            name: Its name, its name without ``.weight``, or an end that only it has.

        Raises:
            UnknownMatrixError: There is none, or several; also a KeyError.
        """
        rows = {str(row["name"]): row for row in self.rows}
        for wanted in (name, f"{name}.weight"):
            if wanted in rows:
                return rows[wanted]
        ends = [found for found in rows if found.removesuffix(".weight").endswith(name)]
        found = ends or [found for found in rows if name in found]
        if len(found) == 1:
            return rows[found[0]]
        if found:
            listed = ", ".join(found[:3])
            raise UnknownMatrixError(f"{name!r} fits {len(found)} matrices: {listed}, ...")
        raise UnknownMatrixError(f"{name!r} is no matrix of this run{did_you_mean(name, rows)}")

    def to_dataframe(self) -> pd.DataFrame:
        """The rows as a tidy DataFrame: counts are nullable integers, undefined cells missing."""
        from weightscope.evaluate import all_columns
        from weightscope.frames import frame

        columns = all_columns()
        return frame([column.name for column in columns], self.rows, columns)
