"""What this process may use of the machine."""

from __future__ import annotations

import os
from pathlib import Path


def available_threads() -> int:
    """Cores that this process may use: its affinity, bounded by the container's quota."""
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        cores = os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, round(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores
