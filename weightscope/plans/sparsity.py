"""Layer-wise sparsity from exponents: the lighter the tail, the more is pruned (AlphaPruning)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from weightscope.errors import OptionError
from weightscope.plans.exponents import (
    Layer,
    exponent_named,
    layers_of,
    noise_sentence,
    scaled_between,
)
from weightscope.proposal import Proposal, json_text
from weightscope.run import Run
from weightscope.spectrum import FloatArray
from weightscope.text import count_of

MEANING = "a sparsity for each weight, from its block's exponent: JSON for any pruner"
SOURCE = "Lu et al., AlphaPruning, arXiv 2410.10912; Hu et al., FARMS, arXiv 2506.06280"
PUBLISHED_TARGET = 0.7
PUBLISHED_SPREAD = {"alpha": 0.3, "farms": 0.2}
CAP = 0.99


@dataclass(frozen=True)
class Options:
    """Options of ``--for sparsity``.

    Attributes:
        by: ``alpha`` or ``farms``.
        target: Share of all entries to prune.
        spread: Half the range of the sparsities before they are scaled to the target: 0.3 lets
            them differ by 1.3 to 0.7. None takes the published one.
        per: ``block`` gives all weights of a block one sparsity, ``layer`` each its own.
        cap: Largest sparsity of any weight.
        prefix: What the model in memory has before the names in the file.
    """

    by: str = "alpha"
    target: float = PUBLISHED_TARGET
    spread: float | None = None
    per: str = "block"
    cap: float = CAP
    prefix: str = ""

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            OptionError: Naming the option and what it takes.
        """
        exponent_named(self.by)
        if not 0 < self.cap <= 1:
            raise OptionError(f"--cap {self.cap:g}: give a sparsity above 0 and up to 1")
        if not 0 < self.target <= self.cap:
            raise OptionError(
                f"--target {self.target:g}: give a sparsity above 0 and up to the cap {self.cap:g}"
            )
        if self.spread is not None and not 0 <= self.spread < 1:
            raise OptionError(f"--spread {self.spread:g}: give a number from 0 to below 1")
        if self.per not in {"block", "layer"}:
            raise OptionError(f"--per {self.per!r}: choose block or layer")

    @property
    def range(self) -> float:
        """The spread to use."""
        return PUBLISHED_SPREAD[self.by] if self.spread is None else self.spread


@dataclass(frozen=True)
class Unit:
    """Weights that get one sparsity.

    Attributes:
        layers: They.
        alpha: Mean of their exponents, each counted once.
        null: That of noise; None where it is unknown for one.
        params: Their entries.
    """

    layers: tuple[Layer, ...]
    alpha: float
    null: float | None
    params: int


def propose(run: Run, options: Options) -> Proposal:
    """A sparsity for every weight inside the blocks.

    Raises:
        OptionError: The run has no exponents.
    """
    criterion = exponent_named(options.by)
    layers, remarks = layers_of(run, criterion, options.prefix, False)
    inside = tuple(layer for layer in layers if layer.weight.rows[0]["block"] is not None)
    if inside and len(inside) < len(layers):
        remarks += (f"Left out, outside the blocks: {len(layers) - len(inside)}.",)
    units = units_of(inside or layers, options.per)
    sizes = np.array([float(unit.params) for unit in units])
    given = sparsities(np.array([unit.alpha for unit in units]), sizes, options)
    nulls = [unit.null for unit in units if unit.null is not None]
    noise = sparsities(np.array(nulls), sizes, options) if len(nulls) == len(units) else None
    reached = float(sizes @ given / sizes.sum())
    capped = int(np.count_nonzero(given >= options.cap))
    by_name = {
        layer.weight.name: float(ratio)
        for unit, ratio in zip(units, given, strict=True)
        for layer in unit.layers
    }
    what = "blocks" if options.per == "block" else "weights"
    return Proposal(
        json_text({"format": "weightscope-sparsity", "version": 1, "sparsity": by_name}),
        _records(units, given, noise, criterion.column),
        f"Sparsity by {options.by}: {criterion.column}, averaged over each "
        f"{options.per}, mapped linearly to {1 - options.range:g} .. {1 + options.range:g} and "
        f"scaled to the target; the higher the exponent, the more is pruned ({SOURCE}).",
        f"Budget: {reached:.6f} of all {int(sizes.sum()):,} entries pruned, target "
        f"{options.target:g}; {count_of(len(units), what[:-1])} from {given.min():.4f} to "
        f"{given.max():.4f}, {capped} at the cap of {options.cap:g}.",
        noise_sentence(given, noise, "sparsities"),
        _deviations(run, options),
        remarks,
        facts={"sparsity": reached, "target": options.target, "capped": capped},
    )


def units_of(layers: Sequence[Layer], per: str) -> list[Unit]:
    """Layers in groups that get one sparsity, in the order of the model.

    Blocks of different towers are told apart by what stands before the block's index. Without
    blocks every layer is a unit.
    """
    groups: dict[object, list[Layer]] = {}
    for layer in layers:
        block = layer.weight.rows[0]["block"]
        tower = layer.weight.kind.partition("#")[0]
        whole = per == "block" and block is not None
        groups.setdefault((tower, block) if whole else layer.weight.name, []).append(layer)
    return [_unit(tuple(group)) for group in groups.values()]


def _unit(layers: tuple[Layer, ...]) -> Unit:
    nulls = [layer.null for layer in layers if layer.null is not None]
    return Unit(
        layers,
        float(np.mean([layer.alpha for layer in layers])),
        float(np.mean(nulls)) if len(nulls) == len(layers) else None,
        sum(layer.weight.params for layer in layers),
    )


def sparsities(alphas: FloatArray, sizes: FloatArray, options: Options) -> FloatArray:
    """AlphaPruning's map with a cap that loses nothing of the target.

    Args:
        alphas: Exponent of each unit, shape (n,).
        sizes: Entries of each unit, positive, shape (n,).
        options: Target, spread and cap.

    Returns:
        Sparsities whose mean weighted by size is the target, none above the cap.
    """
    shares = scaled_between(alphas, 1 - options.range, 1 + options.range)
    return filled(shares, sizes, options.target, options.cap)


def filled(shares: FloatArray, sizes: FloatArray, target: float, cap: float) -> FloatArray:
    """min(cap, eta * share) with the eta for which the mean weighted by size is the target.

    What units above the cap cannot take goes to the others in proportion to their shares, until
    none is above it.

    Args:
        shares: Positive, shape (n,).
        sizes: Positive, shape (n,).
        target: At most ``cap``.
        cap: Largest value.
    """
    full = np.zeros(len(shares), dtype=bool)
    while not full.all():
        wanted = target * sizes.sum() - cap * sizes[full].sum()
        eta = max(wanted, 0.0) / float(sizes[~full] @ shares[~full])
        over = ~full & (eta * shares > cap)
        if not over.any():
            return np.where(full, cap, np.minimum(eta * shares, cap))
        full |= over
    return np.full_like(shares, cap)


def _records(
    units: Sequence[Unit], given: FloatArray, noise: FloatArray | None, column: str
) -> tuple[dict[str, float | int | str | None], ...]:
    return tuple(
        {
            "name": layer.weight.name,
            "module": layer.weight.kind,
            "block": layer.weight.rows[0]["block"],
            column: layer.alpha,
            f"{column}_null": layer.null,
            "unit_mean": unit.alpha,
            "sparsity": float(given[i]),
            "sparsity_of_noise": None if noise is None else float(noise[i]),
        }
        for i, unit in enumerate(units)
        for layer in unit.layers
    )


def _deviations(run: Run, options: Options) -> tuple[str, ...]:
    told = []
    xmin = run.provenance["settings"]["xmin"]
    if options.by == "alpha" and xmin != "peak":
        told.append(
            f"this run fits its exponents with --xmin {xmin}; the paper's are --xmin peak for "
            "language models (mid for vision): analyze with that."
        )
    if options.target != PUBLISHED_TARGET:
        told.append(f"target {options.target:g} instead of {PUBLISHED_TARGET:g}.")
    if options.range != PUBLISHED_SPREAD[options.by]:
        told.append(f"spread {options.range:g} instead of {PUBLISHED_SPREAD[options.by]:g}.")
    if options.per != "block":
        told.append("each layer has its own sparsity; the paper's are equal within a block.")
    told.append(
        f"no sparsity is above {options.cap:g}, and what the cap takes away the others prune: the "
        "programs let it pass 1 or miss the target."
    )
    return tuple(told)
