"""The plan: everything once, in the order of the files, in bounded batches and bounded memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weightscope.matrix import Matrix
from weightscope.plan import BATCH_BYTES, BATCH_MATRICES, flops, make_plan
from weightscope.recipe import Farms
from weightscope.tensor import TensorRef

MIB = 1 << 20


def matrix(i: int, shape: tuple[int, int], dtype: str = "BF16") -> Matrix:
    name = f"layers.{i}.w"
    return Matrix(name, TensorRef(name, shape, dtype, "f", i, i + 1), "whole", "linear", "w", i)


SHAPES = st.one_of(
    st.tuples(st.integers(1, 300000), st.integers(1, 9000)),
    st.sampled_from([(4096, 4096), (11008, 4096), (4096, 14336), (128256, 8192), (28672, 8192)]),
)
MODELS = st.lists(st.tuples(SHAPES, st.sampled_from(["BF16", "F32"])), min_size=1, max_size=8)


@given(MODELS)
def test_two_threads_stay_within_the_memory_that_the_readme_promises(
    model: list[tuple[tuple[int, int], str]],
) -> None:
    """Four Gram matrices, 256 MiB of blocks, one matrix as stored, and 600 MiB."""
    matrices = tuple(matrix(i, shape, dtype) for i, (shape, dtype) in enumerate(model))
    gram = max(8 * m.M**2 for m in matrices)
    stored = max(m.nbytes for m in matrices)
    plan = make_plan(matrices, Farms(), threads=2)
    assert plan.peak_bytes <= 4 * gram + 256 * MIB + stored + 600 * MIB


@given(MODELS, st.integers(1, 8))
def test_every_matrix_is_planned_once_and_batches_are_bounded(
    model: list[tuple[tuple[int, int], str]], threads: int
) -> None:
    matrices = tuple(matrix(i, shape, dtype) for i, (shape, dtype) in enumerate(model))
    plan = make_plan(matrices, Farms(), threads)
    assert sorted(m.name for m in plan.matrices) == sorted(m.name for m in matrices)
    assert [batch.index for batch in plan.batches] == list(range(len(plan.batches)))
    for batch in plan.batches:
        starts = [m.tensor.start for m in batch.matrices]
        assert starts == sorted(starts)
        assert sum(m.nbytes for m in batch.matrices[1:]) <= BATCH_BYTES
        assert len(batch.matrices) <= BATCH_MATRICES
    alone = [batch.alone for batch in plan.batches]
    assert alone == sorted(alone)


def test_how_a_matrix_is_run_depends_on_its_shape_alone() -> None:
    """Up to the shapes of a 13B model side by side, those of a 70B model one after the other."""
    shapes = {
        (64, 64): False,
        (11008, 4096): False,
        (13824, 5120): False,
        (8192, 8192): True,
        (28672, 8192): True,
        (128256, 2048): True,
    }
    for shape, alone in shapes.items():
        for threads in (1, 2, 16):
            others = (matrix(1, (50, 60)), matrix(2, (8192, 8192)))
            plan = make_plan((matrix(0, shape), *others), Farms(), threads)
            assert next(b.alone for b in plan.batches if matrix(0, shape) in b.matrices) == alone


def test_operations_of_a_square_matrix() -> None:
    """Gram product and solve; and with windows of half its size, three each way, nine of those."""
    one = matrix(0, (1024, 1024))
    assert flops(one, None) == 1024**3 * (1 + 4 / 3)
    assert flops(one, Farms()) == 1024**3 * (1 + 4 / 3) + 9 * 512**3 * (2 + 4 / 3)
