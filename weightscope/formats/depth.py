"""How deep a pickle nests its tuples, told from its text alone.

Hashing a tuple goes down into it on the stack of the C program, which a hostile pickle of a few
hundred kilobytes can overflow: the process dies without a word. No unpickler asks before.
"""

from __future__ import annotations

import io
import pickletools
from contextlib import suppress
from typing import Any

DEEPEST = 10_000
_ENOUGH_TO_ASK = 50_000
"""Bytes that may make a tuple; with fewer the stack suffices in any case."""
_MARK = -1


def nests_too_deep(raw: bytes) -> bool:
    """Whether tuples of a pickle lie in one another beyond any use.

    Args:
        raw: The pickle, or several in a row; what else is wrong with it does not matter here.
    """
    if sum(raw.count(opcode) for opcode in (b"\x85", b"\x86", b"\x87", b"(")) < _ENOUGH_TO_ASK:
        return False
    stream = io.BytesIO(raw)
    stack: list[int] = []
    memo: dict[int, int] = {}
    with suppress(ValueError, IndexError, KeyError):  # the end, or damaged: the unpickler will say
        while True:
            for opcode, argument, _ in pickletools.genops(stream):
                _step(opcode, argument, stack, memo)
                if stack and stack[-1] > DEEPEST:
                    return True
    return False


def _step(
    opcode: pickletools.OpcodeInfo, argument: Any, stack: list[int], memo: dict[int, int]
) -> None:
    """Do what an opcode does to the depths of what lies on the unpickler's stack."""
    name = opcode.name
    if name == "MARK":
        stack.append(_MARK)
    elif name.startswith("TUPLE"):
        stack.append(1 + max(_taken(stack, opcode), default=0))
    elif name == "DUP":
        stack.append(stack[-1])
    elif name == "MEMOIZE":
        memo[len(memo)] = stack[-1]
    elif name in {"PUT", "BINPUT", "LONG_BINPUT"}:
        memo[argument] = stack[-1]
    elif name in {"GET", "BINGET", "LONG_BINGET"}:
        stack.append(memo[argument])
    else:
        _taken(stack, opcode)
        stack += [0] * len(opcode.stack_after)


def _taken(stack: list[int], opcode: pickletools.OpcodeInfo) -> list[int]:
    """Take from the stack what an opcode takes."""
    taken: list[int] = []
    count = len(opcode.stack_before)
    if pickletools.markobject in opcode.stack_before:
        while (depth := stack.pop()) != _MARK:
            taken.append(depth)
        count = opcode.stack_before.index(pickletools.markobject)
    return taken + [stack.pop() for _ in range(count)]
