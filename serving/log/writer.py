"""One thread that takes what waits, all of it together, and answers when it is done.

A commit waits for the disk about as long for 256 requests as for one. So nothing waits on purpose:
while one group is being committed, the next one gathers.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from queue import Empty, SimpleQueue
from typing import Any, Generic, TypeVar

MOST = 256
YIELDS = 8
W = TypeVar("W")
# What becomes of each piece of work: its result, or the exception to raise where it is awaited.
Handle = Callable[[Sequence[W]], Sequence[Any]]


class Expired(Exception):
    """The work waited past its deadline; it was not begun."""


class Stopped(Exception):
    """The thread takes no more work."""


class Waiting(Generic[W]):
    """A piece of work and who waits for it. `deadline` is of the monotonic clock."""

    __slots__ = ("deadline", "future", "loop", "work")

    def __init__(self, work: W, deadline: float) -> None:
        self.work, self.deadline = work, deadline
        self.loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Any] = self.loop.create_future()


class GroupThread(Generic[W]):
    """Hands groups of at most `most` pieces of work to `handle`, in the order they came.

    The thread starts with the first work. A group that fails as a whole is handled one by one, so
    that a defect stays with the request that has it; failures in `common` are everybody's. A group
    is gathered within `turn`: what comes while the thread waits for it is part of the group.
    """

    def __init__(
        self,
        name: str,
        handle: Handle[W],
        most: int = MOST,
        common: tuple[type[Exception], ...] = (),
        turn: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._common, self._turn = common, turn
        self._name, self._handle, self._most = name, handle, most
        self._queue: SimpleQueue[Waiting[W] | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False

    @property
    def depth(self) -> int:
        """How many wait."""
        return self._queue.qsize()

    async def do(self, work: W, seconds: float) -> Any:
        """The result of a piece of work. Raises what it failed with, Expired if it was not begun
        in so many seconds, Stopped after `stop`."""
        if self._thread is None or self._stopped:
            self._start()
        waiting = Waiting(work, time.monotonic() + seconds)
        self._queue.put(waiting)
        # What has begun is finished, also when nobody waits any more: a commit is never cut off.
        return await waiting.future

    def stop(self, seconds: float = 20.0) -> None:
        """Finish what waits and end the thread."""
        with self._lock:
            self._stopped = True
            thread = self._thread
        if thread is not None:
            self._queue.put(None)
            thread.join(seconds)

    def _start(self) -> None:
        with self._lock:
            if self._stopped:
                raise Stopped
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def _run(self) -> None:
        while True:
            first = self._queue.get()
            if first is None:
                return
            with self._turn():
                group, ending = [first], False
                for _ in range(YIELDS):
                    before = len(group)
                    ending = self._gather(group)
                    if ending or len(group) == before or len(group) == self._most:
                        break
                    # Where the event loop is busy taking in more, let it; where it is idle, this
                    # takes no time.
                    time.sleep(0)
                self._do(group)
            if ending:
                return

    def _gather(self, group: list[Waiting[W]]) -> bool:
        """Add what waits, up to the most of a group; whether the end has come."""
        while len(group) < self._most:
            try:
                more = self._queue.get_nowait()
            except Empty:
                return False
            if more is None:
                return True
            group.append(more)
        return False

    def _do(self, group: list[Waiting[W]]) -> None:
        now = time.monotonic()
        late = [waiting for waiting in group if waiting.deadline < now]
        _answer(late, [Expired()] * len(late))
        group = [waiting for waiting in group if waiting.deadline >= now]
        if not group:
            return
        try:
            results = self._handle([waiting.work for waiting in group])
        except Exception as error:
            if len(group) == 1 or isinstance(error, self._common):
                results = [error] * len(group)
            else:
                results = [self._alone(waiting.work) for waiting in group]
        _answer(group, results)

    def _alone(self, work: W) -> Any:
        try:
            return self._handle([work])[0]
        except Exception as error:
            return error


def _answer(group: Sequence[Waiting[Any]], results: Sequence[Any]) -> None:
    """Wake each event loop once for all of its answers."""
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Any], Any]]] = {}
    for waiting, result in zip(group, results, strict=True):
        by_loop.setdefault(waiting.loop, []).append((waiting.future, result))
    for loop, answers in by_loop.items():
        with suppress(RuntimeError):  # a loop that has ended meanwhile: nobody is left to answer
            loop.call_soon_threadsafe(resolve, answers)


def resolve(answers: Iterable[tuple[asyncio.Future[Any], Any]]) -> None:
    """Give each future its result, or the exception to raise there; in their own loop."""
    for future, result in answers:
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
