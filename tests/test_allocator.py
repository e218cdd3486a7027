"""Memory goes back: large blocks to the system, and matrices without the garbage collector."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from checkpoints import gaussian

import weightscope
from weightscope.executors import allocator

GLIBC = platform.libc_ver()[0] == "glibc"
GROWTH = """
import torch
from weightscope.executors.allocator import give_back_large_blocks

def status(name):
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines[name].split()[0]) >> 10

asked = give_back_large_blocks()
before = status("VmRSS")
torch.ones(31 << 20, dtype=torch.uint8)  # blocks of up to this size come from heaps else, now on
kept = []
for size in range(60):
    block = torch.ones(6 + size // 4 << 20, dtype=torch.uint8)
    kept.append(torch.ones(100_000, dtype=torch.uint8))
    del block
print(asked, status("VmHWM") - before)
"""


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    allocator.give_back_large_blocks.cache_clear()
    yield
    allocator.give_back_large_blocks.cache_clear()


@pytest.mark.skipif(not GLIBC, reason="another C library")
def test_holes_of_large_blocks_do_not_add_up() -> None:
    """Whether they would depends on the layout: by 400 MiB, in every second process."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    command = [sys.executable, "-c", GROWTH]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    asked, growth = done.stdout.split()
    assert asked == "True" and int(growth) < 31 + 6 + 16


def test_other_c_libraries_and_the_user_s_own_choice_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuses(name: Any) -> Any:
        raise AssertionError(name)

    monkeypatch.setattr(ctypes, "CDLL", refuses)
    monkeypatch.setattr(platform, "libc_ver", lambda: ("musl", "1.2"))
    assert not allocator.give_back_large_blocks()
    allocator.give_back_large_blocks.cache_clear()
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.40"))
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "1000000")
    assert not allocator.give_back_large_blocks()


def test_no_matrix_waits_for_the_garbage_collector() -> None:
    """Windows large enough to share products, and every family."""
    model = {f"layers.{n}.up.weight": gaussian(700, 600, seed=n) for n in range(2)}
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        weightscope.analyze(model, device="cpu", threads=2)
        gc.collect()
        left = [type(one).__name__ for one in gc.garbage if type(one).__module__ != "builtins"]
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()
    assert not {"Tensor", "Measurement", "Spectrum"} & set(left)
