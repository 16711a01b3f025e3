"""Clients that neither send nor read: their connections are let go of.

The web server limits how long a finished connection stays idle, but not how long a request's head
takes to come, nor how long an answer waits to be read. Each such connection takes a place and
memory; without keys, anybody who reaches the port can take all places.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

STALLED_SECONDS = 30.0


@dataclass
class Stalled:
    """Looks at all connections of a server now and then, from its event loop."""

    _seen: dict[Any, tuple[object, float]] = field(default_factory=dict)

    def end(self, connections: Iterable[Any]) -> int:
        """Abort the connections on which nothing has moved for STALLED_SECONDS though it is the
        client's turn; returns how many. Connections are the protocols of uvicorn."""
        now, seen, ended = time.monotonic(), {}, 0
        for connection in list(connections):
            state = _waits_for(connection)
            if state is None:
                continue
            before, since = self._seen.get(connection, (state, now))
            if before != state:
                since = now
            if now - since > STALLED_SECONDS:
                connection.transport.abort()
                ended += 1
            else:
                seen[connection] = (state, since)
        self._seen = seen
        return ended


def _waits_for(connection: Any) -> object | None:
    """What the server waits for, where it waits for the client; None where it does not. The time
    that a request's body may take is counted where the body is read."""
    transport, cycle = connection.transport, getattr(connection, "cycle", None)
    left: int = transport.get_write_buffer_size()
    if left and (transport.is_closing() or connection.flow.write_paused):
        return left
    idle = cycle is None or cycle.response_complete
    # While this is set, the web server itself ends the connection soon.
    if idle and getattr(connection, "timeout_keep_alive_task", None) is None:
        return "head"
    return None
