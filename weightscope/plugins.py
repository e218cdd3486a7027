"""What a drawer holds, loaded by name: the one dynamic import of the package."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def load(drawer: str, name: str) -> ModuleType:
    """Import one module of a drawer, such as ``load("metrics", "alpha")``.

    Raises:
        ModuleNotFoundError: The drawer holds no such module.
    """
    return import_module(f"weightscope.{drawer}.{name}")
