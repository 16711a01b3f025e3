"""Clients that send or read slowly hold up nobody else."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from serving import gate, stalled
from serving.limits import IN_FLIGHT_REQUESTS
from tests.faults.listening import listening
from tests.unit.serving.answering import Client, asked, serving
from tests.unit.serving.small_shop import Shop

IDS = [f"c-{i:03d}" for i in range(300)]
Running = tuple[Client, int]


@pytest.fixture
def running(shop: Shop, tmp_path: Path) -> Iterator[Running]:
    with serving(shop.scorer(), tmp_path) as client, listening(client.app) as port:
        client.service.quota.requests = client.service.quota.rows = 10**9
        yield client, port


def head(length: int) -> bytes:
    return (
        b"POST /v1/decisions HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
        + f"Content-Length: {length}\r\n\r\n".encode()
    )


def served(port: int, *ids: str) -> None:
    """A request of a client that is quick is answered, long before the slow ones are done."""
    with httpx.Client(trust_env=False, timeout=20) as client:
        for customer in ids:
            answer = client.post(f"http://127.0.0.1:{port}/v1/decisions", json=asked(customer))
            assert answer.status_code == 200, answer.text


def test_bodies_that_dribble_in_take_no_place_of_others(running: Running) -> None:
    client, port = running
    body = json.dumps(asked("c-010")).encode()
    with ExitStack() as open_:
        slow = []
        for _ in range(2 * IN_FLIGHT_REQUESTS):  # more than may be in flight at once
            sock = open_.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            sock.sendall(head(len(body)) + body[:10])
            slow.append(sock)
        served(port, *IDS[20:30])
        assert client.service.in_flight.requests == 0
        # One that goes on after all is answered; one that leaves is forgotten.
        slow[0].sendall(body[10:])
        assert slow[0].recv(64).startswith(b"HTTP/1.1 200")
        slow[1].close()
    served(port, "c-031")


def test_answers_that_nobody_reads_hold_up_nobody(running: Running) -> None:
    client, port = running
    body = json.dumps(asked(*IDS, *(f"k{i}" for i in range(700)), dry_run=True)).encode()
    with ExitStack() as open_:
        for _ in range(8):
            sock = open_.enter_context(socket.socket())
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.settimeout(20)
            sock.connect(("127.0.0.1", port))
            # Several answers of half a megabyte each, of which nothing is ever read.
            sock.sendall((head(len(body)) + body) * 4)
        time.sleep(1.0)
        served(port, *IDS[40:50])
        assert client.service.in_flight.requests == 0  # the work itself is done


def heard(sock: socket.socket) -> bytes:
    """Everything until the other side ends the connection."""
    found = b""
    while part := sock.recv(65536):
        found += part
    return found


def whole_answer(sock: socket.socket) -> bytes:
    """One answer, to the last byte of its body, on a connection that stays open."""
    found = b""
    while b"\r\n\r\n" not in found:
        found += sock.recv(65536)
    start, _, body = found.partition(b"\r\n\r\n")
    length = int(start.lower().partition(b"content-length:")[2].split(b"\r\n")[0])
    while len(body) < length:
        body += sock.recv(65536)
    return start + body


PUT = (
    b"PUT /v1/campaigns/c HTTP/1.1\r\nHost: test\r\nIf-None-Match: *\r\n"
    b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
)


@pytest.mark.parametrize(
    ("begun", "more"),
    [(head(500), b"{"), (head(500).replace(b"decisions", b"events"), b"{"), (PUT, b"1\r\n{\r\n")],
    ids=["decisions", "events", "campaigns"],
)
def test_a_body_has_its_time(
    running: Running, monkeypatch: pytest.MonkeyPatch, begun: bytes, more: bytes
) -> None:
    """Also of a client that goes on sending, and what it sends later is no request."""
    client, port = running
    monkeypatch.setattr(gate, "BODY_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(begun)
        for _ in range(4):
            time.sleep(0.1)
            sock.sendall(more)
        answer = heard(sock)
    assert answer.startswith(b"HTTP/1.1 408 ")
    first, _, body = answer.partition(b"\r\n\r\n")
    assert b"connection: close" in first.lower()
    assert json.loads(body)["code"] == "slow_body"
    assert client.service.in_flight.requests == 0
    served(port, "c-032")


def test_a_head_that_never_comes_takes_no_place_for_long(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, port = running
    monkeypatch.setattr(stalled, "STALLED_SECONDS", 0.5)
    silent, dribbling, late = (
        socket.create_connection(("127.0.0.1", port), timeout=10) for _ in range(3)
    )
    whole = json.dumps(asked("c-033")).encode()
    begun = time.monotonic()
    late.sendall(head(len(whole)) + whole)
    assert whole_answer(late).startswith(b"HTTP/1.1 200")
    late.sendall(b"POST /v1/decisions HTT")
    with silent, dribbling, late:
        for byte in b"GET /livez HTTP/1.1\r\nHost: a-name-without-end":
            try:
                dribbling.sendall(bytes([byte]))
            except OSError:
                break
            time.sleep(0.1)
        for sock in (silent, dribbling, late):
            with suppress(ConnectionResetError):
                assert sock.recv(1) == b""
    assert time.monotonic() - begun > 0.5
    assert client.service.metrics.rejections.labels("stalled")._value.get() == 3
    served(port, "c-034")


def test_an_answer_that_nobody_reads_is_given_up(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    client, port = running
    monkeypatch.setattr(stalled, "STALLED_SECONDS", 0.5)
    body = json.dumps(asked(*IDS, *(f"k{i}" for i in range(700)), dry_run=True)).encode()
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(10)
        sock.connect(("127.0.0.1", port))
        sock.sendall((head(len(body)) + body) * 20)
        counter = client.service.metrics.rejections.labels("stalled")._value
        until = time.monotonic() + 20
        while not counter.get() and time.monotonic() < until:
            time.sleep(0.1)
        assert counter.get() == 1
    served(port, "c-035")


def test_an_upgrade_is_no_way_around(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    _, port = running
    monkeypatch.setattr(stalled, "STALLED_SECONDS", 0.5)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as sock:
        sock.sendall(
            b"GET /v1/decisions HTTP/1.1\r\nHost: test\r\nConnection: Upgrade\r\n"
            b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
            b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
        )
        assert sock.recv(65536).startswith(b"HTTP/1.1 4")
        time.sleep(2.0)
    served(port, "c-036")
