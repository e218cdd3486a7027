"""The empirical null: the same entries in an order drawn at random.

The order is drawn on the host, whatever device computes: the draws of a GPU's own generator would
be others, and the figures must not depend on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import sha256

import numpy as np
import torch

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


def shuffling_generator(seed: int, name: str) -> np.random.Generator:
    """The generator that shuffles one matrix; the same in every process and on every machine."""
    text = f"shuffled:{seed}:{name}".encode("utf-8", "surrogatepass")
    return np.random.default_rng(int.from_bytes(sha256(text).digest()[:16]))


def permutations(
    stored: torch.Tensor, count: int, generator: np.random.Generator
) -> Iterator[torch.Tensor]:
    """The entries of a tensor in random orders, all of its dimensions together.

    Needs one copy in the stored dtype and no index: entries are swapped in place, and a shuffled
    copy shuffled again is as random as the first.

    Args:
        stored: Any shape, a floating dtype, on any device; left as it is.
        count: How many orders.
        generator: Draws them.

    Yields:
        The same tensor on the host each time, with new contents.
    """
    copy = stored.detach().cpu().clone(memory_format=torch.contiguous_format)
    flat = copy.view(-1).view(_INTEGERS[copy.element_size()]).numpy()
    for _ in range(count):
        generator.shuffle(flat)
        yield copy
