"""The process of the jobs: there when there is something to do, replaced when it dies, ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from features.config import validate
from serving import jobs_process
from serving.__main__ import main
from serving.jobs_process import Beside, _asked_to_stop
from serving.log.engine import VARIABLE, open_log
from serving.log.jobs import Jobs
from serving.log.migrate import upgrade
from serving.log.retention import RESULTS
from serving.log.schema import jobs as table
from serving.service import now_micros
from tests.contracts.test_api import shop
from tests.contracts.test_server import folder, running
from tests.unit.serving.jobs import ask

__all__ = ["folder", "shop"]
CONFIG = {
    "name": "spring",
    "source": {"kind": "files", "path": "none"},
    "outcome": {"kind": "conversion"},
}


def wait_for(what: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def test_a_process_is_started_for_a_job_replaced_when_killed_and_ended_with_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'log.db'}"
    monkeypatch.setenv(VARIABLE, url)
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    monkeypatch.setattr(jobs_process, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(jobs_process, "AGAIN_SECONDS", 0.1)
    log = open_log(url)
    upgrade(log)
    beside = Beside(validate(CONFIG), ["--config", "c.yaml"])
    assert beside._command[:4] == [sys.executable, "-m", "serving", "jobs"]
    assert beside._command[-2:] == ["--parent", str(os.getpid())]
    # In its place one that says that it lives, and sleeps.
    script = "import os, time; open(str(os.getpid()), 'w').close(); time.sleep(60); "
    beside._command = [sys.executable, "-c", f"import os; os.chdir({str(tmp_path)!r}); {script}"]

    def processes() -> list[int]:
        return [int(f.name) for f in tmp_path.iterdir() if f.name.isdigit()]

    with beside:
        time.sleep(0.2)
        assert processes() == []  # there is nothing to do
        with log.write() as connection:
            assert Jobs(log).add(connection, "job-a", "c", "k", "{}", now_micros()) == "added"
        wait_for(lambda: len(processes()) == 1)
        (first,) = processes()
        with log.write() as connection:  # as that process would
            assert Jobs(log).claim(connection, beside.owner, 3600, now_micros()) is not None
        os.kill(first, signal.SIGKILL)
        wait_for(lambda: len(processes()) == 2)
        time.sleep(0.2)
        (second,) = set(processes()) - {first}
        assert alive(second)
        assert len(processes()) == 2  # one at a time
    assert not alive(second)
    log.close()


def test_a_process_that_cannot_be_started_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(VARIABLE, f"sqlite:///{tmp_path / 'log.db'}")
    monkeypatch.setattr(jobs_process, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(jobs_process, "AGAIN_SECONDS", 0.1)
    log = open_log(f"sqlite:///{tmp_path / 'log.db'}")
    upgrade(log)
    with log.write() as connection:
        Jobs(log).add(connection, "job-a", "c", "k", "{}", now_micros())
    log.close()
    beside = Beside(validate(CONFIG), ["--config", "c.yaml"])
    beside._command = [sys.executable, "-c", f"open({str(tmp_path / 'lives')!r}, 'w')"]
    faults, start = [OSError(11, "Resource temporarily unavailable")], subprocess.Popen

    def starting(*given: Any, **more: Any) -> Any:
        if faults:
            raise faults.pop()
        return start(*given, **more)

    monkeypatch.setattr(subprocess, "Popen", starting)
    with beside:
        wait_for((tmp_path / "lives").exists)
    assert "cannot be started: [Errno 11]" in caplog.text


def test_a_worker_stops_at_a_signal_and_when_its_server_has_gone() -> None:
    kept = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert _asked_to_stop(os.getppid() + 1)()
        mine, alone = _asked_to_stop(os.getppid()), _asked_to_stop(None)
        assert not mine()
        assert not alone()
        os.kill(os.getpid(), signal.SIGTERM)
        assert alone()
    finally:
        for name, handler in kept.items():
            signal.signal(name, handler)


def test_purge_removes_results_that_have_expired(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(VARIABLE, raising=False)
    Path("c.yaml").write_text(
        "name: spring\nsource: {kind: files, path: none}\noutcome: {kind: conversion}\n"
    )
    assert main(["migrate", "--config", "c.yaml"]) == 0
    log = open_log("sqlite:///data/log/spring.db")
    ages = {"job-old": RESULTS + 1, "job-new": 0, "job-now": None}
    with log.write() as connection:
        for number, (name, age) in enumerate(ages.items()):
            Jobs(log).add(connection, name, f"c{number}", "k", "{}", now_micros())
            if age is not None:
                done = {"state": "succeeded", "finished_at": now_micros() - age}
                connection.execute(table.update().where(table.c.job_id == name).values(**done))
    log.close()
    for name in (*ages, ".job-now-abc", ".job-old-abc"):
        (tmp_path / "data" / "jobs" / "spring" / name).mkdir(parents=True)
    old = tmp_path / "data" / "jobs" / "spring" / ".job-old-abc"
    os.utime(old, (0, 0))
    assert main(["purge", "--config", "c.yaml"]) == 0
    assert "2 folders of results" in capsys.readouterr().out
    left = sorted(f.name for f in (tmp_path / "data" / "jobs" / "spring").iterdir())
    assert left == [".job-now-abc", "job-new", "job-now"]


@pytest.mark.slow
def test_a_real_worker_that_is_killed_is_replaced_and_the_job_is_done(folder: Path) -> None:
    def children(parent: int) -> list[int]:
        found = []
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == parent:
                found.append(int(status.parent.name))
        return found

    with running(folder) as client:
        (server,) = children(os.getpid())
        job_id = ask(client).json()["job_id"]
        wait_for(lambda: bool(children(server)))
        (worker,) = children(server)
        os.kill(worker, signal.SIGKILL)
        wait_for(
            lambda: client.get(f"/v1/jobs/{job_id}").json()["state"] == "succeeded", seconds=120
        )
        (second,) = children(server)
        assert second != worker
    wait_for(lambda: not alive(second))  # it ends with its server
