"""A command whose ``--shuffled`` may stand without its number."""

from __future__ import annotations

from itertools import zip_longest
from typing import Any

from typer.core import TyperCommand

_OPTIONAL = {"--shuffled": "auto"}
"""Options whose number may be left out, and what they mean then."""


class OptionalNumbers(TyperCommand):
    """Fills in the number of an option that may stand without one."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments after the numbers that were left out have been filled in."""
        filled = []
        for arg, following in zip_longest(args, args[1:], fillvalue=""):
            left_out = arg in _OPTIONAL and not following.isdecimal()
            filled.append(f"{arg}={_OPTIONAL[arg]}" if left_out else arg)
        return super().parse_args(ctx, filled)
