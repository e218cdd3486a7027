"""Where the work of an analysis is done, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from weightscope.errors import OptionError

EXECUTORS = ("local", "ray")


@dataclass(frozen=True)
class Placement:
    """Where the work is done. It changes no figure, and is no part of what a run is.

    Attributes:
        executor: ``local`` for the devices of this machine, ``ray`` for a Ray cluster.
        ray_address: ``auto`` for the cluster that this machine belongs to, ``local`` for one that
            is started here for this run alone, ``HOST:PORT``, or ``ray://HOST:PORT`` for a client
            outside the cluster.
        ray_gpus_per_task: Share of a GPU that a task takes, up to 1; 0 computes on the CPU; None
            takes a whole one where the cluster has GPUs that the device allows.
        ray_unprotected: Use a cluster that anyone who reaches it over the network can command.
    """

    executor: Literal["local", "ray"] = "local"
    ray_address: str = "auto"
    ray_gpus_per_task: float | None = None
    ray_unprotected: bool = False

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            OptionError: Naming the option and what it takes.
        """
        if self.executor not in EXECUTORS:
            raise OptionError(f"--executor {self.executor!r}: choose from {', '.join(EXECUTORS)}")
        share = self.ray_gpus_per_task
        if share is not None and not 0 <= share <= 1:
            raise OptionError(
                f"--ray-gpus-per-task {share:g}: give a share of one GPU between 0 and 1; a task "
                "computes on one device"
            )
        if self.executor == "ray":
            return
        for name in ("ray_address", "ray_gpus_per_task", "ray_unprotected"):
            if getattr(self, name) != getattr(Placement, name):
                raise OptionError(f"--{name.replace('_', '-')} is for --executor ray")
