"""Large blocks of memory go back to the system as soon as they are free.

The C library takes blocks of up to 32 MiB from its heaps, once one of that size was given back.
There matrices of all sizes lie between the few results that stay, no hole fits the next matrix, and
the memory of a process grows with the number of matrices.
"""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import suppress
from functools import cache

LARGE_BLOCK = 2 << 20
"""Bytes; a block costs the clearing of its pages, about a tenth of what is done with a window."""
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_VARIABLE = "MALLOC_MMAP_THRESHOLD_"


@cache
def give_back_large_blocks() -> bool:
    """Ask the C library for it, for the whole process; whether it was asked.

    A threshold that the user has set in the environment stays.
    """
    if platform.libc_ver()[0] != "glibc" or _VARIABLE in os.environ:
        return False
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        return bool(mallopt(_MMAP_THRESHOLD, LARGE_BLOCK) and mallopt(_TRIM_THRESHOLD, LARGE_BLOCK))
    return False
