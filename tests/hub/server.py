"""A small Hub on loopback, at two origins: the Hub itself, and the store of its large files.

    with HubServer() as hub:
        hub.add("model", "tester/base", {"config.json": b"{}"})
        hub.fail("commit", 503)
        subprocess.run(..., env={**os.environ, **hub.environment(), "HF_TOKEN": hub.token, "HF_HOME": ...})
        assert hub.files("model", "tester/adapter")["README.md"]
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import traceback
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from .faults import Fault, Faults, misbehave
from .routes import ROUTE_NAMES, Hub, Route, find_route
from .store import Commit, Kind, Repository
from .wire import Answer, Origin, Refusal, Request

__all__ = ["Commit", "Entry", "Fault", "HubServer", "Kind", "Repository"]


@dataclass
class Entry:
    """One request as it came in; `status` is None while, or where, there is no answer."""

    method: str
    path: str  # with the query
    origin: Origin
    route: str  # "unknown" where there is none
    headers: dict[str, str]  # keys in lower case
    status: int | None = None
    fault: int | str | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)  # the client quotes it in its messages

    @property
    def authorization(self) -> str | None:
        """The Authorization header; None when there was none."""
        return self.headers.get("authorization")


class HubServer(Hub):
    """The server as a context manager; its state, log and faults are open to the test that runs it."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[Entry] = []
        # tracebacks of mistakes of the server's own; leaving the context raises them
        self.errors: list[str] = []
        self.closing = threading.Event()
        self._faults = Faults(ROUTE_NAMES)
        self._listeners = [_Listener(self, "hub"), _Listener(self, "lfs")]
        self.url = f"http://127.0.0.1:{self._listeners[0].server_port}"
        self.lfs_url = f"http://localhost:{self._listeners[1].server_port}"

    def __enter__(self) -> Self:
        for listener in self._listeners:
            threading.Thread(target=listener.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        self.close()
        if self.errors and error is None:
            raise RuntimeError("mistakes of the test server:\n" + "\n".join(self.errors))

    def close(self) -> None:
        """Stop listening and cut every connection; what hangs is released."""
        self.closing.set()
        for listener in self._listeners:
            listener.stop()

    def environment(self) -> dict[str, str]:
        """What a process needs in its environment for its client to talk to this server alone."""
        loopback = "127.0.0.1,localhost"
        return {"HF_ENDPOINT": self.url, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
                "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_UPDATE_DOWNLOAD_COUNTS": "0",
                "NO_PROXY": loopback, "no_proxy": loopback}

    def fail(self, route: str, fault: int | str, times: int | None = 1, after: int = 0, match: str = "",
             **options: Any) -> Fault:
        """Let the next requests to a route (`*`: any) go wrong; see faults.py for the kinds and options.

        times: how many requests are hit, None for all. after: how many pass before. match: only paths with
        this in them.
        """
        return self._faults.add(Fault(route, fault, times, after, match, options))

    def faults_left(self) -> list[Fault]:
        """The faults that have not hit as often as they should have."""
        return self._faults.left()

    def clear_faults(self) -> None:
        """Let nothing go wrong any more."""
        self._faults.clear()

    def requests(self, *routes: str) -> list[Entry]:
        """The part of the log that is about these routes."""
        return [entry for entry in list(self.log) if entry.route in routes]

    def take_fault(self, entry: Entry) -> Fault | None:
        """The fault that hits this request; the log says so."""
        fault = self._faults.take(entry.route, entry.path)
        entry.fault = fault.kind if fault is not None else None
        return fault

    def answer(self, route: Route | None, request: Request) -> Answer:
        """Do what the request asks for, one request at a time."""
        try:
            if route is None:
                raise Refusal(404, f"No such page: {request.method} {request.path}")
            with self.lock:
                return route.answer(self, request)
        except Refusal as refusal:
            return refusal.answer()
        except Exception:
            self.errors.append(f"{request.method} {request.path}\n{traceback.format_exc()}")
            return Refusal(500, "A mistake of the test server").answer()


class _Listener(ThreadingHTTPServer):
    """One of the two origins."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, hub: HubServer, origin: Origin) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub
        self.origin = origin
        self._open: set[socket.socket] = set()
        self._guard = threading.Lock()

    def server_bind(self) -> None:
        # The base class looks up the host's name, which can take seconds where there is no name service.
        socket.socket.bind(self.socket, self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", self.server_address[1]

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._guard:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._guard:
            self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no mistake of the server."""
        if not self.hub.closing.is_set():
            text = traceback.format_exc()
            if not any(name in text
                       for name in ("ConnectionResetError", "BrokenPipeError", "ConnectionAbortedError")):
                self.hub.errors.append(text)

    def stop(self) -> None:
        """Take no more connections and end those that are open."""
        self.shutdown()
        self.server_close()
        with self._guard:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # it was closed just now


class _Handler(BaseHTTPRequestHandler):
    """One connection, which may bring several requests, one after the other."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener
    _entry: Entry

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr: what came in is in the server's log."""

    def _serve(self) -> None:
        hub, split = self.server.hub, urlsplit(self.path)
        self.closing = hub.closing
        route, arguments = find_route(self.command, split.path, self.server.origin)
        headers = {key.lower(): value for key, value in self.headers.items()}
        self._entry = Entry(self.command, self.path, self.server.origin, route.name if route else "unknown",
                            headers)
        hub.log.append(self._entry)
        fault = hub.take_fault(self._entry)
        if fault is not None and fault.options.get("early"):
            return self.reset()
        body = self._read()
        if body is None:
            return self.close()
        query = parse_qs(split.query, keep_blank_values=True)
        request = Request(self.command, split.path, self.server.origin, query, self.headers, body, arguments)
        if fault is None:
            return self.send(hub.answer(route, request))
        misbehave(fault, self, lambda: hub.answer(route, request))

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _read(self) -> bytes | None:
        """The body of the request; None when the client went away before its end."""
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            return self._read_chunks()
        size = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(size)
        return body if len(body) == size else None

    def _read_chunks(self) -> bytes | None:
        pieces: list[bytes] = []
        while line := self.rfile.readline().strip():
            size = int(line.split(b";")[0], 16)
            pieces.append(self.rfile.read(size))
            self.rfile.readline()
            if size == 0:
                return b"".join(pieces)
        return None

    def send(self, answer: Answer, body: bytes | None = None) -> None:
        """Send the head of an answer, then its body or these bytes instead."""
        self._entry.status = answer.status
        self.send_response_only(answer.status)
        headers = {"Content-Length": str(len(answer.body)), "X-Request-Id": self._entry.id, **answer.headers}
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        self.write(answer.body if body is None else body)

    def write(self, data: bytes) -> None:
        """Send more bytes of a body."""
        if self.command != "HEAD" and data:
            self.wfile.write(data)

    def close(self) -> None:
        """Close after what was sent."""
        self.close_connection = True

    def reset(self) -> None:
        """Cut the connection at once, with RST."""
        self.close_connection = True
        connection: socket.socket = self.connection
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        os.close(connection.detach())  # a plain close() waits for the files that were made of the socket
