"""What a task does on the node of a cluster where it runs; nothing here knows of Ray."""

from __future__ import annotations

import os
import pickle
import platform
from collections.abc import Mapping
from functools import lru_cache
from importlib.metadata import version
from typing import Any

from weightscope.errors import CheckpointError, ExecutorError
from weightscope.executors.contract import Job
from weightscope.executors.local import resolve_device, run
from weightscope.plan import Batch
from weightscope.version import __version__


def do_batch(
    sent: bytes, batch: Batch, device: str, threads: int, expected: Mapping[str, str]
) -> bytes:
    """Do one batch on the node where this runs; the body of a task.

    Args:
        sent: The job, pickled.
        batch: What to do.
        device: ``cpu``, or ``cuda`` for the GPU that Ray has made visible.
        threads: Cores that may be used.
        expected: Versions that the figures depend on.

    Returns:
        The results, pickled.

    Raises:
        ExecutorError: Versions differ, or the device is not there.
        CheckpointError: The bytes of a matrix cannot be read here.
    """
    check_versions(expected)
    name = _device_here(device)[0]
    try:
        with _arrived(sent).opened(batch.matrices) as work_on:
            work = work_on(name)
            done = run([batch], work.fetch, work, threads, name)
            return pickle.dumps([result for _, results in done for result in results])
    except (CheckpointError, OSError) as error:
        raise CheckpointError(f"node {platform.node()}: {error}") from None


@lru_cache(1)
def _arrived(sent: bytes) -> Job[Any]:
    """The job, once per process: a checkpoint is opened there for all tasks of a run."""
    job: Job[Any] = pickle.loads(sent)
    return job.arrived()


def describe(device: str, expected: Mapping[str, str]) -> dict[str, str]:
    """What a node says of itself to the first task.

    Raises:
        ExecutorError: Versions differ, or the device is not there.
    """
    check_versions(expected)
    return {"device_name": _device_here(device)[1], "auth_mode": auth_mode()}


def versions() -> dict[str, str]:
    """Versions in this process that figures depend on, whatever device they were built for."""
    libraries = {name: version(name).partition("+")[0] for name in ("torch", "numpy")}
    return {"weightscope": __version__, **libraries}


def check_versions(expected: Mapping[str, str]) -> None:
    """Refuse to compute where other versions would give other figures.

    Raises:
        ExecutorError: Naming both versions.
    """
    for name, found in versions().items():
        if found != expected[name]:
            raise ExecutorError(
                f"node {platform.node()} has {name} {found}, but the analysis was started with "
                f"{name} {expected[name]}; install the same version on every node"
            )


def _device_here(device: str) -> tuple[str, str]:
    try:
        return resolve_device(device)
    except (ValueError, RuntimeError) as error:
        raise ExecutorError(
            f"node {platform.node()}: Ray gave the task a GPU, but torch cannot use it ({error})"
        ) from None


def auth_mode() -> str:
    """How this process proves to a cluster who it is; empty where it does not."""
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    return "" if mode == "disabled" else mode


def first_line(error: BaseException) -> str:
    """The beginning of what an error says."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
