"""Prometheus' view of a run: the exposition format, the server, and that neither harms the loop."""

from __future__ import annotations

import contextlib
import math
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import generate_latest

from mixloop.common.errors import BadInput
from mixloop.controller.views import Watcher
from mixloop.controller.watch import MetricsServer, Timings, check_address
from mixloop.controller.watch.metrics_server import CONTENT_TYPE, MOST_CLIENTS
from mixloop.controller.watch.prometheus import METRICS, RunMetrics, metric

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
LABEL = r'[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\\n]|\\[\\"n])*"'
SAMPLE = re.compile(rf"({NAME})(?:\{{({LABEL}(?:,{LABEL})*)\}})? (\S+)")
SUFFIXES = {"histogram": ("_bucket", "_sum", "_count"), "gauge": ("",), "counter": ("",)}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def parse(exposition: str) -> Samples:
    """The samples of an exposition; asserts what version 0.0.4 of the format demands of it."""
    assert exposition.endswith("\n")
    found: Samples = {}
    kinds: dict[str, str] = {}
    helped: set[str] = set()
    current = ""
    for line in exposition.splitlines():
        if line.startswith("# HELP "):
            current = line.split(" ", 3)[2]
            assert current not in helped, "one HELP a metric"
            helped.add(current)
        elif line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name == current, "TYPE follows its HELP"
            assert name not in kinds, "one TYPE a metric"
            assert kind in SUFFIXES
            assert (kind == "counter") == name.endswith("_total")
            kinds[name] = kind
        else:
            match = SAMPLE.fullmatch(line)
            assert match is not None, line
            name, labels, value = match.groups()
            assert name in {current + suffix for suffix in SUFFIXES[kinds[current]]}, "grouped"
            pairs = tuple(re.findall(r'([a-zA-Z0-9_]+)="((?:[^"\\]|\\.)*)"', labels or ""))
            assert len(dict(pairs)) == len(pairs)
            assert (name, pairs) not in found, "told once"
            found[name, pairs] = float(value.replace("Inf", "inf"))
    check_histograms(found, kinds)
    return found


def check_histograms(found: Samples, kinds: dict[str, str]) -> None:
    for name in (name for name, kind in kinds.items() if kind == "histogram"):
        buckets = [
            (float(dict(labels)["le"].replace("Inf", "inf")), value)
            for (sample, labels), value in found.items()
            if sample == f"{name}_bucket"
        ]
        assert buckets == sorted(buckets)
        assert [value for _, value in buckets] == sorted(value for _, value in buckets)
        assert buckets[-1][0] == math.inf
        assert buckets[-1][1] == found[f"{name}_count", ()]
        assert (f"{name}_sum", ()) in found


def test_a_played_run_in_numbers(play: Any) -> None:
    run = play(guards={"max_change": 0.2, "max_epochs": 4})
    run.train(9)
    server = MetricsServer(run.paths, "127.0.0.1", 0, run.controller.timings)
    try:
        with urllib.request.urlopen(server.url, timeout=30) as answer:
            assert answer.headers["Content-Type"] == CONTENT_TYPE
            found = parse(answer.read().decode())
    finally:
        server.close()

    def value(name: str, **labels: str) -> float:
        return found[f"mixloop_{name}", tuple(sorted(labels.items()))]

    assert value("tokens_total") == 3600
    assert value("weight", source="code", kind="applied") == pytest.approx(0.2)
    assert value("weight", source="code", kind="asked") == pytest.approx(0.3)
    assert value("generation", kind="asked") == 2
    assert value("source_epochs", source="web") == pytest.approx(0.1)
    assert value("source_epochs_cap", source="web") == 4
    assert value("benchmark", benchmark="gsm8k", metric="bits_per_byte") == pytest.approx(2.16)
    assert value("benchmark_standard_error", benchmark="gsm8k", metric="bits_per_byte") == 0.1
    assert value("decisions_total", verdict="intervene") == 2
    assert value("evaluations_total", state="scored") == 2
    assert value("outbox_rows") > 0
    assert value("reconcile_seconds_count") > 10
    assert value("reconcile_seconds_sum") > 0
    assert value("trainer_state", state="finished") == 0
    assert value("paused") == 0


class Some:
    """A collector of metrics made by hand."""

    def collect(self) -> list[Any]:
        odd = 'a"b\\c\nd\x1b[2J'
        return [
            metric("x", "Line\nbreak \\.", ["source"], {odd: 1.5}),
            metric("z", "Odd.", ["k"], {"n": math.nan, "i": math.inf, "unknown": None}),
        ]


def test_names_from_data_are_escaped_and_what_is_unknown_is_absent() -> None:
    found = parse(generate_latest(Some()).decode())  # type: ignore[arg-type]
    assert found["mixloop_x", (("source", r"a\"b\\c d[2J"),)] == 1.5
    assert math.isnan(found["mixloop_z", (("k", "n"),)])
    assert found["mixloop_z", (("k", "i"),)] == math.inf
    assert len(found) == 3


def test_a_run_that_was_never_started_has_its_metrics_too(tmp_path: Path) -> None:
    from mixloop.contract import RunPaths

    run = Watcher(RunPaths(tmp_path), time.monotonic).look().standing
    found = parse(generate_latest(RunMetrics(run, Timings())).decode())
    assert found["mixloop_trainer_alive", ()] == 0
    assert found["mixloop_trainer_state", (("state", "never started"),)] == 1
    assert ("mixloop_tokens_total", ()) not in found


def test_every_metric_is_documented() -> None:
    page = (Path(__file__).parents[3] / "docs" / "watching.md").read_text()
    assert all(f"`mixloop_{name}`" in page for name in (*METRICS, "reconcile_seconds"))


def test_who_dawdles_or_asks_for_something_else_delays_no_look(play: Any) -> None:
    run = play(policy={"use": "static"})
    run.train(2)
    server = MetricsServer(run.paths, "127.0.0.1", 0, run.controller.timings)
    address = ("127.0.0.1", int(server.url.split(":")[2].split("/")[0]))
    try:
        with socket.create_connection(address) as idle:
            idle.sendall(b"GET /metr")  # and nothing more
            began = time.monotonic()
            run.train(4)
            assert time.monotonic() - began < 30
            serving = [one for one in threading.enumerate() if one.name == "metrics"]
            assert len(serving) <= 2, "none for each client"
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(server.url + "/other", timeout=30)
        run.paths.journal.rename(run.paths.journal.with_name("away"))
        time.sleep(1.1)
        with pytest.raises(urllib.error.HTTPError, match="503"):
            urllib.request.urlopen(server.url, timeout=30)
        run.paths.journal.with_name("away").rename(run.paths.journal)
        with urllib.request.urlopen(server.url, timeout=30) as answer:
            parse(answer.read().decode())
    finally:
        server.close()


def test_slow_clients_hold_nobody_and_are_let_go(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = play(policy={"use": "static"})
    run.train(2)
    server = MetricsServer(run.paths, "127.0.0.1", 0, run.controller.timings)
    address = ("127.0.0.1", int(server.url.split(":")[2].split("/")[0]))
    slow = [socket.create_connection(address) for _ in range(MOST_CLIENTS + 20)]
    try:
        for one in slow:  # a byte now and then, or silence, or a request of which nothing is read
            with contextlib.suppress(OSError):
                one.sendall(b"GET /metrics HTTP/1.1\r\nA: ")
        began = time.monotonic()
        for _ in range(3):
            with urllib.request.urlopen(server.url, timeout=30) as answer:
                parse(answer.read().decode())
        assert time.monotonic() - began < 30, "each of them might have taken 5 s"
        monkeypatch.setattr("mixloop.controller.watch.metrics_server.CLIENT_TIMEOUT", 0.3)
        slow.append(socket.create_connection(address))
        with contextlib.suppress(ConnectionError):  # a byte now and then does not keep it
            for _ in range(600):
                slow[-1].sendall(b"x")
                time.sleep(0.05)
            pytest.fail("it is still there")
        for one in slow:
            one.settimeout(10)
            with contextlib.suppress(ConnectionError):
                assert one.recv(1) == b""
    finally:
        for one in slow:
            one.close()
        server.close()


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n", b"HTTP/1.0 200 OK\r\n"),
        (b"HEAD / HTTP/1.0\r\n\r\n", b"HTTP/1.0 200 OK\r\n"),
        (b"POST /metrics HTTP/1.0\r\n\r\n", b"HTTP/1.0 405 "),
        (b"\xff\xfe\r\n\r\n", b"HTTP/1.0 405 "),
        (b"GET /../x HTTP/1.0\r\n\r\n", b"HTTP/1.0 404 "),
        (b"x" * 20_000, b""),
    ],
)
def test_whatever_is_asked_is_answered_or_let_go(play: Any, asked: bytes, said: bytes) -> None:
    run = play(policy={"use": "static"})
    run.train(2)
    server = MetricsServer(run.paths, "127.0.0.1", 0, run.controller.timings)
    address = ("127.0.0.1", int(server.url.split(":")[2].split("/")[0]))
    answer = b""
    try:
        with socket.create_connection(address) as client, contextlib.suppress(ConnectionError):
            client.settimeout(30)
            client.sendall(asked)
            while part := client.recv(65536):
                answer += part
    finally:
        server.close()
    assert answer.startswith(said) if said else not answer
    head, _, body = answer.partition(b"\r\n\r\n")
    assert asked[:4] != b"HEAD" or (b"Content-Length: " in head and not body)


def test_a_taken_port_is_one_line_and_exit_2_before_anything_starts(
    tmp_path: Path, played_run: Any
) -> None:
    path = played_run.make_run(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=r"controller\.metrics: 127\.0\.0\.1:\d+ can't be"):
            check_address("127.0.0.1", port)
        data = yaml.safe_load(path.read_text())
        data["controller"]["metrics"] = {"port": port}
        path.write_text(yaml.safe_dump(data))
        program = [sys.executable, "-m", "mixloop.cli.app", "control", str(path)]
        done = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "--metrics-port" in done.stderr
    assert not (tmp_path / "run" / "journal.db").exists()


def test_the_command_serves_them(tmp_path: Path, played_run: Any) -> None:
    path = played_run.make_run(tmp_path)
    program = [sys.executable, "-m", "mixloop.cli.app", "control", str(path)]
    program += ["--metrics-port", "0"]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(2)]
        url = said[1].removeprefix("metrics at ").strip()
        assert url.startswith("http://127.0.0.1:")
        for _ in range(2):
            with urllib.request.urlopen(url, timeout=30) as answer:
                found = parse(answer.read().decode())
            time.sleep(1.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=20) == 130
    assert found["mixloop_trainer_alive", ()] == 0
    assert found["mixloop_generation", (("kind", "asked"),)] == 0
    assert found["mixloop_reconcile_seconds_count", ()] > 0
