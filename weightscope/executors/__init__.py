"""Where the work runs: one executor per file, all of one contract."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from weightscope.errors import OptionError
from weightscope.executors.contract import Executor
from weightscope.placement import Placement
from weightscope.resources import available_threads


@contextmanager
def executor_for(placement: Placement, device: str, threads: int) -> Iterator[Executor]:
    """The place that was chosen for the work, as long as it is needed.

    Args:
        placement: The choice.
        device: As ``Settings.device``.
        threads: Cores to use, of one task on a cluster; 0 takes all here and one there.

    Raises:
        OptionError: There is no such device or cluster, or it cannot do what is asked for.
        ExecutorError: The cluster cannot be used.
    """
    if placement.executor == "ray":
        from weightscope.executors import ray

        with ray.connected(placement, device, threads or 1) as cluster:
            yield cluster
        return
    from weightscope.executors import devices

    try:
        here = devices.on_this_machine(device, threads or available_threads())
    except (ValueError, RuntimeError) as error:
        raise OptionError(f"--device {device}: {error}") from None
    yield here
