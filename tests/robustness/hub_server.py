"""A local server that speaks as much of the hub's API as transformers and datasets ask of it, well or badly."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


@dataclass
class Repository:
    """A model or a data set, and how it is served.

    Attributes:
        files: Contents by path.
        fault: ``whole``; ``slow`` (in pieces, with pauses); ``cut`` (the connection ends in the middle of a large
            file); ``short`` (a large file is half of what it was, and says so); ``stalls`` (no answer in time);
            an HTTP status.
        times: Requests that the fault meets; afterwards all is whole.
    """

    files: dict[str, bytes]
    fault: str | int = "whole"
    times: int = 10**9
    asked: Counter[str] = field(default_factory=Counter)


class Hub(ThreadingHTTPServer):
    """Serves repositories by ``models/owner/name`` and ``datasets/owner/name``."""

    daemon_threads = True

    def __init__(self, repositories: dict[str, Repository]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories = repositories
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        """What HF_ENDPOINT is."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *arguments: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        posted = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(body=True, posted=posted)

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def _error(self, status: int, code: str, body: bool) -> None:
        self._send(status, json.dumps({"error": code}).encode(), {"X-Error-Code": code}, body)

    def _answer(self, body: bool, posted: bytes = b"") -> None:
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        api = parts[0] == "api"
        parts = parts[1:] if api else parts
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        name, rest = "/".join(parts[:2]), parts[2:]
        repository = self.server.repositories.get(f"{kind}/{name}")
        if repository is None:
            self._error(401, "RepoNotFound", body)
            return
        fault = repository.fault if repository.asked["faults"] < repository.times else "whole"
        if isinstance(fault, int):
            repository.asked["faults"] += 1
            self._error(fault, "GatedRepo" if fault == 403 else "Failed", body)
        elif fault == "stalls":
            repository.asked["faults"] += 1
            self.close_connection = True
            time.sleep(1.0)
        elif api:
            self._api(name, rest, repository, body, posted)
        else:
            self._file("/".join(rest[2:]), repository, fault, body)

    def _api(self, name: str, rest: list[str], repository: Repository, body: bool, posted: bytes) -> None:
        entries = [
            {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
            for path, content in sorted(repository.files.items())
        ]
        if rest[:1] == ["tree"]:
            below = "/".join(rest[2:])
            if below and not any(path.startswith(below + "/") for path in repository.files):
                self._error(404, "EntryNotFound", body)
                return
            answer: object = [entry for entry in entries if str(entry["path"]).startswith(below)]
        elif rest[:1] == ["paths-info"]:
            wanted = posted.decode()
            answer = [entry for entry in entries if str(entry["path"]) in unquote(wanted)]
        else:
            siblings = [{"rfilename": path} for path in sorted(repository.files)]
            answer = {"id": name, "sha": COMMIT, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)

    def _file(self, path: str, repository: Repository, fault: str | int, body: bool) -> None:
        content = repository.files.get(path)
        if content is None:
            self._error(404, "EntryNotFound", body)
            return
        etag = hashlib.sha256(content).hexdigest()
        large = len(content) > 2000
        if fault == "short" and large:
            repository.asked["faults"] += body
            content = content[: len(content) // 2]
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        begin = 0
        if asked := self.headers.get("Range"):
            begin = int(asked.removeprefix("bytes=").split("-")[0])
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self.send_response(206 if asked else 200)
        for key, value in {"Content-Length": str(len(content) - begin), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if not body:
            return
        if fault == "cut" and large:
            repository.asked["faults"] += 1
            self.wfile.write(content[begin : (begin + len(content)) // 2])
            self.close_connection = True
        elif fault == "slow" and large:
            for i in range(begin, len(content), len(content) // 4 + 1):
                self.wfile.write(content[i : min(i + len(content) // 4 + 1, len(content))])
                self.wfile.flush()
                time.sleep(0.1)
        else:
            self.wfile.write(content[begin:])


def folder_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder, by name."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
