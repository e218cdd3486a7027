"""What this installation stands on: versions, linear algebra, threads, devices, caches; advice."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from weightscope.report import Block, Cell, Paragraph, Report, Table
from weightscope.resources import available_threads
from weightscope.text import count_of, scaled
from weightscope.version import __version__

if TYPE_CHECKING:
    from weightscope.evaluate import Row

Value = str | int | bool | None
GIB = 1 << 30
LITTLE_MEMORY = 2 * GIB
LITTLE_DISK = GIB
PACKAGES = (
    "torch", "numpy", "scipy", "safetensors", "transformers", "huggingface_hub", "pandas", "typer",
    "rich",
)  # fmt: skip
THREAD_VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS",
)  # fmt: skip
BROKEN = "cannot be examined"
_TRUE = {"1", "ON", "YES", "TRUE"}


@dataclass(frozen=True)
class Fact:
    """Something that is so here.

    Attributes:
        name: Its name, unique in its topic.
        value: A text, a count, yes or no, or nothing.
        is_bytes: Whether a count is one of bytes.
    """

    name: str
    value: Value
    is_bytes: bool = False

    @property
    def text(self) -> str:
        """The value for people."""
        if isinstance(self.value, bool):
            return "yes" if self.value else "no"
        if self.value is None:
            return "none"
        return scaled(float(self.value), "B", 1024) if self.is_bytes else str(self.value)


@dataclass(frozen=True)
class Diagnosis:
    """Facts by topic, and what to do about those that stand in the way."""

    topics: Mapping[str, tuple[Fact, ...]]
    advice: tuple[str, ...]

    def as_record(self) -> dict[str, Any]:
        """Plain values: topic to name to value, and the advice."""
        record: dict[str, Any] = {
            topic: {fact.name: fact.value for fact in facts} for topic, facts in self.topics.items()
        }
        return record | {"advice": list(self.advice)}


def examine(environment: Mapping[str, str] | None = None) -> Diagnosis:
    """Look at everything; nothing is changed, fetched or sent.

    Args:
        environment: Environment variables; those of the process where None.
    """
    env = os.environ if environment is None else environment
    topics = {name: tuple(_examined(look, env)) for name, look in TOPICS.items()}
    known = {name: {fact.name: fact.value for fact in facts} for name, facts in topics.items()}
    return Diagnosis(topics, tuple(advice(known)))


def _examined(
    look: Callable[[Mapping[str, str]], Iterator[Fact]], env: Mapping[str, str]
) -> Iterator[Fact]:
    """The facts of one topic; a library that cannot be loaded is one of them."""
    try:
        yield from look(env)
    except (ImportError, OSError, RuntimeError) as error:
        yield Fact(BROKEN, f"{type(error).__name__}: {error}")


def diagnosis_report(found: Diagnosis) -> Report:
    """Facts by topic, advice last."""
    blocks: list[Block] = []
    for topic, facts in found.topics.items():
        rows = tuple((Cell(fact.name, "dim"), Cell(fact.text)) for fact in facts)
        blocks.append(Table(topic, ("", ""), rows, (False, False)))
    for text in found.advice or ("Nothing stands in the way.",):
        blocks.append(Paragraph(text, "warn" if found.advice else "good"))
    return Report(f"weightscope {__version__}: this machine", tuple(blocks))


def fact_rows(found: Diagnosis) -> list[Row]:
    """One row per fact, for CSV."""
    return [
        {
            "topic": topic,
            "name": fact.name,
            "value": fact.text if isinstance(fact.value, bool) else fact.value,
        }
        for topic, facts in found.topics.items()
        for fact in facts
    ]


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _versions(env: Mapping[str, str]) -> Iterator[Fact]:  # noqa: ARG001
    yield Fact("weightscope", __version__)
    yield Fact("python", platform.python_version())
    yield Fact("system", f"{platform.system()} {platform.release()}")
    yield Fact("machine", platform.machine())
    for package in PACKAGES:
        yield Fact(package, _version(package))
    for extra, packages in _extras().items():
        missing = [name for name in packages if _version(name) is None]
        state = f"without {', '.join(missing)}" if missing else "complete"
        yield Fact(f"extra {extra}", state)


def _extras() -> dict[str, list[str]]:
    """Packages of each optional extra, as the installed distribution lists them."""
    try:
        requirements = metadata.requires("weightscope") or []
    except metadata.PackageNotFoundError:
        requirements = []
    extras: dict[str, list[str]] = {}
    for text in requirements:
        extra = re.search(r"extra\s*==\s*['\"]([\w.-]+)", text)
        name = re.match(r"[\w.-]+", text)
        if extra and name:
            extras.setdefault(extra[1], []).append(name[0])
    return extras


def _linear_algebra(env: Mapping[str, str]) -> Iterator[Fact]:  # noqa: ARG001
    import numpy as np

    from weightscope.provenance import blas_name

    yield Fact("torch", blas_name())
    config: Any = np.show_config(mode="dicts")
    blas = config.get("Build Dependencies", {}).get("blas", {})
    yield Fact("numpy", f"{blas.get('name')} {blas.get('version')}")
    try:
        pools = import_module("threadpoolctl").threadpool_info()
    except ImportError:
        return
    for k, pool in enumerate(sorted(pools, key=lambda pool: str(pool["internal_api"]))):
        name = f"{pool['internal_api']} {pool['version'] or ''}".strip()
        yield Fact(f"pool {k + 1}", f"{name}, {count_of(pool['num_threads'], 'thread')}")


def _threads(env: Mapping[str, str]) -> Iterator[Fact]:
    import torch

    yield Fact("cores", os.cpu_count())
    yield Fact("this process may use", available_threads())
    yield Fact("torch", torch.get_num_threads())
    for name in THREAD_VARIABLES:
        yield Fact(name, env.get(name))


def _memory(env: Mapping[str, str]) -> Iterator[Fact]:  # noqa: ARG001
    known = _meminfo()
    yield Fact("total", known.get("MemTotal"), True)
    yield Fact("available", known.get("MemAvailable"), True)
    yield Fact("limit of the container", _cgroup_memory(), True)


def _meminfo() -> dict[str, int]:
    """Bytes by name; the total alone where there is no /proc."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    except (OSError, ValueError, IndexError):
        pass
    try:
        return {"MemTotal": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    except (AttributeError, OSError, ValueError):
        return {}


def _cgroup_memory() -> int | None:
    try:
        return int(Path("/sys/fs/cgroup/memory.max").read_text())
    except (OSError, ValueError):  # none, or "max"
        return None


def _devices(env: Mapping[str, str]) -> Iterator[Fact]:
    import torch

    from weightscope.executors.local import resolve_device

    device, name = resolve_device("auto")
    yield Fact("auto chooses", f"{device} ({name})")
    yield Fact("float64 works there", _solves_in_float64(device))
    yield Fact("torch built for CUDA", torch.version.cuda)
    yield Fact("CUDA_VISIBLE_DEVICES", env.get("CUDA_VISIBLE_DEVICES"))
    yield Fact("NVIDIA driver", _nvidia_driver())
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    yield Fact("CUDA devices", count)
    for index in range(count):
        free, total = torch.cuda.mem_get_info(index)
        memory = f"{scaled(free, 'B', 1024)} of {scaled(total, 'B', 1024)} free"
        yield Fact(f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory}")
    yield Fact("mps", torch.backends.mps.is_available())


def _solves_in_float64(device: str) -> bool:
    import torch

    try:
        matrix = torch.diag(torch.tensor([4.0, 9.0], dtype=torch.float64, device=device))
        evals: list[float] = torch.linalg.eigvalsh(matrix).cpu().tolist()
    except (RuntimeError, TypeError):
        return False
    return evals == [4.0, 9.0]


def _nvidia_driver() -> str | None:
    """Version of the kernel driver; ``unknown`` where only a device shows that there is one."""
    try:
        found = re.search(r"\d+\.\d+(\.\d+)?", Path("/proc/driver/nvidia/version").read_text())
        return found[0] if found else "unknown"
    except OSError:
        return "unknown" if Path("/dev/nvidiactl").exists() else None


def _caches(env: Mapping[str, str]) -> Iterator[Fact]:
    home = Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "huggingface"
    home = Path(env.get("HF_HOME") or home).expanduser()
    hub = env.get("HF_HUB_CACHE") or env.get("HUGGINGFACE_HUB_CACHE") or home / "hub"
    folder = Path(hub).expanduser()
    yield Fact("HF_HOME", env.get("HF_HOME"))
    yield Fact("hub cache", str(folder))
    yield Fact("models in it", len(list(folder.glob("models--*"))))
    yield Fact("its size", _size(folder), True)
    offline = env.get("HF_HUB_OFFLINE", "") or env.get("TRANSFORMERS_OFFLINE", "")
    yield Fact("offline mode", offline.upper() in _TRUE)
    # whether there is one, never what it is
    token = Path(env.get("HF_TOKEN_PATH") or home / "token").expanduser()
    given = any(env.get(name) for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"))
    yield Fact("hub token", given or token.is_file())


def _size(folder: Path) -> int:
    """Bytes of the files below a folder, links not followed."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                status = (Path(place) / name).lstat()
            except OSError:
                continue
            total += status.st_size
    return total


def _disk(env: Mapping[str, str]) -> Iterator[Fact]:  # noqa: ARG001
    here = Path.cwd()
    yield Fact("this folder", str(here))
    yield Fact("writable", os.access(here, os.W_OK))
    yield Fact("free", shutil.disk_usage(here).free, True)


def _terminal(env: Mapping[str, str]) -> Iterator[Fact]:
    yield Fact("standard output is one", sys.stdout.isatty())
    yield Fact("width", shutil.get_terminal_size().columns)
    yield Fact("encoding", sys.stdout.encoding)
    yield Fact("TERM", env.get("TERM"))
    yield Fact("NO_COLOR", env.get("NO_COLOR"))


TOPICS: Mapping[str, Callable[[Mapping[str, str]], Iterator[Fact]]] = {
    "versions": _versions,
    "linear algebra": _linear_algebra,
    "threads": _threads,
    "memory": _memory,
    "devices": _devices,
    "caches": _caches,
    "disk": _disk,
    "terminal": _terminal,
}


def advice(known: Mapping[str, Mapping[str, Value]]) -> Iterator[str]:
    """A sentence for everything that stands in the way.

    Args:
        known: Topic to name to value.
    """
    for topic, facts in known.items():
        if BROKEN in facts:
            yield f"{topic.capitalize()}: {facts[BROKEN]}. Install weightscope and torch anew."
    if BROKEN not in known["devices"]:
        yield from _advice_on_devices(known["devices"])
    yield from _advice_on_threads(known["threads"])
    available = known["memory"].get("available")
    if isinstance(available, int) and available < LITTLE_MEMORY:
        yield f"Only {scaled(available, 'B', 1024)} of memory are available: use fewer --threads."
    if known["caches"].get("offline mode"):
        yield "Offline mode is on: models that are not in the hub cache cannot be fetched."
    if known["disk"].get("writable") is False:
        yield "This folder is not writable: choose another by --out, or keep no run by --no-save."
    free = known["disk"].get("free")
    if isinstance(free, int) and free < LITTLE_DISK:
        yield f"Only {scaled(free, 'B', 1024)} are free in this folder."
    if str(known["terminal"].get("encoding")).lower().replace("-", "") != "utf8":
        yield "Standard output is not UTF-8: set PYTHONUTF8=1."


def _advice_on_threads(threads: Mapping[str, Value]) -> Iterator[str]:
    cores = threads.get("this process may use")
    for name in THREAD_VARIABLES:
        if threads.get(name) == "1" and isinstance(cores, int) and cores > 1:
            yield (
                f"{name}=1, though {cores} cores may be used: the eigenvalue solver is told its "
                "threads by --threads, but numpy keeps to one. Unset it."
            )


def _advice_on_devices(devices: Mapping[str, Value]) -> Iterator[str]:
    if not devices["float64 works there"]:
        yield "The chosen device does not solve in float64: use --device cpu."
    if devices["NVIDIA driver"] is None or devices["CUDA devices"]:
        return
    if devices["CUDA_VISIBLE_DEVICES"] in {"", "-1"}:
        why = "CUDA_VISIBLE_DEVICES hides it"
    elif devices["torch built for CUDA"] is None:
        why = "this torch is built for the CPU only: install one with CUDA (see pytorch.org)"
    else:
        why = (
            f"torch, built for CUDA {devices['torch built for CUDA']}, cannot use it: compare "
            f"with the driver, {devices['NVIDIA driver']}, in nvidia-smi"
        )
    yield f"There is an NVIDIA GPU, but {why}."
