"""A Hugging Face hub on loopback with one repository, as far as the hub's own client reads it."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

COMMIT = "a" * 40


class _Handler(BaseHTTPRequestHandler):
    server: "HubServer"
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _serve(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.asked.append(path)
        name = path.partition(f"/resolve/{COMMIT}/")[2] or path.partition("/resolve/main/")[2]
        if name:
            self._file(name)
        elif self.server.repository not in path:
            self._answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})
        elif "/revision/" in path or path.endswith(self.server.repository):
            about = {"id": self.server.repository, "sha": COMMIT, "siblings": []}
            self._json({**about, "private": False, "downloads": 0, "likes": 0, "tags": []})
        elif "/tree/" in path:
            folder = path.partition("/tree/")[2].partition("/")[2]
            self._json(self._entries(folder))
        elif "/paths-info/" in path:
            wanted = body.decode()
            self._json([e for e in self._entries("") if e["path"] in wanted])
        else:
            self._answer(404, b"{}", **{"X-Error-Code": "EntryNotFound"})

    def _entries(self, folder: str) -> list[dict[str, object]]:
        files = self.server.files.items()
        return [
            {"type": "file", "path": name, "size": len(content), "oid": sha1(content).hexdigest()}
            for name, content in files
            if name.startswith(folder)
        ]

    def _file(self, name: str) -> None:
        content = self.server.files.get(name)
        if content is None:
            self._answer(404, b"", **{"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
            return
        about = {"ETag": f'"{sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}
        if span := self.headers.get("Range"):
            first, _, last = span.removeprefix("bytes=").partition("-")
            end = min(int(last) + 1, len(content)) if last else len(content)
            about["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
            self._answer(206, content[int(first) : end], **about)
        else:
            self._answer(200, content, **about)

    def _json(self, document: object) -> None:
        self._answer(200, json.dumps(document).encode(), **{"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_HEAD = _serve


class HubServer(ThreadingHTTPServer):
    """The server: the files of its repository by name, and the paths that were asked for."""

    daemon_threads = True

    def __init__(self, repository: str, files: dict[str, bytes]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repository = repository
        self.files = files
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def hub_server(repository: str, files: dict[str, bytes]) -> Iterator[HubServer]:
    """Yields a hub with one repository, `ORG/NAME`, of these files."""
    with HubServer(repository, files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()
