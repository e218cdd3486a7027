"""Learning-rate multipliers from exponents: the lighter the tail, the larger (TempBalance)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from weightscope.errors import OptionError
from weightscope.plans.exponents import exponent_named, layers_of, noise_sentence, scaled_between
from weightscope.proposal import Proposal, json_text
from weightscope.run import Run

MEANING = "learning-rate multipliers: JSON for weightscope.integrations.rates and any optimizer"
SOURCE = "Zhou et al., TempBalance, arXiv 2312.00359"
PUBLISHED_RANGE = (0.5, 1.5)
FEWEST = {"alpha": 50, "farms": 5}
"""Eigenvalues below which the programs leave a layer out."""


@dataclass(frozen=True)
class Options:
    """Options of ``--for lr``.

    Attributes:
        by: ``alpha`` or ``farms``.
        low: Multiplier of the smallest exponent.
        high: Multiplier of the largest exponent.
        include_embeddings: Give embeddings and heads a multiplier too.
        prefix: What the model in memory has before the names in the file.
    """

    by: str = "alpha"
    low: float = PUBLISHED_RANGE[0]
    high: float = PUBLISHED_RANGE[1]
    include_embeddings: bool = False
    prefix: str = ""

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            OptionError: Naming the option and what it takes.
        """
        exponent_named(self.by)
        if not 0 < self.low <= self.high < float("inf"):
            raise OptionError(
                f"--low {self.low:g} --high {self.high:g}: give positive multipliers, low first"
            )


def propose(run: Run, options: Options) -> Proposal:
    """A multiplier for every weight with an exponent; all other parameters keep 1.

    Raises:
        OptionError: The run has no exponents.
    """
    criterion = exponent_named(options.by)
    layers, remarks = layers_of(
        run, criterion, options.prefix, options.include_embeddings, FEWEST[options.by]
    )
    alphas = np.array([layer.alpha for layer in layers])
    given = scaled_between(alphas, options.low, options.high)
    nulls = np.array([layer.null for layer in layers if layer.null is not None])
    known = len(nulls) == len(layers)
    noise = scaled_between(nulls, options.low, options.high) if known else None
    if alphas.min() == alphas.max():
        remarks += ("All exponents are equal, so every multiplier is 1.",)
    pairs = list(zip(layers, given.tolist(), strict=True))
    multipliers = {layer.weight.name: multiplier for layer, multiplier in pairs}
    return Proposal(
        json_text({"format": "weightscope-lr", "version": 1, "multipliers": multipliers}),
        tuple(
            {
                "name": layer.weight.name,
                "module": layer.weight.kind,
                criterion.column: layer.alpha,
                f"{criterion.column}_null": layer.null,
                "multiplier": multiplier,
                "multiplier_of_noise": None if noise is None else float(noise[i]),
            }
            for i, (layer, multiplier) in enumerate(pairs)
        ),
        f"Multiplier by {options.by}: {criterion.column} mapped linearly to {options.low:g} .. "
        f"{options.high:g}; the higher the exponent, the larger the learning rate ({SOURCE}).",
        f"Budget: none to spend; the mean multiplier of the {len(layers)} weights is "
        f"{given.mean():.4f}. All other parameters keep 1.",
        noise_sentence(given, noise, "multipliers"),
        _deviations(run, options),
        remarks,
        facts={"mean_multiplier": float(given.mean())},
    )


def _deviations(run: Run, options: Options) -> tuple[str, ...]:
    told = []
    xmin = run.provenance["settings"]["xmin"]
    if options.by == "alpha" and xmin != "mid":
        told.append(
            f"this run fits its exponents with --xmin {xmin}; the paper's are --xmin mid: analyze "
            "with that."
        )
    if (options.low, options.high) != PUBLISHED_RANGE:
        low, high = PUBLISHED_RANGE
        told.append(f"{options.low:g} .. {options.high:g} instead of {low:g} .. {high:g}.")
    if not options.include_embeddings:
        told.append("the program leaves out first and last layer; here embeddings and heads.")
    told.append("norms keep 1; the program lets a batch norm follow its convolution.")
    told.append(
        "a plan holds the exponents of one checkpoint; the program measures them anew every epoch."
    )
    return tuple(told)
