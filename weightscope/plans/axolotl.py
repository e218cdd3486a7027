"""``unfrozen_parameters`` for axolotl's configuration.

Axolotl matches each pattern against parameter names from their start, takes every period for a
period, and reads brackets at the end as a range of rows; so a pattern must not escape anything.
"""

from __future__ import annotations

from weightscope.plans import unfreezing
from weightscope.plans.unfreezing import SOURCE, Options, with_bias
from weightscope.proposal import Proposal
from weightscope.run import Run

__all__ = ["MEANING", "SOURCE", "Options", "propose"]

MEANING = "parameters to train: unfrozen_parameters for axolotl, in Spectrum's form"


def propose(run: Run, options: Options) -> Proposal:
    """The best weights of each module type, as axolotl's patterns.

    Raises:
        OptionError: The run lacks a column that decides, or nothing can be chosen.
    """
    return unfreezing.propose(run, options, "unfrozen_parameters:", _pattern)


def _pattern(name: str) -> str:
    return with_bias(name, str)
