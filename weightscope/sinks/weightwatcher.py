"""WeightWatcher's column names and units, for spreadsheets and scripts that expect them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import isfinite, log10

from weightscope.columns import Column
from weightscope.compat import conventions
from weightscope.evaluate import Row
from weightscope.outcome import Value

Converter = Callable[[Row, float], Value]
"""From a row, and the factor that its weights still lack, to a cell."""


def _power(column: str, power: int, of_weights: int = 1) -> Converter:
    """A column to a power; ``of_weights`` is the power of the weights that the column holds."""

    def convert(row: Row, factor: float) -> Value:
        value = row[column]
        if not isinstance(value, int | float):
            return None
        return float(value) ** power * factor**of_weights

    return convert


def _logarithm(column: str, times: str | None = None) -> Converter:
    """A log10 of squared weights, times another column where given."""

    def convert(row: Row, factor: float) -> Value:
        value, multiple = row[column], 1 if times is None else row[times]
        if not isinstance(value, int | float) or not isinstance(multiple, int | float):
            return None
        return value + 2 * multiple * log10(factor)

    return convert


def _same(column: str) -> Converter:
    return lambda row, _: row[column]


def _of_row(convert: Callable[[Row], Value]) -> Converter:
    """A cell that does not hang on the scale of the weights."""
    return lambda row, _: convert(row)


def _n_evals(row: Row) -> int:
    return int(row["M"] or 0) * int(row["slices"] or 1)


def _smallest(row: Row, factor: float) -> Value:
    norm, condition = row["spectral_norm"], row["condition_number"]
    defined = isinstance(norm, float) and isinstance(condition, float)
    return norm / condition * factor if defined else None  # type: ignore[operator]


def _rescaled_cut(row: Row) -> Value:
    cut, norm = row["erg_xmin"], row["frobenius_norm"]
    if not isinstance(cut, float) or not isinstance(norm, float) or not norm:
        return None
    value = cut / norm / norm * _n_evals(row)  # the square of a tiny norm would be zero
    return value if isfinite(value) else None


def _rank_loss(row: Row) -> Value:
    return _n_evals(row) - row["rank"] if isinstance(row["rank"], int) else None


def _layer_type(row: Row) -> str:
    if row["role"] in {"embedding", "position"}:
        return "embedding"
    return "conv2d" if row["role"] == "conv" else "dense"


_WARNINGS = {"very-heavy": "over-trained", "weak": "under-trained"}

COLUMNS: dict[str, tuple[str, Converter]] = {
    "D": ("alpha_ks", _same("alpha_ks")),
    "ERG_gap": ("erg_gap", _same("erg_gap")),
    "M": ("M", _same("M")),
    "N": ("N", _same("N")),
    "Q": ("Q", _same("Q")),
    "alpha": ("alpha", _same("alpha")),
    "alpha_weighted": ("alpha_hat", _logarithm("alpha_hat", "alpha")),
    "detX_num": ("erg_n_tail", _same("erg_n_tail")),
    "detX_val": ("erg_xmin", _power("erg_xmin", 1, 2)),
    "detX_val_unrescaled": ("erg_xmin, over the mean eigenvalue", _of_row(_rescaled_cut)),
    "entropy": ("entropy", _same("entropy")),
    "has_esd": (
        "whether there is a spectrum",
        _of_row(lambda row: str(row["spectral_norm"] is not None)),
    ),
    "lambda_max": ("spectral_norm squared", _power("spectral_norm", 2, 2)),
    "layer_type": ("role", _of_row(_layer_type)),
    "log_alpha_norm": ("log_alpha_norm", _logarithm("log_alpha_norm", "alpha")),
    "log_norm": ("log_norm", _logarithm("log_norm")),
    "log_spectral_norm": ("log_spectral_norm", _logarithm("log_spectral_norm")),
    "longname": (
        "name without .weight",
        _of_row(lambda row: str(row["name"]).removesuffix(".weight")),
    ),
    "matrix_rank": ("rank", _same("rank")),
    "norm": ("frobenius_norm squared", _power("frobenius_norm", 2, 2)),
    "num_ERG_spikes": ("erg_n_tail", _same("erg_n_tail")),
    "num_evals": ("M times slices", _of_row(_n_evals)),
    "num_pl_spikes": ("alpha_n_tail", _same("alpha_n_tail")),
    "rank_loss": ("num_evals minus rank", _of_row(_rank_loss)),
    "rf": ("slices", _same("slices")),
    "sigma": ("alpha_stderr", _same("alpha_stderr")),
    "spectral_norm": ("spectral_norm squared", _power("spectral_norm", 2, 2)),
    "stable_rank": ("stable_rank", _same("stable_rank")),
    "status": (
        "success where alpha is defined",
        _of_row(lambda row: "success" if row["alpha"] is not None else "failed"),
    ),
    "sv_max": ("spectral_norm", _power("spectral_norm", 1)),
    "sv_min": ("spectral_norm over condition_number", _smallest),
    "warning": ("alpha_band", _of_row(lambda row: _WARNINGS.get(str(row["alpha_band"])))),
    "xmax": ("spectral_norm squared", _power("spectral_norm", 2, 2)),
    "xmin": ("alpha_xmin", _power("alpha_xmin", 1, 2)),
}
"""WeightWatcher's name to (ours, conversion), in WeightWatcher's order after layer_id and name."""

NAMES = ("layer_id", "name", *COLUMNS)


def glossary() -> tuple[Column, ...]:
    """What WeightWatcher's names stand for; of what type they are, their cells tell."""
    return tuple(
        Column(name, "number", f"weightscope: {ours}") for name, (ours, _) in COLUMNS.items()
    )


def rows(run_rows: Iterable[Row], compat: str | None = None) -> list[Row]:
    """Rows with WeightWatcher's names, its squared norms, its scale of convolutions, its words.

    Args:
        run_rows: Rows of a run.
        compat: Peer whose conventions the run followed; WeightWatcher's include the scale.
    """
    factor = conventions("weightwatcher").conv_scale / conventions(compat).conv_scale
    return [
        {
            "layer_id": index,
            "name": str(row["name"]).removesuffix(".weight"),
            **{
                name: convert(row, factor if row["role"] == "conv" else 1.0)
                for name, (_, convert) in COLUMNS.items()
            },
        }
        for index, row in enumerate(run_rows)
    ]
