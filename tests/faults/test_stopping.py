"""A server that is told to stop says so, finishes what it has begun, and loses nothing."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pytest
from sqlalchemy import select

from serving.log.engine import open_log
from serving.log.schema import decisions
from tests.contracts.test_server import free_port
from tests.faults.test_slow_clients import head
from tests.unit.serving.answering import asked
from uplift.policy import STICKY

ROOT = Path(__file__).parents[2]
IDS = [f"c-{i:03d}" for i in range(300)]


def until_ready(client: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    for _ in range(1200):
        assert server.poll() is None
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("it does not get ready")


@pytest.mark.parametrize("workers", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_signal_drains_finishes_and_ends_with_zero(folder: Path, workers: str) -> None:
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    log = (folder / "server.log").open("wb")
    server = subprocess.Popen(
        [sys.executable, "-m", "serving", "api", "--config", "spring.yaml", "--port", str(port),
         "--drain-seconds", "3", "--workers", workers, "--no-jobs"],
        cwd=folder, env=environment, stdout=log, stderr=log,
    )  # fmt: skip
    answers: list[httpx.Response] = []
    refused: list[float] = []

    def keep_asking() -> None:
        """One customer after the other, each by a connection of its own, until nobody listens."""
        for customer in IDS * 20:
            try:
                answers.append(httpx.post(f"{address}/v1/decisions", json=asked(customer)))
            except httpx.TransportError:
                refused.append(time.monotonic())
                return
            time.sleep(0.01)

    try:
        with httpx.Client(base_url=address, trust_env=False) as client:
            until_ready(client, server)
            asking = threading.Thread(target=keep_asking)
            asking.start()
            # A request of which the server has not seen the end when the signal comes.
            body = json.dumps(asked("late")).encode()
            late = socket.create_connection(("127.0.0.1", port), timeout=20)
            late.sendall(head(len(body)) + body[:-1])
            time.sleep(0.5)
            server.send_signal(signal.SIGTERM)
            signalled = time.monotonic()
            time.sleep(1.0)
            # It answers, and says that it is not ready any more.
            draining = httpx.get(f"{address}/readyz", trust_env=False)
            assert (draining.status_code, draining.json()["checks"]["draining"]) == (503, True)
            assert httpx.get(f"{address}/livez", trust_env=False).status_code == 200
        while not refused:
            assert time.monotonic() - signalled < 20
            time.sleep(0.01)
        assert refused[0] - signalled > 2.5
        late.sendall(body[-1:])
        assert late.recv(65536).startswith(b"HTTP/1.1 200")
        late.close()
        asking.join(20)
        assert server.wait(25) == 0
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
        log.close()
    assert {a.status_code for a in answers} == {200}
    told = [a.json()["decisions"][0] for a in answers]
    with open_log(f"sqlite:///{folder}/data/log/spring.db").read() as connection:
        stored = {r.decision_id: r for r in connection.execute(select(decisions))}
    assert {d["decision_id"] for d in told if d["reason"] in STICKY} <= stored.keys()
    assert "late" in {r.customer_id for r in stored.values()}
    assert not re.search("Traceback|ERROR", (folder / "server.log").read_text())
