"""What verbs that compute nothing cost, against Python processes that import the same libraries.

python tests/benchmarks/startup.py [--rows 300] [--values 512] [--runs 7]

``--help`` against importing typer and rich: the bar is 2. ``inspect`` of a 70B-shaped index whose
shards are sparse files, and ``report``, ``compare`` and ``track`` of saved runs, against a process
that does nothing but import what they import: the bar is 3. What that is is asked of each verb: the
packages beside our own that are in memory when it ends. The same over numpy, typer and rich alone
is printed beside.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from timing import Cost, in_turn, process, ratio, shown

import weightscope

IMPORTS = "import numpy, typer, rich"
PARTS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.up_proj", "mlp.down_proj")  # fmt: skip
FAMILIES = ("alpha", "erg", "condition", "rank", "welore", "mp", "norms", "stats")
LOADED = """
import runpy, sys
sys.argv[0] = "weightscope"
try:
    runpy.run_module("weightscope", run_name="__main__")
except SystemExit:
    pass
tops = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print("import", ", ".join(sorted(t for t in tops if getattr(sys.modules.get(t), "__file__", "")
      and t != "weightscope" and not t.startswith("_"))), file=sys.stderr)
"""
LAYERS, HIDDEN, FFN, KV, VOCAB = 80, 8192, 28672, 1024, 128256


def shards() -> list[dict[str, tuple[int, ...]]]:
    """Tensors of every shard: the embedding and the head, then one layer each."""
    found: list[dict[str, tuple[int, ...]]] = [
        {"model.embed_tokens.weight": (VOCAB, HIDDEN), "lm_head.weight": (VOCAB, HIDDEN)}
    ]
    for i in range(LAYERS):
        shapes = {
            "self_attn.q_proj": (HIDDEN, HIDDEN),
            "self_attn.k_proj": (KV, HIDDEN),
            "self_attn.v_proj": (KV, HIDDEN),
            "self_attn.o_proj": (HIDDEN, HIDDEN),
            "mlp.gate_proj": (FFN, HIDDEN),
            "mlp.up_proj": (FFN, HIDDEN),
            "mlp.down_proj": (HIDDEN, FFN),
            "input_layernorm": (HIDDEN,),
            "post_attention_layernorm": (HIDDEN,),
        }
        found.append({f"model.layers.{i}.{n}.weight": shape for n, shape in shapes.items()})
    return found


def write_sparse(folder: Path) -> int:
    """A 70B model of nothing but headers; returns the bytes that it pretends to have."""
    folder.mkdir()
    weight_map, total = {}, 0
    for i, tensors in enumerate(shards()):
        entries, position = {}, 0
        for name, shape in tensors.items():
            size = 2
            for n in shape:
                size *= n
            offsets = [position, position + size]
            entries[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": offsets}
            position += size
        header = json.dumps(entries).encode()
        shard = f"model-{i + 1:05d}-of-{LAYERS + 1:05d}.safetensors"
        with (folder / shard).open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            file.truncate(8 + len(header) + position)
        weight_map |= dict.fromkeys(tensors, shard)
        total += position
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return total


def write_run(folder: Path, rows: int, values: int, seed: int) -> str:
    """A saved run of so many square matrices of Student-t entries."""
    generator = torch.Generator().manual_seed(seed)
    model = {}
    for i in range(rows):
        block, part = divmod(i, len(PARTS))
        normal, chi = torch.randn(2, values, values, generator=generator)
        model[f"model.layers.{block}.{PARTS[part]}.weight"] = normal / (0.1 + chi.abs())
    weightscope.analyze(model, out=folder, metrics=FAMILIES)
    return str(folder)


def imports_of(words: tuple[str, ...]) -> str:
    """A line that imports the packages that a verb has in memory when it ends."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *words], capture_output=True, text=True, check=True
    )
    return done.stderr.splitlines()[-1]


def main() -> None:
    """Read the command line and time the processes in turn."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--values", type=int, default=512)
    parser.add_argument("--runs", type=int, default=7)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        bytecode = {"PYTHONPYCACHEPREFIX": str(root / "bytecode"), "PYTHONDONTWRITEBYTECODE": ""}

        def python(*words: str) -> Cost:
            return process([sys.executable, *words], 1, **bytecode)

        total = write_sparse(root / "big")
        steps = (100, 200)
        runs = [write_run(root / f"checkpoint-{n}.weightscope", o.rows, o.values, n) for n in steps]
        verbs = {"--help": ("--help",), "analyze --help": ("analyze", "--help")}
        verbs["inspect"] = ("inspect", str(root / "big"))
        for kind in ("csv", "table"):
            for verb, count in (("report", 1), ("compare", 2), ("track", 2)):
                verbs[f"{verb}, {kind}"] = (verb, *runs[:count], "--format", kind)
        same = {name: imports_of(words) for name, words in verbs.items()}
        plain = "import typer, rich"
        for line in {plain, IMPORTS, *same.values()}:
            verbs[line] = ("-c", line)
        sides = {
            name: lambda w=words: python(*(w if w[0] == "-c" else ("-m", "weightscope", *w)))
            for name, words in verbs.items()
        }
        in_turn(sides, 1)  # compiles the modules
        costs = in_turn(sides, o.runs)
    print(f"inspected: {total / 1e9:.0f} GB; saved runs: {o.rows} rows; median of {o.runs}")
    for name, line in same.items():
        print(f"{name:15} {shown(costs[name])}; processors: ", end="")
        for below in dict.fromkeys((plain if "help" in name else IMPORTS, line)):
            print(f"{ratio(costs[name], costs[below])[1]:5.2f} times {below}", end="; ")
        print()


if __name__ == "__main__":
    main()
