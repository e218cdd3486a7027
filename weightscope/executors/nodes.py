"""The nodes of a cluster, what a task takes of one, and whether any of them has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

from weightscope.errors import OptionError

_KIND = "accelerator_type:"


@dataclass(frozen=True)
class Node:
    """A machine of a cluster.

    Attributes:
        address: Of its network interface.
        cpus: Cores.
        gpus: GPUs.
        memory: Bytes that tasks may take.
        kind: Model of its GPUs; empty where it has none or does not tell.
    """

    address: str
    cpus: float
    gpus: float
    memory: int
    kind: str = ""


@dataclass(frozen=True)
class Request:
    """What a task takes of a node.

    Attributes:
        cpus: Cores.
        gpus: Share of a GPU; 0 computes on the CPU.
        kind: Model of the GPU; empty for any.
    """

    cpus: int
    gpus: float = 0
    kind: str = ""

    @property
    def device(self) -> str:
        """Kind of device that the task computes on."""
        return "cuda" if self.gpus else "cpu"

    def fits(self, node: Node) -> int:
        """How many such tasks a node runs at a time, as far as cores and GPUs go."""
        if self.gpus and self.kind not in {"", node.kind}:
            return 0
        by_cpus = int(node.cpus // self.cpus)
        # a GPU is divided among whole shares: of 0.4 each takes two
        return min(by_cpus, int(node.gpus) * int(1 / self.gpus)) if self.gpus else by_cpus

    def options(self, memory: int, nodes: Sequence[Node]) -> dict[str, Any]:
        """Options of a task.

        Args:
            memory: Bytes that it needs; one that needs more than a node has gets all of it.
            nodes: Nodes of the cluster.
        """
        most = max((node.memory for node in nodes if self.fits(node)), default=0)
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "memory": min(memory, most) or None,
            "resources": {f"{_KIND}{self.kind}": 0.001} if self.kind else None,
            "scheduling_strategy": "SPREAD",
        }


def nodes_of(records: Iterable[Mapping[str, Any]]) -> tuple[Node, ...]:
    """Nodes that are alive, from how the cluster describes them."""
    return tuple(_node(record) for record in records if record["Alive"])


def _node(record: Mapping[str, Any]) -> Node:
    has = record["Resources"]
    kinds = [name.removeprefix(_KIND) for name in has if name.startswith(_KIND)]
    return Node(
        record["NodeManagerAddress"],
        has.get("CPU", 0),
        has.get("GPU", 0),
        int(has.get("memory", 0)),
        kinds[0] if kinds and has.get("GPU") else "",
    )


def request_for(nodes: Sequence[Node], device: str, share: float | None, threads: int) -> Request:
    """What a task takes, made sure of that some node has it.

    Args:
        nodes: Nodes of the cluster.
        device: As ``Settings.device``.
        share: Share of a GPU; None for a whole one where there are any and the device allows.
        threads: Cores.

    Raises:
        OptionError: No node has it, or device and share contradict each other.
    """
    kind_of_device, _, index = device.partition(":")
    if kind_of_device not in {"auto", "cpu", "cuda"} or index:
        raise OptionError(f"--device {device}: on a cluster choose auto, cpu or cuda")
    if device == "cpu" and share:
        raise OptionError("--device cpu contradicts --ray-gpus-per-task")
    if device == "cuda" and share == 0:
        raise OptionError("--device cuda contradicts --ray-gpus-per-task 0")
    if share is None:
        wanted = device == "cuda" or (device == "auto" and any(node.gpus for node in nodes))
        share = 1.0 if wanted else 0.0
    request = Request(threads, share)
    able = [node for node in nodes if request.fits(node)]
    if not able:
        raise OptionError(_too_much(request, nodes))
    if not share:
        return request
    kinds: Counter[str] = Counter()
    for node in able:
        kinds[node.kind] += int(node.gpus)
    return Request(threads, share, max(kinds, key=lambda kind: (kinds[kind], kind)))


def _too_much(request: Request, nodes: Sequence[Node]) -> str:
    asked = f"{request.gpus:g} GPU and " if request.gpus else ""
    largest = max(nodes, key=lambda n: (n.gpus, n.cpus), default=None)
    has = (
        "it has no node"
        if largest is None
        else f"the largest has {largest.gpus:g} GPUs and {largest.cpus:g} CPUs"
    )
    return (
        f"no node of the Ray cluster has {asked}{request.cpus} CPU for a task ({has}); see "
        "--ray-gpus-per-task, --device and --threads"
    )


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach an address."""
    if address == "localhost":
        return True
    try:
        return ip_address(address.strip("[]")).is_loopback
    except ValueError:  # a name, which may mean anything
        return False
