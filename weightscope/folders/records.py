"""Measurements as plain JSON values and back."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from weightscope.laws.power_law import PowerLaw
from weightscope.matrix import Matrix
from weightscope.measurement import EntryStatistics, FarmsFit, Measurement, QuantError, Shuffled
from weightscope.outcome import Failure
from weightscope.spectrum import FloatArray, Spectrum

RECORD_KEYS = frozenset({"name", "stats", "spectrum", "farms", "failure", "shuffled", "quant"})
"""Keys of every record."""


def measurement_record(measured: Measurement) -> dict[str, Any]:
    """Everything about a measurement but its singular values."""
    spectrum = None
    if measured.spectrum is not None:
        spectrum = {
            key: getattr(measured.spectrum, key)
            for key in ("N", "M", "slices", "resolution", "relative_error", "solver")
        }
    return {
        "name": measured.matrix.name,
        "stats": asdict(measured.stats) if measured.stats else None,
        "spectrum": spectrum,
        "farms": _farms_record(measured.farms),
        "failure": asdict(measured.failure) if measured.failure else None,
        "shuffled": _shuffled_record(measured.shuffled),
        "quant": _quant_record(measured.quant),
    }


def _farms_record(farms: FarmsFit | Failure | None) -> dict[str, Any] | None:
    if farms is None:
        return None
    if isinstance(farms, Failure):
        return {"failure": asdict(farms)}
    record = asdict(farms)
    if isinstance(farms.fit, Failure):
        record["fit"] = {"failure": record["fit"]}
    return record


def _shuffled_record(shuffled: Shuffled | Failure | None) -> dict[str, Any] | None:
    if shuffled is None:
        return None
    return {"failure": asdict(shuffled)} if isinstance(shuffled, Failure) else asdict(shuffled)


def _quant_record(
    quant: tuple[QuantError, ...] | Failure | None,
) -> dict[str, Any] | list[dict[str, Any]] | None:
    if quant is None:
        return None
    return {"failure": asdict(quant)} if isinstance(quant, Failure) else list(map(asdict, quant))


def measurement_from(
    record: dict[str, Any], matrix: Matrix, singular_values: FloatArray | None
) -> Measurement:
    """The inverse of ``measurement_record``, given the singular values (descending)."""
    spectrum = None
    if singular_values is not None:
        spectrum = Spectrum(singular_values, **record["spectrum"])
    return Measurement(
        matrix,
        EntryStatistics(**record["stats"]) if record["stats"] else None,
        spectrum,
        _farms_from(record["farms"]),
        Failure(**record["failure"]) if record["failure"] else None,
        _shuffled_from(record["shuffled"]),
        _quant_from(record["quant"]),
    )


def _farms_from(record: dict[str, Any] | None) -> FarmsFit | Failure | None:
    if record is None:
        return None
    if "failure" in record:
        return Failure(**record["failure"])
    fit = record["fit"]
    found = Failure(**fit["failure"]) if "failure" in fit else PowerLaw(**fit)
    return FarmsFit(**{**record, "fit": found})


def _shuffled_from(record: dict[str, Any] | None) -> Shuffled | Failure | None:
    if record is None:
        return None
    if "failure" in record:
        return Failure(**record["failure"])
    drawn = {key: tuple(record.get(key, ())) for key in ("ranks", "singular_values")}
    return Shuffled(**{**record, **drawn})


def _quant_from(
    record: dict[str, Any] | list[dict[str, Any]] | None,
) -> tuple[QuantError, ...] | Failure | None:
    if record is None:
        return None
    if isinstance(record, dict):
        return Failure(**record["failure"])
    return tuple(QuantError(**one) for one in record)
