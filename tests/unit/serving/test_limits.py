"""Quotas: of one process, and of several that count together."""

from __future__ import annotations

import multiprocessing
import random
import time
from pathlib import Path
from typing import Any

import pytest

from serving.limits import WINDOW, Quota, SharedQuota

WORKERS = 4


@pytest.fixture
def path(tmp_path: Path) -> str:
    file = tmp_path / "counts"
    file.write_bytes(bytes(SharedQuota.size(WORKERS)))
    return str(file)


def shared(path: str, clock: list[float], requests: int = 30, rows: int = 200) -> list[SharedQuota]:
    return [
        SharedQuota(requests, rows, lambda: clock[0], path=path, worker=i, workers=WORKERS)
        for i in range(WORKERS)
    ]


def test_workers_together_grant_what_one_would(path: str) -> None:
    """The same asks of some keys, each of any worker, beside one process that gets them all."""
    rng = random.Random(3)
    clock = [600.0]
    one, many = Quota(30, 200, lambda: clock[0]), shared(path, clock)
    granted = 0
    for _ in range(2000):
        key, rows = rng.choice("abcdef"), rng.randrange(20)
        found = rng.choice(many).take(key, rows)
        assert found[:2] == one.take(key, rows)[:2]
        granted += found[0]
        clock[0] += rng.choice((0, 0, 0, 0.2))
        if clock[0] % 60 > 55:  # all begin anew together, as one does with its first ask
            clock[0] += 60 - clock[0] % 60
            one = Quota(30, 200, lambda: clock[0])
    assert 200 < granted < 1900


def test_the_whole_is_for_a_key_that_one_worker_gets_alone(path: str) -> None:
    first, *_ = shared(path, [600.0])
    assert [first.take("a", 1)[:2] for _ in range(31)] == [
        *((True, left) for left in range(29, -1, -1)),
        (False, 0),
    ]
    assert first.take("b", 201) == (False, 30, 60)
    assert first.policy == '"requests";q=30;w=60, "rows";q=200;w=60'


def test_a_window_ends_for_all_and_its_rest_is_told(path: str) -> None:
    clock = [659.5]
    first, second, *_ = shared(path, clock, requests=2)
    assert [q.take("a", 1) for q in (first, second, first)] == [
        (True, 1, 1), (True, 0, 1), (False, 0, 1),
    ]  # fmt: skip
    clock[0] = 660.0
    assert second.take("a", 1) == (True, 1, 60)


def test_a_worker_that_is_replaced_leaves_its_counts(path: str) -> None:
    clock = [600.0]
    for left in (1, 0):
        assert shared(path, clock, requests=2)[1].take("a", 1)[:2] == (True, left)
    assert not shared(path, clock, requests=2)[0].take("a", 1)[0]


def test_many_keys_keep_apart(path: str) -> None:
    many = shared(path, [600.0], requests=2)
    for _ in range(2):
        assert all(many[i % 2].take(f"key-{i}", 1)[0] for i in range(300))
    assert not any(many[i % 3].take(f"key-{i}", 1)[0] for i in range(300))


def takes(path: str, worker: int, out: Any) -> None:
    quota = SharedQuota(3000, 10**9, path=path, worker=worker, workers=WORKERS)
    out.put(sum(quota.take("a", 1)[0] for _ in range(2000)))


def test_processes_grant_no_more_than_the_quota(path: str) -> None:
    """But for those that ask at the very instant of the last."""
    window = time.monotonic() // WINDOW
    context = multiprocessing.get_context("spawn")
    out = context.Queue()
    processes = [context.Process(target=takes, args=(path, i, out)) for i in range(WORKERS)]
    for process in processes:
        process.start()
    granted = sum(out.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(60)
    windows = 1 + time.monotonic() // WINDOW - window
    assert 3000 <= granted <= windows * (3000 + WORKERS)
