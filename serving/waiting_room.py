"""While a server loads, it says so: at its door a thread answers that it lives and is not ready.

To build a large snapshot takes minutes. Whoever watches the server sees it alive meanwhile, and
clients are told to come back (503 `not_ready`) instead of finding the port closed.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn

from serving.app import create_app
from serving.door import BACKLOG, SharingServer
from serving.gate import Holder


@contextmanager
def waiting_room(door: socket.socket) -> Iterator[None]:
    """Answer at a door while this lasts; what comes after that waits for who listens next."""
    settings = uvicorn.Config(
        create_app(Holder()),
        access_log=False,
        log_level="warning",
        http="h11",
        loop="asyncio",
        ws="none",
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=1,
        limit_concurrency=256,
    )
    server = SharingServer(settings)
    # The server closes what it is given, but the door stays open.
    thread = threading.Thread(target=server.run, args=([door.dup()],), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join()
