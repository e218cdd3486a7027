"""A result field that knows its type, unit, format, meaning and how far to believe it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from weightscope.tensor import DTYPES

Kind = Literal["text", "integer", "number"]


@dataclass(frozen=True)
class Column:
    """One column of the result table, and its entry in ``weightscope explain``.

    Attributes:
        name: Column name, stable across versions.
        kind: Type of its cells.
        meaning: One line, for tables of columns.
        formula: How it is computed.
        unit: ``1`` for a pure number, ``W`` or ``W^2`` for what scales with the weights.
        range: Values it can take.
        reading: How to read it.
        caution: When not to believe it.
        noise: What it is for a matrix of independent Gaussian entries.
        source: Paper, equation or section.
        published: Values that others printed for public models.
    """

    name: str
    kind: Kind
    meaning: str
    formula: str = ""
    unit: str = "1"
    range: str = ""
    reading: str = ""
    caution: str = ""
    noise: str = ""
    source: str = ""
    published: str = ""

    @property
    def words(self) -> dict[str, str]:
        """The words that its cells hold and what each means; of a column of text."""
        if self.kind != "text":
            return {}
        lines = [line.partition(": ") for line in self.reading.split("\n")]
        return {word: meaning for word, _, meaning in lines if meaning}


_SUFFIXES = ("_delta", "_a", "_b")


def base_of(name: str, known: Mapping[str, Column]) -> tuple[str, str]:
    """Column that a column of a comparison comes from, and its suffix."""
    letter = name.rpartition("_")[2]
    for suffix in ("", f"_delta_{letter}", *_SUFFIXES, f"_{letter}"):
        if name.endswith(suffix) and name.removesuffix(suffix) in known:
            return name.removesuffix(suffix), suffix
    return name, ""


STATUSES = {
    "ok": "every figure that the matrix has is there",
    "empty": "the tensor has no entries",
    "nonfinite": "it holds NaN or infinite entries; nothing else is computed",
    "zero": "all entries are zero",
    "constant": "all singular values are equal, up to rounding; a power law is undefined",
    "too_few": "fewer than 8 eigenvalues to fit",
    "rank_one": "one direction only; a power law is undefined",
    "fused": "several logical matrices in one tensor that cannot be told apart; analysed whole",
    "unsupported": "quantised or complex, so that its bytes are no weights as they are; or an "
    "adapter that needs --base",
    "failed": "no solver converged, or there was no memory",
    "skipped": "no weights (a mask, the scales of a quantised tensor, a tied copy), or none of "
    "that name in the base",
}
"""Every status, the first that applies after ``ok``, and what it means."""
WARNINGS = {
    "tail_small": "fewer than 50 eigenvalues in the power-law tail",
    "tail_short": "the power-law tail spans less than half a decade of eigenvalues",
    "outside_interval": "the bootstrap interval leaves alpha out: two tails compete",
    "farms_tail_small": "fewer than 50 pooled eigenvalues in the FARMS tail",
    "rank_deficient": "numerical rank below 0.9 of full; tail and ERG cut are sought among the "
    "rank largest",
    "below_floor": "the smallest singular value drowns in the rounding of the stored dtype",
    "padded_rows": "rows of the vocabulary that stand for no token: beyond that of the "
    "configuration, or equal to each other at the end",
    "near_tie": "another xmin fits equally well, to 1e-7 in the KS distance",
    "slow_solver": "the eigenvalues of the Gram matrix failed or did not resolve the smallest "
    "singular "
    "value; a direct SVD was used",
}
"""Every warning code and what it means."""
ROLES = {
    "attn_q": "projection to the queries of attention",
    "attn_k": "projection to the keys of attention",
    "attn_v": "projection to the values of attention",
    "attn_o": "projection of what attention puts out",
    "attn_kv": "keys and values in one tensor",
    "attn_qkv": "queries, keys and values in one tensor",
    "mlp_gate": "gate of a gated MLP",
    "mlp_up": "first matrix of an MLP",
    "mlp_down": "last matrix of an MLP",
    "mlp_gate_up": "gate and first matrix of an MLP in one tensor",
    "expert_gate": "gate of an expert of a mixture",
    "expert_up": "first matrix of an expert",
    "expert_down": "last matrix of an expert",
    "expert_gate_up": "gate and first matrix of an expert in one tensor",
    "router": "what chooses the experts of a mixture; too few directions to fit a tail",
    "embedding": "a table with a row per token",
    "position": "a table with a row per position",
    "lm_head": "projection to the tokens of the vocabulary, or to the classes of a task",
    "conv": "kernel of a convolution",
    "norm": "scales of a normalisation, stored as a matrix",
    "other": "what no known name tells; analysed all the same",
}
"""Every role, in the order of tables, and what such a matrix does."""
_KINDS = {
    "float": "floating point",
    "encoded": "codes that mean nothing without their scales",
    "integer": "integers",
    "complex": "complex numbers",
}

CODES = {
    **{code: f"Status: {meaning}." for code, meaning in STATUSES.items()},
    **{code: f"Warning: {meaning}." for code, meaning in WARNINGS.items()},
}
"""Every status and warning code, and a sentence about it."""

IDENTITY: tuple[Column, ...] = (
    Column("name", "text", "tensor name as stored, [e] for an expert of a stack, [q] for a part"),
    Column("block", "integer", "first numeric component of the name (the layer index)"),
    Column("module", "text", "name without .weight, # for the block and expert index"),
    Column(
        "role",
        "text",
        "what the matrix does, such as attn_q, mlp_up, embedding, conv",
        reading="\n".join(f"{role}: {meaning}" for role, meaning in ROLES.items()),
    ),
    Column("expert", "integer", "index of the expert, for mixtures of experts"),
    Column("rows", "integer", "rows as stored (of one slice, for a convolution)"),
    Column("cols", "integer", "columns as stored (of one slice, for a convolution)"),
    Column("N", "integer", "longer side"),
    Column("M", "integer", "shorter side"),
    Column("Q", "number", "aspect ratio N / M", range="[1, inf)"),
    Column("slices", "integer", "matrices pooled into one spectrum (kernel positions), else 1"),
    Column(
        "dtype",
        "text",
        "stored data type; of a quantised weight that of its codes",
        reading="\n".join(f"{d.code}: {d.bits} bits, {_KINDS[d.kind]}" for d in DTYPES.values()),
    ),
    Column("params", "integer", "number of entries"),
    Column(
        "status",
        "text",
        "ok, or the first that applies of " + " ".join(code for code in STATUSES if code != "ok"),
        reading="\n".join(f"{code}: {meaning}" for code, meaning in STATUSES.items()),
    ),
    Column(
        "warnings",
        "text",
        "codes, separated by ';', for figures to read with care",
        reading="\n".join(f"{code}: {meaning}" for code, meaning in WARNINGS.items()),
    ),
    Column("reason", "text", "a sentence: why cells of this row are empty"),
)
"""The columns that identify a row; the metric families append theirs."""
