"""WeightWatcher itself, live in a subprocess, on MiniLM (pip install '.[oracle]')."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import weightscope
from weightscope.recipe import EvalFloor
from weightscope.sinks import weightwatcher

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(
        importlib.util.find_spec("weightwatcher") is None,
        reason="weightwatcher is not installed: pip install '.[oracle]'",
    ),
]

PEER = """
import logging, sys, warnings
logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
import weightwatcher
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
details = weightwatcher.WeightWatcher(model=model).analyze(ERG=True)
details.to_csv(sys.argv[2], index=False)
"""
SAME = {
    "alpha": 1e-6,
    "D": 1e-6,
    "sigma": 1e-6,
    "xmin": 1e-6,
    "alpha_weighted": 1e-6,
    "log_alpha_norm": 1e-6,
    "log_norm": 1e-6,
    "norm": 1e-6,
    "spectral_norm": 1e-6,
    "stable_rank": 1e-6,
    "entropy": 1e-6,
    "sv_max": 1e-6,
    "sv_min": 1e-3,
    "num_pl_spikes": 0,
    "detX_num": 0,
    "ERG_gap": 0,
}
"""Columns in which both must agree, and how closely: the peer computes its SVD in float32."""


def test_same_figures_as_weightwatcher(minilm: Path, tmp_path: Path) -> None:
    target = tmp_path / "peer.csv"
    command = [sys.executable, "-c", PEER, str(minilm), str(target)]
    subprocess.run(command, check=True, capture_output=True)
    with target.open() as stream:
        peer = {row["longname"]: row for row in csv.DictReader(stream)}
    run = weightscope.analyze(str(minilm), eval_floor=EvalFloor("abs", 1e-5))
    compared = 0
    for row in weightwatcher.rows(run.rows):
        theirs = peer.get(str(row["longname"]))
        if theirs is None or int(theirs["num_evals"]) < 20:
            continue
        compared += 1
        for column, tolerance in SAME.items():
            expected = pytest.approx(float(theirs[column]), rel=tolerance, abs=0)
            assert row[column] == expected, (row["longname"], column)
    assert compared == 39
