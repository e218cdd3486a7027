"""``--shard``: which part of a model a process takes, and who said so."""

from __future__ import annotations

import os

from weightscope.cli.explained import say
from weightscope.errors import OptionError
from weightscope.share import Share, share_around, share_from


def read_shard(text: str | None, quiet: bool) -> Share | None:
    """The share that is asked for; only ``auto`` asks the environment, and says what it found.

    Raises:
        OptionError: The option or the environment makes no sense.
    """
    if text is None:
        if not quiet:
            _remind()
        return None
    share, variables = share_from(text, os.environ)
    if variables and not quiet:
        say(f"--shard auto is {share}: {variables}")
    return share


def _remind() -> None:
    """One of many tasks that analyses all of a model may be meant to analyse a part."""
    try:
        share, variables = share_around(os.environ)
    except OptionError:
        return
    if share.count > 1:
        say(f"The whole model, although {variables}: --shard auto would take {share.label}")
