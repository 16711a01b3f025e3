"""An application that really listens, in a thread of this process."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn


@contextmanager
def listening(app: Any) -> Iterator[int]:
    """The port of loopback that the application listens on."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        port = int(door.getsockname()[1])
        server = uvicorn.Server(
            uvicorn.Config(app, access_log=False, log_level="warning", lifespan="off")
        )
        thread = threading.Thread(target=server.run, args=([door],), daemon=True)
        thread.start()
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.01)
        assert server.started
        try:
            yield port
        finally:
            server.should_exit = server.force_exit = True
            thread.join(20)
