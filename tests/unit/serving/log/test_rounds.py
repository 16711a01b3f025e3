"""What is read in the event loop: together, on a connection that is kept, and never waiting."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert, select
from sqlalchemy.sql import text as sql

from serving.log.engine import BUSY_SECONDS, Log, LogUnavailable, open_log
from serving.log.kept import Kept
from serving.log.migrate import upgrade
from serving.log.rounds import Rounds
from serving.log.schema import facts
from serving.log.writer import GroupThread
from tests.unit.serving.answering import asked, post, serving
from tests.unit.serving.small_shop import Shop


def names(connection: Any) -> list[str]:
    return sorted(connection.execute(select(facts.c.name)).scalars())


def note(log: Log, name: str) -> None:
    with log.write() as connection:
        connection.execute(insert(facts), {"name": name, "value": ""})


def test_each_view_shows_what_is_stored_by_then_and_nothing_later(log: Log) -> None:
    kept = Kept(log.reading)
    before = kept.view(names)

    def meanwhile(connection: Any) -> list[str]:
        first = names(connection)
        if not log.postgres:  # where all of a transaction sees one state
            note(log, "later")
            assert names(connection) == first
        return first

    note(log, "new")
    assert kept.view(meanwhile) == sorted([*before, "new"])
    assert len(kept.view(names)) == len(before) + (1 if log.postgres else 2)
    kept.close()
    kept.close()
    assert "new" in kept.view(names)
    kept.close()


def test_a_connection_that_was_lost_while_it_was_kept_is_not_noticed(log: Log) -> None:
    if not log.postgres:
        pytest.skip("a file has no server that ends connections")
    kept, number = Kept(log.reading), sql("SELECT pg_backend_pid()")
    note(log, "here")
    first = kept.view(lambda connection: connection.execute(number).scalar_one())
    with log.write() as connection:
        connection.execute(sql("SELECT pg_terminate_backend(:number)"), {"number": first})
    assert kept.view(names) == ["here"]
    assert kept.view(lambda connection: connection.execute(number).scalar_one()) != first
    kept.close()


def test_what_fails_on_a_new_connection_is_told_and_leaves_none(tmp_path: Path) -> None:
    log = open_log(f"sqlite:///{tmp_path / 'log.db'}")
    (tmp_path / "log.db").write_bytes(b"no database" * 1000)
    kept = Kept(log.reading)
    for _ in range(2):
        with pytest.raises(LogUnavailable):
            kept.view(names)
    (tmp_path / "log.db").unlink()
    upgrade(log)
    calls = []

    def defect(connection: Any) -> None:
        calls.append(names(connection))
        raise ZeroDivisionError

    # A defect of the work itself is told as it is, and the work not done again.
    with pytest.raises(ZeroDivisionError):
        kept.view(defect)
    assert calls == [[]]
    assert kept.view(names) == []
    kept.close()
    log.close()


def test_a_glance_does_not_wait_for_a_lock(tmp_path: Path) -> None:
    log = open_log(f"sqlite:///{tmp_path / 'log.db'}")
    upgrade(log)
    log.close()
    near, usual = Kept(log.glancing, plain=True), Kept(log.reading)
    with closing(
        sqlite3.connect(tmp_path / "log.db", isolation_level=None, check_same_thread=False)
    ) as holder:
        # Readers of a write-ahead log are locked out for moments alone, others for longer.
        holder.execute("PRAGMA journal_mode = DELETE")
        holder.execute("BEGIN EXCLUSIVE")
        began = time.monotonic()
        with pytest.raises(LogUnavailable):
            near.view(names)
        assert time.monotonic() - began < BUSY_SECONDS / 2
        freed = threading.Timer(0.2, lambda: holder.execute("COMMIT"))
        freed.start()
        began = time.monotonic()
        assert usual.view(names) == []
        assert time.monotonic() - began >= 0.1
        freed.join()
        assert near.view(names) == []
    near.close()
    usual.close()
    log.close()


class Threads:
    """Rounds over a thread, which say who did what."""

    def __init__(self) -> None:
        self.groups: list[tuple[str, list[int]]] = []
        self.fault: Exception | None = None
        self.slow = 0.0
        self.thread: GroupThread[int] = GroupThread("other", self.far)
        self.rounds: Rounds[int] = Rounds(self.near, self.thread)

    def near(self, works: Sequence[int]) -> list[Any]:
        self.groups.append((threading.current_thread().name, list(works)))
        time.sleep(self.slow)
        if self.fault is not None:
            raise self.fault
        return [KeyError(work) if work < 0 else 10 * work for work in works]

    def far(self, works: Sequence[int]) -> list[Any]:
        self.groups.append(("other", list(works)))
        return [100 * work for work in works]

    def run(self, *works: int) -> list[Any]:
        async def all_of_them() -> list[Any]:
            tasks = [self.rounds.do(work, 5.0) for work in works]
            return await asyncio.gather(*tasks, return_exceptions=True)

        return asyncio.run(all_of_them())


def test_what_comes_in_one_round_is_done_together_where_it_came() -> None:
    here = Threads()
    found = here.run(1, -2, 3)
    assert (found[0], found[2]) == (10, 30)
    assert isinstance(found[1], KeyError)
    assert here.groups == [(threading.current_thread().name, [1, -2, 3])]


def test_what_fails_or_is_slow_goes_to_the_thread_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("serving.log.rounds.AWAY_SECONDS", 0.2)
    here = Threads()
    here.fault = LogUnavailable("locked")
    assert here.run(1, 2) == [100, 200]
    here.fault = None
    assert here.run(3) == [300]  # not looked at again yet
    assert sum(1 for who, _ in here.groups if who != "other") == 1
    time.sleep(0.21)
    here.slow = 0.11
    assert here.run(4) == [40]  # what is slow is answered all the same
    here.slow = 0.0
    assert here.run(5) == [500]
    time.sleep(0.21)
    assert here.run(6) == [60]
    here.thread.stop()


def test_several_loops_of_one_process_never_read_at_once() -> None:
    here = Threads()
    inside, most = [0], [0]

    def near(works: Sequence[int]) -> list[Any]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.002)
        inside[0] -= 1
        return list(works)

    here.rounds = Rounds(near, here.thread)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda n: here.run(n)[0], range(40)))
    here.thread.stop()
    assert all(got in (n, 100 * n) for n, got in enumerate(found))
    assert most[0] == 1


def test_dry_runs_of_few_are_the_same_in_the_loop_as_in_the_thread(shop: Shop, url: str) -> None:
    """Customers with a standing decision and without: one by one, and all together."""
    ids = [f"c-{i:03d}" for i in range(12)]
    with serving(shop.scorer(), url) as client:
        post(client, asked(*ids[:6]))
        service = client.service
        threads: list[str] = []
        usual = service._reading_now.preview

        def watched(*args: Any) -> Any:
            threads.append(threading.current_thread().name)
            return usual(*args)

        service._reading_now.preview = watched
        together = post(client, asked(*ids, dry_run=True)).json()["decisions"]
        assert threads == []
        single = [post(client, asked(i, dry_run=True)).json()["decisions"][0] for i in ids]
        assert len(threads) == (0 if service.log.postgres else len(ids))
        assert [one | {"index": i} for i, one in enumerate(single)] == together
        assert [one["sticky_hit"] for one in single] == [d["sticky_hit"] for d in together]
        assert any(one["sticky_hit"] for one in single), [d["reason"] for d in single]


def test_groups_begin_apart_so_that_more_are_done_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    apart_seconds = 0.6  # long enough for a machine that stands still for a while
    monkeypatch.setattr("serving.log.rounds.APART_SECONDS", apart_seconds)
    began: list[tuple[float, int]] = []

    def handle(works: Sequence[int]) -> list[int]:
        began.append((time.monotonic(), len(works)))
        return list(works)

    rounds = Rounds(handle, GroupThread("unused", handle))

    async def run() -> None:
        assert await asyncio.gather(rounds.do(1, 1.0), rounds.do(2, 1.0)) == [1, 2]
        first = asyncio.ensure_future(rounds.do(3, 1.0))
        await asyncio.sleep(0.01)  # some rounds of the loop later, but too soon for a group
        assert await asyncio.gather(first, rounds.do(4, 1.0)) == [3, 4]
        assert await rounds.do(5, 1.0) == 5
        assert await rounds.do(6, 1.0) == 6

    asyncio.run(run())
    times = [at for at, _ in began]
    assert [size for _, size in began] == [2, 2, 1, 1]
    apart = [later - earlier for earlier, later in pairwise(times)]
    assert min(apart[:2]) >= apart_seconds
    assert apart_seconds / 2 <= apart[2] < apart_seconds
