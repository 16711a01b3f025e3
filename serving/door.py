"""The socket at which all workers of a server listen.

Two defaults of the event loop make requests wait. Connections taken at a socket whose protocol is
not named keep the system's delay of small packets: an answer's body then waits for the client to
acknowledge its head, 40 ms at most clients. And a worker that wakes for one new connection takes
all that wait, so that a client that opens its connections together has one worker do all the work
while the others look on. A third, of the web server, costs the client time: answers in two packets.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Sequence
from typing import Any

import uvicorn

from features.errors import ConfigError

# Connections that may wait to be taken; how long a worker that took one leaves the next to others;
# and how long it lets be after an error, such as no more open files.
BACKLOG, PAUSE_SECONDS, ERROR_SECONDS = 2048, 0.001, 1.0
# For so long, a connection that was taken just before the end may still ask.
LAST_SECONDS = 0.1
log = logging.getLogger(__name__)


def open_door(host: str, port: int) -> socket.socket:
    """A TCP socket bound to an address (IPv6: with a colon), for the workers to listen at.

    Raises ConfigError where it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((host, port))
    except (OSError, OverflowError) as error:  # taken, not allowed; or no port number
        door.close()
        raise ConfigError(
            "--port",
            expected="a free port, 0 to 65535, and an address of this machine as --host",
            found=f"{port} of {host}: {getattr(error, 'strerror', None) or error}",
            remedy="Stop the other server, or give another --port.",
        ) from None
    return door


def bind(number: int) -> None:
    """Keep this thread, and those that it starts, on one of the cores that the process may use.

    The threads of a worker wait for each other anyway; two workers that the system puts on one core
    for some milliseconds answer late."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})


class SharingServer(uvicorn.Server):
    """A worker that leaves the others their part of the connections at a shared door: it takes one
    and then looks away for PAUSE_SECONDS. Who is awake would otherwise take all that come."""

    alone = False
    """Nobody else listens at the door, so connections are taken as they come."""
    _taking: Sequence[asyncio.Task[None]] = ()
    _leaving = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.http_protocol_class = joining(self.config.http_protocol_class)
        # Without sockets, uvicorn opens one of its own, which nobody shares.
        if self.alone or sockets is None:
            await super().startup(sockets)
            return
        await super().startup([])
        self._come = asyncio.Event()
        for door in sockets:
            door.listen(BACKLOG)
            door.setblocking(False)
        self._taking = [asyncio.create_task(self._take(door)) for door in sockets]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # A task that is cancelled while it takes a connection would lose it.
        self._leaving = True
        if self._taking:
            self._come.set()
            await asyncio.gather(*self._taking)
        for server in self.servers:
            server.close()
        # uvicorn ends connections that have not asked yet; the last that were taken are about to.
        await asyncio.sleep(LAST_SECONDS)
        await super().shutdown(sockets)

    async def _take(self, door: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        owed = 1  # a busy loop comes back late from its pause, and makes up for it
        while True:
            loop.add_reader(door, self._come.set)
            await self._come.wait()
            loop.remove_reader(door)
            if self._leaving:
                return
            self._come.clear()
            pause = PAUSE_SECONDS
            try:
                for _ in range(owed):
                    taken, _ = door.accept()
                    await loop.connect_accepted_socket(self._protocol, taken)
            except (BlockingIOError, ConnectionError):  # none waits; it has gone again
                pass
            except Exception as error:
                log.error("a connection could not be taken: %s", error)
                pause = ERROR_SECONDS
            began = loop.time()
            await asyncio.sleep(pause)
            owed = max(1, int((loop.time() - began) / pause))

    def _protocol(self) -> asyncio.Protocol:
        made: asyncio.Protocol = self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        return made


class Joined:
    """A transport on which the head of an answer waits for the body that follows at once. Sent one
    by one they are two packets, and wake the client twice."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self._loop = transport, asyncio.get_running_loop()
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.startswith(b"HTTP/1."):
            self._head = data
            self._loop.call_soon(self._flush)  # what comes later is not waited for
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            self.write(b"")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def joining(protocol: Any) -> Any:
    """The same protocol of uvicorn on transports that are `Joined`."""

    class Joining(protocol):  # type: ignore[misc]
        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(Joined(transport))

    return Joining
