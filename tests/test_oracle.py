"""WeightWatcher itself, live in a subprocess (pip install '.[oracle]')."""

from __future__ import annotations

import csv
import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from test_compat import CONV, FAMILIES, heavy

import weightscope
from weightscope.evaluate import Row
from weightscope.sinks import weightwatcher

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.skipif(
        importlib.util.find_spec("weightwatcher") is None,
        reason="weightwatcher is not installed: pip install '.[oracle]'",
    ),
]

PEER = """
import logging, os, sys, warnings
logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
import weightwatcher
if os.path.isdir(sys.argv[1]):
    from transformers import AutoModel
    model = AutoModel.from_pretrained(sys.argv[1])
else:
    from safetensors.torch import load_file
    model = load_file(sys.argv[1])
details = weightwatcher.WeightWatcher(model=model).analyze(ERG=True, min_evals=int(sys.argv[3]))
details.to_csv(sys.argv[2], index=False)
"""
SAME = {
    **dict.fromkeys(("alpha", "D", "sigma", "xmin", "xmax", "alpha_weighted"), 1e-6),
    **dict.fromkeys(("log_alpha_norm", "log_norm", "log_spectral_norm", "norm"), 1e-6),
    **dict.fromkeys(("spectral_norm", "lambda_max", "stable_rank", "entropy", "sv_max"), 1e-6),
    **dict.fromkeys(("detX_val", "detX_val_unrescaled"), 1e-6),
    "sv_min": 1e-3,  # by a Gram matrix, where it is far below the others
    **dict.fromkeys(("num_pl_spikes", "detX_num", "num_ERG_spikes", "ERG_gap", "num_evals"), 0),
    **dict.fromkeys(("matrix_rank", "rank_loss", "rf", "N", "M", "Q"), 0),
}
"""Columns in which both must agree, and how closely."""
OF_THE_FIT = {
    *("alpha", "D", "sigma", "xmin", "alpha_weighted", "log_alpha_norm", "num_pl_spikes"),
    *("ERG_gap", "detX_val", "detX_val_unrescaled"),
}


def peer_rows(model: Path, target: Path, min_evals: int = 8) -> dict[str, dict[str, str]]:
    """WeightWatcher's own rows by name."""
    command = [sys.executable, "-c", PEER, str(model), str(target), str(min_evals)]
    subprocess.run(command, check=True, capture_output=True)
    with target.open() as stream:
        return {row["longname"]: row for row in csv.DictReader(stream)}


def our_rows(model: Path) -> dict[str, Row]:
    """Our rows under its conventions and names."""
    run = weightscope.analyze(model, compat="weightwatcher", metrics=FAMILIES, device="cpu")
    return {str(row["longname"]): row for row in weightwatcher.rows(run.rows, "weightwatcher")}


def disagreements(ours: Row, theirs: dict[str, str]) -> set[str]:
    """Columns that differ by more than they may."""
    return {
        column
        for column, tolerance in SAME.items()
        if ours[column] != pytest.approx(float(theirs[column]), rel=tolerance, abs=0)
    }


def test_every_column_of_a_real_model_is_weightwatchers(minilm: Path, tmp_path: Path) -> None:
    """Two eigenvalues differ: it fits them all the same, and its ERG cut stops one short."""
    peer = peer_rows(minilm, tmp_path / "peer.csv", 1)
    rows = our_rows(minilm)
    assert len(peer) == 40
    for name, theirs in peer.items():
        few = int(theirs["num_evals"]) < 8
        assert disagreements(rows[name], theirs) == (OF_THE_FIT if few else set()), name
        assert rows[name]["warning"] == (None if few else theirs["warning"] or None)
    assert sum(int(row["num_evals"]) < 8 for row in peer.values()) == 1


def test_every_column_of_convolutions_is_weightwatchers(tmp_path: Path) -> None:
    """Kernels of 1 x 1 and 3 x 3, an absolute floor that leaves a small sample, a dense layer.

    Left out because the peer is wrong: the smallest singular value of pooled slices (it takes the
    largest of their smallest), and N and M of an even number of positions (it swaps them).
    """
    path = tmp_path / "model.safetensors"
    save_file(CONV, path)
    peer, rows = peer_rows(path, tmp_path / "peer.csv"), our_rows(path)
    assert len(peer) == len(CONV)
    wrong = {"features.0": {"sv_min"}, "features.3": {"sv_min", "N", "M", "Q"}}
    for name, theirs in peer.items():
        assert disagreements(rows[name], theirs) == wrong.get(name, set()), name
    slices = CONV["features.0.weight"].double().flatten(2).permute(2, 0, 1)
    smallest = torch.linalg.svdvals(slices)[:, -1] * 0.5**0.5
    assert float(peer["features.0"]["sv_min"]) == pytest.approx(float(smallest.max()), rel=1e-6)
    assert rows["features.0"]["sv_min"] == pytest.approx(float(smallest.min()), rel=1e-6)
    assert (peer["features.3"]["N"], rows["features.3"]["N"]) == ("24", 40)


def test_rank_deficient_and_small_matrices_are_weightwatchers(tmp_path: Path) -> None:
    """Rounding counts as rank for it, exact zeros do not; between 8 and 19 eigenvalues."""
    rng = np.random.default_rng(11)
    exact = rng.standard_normal((80, 12)) @ rng.standard_normal((12, 48))
    model = {
        "rounded.weight": torch.from_numpy(exact).to(torch.bfloat16).float(),
        "padded.weight": torch.nn.functional.pad(heavy(60, 30, seed=1), (0, 20)),
        "twelve.weight": heavy(40, 12, seed=2),
        "nineteen.weight": heavy(19, 50, seed=3, scale=1.0),
        "eight.weight": heavy(8, 12, seed=4, scale=5.0),
    }
    path = tmp_path / "model.safetensors"
    save_file(model, path)
    peer, rows = peer_rows(path, tmp_path / "peer.csv"), our_rows(path)
    assert len(peer) == len(model)
    for name, theirs in peer.items():
        zero = {"sv_min"} if name == "padded" else set()  # it prints the rounding of zero
        assert disagreements(rows[name], theirs) == zero, name
    assert (rows["rounded"]["matrix_rank"], rows["padded"]["matrix_rank"]) == (48, 30)
    assert rows["padded"]["sv_min"] is None
