"""API keys: made by command line, shown once, kept as a hash with scopes, end and revocation."""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from sqlalchemy import func, insert, select, update
from sqlalchemy.engine import Connection

from serving.log.schema import api_keys

SCOPES = ("score", "events", "read", "admin")
PREFIX = "upk"
LOCAL = "local"
_TOKEN = re.compile(r"Bearer upk_([a-z0-9]{12})_([A-Za-z0-9_-]{43})\Z")
# A key that nobody has: an unknown one is compared with it, and takes as long as a known one.
_NOBODY = hashlib.sha256(b"nobody").hexdigest()


@dataclass(frozen=True)
class Key:
    """A key without its secret; times in microseconds."""

    key_id: str
    secret_sha256: str = field(repr=False)
    scopes: frozenset[str]
    label: str
    created_at: int
    expires_at: int | None
    revoked_at: int | None

    def valid(self, now: int) -> bool:
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


# Who asks where there are no keys: this machine alone can.
OPEN = Key(LOCAL, _NOBODY, frozenset(SCOPES), "no keys", 0, None, None)


def make(
    connection: Connection, scopes: Iterable[str], label: str, now: int, expires_at: int | None
) -> str:
    """Store a new key; returns the token, which can't be had again."""
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    connection.execute(
        insert(api_keys),
        {
            "key_id": key_id,
            "secret_sha256": hashlib.sha256(secret.encode()).hexdigest(),
            "scopes": ",".join(scope for scope in SCOPES if scope in set(scopes)),
            "label": label,
            "created_at": now,
            "expires_at": expires_at,
            "revoked_at": None,
        },
    )
    return f"{PREFIX}_{key_id}_{secret}"


def every(connection: Connection) -> dict[str, Key]:
    """All keys by id, also revoked ones."""
    rows = connection.execute(select(api_keys).order_by(api_keys.c.created_at))
    return {
        row.key_id: Key(
            row.key_id,
            row.secret_sha256,
            frozenset(row.scopes.split(",")),
            row.label,
            row.created_at,
            row.expires_at,
            row.revoked_at,
        )
        for row in rows
    }


def revoke(connection: Connection, key_id: str, now: int) -> bool:
    """End a key; False if there is none of this id that is not revoked yet."""
    changed = connection.execute(
        update(api_keys)
        .where(api_keys.c.key_id == key_id, api_keys.c.revoked_at.is_(None))
        .values(revoked_at=now)
    )
    return changed.rowcount == 1


def count(connection: Connection) -> int:
    """How many keys there are, revoked ones included."""
    return int(connection.execute(select(func.count()).select_from(api_keys)).scalar_one())


def authenticate(header: str, keys: Mapping[str, Key], now: int) -> Key | None:
    """The key of an Authorization header, if it is valid; as fast for an unknown one."""
    found = _TOKEN.match(header)
    key_id, secret = (found[1], found[2]) if found else ("", "")
    key = keys.get(key_id)
    expected = _NOBODY if key is None else key.secret_sha256
    same = hmac.compare_digest(hashlib.sha256(secret.encode()).hexdigest(), expected)
    return key if same and key is not None and key.valid(now) else None
