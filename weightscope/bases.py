"""What is analysed of a model beside its base: differences, updates, or both together."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

from weightscope.alignment import plain_name
from weightscope.checkpoint import Checkpoint
from weightscope.errors import CheckpointError, OptionError
from weightscope.layouts.adapters import DERIVED, underscored
from weightscope.matrix import Exclusion, Matrix
from weightscope.select import Selection, natural_key, select_for
from weightscope.settings import Settings

_COMPONENT = re.compile(r"^(unet|transformer|te\d?|text_encoder(_\d)?)\.")


def selection_of(
    checkpoint: Checkpoint, base: Checkpoint | None, settings: Settings, merged: bool = False
) -> Selection:
    """What an analysis takes of a model, beside its base where one is named.

    Raises:
        CheckpointError: As ``select_for`` and ``select_against``.
        OptionError: Likewise.
    """
    if base is None:
        return select_for(checkpoint, settings)
    return select_against(checkpoint, base, settings, merged)


def select_against(
    checkpoint: Checkpoint, base: Checkpoint, settings: Settings, merged: bool = False
) -> Selection:
    """The matrices of a model, each with the one of the base that it belongs to.

    Weights become differences ``W - W_base``. Updates of an adapter stay what they are, but for
    kinds that depend on the base; with ``merged`` they become the base weight with the update.

    Args:
        checkpoint: The model, or an adapter.
        base: What it was made from.
        settings: Patterns apply to the names of the model.
        merged: Put the updates into the base.

    Raises:
        CheckpointError: The base is an adapter itself, or has no weight of the model's.
        OptionError: ``merged`` for a model that is no adapter.
    """
    if not checkpoint.config or set(checkpoint.config) == {"adapter_config"}:
        # head counts that an adapter does not know
        checkpoint = replace(checkpoint, config={**base.config, **checkpoint.config})
    chosen = select_for(checkpoint, settings)
    theirs = select_for(base, replace(settings, include=(), exclude=()))
    if any(matrix.product for matrix in theirs.matrices):
        raise CheckpointError(f"{base.name}: is an adapter itself; name the base model with --base")
    waiting = [
        e.matrix for e in chosen.exclusions if e.matrix.product and e.status == "unsupported"
    ]
    if merged and not any(m.product for m in (*chosen.matrices, *waiting)):
        raise OptionError(f"--merged is for adapters, but {checkpoint.name} holds no update")
    names = _by_name(theirs.matrices)
    found = [_paired(m, names, merged) for m in (*chosen.matrices, *waiting)]
    matrices = [m for m in found if isinstance(m, Matrix)]
    if found and all(isinstance(e, Exclusion) and e.status == "skipped" for e in found):
        raise CheckpointError(
            f"{base.name}: holds none of the {len(found)} weights of {checkpoint.name} in the "
            "same shape; name the model that it was made from with --base"
        )
    exclusions = [e for e in chosen.exclusions if e.matrix not in waiting]
    exclusions += [e for e in found if isinstance(e, Exclusion)]
    return replace(
        chosen,
        matrices=tuple(sorted(matrices, key=lambda m: natural_key(m.name))),
        exclusions=tuple(sorted(exclusions, key=lambda e: natural_key(e.matrix.name))),
    )


def _by_name(matrices: Iterable[Matrix]) -> dict[str, Matrix]:
    """Matrices by plain name; what only ends alike is found by its name without dots."""
    found: dict[str, Matrix] = {}
    for matrix in matrices:
        plain = plain_name(matrix.name)
        found.setdefault(plain, matrix)
        found.setdefault(underscored(plain), matrix)
    return found


def _paired(matrix: Matrix, base: dict[str, Matrix], merged: bool) -> Matrix | Exclusion:
    product = matrix.product
    label = matrix.name.removeprefix(matrix.tensor.name)
    plain = plain_name(matrix.name if product is None else product.weight + label)
    names = _spellings(plain) if product else (plain,)
    found = next((base[name] for name in names if name in base), None)
    if found is None:
        return Exclusion(matrix, "skipped", "Not analysed: the base has no weight of this name.")
    if product is not None:
        matrix = _oriented(matrix, found)
    shape, theirs = _shape(matrix), _shape(found)
    if shape != theirs:
        why = f"the weight of the base has the shape {list(theirs)}, not {list(shape)}"
        return Exclusion(matrix, "skipped", f"Not analysed: {why}.")
    if product is None:
        return replace(matrix, base=found)
    if not merged and not product.needs:
        return matrix
    if product.needs and product.needs not in DERIVED and not merged:
        why = (
            f"the factors that a {product.needs} adapter started from are not stored, so its "
            "update is not known; --merged adds it to the residual base that was saved with it"
        )
        return Exclusion(matrix, "unsupported", f"Not analysed: {why}.")
    return replace(matrix, base=found, merged=merged)


def _spellings(plain: str) -> tuple[str, ...]:
    """How a base may call a weight of an adapter that covers several models of a pipeline."""
    inside = _COMPONENT.sub("", plain)
    return plain, underscored(plain), inside, underscored(inside)


def _shape(matrix: Matrix) -> tuple[int, int, int]:
    return matrix.rows, matrix.cols, matrix.slices


def _oriented(matrix: Matrix, base: Matrix) -> Matrix:
    """The update the way round in which the base stores the weight."""
    product = matrix.product
    here, there = matrix.stored_shape, base.stored_shape
    if product is None or here == there or here != there[::-1] or matrix.slices > 1 or matrix.part:
        return matrix
    shape = (*matrix.tensor.shape[:-2], *there) if len(matrix.tensor.shape) < 4 else ()
    if not shape:
        return matrix
    flipped = replace(product, transposed=not product.transposed)
    return replace(matrix, tensor=replace(matrix.tensor, shape=shape), product=flipped)
