"""What came together is answered first; and nobody waits for it for ever."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import closing

import uvicorn

from serving.loop import LOOP, MOST_TURNS, Together, new_loop


def turns(loop: asyncio.AbstractEventLoop, steps: int) -> list[str]:
    """What happens after one socket is read: so many steps, each in a turn of its own, while
    another socket has something to read."""
    done: list[str] = []
    ours, theirs = socket.socketpair()
    other, waiting = socket.socketpair()

    def step(n: int) -> None:
        done.append(str(n))
        if n < steps:
            loop.call_soon(step, n + 1)

    def first() -> None:
        ours.recv(1)
        done.append("first")
        waiting.send(b"x")
        step(1)

    def second() -> None:
        other.recv(1)
        done.append("second")

    async def until(fits: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not fits():
                await asyncio.sleep(0.001)

    try:
        loop.add_reader(ours, first)
        loop.add_reader(other, second)
        theirs.send(b"x")
        loop.run_until_complete(until(lambda: "second" in done and str(steps) in done))
    finally:
        loop.close()
        for each in (ours, theirs, other, waiting):
            each.close()
    return done


def test_what_was_begun_is_done_before_more_is_read() -> None:
    assert turns(new_loop(), 4) == ["first", "1", "2", "3", "4", "second"]
    # The usual loop reads in between.
    assert turns(asyncio.SelectorEventLoop(), 4)[-1] == "4"


def test_who_never_rests_does_not_shut_out_the_others() -> None:
    found = turns(new_loop(), 10 * MOST_TURNS)
    assert found.index("second") <= MOST_TURNS + 3


def test_a_loop_that_rests_waits_for_what_comes() -> None:
    with closing(Together()) as selector:
        ours, theirs = socket.socketpair()
        selector.register(ours, 1)
        assert selector.select(0.001) == []
        theirs.send(b"x")
        assert selector.select(0) == []  # put off
        assert [key.fileobj for key, _ in selector.select(None)] == [ours]
        for _ in range(MOST_TURNS):
            assert selector.select(0) == []
        assert [key.fileobj for key, _ in selector.select(0)] == [ours]
        ours.close()
        theirs.close()


def test_the_server_runs_on_it() -> None:
    assert uvicorn.Config("x:y", loop=LOOP).get_loop_factory() is new_loop
