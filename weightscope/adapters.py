"""A checkpoint of adapter factors as the updates that they make, and models beside their base."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from weightscope.checkpoint import Checkpoint
from weightscope.layouts.adapters import CONFIG, alphas_in, place
from weightscope.layouts.roles import role_of
from weightscope.matrix import Exclusion, Matrix, Product


@dataclass(frozen=True)
class Adapted:
    """A checkpoint in which every pair of factors is one tensor.

    Attributes:
        checkpoint: For the selection; its virtual tensors cannot be read.
        products: The update behind each virtual tensor, by its name.
        refused: Why a tensor is no weight to analyse, by its name.
    """

    checkpoint: Checkpoint
    products: Mapping[str, Product]
    refused: Mapping[str, str]

    def matrix(self, found: Matrix) -> Matrix:
        """The matrix with the update that it is, if it is one."""
        product = self.products.get(found.tensor.name)
        if product is None:
            return found
        if product.weight == found.tensor.name:
            return replace(found, product=product)
        plain = found.module.partition(".lora.")[0]  # several adapters of one weight
        role = found.role if found.part or found.role == "conv" else role_of(plain)
        return replace(found, product=product, role=role)

    def exclusion(self, matrix: Matrix) -> Exclusion | None:
        """Why a matrix gets no figures; None where nothing stands against it."""
        why = self.refused.get(matrix.tensor.name)
        if why is not None:
            return Exclusion(matrix, "skipped", f"Not analysed: {why}.")
        if matrix.product is not None and matrix.product.needs and matrix.base is None:
            kind = matrix.product.needs
            why = f"an update of the kind {kind} depends on the base weights"
            return Exclusion(
                matrix, "unsupported", f"Not analysed: {why}; name the base model with --base."
            )
        return None


def adapted(checkpoint: Checkpoint) -> Adapted:
    """Replace the factors of adapters by the updates that they make.

    Scalars that scale kohya's updates are read for it, nothing else.

    Raises:
        CheckpointError: Another kind of adapter, or factors that do not belong together.
    """
    config = checkpoint.config.get(CONFIG)
    refs = alphas_in(checkpoint.tensors)
    alphas: dict[str, float] = {}
    if refs:
        from weightscope.measure import reading  # here, because it imports torch

        with reading(checkpoint) as read:
            alphas = {ref.name: float(read(ref, None).reshape(())) for ref in refs}
    config = config if isinstance(config, Mapping) else {}
    placed = place(checkpoint.tensors, config, alphas)
    refused = {ref.name: why for ref, why in placed.refused}
    return Adapted(replace(checkpoint, tensors=placed.tensors), placed.products, refused)
