"""Reading a pickle without running it: every name it imports becomes an inert stand-in.

A pickle is a program: it imports whatever it names and calls it. Here it may name only what a list
allows, and what it gets is not the thing itself but a value that does nothing: a record of the
arguments and the state that the pickle has for it. Nothing is ever imported.

The pure Python unpickler is used on purpose: the one in C reserves memory for as many memo entries
as a few hostile bytes claim. And no tuple is hashed, since that goes down into it on the stack of
the C program, which tuples in tuples in tuples can overflow.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

Name = tuple[str, str]
StandIn = Callable[..., Any] | str


class RefusedError(ValueError):
    """A pickle names something that is not on the list; the message is that name."""


class Inert:
    """What a pickle says of an object, without being one.

    Attributes:
        fields: Its state where that is a dictionary, else empty.
        state: Its state where that is something else.
    """

    fields: Mapping[Any, Any]
    state: Any

    def __new__(cls, *_arguments: Any) -> Inert:
        """An empty record, whatever the arguments."""
        made = super().__new__(cls)
        made.fields, made.state = {}, None
        return made

    def __setstate__(self, state: Any) -> None:
        """Keep the state."""
        if isinstance(state, Mapping):
            self.fields = state
        else:
            self.state = state


def record(name: str) -> type[Inert]:
    """A kind of record of its own, so that records can be told apart."""
    return type(name, (Inert,), {})


def load(raw: bytes, allowed: Mapping[Name, StandIn]) -> Any:
    """The value of a pickle, in plain containers, stand-ins and records.

    Args:
        raw: The pickle.
        allowed: Stand-ins by module and name.

    Raises:
        RefusedError: It names something else.
        ValueError: It is damaged.
    """
    unpickler = _Unpickler(io.BytesIO(raw))
    unpickler.allowed = allowed
    try:
        return unpickler.load()
    except RefusedError:
        raise
    except Exception as error:  # of many kinds for a hostile pickle
        text = str(error).strip() or type(error).__name__
        raise ValueError(text.splitlines()[0]) from None


class _Unpickler(pickle._Unpickler):
    allowed: Mapping[Name, StandIn]

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise RefusedError(f"{module}.{name}") from None


def _set_item(unpickler: Any) -> None:
    value, key = unpickler.stack.pop(), unpickler.stack.pop()
    _set(unpickler.stack[-1], key, value)


def _set_items(unpickler: Any) -> None:
    items = unpickler.pop_mark()
    for key, value in zip(items[::2], items[1::2], strict=True):
        _set(unpickler.stack[-1], key, value)


def _set(found: Any, key: Any, value: Any) -> None:
    if not isinstance(key, str | int | Inert):
        raise ValueError(f"a {type(key).__name__} is a key")
    found[key] = value


def _no_set(_unpickler: Any) -> None:
    raise ValueError("it holds a set")


_Unpickler.dispatch = {
    **pickle._Unpickler.dispatch,
    pickle.SETITEM[0]: _set_item,
    pickle.SETITEMS[0]: _set_items,
    pickle.ADDITEMS[0]: _no_set,
    pickle.FROZENSET[0]: _no_set,
}
