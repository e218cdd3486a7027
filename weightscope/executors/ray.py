"""A Ray cluster: every batch is a task that reads its own bytes on the node where it runs.

Tasks carry references and recipes, never tensors, and bring back spectra and rows as plain bytes,
so nothing stays in the object store. A task that fails for want of bytes, or with its node, is
tried again elsewhere; a programming error is not.
"""

from __future__ import annotations

import os
import pickle
import re
import secrets
import signal
import sys
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from logging import ERROR
from pathlib import Path
from socket import create_connection
from threading import current_thread, main_thread
from typing import Any, TypeVar

from weightscope.errors import CheckpointError, ExecutorError, OptionError, WeightscopeError
from weightscope.executors.contract import Job, by_cost
from weightscope.executors.nodes import Node, Request, is_loopback, nodes_of, request_for
from weightscope.executors.task import auth_mode, describe, do_batch, first_line, versions
from weightscope.placement import Placement
from weightscope.plan import BASE_BYTES, READ_AHEAD_BYTES, Batch, memory_of
from weightscope.resources import available_threads
from weightscope.text import count_of, shortened
from weightscope.version import __version__

Result = TypeVar("Result")

RETRIES = 3
"""Times that a task is tried again after its node, its process or its file was gone."""
AT_HAND = 2
"""Tasks that are handed to the cluster per task that it can run at a time."""
STORE_BYTES = 100 << 20
"""Object store of a cluster that is started here: results pass through it, nothing stays."""
ANSWER_WITHIN = 10.0
"""Seconds for the address of a cluster to answer."""
LOOK_AROUND = 30.0
"""Seconds without a result after which the nodes are counted again."""
_ADVICE = "what was finished is kept, and --resume continues"


@contextmanager
def connected(placement: Placement, device: str, threads: int) -> Iterator[Cluster]:
    """Connect to a cluster, or start one, and make sure that it can do the work.

    Args:
        placement: Which cluster, and what a task takes of it.
        device: As ``Settings.device``.
        threads: Cores of a task.

    Raises:
        OptionError: Ray is not installed; no node can meet the request; or the cluster obeys
            anyone and that was not allowed.
        ExecutorError: The cluster cannot be reached or its nodes have other versions.
    """
    ray = _imported(placement.ray_address)
    ours = not ray.is_initialized()
    if ours:
        _begin(ray, placement)
    try:
        nodes = nodes_of(ray.nodes())
        _check_protected(placement, nodes, auth_mode())
        request = request_for(nodes, device, placement.ray_gpus_per_task, threads)
        facts = _first_task(ray, request, nodes)
        _check_protected(placement, nodes, facts["auth_mode"])
        task = ray.remote(max_calls=0)(do_batch)  # a process does any number of them
        yield Cluster(ray, task, nodes, request, facts["device_name"])
    finally:
        if ours:
            ray.shutdown()


@dataclass(frozen=True)
class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        ray: The package.
        task: What it calls on nodes.
        nodes: Those that were there at the beginning.
        request: What a task takes of one.
        device_name: Where tasks compute, for people.
    """

    ray: Any
    task: Any
    nodes: tuple[Node, ...]
    request: Request
    device_name: str

    @property
    def device(self) -> str:
        """Kind of device that tasks compute on."""
        return self.request.device

    @property
    def threads(self) -> int:
        """Cores of a task."""
        return self.request.cpus

    @property
    def slots(self) -> int:
        """Tasks that run at a time."""
        return sum(map(self.request.fits, self.nodes))

    @property
    def window(self) -> int:
        """Tasks that are in flight at most."""
        return AT_HAND * self.slots

    @property
    def note(self) -> str:
        """What it is made of."""
        cpus, gpus = sum(n.cpus for n in self.nodes), sum(n.gpus for n in self.nodes)
        return (
            f"Ray cluster: {count_of(len(self.nodes), 'node')}, {count_of(int(cpus), 'CPU')}, "
            f"{count_of(int(gpus), 'GPU')}; "
            f"{count_of(self.slots, 'task')} at a time, each on {self.device_name}"
        )

    def run(
        self, job: Job[Result], batches: Sequence[Batch]
    ) -> Generator[tuple[Batch, list[Result]], None, None]:
        """Do every matrix once; whole batches come as they finish.

        Raises:
            OptionError: The job needs something that only this process has.
            CheckpointError: A node cannot read the bytes of a matrix.
            ExecutorError: Tasks died more often than they are tried again, or no node is left.
        """
        sent = pickle.dumps(job.sent())
        waiting = deque(by_cost(batches))
        pending: dict[Any, Batch] = {}
        try:
            while waiting or pending:
                while waiting and len(pending) < self.window:
                    batch = waiting.popleft()
                    pending[self._submit(sent, batch)] = batch
                ready, _ = self.ray.wait(list(pending), num_returns=1, timeout=LOOK_AROUND)
                if not ready:
                    self._check_nodes(pending.values())
                for ref in ready:
                    batch = pending.pop(ref)
                    yield batch, self._result(ref, batch)
        finally:
            for ref in pending:
                with suppress(Exception):  # the cluster may be gone, and this is the end anyway
                    self.ray.cancel(ref, force=True)

    def _check_nodes(self, pending: Iterable[Batch]) -> None:
        """Make sure that waiting is not in vain.

        Raises:
            ExecutorError: No node is left that could run a task.
        """
        able = [node for node in nodes_of(self.ray.nodes()) if self.request.fits(node)]
        most = max((node.memory for node in able), default=-1)
        for batch in pending:
            if most < (self._options(batch)["memory"] or 0):
                raise ExecutorError(
                    "no node is left in the Ray cluster that could do "
                    f"{shortened(batch.matrices[0].name)}; {_ADVICE}"
                )

    def _submit(self, sent: bytes, batch: Batch) -> Any:
        """Hand one batch to the cluster; returns the reference of its result."""
        task = self.task.options(
            max_retries=RETRIES, retry_exceptions=[CheckpointError], **self._options(batch)
        )
        return task.remote(sent, batch, self.device, self.threads, versions())

    def _options(self, batch: Batch) -> dict[str, Any]:
        """What the task of a batch takes of a node."""
        most = max(map(memory_of, batch.matrices), default=0)
        side_by_side = 1 if batch.alone else min(self.threads, len(batch.matrices))
        needed = BASE_BYTES + READ_AHEAD_BYTES + side_by_side * most
        return self.request.options(needed, self.nodes)

    def _result(self, ref: Any, batch: Batch) -> list[Any]:
        try:
            # a copy of its own, so that the object store can forget it
            found: list[Any] = pickle.loads(self.ray.get(ref))
        except self.ray.exceptions.RayTaskError as error:
            _raise_cause(error)
            raise
        except self.ray.exceptions.RayError as error:
            raise ExecutorError(
                f"the task of {shortened(batch.matrices[0].name)} "
                f"({count_of(len(batch.matrices), 'matrix')}) was given up ({first_line(error)}); "
                f"{_ADVICE}"
            ) from None
        return found


def _imported(address: str) -> Any:
    """The package; what it takes from the environment when it is loaded is set before.

    Raises:
        OptionError: It is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if address == "local" and "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    try:
        import ray
    except ImportError:
        raise OptionError("--executor ray needs Ray: pip install 'weightscope[ray]'") from None
    return ray


def _begin(ray: Any, placement: Placement) -> None:
    """Start a cluster for this process, or connect to one that is there.

    Raises:
        OptionError: It obeys anyone, and that was not allowed.
        ExecutorError: It cannot be reached.
    """
    quiet = {"log_to_driver": False, "logging_level": ERROR}
    address = _current() if placement.ray_address == "auto" else placement.ray_address
    if address == "local":
        quiet |= {
            "include_dashboard": False,
            "num_cpus": available_threads(),
            "object_store_memory": STORE_BYTES,
        }
    try:
        if address not in {"auto", "local"}:
            _knock(address, placement.ray_unprotected or _may_have_token())
        with _signals_kept():
            ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ExecutorError(
            f"no Ray cluster can be used at {address} ({first_line(error)}); see whether it runs "
            "and has the token that is known here, or start one with --ray-address local"
        ) from None


def _current() -> str:
    """The cluster that Ray itself would take, which it notes where it keeps its logs."""
    note = Path(os.environ.get("RAY_TMPDIR") or "/tmp", "ray", "ray_current_cluster")
    with suppress(OSError):
        return os.environ.get("RAY_ADDRESS") or note.read_text().strip()
    return "auto"


def _knock(address: str, protected: bool) -> None:
    """Make sure that somebody is there, which Ray would wait for a minute and more.

    Raises:
        OptionError: It is no address, or beyond this machine and nothing protects it.
        OSError: Nobody is.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        raise OptionError(
            f"--ray-address {address!r}: give auto, local, HOST:PORT or ray://HOST:PORT"
        )
    if not protected and not is_loopback(host):
        raise OptionError(_unprotected(address))
    create_connection((host.strip("[]"), int(port)), ANSWER_WITHIN).close()


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts its own answer to SIGTERM in the place of the program's."""
    if current_thread() is not main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _may_have_token() -> bool:
    """Whether Ray may find a token; it looks for its file where no mode is set."""
    return bool(auth_mode()) or "RAY_AUTH_MODE" not in os.environ


def _unprotected(place: str) -> str:
    return (
        f"the Ray cluster at {place} runs code of anyone who reaches it; start it with "
        "RAY_AUTH_MODE=token on every node and here (docs.ray.io, token authentication), or "
        "accept that with --ray-unprotected"
    )


def _check_protected(placement: Placement, nodes: Sequence[Node], mode: str) -> None:
    """Refuse a cluster beyond this machine that asks for no token.

    Args:
        placement: Whether that is allowed.
        nodes: Nodes of the cluster.
        mode: How it makes sure who commands it; empty where it does not.

    Raises:
        OptionError: Saying what to do.
    """
    exposed = [node.address for node in nodes if not is_loopback(node.address)]
    if exposed and not mode and not placement.ray_unprotected:
        raise OptionError(_unprotected(exposed[0]))


def _first_task(ray: Any, request: Request, nodes: Sequence[Node]) -> dict[str, str]:
    """What a node says of itself, by a task like all others.

    Raises:
        ExecutorError: Tasks cannot run, or not with the same versions.
    """
    task = ray.remote(max_calls=0)(describe).options(**request.options(BASE_BYTES, nodes))
    try:
        found: dict[str, str] = ray.get(task.remote(request.device, versions()))
    except ray.exceptions.RayTaskError as error:
        _raise_cause(error)
        missing = re.search(r"No module named '[\w.]+'|failed to import", str(error))
        if missing:
            raise ExecutorError(
                f"the nodes of the Ray cluster cannot run weightscope ({missing[0]}); install "
                f"weightscope {__version__} on every node"
            ) from None
        raise
    except ray.exceptions.RayError as error:
        raise ExecutorError(f"the cluster cannot run a task ({first_line(error)})") from None
    return found


def _raise_cause(error: Any) -> None:
    """Raise what our own code said on a node, without the traceback of the node."""
    if isinstance(error.cause, WeightscopeError):
        raise error.cause from None
