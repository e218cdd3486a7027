"""What can go wrong, each with a sentence for people and the exit code it ends in.

Exit codes: 0 done, 1 failed, 2 usage, 3 selftest failed, 4 a ``--fail-on`` rule hit,
5 runs not comparable, 130 interrupted.
"""

from __future__ import annotations


class WeightscopeError(Exception):
    """Any failure that is explained to the user in one sentence rather than a traceback."""

    exit_code = 1


class CheckpointError(WeightscopeError):
    """The checkpoint is missing, broken, or not something that can be read."""


class OptionError(WeightscopeError):
    """An option has a value that makes no sense, alone or with the others."""

    exit_code = 2


class UnknownMatrixError(OptionError, KeyError):
    """A name that no matrix of a run has, or several, or one without what is asked for."""

    __str__ = Exception.__str__  # a KeyError shows the name alone, in quotes


class ExecutorError(WeightscopeError):
    """The place where the work is done fails: a device, a node, a cluster."""


class RunFolderError(WeightscopeError):
    """A run folder cannot be written, read or continued."""


class MissingPartsError(RunFolderError):
    """Parts of a model are not there.

    Args:
        text: The sentence.
        names: Matrices that are missing.
    """

    def __init__(self, text: str, names: tuple[str, ...]) -> None:
        super().__init__(text)
        self.names = names


class PlanError(WeightscopeError):
    """A plan cannot be made of a run, read, or applied."""


class OutputError(WeightscopeError):
    """An output file exists already or cannot be written."""


class GateError(WeightscopeError):
    """A ``--fail-on`` rule was hit."""

    exit_code = 4


class IncomparableRunsError(WeightscopeError):
    """Two runs differ in something that makes their figures incomparable."""

    exit_code = 5
