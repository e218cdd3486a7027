"""Which share of a model's matrices a run is about, where several processes divide them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from weightscope.errors import OptionError

AUTO = "auto"
_LISTED = 5
_GRAMMAR = re.compile(r"(\d{1,7}(?:\+\d{1,7})*)/(\d{1,7})")
_SLURM, _RANK = "SLURM_ARRAY_TASK_ID", "RANK"


@dataclass(frozen=True)
class Share:
    """Some of the parts into which a plan is cut.

    Attributes:
        indices: Which parts, counted from 1, ascending.
        count: How many there are.
    """

    indices: tuple[int, ...]
    count: int

    def __post_init__(self) -> None:
        """Refuse what makes no sense.

        Raises:
            OptionError: Saying how parts are counted.
        """
        listed = "+".join(map(str, self.indices))
        if not self.indices or list(self.indices) != sorted(set(self.indices)):
            raise OptionError(f"--shard {listed}/{self.count}: name parts once, in order")
        if not 1 <= self.indices[0] <= self.indices[-1] <= self.count:
            raise OptionError(
                f"--shard {listed}/{self.count}: "
                + (
                    f"parts are counted from 1/{self.count} to {self.count}/{self.count}"
                    if self.count
                    else "a model has at least one part; give PART/PARTS, such as 3/8"
                )
            )

    def __str__(self) -> str:
        """What ``--shard`` takes: ``3/8``, or ``2+5/8`` for several parts."""
        return f"{'+'.join(map(str, self.indices))}/{self.count}"

    @property
    def label(self) -> str:
        """For people: ``part 3 of 8``."""
        if len(self.indices) > _LISTED:
            return f"{len(self.indices)} of {self.count} parts"
        *some, last = map(str, self.indices)
        listed = f"parts {', '.join(some)} and {last}" if some else f"part {last}"
        return f"{listed} of {self.count}"

    @property
    def suffix(self) -> str:
        """For names of files: ``shard-3-of-8``."""
        listed = "+".join(map(str, self.indices[:_LISTED]))
        more = "+more" if len(self.indices) > _LISTED else ""
        return f"shard-{listed}{more}-of-{self.count}"


def parse_share(text: str) -> Share:
    """Read ``3/8``, or ``2+5/8`` for several parts.

    Raises:
        OptionError: Anything else.
    """
    found = _GRAMMAR.fullmatch(text)
    if not found:
        raise OptionError(
            f"--shard {text!r}: give PART/PARTS, such as 3/8 (2+5/8 for two of them), or auto"
        )
    return Share(tuple(int(n) for n in found[1].split("+")), int(found[2]))


def share_from(text: str, environ: Mapping[str, str]) -> tuple[Share, str]:
    """The share that a text names, and for ``auto`` the variables that say so, else nothing.

    Raises:
        OptionError: Text or environment make no sense.
    """
    return share_around(environ) if text == AUTO else (parse_share(text), "")


def share_around(environ: Mapping[str, str]) -> tuple[Share, str]:
    """The share that a scheduler gave to this process, and the variables that say so.

    Arrays of Slurm that begin with 0 or 1, in any step, and ranks, which count from 0.

    Args:
        environ: Environment variables.

    Raises:
        OptionError: No scheduler tells, two do, or what they tell makes no sense.
    """
    slurm, rank = environ.get(_SLURM), environ.get(_RANK)
    if slurm is not None and rank is not None:
        raise OptionError(
            f"--shard auto: both {_SLURM} and {_RANK} are set, so the part is not clear; "
            "give PART/PARTS"
        )
    if slurm is not None:
        return _of_array(environ), f"{_SLURM}={slurm} of {environ['SLURM_ARRAY_TASK_COUNT']} tasks"
    if rank is not None:
        size = _number(environ, "WORLD_SIZE")
        return _checked(_number(environ, _RANK) + 1, size), f"{_RANK}={rank} of WORLD_SIZE={size}"
    raise OptionError(
        f"--shard auto: neither {_SLURM} with SLURM_ARRAY_TASK_COUNT nor {_RANK} with WORLD_SIZE "
        "is set; give PART/PARTS"
    )


def _of_array(environ: Mapping[str, str]) -> Share:
    """The share of a task, unless only some tasks of an earlier array may be running again."""
    task, count = _number(environ, _SLURM), _number(environ, "SLURM_ARRAY_TASK_COUNT")
    first = _number(environ, "SLURM_ARRAY_TASK_MIN", "1")
    step = _number(environ, "SLURM_ARRAY_TASK_STEP", "1")
    last = _number(environ, "SLURM_ARRAY_TASK_MAX", str(first + (count - 1) * step))
    even = step >= 1 and last == first + (count - 1) * step and (task - first) % step == 0
    if not even or first > 1 or count < 2:
        raise OptionError(
            f"--shard auto: {count} of an array's tasks from {first} to {last} may be some that "
            "are run again, so their parts are not clear; give PART/PARTS"
        )
    return _checked((task - first) // step + 1, count)


def _checked(index: int, count: int) -> Share:
    if not 1 <= index <= count:
        raise OptionError(
            f"--shard auto: the environment says part {index} of {count}, which there is not; "
            "give PART/PARTS"
        )
    return Share((index,), count)


def _number(environ: Mapping[str, str], name: str, default: str = "") -> int:
    text = environ.get(name, default)
    if not re.fullmatch(r"\d{1,9}", text):
        raise OptionError(f"--shard auto: {name} is {text!r}, not a number; give PART/PARTS")
    return int(text)
