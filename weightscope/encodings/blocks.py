"""How a table of scales covers a matrix: what the shapes and the configuration say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from weightscope.encodings.stored import Stored, is_count
from weightscope.tensor import TensorRef

_USUAL = 128  # side of a block where nothing says: that of DeepSeek's and everybody's fp8


@dataclass(frozen=True)
class Blocking:
    """Blocks of entries that share a scale, the last ones perhaps ragged.

    Attributes:
        height: Rows of a block.
        width: Columns of a block.
        down: Blocks from top to bottom.
        across: Blocks from left to right.
    """

    height: int
    width: int
    down: int
    across: int

    @property
    def label(self) -> str:
        """One word for it."""
        if self.down == self.across == 1:
            return "tensor"
        if self.across == 1 and self.height == 1:
            return "channel"
        if self.down == 1 and self.width == 1:
            return "column"
        return f"g{self.width}" if self.height == 1 else f"{self.height}x{self.width}"

    @property
    def facts(self) -> dict[str, int]:
        """What decoding has to know of it."""
        return {
            "height": self.height,
            "width": self.width,
            "down": self.down,
            "across": self.across,
        }


def blocking_of(stored: Stored, shape: tuple[int, ...], scale: TensorRef) -> Blocking | None:
    """How scales cover a matrix or every matrix of a stack; None where they do not fit.

    Args:
        stored: For block sizes in the configuration.
        shape: (rows, cols) or (experts, rows, cols).
        scale: The scales.
    """
    rows, cols = shape[-2:]
    own = scale.shape
    if len(shape) == 3 and scale.size != 1:
        if own[:1] != shape[:1]:
            return None
        own = own[1:]
    if scale.size == 1 or own in {(), (1,), (1, 1)}:
        return Blocking(rows, cols, 1, 1) if rows and cols else None
    if len(own) == 1:
        own = (*own, 1)
    if len(own) != 2:
        return None
    down, across = own
    for height_hint, width_hint in (*configured_blocks(stored), (_USUAL, _USUAL)):
        height = block_length(rows, down, height_hint)
        width = block_length(cols, across, width_hint)
        if height and width:
            return Blocking(height, width, down, across)
    return None


def configured_blocks(stored: Stored) -> Iterator[tuple[int | None, int | None]]:
    """Block sizes that the configuration names, for all modules or for groups of them."""
    pairs = [stored.config.get("weight_block_size")]
    widths: list[Any] = [stored.config.get("group_size")]
    for weights in config_groups(stored.config):
        pairs.append(weights.get("block_structure"))
        widths.append(weights.get("group_size"))
    for pair in pairs:
        if isinstance(pair, list) and len(pair) == 2 and all(map(is_count, pair)):
            yield pair[0], pair[1]
    for width in widths:
        if is_count(width):
            yield None, width


def config_groups(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """How compressed-tensors says that weights are quantised, one entry per group of modules."""
    groups = config.get("config_groups")
    found = groups.values() if isinstance(groups, Mapping) else ()
    weights = [group.get("weights") for group in found if isinstance(group, Mapping)]
    return [each for each in weights if isinstance(each, Mapping)]


def block_length(length: int, count: int, hint: int | None = None) -> int | None:
    """Entries per block along one side, the last block perhaps ragged; None where none is certain.

    Without a hint that fits, blocks are even, unless they could as well be ragged blocks of a power
    of two: 40 entries with 2 scales are 20 and 20, or 32 and 8.

    Args:
        length: Entries along the side.
        count: Scales along the side.
        hint: Length to prefer where it fits.
    """
    if count < 1 or count > length:
        return None
    if hint and ceil(length / hint) == count:
        return hint
    if count in {1, length}:
        return length // count
    even, rest = divmod(length, count)
    powers = {2**k for k in range(1, length.bit_length()) if ceil(length / 2**k) == count}
    return even if not rest and powers <= {even} else None
