"""Writers of one file take turns: one at a time, soon after each other, and never for ever."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from serving.log.engine import open_log
from serving.log.turn import Turn
from serving.log.writer import GroupThread


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "log.db-turn")


def test_one_at_a_time_and_everybody(path: str) -> None:
    inside, most, turns = 0, 0, [0, 0, 0]

    def work(k: int) -> None:
        nonlocal inside, most
        turn = Turn(path, 10.0)  # as another process has its own
        for _ in range(40):
            with turn.taken():
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1
            turns[k] += 1
        turn.close()

    threads = [threading.Thread(target=work, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert (most, turns) == (1, [40, 40, 40])


def test_who_waits_goes_on_soon_after_the_turn_is_given_back(path: str) -> None:
    first, second = Turn(path, 10.0), Turn(path, 10.0)
    began = threading.Event()
    waited = []

    def wait() -> None:
        began.set()
        with second.taken():
            waited.append(time.monotonic())

    with first.taken():
        thread = threading.Thread(target=wait)
        thread.start()
        began.wait(10)
        # By now SQLite would look every 50 or 100 ms.
        time.sleep(0.3)
        assert waited == []
    released = time.monotonic()
    thread.join(10)
    assert waited[0] - released < 0.04
    first.close()
    second.close()


def test_who_waits_comes_before_who_has_just_had_a_turn(path: str) -> None:
    first, second = Turn(path, 10.0), Turn(path, 10.0)
    order: list[str] = []
    began = threading.Event()

    def wait() -> None:
        began.set()
        with second.taken():
            order.append("second")

    with first.taken():
        thread = threading.Thread(target=wait)
        thread.start()
        began.wait(10)
        time.sleep(0.1)
    # Nobody else runs between these two lines: without a second gate it would be the first's again.
    with first.taken():
        order.append("first")
    thread.join(10)
    assert order == ["second", "first"]
    first.close()
    second.close()


def test_a_turn_that_never_comes_holds_nobody_up_for_long(path: str) -> None:
    first, second = Turn(path, 10.0), Turn(path, 0.1)
    with first.taken():
        started = time.monotonic()
        with second.taken():
            assert 0.1 <= time.monotonic() - started < 5
    # What was not held was not given back either: it is the first one's to give.
    with second.taken(), Turn(path, 0.05).taken():
        pass
    first.close()
    second.close()


def test_within_a_turn_the_same_thread_takes_it_again(path: str) -> None:
    turn, other = Turn(path, 10.0), Turn(path, 0.05)
    with turn.taken():
        with turn.taken():
            pass
        # The inner one gave nothing back.
        assert other._take(time.monotonic()) is False
    assert other._take(time.monotonic()) is True
    turn.close()
    other.close()


def test_a_killed_process_gives_its_turn_back(path: str) -> None:
    code = (
        "import sys, time\nfrom serving.log.turn import Turn\n"
        f"with Turn({path!r}, 10.0).taken():\n    print('mine', flush=True)\n    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "mine\n"
    turn = Turn(path, 20.0)
    assert turn._take(time.monotonic()) is False
    process.kill()
    process.wait(10)
    process.stdout.close()
    started = time.monotonic()
    with turn.taken():
        assert time.monotonic() - started < 5
    turn.close()


def test_where_no_file_can_be_the_database_decides(tmp_path: Path) -> None:
    turn = Turn(str(tmp_path / "nowhere" / "log.db-turn"), 10.0)
    began = time.monotonic()
    with turn.taken():
        assert time.monotonic() - began < 5.0, "it does not wait for what cannot come"
    turn.close()


def test_a_turn_that_cannot_be_given_back_is_let_go_of(tmp_path: Path) -> None:
    path = str(tmp_path / "log.db-turn")
    turn, other = Turn(path, 10.0), Turn(path, 10.0)
    with turn.taken():
        assert turn._gate.file is not None
        os.close(turn._gate.file)
    assert turn._gate.file is None
    with other.taken():
        assert turn._take(time.monotonic()) is False
    with turn.taken():
        assert other._take(time.monotonic()) is False


def test_a_log_takes_its_turn_to_write_and_none_to_read(tmp_path: Path) -> None:
    log, other = open_log(f"sqlite:///{tmp_path}/log.db"), Turn(f"{tmp_path}/log.db-turn", 0.05)
    with log.read():
        assert other._take(time.monotonic()) is True
        other.close()
    with log.write():
        assert other._take(time.monotonic()) is False
    assert other._take(time.monotonic()) is True
    other.close()
    log.close()
    assert open_log("postgresql://somewhere/log").turn is None


def test_what_comes_while_the_writer_waits_for_its_turn_is_written_with_the_rest(
    path: str,
) -> None:
    mine, others = Turn(path, 10.0), Turn(path, 10.0)
    groups: list[list[int]] = []

    def handle(works: Sequence[int]) -> Sequence[int]:
        groups.append(list(works))
        return works

    async def ask() -> None:
        thread: GroupThread[int] = GroupThread("writer", handle, turn=mine.taken)
        with others.taken():
            asked = [asyncio.create_task(thread.do(0, 10.0))]
            await asyncio.sleep(0.05)
            asked += [asyncio.create_task(thread.do(n, 10.0)) for n in (1, 2)]
            await asyncio.sleep(0.05)
            assert groups == []
        assert await asyncio.gather(*asked) == [0, 1, 2]
        thread.stop()

    asyncio.run(ask())
    assert groups == [[0, 1, 2]]
    mine.close()
    others.close()
