"""Servers as processes, and the commands around them: restarts, warm-up, bad input, exit codes."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from serving import workers
from serving.__main__ import main
from serving.app import create_app
from serving.door import open_door
from serving.gate import Holder
from serving.salt import VARIABLE
from serving.waiting_room import waiting_room
from tests.contracts.test_api import IDS, ROOT, client, post, shop
from tests.unit.serving.answering import Client, asked, make_service
from tests.unit.serving.small_shop import Shop
from uplift.policy import STICKY

__all__ = ["client", "folder", "running", "shop"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(folder: Path, *more: str, **variables: str) -> Iterator[httpx.Client]:
    port = free_port()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **variables}
    environment.pop("MLFLOW_TRACKING_URI", None)
    log = (folder / "server.log").open("ab")
    server = subprocess.Popen(
        [sys.executable, "-m", "serving", "api", "--config", "spring.yaml", "--port", str(port),
         "--drain-seconds", "0", *more],
        cwd=folder, env=environment, stdout=log, stderr=log,
    )  # fmt: skip
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client:
            for _ in range(2400):
                assert server.poll() is None, (folder / "server.log").read_text()
                try:
                    if client.get("/readyz").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            yield client
        server.send_signal(signal.SIGTERM)
        assert server.wait(30) in (0, -signal.SIGTERM)
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()
        log.close()


@pytest.fixture
def folder(shop: Shop, tmp_path: Path) -> Path:
    """A working directory of its own, with the shop's bundle, for commands."""
    shutil.copytree(shop.root / "data" / "bundles", tmp_path / "shop" / "data" / "bundles")
    raw = shop.config.model_dump(mode="json")
    (tmp_path / "shop" / "spring.yaml").write_text(yaml.safe_dump(raw))
    return tmp_path / "shop"


def test_a_restarted_server_gives_the_same_decisions(folder: Path) -> None:
    found, single = [], []
    for _ in range(2):
        with running(folder) as client:
            answer = post(client, asked(*IDS), **{"x-request-id": "again"})
            assert answer.status_code == 200
            found.append(answer.json())
            single.append(post(client, asked("c-123")).json()["decisions"][0])
            model = client.get("/v1/models/current").json()
            assert model["degraded"] == ["registry_unreachable", "fixed_as_of"]
            ids = [*IDS, *(f"k{i}" for i in range(700))]
            many = asked(*ids, dry_run=True)
            quickest = 9.0
            for _ in range(5):
                started = time.perf_counter()
                assert post(client, many).status_code == 200
                quickest = min(quickest, time.perf_counter() - started)
            assert quickest < 0.5
            post(client, many, **{"x-request-id": "the-last"})
    assert (folder / "server.log").read_text().count('"the-last"') == 2
    first, second = (answer.pop("decisions") for answer in found)
    for answer in found:
        answer.pop("decided_at")
    assert found[0] == found[1]
    for before, after in zip(first, second, strict=True):
        stands = before["reason"] in STICKY
        assert after == before | {
            "sticky_hit": stands,
            "decision_id": before["decision_id"] if stands else after["decision_id"],
        }
    assert single[0] == single[1] == {**first[123], "index": 0, "sticky_hit": True}


def test_a_server_that_loads_lives_and_is_not_ready() -> None:
    with open_door("127.0.0.1", 0) as door:
        address = f"http://127.0.0.1:{door.getsockname()[1]}"
        with waiting_room(door), httpx.Client(base_url=address, trust_env=False) as client:
            assert client.get("/livez").json() == {"status": "ok"}
            ready = client.get("/readyz")
            assert (ready.status_code, ready.json()["status"]) == (503, "not_ready")
            assert ready.json()["checks"]["model"] == ready.json()["checks"]["snapshot"] == "fail"
            answer = post(client, asked("c-001"))
            assert (answer.status_code, answer.json()["code"]) == (503, "not_ready")
            assert client.get("/openapi.json").status_code == 503
        # Who comes between then and the first answer of the server waits.
        with socket.create_connection(door.getsockname(), timeout=5):
            pass


def test_the_first_request_imports_nothing_since_the_warm_up_went_the_same_way(
    folder: Path,
) -> None:
    log = folder / "server.log"
    with running(folder, PYTHONPROFILEIMPORTTIME="1") as client:
        started = log.read_text()
        assert post(client, asked(*IDS)).status_code == 200
    # A request is logged after its answer is sent.
    during, found, _ = log.read_text().removeprefix(started).partition('"rows":300}')
    assert found
    assert "import time:" in started
    assert not re.findall(r"import time:.*", during)
    lines = [json.loads(line) for line in re.findall(r"{.*/v1/decisions.*}", started)]
    assert [(r["request_id"], r["status"], r["rows"]) for r in lines] == [("warm-up", 200, 1000)]


def test_heads_have_a_bound_and_offers_to_upgrade_cost_nothing(folder: Path) -> None:
    """Whatever else is installed: another parser has no bound, and loses the body of a request
    that offers HTTP/2, as every one of Java's own client does."""
    for name in ("httptools", "uvloop"):
        (folder / f"{name}.py").write_text("raise RuntimeError('taken up')")
    body = json.dumps(asked("c-010", dry_run=True)).encode()
    java = (
        b"POST /v1/decisions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAA\r\n"
    )
    sized = b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    chunked = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    with running(folder, PYTHONPATH=f"{ROOT}{os.pathsep}{folder}") as client:
        place = (client.base_url.host, client.base_url.port)
        with socket.create_connection(place, timeout=20) as sock, sock.makefile("rb") as answers:
            for rest in (sized, chunked, sized):  # the connection stays
                sock.sendall(java + rest)
                assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
                headers = dict(line.split(b": ", 1) for line in iter(answers.readline, b"\r\n"))
                answer = json.loads(answers.read(int(headers[b"content-length"])))
                assert answer["decisions"][0]["customer_id"] == "c-010"
        with socket.create_connection(place, timeout=20) as sock:
            sock.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Long: ")
            sent = 0
            with suppress(OSError):
                while sent < 16 << 20:
                    sent += sock.send(b"x" * 65536)
            assert sent < 16 << 20  # it was ended on the way
        assert client.get("/livez").status_code == 200
    assert "pgrade" not in (folder / "server.log").read_text()


def test_a_server_whose_warm_up_fails_does_not_start(shop: Shop, tmp_path: Path) -> None:
    broken = replace(shop.scorer(), clock=lambda: 1 / 0)
    app = create_app(Holder(broken, make_service(broken, f"sqlite:///{tmp_path / 'log.db'}")))

    async def start() -> None:
        async with app.app.router.lifespan_context(app.app):
            raise AssertionError("it started")

    with pytest.raises(RuntimeError, match="warm-up was answered with 500"):
        asyncio.run(start())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("api", "--config", "none.yaml"), "expected a configuration file"),
        (("api", "--config", "c.yaml", "--host", "0.0.0.0"), "a salt in the environment"),
        (("score", "--config", "c.yaml", "--out", "d.xlsx"), "ends with .parquet or .csv"),
        (("score", "--config", "c.yaml", "--out", "d.csv", "--set", "polcy.budget=3"),
         "Did you mean policy"),
        (("score", "--config", "c.yaml", "--out", "d.csv"), "make train"),
    ],
)  # fmt: skip
def test_bad_input_is_one_message_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("c.yaml").write_text(
        "name: spring\nsource: {kind: files, path: none}\noutcome: {kind: conversion}\n"
    )
    assert main(arguments) == 2
    shown = capsys.readouterr().err
    assert message in shown
    assert "Traceback" not in shown
    assert shown.count("error:") == 1


def test_beyond_this_machine_nothing_starts_without_a_key(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv(VARIABLE, "a salt of this test, of 32 bytes and more")
    use = ["--config", "spring.yaml"]
    started: list[str] = []
    monkeypatch.setattr(workers, "serve", lambda holder, start, *_: started.append(start.host) or 0)
    beyond = ["api", *use, "--host", "0.0.0.0", "--port", "0", "--no-jobs"]
    assert main(beyond) == 2
    assert "expected API keys, where not only this machine can ask" in capsys.readouterr().err
    assert main(["keys", *use, "create", "--scopes", "read"]) == 0
    assert main(beyond) == 0
    assert started == ["0.0.0.0"]


def test_a_taken_port_is_told_before_any_work(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert main(["api", "--config", "spring.yaml", "--port", port]) == 2
    assert "--port: expected a free port" in capsys.readouterr().err


def test_a_client_that_leaves_is_no_defect(
    client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    async def leave() -> None:
        scope = {
            "type": "http", "method": "POST", "path": "/v1/decisions", "query_string": b"",
            "headers": [(b"content-type", b"application/json")],
        }  # fmt: skip

        async def receive() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            raise AssertionError("nobody is there")

        await client.app(scope, receive, send)

    with caplog.at_level("INFO", logger="serving.requests"):
        asyncio.run(leave())
    assert [json.loads(r.message)["status"] for r in caplog.records] == [499]


def test_score_from_the_command_line(
    shop: Shop,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    import pandas as pd

    monkeypatch.chdir(folder)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    out = folder / "out" / "d.parquet"
    flags = ["--budget", "40", "--holdout-share", "0", "--exploration-share", "0"]
    assert main(["score", "--config", "spring.yaml", "--out", str(out), *flags]) == 0
    assert "of 40.00 EUR" in capsys.readouterr().out
    frame = pd.read_parquet(out)
    assert not frame["is_holdout"].any()
    assert not frame["is_exploration"].any()
    assert 30 < frame["expected_cost"].sum() <= 40
    scored = shop.population.scores.cate[:, 0]
    assert frame["cate_c5"].to_numpy().tobytes() == scored.tobytes()
    assert main(["score", "--config", "spring.yaml", "--out", str(out), "--budget", "-1"]) == 2
    assert "policy.budget" in capsys.readouterr().err
    early = ["--as-of", "2001-01-01"]
    assert main(["score", "--config", "spring.yaml", "--out", str(out), *early]) == 2
    assert "Give a later --as-of" in capsys.readouterr().err
