"""``/metrics`` over HTTP from a thread of the controller: looked up when asked, never in the loop.

The thread has its own read-only connection to the journal and answers from memory within a second
of the last answer, so that whoever asks too often costs nothing. Pulled rather than written to a
file: a value is then as old as the scrape, and a controller that is gone shows as ``up == 0``.

The client library's own servers are not used: they have a thread for every client and no limit on
how long one may take. Here one thread waits for all of them, none for long.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import threading
import time
from dataclasses import dataclass
from http import HTTPStatus

from mixloop.common.errors import BadInput
from mixloop.contract import RunPaths
from mixloop.controller.journal import JournalError
from mixloop.controller.views import Watcher

from .timings import Timings

FRESH = 1.0  # seconds for which an answer is given again
IDLE_INTERVAL = 5.0  # seconds between two looks at the heartbeat while nobody asks
CLIENT_TIMEOUT = 5.0  # seconds a client may take in all
MOST_CLIENTS = 64  # at a time; the one that is there longest makes room
LONGEST_REQUEST = 8192  # bytes
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PLAIN = "text/plain; charset=utf-8"


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


@dataclass
class _Client:
    """A connection: what it has asked for so far, then what is left to send."""

    socket: socket.socket
    deadline: float
    asked: bytes = b""
    left: bytes = b""


class MetricsServer:
    """Serves one run's metrics until :meth:`close`, from one thread.

    A client that dawdles delays nobody; after ``CLIENT_TIMEOUT`` it is let go.

    Raises:
        BadInput: when the address can't be had.
    """

    def __init__(self, paths: RunPaths, host: str, port: int, timings: Timings) -> None:
        self._timings = timings
        self._watcher = Watcher(paths, time.monotonic)
        self._answer = b""
        self._answered = self._looked = float("-inf")
        try:
            self._listener = socket.create_server((host, port))
        except OSError as error:
            raise _refused(host, port, error) from None
        self._listener.setblocking(False)
        self._address = self._listener.getsockname()[:2]
        self._woken, self._wake = socket.socketpair()
        self._clients: dict[socket.socket, _Client] = {}  # the eldest first
        self._selector = selectors.DefaultSelector()
        for waited_for in (self._listener, self._woken):
            self._selector.register(waited_for, selectors.EVENT_READ)
        threading.Thread(target=self._serve, name="metrics", daemon=True).start()

    @property
    def url(self) -> str:
        """Where it is served."""
        host, port = self._address
        return f"http://{host}:{port}/metrics"

    def close(self) -> None:
        """Stop serving. Returns within a moment, whatever clients do."""
        self._wake.close()

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

    # -- the thread --------------------------------------------------------------------------

    def _serve(self) -> None:
        while True:
            ready = [key.fileobj for key, _ in self._selector.select(0.5)]
            if self._woken in ready:
                break
            for found in ready:
                if found is self._listener:
                    self._accept()
                elif (client := self._clients.get(found)) is not None:  # type: ignore[call-overload]
                    try:
                        self._attend(client)
                    except BlockingIOError:  # not yet, after all
                        continue
                    except OSError:  # it went away, which is nothing to tell
                        self._let_go(client)
            now = time.monotonic()
            for client in [one for one in self._clients.values() if one.deadline < now]:
                self._let_go(client)
            self._look_now_and_then(now)
        for client in list(self._clients.values()):
            self._let_go(client)
        for closed in (self._listener, self._woken, self._selector):
            closed.close()

    def _look_now_and_then(self, now: float) -> None:
        """Look at the heartbeat, so that its silence is known when somebody asks."""
        if now - self._looked > IDLE_INTERVAL:
            self._looked = now
            self._watcher.read_heartbeat()

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:  # it went away again
            return
        except OSError:  # there are too many files, and it still waits
            self._make_room()
            return
        connection.setblocking(False)
        if len(self._clients) >= MOST_CLIENTS:
            self._make_room()
        self._clients[connection] = _Client(connection, time.monotonic() + CLIENT_TIMEOUT)
        self._selector.register(connection, selectors.EVENT_READ)

    def _make_room(self) -> None:
        if self._clients:
            self._let_go(next(iter(self._clients.values())))
        else:
            time.sleep(0.1)

    def _attend(self, client: _Client) -> None:
        """Take what it asks, or send what it takes; never waits.

        Raises:
            OSError: it went away.
        """
        if not client.left:
            part = client.socket.recv(4096)
            client.asked += part
            if not part or len(client.asked) > LONGEST_REQUEST:
                self._let_go(client)
                return
            if b"\r\n\r\n" not in client.asked and b"\n\n" not in client.asked:
                return
            client.left = self._response(client.asked)
            self._selector.modify(client.socket, selectors.EVENT_WRITE)
        client.left = client.left[client.socket.send(client.left) :]
        if not client.left:
            self._let_go(client)

    def _let_go(self, client: _Client) -> None:
        del self._clients[client.socket]
        self._selector.unregister(client.socket)
        with contextlib.suppress(OSError):
            client.socket.shutdown(socket.SHUT_WR)
        client.socket.close()

    def _response(self, asked: bytes) -> bytes:
        method, _, rest = asked.partition(b"\r\n")[0].partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        kind = PLAIN
        if method not in (b"GET", b"HEAD"):
            status, body = HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD are known here\n"
        elif path not in (b"/metrics", b"/"):
            status, body = HTTPStatus.NOT_FOUND, b"only /metrics is here\n"
        else:
            try:
                status, body, kind = HTTPStatus.OK, self.answer(), CONTENT_TYPE
            except Exception as error:
                status = HTTPStatus.SERVICE_UNAVAILABLE
                body = f"not now: {type(error).__name__}: {error}\n".encode("utf-8", "replace")
        head = (
            f"HTTP/1.0 {status.value} {status.phrase}\r\nServer: mixloop\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        )
        return head.encode() + (b"" if method == b"HEAD" else body)
