"""A headless Chromium, driven through the DevTools protocol over two pipes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--remote-debugging-pipe",
)


class Browser:
    """One page in a browser of its own; use as a context manager.

    Attributes:
        events: What the page reported so far: console, exceptions, requests, policy violations.
    """

    def __init__(self, width: int = 1280, height: int = 900) -> None:
        program = shutil.which("chromium") or shutil.which("chromium-browser")
        assert program is not None, "the tests marked browser need Chromium"
        self.events: list[dict[str, Any]] = []
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        read_commands, self._write = os.pipe()
        self._read, write_answers = os.pipe()
        # the protocol's descriptors are 3 and 4
        command = f'exec "$@" 3<&{read_commands} 4>&{write_answers}'
        where = (f"--user-data-dir={self._profile.name}", f"--window-size={width},{height}")
        self._process = subprocess.Popen(
            ["bash", "-c", command, "bash", program, *FLAGS, *where],
            pass_fds=(read_commands, write_answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(read_commands)
        os.close(write_answers)
        self._rest = b""
        self._count = 0
        self._session = ""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        os.close(self._write)
        os.close(self._read)
        self._process.terminate()
        self._process.wait()
        self._profile.cleanup()

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Send a command and return its result; events on the way are kept."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return dict(answer["result"])
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            chunk = os.read(self._read, 1 << 16)
            assert chunk, "the browser ended"
            self._rest += chunk
        line, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(line))

    def open(self, path: Path) -> None:
        """Open a file and wait until its script has run to its end."""
        self.send("Page.navigate", url=path.resolve().as_uri())
        for _ in range(200):
            state = self.run("[location.href, document.readyState].join()")
            if state == f"{path.resolve().as_uri()},complete":
                return
        raise AssertionError(f"{path} was not loaded: {state}")

    def run(self, script: str) -> Any:
        """Value of an expression in the page; a promise is waited for."""
        found = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key that has a name, such as Tab, Enter or ArrowRight."""
        codes = {"Enter": 13, "Tab": 9, " ": 32, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27}
        key_code = {"key": key, "code": key, "windowsVirtualKeyCode": codes[key]}
        text = {"text": "\r"} if key == "Enter" else {"text": " "} if key == " " else {}
        self.send("Input.dispatchKeyEvent", type="keyDown", **key_code, **text)
        self.send("Input.dispatchKeyEvent", type="keyUp", **key_code)

    def type(self, text: str) -> None:
        """Type text where the focus is."""
        self.send("Input.insertText", text=text)

    def seen(self, method: str) -> list[dict[str, Any]]:
        """Parameters of the events of one kind so far."""
        self.run("new Promise((resolve) => setTimeout(resolve, 50))")
        return [event["params"] for event in self.events if event.get("method") == method]
