"""How much one key may ask in a minute, and how much a worker takes on at once."""

from __future__ import annotations

import hashlib
import mmap
import time
from collections.abc import Callable
from dataclasses import dataclass, field

WINDOW = 60.0
MOST_REQUESTS, MOST_ROWS = 6_000, 600_000
IN_FLIGHT_REQUESTS, IN_FLIGHT_ROWS = 64, 20_000


@dataclass
class Quota:
    """Windows of a minute, per key, in this process."""

    requests: int = MOST_REQUESTS
    rows: int = MOST_ROWS
    clock: Callable[[], float] = time.monotonic
    _used: dict[str, tuple[float, int, int]] = field(default_factory=dict)

    def take(self, key_id: str, rows: int) -> tuple[bool, int, int]:
        """(granted, requests left, seconds until the window ends) for one request of `rows`.

        A refused request uses nothing up.
        """
        now = self.clock()
        start, requests, used = self._used.get(key_id, (now, 0, 0))
        if now - start >= WINDOW:
            start, requests, used = now, 0, 0
        rest = max(1, int(start + WINDOW - now + 0.999))
        if requests >= self.requests or used + rows > self.rows:
            return False, max(0, self.requests - requests), rest
        self._used[key_id] = (start, requests + 1, used + rows)
        return True, self.requests - requests - 1, rest

    @property
    def policy(self) -> str:
        return f'"requests";q={self.requests};w=60, "rows";q={self.rows};w=60'


@dataclass
class SharedQuota(Quota):
    """The same for a key whose requests any of several workers may get, by counts in a file that
    all of them map.

    Each worker writes its own part of the file alone and reads those of all, so nothing is locked
    and no count is lost; workers that ask at the same instant may each grant the last request. The
    windows of all keys begin together, by the clock that all processes of a machine share.
    """

    path: str = ""
    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        with open(self.path, "r+b") as counts:
            self._counts = memoryview(mmap.mmap(counts.fileno(), 0)).cast("q")
        self._known: dict[str, tuple[int, list[int]]] = {}
        """Of each key its code, and where the workers count it."""

    def take(self, key_id: str, rows: int) -> tuple[bool, int, int]:
        now = self.clock()
        window = int(now // WINDOW)
        known = self._known.get(key_id)
        if known is None:
            code = int.from_bytes(hashlib.sha256(key_id.encode()).digest()[:7]) + 1
            known = self._known[key_id] = (code, [0] * self.workers)
        code, places = known
        counts, requests, used = self._counts, 0, 0
        for worker, at in enumerate(places):
            if counts[at] != code:
                at = places[worker] = self._find(worker, code, window)
            if counts[at + 1] == window and counts[at] == code:
                requests += counts[at + 2]
                used += counts[at + 3]
        rest = max(1, int((window + 1) * WINDOW - now + 0.999))
        if requests >= self.requests or used + rows > self.rows:
            return False, max(0, self.requests - requests), rest
        mine = places[self.worker]
        if counts[mine] == code and counts[mine + 1] == window:
            counts[mine + 2] += 1
            counts[mine + 3] += rows
        else:
            # The window last: until then, nobody counts what is half written.
            counts[mine + 1] = 0
            counts[mine], counts[mine + 2], counts[mine + 3] = code, 1, rows
            counts[mine + 1] = window
        return True, self.requests - requests - 1, rest

    def _find(self, worker: int, code: int, window: int) -> int:
        """Where a worker counts a key: there already, or the first place that is free."""
        free = -1
        for probe in range(_PROBES):
            at = (worker * _PLACES + (code + probe) % _PLACES) * _WORDS
            if self._counts[at] == code:
                return at
            if free < 0 and self._counts[at + 1] != window:
                free = at
        return free if free >= 0 else (worker * _PLACES + code % _PLACES) * _WORDS

    @staticmethod
    def size(workers: int) -> int:
        """Bytes of the file, which begins as zeros."""
        return workers * _PLACES * _WORDS * 8


# Keys that one worker counts at a time, and where it looks for one that shares its first place.
_PLACES, _PROBES = 4096, 4
_WORDS = 4  # code of the key, window, requests, rows


@dataclass
class InFlight:
    """What a worker has begun and not answered. Only the event loop touches it."""

    most_requests: int = IN_FLIGHT_REQUESTS
    most_rows: int = IN_FLIGHT_ROWS
    requests: int = 0
    rows: int = 0

    def enter(self, rows: int) -> bool:
        """Take on a request, or refuse it."""
        if self.requests >= self.most_requests or (self.rows and self.rows + rows > self.most_rows):
            return False
        self.requests += 1
        self.rows += rows
        return True

    def leave(self, rows: int) -> None:
        self.requests -= 1
        self.rows -= rows
