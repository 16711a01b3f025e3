"""`api --bind`: each worker on a core of its own, and the threads that it starts with it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

import pytest

from serving.__main__ import main
from serving.door import bind, open_door

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="this system binds nothing to cores"
)


def test_a_worker_and_the_threads_it_starts_stay_on_its_core() -> None:
    before = os.sched_getaffinity(0)
    cores = sorted(before)
    found: dict[int, tuple[set[int], set[int]]] = {}

    def worker(number: int) -> None:
        bind(number)
        inner: list[set[int]] = []
        thread = threading.Thread(target=lambda: inner.append(os.sched_getaffinity(0)))
        thread.start()
        thread.join(10)
        found[number] = os.sched_getaffinity(0), inner[0]

    for number in range(len(cores) + 1):
        thread = threading.Thread(target=worker, args=(number,))
        thread.start()
        thread.join(10)
    for number, (own, inner) in found.items():
        assert own == inner == {cores[number % len(cores)]}
    assert len(found) == len(cores) + 1
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("asked", [True, False])
def test_the_command_binds_where_it_is_asked_to(
    asked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []
    monkeypatch.setattr("serving.workers.run", lambda config, start: started.append(start) or 0)
    config = Path(__file__).parents[3] / "configs" / "demo-small.yaml"
    monkeypatch.chdir(tmp_path)
    with open_door("127.0.0.1", 0) as door:
        port = str(door.getsockname()[1])
    flags = ["--bind"] if asked else []
    assert main(["api", "--config", str(config), "--port", port, "--workers", "2", *flags]) == 0
    assert started[0].bound is asked
