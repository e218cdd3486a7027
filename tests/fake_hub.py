"""A model hub on loopback that speaks as much of the protocol as its Python client needs.

Large files lie on a second host, to which the hub redirects by addresses that are signed and may
expire. Both can be told to fail in the ways that networks and servers do.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache, partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Condition, Thread
from types import TracebackType
from typing import Any
from urllib.parse import quote, unquote, urlsplit

Files = Mapping[str, bytes]
LARGE = (".safetensors", ".bin", ".gguf", ".onnx")


@dataclass
class Repository:
    """One model repository.

    Attributes:
        commits: Files of every commit, by its hash.
        branches: Commit hash by branch or tag name.
        gated: Its files need a token.
        hidden: It is private: without a token it does not seem to exist.
    """

    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    hidden: bool = False

    def push(self, files: Files, branch: str = "main") -> str:
        """Make a commit of these files, and return its hash."""
        digest = hashlib.sha1(repr((sorted(files), len(self.commits))).encode())
        digest.update(b"".join(files[name] for name in sorted(files)))
        self.commits[digest.hexdigest()] = dict(files)
        self.branches[branch] = digest.hexdigest()
        return digest.hexdigest()


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path relative to it."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@dataclass(frozen=True)
class Request:
    """One request, and what came of it.

    Attributes:
        host: ``hub`` or ``storage``.
        method: HTTP method.
        path: Path without the query.
        range: First and one past the last byte asked for; None for all of it.
        token: Whether it carried a token.
        status: Of the answer.
        sent: Bytes of the body that were handed to the network.
    """

    host: str
    method: str
    path: str
    range: tuple[int, int] | None
    token: bool
    status: int
    sent: int


@dataclass
class Fault:
    """What goes wrong with requests that match.

    Attributes:
        pattern: Regular expression found in ``host METHOD path``.
        times: How often; negative for always.
        after: Requests that match and pass before that.
        status: Answer with this status.
        headers: Headers of that answer.
        cut: Close the connection after so many bytes of the body; negative for never.
        whole: Ignore the range and send all of it.
        shift: Send a range that begins so many bytes later.
        grown: Say that the file has so many bytes more.
        gzip: Say that the body is compressed.
    """

    pattern: str
    times: int = 1
    after: int = 0
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: int = -1
    whole: bool = False
    shift: int = 0
    grown: int = 0
    gzip: bool = False


class FakeHub:
    """The server; use as a context manager.

    Attributes:
        repositories: What it offers, by ``org/name``.
        requests: Method and path of every request so far.
        before: Called with every request before it is answered.
        faults: What goes wrong; the first that matches counts.
        signature: Number in the addresses of stored files; others have expired.
        stores: Whether large files lie on the second host.
    """

    def __init__(self) -> None:
        """Bind two free ports of the loopback interface."""
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.before: Callable[[str], None] = lambda request: None
        self.faults: list[Fault] = []
        self.signature = 1
        self.stores = True
        self._log: list[Request] = []
        self._busy = 0
        self._changed = Condition()
        self._servers = [
            _Server(("127.0.0.1", 0), partial(_Handler, self, host)) for host in ("hub", "storage")
        ]

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._servers[0].server_port}"

    @property
    def storage(self) -> str:
        """Address of the second host, which has another name too."""
        return f"http://localhost:{self._servers[1].server_port}"

    @property
    def log(self) -> list[Request]:
        """What came of the requests so far, in the order of their ends; waits for those under way.

        A client may have its last byte before the server knows that it is sent.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._busy, timeout=10)
        return self._log

    @contextmanager
    def answering(self) -> Iterator[None]:
        """While a request is under way."""
        with self._changed:
            self._busy += 1
        try:
            yield
        finally:
            with self._changed:
                self._busy -= 1
                self._changed.notify_all()

    def note(self, request: Request) -> None:
        """Remember a request that has been answered."""
        with self._changed:
            self._log.append(request)

    def add(self, name: str, files: Files, **facts: bool) -> Repository:
        """Offer a repository with one commit on ``main``."""
        repository = self.repositories[name] = Repository(**facts)
        repository.push(files)
        return repository

    def fetched(self) -> list[str]:
        """Names of the files whose bytes were asked for, sorted."""
        pattern = re.compile(r"GET /[^/]+/[^/]+/(?:resolve|stored)/[^/]+/(.*)")
        matches = (pattern.fullmatch(request) for request in self.requests)
        return sorted({match[1] for match in matches if match})

    def bytes_sent(self, name: str = "") -> int:
        """Bytes of files whose path ends in ``name`` that were handed out."""
        return sum(one.sent for one in self.log if "/api/" not in one.path and name in one.path)

    def fault(self, request: str) -> Fault | None:
        """What goes wrong with a request."""
        with self._changed:
            for fault in self.faults:
                if not fault.times or not re.search(fault.pattern, request):
                    continue
                if not fault.after:
                    fault.times -= 1
                    return fault
                fault.after -= 1
        return None

    def __enter__(self) -> FakeHub:
        for server in self._servers:
            Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet about clients that hang up; say the rest."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: FakeHub, host: str, *args: Any) -> None:
        self.hub, self.host = hub, host
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        with self.hub.answering():
            self._answer()

    def do_GET(self) -> None:
        with self.hub.answering():
            self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        with self.hub.answering():
            self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.plain_path = path
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.before(f"{self.command} {path}")
        self.wrong = self.hub.fault(f"{self.host} {self.command} {path}")
        if self.wrong and self.wrong.status:
            self._send(self.wrong.status, b"it went wrong", self.wrong.headers)
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/(.+)|/tree/(.+))?", path):
            self._api(match[1], match[3] or match[4] or "main", match[4] is not None)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/(resolve|stored)/([^/]+)/(.+)", path):
            self._file(match[1], match[3], match[4])
        else:
            self._error(404, "EntryNotFound", "no such page")

    def _commit(self, name: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.hub.repositories.get(name)
        stored = self.host == "storage"  # which goes by signatures instead
        if repository is None or (repository.hidden and not (stored or self._token())):
            self._error(401, "RepoNotFound", "Repository not found")
            return None
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repository, commit

    def _api(self, name: str, revision: str, tree: bool) -> None:
        found = self._commit(name, revision)
        if found is None:
            return
        repository, commit = found
        files = repository.commits[commit]
        if tree:
            answer: Any = [_tree_entry(path, data) for path, data in files.items()]
        else:
            answer = {
                "_id": "0",
                "id": name,
                "modelId": name,
                "sha": commit,
                "private": repository.hidden,
                "gated": "auto" if repository.gated else False,
                "disabled": False,
                "tags": [],
                "siblings": [{"rfilename": path} for path in files],
            }
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _file(self, name: str, revision: str, path: str) -> None:
        found = self._commit(name, revision)
        if found is None:
            return
        repository, commit = found
        stored = self.host == "storage"
        if repository.gated and not (stored or self._token()):
            self._error(401, "GatedRepo", f"Access to model {name} is restricted")
            return
        if stored and urlsplit(self.path).query != f"signature={self.hub.signature}":
            self._send(403, b"<Error><Code>AccessDenied</Code></Error>", {})
            return
        data = repository.commits[commit].get(path)
        if data is None:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        etag = f'"{_sha256(data)}"'
        if not stored and self.hub.stores and path.endswith(LARGE):
            place = f"{self.hub.storage}/{quote(name)}/stored/{commit}/{quote(path)}"
            headers = {
                "X-Repo-Commit": commit,
                "X-Linked-ETag": etag,
                "X-Linked-Size": str(len(data)),
                "Location": f"{place}?signature={self.hub.signature}",
            }
            self._send(302, b"", headers)
            return
        headers = {
            "ETag": etag,
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
        }
        if not stored:
            headers["X-Repo-Commit"] = commit
        wrong = self.wrong or Fault("")
        if wrong.gzip:
            headers["Content-Encoding"] = "gzip"
        wanted = self._range(len(data))
        if wanted is None or wrong.whole:
            self._send(200, data, headers)
        elif wanted[0] >= len(data):
            self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        else:
            first, last = wanted[0] + wrong.shift, min(wanted[1], len(data)) - 1
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data) + wrong.grown}"
            self._send(206, data[first : last + 1], headers)

    def _range(self, size: int) -> tuple[int, int] | None:
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        return (int(wanted[1]), int(wanted[2]) + 1 if wanted[2] else size) if wanted else None

    def _token(self) -> bool:
        return bool(self.headers.get("Authorization"))

    def _error(
        self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
    ) -> None:
        facts = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        self._send(status, json.dumps({"error": message}).encode(), facts)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        sent = 0
        if self.command != "HEAD":
            whole = self.wrong is None or self.wrong.cut < 0 or bool(self.wrong.status)
            body = body if whole else body[: self.wrong.cut]
            self.close_connection |= not whole
            with suppress(ConnectionError):
                for start in range(0, len(body), 1 << 16):
                    sent += self.wfile.write(body[start : start + (1 << 16)])
        self.hub.note(
            Request(
                self.host,
                self.command,
                self.plain_path,
                self._range(len(body)),
                self._token(),
                status,
                sent,
            )
        )


@cache
def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _tree_entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(data),
        "oid": hashlib.sha1(data).hexdigest(),
    }
    if path.endswith(LARGE):
        entry["lfs"] = {
            "oid": _sha256(data),
            "size": len(data),
            "pointerSize": 134,
        }
    return entry
