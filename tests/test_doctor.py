"""The doctor: what it says is so, it keeps secrets, and it advises where something is wrong."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import run_weightscope

import weightscope
from weightscope import doctor
from weightscope.cli.doctor import doctor as verb
from weightscope.cli.options import Format
from weightscope.doctor import Value, advice, examine

SECRET = "hf_neverShowThisToAnyone"


def facts(env: dict[str, str] | None = None) -> dict[str, dict[str, Value]]:
    record = examine(env).as_record()
    del record["advice"]
    return record


def known(**changes: dict[str, Value]) -> dict[str, dict[str, Value]]:
    """A machine without a fault, but for the changes."""
    healthy: dict[str, dict[str, Value]] = {
        "versions": {"torch": "2.13.0"},
        "linear algebra": {"torch": "a BLAS"},
        "threads": {"this process may use": 8, "OMP_NUM_THREADS": None},
        "memory": {"available": 16 << 30},
        "devices": {
            "float64 works there": True,
            "torch built for CUDA": None,
            "CUDA_VISIBLE_DEVICES": None,
            "NVIDIA driver": None,
            "CUDA devices": 0,
        },
        "caches": {"offline mode": False},
        "disk": {"writable": True, "free": 100 << 30},
        "terminal": {"encoding": "UTF-8"},
    }
    for topic, values in changes.items():
        healthy[topic.replace("_", " ")] |= values
    return healthy


def test_versions_are_those_of_the_modules_in_use() -> None:
    versions = facts()["versions"]
    assert versions["weightscope"] == weightscope.__version__
    assert versions["torch"] == torch.__version__
    assert versions["numpy"] == np.__version__
    assert {"scipy", "safetensors", "transformers", "huggingface_hub"} <= versions.keys()


def test_extras_say_which_packages_they_lack(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = [
        "numpy>=1.26",
        "numpy>=1.26; extra == 'plots'",
        'no-such-package==1; extra == "plots"',
        "torch>=2; extra == 'train'",
    ]
    monkeypatch.setattr("importlib.metadata.requires", lambda _: listed)
    versions = facts()["versions"]
    assert versions["extra plots"] == "without no-such-package"
    assert versions["extra train"] == "complete"


def test_a_package_that_is_not_there_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", ("numpy", "no-such-package"))
    assert facts()["versions"]["no-such-package"] is None


def test_threads_memory_and_disk_are_the_system_s() -> None:
    found = facts({"OMP_NUM_THREADS": "3"})
    assert found["threads"]["cores"] == os.cpu_count()
    assert found["threads"]["torch"] == torch.get_num_threads()
    assert found["threads"]["OMP_NUM_THREADS"] == "3"
    assert found["threads"]["MKL_NUM_THREADS"] is None
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert found["memory"]["total"] == pytest.approx(pages, rel=0.02)
    free = found["disk"]["free"]
    assert isinstance(free, int)
    assert free == pytest.approx(shutil.disk_usage(Path.cwd()).free, rel=0.05)


def test_the_device_that_auto_chooses_solves_in_float64() -> None:
    devices = facts()["devices"]
    chosen = str(devices["auto chooses"])
    assert chosen.startswith("cuda:0" if torch.cuda.is_available() else "cpu")
    assert devices["float64 works there"] is True
    assert devices["CUDA devices"] == torch.cuda.device_count()


def hub_cache(home: Path) -> Path:
    blobs = home / "hub" / "models--org--name" / "blobs"
    blobs.mkdir(parents=True)
    (blobs / "a").write_bytes(b"x" * 1000)
    (blobs / "b").write_bytes(b"x" * 500)
    snapshot = blobs.parent / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to(blobs / "a")
    return home / "hub"


def test_the_cache_is_counted_once(tmp_path: Path) -> None:
    """Snapshots are links to the blobs."""
    folder = hub_cache(tmp_path)
    caches = facts({"HF_HOME": str(tmp_path)})["caches"]
    assert (caches["hub cache"], caches["models in it"]) == (str(folder), 1)
    size = caches["its size"]
    assert isinstance(size, int) and 1500 <= size < 1500 + 500  # a link has the length of its path
    assert facts({"HF_HUB_CACHE": str(folder)})["caches"]["models in it"] == 1
    nowhere = facts({"HF_HUB_CACHE": str(tmp_path / "nowhere")})["caches"]
    assert (nowhere["models in it"], nowhere["its size"]) == (0, 0)
    default = facts({"XDG_CACHE_HOME": str(tmp_path)})["caches"]
    assert default["hub cache"] == str(tmp_path / "huggingface" / "hub")


@pytest.mark.parametrize(
    ("env", "offline"),
    [({}, False), ({"HF_HUB_OFFLINE": "1"}, True), ({"HF_HUB_OFFLINE": "0"}, False),
     ({"HF_HUB_OFFLINE": "yes"}, True), ({"TRANSFORMERS_OFFLINE": "true"}, True)],
)  # fmt: skip
def test_offline_mode_is_read_as_the_hub_s_client_does(env: dict[str, str], offline: bool) -> None:
    found = examine(env)
    assert found.as_record()["caches"]["offline mode"] is offline
    assert any("Offline" in text for text in found.advice) is offline


@pytest.mark.parametrize("kind", list(Format))
def test_a_token_is_known_to_be_there_and_never_shown(
    kind: Format,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfdbinary: pytest.CaptureFixture[bytes],
) -> None:
    assert facts({"HF_HOME": str(tmp_path)})["caches"]["hub token"] is False
    (tmp_path / "token").write_text(SECRET)
    for env in ({"HF_HOME": str(tmp_path)}, {"HF_HOME": "/nowhere", "HF_TOKEN": SECRET}):
        assert facts(env)["caches"]["hub token"] is True
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        verb(kind)
        out, err = capfdbinary.readouterr()
        assert b"hub token" in out
        assert SECRET.encode() not in out + err


def test_the_command_prints_every_topic() -> None:
    shown = run_weightscope("doctor")
    assert (shown.returncode, shown.stderr) == (0, "")
    for topic in doctor.TOPICS:
        assert f"\n{topic}\n" in shown.stdout
    record = json.loads(run_weightscope("doctor", "--format", "json").stdout)
    assert record.keys() == {*doctor.TOPICS, "advice"}
    assert record["versions"]["torch"] == torch.__version__
    rows = list(csv.DictReader(io.StringIO(run_weightscope("doctor", "--format", "csv").stdout)))
    assert len(rows) == sum(len(record[topic]) for topic in doctor.TOPICS)


def test_a_healthy_machine_gets_no_advice() -> None:
    assert list(advice(known())) == []
    empty = doctor.Diagnosis({"memory": ()}, ())
    assert "Nothing stands in the way." in str(doctor.diagnosis_report(empty))


GPU = {"NVIDIA driver": "580.65.06"}
FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"threads": {"OMP_NUM_THREADS": "1"}}, "OMP_NUM_THREADS=1, though 8 cores"),
    ({"threads": {"MKL_NUM_THREADS": "1"}}, "MKL_NUM_THREADS=1"),
    ({"memory": {"available": 1 << 30}}, "Only 1.0 GiB of memory"),
    ({"disk": {"writable": False}}, "--no-save"),
    ({"disk": {"free": 1 << 20}}, "Only 1.0 MiB are free"),
    ({"terminal": {"encoding": "ascii"}}, "PYTHONUTF8=1"),
    ({"devices": {"float64 works there": False}}, "--device cpu"),
    ({"devices": GPU}, "built for the CPU only"),
    ({"devices": {**GPU, "CUDA_VISIBLE_DEVICES": ""}}, "CUDA_VISIBLE_DEVICES hides it"),
    ({"devices": {**GPU, "torch built for CUDA": "13.0"}}, "the driver, 580.65.06"),
    ({"linear_algebra": {doctor.BROKEN: "OSError: libmkl.so"}}, "Linear algebra: OSError: libmkl"),
]


@pytest.mark.parametrize(("fault", "words"), FAULTS)
def test_every_fault_has_one_piece_of_advice(fault: dict[str, Any], words: str) -> None:
    (text,) = advice(known(**fault))
    assert words in text
    assert text.endswith(".")


@pytest.mark.parametrize(
    "fine",
    [{"devices": {**GPU, "torch built for CUDA": "13.0", "CUDA devices": 1}},
     {"threads": {"OMP_NUM_THREADS": "1", "this process may use": 1}},
     {"threads": {"OMP_NUM_THREADS": "4"}}, {"memory": {"available": None}},
     {"terminal": {"encoding": "utf8"}}],
)  # fmt: skip
def test_what_is_no_fault_gets_none(fine: dict[str, Any]) -> None:
    assert list(advice(known(**fine))) == []


def test_a_library_that_cannot_be_loaded_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> bool:
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(torch.cuda, "is_available", broken)
    found = examine({})
    assert "libcudart" in str(found.as_record()["devices"][doctor.BROKEN])
    assert any(text.startswith("Devices: OSError: libcudart") for text in found.advice)
    assert {"versions", "disk", "terminal"} <= found.topics.keys()
