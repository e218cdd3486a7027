"""Who is told how the work goes on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from weightscope.plan import Plan


class Observer(Protocol):
    """Who is told how the work goes on."""

    def note(self, text: str) -> None:
        """A remark for the user."""

    def start(self, plan: Plan, done: float) -> None:
        """Work begins; ``done`` operations of the plan were done before."""

    def advance(self, name: str, operations: float) -> None:
        """A matrix is finished."""


class Silent:
    """An observer that says nothing."""

    def note(self, text: str) -> None:
        """Ignore a remark."""

    def start(self, plan: Plan, done: float) -> None:
        """Ignore the start."""

    def advance(self, name: str, operations: float) -> None:
        """Ignore progress."""
