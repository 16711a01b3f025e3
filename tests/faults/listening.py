"""An application that really listens, in a thread of this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from serving.door import open_door
from serving.gate import Holder
from serving.workers import Lines, Server


@contextmanager
def listening(app: Any) -> Iterator[int]:
    """The port of loopback that the application listens on."""
    with open_door("127.0.0.1", 0) as door:
        port = int(door.getsockname()[1])
        settings = uvicorn.Config(app, access_log=False, log_level="warning", lifespan="off")
        server = Server(settings, getattr(app, "holder", Holder()), 0.0, lambda: None, Lines())
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
