"""The socket at which all workers of a server listen.

Two defaults of the event loop make requests wait. Connections taken at a socket whose protocol is
not named keep the system's delay of small packets: an answer's body then waits for the client to
acknowledge its head, 40 ms at most clients. And a worker that wakes for one new connection takes
all that wait, so that a client that opens its connections together has one worker do all the work
while the others look on.
"""

from __future__ import annotations

import socket

import uvicorn

# Connections that may wait to be taken; and how many a worker takes before it looks at its others.
BACKLOG, AT_ONCE = 2048, 1


def open_door(host: str, port: int) -> socket.socket:
    """A TCP socket bound to an address (IPv6: with a colon), for the workers to listen at.

    Raises OSError where it cannot be bound.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    door = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((host, port))
    except (OSError, OverflowError):  # taken, not allowed; or no port number
        door.close()
        raise
    return door


class SharingServer(uvicorn.Server):
    """A worker that leaves the others their part of the connections at a shared door.

    The event loop takes as many connections at once as may wait: it is given AT_ONCE for both, and
    the number that may wait is put right afterwards.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if sockets:
            self.config.backlog = AT_ONCE
        await super().startup(sockets)
        for door in sockets if sockets and self.started else ():
            door.listen(BACKLOG)
