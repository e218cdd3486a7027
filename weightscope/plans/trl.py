"""Regular expressions of the parameters to train, for scripts around TRL.

They read the lines that begin with ``- `` and keep what ``re.match`` finds among the names of
``named_parameters``.
"""

from __future__ import annotations

import re

from weightscope.plans import unfreezing
from weightscope.plans.unfreezing import SOURCE, Options, with_bias
from weightscope.proposal import Proposal
from weightscope.run import Run

__all__ = ["MEANING", "SOURCE", "Options", "propose"]

MEANING = "parameters to train: a list of regular expressions, for TRL's trainers"


def propose(run: Run, options: Options) -> Proposal:
    """The best weights of each module type, as regular expressions.

    Raises:
        OptionError: The run lacks a column that decides, or nothing can be chosen.
    """
    return unfreezing.propose(run, options, "", _pattern)


def _pattern(name: str) -> str:
    return with_bias(name, re.escape)
