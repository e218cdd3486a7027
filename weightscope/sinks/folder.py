"""Pictures to a folder: names that cannot leave it, and an index of what is what."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from typing import Any

from weightscope.drawings.pictures import Picture
from weightscope.errors import OptionError
from weightscope.outputs import write_into
from weightscope.sinks import json

INDEX = "index.json"
FORMATS = ("png", "svg", "pdf")
LONGEST = 120
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


def check_installed() -> None:
    """Say so, before any work, where the package that draws is missing.

    Raises:
        OptionError: It is.
    """
    if find_spec("matplotlib") is None:
        raise OptionError("drawing files needs matplotlib: pip install 'weightscope[plots]'")


def file_name(picture: Picture, suffix: str, taken: set[str]) -> str:
    """A name of letters, digits and ``._-`` that no other picture of the folder has.

    Args:
        picture: What the file shows.
        suffix: Of its format.
        taken: Names given so far, in small letters; the new one is added.
    """
    stem = _UNSAFE.sub("_", f"{picture.kind}-{picture.subject.removesuffix('.weight')}")[:LONGEST]
    name, count = f"{stem}.{suffix}", 1
    while name.lower() in taken:  # some file systems see no case
        count += 1
        name = f"{stem}~{count}.{suffix}"
    taken.add(name.lower())
    return name


def write(
    pictures: Iterable[Picture], folder: str, format: str, facts: Mapping[str, Any], force: bool
) -> int:
    """Draw every picture into a folder, and say in ``index.json`` which file shows what.

    Args:
        pictures: What to draw.
        folder: Made where it is missing.
        format: ``png``, ``svg`` or ``pdf``.
        facts: Provenance and what else goes with them.
        force: Replace files of these names.

    Returns:
        How many there are.

    Raises:
        OutputError: A file exists already or cannot be written.
    """
    origins = origins_of(facts)
    taken, index = {INDEX}, []
    for picture in pictures:
        name = file_name(picture, format, taken)
        write_into(folder, name, rendered(picture, format, origins), force)
        index.append({"file": name, "kind": picture.kind, "subject": picture.subject,
                      "caption": picture.caption})  # fmt: skip
    text = json.dumps({"pictures": index, **facts})
    write_into(folder, INDEX, text.encode("utf-8", "backslashreplace"), force)
    return len(index)


def origins_of(facts: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Provenance of every run that some facts speak of: one, those of a comparison, of steps."""
    found = [*facts.values(), *facts.get("runs", ())]
    return [value for value in found if isinstance(value, Mapping) and "command" in value]


def rendered(picture: Picture, format: str, origins: Iterable[Mapping[str, Any]]) -> bytes:
    """The file of a picture, which says itself what produced it.

    Args:
        picture: What to draw.
        format: ``png``, ``svg`` or ``pdf``.
        origins: Provenance of each run that it shows.
    """
    from weightscope.sinks.figures import render

    origins = list(origins)
    tools = dict.fromkeys(
        f"weightscope {origin.get('weightscope', '')}".strip() for origin in origins
    )
    commands = dict.fromkeys(str(origin["command"]) for origin in origins)
    return render(picture, format, {"command": "; ".join(commands), "tool": ", ".join(tools)})


def format_of(target: str) -> str:
    """Format that the name of a file asks for.

    Raises:
        OptionError: It ends in none of ``FORMATS``.
    """
    format = target.rpartition(".")[2].lower()
    if format not in FORMATS:
        raise OptionError(f"--out {target}: end the name in .{', .'.join(FORMATS)}")
    return format
