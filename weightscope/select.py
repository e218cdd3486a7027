"""Which stored tensors are weight matrices, and how they are seen."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from weightscope.checkpoint import Checkpoint
from weightscope.errors import CheckpointError, OptionError
from weightscope.layouts.packed import is_companion, is_packed
from weightscope.layouts.roles import is_convolution, is_expert_stack, is_mask, place_of, role_of
from weightscope.matrix import Exclusion, Matrix, View
from weightscope.tensor import DTYPES, TensorRef
from weightscope.text import shortened

ConvView = Literal["slices", "flatten"]


@dataclass(frozen=True)
class Selection:
    """What is analysed and what is not.

    Attributes:
        matrices: To be analysed, in natural order of their names.
        exclusions: Tensors that get a row without figures.
        vectors: Floating tensors of fewer than two dimensions: counted only.
        integers: Integer and boolean tensors: counted only.
        filtered: Matrices left out by include and exclude patterns.
        params: Parameters of the whole checkpoint; a packed element counts as one.
    """

    matrices: tuple[Matrix, ...]
    exclusions: tuple[Exclusion, ...]
    vectors: int
    integers: int
    filtered: int
    params: int


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which ``layers.10`` follows ``layers.9``."""
    pieces = re.split(r"(\d+)", name)
    return [(1, int(p), "") if p.isdecimal() else (0, 0, p) for p in pieces] + [(0, 0, name)]


def select(
    checkpoint: Checkpoint,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    conv: ConvView = "slices",
) -> Selection:
    """Decide for every stored tensor what it is; nothing is dropped without being counted.

    Raises:
        CheckpointError: Two matrices would have one name.
        OptionError: The patterns leave nothing to analyse.
    """
    include, exclude = tuple(include), tuple(exclude)
    matrices: list[Matrix] = []
    exclusions: list[Exclusion] = []
    vectors = integers = filtered = params = 0
    for ref in checkpoint.tensors:
        kind = DTYPES[ref.dtype].kind
        if kind == "integer" and not (is_packed(ref.name) and len(ref.shape) >= 2):
            integers += 1
            continue
        params += ref.size
        if len(ref.shape) < 2 or is_vector(ref.shape):
            vectors += 1
        elif not _wanted(ref.name, include, exclude):
            filtered += 1
        else:
            excluded = _excluded(ref)
            exclusions += [excluded] if excluded else []
            matrices += [] if excluded else _matrices(ref, conv, ref.name in checkpoint.conv)
    if not matrices and not exclusions and filtered:
        raise OptionError(f"--include and --exclude leave none of {filtered} tensors to analyse")
    _check_unique(matrices)
    return Selection(
        tuple(sorted(matrices, key=lambda m: natural_key(m.name))),
        tuple(sorted(exclusions, key=lambda e: natural_key(e.matrix.name))),
        vectors,
        integers,
        filtered,
        params,
    )


def _check_unique(matrices: list[Matrix]) -> None:
    """An expert's generated name must not be the name of another tensor."""
    seen: set[str] = set()
    for matrix in matrices:
        if matrix.name in seen:
            raise CheckpointError(
                f"two matrices are called {shortened(matrix.name)}: one is a tensor of that name, "
                "one an expert of a stack; leave one out with --exclude"
            )
        seen.add(matrix.name)


def is_vector(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of three or more dimensions has but one that is not 1."""
    return len(shape) > 2 and sum(n != 1 for n in shape) <= 1


def _wanted(name: str, include: tuple[str, ...], exclude: tuple[str, ...]) -> bool:
    if include and not any(fnmatch.fnmatchcase(name, pattern) for pattern in include):
        return False
    return not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)


def _matrices(ref: TensorRef, conv: ConvView, known_conv: bool) -> list[Matrix]:
    place = place_of(ref.name)
    # a stack of 1 x n matrices is a 1 x 1 convolution unless its name says experts
    pointwise = ref.shape[-1] == 1 and not is_expert_stack(place.module)
    conv_role = known_conv or len(ref.shape) > 3 or pointwise or is_convolution(place.module)
    if len(ref.shape) == 2:
        return [Matrix(ref.name, ref, "whole", role_of(place.module), *place)]
    if conv_role:
        depthwise = 1 in ref.shape[:2]
        view: View = "conv_flat" if conv == "flatten" or depthwise else "conv_slices"
        return [Matrix(ref.name, ref, view, "conv", *place)]
    role = role_of(place.module)
    if ref.shape[0] == 1:  # a table with a batch dimension, no expert
        return [Matrix(ref.name, ref, "expert", role, *place)]
    return [
        Matrix(f"{ref.name}[{e}]", ref, "expert", role, place.module, place.block, e)
        for e in range(ref.shape[0])
    ]


def _excluded(ref: TensorRef) -> Exclusion | None:
    place = place_of(ref.name)
    view: View = "whole" if len(ref.shape) == 2 else "conv_flat"
    matrix = Matrix(ref.name, ref, view, role_of(place.module), *place)
    kind = DTYPES[ref.dtype].kind
    if is_companion(ref.name):
        why = "it holds the scales or zero points of a quantised tensor, not weights"
        return Exclusion(matrix, "skipped", f"Not analysed: {why}.")
    if len(ref.shape) > 2 and is_mask(ref.name):
        return Exclusion(matrix, "skipped", "Not analysed: it is an attention mask, not weights.")
    if kind in {"encoded", "integer"}:
        why = f"it is quantised ({ref.dtype}) and its bytes mean nothing without their scales"
        return Exclusion(matrix, "unsupported", f"Not analysed: {why}; dequantise the model first.")
    if kind == "complex":
        why = "complex weights are not supported"
        return Exclusion(matrix, "unsupported", f"Not analysed: {why}.")
    if not ref.size:
        return Exclusion(matrix, "empty", f"It has no entries (shape {list(ref.shape)}).")
    return None
