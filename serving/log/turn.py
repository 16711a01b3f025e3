"""Processes that write to one SQLite file take turns.

SQLite itself lets whoever finds the file locked sleep for 1, 2, 5, 10, 15, 20, 25 and up to 100
milliseconds between looks, and meanwhile others come and go. A lock on a file beside it is looked
at far more often. It is a courtesy and no safeguard: who does not get a turn in time goes on, and
SQLite's own lock decides.
"""

from __future__ import annotations

import fcntl
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

LOOK_SECONDS = 0.0003


class Gate:
    """A lock on a file, of all processes that name the same one; one that ends gives it back,
    however it ends."""

    def __init__(self, path: str) -> None:
        self._path = path
        self.file: int | None = None

    def take(self, until: float) -> bool:
        """Whether the lock came before a moment of the monotonic clock."""
        if self.file is None:
            try:
                self.file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError:  # SQLite says what is wrong with the place
                return False
        while True:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except BlockingIOError:
                if time.monotonic() > until:
                    return False
                time.sleep(LOOK_SECONDS)
            except OSError:  # a file system without locks
                return False

    def give(self) -> None:
        """Give the lock back."""
        if self.file is not None:
            try:
                fcntl.flock(self.file, fcntl.LOCK_UN)
            except OSError:  # closed, it is let go of for sure
                self.forget()

    def forget(self) -> None:
        """Let go of the file; the next look opens it again."""
        if self.file is not None:
            with suppress(OSError):
                os.close(self.file)
            self.file = None


class Turn:
    """The turn to write, of all threads and processes that name the same file.

    Two gates: who waits stands at the first, and who has just had a turn comes after him. At one
    gate alone, who leaves would be back before the others look again, many times over.
    """

    def __init__(self, path: str, seconds: float) -> None:
        self._seconds = seconds
        self._mine = threading.RLock()
        self._depth = 0
        self._next, self._gate = Gate(f"{path}-next"), Gate(path)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """While it lasts, it is this thread's turn; or the time is over in which it came. Within
        its turn, a thread may take it again."""
        until = time.monotonic() + self._seconds
        if not self._mine.acquire(timeout=self._seconds):
            yield
            return
        self._depth += 1
        try:
            held = self._depth == 1 and self._take(until)
            try:
                yield
            finally:
                if held:
                    self._gate.give()
        finally:
            self._depth -= 1
            self._mine.release()

    def _take(self, until: float) -> bool:
        if not self._next.take(until):
            return False
        try:
            return self._gate.take(until)
        finally:
            self._next.give()

    def close(self) -> None:
        """Let go of the files; the next turn opens them again."""
        with self._mine:
            self._next.forget()
            self._gate.forget()
