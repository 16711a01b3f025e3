"""Requests that were answered before: found by key, rendered again from ids, never from a body."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import delete, or_, select
from sqlalchemy.engine import Connection

from serving.log.engine import Log
from serving.log.schema import idempotency as table

KEPT = 24 * 3600 * 1_000_000


@dataclass(frozen=True)
class Once:
    """A request that must take effect once: whose it is, and what it says."""

    key_id: str
    route: str
    key: str
    body_sha256: str

    @classmethod
    def of(cls, key_id: str, route: str, key: str, body: bytes) -> Once:
        return cls(key_id, route, key, hashlib.sha256(body).hexdigest())

    @property
    def name(self) -> tuple[str, str, str]:
        return self.key_id, self.route, self.key


class KeyReused(Exception):
    """The key came with another body before."""


def earlier(
    connection: Connection, requests: Sequence[Once], now: int
) -> dict[tuple[str, str, str], tuple[str, str]]:
    """(body hash, result) of each request whose key was answered in the last 24 hours."""
    if not requests:
        return {}
    same = [
        (table.c.key_id == one.key_id)
        & (table.c.route == one.route)
        & (table.c.idempotency_key == one.key)
        for one in requests
    ]
    rows = connection.execute(select(table).where(or_(*same), table.c.stored_at > now - KEPT))
    return {
        (row.key_id, row.route, row.idempotency_key): (row.body_sha256, row.result) for row in rows
    }


def keep(
    log: Log, connection: Connection, results: Sequence[tuple[Once, str]], now: int
) -> set[tuple[str, str, str]]:
    """Store results; returns the keys that another process stored in the meantime."""
    lost = set()
    for once, result in sorted(results, key=lambda pair: pair[0].name):
        key = {"key_id": once.key_id, "route": once.route, "idempotency_key": once.key}
        rest = {"body_sha256": once.body_sha256, "result": result, "stored_at": now}
        statement = (
            log.insert(table)
            .values(**key, **rest)
            .on_conflict_do_update(
                index_elements=list(key), set_=rest, where=table.c.stored_at <= now - KEPT
            )
        )
        if connection.execute(statement.returning(table.c.stored_at)).first() is None:
            lost.add(once.name)
    return lost


def forget(connection: Connection, now: int) -> int:
    """Remove what is older than 24 hours."""
    return connection.execute(delete(table).where(table.c.stored_at <= now - KEPT)).rowcount
