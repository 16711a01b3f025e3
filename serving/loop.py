"""The event loop of the server: what came together is answered before more is taken in.

A request goes through four or five turns of the loop: it is read, its task begins, it is decided
for with all that came with it, its answer is written. The usual loop looks for new requests in each
turn, so one that is half done waits for the reading of all that come meanwhile, three times over.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any

LOOP = "serving.loop:new_loop"
"""As uvicorn names it."""

# More turns than an answer takes. Whoever never rests, such as a task that waits for nothing again
# and again, keeps others waiting no longer than that.
MOST_TURNS = 8


class Together(selectors.DefaultSelector):
    """Looks for what has come when nothing else is left to do, or after MOST_TURNS turns."""

    _turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, Any]]:
        # A loop that still has something to do asks without waiting.
        if timeout is not None and timeout <= 0 and self._turns < MOST_TURNS:
            self._turns += 1
            return []
        self._turns = 0
        return super().select(timeout)


def new_loop() -> asyncio.AbstractEventLoop:
    return asyncio.SelectorEventLoop(Together())
