"""How much one key may ask in a minute, and how much a worker takes on at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

WINDOW = 60.0
MOST_REQUESTS, MOST_ROWS = 6_000, 600_000
IN_FLIGHT_REQUESTS, IN_FLIGHT_ROWS = 64, 20_000


@dataclass
class Quota:
    """Fixed windows of a minute, per key, in this process; each of several workers gives its share
    of the whole."""

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
