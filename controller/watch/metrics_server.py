"""``/metrics`` over HTTP from a thread of the controller: looked up when asked, never in the loop.

The thread has its own read-only connection to the journal and answers from memory within a second
of the last answer, so that whoever asks too often costs nothing. Pulled rather than written to a
file: a value is then as old as the scrape, and a controller that is gone shows as ``up == 0``.

The client library's own servers are not used: they have a thread for every client and no limit on
how long one may be silent.
"""

from __future__ import annotations

import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import TCPServer
from typing import Any

from mixloop.common.errors import BadInput
from mixloop.contract import RunPaths
from mixloop.controller.journal import JournalError
from mixloop.controller.views import Watcher

from .timings import Timings

FRESH = 1.0  # seconds for which an answer is given again
IDLE_INTERVAL = 5.0  # seconds between two looks at the heartbeat while nobody asks
CLIENT_TIMEOUT = 5.0  # seconds a client may be silent
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def check_address(host: str, port: int) -> None:
    """Refuse an address that can't be had, before anything starts.

    Raises:
        BadInput: one line.
    """
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        raise _refused(host, port, error) from None


def _refused(host: str, port: int, error: OSError) -> BadInput:
    return BadInput(
        f"controller.metrics: {host}:{port} can't be served ({error.strerror or error}); give "
        "another port (--metrics-port)"
    )


class MetricsServer(HTTPServer):
    """Serves one run's metrics until :meth:`close`.

    One request at a time: a client that dawdles delays other scrapes, never the controller.

    Raises:
        BadInput: when the address can't be had.
    """

    def __init__(self, paths: RunPaths, host: str, port: int, timings: Timings) -> None:
        self._timings = timings
        self._watcher = Watcher(paths, time.monotonic)
        self._answer = b""
        self._answered = self._looked = float("-inf")
        try:
            super().__init__((host, port), _Handler)
        except OSError as error:
            raise _refused(host, port, error) from None
        threading.Thread(target=self.serve_forever, name="metrics", daemon=True).start()

    @property
    def url(self) -> str:
        """Where it is served."""
        host, port = self.server_address[:2]
        return f"http://{host if isinstance(host, str) else host.decode()}:{port}/metrics"

    def close(self) -> None:
        """Stop serving. Returns within a moment, whatever clients do."""
        threading.Thread(target=self._end, daemon=True).start()

    def _end(self) -> None:
        self.shutdown()
        self.server_close()

    def answer(self) -> bytes:
        """The exposition now, or as it was a moment ago."""
        now = time.monotonic()
        if now - self._answered > FRESH:
            self._answer = self._exposition()
            self._answered = self._looked = now
        return self._answer

    def _exposition(self) -> bytes:
        from prometheus_client import generate_latest

        from .prometheus import RunMetrics

        look = self._watcher.look()
        if look.trouble or look.standing.controller is None:  # half of the metrics would be missing
            raise JournalError(look.trouble or "there is no journal")
        return generate_latest(RunMetrics(look.standing, self._timings))

    def service_actions(self) -> None:
        """Look at the heartbeat now and then, so that its silence is known when somebody asks."""
        now = time.monotonic()
        if now - self._looked > IDLE_INTERVAL:
            self._looked = now
            self._watcher.read_heartbeat()

    def server_bind(self) -> None:
        """Without the reverse look-up of our own name, which can take seconds."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = "mixloop", int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is nothing to tell."""


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer
    timeout = CLIENT_TIMEOUT
    server_version, sys_version = "mixloop", ""

    def do_GET(self) -> None:
        if self.path.partition("?")[0] not in ("/metrics", "/"):
            self._send(404, b"only /metrics is here\n")
            return
        try:
            body = self.server.answer()
        except Exception as error:
            self._send(503, f"not now: {type(error).__name__}: {error}\n".encode())
            return
        self._send(200, body, CONTENT_TYPE)

    def do_HEAD(self) -> None:
        self.do_GET()

    def _send(self, status: int, body: bytes, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - its name there
        """A scrape is nothing to tell."""
