"""Workers at one door: nobody's answer waits for an acknowledgement, and they share what comes."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from serving.door import BACKLOG, SharingServer, open_door


async def answered(scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"yes"})


def serving(door: socket.socket, look: Callable[[SharingServer], Awaitable[None]]) -> None:
    """Run a worker at a door, and `look` at it in its own loop."""

    async def run() -> None:
        settings = uvicorn.Config(answered, lifespan="off", log_level="warning", backlog=BACKLOG)
        settings.load()
        server = SharingServer(settings)
        server.lifespan = settings.lifespan_class(settings)
        await server.startup([door])
        try:
            await look(server)
        finally:
            server.force_exit = True
            await server.shutdown([door])

    asyncio.run(run())


def test_a_worker_takes_connections_that_come_together_one_by_one() -> None:
    many = 64
    with ExitStack() as stack:
        door = stack.enter_context(open_door("127.0.0.1", 0))
        # They wait at the door before anybody looks.
        door.listen(BACKLOG)
        for _ in range(many):
            stack.enter_context(socket.create_connection(door.getsockname()))

        async def look(server: SharingServer) -> None:
            taken = server.server_state.connections
            for step in range(1, 9):
                await asyncio.sleep(0)
                # In the same round of the loop another worker takes as many.
                assert len(taken) <= step
            while len(taken) < many:
                await asyncio.sleep(0.005)
            for each in list(taken):
                each.transport.close()
            await asyncio.sleep(0)

        serving(door, look)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_answer_never_waits_for_an_acknowledgement(host: str) -> None:
    try:
        door = open_door(host, 0)
    except OSError:
        pytest.skip(f"no {host} here")

    async def look(server: SharingServer) -> None:
        reader, writer = await asyncio.open_connection(*door.getsockname()[:2])
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        (theirs,) = server.server_state.connections
        taken = theirs.transport.get_extra_info("socket")
        assert taken.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        writer.close()
        await writer.wait_closed()

    with door:
        serving(door, look)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux tells how many may wait")
def test_as_many_may_wait_at_the_door_as_before() -> None:
    async def look(server: SharingServer) -> None:
        told = door.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        most = int(Path("/proc/sys/net/core/somaxconn").read_text())
        assert struct.unpack_from("I", told, 28)[0] == min(BACKLOG, most) > 1

    with open_door("127.0.0.1", 0) as door:
        serving(door, look)


def test_a_door_that_is_taken_is_an_error_and_leaves_nothing_open() -> None:
    with open_door("127.0.0.1", 0) as door:
        door.listen()
        with pytest.raises(OSError, match="in use"):
            open_door("127.0.0.1", door.getsockname()[1])
