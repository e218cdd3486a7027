"""A model hub on loopback that speaks as much of the protocol as its Python client needs."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

Files = Mapping[str, bytes]


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


class FakeHub:
    """The server; use as a context manager.

    Attributes:
        repositories: What it offers, by ``org/name``.
        requests: Method and path of every request so far.
        before: Called with every request before it is answered.
    """

    def __init__(self) -> None:
        """Bind a free port of the loopback interface."""
        self.repositories: dict[str, Repository] = {}
        self.requests: list[str] = []
        self.before: Callable[[str], None] = lambda request: None
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, self))
        self._server.daemon_threads = True

    @property
    def endpoint(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._server.server_port}"

    def add(self, name: str, files: Files, **facts: bool) -> Repository:
        """Offer a repository with one commit on ``main``."""
        repository = self.repositories[name] = Repository(**facts)
        repository.push(files)
        return repository

    def fetched(self) -> list[str]:
        """Names of the files whose bytes were asked for, sorted."""
        pattern = re.compile(r"GET /[^/]+/[^/]+/resolve/[^/]+/(.*)")
        matches = (pattern.fullmatch(request) for request in self.requests)
        return sorted(match[1] for match in matches if match)

    def __enter__(self) -> FakeHub:
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, hub: FakeHub, *args: Any) -> None:
        self.hub = hub
        super().__init__(*args)

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer()

    def _answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        self.hub.before(f"{self.command} {path}")
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(/revision/(.+)|/tree/(.+))?", path):
            self._api(match[1], match[3] or match[4] or "main", match[4] is not None)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[2], match[3])
        else:
            self._error(404, "EntryNotFound", "no such page")

    def _commit(self, name: str, revision: str) -> tuple[Repository, str] | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.hidden and not self.headers.get("Authorization")):
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
        if repository.gated and not self.headers.get("Authorization"):
            self._error(401, "GatedRepo", f"Access to model {name} is restricted")
            return
        data = repository.commits[commit].get(path)
        if data is None:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        headers = {
            "X-Repo-Commit": commit,
            "ETag": f'"{hashlib.sha256(data).hexdigest()}"',
            "Content-Type": "application/octet-stream",
            "Accept-Ranges": "bytes",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if wanted:
            first, last = int(wanted[1]), int(wanted[2] or len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            self._send(206, data[first : last + 1], headers)
        else:
            self._send(200, data, headers)

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
        if self.command != "HEAD":
            self.wfile.write(body)


def _tree_entry(path: str, data: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "type": "file",
        "path": path,
        "size": len(data),
        "oid": hashlib.sha1(data).hexdigest(),
    }
    if path.endswith((".safetensors", ".bin")):
        entry["lfs"] = {
            "oid": hashlib.sha256(data).hexdigest(),
            "size": len(data),
            "pointerSize": 134,
        }
    return entry
