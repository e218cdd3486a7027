"""Commands in processes of their own that may take, write and last only so much.

Every command runs in a fork of one process that has done the imports, which makes hundreds of them
affordable. What a hostile file may not do is held by the kernel: the address space is bounded, a
clock kills what hangs, and the privilege of root to read what it may not is given up.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import json
import os
import resource
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

SECONDS = 60
"""After which a command hangs; what is hostile and refused takes a hundredth of that."""
ADDRESSES = 2 << 30
"""Bytes of address space beyond those of the process that is forked."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        status: Exit code; negative for the number of a signal.
        out: Standard output.
        err: Standard error.
        peak: Most memory that it took beyond that of the imports, in MiB.
    """

    status: int
    out: str
    err: str
    peak: int


class Lab:
    """Runs commands, one after the other; use as a context manager.

    Attributes:
        environment: Of all commands.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        """Start the process that will be forked."""
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=dict(environment),
            text=True,
        )

    def run(self, *arguments: object, cwd: Path, shrinks: tuple[Path, int] | None = None) -> Ended:
        """Run ``weightscope ARGUMENTS`` in a folder, which is its home too.

        Args:
            arguments: Of the command line.
            cwd: Its folder.
            shrinks: A file, and the size that it is cut to once its header has been read.
        """
        job: dict[str, Any] = {"arguments": [str(word) for word in arguments], "cwd": str(cwd)}
        job["shrinks"] = shrinks and [str(shrinks[0]), shrinks[1]]
        assert self._server.stdin is not None and self._server.stdout is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()
        return Ended(**json.loads(self._server.stdout.readline()))

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.communicate(timeout=SECONDS)


def _serve() -> None:
    from weightscope import analysis, executors, inspection, measure  # noqa: F401
    from weightscope.cli.main import main
    from weightscope.formats import distributed, gguf, pytorch  # noqa: F401
    from weightscope.layouts.config import completed

    completed({}, "llama")  # the first configuration takes the imports of its library

    _warm(main)
    gc.freeze()  # or the collector of every fork copies all of it
    base = _ended({"arguments": ["--version"], "cwd": ".", "shrinks": None}, main, 0).peak
    for line in sys.stdin:
        print(json.dumps(asdict(_ended(json.loads(line), main, base))), flush=True)


def _warm(main: Any) -> None:
    """Do once what every command would do again: imports, and what is made when it is wanted."""
    import torch
    from safetensors.torch import save_file

    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        model, run = f"{folder}/model.safetensors", f"{folder}/run"
        save_file({"w": torch.eye(8, 6)}, model)
        for command in (["inspect", model], ["analyze", model, "--out", run], ["report", run]):
            sys.argv = ["weightscope", *command, "--format", "table"]
            output = io.TextIOWrapper(io.BytesIO())
            with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
                main()


def _ended(job: Mapping[str, Any], main: Any, base: int) -> Ended:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        child = os.fork()
        if not child:
            _confine(job, out.fileno(), err.fileno())
            os._exit(_status(main))
        _, status, usage = os.wait4(child, 0)
        texts = []
        for stream in (out, err):
            stream.seek(0)
            texts.append(stream.read().decode("utf-8", "surrogateescape"))
        peak = usage.ru_maxrss // 1024 - base
        return Ended(os.waitstatus_to_exitcode(status), texts[0], texts[1], peak)


def _status(main: Any) -> int:
    """Exit code of the command, without the interpreter's own end, which takes much longer."""
    try:
        main()
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else bool(ended.code)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0


def _confine(job: Mapping[str, Any], out: int, err: int) -> None:
    """What a process gives up before it runs a command."""
    null = os.open(os.devnull, os.O_RDONLY)
    for number, stream in enumerate((null, out, err)):
        os.dup2(stream, number)
    os.chdir(job["cwd"])
    os.environ |= {"HOME": job["cwd"], "TMPDIR": job["cwd"]}
    tempfile.tempdir = None
    sys.argv = ["weightscope", *job["arguments"]]
    _without_privilege()
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    signal.alarm(SECONDS)  # whose default is to kill
    if job["shrinks"]:
        _shrink_later(*job["shrinks"])


def _without_privilege() -> None:
    """Give up what lets root read a file that is closed to its owner."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3 of capabilities, this process
    ctypes.CDLL(None).capset(header, (ctypes.c_uint32 * 6)())


def _shrink_later(path: str, size: int) -> None:
    """Cut a file between the moments when its header and its tensors are read."""
    from weightscope import analysis

    make_plan = analysis.make_plan

    def cut(*arguments: Any) -> Any:
        os.truncate(path, size)
        return make_plan(*arguments)

    analysis.make_plan = cut


if __name__ == "__main__":
    _serve()
