"""Work that takes less time than to wake a thread for it: done in the event loop itself.

What comes in one round of the loop is done together at its end, and under load rounds are kept a
little apart: ten requests together cost hardly more than two, and a loop that is always busy with
one or two answers nobody soon. Whatever does not go smoothly is left to the thread, which may wait
and fail.
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any, Generic

from serving.log.writer import GroupThread, Handle, W, resolve

# A group that takes so long holds up all other requests: then the thread takes over for a while.
SLOW_SECONDS, AWAY_SECONDS = 0.1, 1.0
# From one group to the next; half of it after a group of one, as of a client that waits for each
# answer: by then it has it. A loop that has nothing else to do looks up after whole milliseconds.
APART_SECONDS = 0.0005


class _Left(Exception):
    """Left to the thread."""


class Rounds(Generic[W]):
    """Hands what comes in one round of an event loop to `handle`, which must not wait for anybody;
    what it fails at, or is slow at, goes to `thread`."""

    def __init__(self, handle: Handle[W], thread: GroupThread[W]) -> None:
        self._handle, self._thread = handle, thread
        self._waiting: dict[Any, list[tuple[W, asyncio.Future[Any]]]] = {}
        self._one = threading.Lock()
        self._away_until = 0.0
        self._next = 0.0
        """Of the monotonic clock: before it no group begins."""

    async def do(self, work: W, seconds: float) -> Any:
        """As `GroupThread.do`."""
        if time.monotonic() < self._away_until:
            return await self._thread.do(work, seconds)
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        waiting = self._waiting.get(loop)
        if waiting is None:
            waiting = self._waiting[loop] = []
            pause = self._next - time.monotonic()
            if pause > 0:
                loop.call_later(pause, self._flush, loop)
            else:
                loop.call_soon(self._flush, loop)
        waiting.append((work, future))
        try:
            return await future
        except _Left:
            return await self._thread.do(work, seconds)

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        group = self._waiting.pop(loop)
        began = time.monotonic()
        self._next = began + APART_SECONDS / (2 if len(group) == 1 else 1)
        results: Any = [_Left()] * len(group)
        # Where several loops run in one process, one at a time.
        if self._one.acquire(blocking=False):
            try:
                results = self._handle([work for work, _ in group])
            except Exception:
                self._away_until = began + AWAY_SECONDS
            finally:
                self._one.release()
        if time.monotonic() - began > SLOW_SECONDS:
            self._away_until = began + AWAY_SECONDS
        resolve((future, result) for (_, future), result in zip(group, results, strict=True))
