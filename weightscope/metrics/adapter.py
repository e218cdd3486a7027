"""How much of its rank an update uses: adapters, and differences to a base model."""

from __future__ import annotations

import numpy as np

from weightscope.columns import Column
from weightscope.measurement import Measurement
from weightscope.outcome import Failure, Value, Values
from weightscope.settings import Settings

NEEDS: tuple[str, ...] = ()
SHARES = (90, 95, 99)
_ROUNDING = 1e-12


def _used_rank(percent: int) -> Column:
    return Column(
        f"delta_rank_{percent}",
        "integer",
        f"directions that hold {percent} % of the energy of an update",
        formula=f"smallest k with sum_{{i<=k}} l_i >= {percent / 100} sum l_i; 0 without energy",
        range="0 .. n",
        reading="Far below adapter_rank: the adapter could do with a smaller r. Close to it: the "
        "rank may be what limits the update.",
        caution="Only for updates: adapters, and differences by --base. Energy is not usefulness.",
        noise=f"{percent / 100} r for factors of independent entries and r far below M",
        source="energy share of the leading singular values, as in truncated SVD",
    )


COLUMNS = (
    *map(_used_rank, SHARES),
    Column(
        "delta_top_share",
        "number",
        "share of an update's energy in its top direction",
        formula="l_1 / sum l_i",
        range="(0, 1]",
        reading="Near 1: the update is one direction, whatever its rank.",
        caution="Set by the largest singular value alone; the inverse of stable_rank.",
        noise="about 1 / r for factors of independent entries and r far below M",
        source="inverse of the stable rank: Rudelson & Vershynin, JACM 54 (2007)",
    ),
    Column(
        "adapter_rank",
        "integer",
        "rank of the factors of an adapter",
        formula="r of B (rows, r) and A (r, cols)",
        range="1, 2, ...",
        reading="The most directions that the update can have.",
        caution="What was allowed, not what is used: see delta_rank_99 and rank.",
        noise="r",
        source="Hu et al., LoRA (ICLR 2022)",
    ),
    Column(
        "adapter_scale",
        "number",
        "factor on the product of the factors",
        formula="alpha / r, or alpha / sqrt r for rank-stabilised LoRA",
        range="(-inf, inf)",
        reading="It is part of every figure of the row.",
        caution="1 where the files hold no alpha; a program may apply another strength on top.",
        noise="whatever was set",
        source="Hu et al., LoRA (ICLR 2022); Kalajdzievski, rsLoRA, arXiv 2312.03732",
    ),
)


def evaluate(measured: Measurement, settings: Settings, known: Values) -> Values:  # noqa: ARG001
    """Used ranks of updates; nothing for the weights of a model as they are."""
    matrix, spectrum = measured.matrix, measured.spectrum
    product = matrix.product
    values: dict[str, Value | Failure] = {}
    if product is not None:
        values |= {"adapter_rank": product.rank, "adapter_scale": product.scale}
    if spectrum is None or matrix.merged or (product is None and matrix.base is None):
        return values
    if not spectrum.largest:
        return values | {f"delta_rank_{percent}": 0 for percent in SHARES}
    energy = np.cumsum(spectrum.relative_evals)
    for percent in SHARES:
        wanted = percent / 100 * float(energy[-1]) * (1 - _ROUNDING)
        values[f"delta_rank_{percent}"] = int(np.searchsorted(energy, wanted)) + 1
    return values | {"delta_top_share": 1 / float(energy[-1])}
