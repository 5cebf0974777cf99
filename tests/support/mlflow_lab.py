"""A real MLflow server to be killed and starved, and a proxy before it that misbehaves."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import os
import re
import signal
import socket
import sqlite3
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """``mlflow server`` with an SQLite store in a folder. It may be killed and started again."""

    def __init__(self, folder: Path, log: Path | None = None) -> None:
        self.folder, self.port = folder, free_port()
        self.log = log or folder / "server.log"
        self.database = folder / "mlflow.db"
        self.address = f"http://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1"]
        command += ["--port", str(self.port), "--workers", "1"]
        command += ["--backend-store-uri", f"sqlite:///{self.database}"]
        command += ["--artifacts-destination", (self.folder / "artifacts").as_uri()]
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, start_new_session=True
            )

    def wait(self) -> None:
        """Until it answers."""
        assert self._process is not None
        for _ in range(1200):
            try:
                with urllib.request.urlopen(f"{self.address}/health", timeout=1):
                    return
            except OSError:
                assert self._process.poll() is None, self.log.read_text()[-2000:]
                time.sleep(0.1)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()


@dataclass
class Fault:
    """What becomes of a request.

    Attributes:
        kind: ``answer`` is given without the server; ``hang`` for ``seconds``, then nothing;
            ``reset`` the connection; ``garbage``; ``lost`` is the server's answer; ``late`` is the
            request itself, by ``seconds``, when its answer interests nobody any more.
    """

    kind: str
    code: int = 500
    body: str = "<html>no</html>"
    content: str = "text/html"
    seconds: float = 1.0


def nothing_wrong(request: str) -> Fault | None:
    return None


class Proxy:
    """An HTTP proxy in this process. ``fault`` is asked of every request (``POST /path``)."""

    def __init__(self, upstream: int, tls: ssl.SSLContext | None = None) -> None:
        self.fault: Callable[[str], Fault | None] = nothing_wrong
        self.requests: list[str] = []
        self.upstream = upstream
        self._server = _Listener(("127.0.0.1", 0), _Handler)
        self._server.proxy = self
        scheme = "http" if tls is None else "https"
        self.address = f"{scheme}://127.0.0.1:{self._server.server_address[1]}"
        if tls is not None:
            # by the thread of a request: a client that goes away in the middle of it holds nobody
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def certificate(folder: Path, *, address: str = "127.0.0.1", days: int = 1) -> tuple[Path, Any]:
    """A self-signed certificate of ``address`` that ends in so many days: its file, a context."""
    import datetime
    import ipaddress

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "mlflow")])
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name)
    built = built.public_key(key.public_key()).serial_number(x509.random_serial_number())
    built = built.not_valid_before(end - datetime.timedelta(days=9)).not_valid_after(end)
    hosts = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(address))])
    built = built.add_extension(hosts, critical=False)
    built = built.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    signed = built.sign(key, hashes.SHA256())
    file = folder / f"{address}-{days}.pem"
    plain = serialization.NoEncryption()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain
    )
    file.write_bytes(private + signed.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    trusted = file.with_suffix(".crt")
    trusted.write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    return trusted, context


def once(pattern: str, fault: Fault, *, times: int = 1) -> Callable[[str], Fault | None]:
    """The first requests that match go wrong."""
    left = [times]

    def of(request: str) -> Fault | None:
        if not left[0] or not re.search(pattern, request):
            return None
        left[0] -= 1
        return fault

    return of


def always(pattern: str, fault: Fault) -> Callable[[str], Fault | None]:
    """Every request that matches goes wrong."""
    return lambda request: fault if re.search(pattern, request) else None


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    proxy: Proxy

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone away is no news."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def do(self) -> None:
        proxy, what = self.server.proxy, f"{self.command} {self.path}"
        size = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(size) if size else None
        proxy.requests.append(what)
        fault = proxy.fault(what)
        kind = "" if fault is None else fault.kind
        if fault is not None and kind in ("hang", "late"):
            time.sleep(fault.seconds)
        if fault is not None and kind == "answer":
            self.tell(fault.code, fault.body.encode(), fault.content)
        elif kind in ("hang", "reset", "garbage"):
            if kind == "garbage":
                self.wfile.write(b"\x16\x03\x01\x02\x00garbage" * 50)
            self.close_connection = True
        else:
            status, data, content = self.forward(body)
            if kind in ("lost", "late"):
                self.close_connection = True
            else:
                self.tell(status, data, content)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do  # noqa: N815

    def forward(self, body: bytes | None) -> tuple[int, bytes, str]:
        dropped = ("host", "connection")
        headers = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
        server = http.client.HTTPConnection("127.0.0.1", self.server.proxy.upstream, timeout=120)
        try:
            server.request(self.command, self.path, body, headers)
            answer = server.getresponse()
            return answer.status, answer.read(), answer.getheader("Content-Type") or ""
        except (OSError, http.client.HTTPException) as error:
            return 502, str(error).encode(), "text/plain"
        finally:
            server.close()

    def tell(self, code: int, data: bytes, content: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """It is quiet."""


def facts(database: Path, experiment: str) -> dict[str, Any]:
    """What a server's own tables hold of an experiment, counted."""
    with _reading(database) as db:
        (number,) = db.execute(
            "SELECT experiment_id FROM experiments WHERE name = ?", (experiment,)
        ).fetchone()

        def ask(query: str) -> list[Any]:
            return db.execute(query, {"e": number}).fetchall()

        live = "experiment_id = :e AND lifecycle_stage = 'active'"
        runs = f"(SELECT run_uuid FROM runs WHERE {live})"
        traces = "(SELECT request_id FROM trace_info WHERE experiment_id = :e)"
        return {
            "runs": ask(f"SELECT COUNT(*) FROM runs WHERE {live}")[0][0],
            "status": ask(f"SELECT status FROM runs WHERE {live}"),
            "params": ask(f"SELECT COUNT(*) FROM params WHERE run_uuid IN {runs}")[0][0],
            "points": sorted(
                ask(f"SELECT key, step, value FROM metrics WHERE run_uuid IN {runs}"), key=repr
            ),
            "models": sorted(ask(f"SELECT name FROM logged_models WHERE {live}")),
            "outputs": ask(
                "SELECT COUNT(*) FROM inputs WHERE source_type = 'RUN_OUTPUT' "
                f"AND source_id IN {runs}"
            )[0][0],
            "traces": sorted(
                ask(
                    "SELECT t.request_id, t.status, t.request_preview, g.value FROM trace_info t "
                    "LEFT JOIN trace_tags g ON g.request_id = t.request_id "
                    f"AND g.key = 'mixloop.decision' WHERE t.request_id IN {traces}"
                ),
                key=repr,
            ),
            "spans": sorted(
                ask(f"SELECT trace_id, name FROM spans WHERE trace_id IN {traces}"), key=repr
            ),
            "tags": sorted(
                ask(
                    "SELECT request_id, key, value FROM trace_tags "
                    f"WHERE request_id IN {traces} AND key NOT LIKE 'mlflow.%'"
                )
            ),
        }


@contextlib.contextmanager
def _reading(database: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as db:
        yield db
