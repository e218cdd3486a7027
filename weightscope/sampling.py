"""A quick look at something huge: a few matrices of every kind, drawn at random."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from hashlib import sha256

import numpy as np

from weightscope.errors import OptionError
from weightscope.matrix import Matrix


def sample(matrices: Sequence[Matrix], count: int, seed: int) -> tuple[Matrix, ...]:
    """Draw so many matrices of every module type, all of those of which there are fewer.

    Matrices are of one type where their names differ in block or expert index only. What is drawn
    of a type depends on the seed, the type and the names of its matrices, not on what else the
    model holds; a larger count adds to a smaller one.

    Args:
        matrices: In any order, names unique.
        count: Matrices per type, at least 1.
        seed: Seed of the draw.

    Returns:
        Those drawn, in the given order.

    Raises:
        OptionError: The count is not positive.
    """
    if count < 1:
        raise OptionError(f"--sample {count}: give a positive number of matrices per module type")
    names: dict[str, list[str]] = defaultdict(list)
    for matrix in matrices:
        names[matrix.module].append(matrix.name)
    drawn = {name for module, found in names.items() for name in _draw(module, found, count, seed)}
    return tuple(matrix for matrix in matrices if matrix.name in drawn)


def _draw(module: str, names: list[str], count: int, seed: int) -> list[str]:
    text = f"sample:{seed}:{module}".encode("utf-8", "surrogatepass")
    generator = np.random.default_rng(int.from_bytes(sha256(text).digest()[:16]))
    ordered = sorted(names)
    return [ordered[i] for i in generator.permutation(len(ordered))[:count]]


def statement(total: int, drawn: int, count: int, seed: int) -> str:
    """What every output of a sampled run has to say."""
    return (
        f"A sample: at most {count} of every module type, {drawn} of {total} matrices, drawn with "
        f"seed {seed}. Figures about the whole model are those of the sample."
    )
