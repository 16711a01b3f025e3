"""What every request passes before it is answered: key and scope, quota, size, load."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from serving.log.idempotency import Once
from serving.log.keys import OPEN, Key
from serving.problems import ProblemError
from serving.scorer import Scorer
from serving.service import Service

MAX_DEPTH = 8
# The largest body comes in this time at 100 kB/s.
BODY_SECONDS = 20.0
_VISIBLE = re.compile(r"[\x21-\x7e]{1,255}\Z")
_QUOTED = re.compile(r'"([\x21\x23-\x7e]{1,253})"\Z')

Headers = Mapping[bytes, bytes]
State = MutableMapping[str, Any]


def _logged(line: bytes) -> None:
    logging.getLogger("serving.requests").info(line.decode())


@dataclass
class Holder:
    """The references that a request reads once; a new scorer is put in its place whole. `tell` is
    given the line of each request; without a server of ours around it, that is the log."""

    scorer: Scorer | None = None
    service: Service | None = None
    draining: bool = False
    root: Path = Path("data")
    tell: Callable[[bytes], None] = _logged
    told: tuple[str, ...] | None = None
    """What whoever syncs has found not as it should be; None: nobody has looked since the start."""

    def get(self) -> Scorer:
        if self.scorer is None:
            raise ProblemError("not_ready")
        return self.scorer

    def degraded(self) -> list[str]:
        """What a careful reader must know of what is served now."""
        scorer = self.get()
        return scorer.degraded if self.told is None else scorer.degraded_by(self.told)

    def open(self) -> Service:
        if self.service is None:
            raise ProblemError("not_ready")
        return self.service


async def admit(service: Service, headers: Headers, state: State, scope: str | None) -> Key:
    """The key of a request. Raises ProblemError: none (401), or not this scope (403; None: any)."""
    if state.get("inside"):  # the server asks itself, to warm up
        return OPEN
    key = await service.key(headers.get(b"authorization", b"").decode("latin-1"))
    if key is None:
        raise ProblemError("unauthorized")
    state["key_id"] = key.key_id
    if scope is not None and scope not in key.scopes:
        raise ProblemError("forbidden")
    return key


def charge(service: Service, key: Key, state: State, rows: int) -> None:
    """Count a request of so many rows. Raises ProblemError (429) beyond the key's quota."""
    granted, left, rest = service.quota.take(key.key_id, rows)
    state["headers"] = [
        (b"ratelimit-policy", service.quota.policy.encode()),
        (b"ratelimit", f'"requests";r={left};t={rest}'.encode()),
    ]
    state["rows"] = rows
    if not granted:
        service.metrics.rejections.labels("quota").inc()
        raise ProblemError("quota", headers={"Retry-After": str(rest)})


class Busy:
    """While it lasts, so many rows are in flight. Raises ProblemError (503) when that is too
    much for this worker."""

    def __init__(self, service: Service, rows: int, once: Once | None = None) -> None:
        self.service, self.rows, self.once = service, rows, once

    def __enter__(self) -> None:
        if self.once is not None and self.once.name in self.service.busy:
            raise ProblemError("in_flight")
        if not self.service.in_flight.enter(self.rows):
            self.service.metrics.rejections.labels("overloaded").inc()
            raise ProblemError("overloaded")
        if self.once is not None:
            self.service.busy.add(self.once.name)

    def __exit__(self, *error: object) -> None:
        self.service.in_flight.leave(self.rows)
        if self.once is not None:
            self.service.busy.discard(self.once.name)


def once_of(headers: Headers, key: Key, route: str, body: bytes) -> Once | None:
    """What an Idempotency-Key, bare or quoted, stands for. Raises ProblemError (400)."""
    given = headers.get(b"idempotency-key")
    if given is None:
        return None
    text = given.decode("latin-1")
    quoted = _QUOTED.match(text)
    if quoted:
        text = quoted[1]
    elif not _VISIBLE.match(text) or text.startswith('"'):
        raise ProblemError("bad_key")
    return Once.of(key.key_id, route, text, body)


async def read_body(headers: Headers, receive: Receive, limit: int) -> bytes:
    """The body, refused as soon as it is known to be of another type or larger than `limit`, and
    when it has not come whole in BODY_SECONDS. Raises ProblemError."""
    media = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    encoding = headers.get(b"content-encoding", b"identity").lower()
    if media != b"application/json" or encoding != b"identity":
        raise ProblemError("media_type")
    declared = headers.get(b"content-length", b"")
    if declared.isdigit() and int(declared[:20]) > limit:
        raise ProblemError("too_large")
    try:
        async with asyncio.timeout(BODY_SECONDS):
            return await _whole(receive, limit)
    except TimeoutError:
        # What comes later must not be taken for another request.
        raise ProblemError("slow_body", headers={"Connection": "close"}) from None


async def _whole(receive: Receive, limit: int) -> bytes:
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise ProblemError("too_large")
        parts.append(part)
        if not message.get("more_body", False):
            return parts[0] if len(parts) == 1 else b"".join(parts)


def too_deep(body: bytes) -> bool:
    """More than MAX_DEPTH brackets are open at once; brackets in texts are not counted. A text
    without an end goes to the end: looked for anew from every quote, it would take hours."""
    depth = 0
    for token in re.finditer(rb'"(?:[^"\\]|\\.)*+"?|[\[{]|[\]}]', body, re.DOTALL):
        first = token[0]
        if first in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif first in b"]}":
            depth -= 1
    return False


def text_header(headers: Headers, name: bytes) -> str:
    """A header as text, empty without it."""
    value = headers.get(name, b"")
    with suppress(UnicodeDecodeError):
        return value.decode("ascii")
    return ""
