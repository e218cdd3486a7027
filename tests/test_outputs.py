"""What an output may not replace, whatever is said: weights, and the files of a run."""

from pathlib import Path

import pytest
from checkpoints import many_matrices, run_weightscope, write_file

from weightscope.errors import OutputError
from weightscope.outputs import check_target


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "step.ckpt", "q4.gguf"])
def test_weights_are_never_replaced(tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    check_target(str(target), force=True)  # nothing is there
    target.write_bytes(b"weights")
    with pytest.raises(OutputError, match=r"holds weights by its name"):
        check_target(str(target), force=True)
    assert target.read_bytes() == b"weights"


def test_an_output_over_the_model_or_into_the_run_is_refused_before_any_work(
    tmp_path: Path,
) -> None:
    model = write_file(tmp_path / "toy.safetensors", many_matrices(3, 24, 20))
    before = model.read_bytes()
    command = ("analyze", model, "--metrics", "norms", "--force", "--out", tmp_path / "run")
    done = run_weightscope(*command, "--csv", model, cwd=tmp_path)
    assert done.returncode == 1 and "holds weights" in done.stderr
    assert model.read_bytes() == before and not (tmp_path / "run").exists()
    assert run_weightscope(*command, cwd=tmp_path).returncode == 0
    for name in ("run.json", "table.jsonl"):
        kept = (tmp_path / "run" / name).read_bytes()
        target = tmp_path / "run" / name
        done = run_weightscope(
            "report", tmp_path / "run", "--html", target, "--force", cwd=tmp_path
        )
        assert done.returncode == 1 and "is part of a run folder" in done.stderr
        assert (tmp_path / "run" / name).read_bytes() == kept
