"""Which matrices of a run may become two factors, and why the others stay whole."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from weightscope.errors import PlanError
from weightscope.evaluate import Row, in_welore_fit
from weightscope.laws.noise.expected import Shape, expected_evals
from weightscope.run import Run
from weightscope.spectrum import Spectrum
from weightscope.tensor import DTYPES

_OUTSIDE = {
    "embedding": "it is an embedding, not a linear layer",
    "position": "it is a table of positions, not a linear layer",
    "lm_head": "it is an output head, which WeLore leaves whole",
    "norm": "it belongs to a normalisation",
    "router": "it is a router: few rows that choose experts",
    "conv": "it is a convolution",
}


@dataclass(frozen=True)
class Candidate:
    """A matrix that may be factorised.

    Attributes:
        name: Name of its tensor.
        rows: Rows as stored.
        cols: Columns as stored.
        dtype: Stored data type.
        numerical_rank: As measured.
        spectrum: Its singular values.
    """

    name: str
    rows: int
    cols: int
    dtype: str
    numerical_rank: int
    spectrum: Spectrum

    @property
    def count(self) -> int:
        """Number of singular values."""
        return len(self.spectrum.singular_values)

    def as_noise(self) -> Candidate:
        """Gaussian noise of the same shape, its singular values where they lie on average."""
        shape = Shape(self.spectrum.N, self.spectrum.M)
        values = np.sqrt(expected_evals(shape))
        return replace(self, numerical_rank=self.count, spectrum=Spectrum(values, shape.N, shape.M))


def candidates(run: Run) -> tuple[list[Candidate], dict[str, str]]:
    """The matrices that may be factorised, in the run's order, and why the others may not.

    Raises:
        PlanError: There is none, or the run is of a difference, a part or a sample.
    """
    _check(run)
    spectra = run.spectra()
    members = set(in_welore_fit(run.rows))
    found: list[Candidate] = []
    kept: dict[str, str] = {}
    for row in run.rows:
        name = str(row["name"])
        spectrum = spectra.get(name)
        why = why_whole(row, spectrum)
        if not why and name not in members:
            why = "it lies outside the blocks, on which WeLore is fitted"
        if why or spectrum is None:
            kept[name] = why
            continue
        rank = row["rank"]
        found.append(
            Candidate(
                name,
                int(row["rows"] or 0),
                int(row["cols"] or 0),
                str(row["dtype"]),
                rank if isinstance(rank, int) else -1,
                spectrum,
            )
        )
    if not found:
        told = [f"{name} stays whole: {reason}" for name, reason in kept.items()]
        raise PlanError(f"{run.name}: nothing to factorise; {(*told, 'the run is empty')[0]}")
    return found, kept


def why_whole(row: Row, spectrum: Spectrum | None) -> str:
    """Why a matrix cannot become two factors; empty where it can."""
    name, role = str(row["name"]), str(row["role"])
    if role in _OUTSIDE:
        return _OUTSIDE[role]
    if row["encoding"]:
        return f"it is quantised ({row['encoding']}), and its factors would not be"
    if row["adapter_rank"] is not None:
        return "it is the update of an adapter, which is stored as factors already"
    if spectrum is None or not spectrum.largest:
        return f"it has no spectrum (status {row['status']})"
    if row["expert"] is not None:
        return "it is an expert of a mixture, which is no linear layer of its own"
    if name.endswith("]"):
        return "it is a part of a fused tensor; analyze with --fused to plan the whole one"
    if DTYPES[str(row["dtype"])].kind != "float" or row["slices"] != 1:
        return "it is no plain matrix of floating-point numbers"
    if not name.endswith(".weight"):
        return "by its name it is not the weight of a linear layer"
    return ""


def _check(run: Run) -> None:
    if run.provenance["base"] is not None:
        raise PlanError(
            f"{run.name}: the run is of a difference to a base model; ranks are for the weights "
            "of one model, so analyze it without --base"
        )
    if run.provenance.get("whole"):
        raise PlanError(
            f"{run.name}: the run is of a part of the model; join the parts with weightscope merge"
        )
    if run.summary.get("undrawn"):
        raise PlanError(f"{run.name}: the run is a sample; analyze the whole model to plan ranks")
