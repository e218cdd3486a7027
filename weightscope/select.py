"""Which stored tensors are weight matrices, and how they are seen."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from weightscope.adapters import Adapted, adapted
from weightscope.checkpoint import Checkpoint
from weightscope.encodings.names import is_companion, is_packed
from weightscope.errors import CheckpointError, OptionError
from weightscope.layouts.config import VOCABULARY, count_in
from weightscope.layouts.divide import Division, divide
from weightscope.layouts.excluded import is_depthwise, what_else
from weightscope.layouts.facts import Towers
from weightscope.layouts.roles import (
    FUSED,
    VOCABULAR,
    is_convolution,
    is_expert_stack,
    place_of,
    role_of,
    rule_for,
)
from weightscope.matrix import Exclusion, Matrix, Part, View
from weightscope.quantised import quantised
from weightscope.sampling import sample
from weightscope.settings import Settings
from weightscope.tensor import DTYPES, TensorRef
from weightscope.text import shortened

ConvView = Literal["slices", "flatten"]
MOST_MATRICES = 200_000
"""Three times what the largest mixtures of experts hold; a few bytes can claim any number."""
_SPARE = 4096
"""More rows beyond the vocabulary than this are no padding: the tensor is another table."""


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
        undrawn: Matrices that a sample leaves out.
    """

    matrices: tuple[Matrix, ...]
    exclusions: tuple[Exclusion, ...]
    vectors: int
    integers: int
    filtered: int
    params: int
    undrawn: int = 0


@dataclass(frozen=True)
class Finding:
    """What one stored tensor was found to be, and which rules said so.

    Attributes:
        tensor: The tensor.
        matrices: The matrices it holds.
        exclusion: Why it has none; None where it is only counted.
        counted: ``vector``, ``integer`` or ``filtered``, where it gets no row at all.
        role: The rule that gave it its role, for people.
        layout: The rule that divided it, or why none did; empty where it is not fused.
    """

    tensor: TensorRef
    matrices: tuple[Matrix, ...] = ()
    exclusion: Exclusion | None = None
    counted: str = ""
    role: str = ""
    layout: str = ""


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which ``layers.10`` follows ``layers.9``."""
    key = []
    for piece in re.split(r"(\d+)", name):
        digits = piece.lstrip("0") if piece.isdecimal() else ""
        # as text, because a hostile name may hold more digits than Python turns into a number
        key.append((1, len(digits), digits) if piece.isdecimal() else (0, 0, piece))
    return [*key, (0, 0, name)]


def select_for(checkpoint: Checkpoint, settings: Settings) -> Selection:
    """What an analysis with these settings takes of a checkpoint.

    Raises:
        CheckpointError: Two matrices would have one name, or the factors of an adapter do not
            belong together.
        OptionError: The patterns leave nothing to analyse.
    """
    weights = quantised(checkpoint)
    divided, updates = not settings.fused, adapted(weights.checkpoint)
    patterns = settings.include, settings.exclude
    found = select(updates.checkpoint, *patterns, settings.conv, divided)
    found = replace(found, matrices=tuple(map(weights.matrix, found.matrices)))
    found = _with_updates(found, updates)
    if not settings.sample:
        return found
    drawn = sample(found.matrices, settings.sample, settings.seed)
    return replace(found, matrices=drawn, undrawn=len(found.matrices) - len(drawn))


def _with_updates(found: Selection, updates: Adapted) -> Selection:
    """The same with the updates of adapters, and without what only a base can make sense of."""
    matrices, exclusions = [], list(found.exclusions)
    for matrix in map(updates.matrix, found.matrices):
        exclusion = updates.exclusion(matrix)
        if exclusion is None:
            matrices.append(matrix)
        else:
            exclusions.append(exclusion)
    exclusions.sort(key=lambda e: natural_key(e.matrix.name))
    return replace(found, matrices=tuple(matrices), exclusions=tuple(exclusions))


def select(
    checkpoint: Checkpoint,
    include: Iterable[str] = (),
    exclude: Iterable[str] = (),
    conv: ConvView = "slices",
    divided: bool = True,
) -> Selection:
    """Decide for every stored tensor what it is; nothing is dropped without being counted.

    Args:
        checkpoint: What is stored.
        include: Patterns of tensors to analyse; none means all.
        exclude: Patterns of tensors to leave out.
        conv: How convolutions are seen.
        divided: Divide fused tensors into their logical matrices.

    Raises:
        CheckpointError: Two matrices would have one name, or there are too many.
        OptionError: The patterns leave nothing to analyse.
    """
    found = list(findings(checkpoint, tuple(include), tuple(exclude), conv, divided))
    matrices = [matrix for one in found for matrix in one.matrices]
    exclusions = [one.exclusion for one in found if one.exclusion]
    counted = [one.counted for one in found]
    filtered = counted.count("filtered")
    if not matrices and not exclusions and filtered:
        raise OptionError(f"--include and --exclude leave none of {filtered} tensors to analyse")
    _check_unique(matrices)
    return Selection(
        tuple(sorted(matrices, key=lambda m: natural_key(m.name))),
        tuple(sorted(exclusions, key=lambda e: natural_key(e.matrix.name))),
        counted.count("vector"),
        counted.count("integer"),
        filtered,
        sum(one.tensor.size for one in found if one.counted != "integer"),
    )


def findings_for(checkpoint: Checkpoint, settings: Settings) -> Iterator[Finding]:
    """What every stored tensor is to an analysis with these settings, and which rules say so.

    Raises:
        CheckpointError: The factors of an adapter do not belong together.
    """
    weights = quantised(checkpoint)
    updated = adapted(weights.checkpoint).checkpoint
    divided = not settings.fused
    for one in findings(updated, settings.include, settings.exclude, settings.conv, divided):
        yield replace(one, matrices=tuple(map(weights.matrix, one.matrices)))


def findings(
    checkpoint: Checkpoint,
    include: tuple[str, ...] = (),
    exclude: tuple[str, ...] = (),
    conv: ConvView = "slices",
    divided: bool = True,
) -> Iterator[Finding]:
    """What every stored tensor is, in the order of the checkpoint; arguments as of ``select``.

    Raises:
        CheckpointError: It claims more matrices than anybody's model has.
    """
    towers = Towers(checkpoint.config)
    vocabulary = count_in(towers.main.values, VOCABULARY) or 0

    @cache
    def division_of(module: str, shape: tuple[int, int], fused: bool) -> Division:
        return divide(module, shape, towers.of(module), fused)

    total = 0
    for ref in checkpoint.tensors:
        undecoded = checkpoint.undecoded.get(ref.name)
        counted = "" if undecoded else _counted(ref)
        if not counted and not _wanted(ref.name, include, exclude):
            counted = "filtered"
        if counted:
            yield Finding(ref, counted=counted)
            continue
        is_conv = _is_conv(ref, ref.name in checkpoint.conv)
        rule = _role_rule(ref, is_conv)
        excluded = _undecoded(ref, undecoded) if undecoded else _excluded(ref, is_conv)
        if excluded:
            yield Finding(ref, exclusion=excluded, role=rule)
            continue
        total += 1 if is_conv or len(ref.shape) == 2 else ref.shape[0]
        _check_count(ref, total)
        whole = _convolution(ref, conv) if is_conv else _matrices(ref, vocabulary)
        if is_conv or not divided:
            yield Finding(ref, tuple(whole), role=rule)
            continue
        first = whole[0]
        division = division_of(first.module, first.stored_shape, first.role in FUSED)
        matrices = tuple(part for matrix in whole for part in _divided(matrix, division))
        yield Finding(ref, matrices, role=rule, layout=division.reason or division.rule)


def _check_unique(matrices: list[Matrix]) -> None:
    """A generated name must not be the name of another tensor."""
    seen: set[str] = set()
    for matrix in matrices:
        if matrix.name in seen:
            raise CheckpointError(
                f"{matrix.tensor.file or 'state dict'}: two matrices are called "
                f"{shortened(matrix.name)}: one is a tensor of that name, one an expert of a stack "
                "or a part of a fused tensor; leave one out with --exclude"
            )
        seen.add(matrix.name)


def _check_count(ref: TensorRef, total: int) -> None:
    if total > MOST_MATRICES:
        raise CheckpointError(
            f"{ref.file or 'state dict'}: with {shortened(ref.name)} of shape {list(ref.shape)} it "
            f"holds more than {MOST_MATRICES:,} matrices or experts; leave some out with --exclude"
        )


def is_vector(shape: tuple[int, ...]) -> bool:
    """Whether a tensor of three or more dimensions has but one that is not 1."""
    return len(shape) > 2 and sum(n != 1 for n in shape) <= 1


def _counted(ref: TensorRef) -> str:
    """What a tensor is that gets no row."""
    if DTYPES[ref.dtype].kind == "integer" and not (is_packed(ref.name) and len(ref.shape) >= 2):
        return "integer"
    return "vector" if len(ref.shape) < 2 or is_vector(ref.shape) else ""


def _wanted(name: str, include: tuple[str, ...], exclude: tuple[str, ...]) -> bool:
    if include and not any(fnmatch.fnmatchcase(name, pattern) for pattern in include):
        return False
    return not any(fnmatch.fnmatchcase(name, pattern) for pattern in exclude)


def _is_conv(ref: TensorRef, known: bool) -> bool:
    if len(ref.shape) == 2:
        return False
    module = place_of(ref.name).module
    # a stack of 1 x n matrices is a 1 x 1 convolution unless its name says experts
    pointwise = ref.shape[-1] == 1 and not is_expert_stack(module)
    return known or len(ref.shape) > 3 or pointwise or is_convolution(module)


def _role_rule(ref: TensorRef, is_conv: bool) -> str:
    if is_conv:
        return f"conv, by its {len(ref.shape)} dimensions and its name"
    role, because = rule_for(place_of(ref.name).module)
    return f"{role}, by {shortened(because)}" if because else f"{role}, as no rule knows its name"


def _convolution(ref: TensorRef, conv: ConvView) -> list[Matrix]:
    view: View = "conv_flat" if conv == "flatten" or 1 in ref.shape[:2] else "conv_slices"
    return [Matrix(ref.name, ref, view, "conv", *place_of(ref.name))]


def _matrices(ref: TensorRef, vocabulary: int) -> list[Matrix]:
    place = place_of(ref.name)
    role = role_of(place.module)
    if len(ref.shape) == 2:
        spare = ref.shape[0] - vocabulary
        vocabular = vocabulary and role in VOCABULAR and 0 < spare <= _SPARE
        padding = spare if vocabular else 0
        return [Matrix(ref.name, ref, "whole", role, *place, padding=padding)]
    if ref.shape[0] == 1:  # a table with a batch dimension, no expert
        return [Matrix(ref.name, ref, "expert", role, *place)]
    return [
        Matrix(f"{ref.name}[{e}]", ref, "expert", role, place.module, place.block, e)
        for e in range(ref.shape[0])
    ]


def _divided(matrix: Matrix, division: Division) -> list[Matrix]:
    """The logical matrices of a fused tensor, or of one expert of a fused stack."""
    if not division.parts:
        return [replace(matrix, unsplit=division.reason)]
    if division.experts:
        return [_expert_of(matrix, part) for part in division.parts]
    return [part_of(matrix, part) for part in division.parts]


def part_of(matrix: Matrix, part: Part) -> Matrix:
    """One logical matrix of a fused one, named ``tensor[part]``."""
    name, module = f"{matrix.name}[{part.label}]", f"{matrix.module}[{part.label}]"
    role = part.role
    if matrix.role.startswith("expert_"):
        role = role.replace("mlp_", "expert_")
    return replace(matrix, name=name, module=module, role=role, part=part)


def _expert_of(matrix: Matrix, part: Part) -> Matrix:
    """One expert of a flattened stack, named ``tensor[expert]``."""
    name = f"{matrix.name}[{part.label}]"
    return replace(matrix, name=name, expert=int(part.label), part=part)


def _undecoded(ref: TensorRef, why: str) -> Exclusion:
    place = place_of(ref.name)
    view: View = "whole" if len(ref.shape) == 2 else "conv_flat"
    matrix = Matrix(ref.name, ref, view, role_of(place.module), *place)
    return Exclusion(matrix, "unsupported", f"Not analysed: {why}.")


def _excluded(ref: TensorRef, is_conv: bool) -> Exclusion | None:
    place = place_of(ref.name)
    view: View = "whole" if len(ref.shape) == 2 else "conv_flat"
    role = "conv" if is_conv else role_of(place.module)
    matrix = Matrix(ref.name, ref, view, role, *place)
    kind = DTYPES[ref.dtype].kind
    if is_companion(ref.name):
        why = "it holds the scales or zero points of a quantised tensor, not weights"
        return Exclusion(matrix, "skipped", f"Not analysed: {why}.")
    other = what_else(ref.name, len(ref.shape))
    if other:
        return Exclusion(matrix, "skipped", f"Not analysed: it is {other}, not a weight matrix.")
    if kind in {"encoded", "integer"}:
        why = f"it is quantised ({ref.dtype}) and its bytes mean nothing without their scales"
        return Exclusion(matrix, "unsupported", f"Not analysed: {why}; dequantise the model first.")
    if kind == "complex":
        why = "complex weights are not supported"
        return Exclusion(matrix, "unsupported", f"Not analysed: {why}.")
    if not ref.size:
        return Exclusion(matrix, "empty", f"It has no entries (shape {list(ref.shape)}).")
    if is_conv and is_depthwise(ref.name, ref.shape):
        why = "it is a depth-wise convolution, one filter per channel"
        return Exclusion(matrix, "skipped", f"Not analysed: {why}, not a weight matrix.")
    return None
