"""A checkpoint of factors on disk: its files, and the record of how it came about.

Every planned tensor ``X.weight`` is stored as ``X.left.weight`` and ``X.right.weight``, whose
product it is; every other tensor keeps its name and its bytes. The files are called
``factorised-*``, so that a loader that knows nothing of factors finds no weights instead of filling
the gaps with random ones.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from weightscope.rank_plan import PlannedMatrix, RankPlan
from weightscope.version import __version__

RECORD = "compression.json"
INDEX = "factorised.safetensors.index.json"
COMPRESSION_VERSION = 1
BESIDE = (
    "config.json", "generation_config.json", "tokenizer*", "vocab*", "merges.txt",
    "added_tokens.json", "special_tokens_map.json", "chat_template*", "*.model", "*.tiktoken",
    "preprocessor_config.json", "processor_config.json", "LICENSE*", "NOTICE*",
)  # fmt: skip
"""What is copied from beside the weights."""


@dataclass(frozen=True)
class Compressed:
    """One matrix that became two factors.

    Attributes:
        planned: What the plan said about it.
        relative_error: What the truncation drops, relative to the matrix in the Frobenius norm.
        stored_error: The same for the factors as stored, in the matrix's data type.
    """

    planned: PlannedMatrix
    relative_error: float
    stored_error: float

    def record(self) -> dict[str, Any]:
        """Plain values: what was planned, and what became of it."""
        p = self.planned
        return {
            "name": p.name,
            "rows": p.rows,
            "cols": p.cols,
            "dtype": p.dtype,
            "rank": p.rank,
            "parameters": p.parameters,
            "new_parameters": p.planned_parameters,
            "planned_error": p.relative_error,
            "relative_error": self.relative_error,
            "stored_error": self.stored_error,
        }


def compression_record(plan: RankPlan, done: Sequence[Compressed]) -> dict[str, Any]:
    """What ``compression.json`` says: what was compressed, how, and what became of it."""
    return {
        "weightscope_compression": COMPRESSION_VERSION,
        "weightscope": __version__,
        "source": plan.source,
        "plan": {"made_by": plan.made_by, "criterion": plan.criterion, "budget": plan.budget},
        "matrices": [each.record() for each in done],
    }


def why_not_ours(folder: Path) -> str:
    """What makes a folder one that no compression wrote; empty where nothing does."""
    if not folder.is_dir():
        return "is a file"
    names = [entry.name for entry in folder.iterdir()]
    ours = (RECORD, INDEX, "factorised-*.safetensors", *BESIDE)
    foreign = sorted(n for n in names if not any(fnmatch.fnmatchcase(n, p) for p in ours))
    if foreign:
        return f"holds files that no compression wrote ({foreign[0]!r})"
    return "" if RECORD in names else f"has no {RECORD}, so it is no compressed checkpoint"
