"""Train a small byte-level Llama on Python's own documentation.

The text is what every Python installation carries: the language reference topics behind
``help()`` (``pydoc_data.topics``) and the docstrings of the standard-library files listed in
``STDLIB_FILES``.  One byte is one token, so there is no tokenizer; a NUL byte ends each document.
Nothing is downloaded.  The documents in ``HELD_OUT`` are kept out of training.

The checkpoints in ``tiny-llama`` were written by this command, which needs ``torch`` and
``transformers``, one CPU core, less than 1 GB of memory and about a quarter of an hour::

    python examples/train_tiny_llama.py --steps 2000 --save-at 100,500,2000 \
        --out examples/tiny-llama --seed 0 --batch-size 12 --sequence-length 256 \
        --learning-rate 2e-3 --threads 1

Training runs in float32; each checkpoint is a bfloat16 copy, sharded as large models are.  With
``--observe-every 100``, weightscope (which must be installed) analyses the model every 100 steps,
which changes nothing in the training, and writes ``alpha_over_steps.csv`` beside the checkpoints.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import math
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import logging as transformers_logging

if TYPE_CHECKING:
    from weightscope.integrations.torch import Observer

STDLIB_FILES = """
    argparse.py base64.py bdb.py bz2.py calendar.py cmd.py collections/__init__.py compileall.py
    configparser.py contextlib.py copy.py csv.py dataclasses.py difflib.py dis.py doctest.py enum.py
    filecmp.py fileinput.py fractions.py ftplib.py getopt.py graphlib.py gzip.py heapq.py hmac.py
    imaplib.py inspect.py json/__init__.py json/decoder.py json/encoder.py lzma.py mailbox.py
    mimetypes.py ntpath.py operator.py os.py pdb.py pickletools.py pkgutil.py plistlib.py pprint.py
    py_compile.py pyclbr.py pydoc.py queue.py random.py runpy.py sched.py selectors.py shelve.py
    smtplib.py socket.py ssl.py statistics.py symtable.py tempfile.py threading.py timeit.py
    tokenize.py traceback.py typing.py uuid.py warnings.py wave.py weakref.py webbrowser.py
"""
HELD_OUT = {"topic comparisons", "topic import", "docstrings random.py", "docstrings threading.py"}
END_OF_DOCUMENT = 0
MAX_SHARD_SIZE = "1200KB"
MAX_POSITIONS = 256

Log = list[dict[str, float]]


@dataclass(frozen=True)
class Settings:
    """What the command line decides."""

    out: Path
    steps: int
    save_at: frozenset[int]
    seed: int
    batch_size: int
    sequence_length: int
    learning_rate: float
    threads: int
    log_every: int
    observe_every: int


def docstrings(source: str) -> Iterator[str]:
    """Yield every docstring in ``source``, each under the name of what it documents."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield text if isinstance(node, ast.Module) else f"{node.name}\n{text}"


def documents() -> dict[str, str]:
    """Return all documents by name; a paragraph that occurs again is kept only the first time."""
    found = {f"topic {name}": text for name, text in sorted(topics.items())}
    standard_library = Path(sysconfig.get_path("stdlib"))
    for name in STDLIB_FILES.split():
        source = (standard_library / name).read_text(encoding="utf-8")
        found[f"docstrings {name}"] = "\n\n".join(docstrings(source))
    seen: set[str] = set()
    for name, text in found.items():
        fresh = [part for part in dict.fromkeys(text.split("\n\n")) if part not in seen]
        seen.update(fresh)
        found[name] = "\n\n".join(fresh)
    return {name: text for name, text in found.items() if text}


def load_text() -> tuple[Tensor, Tensor]:
    """Return the training and the held-out bytes as two one-dimensional tensors."""
    training, held_out = bytearray(), bytearray()
    for name, text in documents().items():
        chosen = held_out if name in HELD_OUT else training
        chosen += text.encode() + bytes([END_OF_DOCUMENT])
    tokens = [torch.frombuffer(text, dtype=torch.uint8).long() for text in (training, held_out)]
    return tokens[0], tokens[1]


def make_model() -> LlamaForCausalLM:
    """Return a new model of 1.6 million parameters with random weights."""
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=192,
        intermediate_size=448,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_POSITIONS,
        tie_word_embeddings=False,
        bos_token_id=END_OF_DOCUMENT,
        eos_token_id=END_OF_DOCUMENT,
    )
    return LlamaForCausalLM(config)


def next_byte_loss(model: LlamaForCausalLM, windows: Tensor) -> Tensor:
    """Return the mean cross-entropy, in nats, of each byte given those before it."""
    logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), windows[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, text: Tensor, length: int = MAX_POSITIONS) -> float:
    """Return the mean loss over ``text`` cut into windows of ``length`` predictions."""
    windows = text.unfold(0, length + 1, length)
    total = 0.0
    for batch in torch.split(windows, 16):
        total += next_byte_loss(model, batch).item() * len(batch)
    return total / len(windows)


def scheduled_rate(step: int, steps: int, peak: float) -> float:
    """Return the learning rate of ``step`` (from 1): a linear warm-up, then half a cosine."""
    warm_up = max(1, min(100, steps // 10))
    if step <= warm_up:
        return peak * step / warm_up
    progress = (step - warm_up) / max(1, steps - warm_up)
    return peak * (0.1 + 0.45 * (1 + math.cos(math.pi * progress)))


def make_optimizer(model: LlamaForCausalLM) -> torch.optim.AdamW:
    """Return AdamW with weight decay on the matrices of the layers and the head only."""
    decayed: list[Tensor] = []
    plain: list[Tensor] = []
    for name, parameter in model.named_parameters():
        is_matrix = parameter.ndim == 2 and "embed_tokens" not in name
        (decayed if is_matrix else plain).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": 0.1},
        {"params": plain, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.95))


def report(log: Log, step: int, **values: float) -> None:
    """Add an entry to ``log``, in the layout of the Trainer's ``log_history``, and print it."""
    log.append({**values, "step": step})
    shown = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
    print(f"step {step:5d}  {shown}", file=sys.stderr)


def save_checkpoint(model: LlamaForCausalLM, folder: Path, step: int, log: Log) -> None:
    """Write a bfloat16 copy of ``model`` in shards, with the log so far beside it."""
    copy.deepcopy(model).to(torch.bfloat16).save_pretrained(folder, max_shard_size=MAX_SHARD_SIZE)
    state = {"global_step": step, "log_history": log}
    (folder / "trainer_state.json").write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")


def make_observer(model: LlamaForCausalLM, settings: Settings) -> Observer | None:
    """Return what analyses ``model`` if asked for, with the analysis before the first step."""
    if not settings.observe_every:
        return None
    from weightscope.integrations.torch import Observer

    columns = ("alpha", "alpha_ks", "stable_rank", "spectral_norm")
    metrics = ("alpha", "rank", "norms")
    observer = Observer(model, settings.observe_every, metrics=metrics, columns=columns)
    observer.step(0)
    return observer


def train(settings: Settings) -> float:
    """Train, save the checkpoints asked for, and return the last held-out loss in nats."""
    torch.set_num_threads(settings.threads)
    torch.use_deterministic_algorithms(mode=True)
    torch.manual_seed(settings.seed)
    transformers_logging.disable_progress_bar()
    training, held_out = load_text()
    print(f"{len(training)} bytes to train on, {len(held_out)} held out", file=sys.stderr)
    model = make_model()
    optimizer = make_optimizer(model)
    observer = make_observer(model, settings)
    window = torch.arange(settings.sequence_length + 1)
    log: Log = []
    losses: list[float] = []
    evaluated = math.nan
    for step in range(1, settings.steps + 1):
        rate = scheduled_rate(step, settings.steps, settings.learning_rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        starts = torch.randint(len(training) - settings.sequence_length, (settings.batch_size, 1))
        loss = next_byte_loss(model, training[starts + window])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if step % settings.log_every == 0 or step == settings.steps:
            report(log, step, loss=sum(losses) / len(losses), learning_rate=rate)
            losses.clear()
        if step in settings.save_at or step == settings.steps:
            evaluated = held_out_loss(model, held_out, settings.sequence_length)
            report(log, step, eval_loss=evaluated)
        if step in settings.save_at:
            save_checkpoint(model, settings.out / f"checkpoint-{step}", step, log)
        if observer:
            observer.step(step)
    if observer:
        observer.close()
        observer.write_csv(settings.out / "alpha_over_steps.csv", force=True)
    return evaluated


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Train a tiny Llama on Python's documentation.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--save-at", default="100,500,2000", metavar="STEP,STEP,...")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=12)
    parser.add_argument("--sequence-length", type=int, default=256)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--observe-every", type=int, default=0, help="0: never")
    options = vars(parser.parse_args(arguments))
    try:
        options["save_at"] = frozenset(int(step) for step in options["save_at"].split(","))
    except ValueError:
        parser.error("--save-at takes step numbers separated by commas")
    settings = Settings(**options)
    if not all(1 <= step <= settings.steps for step in settings.save_at):
        parser.error(f"--save-at names a step outside 1..{settings.steps}")
    if settings.observe_every < 0:
        parser.error("--observe-every takes a number of steps, or 0")
    if not 1 <= settings.sequence_length <= MAX_POSITIONS:
        parser.error("--sequence-length must be between 1 and 256")
    return settings


def main() -> None:
    """Train as the command line says and report the held-out loss."""
    settings = parse_arguments()
    loss = train(settings)
    bits = loss / math.log(2)
    print(f"step {settings.steps}  held-out loss {loss:.4f} nats  {bits:.4f} bits per byte")


if __name__ == "__main__":
    main()
