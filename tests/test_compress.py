"""Checkpoints of factors: what is written, what is refused, and what transformers makes of it."""

from __future__ import annotations

import csv
import io
import json
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import (
    environment,
    gaussian,
    run_each,
    run_weightscope,
    small_model,
    write_file,
    write_sharded,
)
from safetensors import safe_open
from safetensors.torch import load_file

import weightscope
from weightscope import compress as c
from weightscope.compressed import RECORD, Compressed, why_not_ours
from weightscope.decompositions.truncated import truncated
from weightscope.errors import CheckpointError, IncomparableRunsError, OutputError, PlanError
from weightscope.outputs import check_whole_folder, whole_folder
from weightscope.plans.welore import Options, plan
from weightscope.rank_plan import RankPlan, read_rank_plan
from weightscope.settings import Settings
from weightscope.sources import open_model

TINY = Path(__file__).parent.parent / "examples" / "tiny-llama" / "checkpoint-2000"
FAST = {"metrics": ("rank", "welore"), "device": "cpu", "threads": 1}
CPU = Settings(device="cpu", threads=1)


class Quiet:
    """An observer that remembers remarks and progress."""

    def __init__(self) -> None:
        """Nothing yet."""
        self.notes: list[str] = []
        self.total = 0.0
        self.done = 0.0

    def note(self, text: str) -> None:
        """A remark."""
        self.notes.append(text)

    def begin(self, total: float) -> None:
        """The amount of work."""
        self.total = total

    def advance(self, name: str, operations: float) -> None:
        """Some of it."""
        self.done += operations


def planned(model: Path, target: float = 0.5, **options: Any) -> RankPlan:
    return plan(weightscope.analyze(model, **FAST), Options(target, **options))


def compressed(model: Path, found: RankPlan, out: Path) -> list[Compressed]:
    return c.compress(open_model(model), found, out, CPU, Quiet())


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("shape", [(40, 40), (90, 40), (40, 90), (1, 30), (30, 1)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_factors_are_those_of_a_float64_svd(shape: tuple[int, int], dtype: torch.dtype) -> None:
    matrix = gaussian(*shape, seed=sum(shape), dtype=dtype)
    W = matrix.to(torch.float64).numpy()
    U, s, Vt = np.linalg.svd(W, full_matrices=False)
    for rank in {1, min(shape) // 2 or 1, min(shape)}:
        found = truncated(matrix, rank)
        assert found.left.shape == (shape[0], rank) and found.left.dtype == dtype
        assert found.right.shape == (rank, shape[1]) and found.right.dtype == dtype
        dropped = np.linalg.norm(s[rank:]) / np.linalg.norm(s)
        assert found.relative_error == pytest.approx(dropped, rel=1e-9, abs=1e-14)
        assert found.frobenius_norm == pytest.approx(np.linalg.norm(W), rel=1e-12)
        left, right = (f.to(torch.float64).numpy() for f in (found.left, found.right))
        missed = np.linalg.norm(W - left @ right) / np.linalg.norm(W)
        assert found.stored_error == pytest.approx(missed, rel=1e-9, abs=1e-14)
        # U sqrt(S) and sqrt(S) V^T, up to signs
        rounding = {torch.float64: 1e-9, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
        best = (U[:, :rank] * s[:rank]) @ Vt[:rank]
        assert np.linalg.norm(left @ right - best) <= rounding * np.linalg.norm(best)
        norms = np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1)
        for norm in norms:
            assert norm == pytest.approx(np.sqrt(s[:rank]), rel=rounding)


@pytest.mark.parametrize("scale", [1e-160, 1e150])
def test_factors_of_extreme_scale(scale: float) -> None:
    matrix = gaussian(30, 20, dtype=torch.float64) * scale
    s = np.linalg.svd(matrix.numpy() / scale, compute_uv=False)
    found = truncated(matrix, 7)
    assert found.relative_error == pytest.approx(
        np.linalg.norm(s[7:]) / np.linalg.norm(s), rel=1e-9
    )
    assert found.stored_error == pytest.approx(found.relative_error, rel=1e-9)


def test_factors_of_a_matrix_of_lower_rank_are_finite_and_exact() -> None:
    matrix = gaussian(30, 3, seed=1) @ gaussian(3, 20, seed=2)
    found = truncated(matrix.to(torch.float64), 10)
    assert torch.isfinite(found.left).all() and torch.isfinite(found.right).all()
    assert found.relative_error < 1e-7
    assert found.stored_error < 1e-7
    zero = truncated(torch.zeros(6, 5), 2)
    assert not zero.left.any() and not zero.right.any()
    assert zero.relative_error == zero.stored_error == 0.0


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """The example model through the real command line: its folder of work, and the last output."""
    work = tmp_path_factory.mktemp("made")
    for words in (
        ("analyze", TINY, "--metrics", "rank,welore", "--out", "run", "--device", "cpu", "-q"),
        ("plan", "run", "--for", "welore", "--target", "0.3", "--basis", "parameters",
         "--out", "ranks.json"),
        ("compress", TINY, "--plan", "ranks.json", "--out", "small", "--device", "cpu",
         "--threads", "1", "--json", "facts.json"),
    ):  # fmt: skip
        done = run_weightscope(*words, cwd=work)
        assert done.returncode == 0, done.stderr
    return work, done


def test_the_command_line_writes_what_was_planned(made: tuple[Path, Any]) -> None:
    work, done = made
    ranks = json.loads((work / "ranks.json").read_text())
    before, after = tensors_in(TINY), tensors_in(work / "small")
    wanted = {m["name"]: m for m in ranks["matrices"] if m["factorised"]}
    assert len(wanted) == 26
    for name, tensor in before.items():
        if name not in wanted:
            assert torch.equal(after.pop(name).view(torch.uint8), tensor.view(torch.uint8)), name
            continue
        entry, stem = wanted[name], name.removesuffix(".weight")
        left, right = after.pop(f"{stem}.left.weight"), after.pop(f"{stem}.right.weight")
        assert left.shape == (entry["rows"], entry["rank"])
        assert right.shape == (entry["rank"], entry["cols"])
        assert left.dtype == right.dtype == torch.bfloat16
        assert left.numel() + right.numel() == entry["planned_parameters"]
        assert left.nbytes + right.nbytes == entry["planned_bytes"]
    assert after == {}
    kept = tensors_in(work / "small").values()
    assert sum(t.numel() for t in kept) == ranks["budget"]["planned_model_parameters"]
    rows = list(csv.DictReader(io.StringIO(done.stdout)))
    assert [row["name"] for row in rows] == list(wanted)
    for row in rows:
        W = before[row["name"]].to(torch.float64)
        stem = row["name"].removesuffix(".weight")
        small = tensors_in_memo(work / "small")
        left, right = (small[f"{stem}.{side}.weight"].double() for side in ("left", "right"))
        missed = float((W - left @ right).norm() / W.norm())
        assert float(row["stored_error"]) == pytest.approx(missed, rel=1e-9)
        assert float(row["relative_error"]) == pytest.approx(float(row["planned_error"]), abs=1e-9)
        assert float(row["stored_error"]) > float(row["relative_error"])


_MEMO: dict[Path, dict[str, torch.Tensor]] = {}


def tensors_in_memo(folder: Path) -> dict[str, torch.Tensor]:
    if folder not in _MEMO:
        _MEMO[folder] = tensors_in(folder)
    return _MEMO[folder]


def test_what_lies_beside_the_weights_is_copied(made: tuple[Path, Any]) -> None:
    work, done = made
    small = work / "small"
    for name in ("config.json", "generation_config.json"):
        assert (small / name).read_bytes() == (TINY / name).read_bytes()
    assert not (small / "trainer_state.json").exists()
    assert "not copied: trainer_state.json" in done.stderr
    index = json.loads((small / "factorised.safetensors.index.json").read_text())
    for file in set(index["weight_map"].values()):
        with safe_open(small / file, framework="pt") as stored:
            names = [name for name, there in index["weight_map"].items() if there == file]
            assert set(stored.keys()) == set(names)
            assert stored.metadata() == {"format": "pt"}
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tensors_in(small).values())
    record = json.loads((small / "compression.json").read_text())
    assert record["plan"]["criterion"]["target"] == 0.3
    assert record["source"] == json.loads((work / "ranks.json").read_text())["source"]
    assert [p.name for p in work.iterdir() if p.name.startswith(".")] == []


def test_the_facts_say_what_was_done(made: tuple[Path, Any]) -> None:
    facts = json.loads((made[0] / "facts.json").read_text())
    record = json.loads((made[0] / "small" / "compression.json").read_text())
    assert facts["rows"] == record["matrices"]
    assert facts["plan"] == record["plan"]
    assert facts["command"].startswith("weightscope compress ")
    assert "command" not in record  # the same plan gives the same bytes


def test_the_same_plan_gives_the_same_bytes(made: tuple[Path, Any], tmp_path: Path) -> None:
    work, _ = made
    compressed(TINY, read_rank_plan(work / "ranks.json"), tmp_path / "again")
    for path in (work / "small").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes(), path.name


def test_a_compressed_checkpoint_can_be_analysed(made: tuple[Path, Any]) -> None:
    run = weightscope.analyze(made[0] / "small", **FAST)
    names = {row["name"]: row for row in run.rows}
    assert names["model.layers.0.mlp.up_proj.left.weight"]["status"] == "ok"
    assert len(run.rows) == 30 + 26


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_errors_in_wide_formats_are_the_predicted_ones(dtype: torch.dtype, tmp_path: Path) -> None:
    tensors = {
        name: tensor.to(dtype) if tensor.is_floating_point() else tensor
        for name, tensor in small_model().items()
    }
    model = write_sharded(tmp_path / "model", tensors)
    done = compressed(model, planned(model, 0.7), tmp_path / "out")
    assert len(done) == 8
    for each in done:
        assert each.relative_error == pytest.approx(each.planned.relative_error, rel=1e-6)
        assert each.stored_error == pytest.approx(each.planned.relative_error, rel=1e-6)


def test_a_model_of_low_rank_is_compressed_to_its_rank(tmp_path: Path) -> None:
    # what is dropped is rounding, of which a spectrum and a residual see different amounts
    tensors = {
        f"layers.{i}.up_proj.weight": gaussian(400, 20, seed=i) @ gaussian(20, 300, seed=i + 9)
        for i in range(2)
    }
    model = write_file(tmp_path / "model" / "model.safetensors", tensors)
    done = compressed(model, planned(model, 0.9), tmp_path / "out")
    assert len(done) == 2
    small = tensors_in(tmp_path / "out")
    for each in done:
        assert each.planned.rank < 60
        stem = each.planned.name.removesuffix(".weight")
        product = small[f"{stem}.left.weight"] @ small[f"{stem}.right.weight"]
        W = tensors[each.planned.name]
        assert float((W - product).norm() / W.norm()) == pytest.approx(each.stored_error, abs=1e-6)


def test_progress_ends_at_the_total(tmp_path: Path) -> None:
    model = write_file(tmp_path / "model" / "model.safetensors", small_model())
    observer = Quiet()
    c.compress(open_model(model), planned(model), tmp_path / "out", CPU, observer)
    assert observer.done == observer.total > 0


def test_a_plan_of_other_weights_is_refused(tmp_path: Path) -> None:
    found = planned(TINY)
    # another step of the same training: equal files but for the numbers
    with pytest.raises(IncomparableRunsError, match="Frobenius norm is"):
        compressed(TINY.parent / "checkpoint-500", found, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    model = write_sharded(tmp_path / "model", small_model())
    with pytest.raises(IncomparableRunsError, match=r"size of 'model-00001-of-00003.safetensors'"):
        compressed(model, found, tmp_path / "out")
    one = write_file(tmp_path / "one" / "model.safetensors", small_model())
    with pytest.raises(IncomparableRunsError, match="only the plan's model has"):
        compressed(one.parent, planned(model), tmp_path / "out")


def test_a_plan_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    model = write_file(tmp_path / "model" / "model.safetensors", small_model())
    found = planned(model)
    first = found.factorised[0]

    def with_first(**change: Any) -> RankPlan:
        others = [m for m in found.matrices if m.name != first.name]
        return replace(found, matrices=(replace(first, **change), *others))

    cases = [
        (with_first(name="none.weight"), IncomparableRunsError, "has no such tensor"),
        (with_first(rows=first.rows + 1), IncomparableRunsError, "but the model has"),
        (with_first(dtype="F16"), IncomparableRunsError, "F16, but the model has"),
        (with_first(relative_error=0.1), IncomparableRunsError, "its relative error is"),
        (replace(found, source={"model": "x", "files": []}), PlanError, "weights in memory"),
    ]
    for wrong, error, says in cases:
        with pytest.raises(error, match=says):
            compressed(model, wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    taken = {**small_model(), first.name.replace(".weight", ".left.weight"): gaussian(4, 4)}
    write_file(tmp_path / "taken" / "model.safetensors", taken)
    again = planned(tmp_path / "taken")
    assert first.name in {m.name for m in again.factorised}
    with pytest.raises(PlanError, match="would be a factor"):
        compressed(tmp_path / "taken", again, tmp_path / "out")


def test_models_that_cannot_be_compressed_are_refused(tmp_path: Path) -> None:
    torch.save(small_model(), tmp_path / "pytorch_model.bin")
    run = weightscope.analyze(tmp_path / "pytorch_model.bin", **FAST)
    found = plan(run, Options())
    with pytest.raises(CheckpointError, match="pytorch checkpoint; save it as safetensors"):
        compressed(tmp_path / "pytorch_model.bin", found, tmp_path / "out")
    model = write_file(tmp_path / "model" / "model.safetensors", small_model())
    compressed(model, planned(model), tmp_path / "small")
    with pytest.raises(CheckpointError, match="is compressed already"):
        compressed(tmp_path / "small", planned(tmp_path / "small"), tmp_path / "out")
    with pytest.raises(CheckpointError, match="memory checkpoint"):
        c.compress(open_model(small_model()), found, tmp_path / "out", CPU, Quiet())


def test_a_solver_that_fails_is_named_with_its_tensor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_file(tmp_path / "model" / "model.safetensors", small_model())
    found = planned(model)

    def fails(matrix: torch.Tensor, rank: int) -> None:
        raise torch.OutOfMemoryError("out of memory\nand a long report")

    monkeypatch.setattr(c, "truncated", fails)
    with pytest.raises(
        CheckpointError, match=r"cannot be factorised on cpu \(out of memory\); try"
    ):
        compressed(model, found, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_full_disk_is_noticed_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_file(tmp_path / "model" / "model.safetensors", small_model())
    found = planned(model)
    monkeypatch.setattr(c.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1, 1, 1000))
    with pytest.raises(OutputError, match=r"needs .* kiB and the disk has 1000 B left"):
        compressed(model, found, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_folders_are_replaced_only_where_they_are_ours(tmp_path: Path) -> None:
    model = write_file(tmp_path / "model" / "model.safetensors", small_model())
    out = tmp_path / "out"
    compressed(model, planned(model), out)
    with pytest.raises(OutputError, match="exists already"):
        check_whole_folder(out, False, why_not_ours)
    check_whole_folder(out, True, why_not_ours)
    compressed(model, planned(model, 0.7), out)
    assert json.loads((out / RECORD).read_text())["plan"]["criterion"]["target"] == 0.7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "out"]
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"holds files that no compression wrote \('mine.txt'\)"):
        check_whole_folder(out, True, why_not_ours)
    with pytest.raises(OutputError, match="no compression wrote"):
        check_whole_folder(tmp_path / "model", True, why_not_ours)
    with pytest.raises(OutputError, match="its folder does not exist"):
        check_whole_folder(tmp_path / "none" / "out", False, why_not_ours)
    with pytest.raises(OutputError, match="is a file"):
        check_whole_folder(out / "mine.txt", True, why_not_ours)


def test_two_processes_do_not_fill_one_folder(tmp_path: Path) -> None:
    with whole_folder(tmp_path / "out") as building:
        (building / "first").touch()
        with (
            pytest.raises(OutputError, match="another process is writing it"),
            whole_folder(tmp_path / "out"),
        ):
            pass
        assert (building / "first").exists()
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["first"]


KILLED = """
import os, signal, sys
from weightscope import compress
from weightscope.cli.main import main
whole, calls, how = compress.truncated, [], sys.argv.pop()
def third(matrix, rank):
    calls.append(rank)
    if len(calls) == 3:
        os.kill(os.getpid(), getattr(signal, how))
    return whole(matrix, rank)
compress.truncated = third
main()
"""


@pytest.mark.parametrize("how", ["SIGKILL", "SIGINT"])
def test_an_interruption_leaves_nothing_that_loads(
    made: tuple[Path, Any], tmp_path: Path, how: str
) -> None:
    out = tmp_path / "small"
    words = ["compress", TINY, "--plan", made[0] / "ranks.json", "--out", out, "--threads", "1"]
    words = [str(word) for word in words]
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *words, how],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert not out.exists()
    if how == "SIGINT":
        assert killed.returncode == 130
        assert "Interrupted" in killed.stderr and "was not written" in killed.stderr
        assert list(tmp_path.iterdir()) == []
        return
    assert killed.returncode == -getattr(signal, how)
    left = tmp_path / ".small.tmp"
    assert left.is_dir()
    with pytest.raises(CheckpointError, match="no compressed checkpoint"):
        load(left)
    # the next one clears it away
    compressed(TINY, read_rank_plan(made[0] / "ranks.json"), out)
    assert [path.name for path in tmp_path.iterdir()] == ["small"]
    for path in (made[0] / "small").iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name


def test_the_command_line_says_what_is_wrong(made: tuple[Path, Any], tmp_path: Path) -> None:
    ranks = made[0] / "ranks.json"
    torch.save(small_model(), tmp_path / "pytorch_model.bin")
    (tmp_path / "text.json").write_text("no")
    cases = [
        (("compress", "org/name", "--plan", ranks, "--out", "a"), 1, "no such file or folder"),
        (("compress", TINY, "--plan", "none.json", "--out", "a"), 1, "none.json: cannot be read"),
        (("compress", TINY, "--plan", "text.json", "--out", "a"), 1, "not valid JSON"),
        (("compress", TINY, "--plan", ranks, "--out", made[0] / "small"), 1, "exists already"),
        (("compress", TINY.parent / "checkpoint-500", "--plan", ranks, "--out", "a"), 5,
         "made of other weights"),
        (("compress", "pytorch_model.bin", "--plan", ranks, "--out", "a"), 1,
         "save it as safetensors first"),
        (("compress", TINY, "--plan", ranks, "--out", "a", "--device", "abacus"), 2, "--device"),
        (("compress", TINY, "--plan", ranks), 2, "--out"),
        (("plan", made[0] / "run", "--for", "welore", "--target", "1.5"), 2, "between 0 and 1"),
        (("plan", made[0] / "run", "--for", "welore", "--rule", "third"), 2, "choose from"),
        (("plan", made[0] / "run", "--for", "welore", "--modules", "3"), 2, "means nothing"),
    ]  # fmt: skip
    for done, (_, code, says) in zip(
        run_each([words for words, _, _ in cases], tmp_path), cases, strict=True
    ):
        assert done.returncode == code, done.stderr
        assert says in done.stderr
        assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pytorch_model.bin", "text.json"]


def load(folder: Path, **options: Any) -> Any:
    from weightscope.integrations.factorised import load_compressed

    return load_compressed(folder, **options)


def _llama(tied: bool) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=48, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
        attention_bias=True, mlp_bias=True,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def _gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(
        GPT2Config(vocab_size=64, n_embd=48, n_layer=2, n_head=4, n_positions=32)
    )


def _bert() -> Any:
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=64, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=96, max_position_embeddings=32,
        )
    )  # fmt: skip


MODELS = {
    "llama": lambda: _llama(False),
    "tied": lambda: _llama(True),
    "gpt2": _gpt2,
    "bert": _bert,
}


@pytest.mark.parametrize("kind", MODELS)
def test_the_loaded_model_computes_with_the_products(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = MODELS[kind]().eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)  # zeros would hide a bias that is lost
    model.save_pretrained(tmp_path / "model")
    found = planned(tmp_path / "model", 0.6)
    compressed(tmp_path / "model", found, tmp_path / "small")
    stored = tensors_in(tmp_path / "small")
    state = model.state_dict()
    assert found.factorised
    for matrix in found.factorised:
        stem = matrix.name.removesuffix(".weight")
        name = next(n for n in state if n.endswith(matrix.name))
        product = stored[f"{stem}.left.weight"] @ stored[f"{stem}.right.weight"]
        state[name].copy_(product)
    small = load(tmp_path / "small")
    assert type(small) is type(model)
    assert not small.training
    ids = torch.arange(20)[None] % 64
    with torch.no_grad():
        assert torch.allclose(small(ids).logits, model(ids).logits, atol=2e-5, rtol=1e-4)
    assert sum(p.numel() for p in small.parameters()) == sum(
        p.numel() for p in model.parameters()
    ) - sum(m.parameters - m.planned_parameters for m in found.factorised)
    if kind == "tied":
        assert small.lm_head.weight is small.model.embed_tokens.weight


def test_transformers_alone_finds_no_weights_rather_than_random_ones(
    made: tuple[Path, Any],
) -> None:
    from transformers import AutoModelForCausalLM

    with pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(made[0] / "small", local_files_only=True)


def test_a_tuned_model_is_saved_and_loaded_again(tmp_path: Path) -> None:
    torch.manual_seed(3)
    _llama(False).save_pretrained(tmp_path / "model")
    compressed(tmp_path / "model", planned(tmp_path / "model", 0.6), tmp_path / "small")
    model = load(tmp_path / "small").train()
    ids = torch.arange(20)[None] % 64
    loss = model(ids, labels=ids).loss
    loss.backward()
    factor = model.model.layers[0].self_attn.q_proj.left.weight
    assert factor.grad is not None and factor.grad.any()
    with torch.no_grad():
        factor.add_(1.0)
    model.save_pretrained(tmp_path / "tuned")
    with pytest.raises(CheckpointError, match="no compressed checkpoint"):
        load(tmp_path / "tuned")
    shutil.copy(tmp_path / "small" / RECORD, tmp_path / "tuned")
    again = load(tmp_path / "tuned")
    assert torch.equal(again.model.layers[0].self_attn.q_proj.left.weight, factor)
    assert again.config.architectures == ["LlamaForCausalLM"]
    assert "transformers_weights" not in (tmp_path / "tuned" / "config.json").read_text()


def test_a_weight_that_is_shared_is_not_parted() -> None:
    from weightscope.integrations.factorised import replace_layers

    model = _llama(True)
    with pytest.raises(CheckpointError, match="'lm_head' shares its weight with another module"):
        replace_layers(model, {"lm_head": 4})
    replace_layers(_llama(False), {"lm_head": 4})


def test_what_does_not_fit_the_class_is_refused(made: tuple[Path, Any], tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    small = tmp_path / "small"
    shutil.copytree(made[0] / "small", small)
    record = json.loads((small / RECORD).read_text())
    for change, says in (
        ({"weightscope_compression": 9}, "has version 9"),
        ({"matrices": [{}]}, "is no record"),
        ({"matrices": [*record["matrices"], {"name": "model.norm.weight", "rank": 3}]},
         "has a LlamaRMSNorm there"),
        ({"matrices": [*record["matrices"], {"name": "x.y.weight", "rank": 3}]}, "no such layer"),
        ({"matrices": record["matrices"][1:]}, "unexpected keys"),
        ({"matrices": [{**record["matrices"][0], "rank": 3}, *record["matrices"][1:]]},
         "mismatched keys|ignore_mismatched_sizes"),
    ):  # fmt: skip
        (small / RECORD).write_text(json.dumps({**record, **change}))
        with pytest.raises((CheckpointError, RuntimeError), match=says):
            load(small)
    (small / RECORD).write_text(json.dumps(record))
    config = json.loads((small / "config.json").read_text())
    (small / "config.json").write_text(json.dumps({**config, "architectures": ["Odd"]}))
    with pytest.raises(CheckpointError, match="no class 'Odd'"):
        load(small)
    with pytest.raises((CheckpointError, ValueError, AttributeError)):
        load(small, model_class=BertForMaskedLM)
